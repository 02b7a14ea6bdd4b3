//! A client that scans the whole cluster again and again, in some runs. The invariant [`invariants::scans`] evaluates
//! the scans at the end of the run.
//!
//! ```text
//!   every few ms:  page of (place, cursor) from the primary of the newest view -> cursor, or next place -> ... -> end
//!                  no response, a rejection, a closed connection -> the same page again
//! ```
//!
//! [`invariants::scans`]: crate::invariants::scans

use std::collections::BTreeSet;

use kv_protocol::client_message::{Hello, Operation, Request, Response, Scan, ScanPage, Status};
use kv_protocol::ids::{ClientId, RequestId, ShardId, ViewVersion};
use kv_protocol::scan_token::{ScanPosition, ScanTokens};
use kv_shard::Port;

use super::*;
use crate::server::Reader;

/// The time of the first page, in nanoseconds.
const BEGINS: u64 = 1_000_000_000;
/// The time between two pages, in nanoseconds.
const PAGE_INTERVAL: u64 = 10_000_000;
/// The time between two scans, in nanoseconds.
const SCAN_INTERVAL: u64 = 500_000_000;
/// The time after which a page without a response is requested again, in nanoseconds.
const PATIENCE: u64 = 300_000_000;
/// The number of bytes in the set of the pattern. A key is compared with all of them, so that a page has about 50
/// entries. The tables of a run are so small that otherwise one page would have all entries of a shard.
const SET_BYTES: usize = 2_000;
/// The name of the client.
const SCANNER: ClientId = ClientId(1 << 121);

/// The scans of a run.
#[derive(Debug, Default)]
pub struct Scans {
    running: Option<Running>,
    connection: Option<(ConnectionNumber, usize, ShardId)>,
    /// The request without a response, and the time at which it was sent.
    asked: Option<(RequestId, u64)>,
    requests: u64,
    /// The scans that have ended.
    pub ended: Vec<EndedScan>,
}

#[derive(Debug)]
struct Running {
    cluster: ClusterId,
    start: u64,
    position: ScanPosition,
    found: BTreeSet<Vec<u8>>,
}

/// A scan that has ended.
#[derive(Debug)]
pub struct EndedScan {
    /// The time of the first request.
    pub start: u64,
    /// The time of the last response.
    pub end: u64,
    /// The keys.
    pub found: BTreeSet<Vec<u8>>,
}

impl World {
    /// Plans the scans of a run.
    pub(super) fn plan_scans(&mut self) {
        if self.config.scans {
            self.after(BEGINS, Happening::Scan);
        }
    }

    /// Requests the next page, unless a response may still arrive.
    pub(super) fn on_scan(&mut self) {
        if self.is_healing {
            self.scans.running = None;
            return self.close_scanner();
        }
        self.after(PAGE_INTERVAL, Happening::Scan);
        let (now, cluster) = (self.now, self.cluster());
        if self.scans.asked.is_some_and(|(_, at)| now < at + PATIENCE) {
            return;
        }
        if self.scans.asked.take().is_some() {
            self.close_scanner();
        }
        let last = self.scans.ended.last().map_or(0, |ended| ended.end);
        match &self.scans.running {
            // A restored cluster has other tokens.
            Some(running) if running.cluster == cluster => {}
            None if now < last + SCAN_INTERVAL => return,
            _ => {
                let (position, found) = (ScanPosition::default(), BTreeSet::new());
                self.scans.running = Some(Running { cluster, start: now, position, found });
            }
        }
        self.ask_for_page();
    }

    fn scan_tokens(&self) -> ScanTokens {
        let placement = self.config.placement();
        ScanTokens::new(self.cluster(), placement)
    }

    fn ask_for_page(&mut self) {
        let Some(Running { position, .. }) = self.scans.running else { return };
        let tokens = self.scan_tokens();
        let (group, shard) = tokens.place(position.place);
        let Some(process) = self.primary_by_newest_view(group, shard) else { return };
        let number = match self.scans.connection {
            Some((number, of, to)) if (of, to) == (process, shard) => number,
            _ => {
                self.close_scanner();
                self.connect_scanner(process, shard)
            }
        };
        self.scans.requests += 1;
        let (id, view) = (RequestId(self.scans.requests), ViewVersion(0));
        let digest = tokens.placement().digest_at((group, shard));
        let scan = Scan { cursor: position.cursor.into(), values: false, deadlines: false };
        // Every key matches, because no key begins with a zero byte.
        let pattern = [&b"[^"[..], &[0; SET_BYTES], b"]*"].concat();
        let mut bytes = Vec::new();
        Request { id, view, digest, key: &pattern, operation: Operation::Scan(scan) }
            .write(&mut bytes);
        self.scans.asked = Some((id, self.now));
        self.send(number, 0, bytes);
    }

    /// Returns the process that is the primary in the newest view that any process has installed.
    fn primary_by_newest_view(&self, group: GroupId, shard: ShardId) -> Option<usize> {
        let cluster = self.cluster();
        let alive = self.processes.iter().filter(|p| p.alive && p.cluster == cluster);
        let replicas = alive.flat_map(|process| process.shards[usize::from(shard.0)].replicas());
        let views = replicas
            .filter(|replica| replica.group() == group)
            .filter_map(|replica| replica.inspect().view);
        let newest = views.max_by_key(|view| view.version)?;
        self.process_of(newest.primary?)
    }

    fn connect_scanner(&mut self, process: usize, shard: ShardId) -> ConnectionNumber {
        let ends = [Actor::Scanner, self.any_executor(process)];
        let hosts = ends.map(|end| self.host_of(end));
        let number = self.network.connect(&mut self.random, ends, hosts);
        if let Actor::Shard { process, shard } = ends[1] {
            self.give(process, shard, Input::Accepted(number, Port::Clients, Reader::Fast));
        }
        let mut bytes = Vec::new();
        Hello::new(self.cluster(), SCANNER, shard).write(&mut bytes);
        self.send(number, 0, bytes);
        self.scans.connection = Some((number, process, shard));
        number
    }

    fn close_scanner(&mut self) {
        if let Some((number, ..)) = self.scans.connection.take() {
            self.close(number, 0);
        }
    }

    /// Handles the end of the scanner's connection: the page is requested again.
    pub(super) fn on_scanner_end(&mut self, number: ConnectionNumber) {
        if self.scans.connection.is_some_and(|(current, ..)| current == number) {
            self.scans.connection = None;
            self.scans.asked = None;
        }
    }

    pub(super) fn on_scanner_bytes(&mut self, number: ConnectionNumber, bytes: &[u8]) {
        let rules = FrameRules::unchecked(MAX_RESPONSE_BODY);
        let input = self.inputs.entry((number, 0)).or_insert_with(|| FrameBuffer::new(rules));
        input.extend(bytes);
        let mut pages = Vec::new();
        while let Some(frame) = input.next_frame().expect("it is well formed") {
            if frame.opcode != client_opcode::RESPONSE {
                continue;
            }
            let response = Response::read(frame.body).expect("it is well formed");
            let asked = self.scans.asked.take_if(|(id, _)| *id == response.id);
            if asked.is_some() && response.status == Status::Ok {
                pages.push(response.value.to_vec());
            }
        }
        for page in pages {
            self.on_page(&ScanPage::read(&page).expect("it is well formed"));
        }
    }

    fn on_page(&mut self, page: &ScanPage<'_>) {
        let (tokens, end) = (self.scan_tokens(), self.now);
        let Some(running) = &mut self.scans.running else { return };
        running.found.extend(page.items().map(|item| item.key.to_vec()));
        self.counts.scan_pages += 1;
        let cursor = u32::try_from(page.next).expect("a cursor has 32 bits");
        running.position = match cursor {
            0 => ScanPosition { place: running.position.place + 1, cursor: 0 },
            cursor => ScanPosition { cursor, ..running.position },
        };
        if running.position.place == tokens.places()
            && let Some(Running { start, found, .. }) = self.scans.running.take()
        {
            self.counts.scans += 1;
            self.scans.ended.push(EndedScan { start, end, found });
        }
    }
}
