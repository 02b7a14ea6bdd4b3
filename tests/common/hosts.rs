//! Hosts on this machine. Each is a pair of network and mount namespaces with an sshd, and a bridge connects them. They
//! have the addresses, users and directories of docs/operations.md.
//!
//! ```text
//!   10.0.0.10  coordinator    the bridge, and what `make all` leaves in /opt/ftkv
//!   10.0.0.11  its spare      the same files
//!   10.0.0.1 … 10.0.0.4       hosts of servers
//!
//!   /opt/kv      home of the user kv, another name of root here; every sshd accepts its key
//!   /opt, /mnt   private to each host; everything else is shared, including process ids
//! ```
//!
//! A shell keeps each host alive. The shell waits for the end of a pipe that the test keeps open. Then it kills all
//! processes in its network namespace and exits. The namespaces, links and mounts disappear with the last process,
//! however the test ends.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kv_testkit::sshd::{SETTINGS, make_key, sshd_program};
use tempfile::TempDir;

use super::process::{self, Signal};
use super::programs::{self, CLIENT, COORD, Ended, SERVER, show_logs};
use super::{TIMEOUT, done, poll, turn, wait_until};

/// Time limit for one block of commands.
pub(crate) const COMMANDS_LIMIT: Duration = Duration::from_secs(90);
/// The coordinator's host.
pub(crate) const COORDINATOR: &str = "10.0.0.10";
/// The spare host for the coordinator.
pub(crate) const SPARE: &str = "10.0.0.11";
/// The hosts of servers; the last one is a spare.
pub(crate) const SERVERS: [&str; 4] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
/// The path of the checkout on both coordinator hosts.
pub(crate) const CHECKOUT: &str = "/opt/ftkv";

/// The script that keeps a host alive. $1 is the directory with its mounts.
const HOLDER: &str = r#"
mount --bind "$1/opt" /opt
mount --bind "$1/mnt" /mnt
mount --bind "$1/passwd" /etc/passwd
ip link set lo up
echo ready
read -r _ || :
all=1
while [ "$all" ]; do
    all=
    for process in /proc/[0-9]*; do
        [ "${process#/proc/}" != $$ ] && [ "$process/ns/net" -ef /proc/$$/ns/net ] || continue
        all=1
        kill -KILL "${process#/proc/}"
    done
done
"#;

/// One host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) address: &'static str,
    dir: PathBuf,
    holder: Child,
    sshd: Option<Child>,
}

/// All hosts.
#[derive(Debug)]
pub(crate) struct Hosts {
    all: Vec<Host>,
    dir: TempDir,
}

/// Returns the reason why this machine does not permit such hosts, or `None` if it does.
pub(crate) fn missing() -> Option<String> {
    let mut trial = Command::new("unshare");
    trial.args(["--net", "--mount", "sh", "-c"]);
    trial.arg("ip link add hub type bridge && mount --bind /opt /opt && mount --bind /mnt /mnt");
    match trial.output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

impl Hosts {
    /// Makes all hosts, each with an sshd, and the checkouts on the coordinator hosts.
    #[track_caller]
    pub(crate) fn make() -> Hosts {
        turn::take();
        let dir = tempfile::Builder::new().prefix("kv-hosts-").tempdir().expect("make a directory");
        fs::create_dir_all("/run/sshd").expect("make /run/sshd");
        for key in ["host_key", "user_key"] {
            done(make_key(&dir.path().join(key)));
        }
        write_config(dir.path());
        let mut hosts = Hosts { all: Vec::new(), dir };
        for address in [COORDINATOR, SPARE].into_iter().chain(SERVERS) {
            let host = Host::make(address, hosts.dir.path());
            hosts.all.push(host);
            hosts.connect(address);
        }
        for host in &mut hosts.all {
            host.start_sshd();
        }
        hosts
    }

    pub(crate) fn at(&self, address: &str) -> &Host {
        self.all.iter().find(|host| host.address == address).expect("one of the hosts")
    }

    pub(crate) fn at_mut(&mut self, address: &str) -> &mut Host {
        self.all.iter_mut().find(|host| host.address == address).expect("one of the hosts")
    }

    /// Joins the newest host to the bridge, or makes the bridge on the first host.
    #[track_caller]
    fn connect(&self, address: &str) {
        let (hub, host) = (&self.all[0], self.at(address));
        let device = if address == hub.address { "hub" } else { "eth0" };
        if device == "hub" {
            hub.run("ip link add hub type bridge").with_code(0);
        } else {
            let (number, holder) = (self.all.len(), host.holder.id());
            hub.run(&format!(
                "ip link add h{number} type veth peer name eth0 netns {holder} && ip link set h{number} master hub up"
            ))
            .with_code(0);
        }
        host.run(&format!("ip address add {address}/24 dev {device} && ip link set {device} up"))
            .with_code(0);
    }
}

impl Host {
    #[track_caller]
    fn make(address: &'static str, shared: &Path) -> Host {
        let dir = shared.join(address);
        for folder in ["opt/kv/.ssh", "mnt"] {
            fs::create_dir_all(dir.join(folder)).expect("make a directory");
        }
        let passwd = fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
        // ssh uses the first entry with root's id.
        let passwd = format!("kv:x:0:0::/opt/kv:/bin/sh\n{passwd}");
        fs::write(dir.join("passwd"), passwd).expect("write a file");
        if [COORDINATOR, SPARE].contains(&address) {
            make_checkout(&dir.join("opt/ftkv"));
            let ssh = dir.join("opt/kv/.ssh");
            fs::copy(shared.join("user_key"), ssh.join("id_ed25519")).expect("copy a key");
            let host_key = fs::read_to_string(shared.join("host_key.pub")).expect("read a key");
            fs::write(ssh.join("known_hosts"), format!("10.0.0.* {host_key}")).expect("write");
        }
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--propagation", "private", "sh", "-e", "-c", HOLDER]);
        command.args(["holder", dir.to_str().expect("a path in UTF-8")]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("start unshare");
        let mut line = String::new();
        let stdout = holder.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("read a line");
        assert_eq!(line, "ready\n", "host {address}");
        Host { address, dir, holder, sshd: None }
    }

    /// Returns the path of a directory or file of this host as seen from outside.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path.trim_start_matches('/'))
    }

    /// Returns a command that runs a program on this host.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--net", "--mount", program]);
        command.env_remove("SSH_AUTH_SOCK").env("HOME", "/opt/kv");
        command
    }

    /// Runs shell commands in the host's checkout, or in `/opt`. The first failure ends them.
    #[track_caller]
    pub(crate) fn run(&self, commands: &str) -> Ended {
        programs::finish(self.shell(commands), "", COMMANDS_LIMIT)
    }

    /// Starts shell commands without waiting. Their output goes to a file, which is printed if the
    /// test fails.
    #[track_caller]
    pub(crate) fn start(&self, commands: &str) -> Child {
        let words = File::create(self.path("opt/started.log")).expect("create a file");
        let mut shell = self.shell(commands);
        let other = words.try_clone().expect("one more descriptor");
        shell.stdin(Stdio::null()).stdout(words).stderr(other);
        shell.spawn().expect("start a shell")
    }

    fn shell(&self, commands: &str) -> Command {
        for dangerous in ["reboot", "poweroff", "shutdown", "suspend", "pkill", "killall"] {
            assert!(!commands.contains(dangerous), "would affect the machine: {commands}");
        }
        let mut shell = self.command("bash");
        shell.args(["-euo", "pipefail", "-c"]);
        shell.arg(format!("cd {CHECKOUT} 2>/dev/null || cd /opt\n{commands}"));
        shell
    }

    /// Returns the network namespace, for a thread to enter.
    pub(crate) fn network(&self) -> File {
        File::open(format!("/proc/{}/ns/net", self.holder.id())).expect("open a namespace")
    }

    /// Returns all processes of this host except its holder.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let network = |pid: u32| {
            let found = fs::metadata(format!("/proc/{pid}/ns/net")).ok();
            found.map(|found| (found.dev(), found.ino()))
        };
        let own = network(self.holder.id());
        kv_testkit::process::all()
            .filter(|pid| *pid != self.holder.id() && network(*pid) == own)
            .collect()
    }

    /// Sends a signal to all processes of this host.
    pub(crate) fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            process::signal(pid, signal);
        }
    }

    /// Takes the link down and ends all processes of this host.
    #[track_caller]
    pub(crate) fn power_off(&mut self) {
        self.run("ip link set eth0 down").with_code(0);
        wait_until("the end of all processes of a host", TIMEOUT, || {
            self.signal(Signal::KILL);
            self.reap_sshd();
            self.processes().is_empty()
        });
    }

    /// Starts the host again, with only its sshd.
    #[track_caller]
    pub(crate) fn power_on(&mut self) {
        self.run("ip link set eth0 up").with_code(0);
        self.start_sshd();
    }

    fn reap_sshd(&mut self) {
        if let Some(sshd) = &mut self.sshd
            && sshd.try_wait().expect("wait for sshd").is_some()
        {
            self.sshd = None;
        }
    }

    #[track_caller]
    fn start_sshd(&mut self) {
        let config = self.dir.parent().expect("the directory of all").join("sshd_config");
        let mut command = self.command(done(sshd_program()).to_str().expect("a path in UTF-8"));
        command.args(["-D", "-e", "-f"]).arg(config).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(self.path("sshd.err")).expect("create a file"));
        let sshd = command.spawn().expect("start sshd");
        let pid = sshd.id();
        self.sshd = Some(sshd);
        wait_until("sshd to listen", TIMEOUT, || process::listening_ports(pid).contains(&22));
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in &self.all {
                for dir in ["opt", "opt/ftkv/run", "opt/kv/ftkv"] {
                    show_logs(&host.path(dir));
                }
            }
        }
        for host in &mut self.all {
            drop(host.holder.stdin.take());
        }
        for host in &mut self.all {
            let sshd = &mut host.sshd;
            let ended = poll(TIMEOUT, || {
                // A child that has not been waited for still counts as a process.
                let _ = sshd.as_mut().map(Child::try_wait);
                host.holder.try_wait().ok().flatten()
            });
            if ended.is_none() {
                eprintln!("host {} still runs: {:?}", host.address, host.processes());
                let _ = host.holder.kill();
                let _ = host.holder.wait();
            }
        }
    }
}

/// Makes a checkout with the files that `make all` leaves.
#[track_caller]
fn make_checkout(root: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["scripts/lib", "bin"] {
        fs::create_dir_all(root.join(folder)).expect("make a directory");
    }
    for file in ["scripts/launch-cluster.sh", "scripts/lib/cluster.sh"] {
        programs::copy(&source.join(file), &root.join(file));
    }
    for program in [COORD, SERVER, CLIENT] {
        let name = Path::new(program).file_name().expect("a program's name");
        programs::copy(Path::new(program), &root.join("bin").join(name));
    }
}

/// Writes the configuration that all sshds read.
#[track_caller]
fn write_config(dir: &Path) {
    let own = dir.to_str().expect("a path in UTF-8");
    let config = format!(
        "ListenAddress 0.0.0.0:22\nHostKey \"{own}/host_key\"\nAuthorizedKeysFile \"{own}/user_key.pub\"\n\
         PidFile none\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n{SETTINGS}"
    );
    fs::write(dir.join("sshd_config"), config).expect("write a file");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("let sshd read it");
}
