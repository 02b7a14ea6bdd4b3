//! An ssh server of the test's own, on a loopback port, with temporary keys.
//!
//! ```text
//!   keys/    host key, an accepted key, a rejected key
//!   sshd -D -f sshd_config            listens on 127.0.0.1, a free port
//!   ssh -F ssh_config ...             knows only that host key and that key, nothing of the user's:
//!                                     ssh asks the system for the home directory, not $HOME
//!   remote/  the servers' remote directory; processes left in it at the end are killed
//! ```

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::cluster::Builder;
use super::process::{self, Signal};
use super::programs;
use super::{Cluster, PATIENCE, wait_for};

/// The number of ports to try when another program takes a port first.
const PORTS_TRIED: usize = 5;
/// Time limit for sshd to send its identification.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// A running sshd, its keys, and a directory for servers.
#[derive(Debug)]
pub(crate) struct Sshd {
    dir: TempDir,
    user: String,
    port: u16,
    child: Child,
}

impl Sshd {
    /// Starts an sshd with the server executable in the servers' directory.
    #[track_caller]
    pub(crate) fn start() -> Sshd {
        let sshd = Sshd::start_without_server();
        programs::copy_server(&sshd.remote_dir().join("server"));
        sshd
    }

    /// Starts an sshd with an empty servers' directory.
    #[track_caller]
    pub(crate) fn start_without_server() -> Sshd {
        let program = sshd_program();
        let dir = tempfile::Builder::new().prefix("kv-sshd-").tempdir().expect("make a directory");
        fs::create_dir(dir.path().join("remote")).expect("make a directory");
        if rustix::process::geteuid().is_root() {
            // The directory to which sshd confines its unprivileged process. Usually a service
            // manager makes it.
            fs::create_dir_all("/run/sshd").expect("make /run/sshd");
        }
        for key in ["host_key", "good_key", "bad_key"] {
            make_key(&dir.path().join(key));
        }
        fs::copy(dir.path().join("good_key.pub"), dir.path().join("authorized_keys"))
            .expect("copy a key");
        let (child, port) = start_program(&program, dir.path());
        let sshd = Sshd { dir, user: user_name(), port, child };
        sshd.write_client_config("ssh_config", "good_key");
        sshd.write_client_config("refused_config", "bad_key");
        sshd
    }

    /// Returns the host as a cluster file names it.
    pub(crate) fn host(&self) -> String {
        format!("ssh://{}@127.0.0.1:{}", self.user, self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns an ssh configuration (`ssh -F`) with an accepted key.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("ssh_config")
    }

    /// Returns an ssh configuration (`ssh -F`) with a rejected key. The server then offers password
    /// authentication.
    pub(crate) fn refused_config(&self) -> PathBuf {
        self.dir.path().join("refused_config")
    }

    /// Returns the servers' remote directory.
    pub(crate) fn remote_dir(&self) -> PathBuf {
        self.dir.path().join("remote")
    }

    /// Returns the log of sshd.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("sshd.err")).unwrap_or_default()
    }

    /// Returns the options for a cluster of three servers in which server 1 is remote.
    pub(crate) fn cluster(&self) -> Builder {
        self.cluster_with(&self.config(), &self.remote_dir())
    }

    /// Same as [`Sshd::cluster`], with another ssh configuration and another remote directory.
    pub(crate) fn cluster_with(&self, config: &Path, remote_dir: &Path) -> Builder {
        let host = self.host();
        Cluster::builder()
            .cluster_file(format!("3\nlocalhost 0 0 0\n{host} 0 0 0\nlocalhost 0 0 0\n"))
            .flag("--advertise")
            .flag("127.0.0.1")
            .flag("--ssh-config")
            .flag(text(config))
            .flag("--remote-dir")
            .flag(text(remote_dir))
    }

    /// Kills sshd and all its connections. Processes started over them keep running.
    #[track_caller]
    pub(crate) fn kill(&mut self) {
        let listener = self.child.id();
        // While it is stopped, it forks no children and stays the parent of its existing ones.
        process::signal(listener, Signal::STOP);
        wait_for("the end of sshd's connections", PATIENCE, || {
            let family = process::descendants(listener);
            let connections: Vec<u32> =
                family.into_iter().filter(|pid| *pid != listener && is_sshd(*pid)).collect();
            for pid in &connections {
                process::signal(*pid, Signal::KILL);
            }
            connections.iter().all(|pid| !process::is_alive(*pid)).then_some(())
        });
        process::signal(listener, Signal::KILL);
        let _ = self.child.wait();
    }

    /// Starts sshd again on its port after [`Sshd::kill`].
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        let program = sshd_program();
        // Connections that are closing may hold the port for a moment.
        self.child = wait_for("sshd on its old port", PATIENCE, || {
            spawn_on(&program, self.dir.path(), self.port)
        });
    }

    fn write_client_config(&self, name: &str, key: &str) {
        let dir = self.dir.path();
        let host_key = fs::read_to_string(dir.join("host_key.pub")).expect("read a public key");
        let known = format!("[127.0.0.1]:{} {host_key}", self.port);
        fs::write(dir.join("known_hosts"), known).expect("write a file");
        let config = format!(
            "IdentityFile \"{0}/{key}\"\nIdentitiesOnly yes\nIdentityAgent none\n\
             UserKnownHostsFile \"{0}/known_hosts\"\nGlobalKnownHostsFile /dev/null\n\
             StrictHostKeyChecking yes\nUpdateHostKeys no\n",
            text(dir)
        );
        fs::write(dir.join(name), config).expect("write a file");
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            super::cluster::show_logs(self.dir.path());
            super::cluster::show_logs(&self.remote_dir());
        }
        process::end_all_in(&self.remote_dir());
        self.kill();
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// Finds sshd, whose directory is only on root's PATH. sshd must be started by its absolute path.
#[track_caller]
pub(crate) fn sshd_program() -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
    let found = std::env::split_paths(&path).map(|dir| dir.join("sshd")).find(|p| p.is_file());
    found.expect("sshd is missing: install openssh-server, or run scripts/setup.sh")
}

#[track_caller]
pub(crate) fn make_key(path: &Path) {
    let output = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "kv-test", "-f"])
        .arg(path)
        .output()
        .expect("ssh-keygen is missing: install openssh-client, or run scripts/setup.sh");
    assert!(output.status.success(), "{output:?}");
}

#[track_caller]
fn user_name() -> String {
    let output = Command::new("id").arg("-un").output().expect("run id");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("a name in UTF-8").trim().to_owned()
}

#[track_caller]
fn start_program(program: &Path, dir: &Path) -> (Child, u16) {
    for _ in 0..PORTS_TRIED {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("find a free port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        if let Some(child) = spawn_on(program, dir, port) {
            return (child, port);
        }
    }
    let said = fs::read_to_string(dir.join("sshd.err")).unwrap_or_default();
    panic!("sshd does not start:\n{said}");
}

/// Starts sshd on this port and waits until it responds. `None`: it has ended.
#[track_caller]
fn spawn_on(program: &Path, dir: &Path, port: u16) -> Option<Child> {
    let own = text(dir);
    let config = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey \"{own}/host_key\"\n\
         AuthorizedKeysFile \"{own}/authorized_keys\"\nPidFile \"{own}/sshd.pid\"\n\
         PermitRootLogin yes\nPasswordAuthentication yes\nKbdInteractiveAuthentication no\n\
         StrictModes no\nUsePAM no\nMaxStartups 100\nPrintMotd no\nLogLevel VERBOSE\n"
    );
    fs::write(dir.join("sshd_config"), config).expect("write a file");
    let said = File::create(dir.join("sshd.err")).expect("create a file");
    let mut command = Command::new(program);
    command.args(["-D", "-e", "-f"]).arg(dir.join("sshd_config"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
    // SAFETY: prctl takes integers and is safe to call between fork and exec. If the test's process
    // is killed, sshd ends.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn().expect("start sshd");
    let answers = wait_for("sshd to answer or to end", PATIENCE, || {
        if child.try_wait().expect("wait for sshd").is_some() {
            return Some(false);
        }
        greets(port).then_some(true)
    });
    answers.then_some(child)
}

fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return false };
    let mut greeting = [0; 4];
    stream.set_read_timeout(Some(GREETING_LIMIT)).expect("set a time limit");
    stream.read_exact(&mut greeting).is_ok() && greeting == *b"SSH-"
}

/// Returns true for sshd itself and for the programs that it runs for each connection
/// (sshd-session, sshd-auth).
fn is_sshd(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("sshd"))
}
