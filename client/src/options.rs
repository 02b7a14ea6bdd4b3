//! What a caller may set, and the endpoints that a caller names.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use kv_protocol::client_message::Condition;
use kv_protocol::limits::{DEFAULT_DEADLINE, MAX_DEADLINE};

use crate::error::OpenError;
use crate::events::Events;
use crate::interrupt::Interrupt;
use crate::log::{Level, Log};

/// Most operations that one client keeps in flight, and so the largest [`Options::window`].
pub const MAX_IN_FLIGHT: usize = 65_536;
/// Operations in flight where the caller sets no window.
const DEFAULT_WINDOW: usize = 1_024;
/// How long a connection may take until it is of use, where the caller says nothing.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Most endpoints that [`crate::Client::open`] takes, and most addresses that a name may have.
const MAX_ENDPOINTS: usize = 64;

/// Settings of a [`crate::Client`].
#[derive(Clone, Debug)]
pub struct Options {
    /// How long an operation may take in all, connecting, retrying and waiting included, where the
    /// operation itself does not say. Default 5 s, at most 60 s.
    pub deadline: Duration,
    /// How long one connection may take until the server has welcomed it, or the coordinator has
    /// sent the map; then it is given up. (The next endpoint is asked for the map sooner: after
    /// 250 ms of silence, while the first may still answer.) Default 1 s.
    pub connect_timeout: Duration,
    /// Most operations that [`crate::Client::submit`] takes before completions are collected.
    /// Default 1,024, at most [`MAX_IN_FLIGHT`].
    pub window: usize,
    /// Where messages about the client's work go; by default nowhere.
    pub log: Log,
    /// Where events go (connections, the map, writes in doubt); by default nowhere.
    pub events: Events,
    /// What ends the waiting of calls from another thread; by default nothing does.
    pub interrupt: Option<Interrupt>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            deadline: DEFAULT_DEADLINE,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            window: DEFAULT_WINDOW,
            log: Log::default(),
            events: Events::default(),
            interrupt: None,
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let refuse = |what: String| Err(OpenError::Options { what });
        if !is_deadline(self.deadline) {
            return refuse(format!("a deadline of {:?}; it must be 1 ms to 60 s", self.deadline));
        }
        if !is_deadline(self.connect_timeout) {
            let timeout = self.connect_timeout;
            return refuse(format!("a connect timeout of {timeout:?}; it must be 1 ms to 60 s"));
        }
        if self.window == 0 || self.window > MAX_IN_FLIGHT {
            return refuse(format!("a window of {}; it must be 1 to {MAX_IN_FLIGHT}", self.window));
        }
        Ok(())
    }
}

/// Settings of one operation.
#[derive(Clone, Copy, Debug)]
pub struct OpOptions {
    /// How long it may take in all; `None`: as [`Options::deadline`] says. At most 60 s.
    pub deadline: Option<Duration>,
    /// Under which condition a put or delete is done; not looked at elsewhere.
    pub condition: Condition,
}

impl Default for OpOptions {
    fn default() -> OpOptions {
        OpOptions { deadline: None, condition: Condition::Always }
    }
}

/// Whether a deadline is one that a client accepts: 1 ms to 60 s.
pub fn is_deadline(deadline: Duration) -> bool {
    deadline >= Duration::from_millis(1) && deadline <= MAX_DEADLINE
}

/// One address of a coordinator, and what the caller called it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// As written by the caller, for messages.
    pub(crate) name: String,
    /// What the name was resolved to.
    pub(crate) address: SocketAddr,
}

/// The addresses of a cluster's coordinators, resolved once, for as many clients as are wanted. Clients share what
/// they find out about them: which one has answered last.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// In the order of the caller; at least one.
    pub(crate) list: Vec<Endpoint>,
    /// The place of the one that has answered last.
    pub(crate) favourite: Arc<AtomicUsize>,
}

impl Endpoints {
    /// Resolves `host:port[,host:port…]`. The only place where the library asks for names: the
    /// system's resolver knows no deadline. A name that cannot be resolved is left out, with a warning
    /// in `log`, as long as another one can be: one of several coordinators may be gone for good.
    ///
    /// # Errors
    /// [`OpenError`]: an endpoint is malformed, or all are unknown.
    pub fn resolve(endpoints: &str, log: &Log) -> Result<Endpoints, OpenError> {
        resolve(endpoints, log).map(Endpoints::from)
    }
}

impl From<Vec<Endpoint>> for Endpoints {
    fn from(list: Vec<Endpoint>) -> Endpoints {
        Endpoints { list, favourite: Arc::default() }
    }
}

/// Checks that an endpoint is a host and a port, before anybody is asked for the host.
fn check_form(name: &str) -> Result<(), OpenError> {
    let malformed = || OpenError::Endpoint { name: name.to_owned() };
    let (host, port) = name.rsplit_once(':').ok_or_else(malformed)?;
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if host.is_empty() || !is_number {
        return Err(malformed());
    }
    let what = match port.parse::<u16>() {
        Ok(1..) => return Ok(()),
        Ok(0) => "0, which is no port",
        // It has digits alone, so it is too large.
        Err(_) => "above 65535, the highest port",
    };
    Err(OpenError::Port { name: name.to_owned(), what })
}

fn resolve(endpoints: &str, log: &Log) -> Result<Vec<Endpoint>, OpenError> {
    let mut resolved = Vec::new();
    let mut unknown = None;
    for name in endpoints.split(',').map(str::trim) {
        check_form(name)?;
        let addresses = match name.to_socket_addrs() {
            Ok(addresses) => addresses,
            Err(reason) => {
                let error = OpenError::Resolve { name: name.to_owned(), reason };
                log.write(Level::Warning, || error.to_string());
                unknown.get_or_insert(error);
                continue;
            }
        };
        for address in addresses.take(MAX_ENDPOINTS) {
            // Two names of one address are one endpoint.
            if resolved.iter().all(|known: &Endpoint| known.address != address) {
                resolved.push(Endpoint { name: name.to_owned(), address });
            }
        }
    }
    match resolved.len() {
        0 => {
            Err(unknown.unwrap_or_else(|| OpenError::NoAddress { endpoints: endpoints.to_owned() }))
        }
        1..=MAX_ENDPOINTS => Ok(resolved),
        count => Err(OpenError::Options {
            what: format!("{count} coordinator addresses; at most {MAX_ENDPOINTS} are allowed"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn endpoints_are_hosts_with_ports_separated_by_commas() {
        let found = resolve("127.0.0.1:7000, [::1]:7001", &Log::default()).unwrap();
        assert_eq!(found[0].address, "127.0.0.1:7000".parse().unwrap());
        assert_eq!(found[1].address, "[::1]:7001".parse().unwrap());
    }

    #[test]
    fn a_bad_endpoint_is_named() {
        for bad in ["", "localhost", "localhost:", ":7000", "a:b", "a:+1", "127.0.0.1:7000,,b:1"] {
            let error = resolve(bad, &Log::default()).expect_err(bad);
            assert!(error.to_string().contains("host:port"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_port_that_cannot_be_is_told_from_a_malformed_endpoint() {
        for (bad, said) in [
            ("localhost:99999", "\"localhost:99999\" is above 65535"),
            ("b:1, a:65536", "\"a:65536\" is above 65535"),
            ("a:99999999999999999999999", "is above 65535"),
            ("a:0", "\"a:0\" is 0, which is no port"),
        ] {
            let error = resolve(bad, &Log::default()).expect_err(bad);
            assert!(error.to_string().contains(said), "{bad}: {error}");
        }
    }

    #[test]
    fn a_name_that_is_unknown_is_left_out_while_another_is_known() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&lines);
        let log = Log::to(move |level, words| to.lock().unwrap().push((level, words.to_owned())));
        let found = resolve("gone.invalid:7000,127.0.0.1:7000", &log).unwrap();
        assert_eq!(found.len(), 1);
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].0, Level::Warning);
        assert!(lines[0].1.contains("gone.invalid:7000"), "{lines:?}");
        let error = resolve("gone.invalid:7000,lost.invalid:1", &Log::default()).unwrap_err();
        assert!(error.to_string().contains("gone.invalid:7000"), "{error}");
    }

    #[test]
    fn deadlines_out_of_bounds_are_refused() {
        for deadline in [Duration::ZERO, Duration::from_secs(61)] {
            let options = Options { deadline, ..Options::default() };
            assert!(options.check().unwrap_err().to_string().contains("1 ms to 60 s"));
        }
        assert!(Options::default().check().is_ok());
    }
}
