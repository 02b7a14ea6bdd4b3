//! Follows docs/operations.md literally. Its command blocks run unaltered, on hosts that are namespaces with the
//! addresses of the page. Meanwhile a load checks every response.
//!
//! ```text
//!   docs/operations.md -> commands of a section -> bash on 10.0.0.10 (or .11), in /opt/ftkv
//!   load: two threads with a client each; a key must have the value acknowledged last
//! ```
//!
//! Faults of a whole machine are simulated. A reboot kills all processes of a host and takes its
//! link down; a suspension stops all of them with SIGSTOP. Requires root; without it, each test
//! reports that it was skipped.

use std::collections::HashMap;
use std::fs::{self, File};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::hosts::{self, COORDINATOR, Host, Hosts, SERVERS, SPARE};
use crate::common::process::{self, Signal};
use crate::common::programs::{self, Ended};
use crate::common::skipped;
use crate::common::{TIMEOUT, wait_for, wait_until};
use kv_client::{Client, Error, OpOptions, Options, ReplicaRole};
use kv_protocol::health::Health;
use kv_protocol::status::{AlarmKind, ClusterStatus};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const PAGE: &str = include_str!("../../docs/operations.md");
/// The sections with commands. A test below follows each of them.
const FOLLOWED: [&str; 13] = [
    "Start",
    "Check the health",
    "Restart a server",
    "Restart all servers",
    "Reboot a host",
    "Replace a dead host",
    "Move the coordinator",
    "Stop and start again",
    "Lost state",
    "Full disk",
    "Memory limit",
    "Suspend",
    "Upgrade",
];

/// The coordinator's port for clients.
const PORT: u16 = 7000;
const THREADS: usize = 2;
const KEYS: usize = 40;
/// The minimum number of operations of a load thread.
const FEWEST: usize = 100;
/// The interval between two operations of a load thread. It leaves time for the other processes of the machine.
const PACE: Duration = Duration::from_millis(2);
/// The longest wait of an operation while one host is lost, according to the page.
const LONGEST_WAIT: Duration = Duration::from_millis(2_400);
/// The time that is added to the promised wait on a machine with two busy processors.
const BUSY: Duration = Duration::from_millis(1_000);

/// Returns the sections of the page with their names.
fn sections() -> Vec<(&'static str, &'static str)> {
    PAGE.split("\n## ").skip(1).map(|text| text.split_once('\n').expect("a heading")).collect()
}

/// Returns the command blocks in a text of the page.
fn blocks_in(text: &'static str) -> Vec<&'static str> {
    let blocks = text.split("```sh\n").skip(1);
    blocks.map(|block| block.split_once("```").expect("the end of a block").0).collect()
}

/// Returns the commands of a section, which must have `COUNT` blocks.
#[track_caller]
fn commands<const COUNT: usize>(name: &str) -> [&'static str; COUNT] {
    assert!(FOLLOWED.contains(&name), "{name}");
    let sections = sections();
    let (_, text) = sections.iter().find(|(title, _)| *title == name).expect("a section");
    let blocks = blocks_in(text);
    blocks
        .try_into()
        .unwrap_or_else(|blocks| panic!("the number of blocks in {name} has changed: {blocks:#?}"))
}

#[test]
fn every_section_with_commands_is_followed() {
    let sections = sections();
    let with_commands = sections.iter().filter(|(_, text)| !blocks_in(text).is_empty());
    let names: Vec<&str> = with_commands.map(|(name, _)| *name).collect();
    assert_eq!(names, FOLLOWED);
}

/// The cluster that the page describes.
struct Cast {
    hosts: Hosts,
    /// The address of the coordinator's host.
    coordinator: &'static str,
}

impl Cast {
    /// Makes the hosts and follows *Start*. If that is not possible, prints a message and returns `None`.
    #[track_caller]
    fn start() -> Option<Cast> {
        if let Some(reason) = hosts::missing() {
            skipped(&format!("cannot create network namespaces (requires root): {reason}"));
            return None;
        }
        let cast = Cast { hosts: Hosts::make(), coordinator: COORDINATOR };
        let [start] = commands("Start");
        cast.run(start).with_code(0);
        let [status, _] = commands("Check the health");
        cast.run(status).with_code(0);
        Some(cast)
    }

    /// Returns the coordinator's host.
    fn host(&self) -> &Host {
        self.hosts.at(self.coordinator)
    }

    #[track_caller]
    fn run(&self, commands: &str) -> Ended {
        let began = Instant::now();
        let ended = self.host().run(commands);
        let first = commands.lines().next().unwrap_or_default();
        eprintln!("{:>6.2} s  {first}", began.elapsed().as_secs_f64());
        ended
    }

    /// Runs the command loop of the section *Check the health*.
    #[track_caller]
    fn await_whole(&self) {
        let [_, until_whole] = commands("Check the health");
        self.run(until_whole).with_code(0);
    }

    /// Returns the output of `coord status` and its exit status.
    #[track_caller]
    fn status(&self) -> (ClusterStatus, i32) {
        let ended = self.host().run(&format!("bin/coord status -p {PORT} --json"));
        let status = serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|error| panic!("status: {error}\n{ended:#?}"));
        (status, ended.code.expect("an exit status"))
    }

    /// Returns the output of the page's status command. Fails unless the command exits with this code and its first
    /// line contains `words`.
    #[track_caller]
    fn assert_status(&self, code: i32, words: &str) -> String {
        let [status, _] = commands("Check the health");
        let ended = self.run(status).with_code(code);
        assert!(ended.lines()[0].contains(words), "no {words:?} in {}", ended.stdout);
        ended.stdout
    }

    #[track_caller]
    fn await_alarm(&self, kind: AlarmKind) -> String {
        let of_kind = |status: ClusterStatus| {
            status.alarms.into_iter().find(|alarm| alarm.kind == kind).map(|alarm| alarm.text)
        };
        let text = wait_for("an alarm", TIMEOUT, || of_kind(self.status().0));
        assert_eq!(self.status().1, 3, "{text}");
        text
    }

    #[track_caller]
    fn pids(&self) -> Vec<u32> {
        self.status().0.servers.iter().map(|server| server.pid.expect("started")).collect()
    }

    /// Kills the coordinator.
    #[track_caller]
    fn kill_coordinator(&self) {
        let pid = fs::read_to_string(self.host().path("opt/ftkv/run/coord.pid")).expect("its pid");
        let pid = pid.trim().parse().expect("a pid");
        process::signal(pid, Signal::KILL);
        wait_until("its end", TIMEOUT, || !process::is_alive(pid));
    }
}

type Model = HashMap<String, Option<String>>;

/// The results of one load thread.
#[derive(Debug)]
struct Seen {
    /// The last acknowledged value of each key, or `None` if the key was deleted.
    model: Model,
    operations: u64,
    longest: Duration,
    /// The number of writes that were rejected for lack of memory, and not done.
    refused: u64,
    wrong: Vec<String>,
}

/// A load that checks every response.
struct Load {
    threads: Vec<(Sender<()>, JoinHandle<Seen>)>,
}

impl Load {
    /// Starts a load that continues from the state of an earlier one.
    #[track_caller]
    fn start(cast: &Cast, models: Vec<Model>) -> Load {
        let address = cast.coordinator;
        let threads = models.into_iter().enumerate().map(|(thread, model)| {
            let (stop, stopped) = mpsc::channel();
            let network = cast.host().network();
            let work = move || {
                let mut client = client(&network, address);
                let (mut seen, mut round) = (Seen::new(model), 0);
                while stopped.recv_timeout(PACE) == Err(mpsc::RecvTimeoutError::Timeout)
                    || (round < FEWEST && seen.wrong.is_empty())
                {
                    seen.step(&mut client, thread, round);
                    round += 1;
                }
                seen.check_all(&mut client);
                seen
            };
            (stop, std::thread::spawn(work))
        });
        Load { threads: threads.collect() }
    }

    fn begin(cast: &Cast) -> Load {
        Load::start(cast, vec![Model::new(); THREADS])
    }

    /// Stops the load, which then reads every key from both holders. Fails if a response was wrong or an operation took
    /// longer than `longest`.
    #[track_caller]
    fn end(self, longest: Duration) -> Vec<Model> {
        let (models, refused) = self.end_with_refused(longest);
        assert_eq!(refused, 0);
        models
    }

    /// Does the same as [`Load::end`] if the memory limit was reached for a while. Also returns the number of writes
    /// that were rejected because of that.
    #[track_caller]
    fn end_with_refused(self, longest: Duration) -> (Vec<Model>, u64) {
        let (stops, threads): (Vec<_>, Vec<_>) = self.threads.into_iter().unzip();
        drop(stops);
        let seen = threads.into_iter().map(|thread| thread.join().expect("a load thread"));
        let check = |seen: Seen| {
            eprintln!("load: {} operations, the longest {:?}", seen.operations, seen.longest);
            assert!(seen.wrong.is_empty(), "{:#?}", seen.wrong);
            assert!(seen.longest <= longest, "{:?}", seen.longest);
            (seen.model, seen.refused)
        };
        let (models, refused): (Vec<Model>, Vec<u64>) = seen.map(check).unzip();
        (models, refused.iter().sum())
    }
}

/// Opens a client in another network namespace, which this thread enters.
fn client(network: &File, address: &str) -> Client {
    move_into_link_name_space(std::os::fd::AsFd::as_fd(network), Some(LinkNameSpaceType::Network))
        .expect("enter a namespace");
    // The endpoints are the coordinator, and a server for times without a coordinator, as the page advises.
    let endpoints = format!("{address}:{PORT},{}:{PORT}", SERVERS[0]);
    Client::open(&endpoints, Options::default()).expect("open a client")
}

impl Seen {
    fn new(model: Model) -> Seen {
        Seen { model, operations: 0, longest: Duration::ZERO, refused: 0, wrong: Vec::new() }
    }

    /// Writes or reads one key.
    fn step(&mut self, client: &mut Client, thread: usize, round: usize) {
        let key = format!("load {thread} {}", round * 7 % KEYS);
        let now = OpOptions::default();
        let began = Instant::now();
        let was = self.model.get(&key).cloned().flatten();
        let done = match round % 10 {
            0..=4 => {
                let value = format!("{key} in round {round} {began:?}");
                client.put(key.as_bytes(), value.as_bytes(), &now).map(|_| Some(value))
            }
            5 => match client.delete(key.as_bytes(), &now) {
                Ok(_) if was.is_some() => Ok(None),
                Err(Error::NotFound { .. }) if was.is_none() => Ok(None),
                Ok(_) => return self.wrong.push(format!("{key} was deleted without existing")),
                Err(error) => Err(error),
            },
            _ => match client.get(key.as_bytes(), &now) {
                Ok(value) if Some(&value.bytes[..]) == was.as_deref().map(str::as_bytes) => Ok(was),
                Err(Error::NotFound { .. }) if was.is_none() => Ok(None),
                Ok(value) => {
                    let value = String::from_utf8_lossy(&value.bytes).into_owned();
                    return self.wrong.push(format!("{key} is {value:?}, not {was:?}"));
                }
                Err(error) => Err(error),
            },
        };
        self.operations += 1;
        self.longest = self.longest.max(began.elapsed());
        match done {
            Ok(value) => drop(self.model.insert(key, value)),
            Err(Error::OutOfSpace { .. }) => self.refused += 1,
            Err(error) => self.wrong.push(format!("{key}: {error}")),
        }
    }

    /// Checks every key's value at both holders.
    fn check_all(&mut self, client: &mut Client) {
        for (key, expected) in &self.model {
            if !self.wrong.is_empty() {
                return;
            }
            for replica in [ReplicaRole::Primary, ReplicaRole::Secondary] {
                let options = OpOptions { deadline: Some(TIMEOUT), ..OpOptions::default() };
                match client.verify(key.as_bytes(), replica, &options) {
                    Ok(found) => {
                        let found = found.map(|value| value.bytes);
                        if found.as_deref() != expected.as_deref().map(str::as_bytes) {
                            self.wrong.push(format!("{key} at its {replica:?}: {found:?}"));
                        }
                    }
                    Err(error) => self.wrong.push(format!("{key} at its {replica:?}: {error}")),
                }
            }
        }
    }
}

#[test]
fn servers_are_restarted_upgraded_suspended_rebooted_and_replaced_under_load() {
    let Some(mut cast) = Cast::start() else { return };
    let load = Load::begin(&cast);
    let before = cast.pids();

    let [replace, leave] = commands("Restart a server");
    cast.run(replace).with_code(0);
    cast.assert_status(0, "serving");
    let anew = cast.pids();
    assert!(anew[1] != before[1] && [anew[0], anew[2]] == [before[0], before[2]], "{anew:?}");
    cast.run(leave).with_code(0);
    cast.await_whole();
    assert_ne!(cast.pids()[1], anew[1]);

    let before = cast.pids();
    let [all] = commands("Restart all servers");
    cast.run(all).with_code(0);
    cast.assert_status(0, "serving");
    assert!(before.iter().all(|pid| !cast.pids().contains(pid)), "a server was not restarted");

    let [copy, one, others, coordinator] = commands("Upgrade");
    cast.run("cp bin/server bin/server.new && mv bin/server.new bin/server").with_code(0);
    let before = cast.pids();
    cast.run(copy).with_code(0);
    assert_eq!(cast.pids(), before, "the copy has restarted a server");
    for commands in [one, others, coordinator] {
        cast.run(commands).with_code(0);
    }
    let runs_deleted = |pid: &u32| {
        let file = fs::read_link(format!("/proc/{pid}/exe")).expect("its executable");
        file.to_string_lossy().contains("(deleted)")
    };
    assert!(!cast.pids().iter().any(runs_deleted), "a server runs the old file");
    let models = load.end(BUSY);

    // Suspends one host, then all of them.
    let load = Load::start(&cast, models);
    let [afterwards] = commands("Suspend");
    cast.hosts.at(SERVERS[1]).signal(Signal::STOP);
    wait_until("the others to continue without it", TIMEOUT, || cast.status().1 == 3);
    cast.hosts.at(SERVERS[1]).signal(Signal::CONT);
    cast.run(afterwards).with_code(0);
    let models = load.end(LONGEST_WAIT + BUSY);

    let load = Load::start(&cast, models);
    let before = cast.pids();
    let sleepers: Vec<u32> =
        [COORDINATOR].iter().chain(&SERVERS).flat_map(|a| cast.hosts.at(a).processes()).collect();
    sleepers.iter().for_each(|pid| process::signal(*pid, Signal::STOP));
    // The length of the suspension.
    std::thread::sleep(LONGEST_WAIT);
    sleepers.iter().for_each(|pid| process::signal(*pid, Signal::CONT));
    cast.run(afterwards).with_code(0);
    assert_eq!(cast.pids(), before, "a server was replaced");
    let models = load.end(2 * LONGEST_WAIT);

    let load = Load::start(&cast, models);
    reboot(&mut cast);
    replace_dead_host(&mut cast);
    load.end(LONGEST_WAIT + BUSY);
}

/// Follows *Reboot a host*.
#[track_caller]
fn reboot(cast: &mut Cast) {
    let [command] = commands("Reboot a host");
    assert_eq!(command, "ssh kv@10.0.0.2 sudo systemctl reboot\n");
    let before = cast.pids();
    // The command has this effect: every process receives SIGTERM and is killed later.
    process::signal(before[1], Signal::TERM);
    cast.hosts.at_mut(SERVERS[1]).power_off();
    let text = cast.await_alarm(AlarmKind::HostUnreachable);
    assert!(text.contains("server 1"), "{text}");
    cast.assert_status(3, "1 alarm");
    cast.hosts.at_mut(SERVERS[1]).power_on();
    cast.await_whole();
    assert_ne!(cast.pids()[1], before[1]);
}

/// Follows *Replace a dead host*.
#[track_caller]
fn replace_dead_host(cast: &mut Cast) {
    cast.hosts.at_mut(SERVERS[1]).power_off();
    let text = cast.await_alarm(AlarmKind::HostUnreachable);
    assert!(text.contains("coord replace 1 HOST"), "{text}");
    let [commands] = commands("Replace a dead host");
    cast.run(commands).with_code(0);
    let (status, _) = cast.status();
    assert_eq!(status.servers[1].host, "kv@10.0.0.4");
    let file = fs::read_to_string(cast.host().path("opt/ftkv/cluster.txt")).expect("the file");
    assert!(file.contains("kv@10.0.0.4 7000 7001 7002") && !file.contains("10.0.0.2"), "{file}");
    // The old host returns and has no role.
    cast.hosts.at_mut(SERVERS[1]).power_on();
    cast.assert_status(0, "serving");
}

#[test]
fn the_coordinator_moves_and_without_its_state_the_dumps_bring_everything_back() {
    let Some(mut cast) = Cast::start() else { return };
    let load = Load::begin(&cast);
    let before = cast.pids();
    let [from, to] = commands("Move the coordinator");
    cast.run(from).with_code(0);
    cast.coordinator = SPARE;
    cast.run(to).with_code(0);
    assert_eq!(cast.pids(), before, "a server was replaced");
    // The new coordinator watches the servers as the old one did.
    process::signal(before[2], Signal::KILL);
    cast.await_whole();
    let models = load.end(BUSY);

    cast.kill_coordinator();
    for name in ["coordinator.state", "coordinator.state.spare"] {
        fs::remove_file(cast.host().path("opt/ftkv/run").join(name)).expect("lose the state");
    }
    let load = Load::start(&cast, models);
    let [stop, start] = commands("Lost state");
    let models = load.end(BUSY);
    cast.run(stop).with_code(0);
    cast.run(start).with_code(0);
    Load::start(&cast, models).end(BUSY);
}

#[test]
fn a_limit_is_raised_and_stops_with_and_without_disk_space_keep_all_data() {
    let Some(cast) = Cast::start() else { return };
    let load = Load::begin(&cast);
    memory_limit(&cast);
    let (models, _) = load.end_with_refused(BUSY);

    let [stop, start] = commands("Stop and start again");
    cast.run(stop).with_code(0);
    for (n, role) in (0..3).flat_map(|n| ["primary", "secondary"].map(|role| (n, role))) {
        let dump = cast.host().path("opt/ftkv/dumps").join(format!("server_{n}.{role}"));
        assert!(dump.exists(), "{}", dump.display());
    }
    // From now on the directory of server 2 is on a small disk.
    let disk = cast.hosts.at(SERVERS[2]);
    let room = fs::metadata(programs::SERVER).expect("the server's size").len() + (64 << 20);
    disk.run(&format!("mount -t tmpfs -o size={room} kv-test /opt/kv/ftkv")).with_code(0);
    cast.run(start).with_code(0);
    let models = Load::start(&cast, models).end(BUSY);

    let [stop, look, elsewhere] = commands("Full disk");
    disk.run("cat /dev/zero >/opt/kv/ftkv/filled || :").with_code(0);
    let mut stopping = cast.host().start(stop);
    let text = cast.await_alarm(AlarmKind::OrderFailed);
    for words in ["server 2 could not carry out DUMP", "No space left", "--dump-dir"] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    let shown = cast.run(look).with_code(3).stdout;
    assert!(shown.lines().next().is_some_and(|line| line.contains("stopping")), "{shown}");
    assert!(shown.contains("ALARM"), "{shown}");
    cast.run(elsewhere).with_code(0);
    let ended = programs::wait(&mut stopping, TIMEOUT).expect("the end of the first stop");
    assert_eq!(ended, Some(0));
    let [stop, start] = commands("Stop and start again");
    let collect = stop.lines().last().expect("two commands");
    assert!(collect.ends_with("collect dumps"), "{collect}");
    cast.run(collect).with_code(0);
    disk.run("rm /opt/kv/ftkv/filled").with_code(0);
    cast.run(start).with_code(0);
    Load::start(&cast, models).end(BUSY);
}

/// Follows *Memory limit*: fills the memory with additional values until the limit is reached, then raises the limit.
#[track_caller]
fn memory_limit(cast: &Cast) {
    let [raise, evict] = commands("Memory limit");
    cast.run("bin/coord set --memory-limit 16M --dir run").with_code(0);
    let (network, address) = (cast.host().network(), cast.coordinator);
    let fill = |limit: Duration| {
        let mut client = client(&network, address);
        let value = vec![b'x'; 1 << 20];
        let options = OpOptions { deadline: Some(limit), ..OpOptions::default() };
        let put = |n: usize| {
            let key = format!("large {n}");
            client.put(key.as_bytes(), &value, &options).err()
        };
        (0..40).filter_map(put).collect::<Vec<Error>>()
    };
    // The client runs in a new thread, because the thread stays in the network namespace that the client enters.
    let fill =
        |limit| std::thread::scope(|scope| scope.spawn(|| fill(limit)).join().expect("a list"));
    assert!(!fill(Duration::from_millis(500)).is_empty());
    let text = cast.await_alarm(AlarmKind::OutOfSpace);
    assert!(text.contains("coord set --memory-limit"), "{text}");
    cast.run(raise).with_code(0);
    cast.run(evict).with_code(0);
    wait_until("the new limit everywhere", TIMEOUT, || {
        cast.status().0.servers.iter().all(|server| server.memory_limit == 2 << 30)
    });
    let refused = fill(TIMEOUT);
    assert!(refused.is_empty(), "{refused:#?}");
    cast.await_whole();
    assert_eq!(cast.status().0.health, Health::Whole);
}
