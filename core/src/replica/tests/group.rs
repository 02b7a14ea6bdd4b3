//! Several replicas of one shard, with a driver that keeps every stream that a replica requests.

use super::*;

/// Replicas by number, one clock, one client.
pub(super) struct Group {
    pub(super) replicas: Vec<Replica>,
    pub(super) inbox: Inbox,
    pub(super) now: Time,
    /// The replicas that send and receive nothing.
    pub(super) silent: Vec<usize>,
    /// The hello of the current stream of each replica.
    streams: Vec<Option<PeerHello>>,
    requests: u64,
    seq: u64,
}

/// Returns a view of this version with a primary and an optional peer.
pub(super) fn view_of(version: u64, primary: usize, peer: Peer) -> View {
    let primary = Some(named(primary));
    View { group: GroupId(0), version: ViewVersion(version), primary, peer, handover: false }
}

/// Returns the member with this number.
pub(super) fn named(number: usize) -> Member {
    member(u16::try_from(number).unwrap())
}

impl Group {
    /// Creates a group in which replica 0 is primary, replica 1 secondary, and replica 2 holds nothing.
    pub(super) fn new() -> Group {
        let mut group = Group {
            replicas: (0..3).map(|n| replica(n, None)).collect(),
            inbox: Inbox::default(),
            now: Time::from_nanos(1_000_000_000),
            silent: Vec::new(),
            streams: vec![None; 3],
            requests: 0,
            seq: 0,
        };
        group.install(0, view_of(1, 0, Peer::Secondary(named(1))));
        group.settle();
        group
    }

    pub(super) fn install(&mut self, at: usize, view: View) {
        self.replicas[at].install(self.now, view, &mut self.inbox).unwrap();
    }

    pub(super) fn state(&self, at: usize) -> ReplicaState {
        self.replicas[at].state()
    }

    /// Lets time pass, with a wake-up of every replica that is not silent at the end.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        for at in 0..self.replicas.len() {
            if !self.silent.contains(&at) {
                self.replicas[at].on_timeout(self.now, &mut self.inbox);
            }
        }
        self.settle();
    }

    /// Lets time pass in short steps, so that leases are renewed.
    pub(super) fn idle(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.pass(BEACON_INTERVAL);
        }
    }

    /// Breaks every stream of a replica.
    pub(super) fn cut(&mut self, at: usize) {
        for other in 0..self.replicas.len() {
            let hello = self.streams[other];
            if hello.is_some_and(|hello| hello.from == named(at) || hello.to == named(at)) {
                self.streams[other] = None;
                let to = usize::from(hello.unwrap().to.server.0);
                self.replicas[other].on_stream_down(self.now, &mut self.inbox);
                self.replicas[to].on_stream_down(self.now, &mut self.inbox);
            }
        }
    }

    /// Delivers messages until no replica has any to send.
    pub(super) fn settle(&mut self) {
        while self.step() {}
    }

    /// Runs one round of dials and batches; returns whether anything was sent.
    pub(super) fn step(&mut self) -> bool {
        let mut said = false;
        for at in 0..self.replicas.len() {
            if !self.silent.contains(&at) {
                said |= self.keep_stream(at);
            }
        }
        for at in 0..self.replicas.len() {
            let Some(hello) = self.streams[at] else { continue };
            let to = usize::from(hello.to.server.0);
            if !self.silent.contains(&at) && !self.silent.contains(&to) {
                said |= self.carry(at, to) | self.carry(to, at);
            }
        }
        said
    }

    /// Dials if the replica requests a stream and none is up.
    pub(super) fn keep_stream(&mut self, at: usize) -> bool {
        let wanted = self.replicas[at].peer_hello(CLUSTER);
        if self.streams[at] == wanted {
            return false;
        }
        self.streams[at] = None;
        let Some(hello) = wanted else { return false };
        let to = usize::from(hello.to.server.0);
        if self.silent.contains(&to) || hello.to != named(to) {
            return false;
        }
        let (now, inbox) = (self.now, &mut self.inbox);
        match self.replicas[to].on_peer_hello(now, &hello, inbox) {
            Ok(welcome) => {
                // A stream in the other direction is replaced by this one.
                self.streams[to] = None;
                self.streams[at] = Some(hello);
                self.replicas[at].on_peer_welcome(now, &welcome, inbox).unwrap();
            }
            Err(refusal) => self.replicas[at].on_peer_refusal(now, &refusal, inbox),
        }
        true
    }

    /// Delivers one batch; returns whether there was a batch to send.
    pub(super) fn carry(&mut self, from: usize, to: usize) -> bool {
        let mut bytes = Vec::new();
        self.replicas[from].pump(self.now, &mut bytes);
        let frame = split_frame(&bytes, &FrameRules::checked(MAX_PEER_BODY)).unwrap();
        let Some(frame) = frame else { return false };
        for message in BatchReader::new(frame.body).unwrap() {
            let message = message.unwrap();
            let taken = self.replicas[to].on_peer_message(self.now, &message, &mut self.inbox);
            if let Err(error) = taken {
                let is_view = matches!(error, StreamError::View { .. });
                assert!(is_view, "{from} to {to}: {error}");
                self.cut(from);
                return true;
            }
        }
        true
    }

    pub(super) fn ask(&mut self, at: usize, key: &[u8], operation: Operation<'_>) -> u64 {
        self.requests += 1;
        self.ask_as(at, self.requests, key, operation);
        self.requests
    }

    pub(super) fn ask_as(&mut self, at: usize, id: u64, key: &[u8], operation: Operation<'_>) {
        let request = Request {
            id: RequestId(id),
            view: ViewVersion(1),
            digest: Digest::of(key),
            key,
            operation,
        };
        let hash = self.replicas[at].hash_of(request.digest, request.key);
        self.replicas[at].on_request(
            self.now,
            (CONNECTION, ALICE),
            &request,
            hash,
            &mut self.inbox,
        );
        self.requests = self.requests.max(id);
    }

    pub(super) fn put(&mut self, at: usize, key: &[u8], value: &[u8]) -> u64 {
        self.seq += 1;
        let header = header(self.seq, Condition::Always);
        self.ask(at, key, Operation::Put(header, value))
    }

    pub(super) fn delete(&mut self, at: usize, key: &[u8]) -> u64 {
        self.seq += 1;
        let header = header(self.seq, Condition::Always);
        self.ask(at, key, Operation::Delete(header))
    }

    pub(super) fn get(&mut self, at: usize, key: &[u8]) -> Given {
        let id = self.ask(at, key, Operation::Get);
        self.given(id).expect("reads get their response at once")
    }

    pub(super) fn given(&self, id: u64) -> Option<Given> {
        self.inbox.0.get(&id).cloned()
    }

    pub(super) fn status(&self, id: u64) -> Option<Status> {
        self.given(id).map(|given| given.status)
    }

    /// Puts the group in the state after a crash of replica 0: replica 1 is the sole holder, active by proof of death.
    pub(super) fn lose_the_primary(&mut self) {
        self.silent.push(0);
        self.install(1, view_of(2, 1, Peer::None));
        self.replicas[1].on_exited(self.now, named(0));
    }
}
