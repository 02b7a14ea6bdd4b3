//! The user whose process listens on a port of this machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The state of a listening socket in the kernel's tables (TCP_LISTEN).
const LISTENS: &str = "0A";

/// Returns the id of the user whose process listens on an address of this machine, if that is another user. Returns
/// `None` if no other user's process listens there, or if the kernel's tables cannot be read.
///
/// Source: proc_net(5), `/proc/net/tcp` and `tcp6`, columns `local_address`, `st` and `uid`.
pub fn of_another_user(address: SocketAddr) -> Option<u32> {
    let own = rustix::process::geteuid().as_raw();
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .find_map(|table| listener(&table, address))
        .filter(|owner| *owner != own)
}

/// Returns the user id of the first socket in one of the kernel's tables that listens on this address. The unspecified
/// address matches every address.
fn listener(table: &str, wanted: SocketAddr) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, owner, ..] = columns[..] else { return None };
        let (ip, port) = local.split_once(':')?;
        let (ip, port) = (address(ip)?, u16::from_str_radix(port, 16).ok()?);
        let is_same = ip == wanted.ip() || ip.is_unspecified() || wanted.ip().is_unspecified();
        (state == LISTENS && port == wanted.port() && is_same).then(|| owner.parse().ok())?
    })
}

/// Parses an address of a kernel table: words of 32 bits in the byte order of the machine.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_found_with_its_owner() {
        for ip in ["127.0.0.1", "::1"] {
            let Ok(listening) = TcpListener::bind((ip, 0)) else { continue };
            let address = listening.local_addr().unwrap();
            let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
            let tables = tables.map(|table| std::fs::read_to_string(table).unwrap_or_default());
            let owner = tables.iter().find_map(|table| listener(table, address));
            assert_eq!(owner, Some(rustix::process::geteuid().as_raw()), "{address}");
            assert_eq!(of_another_user(address), None);
        }
    }

    #[test]
    fn only_a_listening_socket_of_that_port_and_address_counts() {
        #[cfg(target_endian = "little")]
        let loopback = "0100007F";
        #[cfg(target_endian = "big")]
        let loopback = "7F000001";
        let table = |local: &str, state: &str| {
            format!(
                "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n   \
                 0: {local}:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000 0 1\n"
            )
        };
        let wanted: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(listener(&table(loopback, "0A"), wanted), Some(1000));
        assert_eq!(listener(&table("00000000", "0A"), wanted), Some(1000));
        assert_eq!(listener(&table(loopback, "01"), wanted), None, "a connection");
        assert_eq!(listener(&table("0200007F", "0A"), wanted), None, "another address");
        assert_eq!(listener(&table(loopback, "0A"), "127.0.0.1:81".parse().unwrap()), None);
        assert_eq!(listener("a line\nnonsense", wanted), None);
    }
}
