//! The target of the load: a scheme and an address.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};

use anyhow::Context as _;

/// The protocol of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// A cluster of this store, through the client library.
    Kv,
    /// A cluster of this store over plain sockets. It costs the generator as little CPU time as the other schemes.
    KvWire,
    /// A cluster of this store over RESP, with connections to all servers.
    KvRedis,
    /// Redis, Valkey and other servers with the protocol RESP.
    Redis,
    /// Memcached's text protocol.
    Memcached,
    /// `kv-echo`.
    Echo,
}

/// All schemes with their names.
const SCHEMES: [(&str, Scheme); 6] = [
    ("kv", Scheme::Kv),
    ("kv+wire", Scheme::KvWire),
    ("kv+redis", Scheme::KvRedis),
    ("redis", Scheme::Redis),
    ("memcached", Scheme::Memcached),
    ("echo", Scheme::Echo),
];

/// The target of the load. See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) scheme: Scheme,
    /// `host:port`, or several separated by commas for [`Scheme::Kv`].
    pub(crate) endpoint: String,
}

impl Target {
    /// Parses `scheme://host:port`.
    pub(crate) fn parse(text: &str) -> Result<Target, String> {
        let wrong = || {
            format!(
                "unknown target `{text}` (expected kv://HOST:PORT, kv+wire://…, \
                 kv+redis://…, redis://…, memcached://… or echo://…)"
            )
        };
        let (name, endpoint) = text.split_once("://").ok_or_else(wrong)?;
        let found = SCHEMES.iter().find(|(known, _)| *known == name);
        let scheme = found.ok_or_else(wrong)?.1;
        let is_endpoint = |endpoint: &str| {
            endpoint.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && !host.contains(',')
                    && port.parse().is_ok_and(|port: u16| port != 0)
            })
        };
        let may_be_many = scheme == Scheme::Kv;
        let is_right = match may_be_many {
            true => endpoint.split(',').all(is_endpoint),
            false => is_endpoint(endpoint),
        };
        match is_right {
            true => Ok(Target { scheme, endpoint: endpoint.to_owned() }),
            false => Err(format!("`{text}`: `{endpoint}` is not HOST:PORT")),
        }
    }

    /// Returns whether the target is a cluster of this store.
    pub(crate) fn is_kv(&self) -> bool {
        matches!(self.scheme, Scheme::Kv | Scheme::KvWire | Scheme::KvRedis)
    }

    /// Resolves the address; the first one if there are several.
    pub(crate) fn resolve(&self) -> anyhow::Result<SocketAddr> {
        let first = self.endpoint.split(',').next().unwrap_or_default();
        let looked_up = || format!("resolve {first}; check the host name");
        let mut found = first.to_socket_addrs().with_context(looked_up)?;
        found.next().with_context(looked_up)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SCHEMES.iter().find(|(_, scheme)| *scheme == self.scheme).map(|(name, _)| *name);
        write!(f, "{}://{}", name.unwrap_or_default(), self.endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_scheme_and_an_address() {
        for (text, scheme) in [
            ("kv://localhost:7000,[::1]:7001", Scheme::Kv),
            ("kv+wire://localhost:7000", Scheme::KvWire),
            ("kv+redis://localhost:7000", Scheme::KvRedis),
            ("redis://127.0.0.1:6379", Scheme::Redis),
            ("memcached://127.0.0.1:11211", Scheme::Memcached),
            ("echo://[::1]:1", Scheme::Echo),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.scheme, target.to_string()), (scheme, text.to_owned()));
        }
    }

    #[test]
    fn an_invalid_target_is_rejected_with_the_expected_form() {
        for bad in ["", "localhost:1", "http://a:1"] {
            assert!(Target::parse(bad).unwrap_err().contains("kv://HOST:PORT"), "{bad}");
        }
        for bad in ["kv://", "redis://a", "redis://a:0", "redis://a:1,b:2", "echo://:1"] {
            assert!(Target::parse(bad).unwrap_err().contains("is not HOST:PORT"), "{bad}");
        }
    }
}
