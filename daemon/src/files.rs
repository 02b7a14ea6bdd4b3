//! Access to files in a directory to which other users may be able to write. A file is opened only if it belongs to
//! this user or to root. Exception: [`append`] does not check the target of a link.
//!
//! A link that another user has made could redirect a program that runs as root to any file on the machine. A file of
//! another user could supply a state, a key or data that the program never wrote.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Opens a file for reading.
///
/// # Errors
/// The error of open(2). [`io::ErrorKind::PermissionDenied`] if the file is a symbolic link, is not a regular file, or
/// belongs to neither this user nor root.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(path, File::options().read(true))
}

/// Opens a file with these options, without blocking. A symbolic link as the last component of the path is rejected.
///
/// The options must not include `truncate`: the owner of the file must be checked before the file is changed.
///
/// # Errors
/// The errors of [`open`].
pub fn open_with(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = options.custom_flags(flags).open(path).map_err(|error| {
        match error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
            true => refused("it is a symbolic link; put the file itself there".into()),
            false => error,
        }
    })?;
    check(&file)?;
    Ok(file)
}

/// Creates a file, or empties the existing one. Afterwards only the owner can access the file.
///
/// # Errors
/// The errors of [`open`], and of fchmod(2) and ftruncate(2).
pub fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::PermissionsExt as _;
    let file = open_with(path, File::options().write(true).create(true).mode(0o600))?;
    // A file left by an earlier version may be readable by every user.
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.set_len(0)?;
    Ok(file)
}

/// Opens a file for appending, or creates it so that only its owner can access it. The path may be a pipe or a device.
/// A link made by this user or by root is followed, because logs are redirected that way; the owner of its target is
/// not checked.
///
/// # Errors
/// The error of open(2) or readlink(2). [`io::ErrorKind::PermissionDenied`] if the file or the link belongs to neither
/// this user nor root.
pub fn append(path: &Path) -> io::Result<File> {
    let no_follow = OFlags::NOFOLLOW.bits().cast_signed();
    let options = &mut File::options();
    options.create(true).append(true).mode(0o600);
    match options.clone().custom_flags(no_follow).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {}
        opened => return opened.and_then(|file| check_owner(&file).map(|()| file)),
    }
    // The link that is checked is the link that is followed: it cannot be replaced in between.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    check_owner(&link)?;
    let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
    let target = Path::new(OsStr::from_bytes(target.as_bytes()));
    options.open(path.parent().unwrap_or(Path::new("")).join(target))
}

/// Opens a file like [`append`], and empties it if it is a regular file.
///
/// # Errors
/// The errors of [`append`], and of ftruncate(2).
pub fn append_anew(path: &Path) -> io::Result<File> {
    let file = append(path)?;
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Checks that this is a regular file of this user, or of root.
fn check(file: &File) -> io::Result<()> {
    if !file.metadata()?.is_file() {
        return Err(refused("it is not a regular file; put one there, or remove it".into()));
    }
    check_owner(file)
}

fn check_owner(file: &File) -> io::Result<()> {
    let metadata = file.metadata()?;
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != own && owner != 0 {
        return Err(refused(format!(
            "it belongs to the user with id {owner}, but this process runs as user {own}; change its owner \
             (chown) if you trust it, or start as that user"
        )));
    }
    Ok(())
}

fn refused(words: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, words)
}

/// Reads some bytes like [`io::Read::read`], and retries if a signal interrupts the call.
///
/// # Errors
/// The error of the read, unless it is [`io::ErrorKind::Interrupted`].
pub fn read_some(file: &mut impl io::Read, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// Returns the message of the error for a rejected file.
    fn refusal(result: io::Result<File>) -> String {
        let error = result.expect_err("it must be rejected");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        error.to_string()
    }

    #[test]
    fn a_link_is_neither_read_nor_written_through() {
        let directory = tempfile::tempdir().unwrap();
        let (victim, link) = (directory.path().join("victim"), directory.path().join("link"));
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, &link).unwrap();
        assert!(refusal(open(&link)).contains("symbolic link"));
        assert!(refusal(create(&link)).contains("symbolic link"));
        let missing = directory.path().join("missing");
        fs::remove_file(&link).unwrap();
        symlink(&missing, &link).unwrap();
        assert!(refusal(create(&link)).contains("symbolic link"));
        assert!(!missing.exists());
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn a_pipe_is_rejected_without_blocking() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        assert!(refusal(open(&path)).contains("not a regular file"));
        assert!(refusal(open(Path::new("/dev/null"))).contains("not a regular file"));
    }

    #[test]
    fn a_file_of_another_user_is_rejected_and_left_unchanged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("planted");
        fs::write(&path, "planted").unwrap();
        // Only root can give a file away.
        match std::os::unix::fs::chown(&path, Some(12_345), None) {
            Ok(()) => {
                assert!(refusal(open(&path)).contains("12345"));
                assert!(refusal(create(&path)).contains("chown"));
                assert_eq!(fs::read(&path).unwrap(), b"planted");
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }

    #[test]
    fn a_log_follows_only_links_of_this_user_or_root() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("log"), directory.path().join("link"));
        symlink("log", &link).unwrap();
        for line in ["one\n", "two\n"] {
            io::Write::write_all(&mut append(&link).unwrap(), line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
        // Only root can give a link away.
        if std::os::unix::fs::lchown(&link, Some(12_345), None).is_ok() {
            assert!(refusal(append(&link)).contains("12345"));
            std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
            assert!(refusal(append(&path)).contains("12345"));
        }
    }

    #[test]
    fn a_created_file_is_empty_and_accessible_only_to_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for _ in 0..2 {
            let metadata = create(&path).unwrap().metadata().unwrap();
            assert_eq!((metadata.permissions().mode() & 0o777, metadata.len()), (0o600, 0));
            fs::write(&path, "longer").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        assert!(open(&path).is_ok());
    }
}
