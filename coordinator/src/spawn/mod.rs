//! Starting servers, and proving that they have ended.
//!
//! ```text
//!   plan -> arguments --+-> local: a child of this process, waited for
//!                       +-> adopted: a process that an earlier coordinator has started, by its pidfd
//!                       +-> ssh:   a remote script that starts it, waits for it, and prints
//!                                  `started <pid>` and `exited <pid> <status>`
//! ```

pub(crate) mod adopted;
pub(crate) mod local;
pub(crate) mod quote;
pub(crate) mod ssh;

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_daemon::files;
use kv_protocol::cluster_file::{Host, ServerLine};
use kv_protocol::exit_code::ServerExit;
use kv_protocol::{ClusterId, Member};

use crate::plan::{self, Plan};

/// The maximum number of bytes quoted from a server's output.
pub(crate) const MAX_QUOTED_BYTES: u64 = 2_048;
/// The maximum number of lines quoted from a server's log.
pub(crate) const MAX_QUOTED_LINES: usize = 8;

/// Arguments that make a server read the cluster's key from standard input. They are left out of commands that are
/// shown, because an operator who repeats the command has no key to enter.
const KEY_FROM_STANDARD_INPUT: [&str; 2] = ["--key-file", "-"];

/// The end of a server's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// A description for operators.
    pub(crate) how: String,
    /// The last lines of its output, if there are any.
    pub(crate) last_words: Option<String>,
    /// True if its exit status reports that everything it held is in complete dumps. `None` if that is unknown.
    pub(crate) in_order: Option<bool>,
}

impl Exit {
    /// Returns the exit of a process that was killed or never ran.
    pub(crate) fn without_dumps(how: String, last_words: Option<String>) -> Exit {
        Exit { how, last_words, in_order: Some(false) }
    }
}

/// Returns the arguments with which a server is started.
pub(crate) fn server_arguments(
    plan: &Plan,
    line: &ServerLine,
    cluster: ClusterId,
    member: Member,
    servers_port: u16,
) -> Vec<String> {
    let route = &plan.routes[usize::from(line.id.0)];
    let mut arguments: Vec<String> = Vec::new();
    let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    flag("-h", route.coordinator.to_string());
    flag("-m", servers_port.to_string());
    flag("-c", line.clients_port.to_string());
    flag("-s", line.servers_port.to_string());
    flag("-M", line.coord_port.to_string());
    flag("-S", line.id.to_string());
    flag("-n", plan.file.count().to_string());
    flag("-l", log_name(line));
    flag("--shards", plan.shards.to_string());
    flag("--cluster-id", cluster.to_string());
    flag("--incarnation", member.incarnation.to_string());
    flag("--bind", route.bind.to_string());
    flag("--advertise", route.advertise.to_string());
    flag("--orphan-timeout", plan.settings.orphan_timeout.as_secs_f64().to_string());
    flag("--net", plan.settings.net.to_string());
    flag("--failure-timeout", plan.settings.failure_timeout.as_secs_f64().to_string());
    flag("--share", plan::servers_on(&plan.file, &line.host).to_string());
    if let Some(limit) = &plan.settings.memory_limit {
        flag("--memory-limit", limit.clone());
    }
    if let Some(bytes) = &plan.settings.connection_memory {
        flag("--connection-memory", bytes.clone());
    }
    if plan.core_dumps {
        arguments.push("--core-dumps".to_owned());
    }
    arguments
}

/// Returns the name of a server's log in its working directory.
pub(crate) fn log_name(line: &ServerLine) -> String {
    format!("server_{}.log", line.id)
}

/// Returns the name of the file that receives a server's standard error.
pub(crate) fn error_name(line: &ServerLine) -> String {
    format!("server_{}.err", line.id)
}

/// Returns the command that starts a server, in a form that an operator can repeat.
pub(crate) fn command_line(plan: &Plan, line: &ServerLine, arguments: &[String]) -> String {
    match &line.host {
        Host::Local => {
            let words = std::iter::once(plan.binary.to_string_lossy().into_owned());
            let words: Vec<String> = words.chain(arguments.iter().cloned()).collect();
            format!("cd {} && {}", quote::word(&plan.dir.to_string_lossy()), quote::words(&words))
        }
        Host::Ssh { .. } => {
            let there = ssh::plain_command(&plan.ssh.remote_dir, arguments);
            format!("ssh {} {}", line.host, quote::word(&there))
        }
    }
}

/// Returns whether an exit status reports that everything the server held is in complete dumps.
pub(crate) fn is_in_order(status: i32) -> bool {
    ServerExit::from_code(status).is_some_and(ServerExit::is_in_order)
}

/// Describes an exit status of a server, or of the shell that was to start it.
pub(crate) fn describe_status(status: i32) -> String {
    let meaning = match (ServerExit::from_code(status), status) {
        (Some(exit), _) => exit.meaning(),
        (None, 126) => "its executable cannot be executed",
        (None, 127) => "its executable was not found",
        (None, _) => return format!("exit status {status}"),
    };
    format!("exit status {status}: {meaning}")
}

/// Describes the signal that ended a server.
pub(crate) fn describe_signal(signal: i32) -> String {
    let name = match signal {
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGBUS => " (SIGBUS)",
        libc::SIGFPE => " (SIGFPE)",
        libc::SIGHUP => " (SIGHUP)",
        libc::SIGILL => " (SIGILL)",
        libc::SIGINT => " (SIGINT)",
        libc::SIGKILL => " (SIGKILL: kill -9, or out of memory)",
        libc::SIGSEGV => " (SIGSEGV)",
        libc::SIGTERM => " (SIGTERM)",
        _ => "",
    };
    format!("killed by signal {signal}{name}")
}

/// The timeout for reading the end of a file, which may be on a stalled device.
const TAIL_PATIENCE: Duration = Duration::from_secs(1);

/// Returns [`tail`] of a file, read on a thread of its own. Returns `None` also if that takes too long.
async fn tail_apart(path: PathBuf, start: u64) -> Option<String> {
    let read = tokio::task::spawn_blocking(move || tail(&path, start));
    tokio::time::timeout(TAIL_PATIENCE, read).await.ok()?.ok()?
}

/// Returns the last lines of a file after an offset.
fn tail(path: &Path, start: u64) -> Option<String> {
    let mut file = files::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let from = length.saturating_sub(MAX_QUOTED_BYTES).max(start);
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut said = Vec::new();
    file.take(MAX_QUOTED_BYTES).read_to_end(&mut said).ok()?;
    last_lines(&said)
}

/// Returns the last few lines of a server's output, safe for a terminal, or `None` if there are none.
pub(crate) fn last_lines(said: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(MAX_QUOTED_LINES);
    let lines = lines[from..].iter().map(|line| printable(line));
    let lines: Vec<String> = lines.collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Escapes control characters and invisible characters in text from other sources, so that a terminal does not
/// interpret them.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c.is_control() || ('\u{200b}'..='\u{206f}').contains(&c) {
            true => c.escape_default().collect::<Vec<char>>(),
            false => vec![c],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use kv_protocol::cluster_file::ClusterFile;
    use kv_protocol::{Incarnation, ServerId};

    use super::*;
    use crate::plan::Route;
    use crate::settings::Settings;
    use crate::spawn::ssh::Ssh;

    fn plan() -> Plan {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let route = Route { coordinator: local, bind: local, advertise: local };
        Plan {
            file: ClusterFile::parse("3\nlocalhost 0 0 0\nkv@db 7 8 9\nlocalhost 0 0 0\n").unwrap(),
            dir: "/tmp/it is".into(),
            binary: "/opt/server".into(),
            ssh: Ssh { config: None, remote_dir: "kv dir".into() },
            shards: 2,
            settings: Settings {
                memory_limit: Some("1G".into()),
                connection_memory: Some("64M".into()),
                orphan_timeout: Duration::from_millis(500),
                ..Settings::default()
            },
            core_dumps: false,
            listen: local,
            routes: vec![route; 3],
        }
    }

    fn arguments(plan: &Plan, n: u16) -> Vec<String> {
        let member = Member { server: ServerId(n), incarnation: Incarnation(0xbeef) };
        server_arguments(plan, &plan.file.servers[usize::from(n)], ClusterId(0xc), member, 4_000)
    }

    #[test]
    fn a_server_is_told_everything_it_needs() {
        let words = arguments(&plan(), 1).join(" ");
        assert_eq!(
            words,
            "-h 127.0.0.1 -m 4000 -c 7 -s 8 -M 9 -S 1 -n 3 -l server_1.log --shards 2 \
             --cluster-id 0000000000000000000000000000000c --incarnation 000000000000beef \
             --bind 127.0.0.1 --advertise 127.0.0.1 --orphan-timeout 0.5 --net auto \
             --failure-timeout 0.5 --share 1 --memory-limit 1G --connection-memory 64M"
        );
    }

    #[test]
    fn the_command_shown_can_be_pasted_into_a_shell() {
        let plan = plan();
        let local = command_line(&plan, &plan.file.servers[0], &arguments(&plan, 0));
        assert!(local.starts_with("cd '/tmp/it is' && /opt/server -h 127.0.0.1 -m"), "{local}");
        let remote = command_line(&plan, &plan.file.servers[1], &arguments(&plan, 1));
        assert!(remote.starts_with("ssh kv@db 'cd '\\''kv dir'\\'' && ./server -h"), "{remote}");
    }

    #[test]
    fn last_words_are_few_and_harmless() {
        let said = (0..20).map(|n| format!("line {n}\n\n")).collect::<String>() + "\x1b[31mred\r\n";
        let quoted = last_lines(said.as_bytes()).unwrap();
        assert_eq!(quoted.lines().count(), MAX_QUOTED_LINES);
        assert!(quoted.ends_with("\\u{1b}[31mred"), "{quoted}");
        assert_eq!(last_lines(b"\n \n"), None);
    }
}
