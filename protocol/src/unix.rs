//! The names of the servers' Unix-domain sockets in the directory of `--unix`.

use crate::ids::ServerId;

/// The maximum length of the path of a Unix-domain socket, in bytes. The kernel has room for one more, the zero at its
/// end.
pub const MAX_SOCKET_PATH: usize = 107;

/// The word before the path of a directory of sockets, in the address of a cluster: `unix:DIR`.
pub const UNIX_PREFIX: &str = "unix:";

const BEGIN: &str = "server_";
const END: &str = ".sock";

/// Returns the name of a server's socket.
pub fn socket_name(server: ServerId) -> String {
    format!("{BEGIN}{server}{END}")
}

/// Returns the server whose socket has this name; `None` for any other name.
pub fn server_of_socket(name: &str) -> Option<ServerId> {
    let number = name.strip_prefix(BEGIN)?.strip_suffix(END)?;
    let server = ServerId(number.parse().ok()?);
    // A number with a sign or leading zeros names no server.
    (socket_name(server) == name).then_some(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_names_its_server() {
        for server in [0, 7, 1_023, u16::MAX] {
            let name = socket_name(ServerId(server));
            assert_eq!(server_of_socket(&name), Some(ServerId(server)), "{name}");
        }
        for other in [
            "server_.sock",
            "server_+1.sock",
            "server_01.sock",
            "server_65536.sock",
            "server_1",
            "1.sock",
            "server_1.log",
            "",
        ] {
            assert_eq!(server_of_socket(other), None, "{other}");
        }
    }
}
