//! Updates of many keys, as requests: one for each shard, or several where a limit requires it.

use std::collections::BTreeMap;

use kv_protocol::client_message::{REQUEST_FIXED_BYTES, Status};
use kv_protocol::limits::{MAX_CLIENT_BODY, MAX_UPDATES};
use kv_protocol::placement::Placement;
use kv_protocol::update::{Action, UPDATE_FIXED_BYTES, Update};

use crate::answer::Answer;
use crate::ask::Ask;
use crate::database::StoredKey;

/// An action on a stored key.
pub(super) type Item<'a> = (StoredKey<'a>, Action<'a>);

/// Returns the requests that execute an action on each stored key. They may be executed in any order, so no key may
/// occur twice unless the order does not matter.
pub(super) fn requests(placement: Placement, items: &[Item<'_>]) -> Vec<Ask> {
    if let [_] = items {
        return of_one_shard(items, &[0]);
    }
    let mut places: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (index, (key, _)) in items.iter().enumerate() {
        places.entry(placement.locate(key)).or_default().push(index);
    }
    places.values().flat_map(|indexes| of_one_shard(items, indexes)).collect()
}

fn of_one_shard(items: &[Item<'_>], indexes: &[usize]) -> Vec<Ask> {
    let mut asks = Vec::new();
    let mut batch: Vec<Update<'_>> = Vec::new();
    let (mut first, mut bytes) = (&[][..], 0);
    for &index in indexes {
        let (key, action) = &items[index];
        let update = Update::new(*action);
        let more = update.wire_bytes() + key.len();
        if batch.len() == MAX_UPDATES || bytes + more > MAX_CLIENT_BODY {
            asks.push(Ask::update(first, &batch));
            batch.clear();
        }
        // The first update has the key of the request, which is not repeated.
        if batch.is_empty() {
            (first, bytes) = (&**key, REQUEST_FIXED_BYTES + more);
            batch.push(update);
        } else {
            bytes += more;
            batch.push(Update { key: Some(key), ..update });
        }
    }
    if !batch.is_empty() {
        asks.push(Ask::update(first, &batch));
    }
    asks
}

/// Returns the number of updates of a request that changed something.
pub(super) fn executed(answer: &Answer<'_>) -> i64 {
    let count = match answer.value {
        Some(_) => answer.results().iter().filter(|result| result.status == Status::Ok).count(),
        None => answer.is_done().into(),
    };
    i64::try_from(count).unwrap_or(i64::MAX)
}

const _: () = assert!(UPDATE_FIXED_BYTES > 31, "a request that fits makes changes that fit");

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::client_message::Operation;
    use kv_protocol::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

    fn updates_of(asks: &[Ask]) -> Vec<usize> {
        let count = |ask: &Ask| match ask.request().operation {
            Operation::Update(_, updates) => updates.count(),
            other => panic!("{other:?}"),
        };
        asks.iter().map(count).collect()
    }

    #[test]
    fn requests_respect_the_limits_and_the_shards() {
        let placement = Placement::new(3, 2);
        let key = |index: usize| StoredKey::from(format!("key {index}").into_bytes());
        let items: Vec<_> = (0..20_000).map(|index| (key(index), Action::Delete)).collect();
        let asks = requests(placement, &items);
        assert_eq!(updates_of(&asks).iter().sum::<usize>(), items.len());
        for ask in &asks {
            let request = ask.request();
            let Operation::Update(_, updates) = request.operation else { panic!("no update") };
            assert!(updates.count() <= MAX_UPDATES);
            let place = placement.locate(request.key);
            let is_there = |update: Update<'_>| placement.locate(update.key.unwrap_or(request.key));
            assert!(updates.iter().all(|update| is_there(update) == place));
        }
    }

    #[test]
    fn the_longest_entry_fits_in_a_request_and_two_do_not() {
        let value = vec![1; MAX_VALUE_BYTES];
        let items: Vec<_> =
            (0..3).map(|byte| (vec![byte; MAX_KEY_BYTES].into(), Action::Put(&value))).collect();
        let asks = requests(Placement::new(1, 1), &items);
        assert_eq!(updates_of(&asks), [1, 1, 1]);
        assert!(asks.iter().all(|ask| ask.request().validate().is_err_and(|(_, reason)| {
            // The numbers of the session are those of the sender.
            reason.contains("first incomplete")
        })));
    }
}
