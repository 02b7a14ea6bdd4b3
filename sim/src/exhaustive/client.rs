//! The clients' part of a state: requests, responses, and all orders in which an atomic store could have executed
//! the requests.
//!
//! A *linearization* is one order in which an atomic store could have executed the writes so far. All linearizations
//! that agree with every response are kept. If a response agrees with none of them, it violates linearizability. This
//! is the decision procedure of Wing and Gong (1993), performed incrementally. A write takes effect once, at any time
//! between its first request and its response. A write without a response may also have no effect.

use kv_protocol::client_message::Status;

use super::replica::{Asked, Kind, What};

/// A write that clients may request.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// The client.
    pub client: u8,
    /// The sequence number in the client's session.
    pub seq: u8,
    /// The index of its key.
    pub key: u8,
    /// The operation.
    pub kind: Kind,
    /// True if the value is so large that it fills a batch.
    pub large: bool,
}

/// The writes of a search, in the order of their first requests.
#[derive(Clone, Debug)]
pub struct Script {
    /// The writes.
    pub writes: Vec<Write>,
    /// The keys, with the shard of each.
    pub keys: Vec<(&'static str, u8)>,
}

impl Script {
    /// Returns the shard of a write.
    pub fn shard_of(&self, number: usize) -> u8 {
        self.keys[usize::from(self.writes[number].key)].1
    }
}

/// The outcome of a write in one linearization.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Went {
    /// Not done.
    #[default]
    Not,
    /// Done with this status; the client has no response yet.
    As(u8),
    /// Done; the client has received the response.
    Told,
}

/// A linearization: the outcome of every write, and the content of every key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Story {
    writes: Vec<Went>,
    /// The write whose value a key has, by key.
    keys: Vec<Option<u8>>,
}

/// The observations of clients.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Clients {
    /// The number of writes requested so far.
    pub asked: u8,
    /// Status and version of the response, by write.
    pub responses: Vec<Option<(u8, u64)>>,
    stories: Vec<Story>,
}

/// Returns whether a response with this status is final for a write, whatever fails later.
pub fn is_definite(status: Status) -> bool {
    matches!(status, Status::Ok | Status::NotFound | Status::Conflict)
}

impl Clients {
    /// Creates the initial observations, without a request.
    pub fn new(script: &Script) -> Clients {
        let story = Story {
            writes: vec![Went::Not; script.writes.len()],
            keys: vec![None; script.keys.len()],
        };
        Clients { asked: 0, responses: vec![None; script.writes.len()], stories: vec![story] }
    }

    /// Returns the request of a write.
    pub fn request(&self, script: &Script, number: u8) -> Asked {
        let write = script.writes[usize::from(number)];
        let of_client = |n: &usize| script.writes[*n].client == write.client;
        let incomplete = (0..script.writes.len())
            .filter(of_client)
            .find(|n| self.responses[*n].is_none())
            .map_or(write.seq, |n| script.writes[n].seq.min(write.seq));
        let what = What::Write {
            client: write.client,
            seq: write.seq,
            first_incomplete: incomplete,
            kind: write.kind,
            large: write.large,
        };
        Asked { id: u64::from(number) + 1, key: script.keys[usize::from(write.key)].0, what }
    }

    /// Handles the definite response to a write.
    ///
    /// # Errors
    /// The number of the invariant that the response violates, and a description.
    pub fn on_written(
        &mut self,
        script: &Script,
        number: u8,
        status: Status,
        version: u64,
    ) -> Result<(), (u8, String)> {
        let response = (status as u8, version);
        let at = usize::from(number);
        if let Some(first) = self.responses[at] {
            let words = || format!("write {} got {first:?} before, and {response:?} now", at + 1);
            return if first == response { Ok(()) } else { Err((13, words())) };
        }
        if status == Status::Ok {
            let shard = |n: usize| script.shard_of(n);
            let same = |(n, known): (usize, &Option<(u8, u64)>)| {
                shard(n) == shard(at) && *known == Some(response)
            };
            if self.responses.iter().enumerate().any(same) {
                return Err((4, format!("sequence number {version} belongs to two writes")));
            }
        }
        self.extend(script);
        self.stories.retain(|story| story.writes[at] == Went::As(status as u8));
        for story in &mut self.stories {
            story.writes[at] = Went::Told;
        }
        self.responses[at] = Some(response);
        self.tidy();
        match self.stories.is_empty() {
            true => Err((16, format!("write {} must not get {status:?}", at + 1))),
            false => Ok(()),
        }
    }

    /// Handles a response to a read of a key. `writer` is the write whose value the read returned.
    ///
    /// # Errors
    /// The number of the invariant that the response violates, and a description.
    pub fn on_read(
        &mut self,
        script: &Script,
        key: u8,
        writer: Option<u8>,
    ) -> Result<(), (u8, String)> {
        self.extend(script);
        self.stories.retain(|story| story.keys[usize::from(key)] == writer);
        self.tidy();
        let name = script.keys[usize::from(key)].0;
        match (self.stories.is_empty(), writer) {
            (false, _) => Ok(()),
            (true, None) => Err((16, format!("a read of {name} wrongly finds no value"))),
            (true, Some(n)) => Err((16, format!("a read of {name} wrongly finds write {n}"))),
        }
    }

    /// Returns the newest version of a shard acknowledged with OK.
    pub fn acked(&self, script: &Script, shard: u8) -> u64 {
        let of_shard = |(n, response): (usize, &Option<(u8, u64)>)| {
            let (status, version) = (*response)?;
            (script.shard_of(n) == shard && status == Status::Ok as u8).then_some(version)
        };
        self.responses.iter().enumerate().filter_map(of_shard).max().unwrap_or(0)
    }

    /// Adds every linearization in which further writes without a response are done.
    fn extend(&mut self, script: &Script) {
        let mut at = 0;
        while at < self.stories.len() {
            for number in 0..usize::from(self.asked) {
                if self.stories[at].writes[number] != Went::Not || self.responses[number].is_some()
                {
                    continue;
                }
                let mut story = self.stories[at].clone();
                let write = script.writes[number];
                let key = &mut story.keys[usize::from(write.key)];
                let status = match (write.kind, key.is_some()) {
                    (Kind::Put, _) | (Kind::PutIfAbsent, false) => {
                        *key = Some(u8::try_from(number + 1).expect("writes are few"));
                        Status::Ok
                    }
                    (Kind::PutIfAbsent, true) => Status::Conflict,
                    (Kind::Delete, true) => {
                        *key = None;
                        Status::Ok
                    }
                    (Kind::Delete, false) => Status::NotFound,
                };
                story.writes[number] = Went::As(status as u8);
                if !self.stories.contains(&story) {
                    self.stories.push(story);
                }
            }
            at += 1;
        }
    }

    /// Sorts and deduplicates the linearizations, so that equal sets compare equal. A linearization is kept even if its
    /// extensions are in the set, because its missing writes may never be done.
    fn tidy(&mut self) {
        self.stories.sort_unstable();
        self.stories.dedup();
    }
}
