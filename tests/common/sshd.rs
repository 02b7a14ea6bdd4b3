//! An ssh server for one test, and a cluster with one server behind it.

use std::ops::Deref;
use std::path::Path;

use kv_testkit::sshd;
use tempfile::TempDir;

use super::cluster::Builder;
use super::programs;
use super::{Cluster, done, turn};

/// A running sshd, its keys, and a directory for servers.
#[derive(Debug)]
pub(crate) struct Sshd {
    // The sshd. It is dropped, and so ends, before its directory is removed.
    sshd: sshd::Sshd,
    dir: TempDir,
}

impl Sshd {
    /// Starts an sshd with the server executable in the servers' directory.
    #[track_caller]
    pub(crate) fn start() -> Sshd {
        let sshd = Sshd::start_without_server();
        programs::copy_server(&sshd.remote_dir().join("server"));
        sshd
    }

    /// Starts an sshd with an empty servers' directory. To a client with the rejected key, it offers password
    /// authentication.
    #[track_caller]
    pub(crate) fn start_without_server() -> Sshd {
        turn::take();
        let dir = tempfile::Builder::new().prefix("kv-sshd-").tempdir().expect("make a directory");
        let sshd = done(sshd::Sshd::start(dir.path(), "PasswordAuthentication yes\n"));
        Sshd { sshd, dir }
    }

    /// Returns the options for a cluster of three servers in which server 1 is remote.
    pub(crate) fn cluster(&self) -> Builder {
        self.cluster_with(&self.config(), &self.remote_dir())
    }

    /// Returns the same options as [`Sshd::cluster`], with another ssh configuration and another remote directory.
    pub(crate) fn cluster_with(&self, config: &Path, remote_dir: &Path) -> Builder {
        let host = self.host();
        let builder = Cluster::builder()
            .cluster_file(format!("3\nlocalhost 0 0 0\n{host} 0 0 0\nlocalhost 0 0 0\n"));
        sshd::Sshd::flags(config, remote_dir).into_iter().fold(builder, Builder::flag)
    }

    /// Kills sshd and all its connections. Processes started over them keep running.
    #[track_caller]
    pub(crate) fn kill(&mut self) {
        done(self.sshd.kill());
    }

    /// Starts sshd again on its port after [`Sshd::kill`].
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        done(self.sshd.restart());
    }
}

impl Deref for Sshd {
    type Target = sshd::Sshd;

    fn deref(&self) -> &sshd::Sshd {
        &self.sshd
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            programs::show_logs(self.dir.path());
            programs::show_logs(&self.remote_dir());
        }
    }
}
