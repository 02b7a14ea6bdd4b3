//! A machine as a table: from (state, input) to (state, output), filled in as it is asked.
//!
//! ```text
//!   (state 17, PREPARE of write 3)  known?  -> (state 21, ACK of write 3)
//!                                   new?    -> a machine is made, led to state 17 by the inputs that led
//!                                              there first, given the input, and described:
//!                                              a description seen before is that state, else a new one
//! ```
//!
//! The machines that ship cannot be copied, and need not be: a search over a whole group meets few states
//! of one machine, each of them very often.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// A state of a machine, by the order of discovery.
pub type StateId = u32;

/// A deterministic machine.
pub trait Machine {
    /// What it is made from.
    type Origin: Clone;
    /// What it takes.
    type Input: Clone + Eq + Hash;
    /// What it does then.
    type Output: PartialEq + Debug;
    /// What others may see of it.
    type Sight;
    /// What its inputs and outputs name by number.
    type Shared;

    /// Makes one.
    fn make(origin: &Self::Origin) -> Self;
    /// Gives it an input.
    fn take(&mut self, shared: &mut Self::Shared, input: &Self::Input) -> Self::Output;
    /// Everything on which its behaviour depends.
    fn describe(&self) -> String;
    /// What others may see of it.
    fn sight(&self) -> Self::Sight;
}

/// What an input led to.
#[derive(Debug)]
pub struct Step<O> {
    /// The state after it.
    pub next: StateId,
    /// What was done.
    pub output: O,
}

/// What is known of a kind of machine.
pub struct Unfolding<M: Machine> {
    states: Vec<Known<M>>,
    by_description: HashMap<u64, StateId>,
    steps: HashMap<(StateId, M::Input), Taken<M>>,
    /// Whether each step from a state that was reached in two ways is done after both, to see that its
    /// description left nothing out.
    pub is_audited: bool,
    /// Steps that were compared so.
    pub audits: u64,
}

/// What an input led to, or what the machine said when it panicked.
type Taken<M> = Result<Rc<Step<<M as Machine>::Output>>, Rc<str>>;

struct Known<M: Machine> {
    way: Way<M>,
    /// The last step of another way.
    other: Option<(StateId, M::Input)>,
    sight: Rc<M::Sight>,
}

/// How a state was reached first.
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
    /// A machine that has taken nothing yet.
    pub fn make(&mut self, origin: M::Origin) -> StateId {
        let machine = M::make(&origin);
        self.state_of(&machine, Way::Made(origin))
    }

    /// What may be seen of a state.
    pub fn sight(&self, state: StateId) -> &Rc<M::Sight> {
        &self.states[state as usize].sight
    }

    /// How many states are known.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Gives an input to a machine in this state.
    ///
    /// # Errors
    /// What the machine said when it panicked.
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

    /// The same step from the same state, reached in another way, must be the same step.
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
        assert_eq!(&other.take(shared, input), output, "a description leaves something out");
        assert_eq!(other.describe(), machine.describe(), "a description leaves something out");
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
        _ => "a panic without words".to_owned(),
    }
}

/// Gives numbers to things that have equal keys.
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
    /// The number of what has this key; numbers begin at 1.
    pub fn number_of(&mut self, key: Vec<u8>, thing: T) -> u32 {
        let next = u32::try_from(self.things.len() + 1).expect("fewer than 2^32 things");
        let number = *self.numbers.entry(key).or_insert(next);
        if number == next {
            self.things.push(thing);
        }
        number
    }

    /// The thing with a number.
    pub fn get(&self, number: u32) -> &T {
        &self.things[number as usize - 1]
    }
}

impl<T: Debug> Numbered<T> {
    /// The number of all things that print alike.
    pub fn number_printed(&mut self, thing: T) -> u32 {
        self.number_of(format!("{thing:?}").into_bytes(), thing)
    }
}

impl Numbered<Vec<u8>> {
    /// The number of these bytes.
    pub fn number(&mut self, bytes: Vec<u8>) -> u32 {
        self.number_of(bytes.clone(), bytes)
    }
}
