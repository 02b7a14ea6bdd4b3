//! Turns: runs of the C program, each for one side of one cell of the grid.

use std::fmt;
use std::path::PathBuf;

use crate::common::Cluster;
use crate::common::ports::fetch_map;
use crate::common::workshop::{Workshop, root};
use crate::redis::Redis;
use crate::{Settings, plan};

/// The kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Get,
    Put,
}

/// The concurrency of the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Blocking calls. The cell's number is the number of threads.
    Threads,
    /// One thread with the cell's number of operations in flight. New ones are sent as responses arrive.
    Steady,
    /// One thread that sends the cell's number of operations together, and then receives all responses.
    Burst,
}

/// The set of keys that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// All keys: three connections of this store.
    All,
    /// The keys of one server: one connection, as with hiredis.
    OneServers,
}

/// A way to access a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// libkvclient.
    Kvc,
    /// Blocking sockets with the same bytes.
    Bare,
    /// hiredis with redis-server, which stores one copy.
    Hiredis,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Work::Get => "get",
            Work::Put => "put",
        })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Shape::Threads => "threads",
            Shape::Steady => "steady",
            Shape::Burst => "burst",
        })
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Keys::All => "all",
            Keys::OneServers => "one",
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Side::Kvc => "kvc",
            Side::Bare => "bare",
            Side::Hiredis => "hiredis",
        })
    }
}

/// One cell of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) work: Work,
    pub(crate) keys: Keys,
    pub(crate) shape: Shape,
    /// The number of threads, or of operations in flight.
    pub(crate) number: u32,
}

/// The result of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(crate) operations: f64,
    pub(crate) wall_ns: f64,
    pub(crate) user_ns: f64,
    pub(crate) system_ns: f64,
}

impl Turn {
    pub(crate) fn per_second(&self) -> f64 {
        self.operations / self.wall_ns * 1e9
    }

    /// Returns the CPU time of the client in nanoseconds for one operation.
    pub(crate) fn cpu_ns(&self) -> f64 {
        (self.user_ns + self.system_ns) / self.operations
    }
}

/// The runs of all sides of a cell. Runs with the same index are adjacent in time.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) cell: Cell,
    pub(crate) sides: Vec<(Side, Vec<Turn>)>,
}

impl Measured {
    pub(crate) fn of(&self, wanted: Side) -> Option<&[Turn]> {
        self.sides.iter().find(|(side, _)| *side == wanted).map(|(_, turns)| &turns[..])
    }
}

/// The compiled C program, its plan, and the addresses of the servers.
#[derive(Debug)]
pub(crate) struct Program {
    workshop: Workshop,
    path: PathBuf,
    plan: PathBuf,
    cluster: String,
    redis: Option<String>,
}

impl Program {
    /// Compiles the program, writes the plan, and stores every key once in each store.
    pub(crate) fn build(cluster: &Cluster, redis: Option<&Redis>) -> Program {
        let workshop = Workshop::open();
        let source = |name: &str| root().join("benches/c").join(name);
        let mut words = vec!["-std=c11".to_owned(), "-O2".to_owned(), "-pthread".to_owned()];
        let mut sources = vec!["side_kvc.c", "side_bare.c"];
        if redis.is_some() {
            sources.push("side_hiredis.c");
            let flags = ["-DWITH_HIREDIS", "-isystem", "/usr/include/hiredis"];
            words.extend(flags.map(str::to_owned));
        }
        words.extend(sources.into_iter().map(|name| source(name).display().to_string()));
        if redis.is_some() {
            words.push("-lhiredis".to_owned());
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let path = workshop.compile_shared(&source("client_cost.c"), &words);
        let plan = workshop.dir().join("plan");
        let coordinator = ([127, 0, 0, 1], cluster.ready.clients_port).into();
        std::fs::write(&plan, plan::plan(&fetch_map(coordinator))).expect("write the plan");
        let (cluster, redis) = (cluster.endpoint(), redis.map(Redis::endpoint));
        let program = Program { workshop, path, plan, cluster, redis };
        for side in [Side::Kvc, Side::Hiredis] {
            if side == Side::Kvc || program.redis.is_some() {
                program.run(side, "put all load 1 0 0");
            }
        }
        program
    }

    /// Returns the sides that can run a cell.
    fn sides(&self, cell: Cell) -> Vec<Side> {
        let mut sides = vec![Side::Kvc];
        if cell.shape == Shape::Threads {
            sides.push(Side::Bare);
        }
        if self.redis.is_some() {
            sides.push(Side::Hiredis);
        }
        sides
    }

    /// Performs all runs of a cell. The sides alternate.
    pub(crate) fn measure(&self, cell: Cell, settings: &Settings) -> Measured {
        let mut sides: Vec<_> =
            self.sides(cell).into_iter().map(|side| (side, Vec::new())).collect();
        for _ in 0..settings.pairs {
            for (side, turns) in &mut sides {
                turns.push(self.turn(*side, cell, settings));
            }
        }
        Measured { cell, sides }
    }

    fn turn(&self, side: Side, cell: Cell, settings: &Settings) -> Turn {
        let (Cell { work, keys, shape, number }, Settings { warm_up_ms, ms, .. }) =
            (cell, settings);
        // Each thread of the library has its own connections, which must be opened first.
        let connecting_ms = if shape == Shape::Threads { 8 * number } else { 0 };
        let warm_up_ms = warm_up_ms + connecting_ms;
        let said = self.run(side, &format!("{work} {keys} {shape} {number} {warm_up_ms} {ms}"));
        let numbers: Vec<f64> =
            said.split_whitespace().map(|text| text.parse().expect("a number")).collect();
        let &[operations, wall_ns, user_ns, system_ns] = &numbers[..] else {
            panic!("{side} {cell:?} printed {said}")
        };
        assert!(operations > 0.0, "{side} {cell:?} completed no operation");
        Turn { operations, wall_ns, user_ns, system_ns }
    }

    fn run(&self, side: Side, words: &str) -> String {
        let side_word = side.to_string();
        let plan = self.plan.to_str().expect("a path in UTF-8");
        let endpoint = match side {
            Side::Hiredis => self.redis.as_deref().expect("a redis-server"),
            Side::Kvc | Side::Bare => &self.cluster,
        };
        let all = [side_word.as_str()].into_iter().chain(words.split(' ')).chain([plan, endpoint]);
        self.workshop.run(&self.path, &all.collect::<Vec<_>>()).with_code(0).stdout
    }
}
