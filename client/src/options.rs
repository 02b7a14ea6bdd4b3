//! The settings of a client and of its operations, and the endpoints.

use std::fs;
use std::net::ToSocketAddrs;
use std::path::{self, Path};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use kv_protocol::client_message::Condition;
use kv_protocol::ids::ServerId;
use kv_protocol::limits::{DEFAULT_DEADLINE, MAX_DEADLINE};
use kv_protocol::unix::{UNIX_PREFIX, server_of_socket};

use crate::address::Place;
use crate::error::OpenError;
use crate::events::Events;
use crate::interrupt::Interrupt;
use crate::log::{Level, Log};

/// The largest allowed [`Options::window`].
pub const MAX_IN_FLIGHT: usize = 65_536;
/// The default of [`Options::window`].
const DEFAULT_WINDOW: usize = 1_024;
/// The default of [`Options::connect_timeout`].
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum number of addresses to which the endpoints of a client resolve. Further addresses of a single name are
/// ignored.
const MAX_ENDPOINTS: usize = 64;

/// Settings of a [`crate::Client`].
#[derive(Clone, Debug)]
pub struct Options {
    /// The default deadline of an operation, including connecting, retries and waits: 1 ms to 60 s, default 5 s.
    pub deadline: Duration,
    /// The timeout for the handshake of a connection, and for the response to a request for the map. On expiry, the
    /// connection is closed. After only 250 ms of silence, the map is also requested from the next address, while the
    /// first request stays open. When an operation reaches its deadline, its connection is also closed if the server
    /// has sent nothing for this time. 1 ms to 60 s, default 1 s.
    pub connect_timeout: Duration,
    /// The maximum number of operations that [`crate::Client::submit`] accepts before completions are collected: 1 to
    /// [`MAX_IN_FLIGHT`], default 1,024.
    pub window: usize,
    /// The function that receives log messages; none by default.
    pub log: Log,
    /// The function that receives events (connections, the map, writes in doubt); none by default.
    pub events: Events,
    /// The interrupt with which another thread ends calls early; none by default.
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
    /// The deadline of the operation, 1 ms to 60 s; `None` for [`Options::deadline`].
    pub deadline: Option<Duration>,
    /// The condition under which a put or delete is executed; ignored by other operations.
    pub condition: Condition,
}

impl Default for OpOptions {
    fn default() -> OpOptions {
        OpOptions { deadline: None, condition: Condition::Always }
    }
}

/// Returns whether a deadline is within the accepted range of 1 ms to 60 s.
pub fn is_deadline(deadline: Duration) -> bool {
    deadline >= Duration::from_millis(1) && deadline <= MAX_DEADLINE
}

/// One resolved address of an endpoint, and the name that the caller gave.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// The name as written by the caller, for messages.
    pub(crate) name: String,
    /// The address to which the name was resolved, or the server whose socket was found.
    pub(crate) place: Place,
}

/// The resolved endpoints of a cluster, for any number of clients. All of them request the map first from the endpoint
/// that last provided it to any of them.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// The endpoints in the caller's order; at least one.
    pub(crate) list: Vec<Endpoint>,
    /// The directory of the servers' Unix-domain sockets, if the caller named one.
    pub(crate) sockets: Option<Arc<Path>>,
    /// The index of the endpoint that last provided the map, shared by all clients of these endpoints.
    pub(crate) favourite: Arc<AtomicUsize>,
}

impl Endpoints {
    /// Resolves `host:port[,host:port…]`. No other function of the library resolves names, because the system's
    /// resolver has no deadline. A name that cannot be resolved is skipped with a warning in `log` if another name can
    /// be resolved: one of several coordinators may have been removed permanently.
    ///
    /// One of the endpoints may be `unix:DIR`. It stands for the servers whose sockets (`server_<id>.sock`) are in this
    /// directory now. With it, the client connects to each server by its socket in the directory if the server listens
    /// on one then, or else by the address in the map.
    ///
    /// # Errors
    /// [`OpenError`]: an endpoint is malformed, none can be resolved, or they have more than 64 addresses.
    pub fn resolve(endpoints: &str, log: &Log) -> Result<Endpoints, OpenError> {
        resolve(endpoints, log)
    }
}

impl From<Vec<Endpoint>> for Endpoints {
    fn from(list: Vec<Endpoint>) -> Endpoints {
        Endpoints { list, sockets: None, favourite: Arc::default() }
    }
}

/// Checks that an endpoint has the form host:port, before the host is resolved.
fn check_form(name: &str) -> Result<(), OpenError> {
    let malformed = || OpenError::Endpoint { name: name.to_owned() };
    let (host, port) = name.rsplit_once(':').ok_or_else(malformed)?;
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if host.is_empty() || !is_number {
        return Err(malformed());
    }
    let what = match port.parse::<u16>() {
        Ok(1..) => return Ok(()),
        Ok(0) => "0, which is not a port",
        // The text consists only of digits, so the number is too large.
        Err(_) => "above 65535, the highest port",
    };
    Err(OpenError::Port { name: name.to_owned(), what })
}

fn resolve(endpoints: &str, log: &Log) -> Result<Endpoints, OpenError> {
    let mut resolved: Vec<Endpoint> = Vec::new();
    let mut skipped = Vec::new();
    let mut sockets = None;
    for name in endpoints.split(',').map(str::trim) {
        let found = match name.strip_prefix(UNIX_PREFIX) {
            Some(dir) => {
                if sockets.replace(check_dir(name, dir)?).is_some() {
                    let what = "more than one directory of sockets; give one unix:DIR".to_owned();
                    return Err(OpenError::Options { what });
                }
                servers_in(dir)
            }
            None => {
                check_form(name)?;
                addresses_of(name)
            }
        };
        match found {
            Err(error) => skipped.push(error),
            Ok(places) => {
                for place in places {
                    // Names with the same address are one endpoint.
                    if resolved.iter().all(|known| known.place != place) {
                        resolved.push(Endpoint { name: name.to_owned(), place });
                    }
                }
            }
        }
    }
    match resolved.len() {
        0 => {
            let first = skipped.into_iter().next();
            Err(first.unwrap_or_else(|| OpenError::NoAddress { endpoints: endpoints.to_owned() }))
        }
        1..=MAX_ENDPOINTS => {
            for error in skipped {
                log.write(Level::Warning, || error.to_string());
            }
            Ok(Endpoints { sockets, ..Endpoints::from(resolved) })
        }
        count => Err(OpenError::Options {
            what: format!("{count} coordinator addresses; at most {MAX_ENDPOINTS} are allowed"),
        }),
    }
}

/// Returns the addresses of a host with a port.
fn addresses_of(name: &str) -> Result<Vec<Place>, OpenError> {
    match name.to_socket_addrs() {
        Ok(addresses) => Ok(addresses.take(MAX_ENDPOINTS).map(Place::at).collect()),
        Err(reason) => Err(OpenError::Resolve { name: name.to_owned(), reason }),
    }
}

/// Returns the absolute path of the directory of an endpoint `unix:DIR`: the program may change its own directory.
fn check_dir(name: &str, dir: &str) -> Result<Arc<Path>, OpenError> {
    let absolute = path::absolute(dir);
    absolute.map(Arc::from).map_err(|_| OpenError::Endpoint { name: name.to_owned() })
}

/// Returns the servers whose sockets are in a directory, in the order of the ring. Further ones than the client needs are
/// ignored.
fn servers_in(dir: &str) -> Result<Vec<Place>, OpenError> {
    let failed = |reason: String| OpenError::Sockets { dir: dir.to_owned(), reason };
    let entries = fs::read_dir(dir).map_err(|error| failed(format!("{error}; check the path")))?;
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
    let mut servers: Vec<ServerId> =
        names.filter_map(|name| server_of_socket(name.to_str()?)).collect();
    servers.sort_unstable();
    servers.truncate(MAX_ENDPOINTS);
    match servers.is_empty() {
        false => {
            let place = |server| Place { server: Some(server), address: None };
            Ok(servers.into_iter().map(place).collect())
        }
        true => Err(failed(
            "there is no server_ID.sock; do servers run on this host, and has the coordinator --unix with this \
             directory?"
                .to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn endpoints_are_hosts_with_ports_separated_by_commas() {
        let found = resolve("127.0.0.1:7000, [::1]:7001", &Log::default()).unwrap();
        let places: Vec<Place> = found.list.iter().map(|endpoint| endpoint.place).collect();
        let expected = ["127.0.0.1:7000", "[::1]:7001"].map(|at| Place::at(at.parse().unwrap()));
        assert_eq!(places, expected);
        assert_eq!(found.sockets, None);
    }

    #[test]
    fn a_directory_stands_for_the_servers_with_sockets_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let name = format!("unix:{}", dir.path().display());
        let refused =
            |endpoints: &str| resolve(endpoints, &Log::default()).unwrap_err().to_string();
        assert!(refused(&name).contains("there is no server_ID.sock"));
        for file in ["server_10.sock", "server_2.sock", "server_2.log", "server_x.sock"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let both = format!("{name},127.0.0.1:7000");
        let found = resolve(&both, &Log::default()).unwrap();
        let places: Vec<Place> = found.list.iter().map(|endpoint| endpoint.place).collect();
        let socket = |id| Place { server: Some(ServerId(id)), address: None };
        let coordinator = Place::at("127.0.0.1:7000".parse().unwrap());
        assert_eq!(places, [socket(2), socket(10), coordinator]);
        assert_eq!(found.sockets.as_deref(), Some(dir.path()));
        assert!(refused(&format!("{name},{name}")).contains("one unix:DIR"));
        assert!(refused("unix:").contains("unix:DIR"));
        assert!(refused("unix:/no/such/directory").contains("check the path"));
    }

    #[test]
    fn without_a_socket_another_endpoint_is_enough_and_later_sockets_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let both = format!("unix:{},127.0.0.1:7000", dir.path().display());
        let found = resolve(&both, &Log::default()).unwrap();
        assert_eq!((found.list.len(), found.sockets.as_deref()), (1, Some(dir.path())));
    }

    #[test]
    fn a_malformed_endpoint_is_named_in_the_error() {
        for bad in ["", "localhost", "localhost:", ":7000", "a:b", "a:+1", "127.0.0.1:7000,,b:1"] {
            let error = resolve(bad, &Log::default()).expect_err(bad);
            assert!(error.to_string().contains("host:port"), "{bad}: {error}");
        }
    }

    #[test]
    fn an_impossible_port_gets_another_error_than_a_malformed_endpoint() {
        for (bad, said) in [
            ("localhost:99999", "\"localhost:99999\" is above 65535"),
            ("b:1, a:65536", "\"a:65536\" is above 65535"),
            ("a:99999999999999999999999", "is above 65535"),
            ("a:0", "\"a:0\" is 0, which is not a port"),
        ] {
            let error = resolve(bad, &Log::default()).expect_err(bad);
            assert!(error.to_string().contains(said), "{bad}: {error}");
        }
    }

    #[test]
    fn an_unknown_name_is_skipped_while_another_resolves() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&lines);
        let log = Log::to(move |level, words| to.lock().unwrap().push((level, words.to_owned())));
        let found = resolve("gone.invalid:7000,127.0.0.1:7000", &log).unwrap();
        assert_eq!(found.list.len(), 1);
        {
            let lines = lines.lock().unwrap();
            assert_eq!(lines.len(), 1);
            assert_eq!(lines[0].0, Level::Warning);
            assert!(lines[0].1.contains("gone.invalid:7000"), "{lines:?}");
        }
        let error = resolve("gone.invalid:7000,lost.invalid:1", &log).unwrap_err();
        assert!(error.to_string().contains("gone.invalid:7000"), "{error}");
        assert_eq!(lines.lock().unwrap().len(), 1, "without an address, no name is skipped");
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
