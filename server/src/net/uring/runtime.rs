//! The glommio executor in which the engine runs: its tasks, mailbox, timers and jobs.

use std::cell::Cell;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::time::Duration;

use glommio::io::BufferedFile;
use glommio::{LocalExecutorBuilder, Placement};
use kv_protocol::ids::Time;

use super::Engine;
use crate::clock;
use crate::mailbox;
use crate::net::duties::{self, Duties};
use crate::net::engine::Prepared;
use crate::net::jobs::{Job, Step};

/// The size of the memory that glommio registers for files; it is not used.
const IO_MEMORY_BYTES: usize = 64 << 10;
/// The time that tasks run before glommio preempts them. An executor that is preempted before its first task has run
/// would wait forever, because no timer is armed yet. So this time is longer than a new thread waits for a processor.
/// After the first task, the timer of the next tick is always armed.
const PREEMPT_TASKS: Duration = Duration::from_millis(100);

/// Starts the thread of a shard. The thread runs until the process ends.
///
/// # Errors
/// The reason why the thread cannot be started, as text.
pub(crate) fn start_thread(
    name: &str,
    prepare: impl FnOnce() -> Prepared + Send + 'static,
) -> Result<(), String> {
    let started = LocalExecutorBuilder::new(Placement::Unbound)
        .name(name)
        .io_memory(IO_MEMORY_BYTES)
        .preempt_timer(PREEMPT_TASKS)
        .spawn(move || async move { run(prepare()).await });
    started.map(drop).map_err(|error| error.to_string())
}

async fn run(prepared: Prepared) {
    let Prepared { context, inbox, listeners } = prepared;
    let engine = Engine::start(context, listeners);
    let receiver = Rc::clone(&engine);
    glommio::spawn_local(async move {
        let result = serve(inbox, |message| duties::take(&*receiver, message)).await;
        panic!("cannot read the mailbox of a shard: {result:?}");
    })
    .detach();
    let mut duties = Duties::new();
    loop {
        let pause = duties.tick(&*engine);
        glommio::timer::sleep(pause).await;
    }
}

/// Passes every message of a mailbox to `take`, until the process ends.
async fn serve<T>(inbox: mailbox::Receiver<T>, mut take: impl FnMut(T)) -> io::Result<()> {
    let (bell, messages) = inbox.into_parts();
    // SAFETY: the descriptor is given away and the file is its only owner from here on.
    let bell = unsafe { BufferedFile::from_raw_fd(bell.into_raw_fd()) };
    loop {
        bell.read_at(0, size_of::<u64>()).await.map_err(io::Error::from)?;
        while let Some(message) = messages.pop() {
            take(message);
        }
    }
}

impl Engine {
    /// Runs the steps of a job in a separate task.
    pub(super) fn spawn_job(&self, mut job: Job) {
        let (context, steps) = (Rc::clone(&self.context), Background::begin(&self.background));
        glommio::spawn_local(async move {
            let _steps = steps;
            loop {
                match job.step(&context) {
                    Step::Again => glommio::executor().yield_task_queue_now().await,
                    Step::After(pause) => glommio::timer::sleep(pause).await,
                    Step::Done => return,
                }
            }
        })
        .detach();
    }

    /// Spawns a task that dials at the time of the next dial, if there is one.
    pub(super) fn dial_when_due(self: &Rc<Engine>, now: Time) {
        let Some(due) = self.context.shard.borrow().service.poll_dial() else { return };
        let engine = Rc::clone(self);
        glommio::spawn_local(async move {
            glommio::timer::sleep(due.since(now)).await;
            engine.dial_targets(clock::now());
        })
        .detach();
    }
}

/// A guard for a background job: while one exists, the thread must not wait where glommio's tasks cannot wake it.
struct Background(Rc<Cell<usize>>);

impl Background {
    fn begin(count: &Rc<Cell<usize>>) -> Background {
        count.set(count.get() + 1);
        Background(Rc::clone(count))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::mailbox::mailbox;

    #[test]
    fn messages_of_other_threads_wake_an_idle_executor_and_arrive_in_order() {
        const COUNT: u32 = 5_000;
        let (sender, receiver) = mailbox::<u32>().unwrap();
        let writer = std::thread::spawn(move || {
            for n in 0..COUNT {
                while sender.push(n).is_err() {
                    std::thread::yield_now();
                }
            }
        });
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(IO_MEMORY_BYTES)
            .spawn(move || async move {
                let taken = Rc::new(RefCell::new(Vec::new()));
                let sink = Rc::clone(&taken);
                glommio::spawn_local(async move {
                    let result = serve(receiver, |n| sink.borrow_mut().push(n)).await;
                    panic!("the mailbox failed: {result:?}");
                })
                .detach();
                while taken.borrow().len() < COUNT as usize {
                    glommio::timer::sleep(Duration::from_millis(1)).await;
                }
                taken.take()
            })
            .unwrap();
        assert_eq!(executor.join().unwrap(), (0..COUNT).collect::<Vec<_>>());
        writer.join().unwrap();
    }
}
