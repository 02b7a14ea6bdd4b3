//! Transfer of the chosen dumps to a server on another machine, before it is started.
//!
//! The local ssh process reads the file. A remote script receives the bytes and counts them. The server checks the
//! whole file while it loads the file.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kv_core::cluster::DUMP_BYTES_PER_SECOND;
use kv_daemon::files;
use kv_protocol::ServerId;
use kv_protocol::cluster_file::Host;
use tokio::process::Command;
use tokio::time::timeout;

use super::Load;
use crate::printable::last_lines;
use crate::quote;
use crate::spawn::ssh::Ssh;

/// The timeout for connecting, in addition to the time for the bytes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the remote name of the n-th file that a server loads, in the servers' directory.
pub(crate) fn name(server: ServerId, n: usize) -> String {
    format!("server_{server}.load.{n}")
}

/// Transfers every file that a server loads.
///
/// # Errors
/// A transfer failed; the message has the file and the reason.
pub(crate) async fn all(
    ssh: &Ssh,
    host: &Host,
    server: ServerId,
    loads: &[Load],
) -> Result<(), String> {
    for (n, load) in loads.iter().enumerate() {
        let shown = load.file.display();
        let (name, bytes) = (name(server, n), load.bytes);
        tracing::info!("copying {shown} to {host} as {name}, {bytes} bytes");
        one(ssh, host, &name, &load.file, bytes)
            .await
            .map_err(|reason| format!("cannot copy {shown} to {host}: {reason}"))?;
    }
    Ok(())
}

async fn one(ssh: &Ssh, host: &Host, name: &str, file: &Path, bytes: u64) -> Result<(), String> {
    let input = files::open(file).map_err(|error| error.to_string())?;
    let child = Command::new("ssh")
        .args(ssh.arguments(host, &script(&ssh.remote_dir, name, bytes)))
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            format!("cannot start ssh: {error}; check that the ssh client is installed")
        })?;
    let limit = CONNECT_TIMEOUT + Duration::from_secs(bytes / DUMP_BYTES_PER_SECOND);
    let output = timeout(limit, child.wait_with_output())
        .await
        .map_err(|_| format!("it took longer than {} s", limit.as_secs()))?
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(last_lines(&output.stderr).unwrap_or_else(|| format!("ssh: {}", output.status)))
}

fn script(dir: &str, name: &str, bytes: u64) -> String {
    format!(
        "cd {} || exit 1\numask 077\nrm -f {name}.tmp\nset -C\ncat >{name}.tmp || exit 1\ngot=$(wc -c <{name}.tmp)\n\
         [ \"$got\" -eq {bytes} ] || {{ echo \"received $got of {bytes} bytes\" >&2; exit 1; }}\n\
         mv {name}.tmp {name}\n",
        quote::word(dir)
    )
}

/// Removes the transferred files of a server from its host. Files that cannot be removed only occupy space.
pub(crate) async fn remove(ssh: &Ssh, host: &Host, server: ServerId, count: usize) {
    let names: Vec<String> = (0..count).map(|n| name(server, n)).collect();
    let script = format!("cd {} && rm -f {}\n", quote::word(&ssh.remote_dir), names.join(" "));
    if let Err(error) = ssh.run(host, &script).await {
        tracing::warn!("cannot remove {} on {host}: {error}", names.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_transfer_is_not_accepted_as_the_dump() {
        use std::io::Write as _;
        let dir = tempfile::tempdir().unwrap();
        let run = |bytes| {
            let mut child = std::process::Command::new("sh")
                .args(["-c", &script(&dir.path().to_string_lossy(), "x", bytes)])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(b"12345").unwrap();
            child.wait_with_output().unwrap()
        };
        let short = run(6);
        assert!(!short.status.success());
        assert!(String::from_utf8_lossy(&short.stderr).contains("5 of 6 bytes"));
        assert!(!dir.path().join("x").exists());
        // A link that another user has put in the place of the file is not followed, and the new file is private.
        std::fs::write(dir.path().join("victim"), "precious").unwrap();
        let _ = std::fs::remove_file(dir.path().join("x.tmp"));
        std::os::unix::fs::symlink("victim", dir.path().join("x.tmp")).unwrap();
        assert!(run(5).status.success());
        assert_eq!(std::fs::read(dir.path().join("victim")).unwrap(), b"precious");
        let mode = std::fs::symlink_metadata(dir.path().join("x")).unwrap().permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
        assert_eq!(std::fs::read(dir.path().join("x")).unwrap(), b"12345");
    }
}
