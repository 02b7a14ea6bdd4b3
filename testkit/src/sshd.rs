//! An ssh server for a single test or run, on a loopback port, with temporary keys.
//!
//! ```text
//!   host_key, good_key, bad_key       its own key, the only key that it accepts, a key that it rejects
//!   sshd -D -f sshd_config            listens on 127.0.0.1, a free port
//!   ssh -F ssh_config ...             uses only that host key and that key, and no file of the user's:
//!                                     a changed $HOME would not do, because ssh ignores it
//!   remote/  the servers' remote directory; processes left in it at the end are killed
//! ```

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::coord::free_ports;
use crate::process::{self, Signal};
use crate::{TIMEOUT, programs, wait_for};

/// The number of ports to try when another program takes a port first.
const PORTS_TRIED: usize = 5;
/// Time limit for sshd to send its identification.
const GREETING_LIMIT: Duration = Duration::from_secs(5);
/// The settings of every sshd.
pub const SETTINGS: &str = "PermitRootLogin yes\nKbdInteractiveAuthentication no\nStrictModes no\nUsePAM no\n\
     MaxStartups 100\nPrintMotd no\nLogLevel VERBOSE\n";

/// A running sshd, its keys, and a directory for servers.
#[derive(Debug)]
pub struct Sshd {
    dir: PathBuf,
    user: String,
    port: u16,
    child: Child,
}

impl Sshd {
    /// Starts an sshd that keeps its files in this directory. `more` are further settings.
    pub fn start(dir: &Path, more: &str) -> anyhow::Result<Sshd> {
        let dir = std::path::absolute(dir)?;
        fs::create_dir_all(dir.join("remote"))
            .with_context(|| format!("make {}", dir.display()))?;
        if rustix::process::geteuid().is_root() {
            // sshd confines its unprivileged process to this directory, which a service manager usually creates.
            fs::create_dir_all("/run/sshd").context("make /run/sshd")?;
        }
        let user = programs::check(Command::new("id").arg("-un"), "")?;
        for key in ["host_key", "good_key", "bad_key"] {
            make_key(&dir.join(key))?;
        }
        let (child, port) = start_somewhere(&dir, more)?;
        let sshd = Sshd { dir, user, port, child };
        sshd.write_client_config("ssh_config", "good_key")?;
        sshd.write_client_config("refused_config", "bad_key")?;
        Ok(sshd)
    }

    /// Returns the host as a cluster file names it.
    pub fn host(&self) -> String {
        format!("ssh://{}@127.0.0.1:{}", self.user, self.port)
    }

    /// Returns the port on which sshd listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns an ssh configuration (`ssh -F`) with the accepted key.
    pub fn config(&self) -> PathBuf {
        self.dir.join("ssh_config")
    }

    /// Returns an ssh configuration (`ssh -F`) with the rejected key.
    pub fn refused_config(&self) -> PathBuf {
        self.dir.join("refused_config")
    }

    /// Returns the servers' remote directory.
    pub fn remote_dir(&self) -> PathBuf {
        self.dir.join("remote")
    }

    /// Returns the log of sshd.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("sshd.err")).unwrap_or_default()
    }

    /// Returns the arguments with which `coord` uses this ssh configuration, and this directory on the remote host.
    pub fn flags(config: &Path, remote_dir: &Path) -> Vec<String> {
        let shown = |path: &Path| path.display().to_string();
        let (config, remote) = (shown(config), shown(remote_dir));
        ["--advertise", "127.0.0.1", "--ssh-config", &config, "--remote-dir", &remote]
            .map(str::to_owned)
            .into()
    }

    /// Kills sshd and all its connections. Processes started over them keep running.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let listener = self.child.id();
        // While sshd is stopped, it forks no children and stays the parent of its existing children.
        process::signal(listener, Signal::STOP);
        let ended = wait_for("the end of sshd's connections", TIMEOUT, || {
            let family = process::descendants(listener);
            let connections: Vec<u32> = family.into_iter().filter(|pid| is_sshd(*pid)).collect();
            for pid in &connections {
                process::signal(*pid, Signal::KILL);
            }
            connections.iter().all(|pid| !process::is_alive(*pid)).then_some(())
        });
        let _ = self.child.kill();
        let _ = self.child.wait();
        ended
    }

    /// Starts sshd again on its port after [`Sshd::kill`].
    pub fn restart(&mut self) -> anyhow::Result<()> {
        // Connections that are closing may hold the port for a moment.
        self.child = wait_for("sshd on its old port", TIMEOUT, || {
            spawn(&self.dir, self.port).ok().flatten()
        })?;
        Ok(())
    }

    fn write_client_config(&self, name: &str, key: &str) -> anyhow::Result<()> {
        let host_key = fs::read_to_string(self.dir.join("host_key.pub"))?;
        let known = format!("[127.0.0.1]:{} {host_key}", self.port);
        fs::write(self.dir.join("known_hosts"), known)?;
        let config = format!(
            "IdentityFile \"{0}/{key}\"\nIdentitiesOnly yes\nIdentityAgent none\n\
             UserKnownHostsFile \"{0}/known_hosts\"\nGlobalKnownHostsFile /dev/null\n\
             StrictHostKeyChecking yes\nUpdateHostKeys no\n",
            self.dir.display()
        );
        fs::write(self.dir.join(name), config).context("write the configuration of ssh")
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        process::end_all_in(&self.remote_dir());
        let _ = self.kill();
    }
}

/// Returns the absolute path of sshd, which needs it to execute itself again. Its directory may be only on root's PATH.
pub fn sshd_program() -> anyhow::Result<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
    let found = std::env::split_paths(&path).map(|dir| dir.join("sshd")).find(|p| p.is_file());
    found.context("sshd is missing: install openssh-server, or run scripts/setup.sh")
}

/// Creates a key without a passphrase.
pub fn make_key(path: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "kv-test", "-f"]).arg(path);
    programs::check(&mut command, "").context(
        "create a key with ssh-keygen (package openssh-client, or run scripts/setup.sh)",
    )?;
    Ok(())
}

fn start_somewhere(dir: &Path, more: &str) -> anyhow::Result<(Child, u16)> {
    for _ in 0..PORTS_TRIED {
        let [port] = free_ports()?;
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey \"{0}/host_key\"\n\
             AuthorizedKeysFile \"{0}/good_key.pub\"\nPidFile \"{0}/sshd.pid\"\n{SETTINGS}{more}",
            dir.display()
        );
        fs::write(dir.join("sshd_config"), config).context("write the configuration of sshd")?;
        if let Some(child) = spawn(dir, port)? {
            return Ok((child, port));
        }
    }
    let said = fs::read_to_string(dir.join("sshd.err")).unwrap_or_default();
    bail!("sshd does not start: {}", said.trim())
}

/// Starts sshd and waits until it responds on the port of its configuration. Returns `None` if it has ended.
fn spawn(dir: &Path, port: u16) -> anyhow::Result<Option<Child>> {
    let mut command = Command::new(sshd_program()?);
    command.args(["-D", "-e", "-f"]).arg(dir.join("sshd_config"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(File::create(dir.join("sshd.err"))?);
    programs::end_with_this(&mut command, Signal::KILL);
    let mut child = command.spawn().context("start sshd")?;
    let responses = wait_for("sshd to respond or to exit", TIMEOUT, || match child.try_wait() {
        Ok(None) => greets(port).then_some(true),
        _ => Some(false),
    });
    if responses.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    Ok(responses?.then_some(child))
}

fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return false };
    let mut handshake = [0; 4];
    stream.set_read_timeout(Some(GREETING_LIMIT)).is_ok()
        && stream.read_exact(&mut handshake).is_ok()
        && handshake == *b"SSH-"
}

/// Returns true for sshd itself and for the programs that it runs for each connection
/// (sshd-session, sshd-auth).
fn is_sshd(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("sshd"))
}
