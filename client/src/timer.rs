//! A timer in the epoll set, for programs that wait on the client's descriptor in their own event loop. The timer makes
//! the descriptor readable when there is work that no socket signals.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// The timer of one engine; see the module documentation.
#[derive(Debug)]
pub(crate) struct Timer {
    timer: OwnedFd,
    /// The time at which the timer fires or has fired.
    at: Option<Instant>,
}

impl Timer {
    pub(crate) fn new() -> io::Result<Timer> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Timer { timer: timerfd_create(TimerfdClockId::Monotonic, flags)?, at: None })
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Sets the timer to `due`. If that time has passed, the timer fires at once. A timer that is set to an earlier
    /// time and has not fired is not changed: when it fires, the caller finds no work and sets the timer again.
    pub(crate) fn set(&mut self, due: Instant, now: Instant) -> io::Result<()> {
        if self.at.is_some_and(|at| at <= due && (at > now || due <= now)) {
            return Ok(());
        }
        let after = due.saturating_duration_since(now).max(Duration::from_nanos(1));
        let it_value = Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: after.subsec_nanos().into(),
        };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Itimerspec { it_interval, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value)?;
        self.at = Some(due);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn goes_off_within(timer: &Timer, time: Duration) -> bool {
        let mut fds = [PollFd::new(&timer.timer, PollFlags::IN)];
        poll(&mut fds, Some(&time.try_into().unwrap())).unwrap() == 1
    }

    #[test]
    fn it_fires_when_due_and_not_after_it_is_set_to_a_later_time() {
        let mut timer = Timer::new().unwrap();
        let now = Instant::now();
        let later = now + Duration::from_secs(3_600);
        assert!(!goes_off_within(&timer, Duration::ZERO));
        timer.set(now, now).unwrap();
        assert!(goes_off_within(&timer, Duration::from_secs(30)));
        timer.set(later, now).unwrap();
        assert!(!goes_off_within(&timer, Duration::ZERO));
        timer.set(now + Duration::from_millis(1), now).unwrap();
        assert!(goes_off_within(&timer, Duration::from_secs(30)));
    }

    #[test]
    fn an_earlier_alarm_is_kept() {
        let mut timer = Timer::new().unwrap();
        let now = Instant::now();
        timer.set(now + Duration::from_secs(10), now).unwrap();
        timer.set(now + Duration::from_secs(20), now).unwrap();
        assert_eq!(timer.at, Some(now + Duration::from_secs(10)));
    }
}
