//! A request for a page of the entries of one shard, and the page.
//!
//! ```text
//!   page    next cursor u64 | entries of the shard u64 | item | item | ...
//!   item    flags u8 | key length u16 | value length u32 | version u64 | deadline u64, if any | key | value, if any
//! ```
//!
//! A shard is read in the order of its keyed hash, which is the same at all servers of a cluster. A cursor is a
//! position in this order, so it stays valid when the table changes and when another server becomes the primary
//! (docs/decisions/2026-11-30-a-scan-survives-a-failover.md).

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::ids::{SequenceNumber, WallTime};

/// The number of bytes of keys and values after which a page ends. The last item may exceed it.
pub const SCAN_PAGE_BYTES: usize = 64 << 10;
/// The maximum length of a value in a page. The item of an entry with a longer value has only the length of the value.
pub const SCAN_VALUE_BYTES_MAX: usize = SCAN_PAGE_BYTES;

/// The number of bytes of an item besides its deadline, its key and its value.
const ITEM_FIXED_BYTES: usize = 1 + 2 + 4 + 8;

const VALUES: u8 = 1;
const DEADLINES: u8 = 2;

/// A request for a page: the entries from a cursor on whose keys match the pattern in the request's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The position in the shard; zero at its start.
    pub cursor: u64,
    /// True if the items have values.
    pub values: bool,
    /// True if the items have deadlines.
    pub deadlines: bool,
}

impl Scan {
    /// Encodes the flags for the field `replica`.
    pub(super) fn flags(self) -> u8 {
        flag(self.values, VALUES) | flag(self.deadlines, DEADLINES)
    }

    /// Decodes the fields `if_version` and `replica`.
    pub(super) fn from_wire(cursor: u64, flags: u8) -> Result<Scan, DecodeError> {
        if flags & !(VALUES | DEADLINES) != 0 {
            return Err(DecodeError::BadValue { field: "flags", value: flags.into() });
        }
        Ok(Scan { cursor, values: flags & VALUES != 0, deadlines: flags & DEADLINES != 0 })
    }
}

fn flag(is_set: bool, flag: u8) -> u8 {
    if is_set { flag } else { 0 }
}

/// An entry in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanItem<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The length of the value.
    pub value_length: u32,
    /// The value, if the request asks for values and this one is not longer than [`SCAN_VALUE_BYTES_MAX`].
    pub value: Option<&'a [u8]>,
    /// The version of the entry.
    pub version: SequenceNumber,
    /// The deadline of the entry, if it has one and the request asks for deadlines.
    pub deadline: Option<WallTime>,
    /// True if the server has not compared the key with the pattern, because that takes too long. The client does so.
    pub is_unmatched: bool,
}

const HAS_VALUE: u8 = 1;
const HAS_DEADLINE: u8 = 2;
const IS_UNMATCHED: u8 = 4;

impl<'a> ScanItem<'a> {
    fn write(&self, output: &mut Vec<u8>) {
        let flags = flag(self.value.is_some(), HAS_VALUE)
            | flag(self.deadline.is_some(), HAS_DEADLINE)
            | flag(self.is_unmatched, IS_UNMATCHED);
        output.put_u8(flags);
        output.put_u16(u16::try_from(self.key.len()).expect("a key has at most 65,535 bytes"));
        output.put_u32(self.value_length);
        output.put_u64(self.version.0);
        if let Some(deadline) = self.deadline {
            output.put_u64(deadline.millis());
        }
        output.put_bytes(self.key);
        output.put_bytes(self.value.unwrap_or(&[]));
    }

    fn read(reader: &mut Reader<'a>) -> Result<ScanItem<'a>, DecodeError> {
        let flags = reader.u8("flags of an item")?;
        if flags & !(HAS_VALUE | HAS_DEADLINE | IS_UNMATCHED) != 0 {
            return Err(DecodeError::BadValue { field: "flags of an item", value: flags.into() });
        }
        let key_length = usize::from(reader.u16("key length")?);
        let value_length = reader.u32("value length")?;
        let version = SequenceNumber(reader.u64("version")?);
        let deadline = match flags & HAS_DEADLINE {
            0 => None,
            _ => Some(WallTime::from_millis(reader.u64("deadline")?)),
        };
        let key = reader.bytes(key_length, "key")?;
        let value = match flags & HAS_VALUE {
            0 => None,
            _ => Some(reader.bytes(value_length as usize, "value")?),
        };
        let is_unmatched = flags & IS_UNMATCHED != 0;
        Ok(ScanItem { key, value_length, value, version, deadline, is_unmatched })
    }
}

/// A page that is being filled.
#[derive(Debug)]
pub struct PageWriter {
    bytes: Vec<u8>,
    /// The number of bytes of keys and values.
    content: usize,
}

impl PageWriter {
    /// Creates a page without items; `entries` is the number of entries of the shard.
    pub fn new(entries: u64) -> PageWriter {
        let mut bytes = Vec::new();
        bytes.put_u64(0);
        bytes.put_u64(entries);
        PageWriter { bytes, content: 0 }
    }

    /// Adds an item.
    pub fn push(&mut self, item: &ScanItem<'_>) {
        self.content += item.key.len() + item.value.map_or(0, <[u8]>::len) + ITEM_FIXED_BYTES;
        item.write(&mut self.bytes);
    }

    /// Returns whether the page has enough bytes.
    pub fn is_full(&self) -> bool {
        self.content >= SCAN_PAGE_BYTES
    }

    /// Returns the encoded page; `next` is the cursor of the next page, or zero after the last one.
    pub fn finish(mut self, next: u64) -> Vec<u8> {
        self.bytes[..8].copy_from_slice(&next.to_le_bytes());
        self.bytes
    }
}

/// A page, borrowed from the value of its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanPage<'a> {
    /// The cursor of the next page; zero if this is the last one of the shard.
    pub next: u64,
    /// The number of entries of the shard, including those that expire and are not removed yet.
    pub entries: u64,
    /// The encoded items, which were checked.
    items: &'a [u8],
}

impl<'a> ScanPage<'a> {
    /// Reads a page from the value of a response.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn read(value: &'a [u8]) -> Result<ScanPage<'a>, DecodeError> {
        let mut reader = Reader::new(value);
        let next = reader.u64("next cursor")?;
        let entries = reader.u64("entries")?;
        let items = reader.remainder();
        let mut reader = Reader::new(items);
        while reader.left() > 0 {
            ScanItem::read(&mut reader)?;
        }
        Ok(ScanPage { next, entries, items })
    }

    /// Returns the items.
    pub fn items(&self) -> impl Iterator<Item = ScanItem<'a>> {
        let mut reader = Reader::new(self.items);
        std::iter::from_fn(move || {
            (reader.left() > 0).then(|| ScanItem::read(&mut reader).ok()).flatten()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item<'a>(key: &'a [u8], value: Option<&'a [u8]>) -> ScanItem<'a> {
        let value_length = value.map_or(7, |value| u32::try_from(value.len()).unwrap());
        let version = SequenceNumber(9);
        ScanItem { key, value_length, value, version, deadline: None, is_unmatched: false }
    }

    #[test]
    fn a_page_has_the_layout_of_the_protocol() {
        let mut page = PageWriter::new(3);
        page.push(&ScanItem { is_unmatched: true, ..item(b"k", None) });
        let deadline = Some(WallTime::from_millis(5));
        page.push(&ScanItem { deadline, ..item(b"ab", Some(b"xyz")) });
        let mut expected = Vec::new();
        expected.extend([8, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([4, 1, 0, 7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend(b"k");
        expected.extend([3, 2, 0, 3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend(b"abxyz");
        assert_eq!(page.finish(8), expected);
    }

    #[test]
    fn a_page_is_full_at_its_limit() {
        let mut page = PageWriter::new(1);
        let value = vec![1; SCAN_VALUE_BYTES_MAX / 2];
        page.push(&item(b"k", Some(&value)));
        assert!(!page.is_full());
        page.push(&item(b"k", Some(&value)));
        assert!(page.is_full());
    }

    proptest! {
        #[test]
        fn pages_come_back(
            next: u64, entries: u64, millis in prop::option::of(0u64..1 << 48),
            items in prop::collection::vec((
                prop::collection::vec(any::<u8>(), 0..20),
                prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
                any::<bool>(),
            ), 0..10),
        ) {
            let deadline = millis.map(WallTime::from_millis);
            let items: Vec<ScanItem<'_>> = items
                .iter()
                .map(|(key, value, is_unmatched)| ScanItem {
                    is_unmatched: *is_unmatched, deadline, ..item(key, value.as_deref())
                })
                .collect();
            let mut page = PageWriter::new(entries);
            items.iter().for_each(|item| page.push(item));
            let bytes = page.finish(next);
            let page = ScanPage::read(&bytes).unwrap();
            prop_assert_eq!((page.next, page.entries), (next, entries));
            prop_assert_eq!(page.items().collect::<Vec<_>>(), items);
            if bytes.len() > 16 {
                prop_assert!(ScanPage::read(&bytes[..bytes.len() - 1]).is_err());
            }
        }

        #[test]
        fn arbitrary_bytes_cause_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(page) = ScanPage::read(&bytes) {
                page.items().for_each(drop);
            }
        }
    }
}
