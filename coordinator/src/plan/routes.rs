//! The addresses by which the processes of a cluster reach each other.
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
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use kv_protocol::cluster_file::{ClusterFile, Host, ServerLine};

use crate::args::Args;
use crate::failure::Failure;
use crate::place::Route;
use crate::settings::Settings;
use crate::survey::Survey;

/// Checks that the other hosts can reach this machine at the given addresses.
///
/// # Errors
/// Bad usage: `--advertise` is missing or is not an address to connect to, or `--bind` is a loopback address although
/// other hosts must reach this machine.
pub(crate) fn check_addresses(
    file: &ClusterFile,
    args: &Args,
    settings: &Settings,
) -> Result<(), Failure> {
    let advertise = settings.advertise;
    let has = |local: bool| file.servers.iter().any(|line| (line.host == Host::Local) == local);
    if has(true) && has(false) && advertise.is_none() {
        return Err(Failure::Usage(format!(
            "cluster file {} mixes localhost with other hosts: give --advertise IP, the address at which the \
             other hosts reach this machine",
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
            "--advertise is a wildcard address; give an address that other hosts can connect to"
                .into(),
        ));
    }
    Ok(())
}

/// The addresses of this machine according to the flags and the stored settings.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Addresses {
    advertise: Option<IpAddr>,
    bind: Option<IpAddr>,
}

impl Addresses {
    pub(super) fn of(args: &Args, settings: &Settings) -> Addresses {
        Addresses { advertise: settings.advertise, bind: args.bind }
    }
}

/// Returns this machine's address according to the flags and the stored settings, or 127.0.0.1.
pub(super) fn own_address(settings: &Settings, args: &Args) -> IpAddr {
    let bind = args.bind.filter(|ip| !ip.is_unspecified());
    settings.advertise.or(bind).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Returns the address that the coordinator listens on, and the routes of all servers.
pub(super) fn routes(
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
pub(super) fn route(
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
pub(super) fn listen_for(routes: &[Route]) -> IpAddr {
    let ours = routes.iter().map(|route| listen_address(route.coordinator));
    ours.reduce(wider).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Returns the route of a running server. The coordinator's address may change: to `--advertise`, or to the address
/// `seen` by the server's host in a survey. The server receives it. The address at which a local server is reached
/// changes with `--advertise`, too.
pub(super) fn route_again(
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
pub(super) mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn advertised(address: IpAddr) -> Addresses {
        Addresses { advertise: Some(address), bind: None }
    }

    #[test]
    fn with_bind_all_processes_listen_on_that_address_only() {
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
    fn after_a_takeover_all_servers_use_the_new_address_of_the_coordinator() {
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
    pub(in crate::plan) const REMOTE: &str = "3\nkv@a 0 0 0\nkv@b 0 0 0\nkv@b 0 0 0\n";
    const MIXED: &str = "3\nlocalhost 0 0 0\nkv@a 0 0 0\nkv@b 0 0 0\n";

    pub(in crate::plan) fn surveys() -> HashMap<Host, Survey> {
        HashMap::from([
            (remote("a"), survey("10.0.0.1", "10.0.0.2", 16)),
            (remote("b"), survey("10.1.0.1", "10.1.0.3", 6)),
        ])
    }

    #[test]
    fn a_local_cluster_is_reachable_only_from_its_machine() {
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
    fn remote_servers_dial_the_address_that_ssh_used() {
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
}
