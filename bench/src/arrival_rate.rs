//! The start times of operations. In a closed loop, an operation starts as soon as another one has ended. In an open
//! loop, operations start on schedule, even if the server is slow.
//!
//! In an open loop, a latency is measured from the scheduled start. So it includes the time for which a slow server
//! delays the start.

/// The start times of one thread's operations, in nanoseconds of the run.
#[derive(Clone, Debug)]
pub(crate) enum ArrivalRate {
    /// An operation starts as soon as a connection has room for it.
    Closed,
    /// Operations start at a fixed rate.
    Open {
        /// The scheduled time of the first operation.
        from_ns: u64,
        /// The interval between two operations.
        every_ns: f64,
        /// The number of operations that have begun.
        begun: u64,
    },
}

impl ArrivalRate {
    /// Creates an open loop at this rate, from this time on.
    pub(crate) fn open(from_ns: u64, per_second: f64) -> ArrivalRate {
        ArrivalRate::Open { from_ns, every_ns: 1e9 / per_second, begun: 0 }
    }

    /// Returns the scheduled time of the next operation, or `None` if it may start at any time.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        match self {
            ArrivalRate::Closed => None,
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            #[allow(clippy::cast_precision_loss)] // Exact to a nanosecond for 100 days.
            ArrivalRate::Open { from_ns, every_ns, begun } => {
                Some(from_ns + (*begun as f64 * every_ns) as u64)
            }
        }
    }

    /// Begins the next operation if it is due. Returns the time from which its latency is measured, or `None` if it is
    /// not due.
    pub(crate) fn begin(&mut self, now_ns: u64) -> Option<u64> {
        let due = self.next_ns().unwrap_or(now_ns);
        if due > now_ns {
            return None;
        }
        if let ArrivalRate::Open { begun, .. } = self {
            *begun += 1;
        }
        Some(due)
    }

    /// Returns the number of operations that were due before `end_ns` but have not begun; zero in a closed loop.
    pub(crate) fn behind(&self, end_ns: u64) -> u64 {
        match self {
            ArrivalRate::Closed => 0,
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            #[allow(clippy::cast_precision_loss)]
            ArrivalRate::Open { from_ns, every_ns, begun } => {
                let due = (end_ns.saturating_sub(*from_ns) as f64 / every_ns) as u64;
                due.saturating_sub(*begun)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latency_of_a_delayed_operation_counts_from_its_scheduled_time() {
        let mut arrival_rate = ArrivalRate::open(1_000, 1e6);
        assert_eq!(arrival_rate.begin(999), None);
        assert_eq!(arrival_rate.begin(1_000), Some(1_000));
        assert_eq!(arrival_rate.begin(1_500), None);
        // The server pauses for 10 µs. The latencies of the ten operations that were due count from their scheduled
        // times.
        let begun: Vec<u64> = std::iter::from_fn(|| arrival_rate.begin(11_000)).collect();
        assert_eq!(begun, (2..=11).map(|n| n * 1_000).collect::<Vec<u64>>());
        assert_eq!(arrival_rate.next_ns(), Some(12_000));
        assert_eq!(arrival_rate.behind(20_000), 8);
    }

    #[test]
    fn a_closed_loop_begins_an_operation_whenever_there_is_room() {
        let mut arrival_rate = ArrivalRate::Closed;
        assert_eq!(
            (arrival_rate.begin(5), arrival_rate.next_ns(), arrival_rate.behind(9)),
            (Some(5), None, 0)
        );
    }
}
