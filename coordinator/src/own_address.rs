//! A check that the address of `--advertise` leads to this machine, by connecting to it. Every other host uses this
//! address.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::random;

/// The timeout for the arrival of a connection to an address that this machine does not have.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The interval at which the listener is polled for that connection.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Returns whether an address belongs to this machine.
pub(crate) fn is_own(address: IpAddr) -> bool {
    TcpListener::bind((address, 0)).is_ok()
}

/// Checks that connections to an address arrive at this machine, and returns a description of the route. `port` is the
/// port that another machine forwards; 0 selects any port.
///
/// # Errors
/// The connections do not arrive here; the message has the reason and the remedy.
pub(crate) fn check(address: IpAddr, port: u16) -> Result<&'static str, String> {
    if is_own(address) {
        return Ok("an address of this machine");
    }
    match comes_back(address, port) {
        Ok(()) => Ok("reaches this machine through another machine"),
        Err(reason) => Err(format!(
            "{address} is not an address of this machine, and connections to it do not arrive here \
             ({reason}); give an address at which the other hosts reach this machine (`ip address` lists its \
             own addresses)"
        )),
    }
}

/// Listens here, connects to the address, and checks that the connection arrives here.
fn comes_back(address: IpAddr, port: u16) -> Result<(), String> {
    let all = match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let text = |error: std::io::Error| error.to_string();
    let listener = TcpListener::bind((all, port)).map_err(text)?;
    listener.set_nonblocking(true).map_err(text)?;
    let port = listener.local_addr().map_err(text)?.port();
    let mut dialled =
        TcpStream::connect_timeout(&SocketAddr::new(address, port), TIMEOUT).map_err(text)?;
    let word = random::nonzero_u64()?.to_le_bytes();
    dialled.write_all(&word).map_err(text)?;
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        let Ok((mut accepted, _)) = listener.accept() else {
            std::thread::sleep(LOOK_EVERY);
            continue;
        };
        let mut read = [0; 8];
        accepted.set_nonblocking(false).map_err(text)?;
        accepted.set_read_timeout(Some(TIMEOUT)).map_err(text)?;
        if accepted.read_exact(&mut read).is_ok() && read == word {
            return Ok(());
        }
    }
    Err("another machine responds there".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_this_machine_is_accepted_and_a_foreign_one_is_rejected() {
        check("127.0.0.1".parse().unwrap(), 0).unwrap();
        // RFC 5737: no machine has such an address.
        let error = check("192.0.2.1".parse().unwrap(), 0).unwrap_err();
        assert!(error.contains("not an address of this machine"), "{error}");
    }

    #[test]
    fn a_connection_that_comes_back_is_recognized() {
        comes_back("127.0.0.1".parse().unwrap(), 0).unwrap();
    }
}
