//! The keys of a run: zero-padded decimal numbers, in one list or in one list for each shard.

use kv_protocol::ids::{GroupId, ShardId};
use kv_protocol::placement::Placement;

use crate::distribution::{KeyDistribution, Popularity};

/// One list of keys, and the distribution by which they are drawn.
#[derive(Debug)]
pub(crate) struct List {
    numbers: Numbers,
    pub(crate) distribution: KeyDistribution,
}

#[derive(Debug)]
enum Numbers {
    /// All numbers from zero up to, but not including, this count.
    All(u32),
    Some(Box<[u32]>),
}

impl List {
    /// Returns the number of the key at an index of the list.
    pub(crate) fn key(&self, place: u64) -> u32 {
        match &self.numbers {
            Numbers::All(_) => u32::try_from(place).expect("a place in the list"),
            Numbers::Some(numbers) => numbers[crate::numbers::index(place)],
        }
    }

    pub(crate) fn len(&self) -> u64 {
        match &self.numbers {
            Numbers::All(count) => u64::from(*count),
            Numbers::Some(numbers) => numbers.len() as u64,
        }
    }
}

/// All keys of a run.
#[derive(Debug)]
pub(crate) struct Keyspace {
    /// The lists; there is at least one, and none is empty.
    pub(crate) lists: Vec<List>,
    /// An upper bound of the key numbers, exclusive.
    pub(crate) bound: u32,
    /// The bytes of a key.
    width: usize,
}

impl Keyspace {
    /// Creates `count` keys in one list.
    pub(crate) fn whole(count: u32, width: usize, popularity: Popularity) -> Keyspace {
        let distribution = KeyDistribution::new(popularity, count.into());
        let list = List { numbers: Numbers::All(count), distribution };
        Keyspace { lists: vec![list], bound: count, width }
    }

    /// Creates `count` keys, with one list for each shard of each group. If `group` is given, all keys belong to that
    /// group. The error names the first shard without a key.
    pub(crate) fn placed(
        count: u32,
        width: usize,
        popularity: Popularity,
        placement: Placement,
        group: Option<GroupId>,
    ) -> Result<Keyspace, (GroupId, ShardId)> {
        let groups = match group {
            Some(group) => vec![group],
            None => (0..placement.servers()).map(GroupId).collect(),
        };
        let shards = usize::from(placement.shards());
        let mut lists: Vec<Vec<u32>> = vec![Vec::new(); groups.len() * shards];
        let (mut found, mut number) = (0, 0);
        let mut key = Vec::new();
        while found < count {
            write_key(number, width, &mut key);
            let (of, shard) = placement.locate(&key);
            if let Some(at) = groups.iter().position(|group| *group == of) {
                lists[at * shards + usize::from(shard.0)].push(number);
                found += 1;
            }
            number += 1;
        }
        if let Some(empty) = lists.iter().position(Vec::is_empty) {
            let shard = u16::try_from(empty % shards).unwrap_or(u16::MAX);
            return Err((groups[empty / shards], ShardId(shard)));
        }
        let lists = lists.into_iter().map(|numbers| List {
            distribution: KeyDistribution::new(popularity, numbers.len() as u64),
            numbers: Numbers::Some(numbers.into()),
        });
        Ok(Keyspace { lists: lists.collect(), bound: number, width })
    }

    /// Returns the number of keys.
    pub(crate) fn len(&self) -> u64 {
        self.lists.iter().map(List::len).sum()
    }

    /// Writes the bytes of a key into `into`, replacing its contents.
    pub(crate) fn write(&self, number: u32, into: &mut Vec<u8>) {
        write_key(number, self.width, into);
    }
}

/// Writes the number in decimal, zero-padded to `width` bytes.
fn write_key(mut number: u32, width: usize, into: &mut Vec<u8>) {
    into.clear();
    into.resize(width, b'0');
    for digit in into.iter_mut().rev() {
        if number == 0 {
            break;
        }
        *digit = b'0' + u8::try_from(number % 10).expect("a digit");
        number /= 10;
    }
    assert_eq!(number, 0, "the command line was checked: keys are wide enough");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decimal_numbers_of_equal_width() {
        let keys = Keyspace::whole(1_000_000, 16, Popularity::Uniform);
        let mut key = Vec::new();
        keys.write(123_456, &mut key);
        assert_eq!(key, b"0000000000123456");
        keys.write(0, &mut key);
        assert_eq!(key, b"0000000000000000");
    }

    #[test]
    fn every_key_is_placed_on_the_shard_of_its_list() {
        let placement = Placement::new(3, 2);
        let keys = Keyspace::placed(999, 16, Popularity::Uniform, placement, None).unwrap();
        assert_eq!((keys.lists.len(), keys.len()), (6, 999));
        let mut key = Vec::new();
        for (at, list) in (0u16..).zip(&keys.lists) {
            for place in 0..list.len() {
                keys.write(list.key(place), &mut key);
                let (group, shard) = placement.locate(&key);
                assert_eq!(group.0 * 2 + shard.0, at);
            }
        }
    }

    #[test]
    fn a_single_group_has_the_requested_number_of_keys() {
        let placement = Placement::new(3, 1);
        let group = Some(GroupId(1));
        let keys = Keyspace::placed(500, 16, Popularity::Uniform, placement, group).unwrap();
        assert_eq!((keys.lists.len(), keys.len()), (1, 500));
        assert!(keys.bound > 1_000, "two of three keys are in other groups");
    }

    #[test]
    fn a_shard_without_a_key_is_named() {
        let placement = Placement::new(3, 64);
        let refused = Keyspace::placed(5, 16, Popularity::Uniform, placement, None);
        assert!(refused.is_err());
    }
}
