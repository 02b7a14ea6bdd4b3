//! A machine as a table from (state, input) to (state, output), filled on demand.
//!
//! ```text
//!   (state 17, PREPARE of write 3)  known?  -> (state 21, ACK of write 3)
//!                                   new?    -> a machine is created, replayed to state 17 with the inputs
//!                                              that first led there, given the input, and described:
//!                                              a known description is that state, else a new one
//! ```
//!
//! The shipped machines cannot be cloned. The table makes this unnecessary: a search over a whole group finds only a
//! few states of each machine, and each of them very often.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// A state of a machine, numbered in the order of discovery.
pub type StateId = u32;

/// A deterministic machine.
pub trait Machine {
    /// The construction parameters.
    type Origin: Clone;
    /// The type of inputs.
    type Input: Clone + Eq + Hash;
    /// The type of outputs.
    type Output: PartialEq + Debug;
    /// The observable part of the state.
    type Sight;
    /// The objects to which inputs and outputs refer by number.
    type Shared;

    /// Creates a machine.
    fn make(origin: &Self::Origin) -> Self;
    /// Applies an input, and returns the output.
    fn take(&mut self, shared: &mut Self::Shared, input: &Self::Input) -> Self::Output;
    /// Describes everything on which further behaviour depends.
    fn describe(&self) -> String;
    /// Returns the observable part of the state.
    fn sight(&self) -> Self::Sight;
}

/// The result of an input.
#[derive(Debug)]
pub struct Step<O> {
    /// The next state.
    pub next: StateId,
    /// The output.
    pub output: O,
}

/// The known states and steps of one kind of machine.
pub struct Unfolding<M: Machine> {
    states: Vec<Known<M>>,
    by_description: HashMap<u64, StateId>,
    steps: HashMap<(StateId, M::Input), Taken<M>>,
    /// True if the steps from a state that two paths reach are executed after both paths and compared. This
    /// verifies that the description is complete.
    pub is_audited: bool,
    /// The number of steps that were compared.
    pub audits: u64,
}

/// The result of an input, or the machine's panic message.
type Taken<M> = Result<Rc<Step<<M as Machine>::Output>>, Rc<str>>;

struct Known<M: Machine> {
    way: Way<M>,
    /// The last step of another path to this state, for the comparison.
    other: Option<(StateId, M::Input)>,
    sight: Rc<M::Sight>,
}

/// The path by which a state was first reached.
enum Way<M: Machine> {
    Made(M::Origin),
    By(StateId, M::Input),
}

impl<M: Machine> Default for Unfolding<M> {
    fn default() -> Self {
        Unfolding {
            states: Vec::new(),
            by_description: HashMap::new(),
            steps: HashMap::new(),
            is_audited: false,
            audits: 0,
        }
    }
}

impl<M: Machine> Unfolding<M> {
    /// Creates a machine, and returns its initial state.
    pub fn make(&mut self, origin: M::Origin) -> StateId {
        let machine = M::make(&origin);
        self.state_of(&machine, Way::Made(origin))
    }

    /// Returns the observable part of a state.
    pub fn sight(&self, state: StateId) -> &Rc<M::Sight> {
        &self.states[state as usize].sight
    }

    /// Returns the number of known states.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Returns whether no state is known.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Applies an input to a machine in this state.
    ///
    /// # Errors
    /// The machine's panic message.
    pub fn take(&mut self, shared: &mut M::Shared, state: StateId, input: M::Input) -> Taken<M> {
        let key = (state, input);
        if let Some(step) = self.steps.get(&key) {
            return step.clone();
        }
        let taken = catch_unwind(AssertUnwindSafe(|| {
            let mut machine = self.lead_to(shared, state);
            let output = machine.take(shared, &key.1);
            (machine, output)
        }));
        let step = match taken {
            Ok((machine, output)) => {
                if self.is_audited {
                    self.audit(shared, state, &key.1, &machine, &output);
                }
                let next = self.state_of(&machine, Way::By(state, key.1.clone()));
                Ok(Rc::new(Step { next, output }))
            }
            Err(panic) => Err(words_of(panic.as_ref()).into()),
        };
        self.steps.insert(key, step.clone());
        step
    }

    fn state_of(&mut self, machine: &M, way: Way<M>) -> StateId {
        let mut hasher = DefaultHasher::new();
        machine.describe().hash(&mut hasher);
        let next = StateId::try_from(self.states.len()).expect("fewer than 2^32 states");
        let state = *self.by_description.entry(hasher.finish()).or_insert(next);
        if state == next {
            self.states.push(Known { way, other: None, sight: Rc::new(machine.sight()) });
        } else if let (true, Way::By(before, input)) = (self.is_audited, way) {
            self.states[state as usize].other = Some((before, input));
        }
        state
    }

    /// Asserts that the same input gives the same step if the state is reached by another path.
    fn audit(
        &mut self,
        shared: &mut M::Shared,
        state: StateId,
        input: &M::Input,
        machine: &M,
        output: &M::Output,
    ) {
        let Some((before, last)) = self.states[state as usize].other.clone() else { return };
        let mut other = self.lead_to(shared, before);
        other.take(shared, &last);
        assert_eq!(&other.take(shared, input), output, "a description is incomplete");
        assert_eq!(other.describe(), machine.describe(), "a description is incomplete");
        self.audits += 1;
    }

    fn lead_to(&self, shared: &mut M::Shared, state: StateId) -> M {
        let (mut inputs, mut at) = (Vec::new(), state);
        let origin = loop {
            match &self.states[at as usize].way {
                Way::Made(origin) => break origin,
                Way::By(before, input) => {
                    inputs.push(input);
                    at = *before;
                }
            }
        };
        let mut machine = M::make(origin);
        for input in inputs.into_iter().rev() {
            machine.take(shared, input);
        }
        machine
    }
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(words), _) => (*words).to_owned(),
        (_, Some(words)) => words.clone(),
        _ => "a panic without a message".to_owned(),
    }
}

/// An interning table: assigns numbers to objects. Objects with equal keys have the same number.
#[derive(Debug)]
pub struct Numbered<T> {
    things: Vec<T>,
    numbers: HashMap<Vec<u8>, u32>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Numbered { things: Vec::new(), numbers: HashMap::new() }
    }
}

impl<T> Numbered<T> {
    /// Returns the number of the object with this key; numbers begin at 1.
    pub fn number_of(&mut self, key: Vec<u8>, thing: T) -> u32 {
        let next = u32::try_from(self.things.len() + 1).expect("fewer than 2^32 things");
        let number = *self.numbers.entry(key).or_insert(next);
        if number == next {
            self.things.push(thing);
        }
        number
    }

    /// Returns the object with a number.
    pub fn get(&self, number: u32) -> &T {
        &self.things[number as usize - 1]
    }
}

impl<T: Debug> Numbered<T> {
    /// Returns the number shared by all objects with the same debug output.
    pub fn number_printed(&mut self, thing: T) -> u32 {
        self.number_of(format!("{thing:?}").into_bytes(), thing)
    }
}

impl Numbered<Vec<u8>> {
    /// Returns the number of these bytes.
    pub fn number(&mut self, bytes: Vec<u8>) -> u32 {
        self.number_of(bytes.clone(), bytes)
    }
}
