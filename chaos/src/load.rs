//! The client processes of a round: start and stop of the processes, and the merge of their histories.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use kv_history::Record;
use kv_testkit::wait_for;

use crate::cluster::{Cluster, Programs};
use crate::flight::Flight;
use crate::histories::Histories;
use crate::network::Network;

/// The timeout for the client processes to complete their last operations and exit. It allows for the deadline of an
/// operation and the delays of a slow machine.
const END_LIMIT: Duration = Duration::from_secs(60);

/// The amount of load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strength {
    /// The number of processes with operations on registers.
    pub(crate) workers: u32,
    /// The number of processes with operations on objects.
    pub(crate) of_objects: u32,
    /// The number of closed loops (threads) of each process.
    pub(crate) threads: u32,
    /// The maximum number of operations per second of each loop.
    pub(crate) rate: u32,
}

/// A running client process, and the file of its history.
#[derive(Debug)]
struct Worker {
    process: Child,
    history: PathBuf,
    uses_objects: bool,
}

/// The running client processes.
#[derive(Debug)]
pub(crate) struct Load {
    workers: Vec<Worker>,
    /// The groups with a write in flight.
    pub(crate) flight: Flight,
}

impl Load {
    /// Starts the client processes. Their files are in `dir`, which may differ from the cluster's directory. With a
    /// network, the processes run in its namespace for clients.
    pub(crate) fn start(
        programs: &Programs,
        cluster: &Cluster,
        dir: &Path,
        network: Option<&Network>,
        strength: Strength,
        seed: u64,
    ) -> anyhow::Result<Load> {
        let path = dir.join("flight");
        let mut load = Load { workers: Vec::new(), flight: Flight::create(&path)? };
        for index in 0..strength.workers + strength.of_objects {
            let uses_objects = index >= strength.workers;
            let history = dir.join(format!("history-{index}.jsonl"));
            let mut command = match network {
                Some(network) => network.enter_clients(&programs.chaos),
                None => Command::new(&programs.chaos),
            };
            if uses_objects {
                command.arg("worker").arg("--objects");
            } else {
                command.arg("worker");
            }
            if cluster.setting.hash_tags {
                command.arg("--hash-tags");
            }
            let process = command
                .args(["--endpoint", &cluster.endpoint(), "--index", &index.to_string()])
                .args(["--threads", &strength.threads.to_string()])
                .args(["--rate", &strength.rate.to_string()])
                .arg("--history")
                .arg(&history)
                .arg("--flight")
                .arg(&path)
                .args(["--servers", &cluster.setting.servers.to_string()])
                .args(["--shards", &cluster.setting.shards.to_string()])
                .args(["--seed", &seed.to_string()])
                .stdin(Stdio::piped())
                .spawn()
                .context("start a client process")?;
            load.workers.push(Worker { process, history, uses_objects });
        }
        Ok(load)
    }

    /// Stops the processes by closing their standard input, and waits until they have completed their operations.
    /// Writes the merged history of the registers to `history.jsonl`. Returns the histories, in order of time.
    pub(crate) fn stop(mut self, dir: &Path) -> anyhow::Result<Histories> {
        for worker in &mut self.workers {
            drop(worker.process.stdin.take());
        }
        let mut histories = Histories::default();
        for Worker { process, history, uses_objects } in &mut self.workers {
            let ended = wait_for("a client process to end", END_LIMIT, || {
                process.try_wait().ok().flatten()
            })?;
            if !ended.success() {
                bail!("a client process ended with {ended}; its output is above");
            }
            if *uses_objects {
                histories.read_objects(history)?;
                continue;
            }
            histories.read_registers(history)?;
            let _ = fs::remove_file(&*history);
        }
        // The sort is stable, so the lines of one process stay in order.
        histories.registers.sort_by_key(|record| record.time_ns);
        write_history(&dir.join("history.jsonl"), &histories.registers)?;
        Ok(histories)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            let _ = worker.process.kill();
            let _ = worker.process.wait();
        }
    }
}

/// Writes a history, one line for each record.
pub(crate) fn write_history(path: &Path, records: &[Record]) -> anyhow::Result<()> {
    let mut text = String::new();
    for record in records {
        text += &record.to_line();
        text.push('\n');
    }
    fs::write(path, text).with_context(|| format!("write {}; check the free space", path.display()))
}
