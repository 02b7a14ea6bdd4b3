//! Keys that were copied out of the table, for the removal of their entries.

use kv_protocol::placement::Digest;

/// Copies of keys, one after the other.
#[derive(Debug, Default)]
pub(super) struct KeyList {
    bytes: Vec<u8>,
    /// The offset of the end of each key.
    ends: Vec<usize>,
}

impl KeyList {
    /// Appends a copy of a key.
    pub(super) fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len());
    }

    /// Returns the number of keys.
    pub(super) fn count(&self) -> usize {
        self.ends.len()
    }

    /// Returns the number of bytes of all keys.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Passes each key and its digest to `visit`, in order. Several digests are computed at once.
    pub(super) fn for_each(&self, mut visit: impl FnMut(Digest, &[u8])) {
        let mut start = 0;
        for ends in self.ends.chunks(Digest::TOGETHER) {
            let mut keys = [&[][..]; Digest::TOGETHER];
            for (key, end) in keys.iter_mut().zip(ends) {
                *key = &self.bytes[start..*end];
                start = *end;
            }
            let keys = &keys[..ends.len()];
            if keys.iter().all(|key| key.len() <= Digest::MAX_TOGETHER_BYTES) {
                let digests = Digest::of_several(keys);
                keys.iter().zip(digests).for_each(|(key, digest)| visit(digest, key));
            } else {
                keys.iter().for_each(|key| visit(Digest::of(key), key));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_visited_in_order_with_its_digest() {
        let lengths = (0..20).chain([200, 55, 56, 1]);
        let keys: Vec<Vec<u8>> = lengths.map(|length| vec![b'k'; length]).collect();
        for count in 0..=keys.len() {
            let mut list = KeyList::default();
            keys[..count].iter().for_each(|key| list.push(key));
            let mut visited = Vec::new();
            list.for_each(|digest, key| {
                assert_eq!(digest, Digest::of(key));
                visited.push(key.to_vec());
            });
            assert_eq!(visited, keys[..count]);
            let bytes = keys[..count].iter().map(Vec::len).sum::<usize>();
            assert_eq!((list.count(), list.bytes()), (count, bytes));
        }
    }
}
