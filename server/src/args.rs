//! The command line of `server`.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{ArgAction, CommandFactory, FromArgMatches as _, Parser, error::ErrorKind};
use kv_daemon::identity::Process;
use kv_protocol::exit_code::ServerExit;
use kv_protocol::failure_timeout::FAILURE_TIMEOUT_SECONDS;
use kv_protocol::ids::{ClusterId, Incarnation};
use kv_protocol::limits::{
    CONNECTION_MEMORY_MIN, MAX_SERVERS, MAX_SHARDS, MIN_SERVERS, ORPHAN_SECONDS,
    REDIS_DEADLINE_SECONDS,
};
use kv_protocol::{Eviction, FailureTimeout, RedisMulti};

use crate::load::{self, LoadSource};
use crate::memory::limit::{MemoryLimit, parse_bytes, parse_memory_limit};
use crate::watch::Question;

/// One storage server of a cluster. The coordinator starts it; a manual start is useful only for diagnosis.
#[derive(Clone, Debug, Parser)]
#[command(name = "server", version, disable_help_flag = true, after_help = exit_codes())]
pub struct Args {
    /// Host of the coordinator.
    #[arg(short = 'h', long, value_name = "HOST")]
    pub coordinator_host: String,

    /// The coordinator's port for servers.
    #[arg(short = 'm', long, value_name = "PORT")]
    pub coordinator_port: u16,

    /// Port for clients; 0 selects a free one.
    #[arg(short = 'c', long, value_name = "PORT", default_value_t = 0)]
    pub clients_port: u16,

    /// Port for other servers; 0 selects a free one.
    #[arg(short = 's', long, value_name = "PORT", default_value_t = 0)]
    pub servers_port: u16,

    /// Port for the coordinator's orders; 0 selects a free one.
    #[arg(short = 'M', long, value_name = "PORT", default_value_t = 0)]
    pub coord_port: u16,

    /// Port for Redis clients only; 0 selects a free one, which the log names. The port for clients speaks Redis too.
    #[arg(long, value_name = "PORT")]
    pub redis_port: Option<u16>,

    /// Seconds (fractions allowed) for which a command of a Redis client waits for a server that serves its key.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_redis_deadline)]
    pub redis_deadline: Duration,

    /// Treatment of transactions of Redis clients with keys of several shards: `refuse` rejects their commands, `ordered`
    /// executes them one after the other, without isolation.
    #[arg(long, value_name = "TREATMENT", default_value_t = RedisMulti::Refuse,
        value_parser = PossibleValuesParser::new(RedisMulti::ALL.map(RedisMulti::name)).try_map(|name| name.parse::<RedisMulti>()))]
    pub redis_multi: RedisMulti,
    /// Directory of the Unix-domain socket for clients, `server_ID.sock` with mode 0660. It speaks what the port for
    /// clients speaks. A socket that a dead server left is replaced. The socket is removed at an orderly stop.
    #[arg(long, value_name = "DIR")]
    pub unix: Option<PathBuf>,

    /// Id of this server: its place in the ring, counted from 0.
    #[arg(short = 'S', long, value_name = "ID")]
    pub id: u16,

    /// Number of servers in the ring.
    #[arg(short = 'n', long, value_name = "COUNT",
        value_parser = clap::value_parser!(u16).range(i64::from(MIN_SERVERS)..=i64::from(MAX_SERVERS)))]
    pub servers: u16,

    /// Log file, which is appended to. Default: standard error. KV_LOG sets the level (error, warn, info, debug,
    /// trace). SIGHUP reopens the file.
    #[arg(short = 'l', long, value_name = "FILE")]
    pub log: Option<PathBuf>,

    /// Number of shards of every group, with one executor thread each; the same on all servers.
    #[arg(long, value_name = "COUNT", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_SHARDS)))]
    pub shards: u16,

    /// Place a key by its hash tag, the part between its first `{` and the next `}`, if there is one; the same on all
    /// servers.
    #[arg(long)]
    pub hash_tags: bool,

    /// Memory limit of all tables together, such as 512M or 4GiB, shared equally by the primary and the secondary table
    /// of every shard; `none` for no limit. Default: four fifths of the memory that this machine or the cgroup has for
    /// servers, divided by --share, less 24 MiB for the process.
    #[arg(long, value_name = "BYTES", value_parser = parse_memory_limit)]
    pub memory_limit: Option<MemoryLimit>,

    /// Policy of full tables for writes that need memory: `none` rejects the writes, `lfu` removes entries that are seldom
    /// used, `ttl` removes the entries with the nearest deadlines. The coordinator may change it later.
    #[arg(long, value_name = "POLICY", default_value_t = Eviction::None,
        value_parser = PossibleValuesParser::new(Eviction::ALL.map(Eviction::name)).try_map(|name| name.parse::<Eviction>()))]
    pub eviction: Eviction,

    /// Number of servers of the cluster that share the memory of this machine; set by the coordinator.
    #[arg(long, value_name = "COUNT", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_SERVERS)))]
    pub share: u16,

    /// Memory limit of clients' connections, for partly received requests and unsent responses, such as 128M; at least
    /// 40M. It is part of the memory limit. Default: a quarter of the memory limit but at least 40M, or 256M without a
    /// memory limit.
    #[arg(long, value_name = "BYTES", value_parser = parse_connection_memory)]
    pub connection_memory: Option<u64>,

    /// Address to listen on. Default: 127.0.0.1 if the coordinator's host is localhost or a loopback address, else all
    /// IPv4 addresses.
    #[arg(long, value_name = "IP")]
    pub bind: Option<IpAddr>,

    /// Address at which clients and servers reach this server. Default: the address of --bind or its default; if that
    /// means all addresses, the local address of the connection to the coordinator.
    #[arg(long, value_name = "IP")]
    pub advertise: Option<IpAddr>,

    /// Id of the cluster (32 hex digits); set by the coordinator.
    #[arg(long, value_name = "HEX", default_value = "0")]
    pub cluster_id: ClusterId,

    /// File with the key of the cluster, 32 hex digits on its first line; `-` for standard input. The coordinator
    /// passes it through a pipe. Default: the key 0, which no coordinator uses.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,

    /// Allow core dumps and debuggers of the same user, which can show the cluster's key and all data.
    #[arg(long)]
    pub core_dumps: bool,

    /// Incarnation of this process (16 hex digits); set by the coordinator. Default: random.
    #[arg(long, value_name = "HEX")]
    pub incarnation: Option<Incarnation>,

    /// Seconds (fractions allowed) without a coordinator; 0 for no limit. After this time, the server tries to connect
    /// once more, dumps both tables and exits. A server with the only copy of a group continues.
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = parse_orphan_timeout)]
    pub orphan_timeout: Duration,

    /// Failure timeout of the cluster in seconds (fractions allowed), which determines the leases; set by the
    /// coordinator, and the same for all processes.
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = parse_failure_timeout)]
    pub failure_timeout: FailureTimeout,

    /// Network engine: `uring` (io_uring, Linux 6.1 and later), `epoll` (any Linux), or `auto`: uring if a trial at the
    /// start succeeds, else epoll. The log names the engine, the reason, and how to allow uring.
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t = NetEngine::Auto)]
    pub net: NetEngine,

    /// Wait for this process to exit instead of serving, then print `exited PID unknown`. A process is written as
    /// PID:START_TIME:NAMESPACE:INCARNATION; --name gives the first three. Exits with status 1 when the other end of
    /// the standard input or output of this program closes.
    #[arg(long, value_name = "PROCESS", exclusive = true)]
    watch: Option<Process>,

    /// Print `lives PID START_TIME` or `gone PID START_TIME` for each of these processes instead of serving. If neither
    /// is proven for a process, no line is printed for it, and the exit status is 1.
    #[arg(long, value_name = "PROCESS", num_args = 1.., exclusive = true)]
    look: Vec<Process>,

    /// Kill this process, wait for its end, and print `gone PID START_TIME` instead of serving.
    #[arg(long, value_name = "PROCESS", exclusive = true)]
    end: Option<Process>,

    /// Print `started PID START_TIME NAMESPACE` for the process with this id instead of serving.
    #[arg(long, value_name = "PID", exclusive = true)]
    name: Option<u32>,

    /// Print `dumped CLUSTER GROUP SERVER` for each of these dumps that the process with this incarnation has
    /// completed, instead of serving. The exit status is 1 if one of its dumps is incomplete, or if a file cannot be
    /// read.
    #[arg(long, value_names = ["INCARNATION", "FILE"], num_args = 2.., exclusive = true)]
    dumped: Vec<String>,

    /// Print the default of --memory-limit for one of COUNT servers on this machine, and its reason, instead of
    /// serving.
    #[arg(long, value_name = "COUNT", exclusive = true,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_SERVERS)))]
    show_memory_limit: Option<u16>,

    /// Load shards of a group from a dump: `<group>:<shard>,<shard>…:<file>`, repeated until every shard of the group
    /// is named once. Set by the coordinator when it restores a cluster.
    #[arg(long, value_name = "SOURCE")]
    pub load: Vec<LoadSource>,

    /// Print this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// The choice of the network engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum NetEngine {
    /// uring where it works, else epoll.
    Auto,
    /// io_uring; the server does not start without it.
    Uring,
    /// epoll, without any io_uring.
    Epoll,
}

/// The requested mode of the program.
#[derive(Clone, Debug)]
pub enum Invocation {
    /// A server.
    Serve(Box<Args>),
    /// A query about other processes.
    Ask(Question),
    /// The default memory limit of a server, if this number of servers share the machine.
    ShowMemoryLimit(u16),
}

impl Invocation {
    /// Parses a command line that begins with the program's name.
    ///
    /// # Errors
    /// The usage error to print, or the requested help or version.
    pub fn read(
        line: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Invocation, clap::Error> {
        let matches = Args::command().try_get_matches_from(line)?;
        let one = |name: &str| matches.get_one::<Process>(name).copied();
        let looked_at: Vec<Process> =
            matches.get_many("look").into_iter().flatten().copied().collect();
        let question = match (one("watch"), one("end"), matches.get_one::<u32>("name")) {
            (Some(process), ..) => Some(Question::Watch(process)),
            (_, Some(process), _) => Some(Question::End(process)),
            (.., Some(pid)) => Some(Question::Name(*pid)),
            _ => Some(Question::Look(looked_at)).filter(|look| *look != Question::Look(Vec::new())),
        };
        let words: Vec<String> =
            matches.get_many("dumped").into_iter().flatten().cloned().collect();
        if let [writer, files @ ..] = &words[..] {
            let writer = writer.parse().map_err(|_| {
                let words = format!("--dumped: `{writer}` is not an incarnation (16 hex digits)\n");
                Args::command().error(clap::error::ErrorKind::ValueValidation, words)
            })?;
            let files = files.iter().map(PathBuf::from).collect();
            return Ok(Invocation::Ask(Question::Dumped(writer, files)));
        }
        if let Some(question) = question {
            return Ok(Invocation::Ask(question));
        }
        if let Some(share) = matches.get_one("show_memory_limit") {
            return Ok(Invocation::ShowMemoryLimit(*share));
        }
        let args = Args::from_arg_matches(&matches)?.validate()?;
        Ok(Invocation::Serve(Box::new(args)))
    }
}

impl Args {
    /// Checks the relations between the arguments, which clap cannot check.
    ///
    /// # Errors
    /// The usage error to print.
    pub fn validate(self) -> Result<Args, clap::Error> {
        if self.id >= self.servers {
            let message = format!(
                "--id {} is not in a ring of {} servers; the last one has id {}\n",
                self.id,
                self.servers,
                self.servers - 1
            );
            return Err(Args::command().error(ErrorKind::ValueValidation, message));
        }
        if let Err(reason) = load::check_sources(&self.load, self.id, self.servers, self.shards) {
            let message = format!("--load: {reason}\n");
            return Err(Args::command().error(ErrorKind::ValueValidation, message));
        }
        Ok(self)
    }

    /// Returns the address to listen on: `--bind` or its default.
    pub fn listen_address(&self) -> IpAddr {
        let host = self.coordinator_host.as_str();
        let is_here = host == "localhost"
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        self.bind.unwrap_or(match is_here {
            true => IpAddr::V4(Ipv4Addr::LOCALHOST),
            false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        })
    }
}

/// Returns the end of the help text: the exit codes.
fn exit_codes() -> String {
    let lines = ServerExit::ALL.map(|exit| format!("\n  {:>3}  {}", exit.code(), exit.meaning()));
    format!("Exit codes (docs/exit-codes.md):{}", lines.concat())
}

fn parse_orphan_timeout(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if seconds != 0.0 && !ORPHAN_SECONDS.contains(&seconds) {
        let (least, most) = (ORPHAN_SECONDS.start(), ORPHAN_SECONDS.end());
        return Err(format!("it is out of range; give 0 for never, or {least} to {most} seconds"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn parse_redis_deadline(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if !REDIS_DEADLINE_SECONDS.contains(&seconds) {
        let (least, most) = (REDIS_DEADLINE_SECONDS.start(), REDIS_DEADLINE_SECONDS.end());
        return Err(format!("{text} s is out of range; write {least} to {most}"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn parse_failure_timeout(text: &str) -> Result<FailureTimeout, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if !FAILURE_TIMEOUT_SECONDS.contains(&seconds) {
        let (least, most) = (FAILURE_TIMEOUT_SECONDS.start(), FAILURE_TIMEOUT_SECONDS.end());
        return Err(format!("it is out of range; give {least} to {most} seconds"));
    }
    Ok(FailureTimeout::new(Duration::from_secs_f64(seconds)))
}

fn parse_connection_memory(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        bytes @ CONNECTION_MEMORY_MIN.. => Ok(bytes),
        _ => Err(format!(
            "`{text}` is less than the size of two of the longest requests; give at least 40M"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' ')).and_then(Args::validate)
    }

    const FIRST: &str = "server -h localhost -m 4000 -S 1 -n 3";

    #[test]
    fn the_short_and_long_forms_agree() {
        let short = parse(
            "server -h h -m 1 -c 2 -s 3 -M 4 -S 5 -n 6 -l log --shards 2 --cluster-id ab \
             --incarnation cd",
        )
        .unwrap();
        let long = parse(
            "server --coordinator-host h --coordinator-port 1 --clients-port 2 --servers-port 3 \
             --coord-port 4 --id 5 --servers 6 --log log --shards 2 --cluster-id ab \
             --incarnation cd",
        )
        .unwrap();
        assert_eq!(format!("{short:?}"), format!("{long:?}"));
        assert_eq!(long.cluster_id, ClusterId(0xab));
        assert_eq!(long.incarnation, Some(Incarnation(0xcd)));
    }

    #[test]
    fn an_id_outside_the_ring_is_a_usage_error() {
        let error = parse("server -h localhost -m 1 -S 3 -n 3").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("the last one has id 2"), "{error}");
    }

    #[test]
    fn only_whole_groups_of_this_server_are_loaded() {
        let load = |sources: &[&str]| {
            let flags: Vec<String> = sources.iter().map(|s| format!(" --load {s}")).collect();
            parse(&format!("{FIRST} --shards 3{}", flags.join("")))
        };
        let args = load(&["1:0,2:/a:b/server_1.primary", "1:1:x", "0:2,1,0:y"]).unwrap();
        assert_eq!(args.load[0].group.0, 1);
        assert_eq!(args.load[0].shards.iter().map(|shard| shard.0).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(args.load[0].file.to_str(), Some("/a:b/server_1.primary"));
        for (wrong, words) in [
            (&["1:0,1:x"][..], "shard 2 of group 1"),
            (&["1:0,1,2:x", "1:1:y"], "shard 1 of group 1"),
            (&["1:0,1,2,3:x"], "shard 3"),
            (&["2:0,1,2:x"], "group 2"),
            (&["1:0,1,2:"], "<group>:"),
            (&["1:0"], "<group>:"),
            (&["x:0:y"], "<group>:"),
            (&["1::y"], "<group>:"),
        ] {
            let error = load(wrong).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong:?}");
            assert!(error.to_string().contains(words), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn show_memory_limit_takes_only_the_number_of_servers() {
        let read = |line: &str| Invocation::read(line.split(' '));
        let shown = read("server --show-memory-limit 3").unwrap();
        assert!(matches!(shown, Invocation::ShowMemoryLimit(3)), "{shown:?}");
        for wrong in ["server --show-memory-limit 0", "server --show-memory-limit 3 -S 1"] {
            assert_eq!(read(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn an_orphan_timeout_is_zero_for_never_or_at_least_a_second() {
        let timeout = |text| parse(&format!("{FIRST} --orphan-timeout {text}"));
        assert_eq!(parse(FIRST).unwrap().orphan_timeout, Duration::from_secs(3_600));
        assert_eq!(timeout("0").unwrap().orphan_timeout, Duration::ZERO);
        assert_eq!(timeout("1.5").unwrap().orphan_timeout, Duration::from_millis(1_500));
        for wrong in ["0.9", "-1", "NaN", "inf", "1e12", "x"] {
            let error = parse(&format!("{FIRST} --orphan-timeout={wrong}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn the_help_lists_every_exit_code() {
        let help = Args::command().render_long_help().to_string();
        for exit in ServerExit::ALL {
            let line = format!("{:>3}  {}", exit.code(), exit.meaning());
            assert!(help.contains(&line), "{line}: {help}");
        }
    }

    #[test]
    fn a_server_listens_on_loopback_only_for_a_local_coordinator() {
        let local = parse(FIRST).unwrap();
        assert!(local.listen_address().is_loopback());
        let remote = parse("server -h kv.example -m 4000 -S 1 -n 3").unwrap();
        assert!(remote.listen_address().is_unspecified());
        let told = parse("server -h kv.example -m 4000 -S 1 -n 3 --bind 10.0.0.1").unwrap();
        assert_eq!(told.listen_address().to_string(), "10.0.0.1");
    }

    #[test]
    fn watch_excludes_other_arguments_and_needs_none() {
        let read = |line: &str| Invocation::read(line.split(' '));
        let process = |text: &str| text.parse::<Process>().unwrap();
        let one = process("12:34:56:ab");
        for (line, expected) in [
            ("server --watch 12:34:56:ab", Question::Watch(one)),
            ("server --end 12:34:56:ab", Question::End(one)),
            ("server --look 12:34:56:ab 1:2:3:4", Question::Look(vec![one, process("1:2:3:4")])),
            ("server --name 12", Question::Name(12)),
        ] {
            let Ok(Invocation::Ask(question)) = read(line) else { panic!("{line}") };
            assert_eq!(question, expected);
        }
        assert!(matches!(read(FIRST), Ok(Invocation::Serve(args)) if args.id == 1));
        for wrong in [
            "server",
            "server --watch 1",
            "server --watch 1:2:3:4 -S 1",
            "server --end 4294967296:1:1:1",
        ] {
            assert_eq!(read(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn every_argument_is_documented() {
        for argument in Args::command().get_arguments() {
            assert!(argument.get_help().is_some(), "{} has no help", argument.get_id());
        }
    }
}
