//! A run: connect, fill, warm up, measure.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use kv_client::{Client, Endpoints, OpOptions, Options};
use kv_protocol::ids::{ClientId, SequenceNumber};
use kv_protocol::map::Map;

use crate::args::Plan;
use crate::arrival_rate::ArrivalRate;
use crate::cluster_map;
use crate::control::{Control, Until};
use crate::cpu;
use crate::driver::{Driver, Lane, Shared, Work};
use crate::keyspace::Keyspace;
use crate::library;
use crate::live::{self, Live};
use crate::model::Model;
use crate::report::Report;
use crate::sockets::{self, Connection};
use crate::stream::Address;
use crate::tally::Tally;
use crate::target::Scheme;
use crate::value::{Values, mix};
use crate::wire::Wire;
use crate::wire::echo::Echo;
use crate::wire::kv::Kv;
use crate::wire::memcached::Memcached;
use crate::wire::resp::Resp;

/// Executes the plan.
///
/// # Errors
/// The target cannot be reached, ends a connection, sends a malformed response, or does not respond. Or the options do
/// not fit the cluster.
pub(crate) fn run(plan: &Plan) -> anyhow::Result<Report> {
    let address = plan.target.resolve()?;
    let needs_map =
        plan.group.is_some() || matches!(plan.target.scheme, Scheme::KvWire | Scheme::KvRedis);
    let map = if needs_map { Some(cluster_map::fetch(&address)?) } else { None };
    let run = run_number();
    let shared = shared(plan, map.as_ref(), run)?;
    let reads = *plan.value_bytes.end();
    match plan.target.scheme {
        Scheme::Kv => {
            let endpoints = Endpoints::resolve(&plan.target.endpoint, &kv_client::Log::default())?;
            let options = Options { window: plan.depth as usize, ..Options::default() };
            let mut clients = Vec::new();
            for _ in 0..plan.connections {
                let client = Client::with_endpoints(&endpoints, options.clone())?;
                clients.push((client, Lane::new(0, plan.depth)));
            }
            // This request fails if the address is wrong, so that there is one error and not one for each operation.
            let (first, _) = &mut clients[0];
            first.noop(b"kv-bench", &OpOptions::default())?;
            carry_out(plan, &shared, &mut clients, |driver, (client, lane), arrival_rate| {
                library::run(driver, client, lane, arrival_rate)
            })
        }
        Scheme::KvWire => {
            let map = map.context("ask for the map")?;
            let places = shared.keys.lists.len();
            let open = |at: usize| open_kv(plan, &map, at, places, run);
            over_sockets(plan, &shared, open)
        }
        Scheme::KvRedis => {
            let map = map.context("ask for the map")?;
            let mut report = over_sockets(plan, &shared, |at| open_kv_redis(plan, &map, at))?;
            // A reply of RESP does not tell the number of copies that a write has.
            report.changed_groups =
                cluster_map::changed_groups(&map, &cluster_map::fetch(&address)?);
            Ok(report)
        }
        Scheme::Redis => {
            over_sockets(plan, &shared, plain(plan, &address, || Resp::new(plan.replicas)))
        }
        Scheme::Memcached => over_sockets(plan, &shared, plain(plan, &address, Memcached::default)),
        Scheme::Echo => over_sockets(plan, &shared, plain(plan, &address, || Echo::new(reads))),
    }
}

/// Returns a number that distinguishes this run's values from those of other runs.
fn run_number() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let number =
        mix(u64::from(now.subsec_nanos()) << 32 ^ now.as_secs() ^ u64::from(std::process::id()));
    u32::try_from(number >> 32).expect("half of 64 bits")
}

fn shared(plan: &Plan, map: Option<&Map>, run: u32) -> anyhow::Result<Shared> {
    let Plan { keys, key_bytes, popularity, group, .. } = *plan;
    let keys = match map {
        Some(map) if plan.target.scheme == Scheme::KvWire || group.is_some() || plan.is_local => {
            let servers = map.servers.len();
            if let Some(group) = group.filter(|group| usize::from(group.0) >= servers) {
                bail!("--group {group}: the cluster has groups 0 to {}", servers - 1);
            }
            let mut placement = map.placement();
            if plan.target.scheme != Scheme::KvWire {
                // The library and the servers find the shards themselves, so a list for each group is enough.
                placement = kv_protocol::placement::Placement::new(placement.servers(), 1)
                    .with_hash_tags(placement.hash_tags());
            }
            let placed = Keyspace::placed(keys, key_bytes, popularity, placement, group);
            placed.map_err(|(group, shard)| {
                anyhow::anyhow!("no key is in shard {shard} of group {group}; use more --keys")
            })?
        }
        _ => Keyspace::whole(keys, key_bytes, popularity),
    };
    let model = plan.verifies.then(|| Model::new(keys.bound as usize, run));
    Ok(Shared { keys, values: Values::new(plan.value_bytes.clone()), model, run })
}

/// Opens connections that need no handshake.
fn plain<W>(
    plan: &Plan,
    address: &Address,
    wire: impl Fn() -> W,
) -> impl Fn(usize) -> anyhow::Result<Connection<W>> {
    move |_| {
        let stream = address.connect()?;
        Ok(Connection::new(stream, wire(), Lane::new(0, plan.depth))?)
    }
}

/// Opens connection number `at`. The connections are assigned to the shards in round-robin order.
fn open_kv(
    plan: &Plan,
    map: &Map,
    at: usize,
    places: usize,
    run: u32,
) -> anyhow::Result<Connection<Kv>> {
    if plan.connections < places {
        bail!("--connections {}: use at least {places}, one for each shard", plan.connections);
    }
    let shards = usize::from(map.shards);
    let list = at % places;
    let group = plan.group.map_or(list / shards, |group| usize::from(group.0));
    let shard = kv_protocol::ids::ShardId(u16::try_from(list % shards)?);
    let server = cluster_map::primary(map, group)?;
    let address = plan.target.address_of(server, cluster_map::address(map, server)?);
    let view = &map.views[group];
    let client = ClientId((u128::from(run) << 64) | (at as u128 + 1));
    let (stream, welcome) = cluster_map::join(&address, client, shard)?;
    let start = welcome.starts.iter().find(|start| start.group == view.group);
    let begun = start.map_or(SequenceNumber::ZERO, |start| start.committed);
    Ok(Connection::new(
        stream,
        Kv::new(view.version, begun, plan.writes),
        Lane::new(list, plan.depth),
    )?)
}

/// Opens connection number `at` of RESP. The connections are assigned to the servers in round-robin order, or with
/// `--local` to the primaries of their keys.
fn open_kv_redis(plan: &Plan, map: &Map, at: usize) -> anyhow::Result<Connection<Resp>> {
    let servers = map.servers.len();
    if plan.is_local && plan.group.is_none() && plan.connections < servers {
        bail!("--connections {}: use at least {servers}, one for each server", plan.connections);
    }
    let (list, server) = cluster_map::resp_place(map, at, plan.group, plan.is_local)?;
    let address = plan.target.address_of(server, cluster_map::address(map, server)?);
    let stream = address.connect()?;
    Ok(Connection::new(stream, Resp::new(0), Lane::new(list, plan.depth))?)
}

/// Opens all connections, distributes them among the threads, and executes the plan.
fn over_sockets<W: Wire + Send>(
    plan: &Plan,
    shared: &Shared,
    open: impl Fn(usize) -> anyhow::Result<Connection<W>>,
) -> anyhow::Result<Report> {
    let mut threads: Vec<Vec<Connection<W>>> = (0..plan.threads).map(|_| Vec::new()).collect();
    for at in 0..plan.connections {
        // Each thread gets connections with consecutive numbers.
        threads[at * plan.threads / plan.connections].push(open(at)?);
    }
    carry_out(plan, shared, &mut threads, |driver, connections, arrival_rate| {
        sockets::run(driver, connections, arrival_rate)
    })
}

/// Fills the keys and measures, as the plan requires. Each element of `threads` runs on a separate thread.
fn carry_out<T: Send>(
    plan: &Plan,
    shared: &Shared,
    threads: &mut [T],
    drive: impl Fn(&mut Driver<'_>, &mut T, ArrivalRate) -> anyhow::Result<ArrivalRate> + Sync,
) -> anyhow::Result<Report> {
    let mut report = Report {
        target: plan.target.to_string(),
        connections: plan.connections,
        depth: plan.depth,
        loop_kind: if plan.rate.is_some() { "open" } else { "closed" }.to_owned(),
        rate: plan.rate,
        verified: plan.verifies,
        ..Report::default()
    };
    if plan.fills {
        let work = Work::Fill(shared.keys.lists.iter().map(|_| Default::default()).collect());
        let control = Control::begin(Duration::ZERO, Until::EveryKey, threads.len());
        let live = Live::filling(shared.keys.len());
        let phase = Phase { plan, shared, work: &work, control: &control, rate: None };
        let ended = phase.run(threads, &drive, live).context("fill the keys")?;
        report.fill_seconds = Some(seconds(control.now_ns()));
        report.filled = shared.keys.len();
        report.fills = ended.tally.writes.figures();
        report.add_troubles(ended.tally);
    }
    let Some(until) = plan.until else { return Ok(report) };
    let work = Work::Mix(plan.reads);
    let control = Control::begin(plan.warm_up, until, threads.len());
    let phase = Phase { plan, shared, work: &work, control: &control, rate: plan.rate };
    let ended = phase.run(threads, &drive, Live::running())?;
    let last_ns = if control.end_ns == u64::MAX { ended.tally.last_ns } else { control.end_ns };
    report.seconds = seconds(last_ns.saturating_sub(control.warm_ns));
    report.behind = ended.behind;
    report.take(ended.tally);
    #[allow(clippy::cast_precision_loss)]
    let operations = report.operations.max(1) as f64;
    report.per_second = operations / report.seconds.max(1e-9);
    report.generator_cpu_us = ended.own.as_secs_f64() * 1e6 / operations;
    report.server_cpu_us = ended.servers.map(|used| used.as_secs_f64() * 1e6 / operations);
    if report.operations == 0 {
        bail!("no response arrived within {:?} after the warm-up", control_span(until));
    }
    Ok(report)
}

fn control_span(until: Until) -> Duration {
    match until {
        Until::Time(span) => span,
        Until::Count(_) | Until::EveryKey => Duration::ZERO,
    }
}

#[allow(clippy::cast_precision_loss)] // To a microsecond for a day.
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// One phase in progress.
struct Phase<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    work: &'a Work,
    control: &'a Control,
    rate: Option<u64>,
}

/// The results of a phase.
struct Ended {
    tally: Tally,
    behind: u64,
    /// The CPU time that this program has used during the measurement.
    own: Duration,
    servers: Option<Duration>,
}

impl Phase<'_> {
    fn run<T: Send>(
        &self,
        threads: &mut [T],
        drive: &(impl Fn(&mut Driver<'_>, &mut T, ArrivalRate) -> anyhow::Result<ArrivalRate> + Sync),
        live: Live,
    ) -> anyhow::Result<Ended> {
        let count = threads.len();
        #[allow(clippy::cast_precision_loss)]
        let arrival_rate = match self.rate {
            Some(rate) => ArrivalRate::open(0, rate as f64 / count as f64),
            None => ArrivalRate::Closed,
        };
        std::thread::scope(|scope| {
            let (sender, ends) = channel();
            let mut running = Vec::new();
            for (number, thread) in threads.iter_mut().enumerate() {
                let (arrival_rate, sender) = (arrival_rate.clone(), sender.clone());
                running.push(scope.spawn(move || {
                    let Phase { shared, work, control, plan, .. } = *self;
                    let mut driver = Driver::new(shared, work, control, number, plan.seed);
                    let ended = drive(&mut driver, thread, arrival_rate);
                    if ended.is_err() {
                        control.abort();
                    }
                    // The receiver exists until all threads have ended, so the send succeeds.
                    let _ = sender.send(());
                    ended.map(|arrival_rate| (driver.tally, arrival_rate.behind(control.end_ns)))
                }));
            }
            drop(sender);
            let (own, servers) = self.watch(count, &ends, live)?;
            let mut ended = Ended { tally: Tally::new(), behind: 0, own, servers };
            let mut failure = None;
            for thread in running {
                match thread.join() {
                    Ok(Ok((tally, behind))) => {
                        ended.tally.add(tally);
                        ended.behind += if self.control.end_ns == u64::MAX { 0 } else { behind };
                    }
                    // The error of the first thread in the list is reported. The errors of the others may be its
                    // consequences.
                    Ok(Err(error)) => failure = failure.or(Some(error)),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            failure.map_or(Ok(ended), Err)
        })
    }

    /// Waits until all threads have ended, and shows the progress. Returns the CPU time that this program and the
    /// servers have used between the end of the warm-up and the end of the measurement.
    fn watch(
        &self,
        threads: usize,
        ends: &Receiver<()>,
        mut live: Live,
    ) -> anyhow::Result<(Duration, Option<Duration>)> {
        let pids = &self.plan.server_pids;
        let look = || -> anyhow::Result<(Duration, Option<Duration>)> {
            let servers = if pids.is_empty() { None } else { Some(cpu::of_processes(pids)?) };
            Ok((cpu::of_self(), servers))
        };
        let (mut before, mut after) = (None, None);
        let mut ended = 0;
        while ended < threads {
            let now_ns = self.control.now_ns();
            let looked = match () {
                () if before.is_none() && now_ns >= self.control.warm_ns => Some(&mut before),
                () if after.is_none() && now_ns >= self.control.end_ns => Some(&mut after),
                () => None,
            };
            if let Some(place) = looked {
                *place = Some(look().inspect_err(|_| self.control.abort())?);
            }
            let next_ns = match (before.is_none(), after.is_none()) {
                (true, _) => self.control.warm_ns,
                (_, true) => self.control.end_ns,
                _ => u64::MAX,
            };
            let wait = Duration::from_nanos(next_ns.saturating_sub(now_ns)).min(live::EVERY);
            match ends.recv_timeout(wait) {
                Ok(()) => ended += 1,
                Err(RecvTimeoutError::Timeout) if wait == live::EVERY => {
                    let is_warm = now_ns >= self.control.warm_ns;
                    live.show(
                        self.control.done(),
                        if is_warm { "measuring" } else { "warming up" },
                    );
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        live.end();
        let (own_before, servers_before) = match before {
            Some(before) => before,
            None => look()?,
        };
        let (own, servers) = match after {
            Some(after) => after,
            None => look()?,
        };
        let servers =
            servers.zip(servers_before).map(|(after, before)| after.saturating_sub(before));
        Ok((own.saturating_sub(own_before), servers))
    }
}
