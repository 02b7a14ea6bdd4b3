//! The plan: which process is started where, and by which addresses the processes reach each other. It is derived
//! from the flags and the cluster file.
//!
//! | the file has       | `--advertise` | the coordinator listens on | servers are reached at       |
//! |--------------------|---------------|----------------------------|------------------------------|
//! | localhost only     | no            | 127.0.0.1                  | 127.0.0.1                    |
//! | localhost only     | A             | all addresses              | A                            |
//! | ssh hosts only     | no            | all addresses              | the address that ssh used    |
//! | ssh hosts only     | A             | all addresses              | the address that ssh used    |
//! | both               | A (required)  | all addresses              | A, or the address of ssh     |
//!
//! A loopback address stays local: with `--advertise 127.0.0.1` no process listens on another address. `--bind`
//! replaces the listening address of the coordinator and of the servers on its machine. A server on an ssh host
//! listens only on the address that ssh used.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZero;
use std::path::{Path, PathBuf};

use kv_protocol::ServerId;
use kv_protocol::cluster_file::{ClusterFile, Host, ServerLine};
use kv_protocol::limits::MAX_SHARDS;
use serde::{Deserialize, Serialize};

use crate::args::Args;
use crate::machine::{self, Machine};
use crate::settings::Settings;
use crate::spawn::quote;
use crate::spawn::ssh::Ssh;
use crate::store::{self, Record};
use crate::survey::{self, Survey};
use crate::{Failure, own_address, restore};

/// The addresses between one server and the other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Route {
    /// The address by which the server reaches the coordinator.
    pub(crate) coordinator: IpAddr,
    /// The address that the server listens on.
    pub(crate) bind: IpAddr,
    /// The address at which other processes reach the server.
    pub(crate) advertise: IpAddr,
}

/// All decisions that are made before the first server is started.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) file: ClusterFile,
    /// The directory of the coordinator's files, absolute.
    pub(crate) dir: PathBuf,
    /// The server's executable on this machine, absolute.
    pub(crate) binary: PathBuf,
    pub(crate) ssh: Ssh,
    pub(crate) shards: u16,
    pub(crate) settings: Settings,
    /// True if servers may leave core dumps.
    pub(crate) core_dumps: bool,
    /// The address that the coordinator listens on.
    pub(crate) listen: IpAddr,
    /// The routes in ring order.
    pub(crate) routes: Vec<Route>,
}

/// Reads the cluster file.
///
/// # Errors
/// Bad usage; the message has the file, the line and the reason.
pub(crate) fn read_file(args: &Args) -> Result<ClusterFile, Failure> {
    let path = args.cluster_file.as_deref().unwrap_or(Path::new(""));
    let shown = path.display();
    let text = std::fs::read(path).map_err(|error| {
        Failure::Usage(format!("cannot read the cluster file {shown}: {error}; check -C"))
    })?;
    let text = String::from_utf8(text).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count();
        Failure::Usage(format!(
            "cluster file {shown}, line {line}: invalid UTF-8; write the file as UTF-8 \
                                text"
        ))
    })?;
    let file = ClusterFile::parse(&text)
        .map_err(|error| Failure::Usage(format!("cluster file {shown}, {error}")))?;
    check_addresses(&file, args, &stored_settings(args).with(args))?;
    Ok(file)
}

/// Returns the stored settings that a start with these flags continues with, or those of a new cluster if there is
/// no readable state. The start itself reports a defective state.
pub(crate) fn stored_settings(args: &Args) -> Settings {
    let in_dir = || store::load(&args.dir).ok().flatten();
    let dirs = match args.restore.as_slice() {
        [] => match in_dir() {
            Some(record) if args.resume || !record.has_ended_well => return record.settings,
            _ if args.resume => std::slice::from_ref(&args.dir),
            _ => return Settings::default(),
        },
        dirs => dirs,
    };
    restore::last_record(dirs, &args.dir).map(|last| last.settings).unwrap_or_default()
}

/// Checks that the other servers can reach this machine by the given addresses.
///
/// # Errors
/// Bad usage: `--advertise` is missing, or it and `--bind` contradict each other.
fn check_addresses(file: &ClusterFile, args: &Args, settings: &Settings) -> Result<(), Failure> {
    let advertise = settings.advertise;
    let has = |local: bool| file.servers.iter().any(|line| (line.host == Host::Local) == local);
    if has(true) && has(false) && advertise.is_none() {
        return Err(Failure::Usage(format!(
            "cluster file {} mixes localhost with other hosts: give --advertise IP, the address at which the \
             others reach this machine",
            args.cluster_file.as_deref().unwrap_or(Path::new("")).display()
        )));
    }
    let is_loopback = advertise.is_some_and(|ip| ip.is_loopback());
    let is_reached_from_elsewhere = has(false) || advertise.is_some_and(|ip| !ip.is_loopback());
    if is_reached_from_elsewhere && args.bind.is_some_and(|ip| ip.is_loopback()) && !is_loopback {
        return Err(Failure::Usage(
            "--bind is a loopback address, which other hosts cannot reach; give the address of this \
             machine in their network"
                .into(),
        ));
    }
    if advertise.is_some_and(|address| address.is_unspecified()) {
        return Err(Failure::Usage(
            "--advertise must be an address that other hosts can connect to".into(),
        ));
    }
    Ok(())
}

/// Returns the executable of the servers on this machine.
pub(crate) fn binary(args: &Args) -> Result<PathBuf, String> {
    let path =
        match &args.server_binary {
            Some(path) => path.clone(),
            None => beside(&std::env::current_exe().map_err(|error| {
                format!("cannot find the directory of this executable: {error}")
            })?),
        };
    let shown = path.display();
    let advice = "build it with `make all`, or give --server-binary";
    let absolute = std::fs::canonicalize(&path)
        .map_err(|error| format!("cannot find the server executable {shown}: {error}; {advice}"))?;
    if !absolute.is_file() {
        return Err(format!("the server executable {shown} is not a file; {advice}"));
    }
    rustix::fs::access(&absolute, rustix::fs::Access::EXEC_OK).map_err(|error| {
        format!("cannot execute the server executable {shown}: {error}; check its mode")
    })?;
    Ok(absolute)
}

/// Returns the server beside this executable with the same prefix: `kv-server` beside `kv-coord`.
fn beside(coordinator: &Path) -> PathBuf {
    let name = coordinator.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let prefix = name.strip_suffix("coord").unwrap_or_default();
    coordinator.with_file_name(format!("{prefix}server"))
}

impl Plan {
    /// Makes the plan, based on the settings of an earlier cluster. Surveys every ssh host for its cores and
    /// addresses.
    ///
    /// # Errors
    /// A server cannot be started; the message has the server and the reason.
    pub(crate) async fn make(
        args: &Args,
        file: ClusterFile,
        earlier: &Settings,
    ) -> Result<Plan, Failure> {
        let settings = earlier.with(args);
        check_addresses(&file, args, &settings)?;
        let ssh = Ssh::new(&settings);
        let (dir, binary) = (directory(args)?, local_binary(args, &file)?);
        check_own(&file, settings.advertise, args.servers_port)?;
        let surveys = survey::of_hosts(&file, &ssh).await;
        for line in &file.servers {
            check_survey(&ssh, line.id.0, &line.host, &surveys).map_err(Failure::Failed)?;
        }
        let surveys: HashMap<Host, Survey> =
            surveys.into_iter().filter_map(|(host, survey)| Some((host, survey.ok()?))).collect();
        let shards = args.shards.unwrap_or_else(|| default_shards(&file, &surveys));
        let (listen, routes) =
            routes(&file, Addresses::of(args, &settings), &surveys).map_err(Failure::Failed)?;
        let core_dumps = args.core_dumps;
        Ok(Plan { file, dir, binary, ssh, shards, settings, core_dumps, listen, routes })
    }

    /// Makes the plan of a running cluster from the stored addresses, which needs no access to any host. Only the
    /// new hosts of `moves` are surveyed, or all ssh hosts if the state is of another machine.
    ///
    /// # Errors
    /// The server's executable on this machine is missing, a new host is not fit for a server, or `--advertise`
    /// leads to another machine.
    pub(crate) async fn again(
        args: &Args,
        file: ClusterFile,
        earlier: &Record,
        moves: &[ServerId],
    ) -> Result<Plan, Failure> {
        let settings = earlier.settings.with_running(args);
        if args.advertise != earlier.settings.advertise {
            check_own(&file, args.advertise, earlier.place.ports.servers)?;
        }
        // A stop needs the executable only to replace a server that fails meanwhile.
        let binary = match local_binary(args, &file) {
            Err(_) if args.only_stops => PathBuf::from("server"),
            found => found?,
        };
        let ssh = Ssh::new(&settings);
        let place = &earlier.place;
        let has_moved = Machine::place(place.machine.as_ref()) == machine::Place::Elsewhere;
        let surveys = match (has_moved, moves) {
            (false, []) => HashMap::new(),
            (true, _) => survey::of_hosts(&file, &ssh).await,
            (false, moves) => {
                let is_new = |line: &&ServerLine| moves.contains(&line.id);
                let servers = file.servers.iter().filter(is_new).cloned().collect();
                survey::of_hosts(&ClusterFile { servers }, &ssh).await
            }
        };
        let own = own_address(&settings, args);
        let mut routes = Vec::new();
        for (line, before) in file.servers.iter().zip(&place.routes) {
            routes.push(if moves.contains(&line.id) {
                check_survey(&ssh, line.id.0, &line.host, &surveys).map_err(Failure::Failed)?;
                let survey = surveys.get(&line.host).and_then(|survey| survey.as_ref().ok());
                route(line, own, settings.advertise, args.bind, survey).map_err(Failure::Failed)?
            } else {
                let survey = surveys.get(&line.host).and_then(|survey| survey.as_ref().ok());
                let seen = survey.and_then(|survey| survey.our_address);
                route_again(line, before, args.advertise, seen)
            });
        }
        let needed = listen_for(&routes);
        let is_heard = place.listen.is_unspecified() || place.listen == needed;
        let kept = Some(place.listen).filter(|_| is_heard && !has_moved);
        Ok(Plan {
            dir: directory(args)?,
            binary,
            listen: args.bind.or(kept).unwrap_or(needed),
            file,
            ssh,
            shards: earlier.state.shards,
            settings,
            core_dumps: args.core_dumps,
            routes,
        })
    }

    /// Surveys a server's new host and returns the server's route. The plan may change meanwhile.
    ///
    /// # Errors
    /// The host is not fit for a server, or cannot reach this coordinator.
    pub(crate) async fn ask_for_route(&self, line: &ServerLine) -> Result<Route, String> {
        let file = ClusterFile { servers: vec![line.clone()] };
        let surveys = survey::of_hosts(&file, &self.ssh).await;
        check_survey(&self.ssh, line.id.0, &line.host, &surveys)?;
        let survey = surveys.get(&line.host).and_then(|survey| survey.as_ref().ok());
        let local = self.file.servers.iter().zip(&self.routes);
        let mut local = local.filter(|(line, _)| line.host == Host::Local);
        let own =
            local.next().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |(_, route)| route.coordinator);
        let bind = Some(self.listen).filter(|ip| !ip.is_unspecified());
        let route = route(line, own, self.settings.advertise, bind, survey)?;
        if !self.listen.is_unspecified() && self.listen != route.coordinator {
            return Err(format!(
                "the coordinator listens only on {}, where {} cannot reach it; end it with coord detach, and \
                 start it again with --advertise IP, the address of this machine in their network",
                self.listen, line.host
            ));
        }
        Ok(route)
    }

    /// Returns this plan with another line and route for one of its servers.
    pub(crate) fn with_line(&self, line: ServerLine, route: Route) -> Plan {
        let mut plan = self.clone();
        let at = usize::from(line.id.0);
        plan.routes[at] = route;
        plan.file.servers[at] = line;
        plan
    }
}

/// Checks that `--advertise` leads to this machine, because servers on this machine use that address too.
fn check_own(file: &ClusterFile, advertise: Option<IpAddr>, port: u16) -> Result<(), Failure> {
    let has_local = file.servers.iter().any(|line| line.host == Host::Local);
    match advertise.filter(|_| has_local) {
        Some(address) => own_address::check(address, port)
            .map(drop)
            .map_err(|reason| Failure::Failed(format!("--advertise: {reason}"))),
        None => Ok(()),
    }
}

fn directory(args: &Args) -> Result<PathBuf, Failure> {
    std::path::absolute(&args.dir)
        .map_err(|error| Failure::Failed(format!("--dir {}: {error}", args.dir.display())))
}

fn local_binary(args: &Args, file: &ClusterFile) -> Result<PathBuf, Failure> {
    match file.servers.iter().any(|line| line.host == Host::Local) {
        true => binary(args).map_err(Failure::Failed),
        false => Ok(PathBuf::from("server")),
    }
}

/// Checks that a server can be started on its host.
fn check_survey(
    ssh: &Ssh,
    id: u16,
    host: &Host,
    surveys: &HashMap<Host, Result<Survey, String>>,
) -> Result<(), String> {
    let Some(survey) = surveys.get(host) else { return Ok(()) };
    let dir = &ssh.remote_dir;
    match survey {
        Err(error) => Err(format!(
            "server {id} on {host}: cannot connect by ssh: {error}; nothing was started (try: ssh -o \
             BatchMode=yes{} {host} true)",
            ssh.config
                .as_ref()
                .map(|file| format!(" -F {}", quote::word(&file.to_string_lossy())))
                .unwrap_or_default()
        )),
        Ok(survey) if !survey.has_dir => Err(format!(
            "server {id} on {host}: there is no directory {dir}; nothing was started (check \
             --remote-dir)"
        )),
        Ok(survey) if !survey.has_binary => Err(format!(
            "server {id} on {host}: there is no executable {dir}/server; nothing was started \
             (copy it there, as scripts/launch-cluster.sh does)"
        )),
        Ok(_) => Ok(()),
    }
}

/// Returns the number of servers on a host.
pub(crate) fn servers_on(file: &ClusterFile, host: &Host) -> usize {
    file.servers.iter().filter(|line| line.host == *host).count()
}

/// Returns the smallest number of cores that a server has to itself on any host, at least 1.
pub(crate) fn default_shards(file: &ClusterFile, surveys: &HashMap<Host, Survey>) -> u16 {
    let mut servers: HashMap<&Host, u16> = HashMap::new();
    for line in &file.servers {
        *servers.entry(&line.host).or_default() += 1;
    }
    let own_cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let shares = servers.into_iter().map(|(host, count)| {
        let cores = match surveys.get(host) {
            Some(survey) => survey.cores.unwrap_or(1),
            None => u16::try_from(own_cores).unwrap_or(u16::MAX),
        };
        cores / count
    });
    shares.min().unwrap_or(1).clamp(1, MAX_SHARDS)
}

/// The addresses of this machine according to the flags.
#[derive(Clone, Copy, Debug, Default)]
struct Addresses {
    advertise: Option<IpAddr>,
    bind: Option<IpAddr>,
}

impl Addresses {
    fn of(args: &Args, settings: &Settings) -> Addresses {
        Addresses { advertise: settings.advertise, bind: args.bind }
    }
}

/// Returns this machine's address according to the flags, or 127.0.0.1.
fn own_address(settings: &Settings, args: &Args) -> IpAddr {
    let bind = args.bind.filter(|ip| !ip.is_unspecified());
    settings.advertise.or(bind).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Returns the address that the coordinator listens on, and the routes of all servers.
fn routes(
    file: &ClusterFile,
    Addresses { advertise, bind }: Addresses,
    surveys: &HashMap<Host, Survey>,
) -> Result<(IpAddr, Vec<Route>), String> {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let own = advertise.or(bind.filter(|ip| !ip.is_unspecified())).unwrap_or(local);
    let of = |line: &ServerLine| route(line, own, advertise, bind, surveys.get(&line.host));
    let routes = file.servers.iter().map(of).collect::<Result<Vec<Route>, String>>()?;
    Ok((bind.unwrap_or(listen_for(&routes)), routes))
}

/// Returns the route of a server. Without a survey the server is on this machine, which has the address `own`.
fn route(
    line: &ServerLine,
    own: IpAddr,
    advertise: Option<IpAddr>,
    bind: Option<IpAddr>,
    survey: Option<&Survey>,
) -> Result<Route, String> {
    let Some(survey) = survey else {
        // The coordinator listens on all addresses or on this one.
        let bind = bind.unwrap_or(listen_address(own));
        return Ok(Route { coordinator: own, bind, advertise: own });
    };
    let (id, host) = (line.id, &line.host);
    let its = survey.its_address.ok_or_else(|| {
        format!(
            "server {id} on {host}: its address is not known; write the address instead of the name"
        )
    })?;
    let coordinator = advertise.or(survey.our_address).ok_or_else(|| {
        format!(
            "server {id} on {host}: this machine's address there is not known; give --advertise IP"
        )
    })?;
    let bind = survey.own_address.unwrap_or(listen_address(its));
    Ok(Route { coordinator, bind, advertise: its })
}

/// Returns the address that the coordinator listens on, so that all servers can reach it.
fn listen_for(routes: &[Route]) -> IpAddr {
    let ours = routes.iter().map(|route| listen_address(route.coordinator));
    ours.reduce(wider).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Returns the route of a running server. The coordinator's address may change: to `--advertise`, or to the address
/// `seen` by the server's host in a survey. The server receives it.
fn route_again(
    line: &ServerLine,
    before: &Route,
    advertise: Option<IpAddr>,
    seen: Option<IpAddr>,
) -> Route {
    let coordinator = advertise.or(seen).unwrap_or(before.coordinator);
    let is_local = line.host == Host::Local;
    let advertise = advertise.filter(|_| is_local).unwrap_or(before.advertise);
    Route { coordinator, advertise, ..*before }
}

/// Returns the address to listen on: a loopback address itself, or all addresses of the family.
fn listen_address(reached_at: IpAddr) -> IpAddr {
    match reached_at {
        address if address.is_loopback() => address,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// Returns the address to listen on that serves both. The IPv6 wildcard also accepts IPv4.
fn wider(one: IpAddr, other: IpAddr) -> IpAddr {
    match (one, other) {
        (one, other) if one == other => one,
        (IpAddr::V4(_), IpAddr::V4(_)) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_server_bears_the_same_prefix_as_the_coordinator() {
        for (coordinator, server) in [
            ("/work/bin/coord", "/work/bin/server"),
            ("/usr/bin/kv-coord", "/usr/bin/kv-server"),
            ("/tmp/renamed", "/tmp/server"),
        ] {
            assert_eq!(beside(Path::new(coordinator)), Path::new(server));
        }
    }

    fn advertised(address: IpAddr) -> Addresses {
        Addresses { advertise: Some(address), bind: None }
    }

    #[test]
    fn what_is_bound_to_an_address_listens_there_alone() {
        let file = ClusterFile::parse(LOCAL).unwrap();
        let bind = Some(ip("10.0.0.7"));
        let (listen, routes) =
            routes(&file, Addresses { bind, advertise: None }, &HashMap::new()).unwrap();
        assert_eq!(listen, ip("10.0.0.7"));
        assert!(routes.iter().all(|r| [r.bind, r.advertise, r.coordinator] == [listen; 3]));
        let advertise = Some(ip("192.0.2.1"));
        let (listen, routes) =
            super::routes(&file, Addresses { bind, advertise }, &HashMap::new()).unwrap();
        assert_eq!((listen, routes[0].bind), (ip("10.0.0.7"), ip("10.0.0.7")));
        assert_eq!(
            (routes[0].advertise, routes[0].coordinator),
            (ip("192.0.2.1"), ip("192.0.2.1"))
        );
    }

    #[test]
    fn another_address_at_a_take_over_is_where_all_servers_find_the_coordinator() {
        let file = ClusterFile::parse(MIXED).unwrap();
        let all = ip("0.0.0.0");
        let route =
            |its: &str| Route { coordinator: ip("10.0.0.1"), bind: all, advertise: ip(its) };
        let before = [route("10.0.0.1"), route("10.0.0.2"), route("10.1.0.3")];
        let again = |advertise, seen| -> Vec<Route> {
            let lines = file.servers.iter().zip(&before);
            lines.map(|(line, route)| route_again(line, route, advertise, seen)).collect()
        };
        assert_eq!(again(None, None), before);
        let seen = again(None, Some(ip("10.8.8.8")));
        assert!(seen.iter().all(|route| route.coordinator == ip("10.8.8.8")));
        let after = again(Some(ip("10.9.9.9")), Some(ip("10.8.8.8")));
        assert!(after.iter().all(|route| route.coordinator == ip("10.9.9.9") && route.bind == all));
        // The addresses of ssh hosts do not change.
        let told: Vec<IpAddr> = after.iter().map(|route| route.advertise).collect();
        assert_eq!(told, [ip("10.9.9.9"), ip("10.0.0.2"), ip("10.1.0.3")]);
    }

    fn remote(name: &str) -> Host {
        Host::Ssh { user: Some("kv".into()), host: name.into(), port: None }
    }

    fn survey(ours: &str, its: &str, cores: u16) -> Survey {
        let (our_address, its_address) = (Some(ip(ours)), Some(ip(its)));
        Survey {
            our_address,
            its_address,
            own_address: its_address,
            cores: Some(cores),
            ..Survey::default()
        }
    }

    const LOCAL: &str = "3\nlocalhost 0 0 0\nlocalhost 0 0 0\nlocalhost 0 0 0\n";
    const REMOTE: &str = "3\nkv@a 0 0 0\nkv@b 0 0 0\nkv@b 0 0 0\n";
    const MIXED: &str = "3\nlocalhost 0 0 0\nkv@a 0 0 0\nkv@b 0 0 0\n";

    fn surveys() -> HashMap<Host, Survey> {
        HashMap::from([
            (remote("a"), survey("10.0.0.1", "10.0.0.2", 16)),
            (remote("b"), survey("10.1.0.1", "10.1.0.3", 6)),
        ])
    }

    #[test]
    fn a_local_cluster_is_reachable_from_here_alone() {
        let file = ClusterFile::parse(LOCAL).unwrap();
        let (listen, routes) = routes(&file, Addresses::default(), &HashMap::new()).unwrap();
        let here = ip("127.0.0.1");
        assert_eq!(listen, here);
        assert!(
            routes.iter().all(|r| r.bind == here && r.advertise == here && r.coordinator == here)
        );
    }

    #[test]
    fn a_local_cluster_with_an_address_is_reachable_from_everywhere() {
        let file = ClusterFile::parse(LOCAL).unwrap();
        let (listen, routes) = routes(&file, advertised(ip("10.0.0.1")), &HashMap::new()).unwrap();
        assert_eq!(listen, ip("0.0.0.0"));
        assert_eq!(routes[0].bind, ip("0.0.0.0"));
        assert_eq!(routes[0].advertise, ip("10.0.0.1"));
    }

    #[test]
    fn remote_servers_dial_the_address_by_which_ssh_came() {
        let file = ClusterFile::parse(REMOTE).unwrap();
        let (listen, routes) = routes(&file, Addresses::default(), &surveys()).unwrap();
        assert_eq!(listen, ip("0.0.0.0"));
        assert_eq!(routes[0].coordinator, ip("10.0.0.1"));
        assert_eq!((routes[0].advertise, routes[0].bind), (ip("10.0.0.2"), ip("10.0.0.2")));
        assert_eq!(routes[2].coordinator, ip("10.1.0.1"));
    }

    #[test]
    fn a_mixed_cluster_uses_the_advertised_address_of_this_machine() {
        let file = ClusterFile::parse(MIXED).unwrap();
        let (_, all) = routes(&file, advertised(ip("10.9.9.9")), &surveys()).unwrap();
        assert!(all.iter().all(|route| route.coordinator == ip("10.9.9.9")));
        assert_eq!(all[0].advertise, ip("10.9.9.9"));
        assert_eq!(all[1].advertise, ip("10.0.0.2"));

        let loopback = HashMap::from([
            (remote("a"), survey("127.0.0.1", "127.0.0.1", 2)),
            (remote("b"), survey("127.0.0.1", "127.0.0.1", 2)),
        ]);
        let (listen, all) = routes(&file, advertised(ip("127.0.0.1")), &loopback).unwrap();
        assert_eq!(listen, ip("127.0.0.1"));
        assert!(all.iter().all(|route| route.bind == ip("127.0.0.1")));
    }

    #[test]
    fn shards_are_the_least_cores_that_any_server_has_to_itself() {
        let file = ClusterFile::parse(REMOTE).unwrap();
        assert_eq!(default_shards(&file, &surveys()), 3);
        let crowded = format!("100\n{}", "kv@b 0 0 0\n".repeat(100));
        let file = ClusterFile::parse(&crowded).unwrap();
        assert_eq!(default_shards(&file, &surveys()), 1);
    }
}
