//! Bulk data. It makes the copies of tables take longer, and must be present in the dumps.

use std::time::Duration;

use anyhow::{Context as _, bail};
use kv_client::{Client, Op, OpOptions, Options, SubmitError};

/// A number of entries with values of one length. Their keys differ from those of the clients' operations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bulk {
    pub(crate) count: u64,
    pub(crate) value_bytes: usize,
}

impl Bulk {
    /// Returns the key of an entry.
    pub(crate) fn key(number: u64) -> String {
        format!("bulk-{number}")
    }

    /// Returns the value of an entry.
    pub(crate) fn value(self, number: u64) -> Vec<u8> {
        let mut value = number.to_le_bytes().to_vec();
        value.resize(self.value_bytes.max(8), value[0]);
        value
    }

    /// Writes all entries. After each batch of responses, calls `told` with the number of entries written so far.
    pub(crate) fn write(self, endpoint: &str, told: impl FnMut(u64)) -> anyhow::Result<()> {
        let submit = |client: &mut Client, number| {
            let (key, value) = (Bulk::key(number), self.value(number));
            let op = Op::Put { key: key.as_bytes(), value: &value };
            client.submit(op, &OpOptions::default(), number)
        };
        fill(endpoint, self.count, submit, told)
    }
}

/// Writes `count` entries with many writes in flight. `submit` begins the write of an entry. After each batch of
/// responses, calls `told` with the number of entries written so far.
pub(crate) fn fill(
    endpoint: &str,
    count: u64,
    submit: impl Fn(&mut Client, u64) -> Result<(), SubmitError>,
    mut told: impl FnMut(u64),
) -> anyhow::Result<()> {
    let options = Options { window: 256, deadline: Duration::from_secs(60), ..Options::default() };
    let mut client = Client::open(endpoint, options)?;
    let (mut next, mut done, mut ended) = (0, 0, Vec::new());
    while done < count {
        while next < count {
            match submit(&mut client, next) {
                Ok(()) => next += 1,
                Err(SubmitError::Full { .. }) => break,
                Err(error) => bail!("write entry {next}: {error}"),
            }
        }
        client.poll(Duration::from_secs(1), &mut ended).context("wait for responses")?;
        for completion in ended.drain(..) {
            completion.result.context("write an entry")?;
            done += 1;
        }
        told(done);
    }
    Ok(())
}
