//! An ssh server for this run alone, on a loopback port, with temporary keys.
//!
//! ```text
//!   host_key, key     the key of this server, and the only key that it accepts
//!   sshd -D -f sshd_config         listens on 127.0.0.1, a free port
//!   ssh -F ssh_config              has these keys, and none of the user's configuration
//!   remote/           the servers' remote directory; every process left in it at the end is killed
//! ```

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::process::{self, wait_for};

/// The timeout of sshd's start.
const START_LIMIT: Duration = Duration::from_secs(10);
/// The number of ports tried, if another process takes the chosen one first.
const PORTS_TRIED: usize = 5;

/// A running sshd.
#[derive(Debug)]
pub(crate) struct Sshd {
    dir: PathBuf,
    host: String,
    child: Child,
}

impl Sshd {
    /// Starts an sshd that keeps its files in this directory, and copies the server into the remote directory.
    pub(crate) fn start(dir: &Path, server: &Path) -> anyhow::Result<Sshd> {
        let dir = std::path::absolute(dir)?;
        fs::create_dir_all(dir.join("remote"))
            .with_context(|| format!("make {}", dir.display()))?;
        fs::copy(server, dir.join("remote/server"))
            .with_context(|| format!("copy {}", server.display()))?;
        if rustix::process::geteuid().is_root() {
            // The directory in which sshd confines its unprivileged part; normally a service manager creates
            // it.
            fs::create_dir_all("/run/sshd").context("make /run/sshd")?;
        }
        let user = output(Command::new("id").arg("-un"))?;
        for key in ["host_key", "key"] {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-C", "kv-chaos", "-f"]);
            output(command.arg(dir.join(key)))?;
        }
        let (child, port) = start_somewhere(&dir)?;
        let sshd = Sshd { host: format!("ssh://{user}@127.0.0.1:{port}"), dir, child };
        sshd.write_client_config(port)?;
        Ok(sshd)
    }

    /// Returns the host as a cluster file names it.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Returns the servers' remote directory.
    pub(crate) fn remote_dir(&self) -> PathBuf {
        self.dir.join("remote")
    }

    /// Returns the arguments with which `coord` reaches it.
    pub(crate) fn flags(&self) -> Vec<String> {
        let shown = |path: PathBuf| path.display().to_string();
        let config = shown(self.dir.join("ssh_config"));
        let remote = shown(self.remote_dir());
        ["--advertise", "127.0.0.1", "--ssh-config", &config, "--remote-dir", &remote]
            .map(str::to_owned)
            .into()
    }

    fn write_client_config(&self, port: u16) -> anyhow::Result<()> {
        let host_key = fs::read_to_string(self.dir.join("host_key.pub"))?;
        fs::write(self.dir.join("known_hosts"), format!("[127.0.0.1]:{port} {host_key}"))?;
        let config = format!(
            "IdentityFile \"{0}/key\"\nIdentitiesOnly yes\nIdentityAgent none\n\
             UserKnownHostsFile \"{0}/known_hosts\"\nGlobalKnownHostsFile /dev/null\n\
             StrictHostKeyChecking yes\nUpdateHostKeys no\n",
            self.dir.display()
        );
        fs::write(self.dir.join("ssh_config"), config).context("write the configuration of ssh")
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        process::end_all_in(&self.remote_dir());
        // Its connections have ended with the processes that used them.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the path of sshd. It must be started by its absolute path, in a directory that is only on root's
/// PATH.
fn program() -> anyhow::Result<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
    let found = std::env::split_paths(&path).map(|dir| dir.join("sshd")).find(|at| at.is_file());
    found.context("there is no sshd (Debian package openssh-server)")
}

fn start_somewhere(dir: &Path) -> anyhow::Result<(Child, u16)> {
    let program = program()?;
    for _ in 0..PORTS_TRIED {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        if let Some(child) = start_on(&program, dir, port)? {
            return Ok((child, port));
        }
    }
    let said = fs::read_to_string(dir.join("sshd.err")).unwrap_or_default();
    bail!("sshd does not start: {}", said.trim())
}

/// Starts sshd on this port and waits until it responds. Returns `None` if it has exited.
fn start_on(program: &Path, dir: &Path, port: u16) -> anyhow::Result<Option<Child>> {
    let config = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey \"{0}/host_key\"\n\
         AuthorizedKeysFile \"{0}/key.pub\"\nPidFile \"{0}/sshd.pid\"\nPermitRootLogin yes\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nStrictModes no\nUsePAM no\n\
         MaxStartups 100\nPrintMotd no\n",
        dir.display()
    );
    let file = dir.join("sshd_config");
    fs::write(&file, config).with_context(|| format!("write {}", file.display()))?;
    let mut command = Command::new(program);
    command.args(["-D", "-e", "-f"]).arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(File::create(dir.join("sshd.err"))?);
    // SAFETY: prctl takes integers and is safe to call between fork and exec. If this program is killed, sshd
    // is killed too.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn().with_context(|| format!("start {}", program.display()))?;
    let answers = wait_for("sshd to answer", START_LIMIT, || match child.try_wait() {
        Ok(None) => greets(port).then_some(true),
        _ => Some(false),
    });
    match answers {
        Ok(true) => Ok(Some(child)),
        Ok(false) => Ok(None),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

fn greets(port: u16) -> bool {
    let mut greeting = [0; 4];
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok_and(|mut stream| {
        stream.set_read_timeout(Some(START_LIMIT)).is_ok()
            && stream.read_exact(&mut greeting).is_ok()
            && greeting == *b"SSH-"
    })
}

/// Returns the output of a short command.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("run {}", command.get_program().display());
    let output = command.output().with_context(|| shown.clone())?;
    ensure!(output.status.success(), "{shown}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
