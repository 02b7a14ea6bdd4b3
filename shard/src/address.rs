//! The origin of a connection. Some limits apply to each origin separately.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The origin of a connection: an IPv4 address, or the /64 network of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(IpAddr);

impl Address {
    /// The address of a connection whose remote end is unknown.
    pub const UNKNOWN: Address = Address(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

    /// The address of this machine.
    pub const LOOPBACK: Address = Address(IpAddr::V4(Ipv4Addr::LOCALHOST));

    /// Returns the address of another machine.
    #[cfg(test)]
    pub(crate) fn numbered(n: u32) -> Address {
        Address(IpAddr::V4(Ipv4Addr::from_bits(n)))
    }

    /// Returns the origin to which an IP address belongs.
    pub fn of(ip: IpAddr) -> Address {
        Address(match ip.to_canonical() {
            IpAddr::V6(ip) => {
                let network = ip.to_bits() >> 64 << 64;
                IpAddr::V6(Ipv6Addr::from_bits(network))
            }
            ip @ IpAddr::V4(_) => ip,
        })
    }

    /// Returns the IPv4 address, or the first address of the IPv6 network.
    pub fn ip(self) -> IpAddr {
        self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(ip) => write!(f, "{ip}"),
            IpAddr::V6(ip) => write!(f, "{ip}/64"),
        }
    }
}
