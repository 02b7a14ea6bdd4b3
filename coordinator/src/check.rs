//! `--check`: checks whether a cluster could be started, without starting anything.

mod needs;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use kv_protocol::cluster_file::{ClusterFile, Host};
use kv_protocol::{Eviction, ServerId};

use crate::args::{Args, NetEngine};
use crate::failure::Failure;
use crate::printable::printable;
use crate::settings::Settings;
use crate::spawn::ssh::Ssh;
use crate::survey::{self, Limits, Survey};
use crate::{cluster_file, own_address, plan, restart};

/// The result of one check: its subject and its finding.
type Finding = (String, Result<String, String>);

/// The fixed ports of a host's servers, each with the server that is to listen on it.
type FixedPorts = BTreeMap<u16, ServerId>;

/// Carries out `--check`, `--check-file` or `--list-hosts`. `--check` prints a line for each finding.
pub(crate) async fn run(args: &Args) -> Result<(), Failure> {
    let file = cluster_file::read(args)?;
    if args.check_file {
        return Ok(());
    }
    let settings = restart::stored_settings(args).with(args);
    if args.list_hosts {
        return list_hosts(&file, &settings);
    }
    let mut findings: Vec<Finding> = Vec::new();
    for (port, flag) in [(args.clients_port, "-c"), (args.servers_port, "-s")] {
        if port != 0 {
            findings.push((format!("coordinator, port {port} ({flag})"), port_is_free(port)));
        }
    }
    findings.push((format!("coordinator, --dir {}", args.dir.display()), needs::dir(&args.dir)));
    if let Some(address) = settings.advertise {
        let found = own_address::check(address, args.servers_port).map(str::to_owned);
        findings.push((format!("coordinator, --advertise {address}"), found));
    }
    if let Some(ports) = &settings.redis_port {
        let found = settings.check_redis_ports(file.servers.len()).map(|()| ports.clone());
        findings.push(("ports for Redis clients".into(), found));
    }
    if let Some(dir) = settings.unix_dir() {
        let found = settings.check_unix(&file).map(|()| dir.display().to_string());
        findings.push(("directory of sockets".into(), found));
    }
    if settings.eviction != Eviction::None {
        findings.push(("eviction".into(), eviction(&settings)));
    }
    let ssh = Ssh::new(&settings);
    let surveys = survey::of_hosts(&file, &ssh).await;
    findings.extend(shared_ports(args, &file, &surveys));
    let known = surveys.iter();
    let known =
        known.filter_map(|(host, survey)| Some((host.clone(), survey.as_ref().ok()?.clone())));
    let shards = args.shards.unwrap_or_else(|| plan::default_shards(&file, &known.collect()));
    for (name, (host, ports)) in hosts(&file) {
        let servers = survey::servers_on(&file, host);
        let limits = match surveys.get(host) {
            None => Some(Limits::here()),
            Some(survey) => survey.as_ref().ok().map(|survey| survey.limits),
        };
        let needs = limits.map(|limits| limits.findings(servers, shards, settings.net));
        let needs = needs.into_iter().flatten();
        findings.extend(needs.map(|(what, found)| (format!("{name}, {what}"), found)));
        match surveys.get(host) {
            None => check_local(args, &name, servers, &ports, settings.net, &mut findings),
            Some(Err(error)) => findings.push((format!("{name}, ssh"), Err(error.clone()))),
            Some(Ok(survey)) => {
                let limit = match (&args.memory_limit, &survey.memory_limit) {
                    (Some(given), _) => Ok(format!("{given} by --memory-limit")),
                    (None, Some(limit)) => Ok(limit.clone()),
                    (None, None) => Err("no default limit reported; give --memory-limit".into()),
                };
                check_remote(&ssh, &name, survey, &ports, settings.net, &mut findings);
                findings.push((format!("{name}, memory limit"), limit));
            }
        }
    }
    print(&findings);
    match findings.iter().filter(|(_, found)| found.is_err()).count() {
        0 => Ok(()),
        bad => Err(Failure::Failed(format!("{bad} of {} checks failed", findings.len()))),
    }
}

/// Prints every ssh host once, in the order of the file. A line has the host in a form that ssh accepts, the servers'
/// directory, and the configuration file of ssh, if there is one.
fn list_hosts(file: &ClusterFile, settings: &Settings) -> Result<(), Failure> {
    let config = settings.ssh_config.as_ref().map(|path| path.display().to_string());
    let config = config.unwrap_or_default();
    let mut listed = HashSet::new();
    let mut out = std::io::stdout().lock();
    for host in file.servers.iter().map(|line| &line.host).filter(|host| **host != Host::Local) {
        if !listed.insert(host) {
            continue;
        }
        let shown = host.to_string();
        // ssh accepts an address in brackets only in a URI.
        let uri = if shown.contains('[') && !shown.starts_with("ssh://") { "ssh://" } else { "" };
        writeln!(out, "{uri}{shown}\t{}\t{config}", settings.remote_dir)
            .map_err(|error| Failure::Failed(format!("cannot print the hosts: {error}")))?;
    }
    Ok(())
}

/// Returns every host of the file with the fixed ports of its servers.
fn hosts(file: &ClusterFile) -> BTreeMap<String, (&Host, FixedPorts)> {
    let mut hosts = BTreeMap::new();
    for line in &file.servers {
        let (_, ports) =
            hosts.entry(line.host.to_string()).or_insert_with(|| (&line.host, FixedPorts::new()));
        let all = [line.clients_port, line.servers_port, line.coord_port];
        ports.extend(all.into_iter().filter(|&port| port != 0).map(|port| (port, line.id)));
    }
    hosts
}

/// Finds ports that the cluster file and the flags assign twice on one machine, even if the machine has several names.
fn shared_ports(
    args: &Args,
    file: &ClusterFile,
    surveys: &HashMap<Host, Result<Survey, String>>,
) -> Vec<Finding> {
    let machine = |host: &Host| match surveys.get(host) {
        None => "this machine".to_owned(),
        Some(Ok(Survey { its_address: Some(ip), .. })) if own_address::is_own(*ip) => {
            "this machine".to_owned()
        }
        Some(Ok(Survey { its_address: Some(ip), .. })) => ip.to_string(),
        Some(_) => host.to_string(),
    };
    let own =
        [(args.clients_port, "the coordinator's -c"), (args.servers_port, "the coordinator's -s")];
    let own = own.map(|(port, name)| ("this machine".to_owned(), port, name.to_owned()));
    let all = file.servers.iter().flat_map(|line| {
        let ports = [line.clients_port, line.servers_port, line.coord_port];
        ports
            .map(|port| (machine(&line.host), port, format!("server {} on {}", line.id, line.host)))
    });
    let mut taken: HashMap<(String, u16), String> = HashMap::new();
    let mut findings = Vec::new();
    for (machine, port, name) in own.into_iter().chain(all).filter(|(_, port, _)| *port != 0) {
        if let Some(other) = taken.insert((machine.clone(), port), name.clone()) {
            let words = format!(
                "{other} has the same port on the same machine ({machine}); choose another port"
            );
            findings.push((format!("{name}, port {port}"), Err(words)));
        }
    }
    findings
}

/// Checks that eviction can have an effect.
fn eviction(settings: &Settings) -> Result<String, String> {
    match settings.useless_eviction() {
        Some(warning) => Err(warning),
        None => Ok(format!("{} by --eviction", settings.eviction)),
    }
}

fn print(findings: &[Finding]) {
    let mut out = std::io::stdout().lock();
    for (what, found) in findings {
        let _ = match found {
            Ok(words) => writeln!(out, "ok      {what}: {words}"),
            Err(words) => writeln!(out, "FAILED  {what}: {words}"),
        };
    }
}

fn check_local(
    args: &Args,
    name: &str,
    servers: usize,
    ports: &FixedPorts,
    net: NetEngine,
    findings: &mut Vec<Finding>,
) {
    let binary = plan::binary(args);
    let limit = match (&args.memory_limit, &binary) {
        (Some(given), _) => Ok(format!("{given} by --memory-limit")),
        (None, Ok(path)) => default_limit(path, servers),
        (None, Err(error)) => Err(error.clone()),
    };
    let binary = binary.map(|path| path.display().to_string());
    findings.push((format!("{name}, server binary"), binary));
    findings.push((format!("{name}, memory limit"), limit));
    findings.push((format!("{name}, io_uring"), needs::only_for_uring(net, io_uring_works())));
    for (&port, server) in ports {
        findings.push((format!("{name}, server {server}, port {port}"), port_is_free(port)));
    }
}

fn check_remote(
    ssh: &Ssh,
    name: &str,
    survey: &Survey,
    ports: &FixedPorts,
    net: NetEngine,
    findings: &mut Vec<Finding>,
) {
    let reached = match (survey.its_address, survey.our_address) {
        (Some(its), Some(ours)) => {
            Ok(format!("reached at {its}; that host reaches this machine at {ours}"))
        }
        (Some(its), None) => Ok(format!("reached at {its}; give --advertise")),
        (None, _) => Err("its address is not known; write the address instead of the name".into()),
    };
    findings.push((format!("{name}, ssh"), reached));
    let dir = &ssh.remote_dir;
    let own = env!("CARGO_PKG_VERSION");
    let binary = match &survey.version {
        _ if !survey.has_dir => Err(format!("there is no directory {dir}; check --remote-dir")),
        _ if !survey.is_writable => Err(format!(
            "the user of the login cannot write to {dir}; change its mode or its owner"
        )),
        _ if !survey.has_binary => Err(format!(
            "there is no executable {dir}/server; copy it there, as scripts/launch-cluster.sh does"
        )),
        None => Err(format!(
            "{dir}/server cannot be executed on that host; check that it was built for that machine"
        )),
        Some(version) if version != own => Err(format!(
            "the version of {dir}/server is {version}, not {own}; copy this version to that host"
        )),
        Some(version) => Ok(format!("{dir}/server, version {version}")),
    };
    findings.push((format!("{name}, server binary"), binary));
    findings
        .push((format!("{name}, io_uring"), needs::only_for_uring(net, io_uring_allowed(survey))));
    for (&port, server) in ports {
        let found = match survey.listening.contains(&port) {
            true => Err("another process listens on it; stop it or choose another port".into()),
            false => Ok("free".into()),
        };
        findings.push((format!("{name}, server {server}, port {port}"), found));
    }
}

/// Returns the memory limit that a server on this machine reports as its default.
fn default_limit(binary: &Path, servers: usize) -> Result<String, String> {
    let mut command = std::process::Command::new(binary);
    command.arg("--show-memory-limit").arg(servers.to_string());
    let output =
        command.output().map_err(|error| format!("cannot start {}: {error}", binary.display()))?;
    match output.status.success() {
        true => Ok(printable(String::from_utf8_lossy(&output.stdout).trim())),
        false => Err(format!(
            "{} reports no default limit; check that its version is that of this program",
            binary.display()
        )),
    }
}

fn port_is_free(port: u16) -> Result<String, String> {
    // A bind to all addresses fails if any other process listens on the port, at whatever address.
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    match std::net::TcpListener::bind(address) {
        Ok(_) => Ok("free".into()),
        Err(error) => Err(format!("{error}; choose another port, or 0 for any free one")),
    }
}

fn io_uring_allowed(survey: &Survey) -> Result<String, String> {
    let kernel = &survey.kernel;
    match survey.io_uring_disabled {
        Some(0) => Ok(format!("allowed (kernel {kernel})")),
        Some(1) => {
            Err("allowed only for privileged processes (kernel.io_uring_disabled = 1); set it to 0"
                .into())
        }
        Some(_) => Err("disabled (kernel.io_uring_disabled = 2); set it to 0".into()),
        None if kernel_is_at_least(kernel, URING_KERNEL) => Ok(format!("kernel {kernel}")),
        None => Err(format!("kernel {kernel} is too old; install 6.1 or later")),
    }
}

fn kernel_is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= wanted,
        _ => false,
    }
}

/// The first kernel with all io_uring features that the network engine uring needs.
const URING_KERNEL: (u32, u32) = (6, 1);

/// Tests io_uring by creating the smallest possible ring. No other test detects that a container forbids io_uring.
fn io_uring_works() -> Result<String, String> {
    // The size of struct io_uring_params (io_uring_setup(2)) is 120 bytes; zeros select the defaults.
    let mut parameters = [0u64; 15];
    // SAFETY: the kernel reads and writes only the 120 bytes of the array.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(format!("{error}; {}", io_uring_advice(&error)));
    }
    let descriptor = i32::try_from(result).expect("descriptors fit 32 bits");
    // SAFETY: the kernel has just created the descriptor for this process, and nothing else owns it.
    drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(descriptor) });
    Ok("works".into())
}

fn io_uring_advice(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            "the kernel has no io_uring (it needs Linux 6.1 or later), or a seccomp profile blocks it (to try \
             it in Docker: --security-opt seccomp=unconfined)"
        }
        Some(libc::ENOMEM) => "raise the limit of locked memory (ulimit -l, LimitMEMLOCK=)",
        Some(libc::EMFILE | libc::ENFILE) => "raise the number of open files (ulimit -n)",
        _ => "check sysctl kernel.io_uring_disabled, and the container's seccomp profile",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(port_is_free(port).is_err());
        drop(listener);
        assert!(port_is_free(port).is_ok());
    }

    #[test]
    fn the_advice_fits_the_error_of_io_uring() {
        let advice = |code| io_uring_advice(&std::io::Error::from_raw_os_error(code));
        assert!(advice(libc::ENOSYS).contains("seccomp"));
        assert!(advice(libc::EPERM).contains("seccomp"));
        assert!(
            !advice(libc::ENOMEM).contains("seccomp"),
            "ENOMEM is about the limit of locked memory"
        );
    }

    #[test]
    fn a_port_used_twice_on_a_machine_with_two_names_is_found() {
        use clap::Parser as _;
        let args = Args::try_parse_from("coord -C file -c 7 -s 8".split(' ')).unwrap();
        let text = "3\nlocalhost 7 0 0\nkv@a 8 9 0\nkv@b 9 0 0\n";
        let file = ClusterFile::parse(text).unwrap();
        let at =
            |ip: &str| Ok(Survey { its_address: Some(ip.parse().unwrap()), ..Survey::default() });
        let hosts: Vec<Host> = file.servers.iter().map(|line| line.host.clone()).collect();
        let one = [(hosts[1].clone(), at("192.0.2.1")), (hosts[2].clone(), at("192.0.2.1"))];
        let found = shared_ports(&args, &file, &one.into_iter().collect());
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["server 0 on localhost, port 7", "server 2 on kv@b, port 9"]);
        let two = [(hosts[1].clone(), at("127.0.0.1")), (hosts[2].clone(), at("192.0.2.1"))];
        let found = shared_ports(&args, &file, &two.into_iter().collect());
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["server 0 on localhost, port 7", "server 1 on kv@a, port 8"]);
    }

    #[test]
    fn kernels_are_compared_by_number() {
        for (release, enough) in [
            ("6.8.0-generic", true),
            ("5.10", true),
            ("5.7.19", false),
            ("4.18.0", false),
            ("", false),
        ] {
            assert_eq!(kernel_is_at_least(release, (5, 8)), enough, "{release}");
        }
    }

    #[test]
    fn every_host_is_checked_once_with_all_its_ports() {
        let text = "4\nlocalhost 1 0 2\nkv@a 7 0 0\nlocalhost 3 0 0\nkv@a 0 8 0\n";
        let file = ClusterFile::parse(text).unwrap();
        let hosts = hosts(&file);
        let ports = |name: &str| {
            let ports = hosts[name].1.iter();
            ports.map(|(port, server)| (*port, server.0)).collect::<Vec<_>>()
        };
        assert_eq!(ports("localhost"), [(1, 0), (2, 0), (3, 2)]);
        assert_eq!(ports("kv@a"), [(7, 1), (8, 3)]);
    }
}
