//! A fake coordinator, and proxies in front of real servers that drop responses.
//!
//! ```text
//!   client -- map? --> fake coordinator -- map? --> coordinator
//!                      the returned map names the proxies below
//!   client -- PUT ---> proxy of server i ---------> server i
//!                      drops the response and closes the connection
//! ```

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kv_protocol::client_message::{opcode, read_map_response, write_map_response};
use kv_protocol::frame::{Checksum, Frame, FrameBuffer, FrameRules, write_frame};
use kv_protocol::limits::MAX_RESPONSE_BODY;

use super::cluster::Cluster;

/// All proxies of one cluster.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The number of responses to writes or reads that are still to be dropped.
    to_cut: AtomicUsize,
    cut: AtomicUsize,
    over: AtomicBool,
}

/// The handling of one frame from a server to the client.
enum Passage {
    Pass,
    Replace(Vec<u8>),
    Cut,
}

impl Proxy {
    pub(crate) fn before(cluster: &Cluster) -> Proxy {
        let shared = Arc::new(Shared::default());
        let real = cluster.endpoint().parse().expect("an address");
        let servers: Vec<SocketAddr> = cluster
            .status()
            .servers
            .iter()
            .map(|server| server.clients.as_ref().expect("started").parse().expect("an address"))
            .collect();
        let proxies: Vec<SocketAddr> =
            servers.iter().map(|server| listen(&shared, *server, pass_or_cut)).collect();
        let rewrite = move |_: &Shared, frame: &Frame<'_>| {
            if frame.opcode != opcode::MAP_RESPONSE {
                return Passage::Pass;
            }
            let mut map = read_map_response(frame.body).expect("a map");
            for (server, proxy) in map.servers.iter_mut().zip(&proxies) {
                server.clients = Some(*proxy);
            }
            let mut bytes = Vec::new();
            write_map_response(&mut bytes, &map);
            Passage::Replace(bytes)
        };
        Proxy { address: listen(&shared, real, rewrite), shared }
    }

    /// Returns the address of the fake coordinator in the format of the client library.
    pub(crate) fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Drops the next `count` responses of servers and closes their connections.
    pub(crate) fn cut_next_responses(&self, count: usize) {
        self.shared.to_cut.store(count, Ordering::SeqCst);
    }

    /// Returns the number of responses dropped so far.
    pub(crate) fn responses_cut(&self) -> usize {
        self.shared.cut.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
    }
}

fn pass_or_cut(shared: &Shared, frame: &Frame<'_>) -> Passage {
    let take_one = |left: usize| left.checked_sub(1);
    let order = Ordering::SeqCst;
    if frame.opcode == opcode::RESPONSE
        && shared.to_cut.fetch_update(order, order, take_one).is_ok()
    {
        shared.cut.fetch_add(1, order);
        return Passage::Cut;
    }
    Passage::Pass
}

/// Listens and forwards each connection to `to`. The forwarding threads end with their connections, and the listening
/// thread ends when the [`Proxy`] is dropped.
fn listen(
    shared: &Arc<Shared>,
    to: SocketAddr,
    judge: impl Fn(&Shared, &Frame<'_>) -> Passage + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("an address");
    listener.set_nonblocking(true).expect("make it non-blocking");
    let (shared, judge) = (Arc::clone(shared), Arc::new(judge));
    std::thread::spawn(move || {
        while !shared.over.load(Ordering::SeqCst) {
            let Ok((client, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            };
            client.set_nonblocking(false).expect("make it blocking");
            let Ok(server) = TcpStream::connect(to) else { continue };
            let (shared, judge) = (Arc::clone(&shared), Arc::clone(&judge));
            let upstream = (clone(&client), clone(&server));
            std::thread::spawn(move || copy(upstream.0, upstream.1));
            std::thread::spawn(move || pass_frames(&shared, &*judge, server, client));
        }
    });
    address
}

fn clone(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("one more descriptor")
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

fn pass_frames(
    shared: &Shared,
    judge: &dyn Fn(&Shared, &Frame<'_>) -> Passage,
    mut server: TcpStream,
    mut client: TcpStream,
) {
    let mut input = FrameBuffer::new(FrameRules::unchecked(MAX_RESPONSE_BODY));
    let mut bytes = [0; 64 << 10];
    'connection: while let Ok(count @ 1..) = server.read(&mut bytes) {
        input.extend(&bytes[..count]);
        while let Some(frame) = input.next_frame().expect("a well-formed frame") {
            let mut output = Vec::new();
            match judge(shared, &frame) {
                Passage::Pass => write_frame(&mut output, Checksum::Absent, frame.opcode, |body| {
                    body.extend_from_slice(frame.body);
                }),
                Passage::Replace(bytes) => output = bytes,
                Passage::Cut => break 'connection,
            }
            if client.write_all(&output).is_err() {
                break 'connection;
            }
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}
