//! `coord status`: requests the status of a running coordinator and prints it once.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use kv_protocol::client_message::{Hello, Question, Refusal, opcode};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::health::Health;
use kv_protocol::limits::MAX_RESPONSE_BODY;
use kv_protocol::status::ClusterStatus;
use kv_protocol::{ClientId, ClusterId, ShardId};

use crate::args::StatusArgs;
use crate::failure::Failure;
use crate::printable::printable;
use crate::random;
use crate::table::{self, Screen};

/// The timeout of connecting to one address, and of each read and write.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Prints the status of a cluster, and returns its health.
pub(crate) fn run(args: &StatusArgs) -> Result<Health, Failure> {
    let json = fetch(args).map_err(|reason| failure(args, &reason))?;
    let status = parse(&json)?;
    let (health, _) = status.assess();
    let text = match args.json {
        true => format!("{}\n", printable(&json)),
        false => table::render(&status, Screen { width: width(), lines: None }),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("cannot print the status: {error}")))
        }
        _ => Ok(health),
    }
}

/// Returns the width of the terminal in columns, or `None` if standard output is not a terminal.
pub(crate) fn width() -> Option<usize> {
    let (_, columns) = std::io::stdout().is_terminal().then(|| console::Term::stdout().size())?;
    Some(usize::from(columns))
}

/// Returns the failure for a status that could not be fetched.
pub(crate) fn failure(args: &StatusArgs, reason: &str) -> Failure {
    Failure::Failed(format!(
        "cannot get the status from the coordinator at {}, port {}: {reason}; check -h and -p, and that the \
         coordinator runs",
        printable(&args.host),
        args.port
    ))
}

pub(crate) fn parse(json: &str) -> Result<ClusterStatus, Failure> {
    serde_json::from_str(json).map_err(|error| {
        Failure::Failed(format!(
            "cannot parse the coordinator's status: {error}; use the same version of coord as the running coordinator"
        ))
    })
}

/// Requests the status from the coordinator, and returns it as JSON.
pub(crate) fn fetch(args: &StatusArgs) -> Result<String, String> {
    let mut stream = connect(&args.host, args.port)?;
    let timeout = Some(TIMEOUT);
    stream
        .set_read_timeout(timeout)
        .and_then(|()| stream.set_write_timeout(timeout))
        .map_err(|error| error.to_string())?;
    let client = random::nonzero_u128()?;
    let mut bytes = Vec::new();
    Hello::new(ClusterId::default(), ClientId(client), ShardId(0)).write(&mut bytes);
    Question::Status.write(&mut bytes);
    stream.write_all(&bytes).map_err(|error| error.to_string())?;
    let mut buffer = FrameBuffer::new(FrameRules::unchecked(MAX_RESPONSE_BODY));
    let mut received = [0; 16 << 10];
    loop {
        while let Some(frame) = buffer.next_frame().map_err(|error| error.to_string())? {
            match frame.opcode {
                opcode::WELCOME => {}
                opcode::STATUS_RESPONSE => {
                    return String::from_utf8(frame.body.to_vec()).map_err(|e| e.to_string());
                }
                opcode::ERROR => {
                    let refusal = Refusal::read(frame.body).map_err(|error| error.to_string())?;
                    return Err(format!(
                        "the coordinator rejected the request: {}",
                        printable(refusal.reason)
                    ));
                }
                other => return Err(format!("unexpected opcode {other:#04x} in the response")),
            }
        }
        match stream.read(&mut received) {
            Ok(0) => {
                return Err(
                    "the coordinator closed the connection; check that this is its port for clients".into()
                );
            }
            Ok(count) => buffer.extend(&received[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(format!("no response within {} s", TIMEOUT.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    // An IPv6 address may be in brackets, as in a URL and with `client`, but the resolver does not accept brackets.
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = bare.unwrap_or(host);
    let addresses = (host, port).to_socket_addrs().map_err(|error| error.to_string())?;
    let mut last = "the name has no address".to_owned();
    for address in addresses.collect::<Vec<SocketAddr>>() {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}
