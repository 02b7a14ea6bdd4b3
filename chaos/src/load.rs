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
use crate::network::Network;

/// The timeout for the client processes to complete their last operations and exit. It allows for the deadline of an
/// operation and the delays of a slow machine.
const END_LIMIT: Duration = Duration::from_secs(60);

/// The amount of load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strength {
    /// The number of processes.
    pub(crate) workers: u32,
    /// The number of closed loops (threads) of each process.
    pub(crate) threads: u32,
    /// The maximum number of operations per second of each loop.
    pub(crate) rate: u32,
}

/// The running client processes.
#[derive(Debug)]
pub(crate) struct Load {
    workers: Vec<(Child, PathBuf)>,
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
        for index in 0..strength.workers {
            let history = dir.join(format!("history-{index}.jsonl"));
            let mut command = match network {
                Some(network) => network.enter_clients(&programs.chaos),
                None => Command::new(&programs.chaos),
            };
            let child = command
                .args(["worker", "--endpoint", &cluster.endpoint(), "--index", &index.to_string()])
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
            load.workers.push((child, history));
        }
        Ok(load)
    }

    /// Stops the processes by closing their standard input, and waits until they have completed their operations.
    /// Writes the merged history to `history.jsonl` and returns it, in order of time.
    pub(crate) fn stop(mut self, dir: &Path) -> anyhow::Result<Vec<Record>> {
        for (worker, _) in &mut self.workers {
            drop(worker.stdin.take());
        }
        let mut records = Vec::new();
        for (worker, history) in &mut self.workers {
            let ended = wait_for("a client process to end", END_LIMIT, || {
                worker.try_wait().ok().flatten()
            })?;
            if !ended.success() {
                bail!("a client process ended with {ended}; its output is above");
            }
            let text = fs::read_to_string(&*history)
                .with_context(|| format!("read {}", history.display()))?;
            records.extend(Record::parse_all(&text)?);
            let _ = fs::remove_file(&*history);
        }
        // The sort is stable, so the lines of one process stay in order.
        records.sort_by_key(|record| record.time_ns);
        write_history(&dir.join("history.jsonl"), &records)?;
        Ok(records)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for (worker, _) in &mut self.workers {
            let _ = worker.kill();
            let _ = worker.wait();
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
