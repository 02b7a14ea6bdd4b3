//! Random writes, losses and retries, compared with an ordinary map.

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Put(u8, usize),
    Delete(u8),
    PutIfAbsent(u8),
    Deliver,
    Ack,
    Lose,
    Reconnect,
    Retry,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..6, prop_oneof![0usize..40, 60_000usize..200_000]).prop_map(|(k, n)| Step::Put(k, n)),
        2 => (0u8..6).prop_map(Step::Delete),
        2 => (0u8..6).prop_map(Step::PutIfAbsent),
        3 => Just(Step::Deliver),
        3 => Just(Step::Ack),
        1 => Just(Step::Lose),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Retry),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Checks that writes take effect once, in order, at both holders, whatever is lost and sent again. The responses
    /// must equal those of a single table that executes the writes one after the other.
    #[test]
    fn losses_and_retries_do_not_change_the_outcome(steps in prop::collection::vec(step(), 1..80)) {
        let mut pair = Pair::new();
        let mut model: BTreeMap<Vec<u8>, (Vec<u8>, u64)> = BTreeMap::new();
        let mut expected = Vec::new();
        let mut sn = 0;
        let mut last_write: Option<(Vec<u8>, Option<Vec<u8>>, WriteHeader)> = None;
        for step in &steps {
            match *step {
                Step::Put(key, _) | Step::Delete(key) | Step::PutIfAbsent(key) => {
                    let absent = !model.contains_key(&vec![key]);
                    let condition = match step {
                        Step::PutIfAbsent(_) => Condition::IfAbsent,
                        _ => Condition::Always,
                    };
                    let header = pair.header(condition);
                    let value = match step {
                        Step::Put(_, length) => Some(vec![key; *length]),
                        Step::PutIfAbsent(_) => Some(vec![key; 3]),
                        _ => None,
                    };
                    let operation = match &value {
                        Some(value) => Operation::Put(header, value),
                        None => Operation::Delete(header),
                    };
                    let id = pair.request(&[key], operation);
                    sn += 1;
                    let status = match step {
                        Step::PutIfAbsent(_) if !absent => Status::Conflict,
                        Step::Delete(_) if absent => Status::NotFound,
                        Step::Delete(_) => { model.remove(&vec![key]); Status::Ok }
                        _ => { model.insert(vec![key], (value.clone().unwrap(), sn)); Status::Ok }
                    };
                    expected.push((id, status));
                    last_write = Some((vec![key], value, header));
                }
                Step::Deliver => pair.deliver(),
                Step::Ack => pair.ack(),
                Step::Lose => pair.disconnect(),
                Step::Reconnect => { pair.disconnect(); pair.connect(); }
                Step::Retry => {
                    if let Some((key, value, header)) = &last_write {
                        let operation = match value {
                            Some(value) => Operation::Put(*header, value),
                            None => Operation::Delete(*header),
                        };
                        // The retry waits for the same write as the original request.
                        let id = pair.request(key, operation);
                        let (old, status) = *expected.last().unwrap();
                        if pair.given(old).is_none() {
                            expected.pop();
                        }
                        expected.push((id, status));
                    }
                }
            }
        }
        pair.disconnect();
        pair.connect();
        pair.settle();
        pair.settle();
        for (id, status) in expected {
            prop_assert_eq!(pair.status(id), Some(status), "request {}", id);
        }
        prop_assert_eq!(contents(&pair.primary), model.clone());
        prop_assert_eq!(contents(&pair.secondary), model);
        let records = |replica: &Replica| {
            let mut all: Vec<_> = replica.completion_records(0..usize::MAX).map(|r| (r.record.seq, r.record.status, r.record.version)).collect();
            all.sort_by_key(|r| r.0);
            all
        };
        prop_assert_eq!(records(&pair.primary), records(&pair.secondary));
    }
}
