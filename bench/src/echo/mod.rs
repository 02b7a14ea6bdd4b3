//! `kv-echo`: a server on io_uring that only receives and sends frames of the same lengths as this store's requests and
//! responses. It is a lower bound: any further cost of this store comes from the store itself.
//!
//! ```text
//!   kv-echo                       one ring: responds to every request at once
//!   kv-echo --forward host:port   the first of a chain: forwards the requests of a wake-up as one
//!                                 batch, and responds when the second has responded
//!
//!   ring        completions: accepted, received, sent          buffers: memory that the kernel fills
//!   server      connections, and pending output of each        wire/echo.rs: the frames
//! ```

mod buffers;
mod ring;
mod server;

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use server::Server;

/// A server that only returns bytes, as a lower bound for a store on io_uring: multishot accept and
/// receive, a ring of provided buffers, one send in flight for each connection, and nothing else.
/// kv-bench addresses it as echo://HOST:PORT.
///
/// It prints one line with its address once it listens, and runs until it is killed.
#[derive(Debug, Parser)]
#[command(name = "kv-echo", version)]
struct Args {
    /// Address to listen on; port 0 selects a free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    listen: String,
    /// Address of another kv-echo, to which all requests are forwarded.
    #[arg(long, value_name = "HOST:PORT")]
    forward: Option<String>,
}

fn resolve(text: &str) -> anyhow::Result<SocketAddr> {
    let looked_up = || format!("resolve `{text}` (expected HOST:PORT)");
    text.to_socket_addrs().with_context(looked_up)?.next().with_context(looked_up)
}

fn run(args: &Args) -> anyhow::Result<()> {
    let address = resolve(&args.listen)?;
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    let next = match &args.forward {
        Some(next) => {
            let stream = TcpStream::connect(resolve(next)?)
                .with_context(|| format!("connect to {next}; check that a kv-echo runs there"))?;
            stream.set_nodelay(true)?;
            Some(stream)
        }
        None => None,
    };
    let address = listener.local_addr()?;
    let mut server = Server::new(listener, next)?;
    writeln!(std::io::stdout(), "{address}").context("print the address")?;
    server.run()
}

/// Runs the program `kv-echo`.
pub fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::complain("kv-echo", &error, crate::FAILED),
    }
}
