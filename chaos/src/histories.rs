//! The histories of the client processes of a round.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use kv_history::object::ObjectRecord;
use kv_history::{HistoryError, Operations, Record};

use crate::objects::Line;
use crate::objects::scanner::ScanRecord;

/// The merged histories.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histories {
    /// The operations on registers, in order of time.
    pub(crate) registers: Vec<Record>,
    /// The operations on objects.
    pub(crate) objects: Vec<ObjectRecord>,
    pub(crate) scans: Vec<ScanRecord>,
}

impl Histories {
    /// Creates histories of registers only.
    pub(crate) fn of_registers(registers: Vec<Record>) -> Histories {
        Histories { registers, ..Histories::default() }
    }

    /// Adds the lines of a process with operations on registers.
    pub(crate) fn read_registers(&mut self, path: &Path) -> anyhow::Result<()> {
        self.registers.extend(Record::parse_all(&read(path)?)?);
        Ok(())
    }

    /// Adds the lines of a process with operations on objects.
    pub(crate) fn read_objects(&mut self, path: &Path) -> anyhow::Result<()> {
        for (line, text) in (1..).zip(read(path)?.lines()) {
            let parsed = serde_json::from_str(text)
                .with_context(|| format!("parse line {line} of {}", path.display()))?;
            match parsed {
                Line::Object(record) => self.objects.push(record),
                Line::Scan(scan) => self.scans.push(scan),
            }
        }
        Ok(())
    }

    /// Returns the operations on registers and on objects. Those on an object count as operations on its first key.
    pub(crate) fn operations(&self) -> Result<Operations, HistoryError> {
        let mut operations = Operations::pair(&self.registers)?;
        for record in &self.objects {
            let key = record.keys.first().cloned().unwrap_or_default();
            operations.by_key.entry(key).or_default().push(record.operation());
        }
        for list in operations.by_key.values_mut() {
            list.sort_by_key(|operation| operation.start);
        }
        Ok(operations)
    }

    /// Returns the process numbers of all operations.
    pub(crate) fn processes(&self) -> impl Iterator<Item = u32> {
        let registers = self.registers.iter().map(|record| record.process);
        registers.chain(self.objects.iter().map(|record| record.client))
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}
