//! A file that records which groups have a write in flight, in one byte for each client. All client processes write the
//! file, and the fault injector reads it to choose the time of a fault. The report counts the writes in flight from the
//! history instead.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// The maximum number of clients.
const MOST: usize = 256;

/// The file.
#[derive(Debug)]
pub(crate) struct Flight(File);

impl Flight {
    /// Creates the file with no write in flight.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Flight> {
        std::fs::write(path, [0; MOST]).with_context(|| format!("write {}", path.display()))?;
        Flight::open(path)
    }

    /// Opens an existing file.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Flight> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        Ok(Flight(file.with_context(|| format!("open {}", path.display()))?))
    }

    /// Records that a client has a write in flight to this group; with `None`, that it has none.
    pub(crate) fn set(&self, client: u32, group: Option<u16>) {
        let byte = group.map_or(0, |group| u8::try_from(group % 255).expect("below 255") + 1);
        // If the update fails, the time of a fault may be less suitable. There is no other effect.
        let _ = self.0.write_at(&[byte], u64::from(client) % MOST as u64);
    }

    /// Waits until a write to one of these groups is in flight, or `timeout` has passed.
    pub(crate) fn aim(&self, groups: &[u16], timeout: Duration) {
        let until = Instant::now() + timeout;
        let mut bytes = [0; MOST];
        let is_aimed = |byte: &u8| *byte > 0 && groups.contains(&u16::from(byte - 1));
        while Instant::now() < until {
            if self.0.read_at(&mut bytes, 0).is_ok() && bytes.iter().any(is_aimed) {
                return;
            }
            std::hint::spin_loop();
        }
    }
}
