//! `coord status`: asks a running coordinator, and prints tables.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use comfy_table::{CellAlignment, Table};
use kv_protocol::client_message::{Hello, Question, Refusal, opcode};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::Member;
use kv_protocol::limits::MAX_ANSWER_BODY;
use kv_protocol::map::ServerState;
use kv_protocol::status::{ClusterState, ClusterStatus, GroupCondition, GroupStatus, ServerStatus};
use kv_protocol::{ClientId, ClusterId, ShardId};

use crate::Failure;
use crate::args::StatusArgs;
use crate::random;
use crate::spawn::printable;

/// How long connecting, and each read, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Prints the status of the cluster asked for.
pub(crate) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let json = fetch(args).map_err(|reason| {
        Failure::Failed(format!(
            "ask the coordinator at {}, port {}: {reason}; check -h and -p, and that it runs",
            printable(&args.host),
            args.port
        ))
    })?;
    let text = if args.json { format!("{}\n", printable(&json)) } else { render(&parse(&json)?) };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("print the status: {error}")))
        }
        _ => Ok(()),
    }
}

fn parse(json: &str) -> Result<ClusterStatus, Failure> {
    serde_json::from_str(json)
        .map_err(|error| Failure::Failed(format!("read the coordinator's status: {error}")))
}

fn fetch(args: &StatusArgs) -> Result<String, String> {
    let mut stream = connect(&args.host, args.port)?;
    let patience = Some(PATIENCE);
    stream
        .set_read_timeout(patience)
        .and_then(|()| stream.set_write_timeout(patience))
        .map_err(|error| error.to_string())?;
    let client = random::nonzero_u128().map_err(|_| "no random number".to_owned())?;
    let mut bytes = Vec::new();
    Hello { cluster: ClusterId::default(), client: ClientId(client), shard: ShardId(0) }
        .write(&mut bytes);
    Question::Status.write(&mut bytes);
    stream.write_all(&bytes).map_err(|error| error.to_string())?;
    let mut buffer = FrameBuffer::new(FrameRules::unchecked(MAX_ANSWER_BODY));
    let mut received = [0; 16 << 10];
    loop {
        while let Some(frame) = buffer.next_frame().map_err(|error| error.to_string())? {
            match frame.opcode {
                opcode::WELCOME => {}
                opcode::STATUS_ANSWER => {
                    return String::from_utf8(frame.body.to_vec()).map_err(|e| e.to_string());
                }
                opcode::ERROR => {
                    let refusal = Refusal::read(frame.body).map_err(|error| error.to_string())?;
                    return Err(format!("it refused: {}", printable(refusal.reason)));
                }
                other => return Err(format!("it answered with opcode {other:#04x}")),
            }
        }
        match stream.read(&mut received) {
            Ok(0) => return Err("it closed the connection; is that its port for clients?".into()),
            Ok(count) => buffer.extend(&received[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(format!("no answer within {} s", PATIENCE.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let addresses = (host, port).to_socket_addrs().map_err(|error| error.to_string())?;
    let mut last = "the name has no address".to_owned();
    for address in addresses.collect::<Vec<SocketAddr>>() {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// The status as people read it.
fn render(status: &ClusterStatus) -> String {
    let state = match status.state {
        ClusterState::Starting => "starting",
        ClusterState::Serving => "serving",
        ClusterState::Degraded => "degraded",
        ClusterState::Stopping => "stopping",
    };
    format!(
        "cluster {}: {state}, {} servers, {} shard{} a group\n\n{}\n\n{}\n",
        status.cluster,
        status.servers.len(),
        status.shards,
        if status.shards == 1 { "" } else { "s" },
        servers_table(&status.servers),
        groups_table(&status.groups)
    )
}

/// A table whose columns from `first_number` on are numbers. Without borders, which a narrow terminal
/// would break into a heap of lines.
fn table(header: &[&str], first_number: usize) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.to_vec());
    for (n, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if n >= first_number {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn servers_table(servers: &[ServerStatus]) -> Table {
    let header = [
        "server",
        "host",
        "state",
        "clients at",
        "pid",
        "primary",
        "secondary",
        "memory",
        "clients",
        "requests",
        "heard",
    ];
    let mut table = table(&header, 4);
    for server in servers {
        let text = |text: &Option<String>| text.as_deref().map_or("-".into(), printable);
        // What a server said before it was lost is not what it has.
        let is_down = server.state == ServerState::Down;
        let counted = |number: String| if is_down { "-".to_owned() } else { number };
        table.add_row([
            server.id.to_string(),
            printable(&server.host),
            match server.recovery_step {
                Some(step) => format!("{}, step {step}", state(server.state)),
                None => state(server.state).into(),
            },
            text(&server.clients),
            server.pid.map_or("-".into(), |pid| pid.to_string()),
            counted(server.primary_entries.to_string()),
            counted(server.secondary_entries.to_string()),
            counted(bytes(server.resident_bytes)),
            counted(server.client_connections.to_string()),
            counted(server.requests.to_string()),
            server.heartbeat_age_ms.map_or("never".into(), age),
        ]);
    }
    table
}

fn groups_table(groups: &[GroupStatus]) -> Table {
    let mut table =
        table(&["group", "view", "primary", "secondary", "state", "copies", "entries", "bytes"], 5);
    let holder = |member: Option<Member>| {
        member.map_or("-".into(), |member: Member| format!("server {}", member.server))
    };
    for group in groups {
        table.add_row([
            group.group.to_string(),
            group.view.to_string(),
            holder(group.primary),
            match group.candidate {
                Some(candidate) => format!("copying to {}", candidate.server),
                None => holder(group.secondary),
            },
            condition(group.condition).into(),
            group.copies.to_string(),
            group.entries.to_string(),
            bytes(group.bytes),
        ]);
    }
    table
}

fn condition(condition: GroupCondition) -> &'static str {
    match condition {
        GroupCondition::Starting => "starting",
        GroupCondition::Whole => "whole",
        GroupCondition::Degraded => "degraded",
        GroupCondition::Unreachable => "UNREACHABLE",
        GroupCondition::Lost => "LOST",
    }
}

fn state(state: ServerState) -> &'static str {
    match state {
        ServerState::Starting => "starting",
        ServerState::Up => "up",
        ServerState::Down => "DOWN",
    }
}

fn age(millis: u64) -> String {
    match millis {
        0..10_000 => format!("{millis} ms"),
        _ => format!("{} s", millis / 1_000),
    }
}

/// A number of bytes with at most four digits.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1_024 {
        return format!("{count} B");
    }
    let mut unit = 0;
    // In tenths of the unit; u128 holds ten times any count.
    let mut tenths = u128::from(count) * 10 / 1_024;
    while tenths >= 10_240 {
        tenths /= 1_024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::{BootId, Epoch, GroupId, Incarnation, ServerId, ViewVersion};

    fn status() -> ClusterStatus {
        let server = |id: u16, state| ServerStatus {
            id: ServerId(id),
            host: if id == 2 { "kv@\x1b[31mdb".into() } else { "localhost".into() },
            state,
            incarnation: Some(Incarnation(1)),
            pid: (id != 1).then_some(4_711),
            clients: Some("127.0.0.1:7000".into()),
            servers: None,
            coord: None,
            primary_entries: 123_456,
            secondary_entries: 7,
            table_bytes: 3 << 20,
            resident_bytes: u64::MAX,
            client_connections: 4,
            requests: 5,
            refused: 6,
            heartbeat_age_ms: (id != 1).then_some(42),
            recovery_step: None,
        };
        let member = |id| Some(Member { server: ServerId(id), incarnation: Incarnation(1) });
        ClusterStatus {
            cluster: ClusterId(0xfeed),
            epoch: Epoch { number: 1, boot: BootId(1) },
            state: ClusterState::Degraded,
            shards: 2,
            servers: vec![
                server(0, ServerState::Up),
                server(1, ServerState::Down),
                server(2, ServerState::Up),
            ],
            groups: vec![GroupStatus {
                group: GroupId(0),
                view: ViewVersion(1),
                primary: member(0),
                secondary: None,
                candidate: member(1),
                condition: GroupCondition::Degraded,
                copies: 1,
                entries: 99,
                bytes: 1_536,
            }],
        }
    }

    #[test]
    fn the_tables_show_servers_groups_copies_entries_and_memory() {
        let text = render(&status());
        assert!(text.contains("feed: degraded, 3 servers, 2 shards a group"), "{text}");
        let row = |word: &str| text.lines().find(|line| line.contains(word)).unwrap().to_owned();
        let down = row("DOWN");
        assert!(down.contains("never") && down.contains(" - "), "{down}");
        let up = row("4711");
        assert!(up.contains("123456"), "{up}");
        assert!(up.contains("127.0.0.1:7000") && up.contains("15.9 EiB") && up.contains("42 ms"));
        let group = row("server 0");
        assert!(group.contains("copying to 1") && group.contains("degraded"), "{group}");
        assert!(group.contains("99") && group.contains("1.5 KiB"), "{group}");
    }

    #[test]
    fn the_last_known_numbers_of_a_server_that_is_down_are_not_shown_as_what_it_has() {
        let text = servers_table(&status().servers).to_string();
        let down = text.lines().find(|line| line.contains("DOWN")).unwrap();
        let cells: Vec<&str> = down.split_whitespace().collect();
        let expected =
            ["1", "localhost", "DOWN", "127.0.0.1:7000", "-", "-", "-", "-", "-", "-", "never"];
        assert_eq!(cells, expected);
    }

    #[test]
    fn a_hostile_coordinator_cannot_send_escapes_to_the_terminal() {
        assert!(!render(&status()).contains('\x1b'));
    }

    #[test]
    fn any_count_of_bytes_has_a_short_form() {
        for (count, text) in
            [(0, "0 B"), (1_023, "1023 B"), (1_024, "1.0 KiB"), (u64::MAX, "15.9 EiB")]
        {
            assert_eq!(bytes(count), text);
        }
    }
}
