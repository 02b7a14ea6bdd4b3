//! The plan: which process is started where, and by which addresses the processes reach each other. It is derived
//! from the flags, the cluster file, and a survey of the hosts.

mod binary;
mod command;
mod routes;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZero;
use std::path::PathBuf;

use kv_protocol::ServerId;
use kv_protocol::cluster_file::{ClusterFile, Host, ServerLine};
use kv_protocol::limits::MAX_SHARDS;

use crate::args::Args;
use crate::failure::Failure;
use crate::machine::{self, Boot};
use crate::place::Route;
use crate::settings::Settings;
use crate::spawn::ssh::Ssh;
use crate::store::Record;
use crate::survey::{self, Survey};
use crate::{own_address, quote};

pub(crate) use binary::binary;
pub(crate) use routes::check_addresses;

use binary::local_binary;
use routes::{Addresses, listen_for, route, route_again, routes};

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
    pub(crate) hash_tags: bool,
    pub(crate) settings: Settings,
    /// True if servers may leave core dumps.
    pub(crate) core_dumps: bool,
    /// The address that the coordinator listens on.
    pub(crate) listen: IpAddr,
    /// The routes in ring order.
    pub(crate) routes: Vec<Route>,
}

impl Plan {
    /// Makes the plan, based on the settings of an earlier cluster. Surveys every ssh host for its cores and
    /// addresses.
    ///
    /// # Errors
    /// The address flags contradict the cluster file, `--advertise` leads to another machine, or a server cannot be
    /// started. The message has the reason, and in the last case the server.
    pub(crate) async fn make(
        args: &Args,
        file: ClusterFile,
        earlier: &Settings,
    ) -> Result<Plan, Failure> {
        let settings = earlier.with(args);
        check_addresses(&file, args, &settings)?;
        let ssh = Ssh::new(&settings);
        settings.check_redis_ports(file.servers.len()).map_err(Failure::Usage)?;
        settings.check_unix(&file).map_err(Failure::Usage)?;
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
        Ok(Plan {
            file,
            dir,
            binary,
            ssh,
            shards,
            hash_tags: args.hash_tags,
            settings,
            core_dumps: args.core_dumps,
            listen,
            routes,
        })
    }

    /// Makes the plan of a running cluster from the stored addresses, which needs no access to any host. Only the new
    /// hosts of `moves` are surveyed, or all ssh hosts if the state was written on another machine.
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
        if args.unix.is_some() {
            settings.check_unix(&file).map_err(Failure::Usage)?;
        }
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
        let has_moved = Boot::place(place.machine.as_ref()) == machine::Place::Elsewhere;
        let surveys = match (has_moved, moves) {
            (false, []) => HashMap::new(),
            (true, _) => survey::of_hosts(&file, &ssh).await,
            (false, moves) => {
                let is_new = |line: &&ServerLine| moves.contains(&line.id);
                let servers = file.servers.iter().filter(is_new).cloned().collect();
                survey::of_hosts(&ClusterFile { servers }, &ssh).await
            }
        };
        let own = routes::own_address(&settings, args);
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
            hash_tags: earlier.state.hash_tags,
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
                "the coordinator listens only on {}, and {} cannot connect to that address; end the \
                 coordinator with coord detach, and start it again with --advertise IP, the address of this \
                 machine in the hosts' network",
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

/// Checks that `--advertise` leads to this machine, if servers run on it, because they use that address too.
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
    std::path::absolute(&args.dir).map_err(|error| {
        Failure::Failed(format!(
            "cannot make the path of --dir {} absolute: {error}",
            args.dir.display()
        ))
    })
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
            "server {id} on {host}: the directory {dir} does not exist; nothing was started (check \
             --remote-dir)"
        )),
        Ok(survey) if !survey.has_binary => Err(format!(
            "server {id} on {host}: the executable {dir}/server does not exist; nothing was started (copy it \
             there, as scripts/launch-cluster.sh does)"
        )),
        Ok(_) => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::routes::tests::{REMOTE, surveys};
    use super::*;

    #[test]
    fn the_default_number_of_shards_is_the_smallest_number_of_cores_per_server() {
        let file = ClusterFile::parse(REMOTE).unwrap();
        assert_eq!(default_shards(&file, &surveys()), 3);
        let crowded = format!("100\n{}", "kv@b 0 0 0\n".repeat(100));
        let file = ClusterFile::parse(&crowded).unwrap();
        assert_eq!(default_shards(&file, &surveys()), 1);
    }
}
