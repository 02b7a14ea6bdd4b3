//! Persistence: the cluster's durable state is stored before anything that depends on it is sent.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kv_core::cluster::DurableState;

use super::context::Driver;
use crate::clock;
use crate::store::{self, Record};

/// The duration after which an unfinished store raises an alarm.
const STORE_LATE: Duration = Duration::from_secs(1);

impl Driver {
    /// Returns the record of a state, with all other data that the next coordinator needs.
    pub(super) fn record(&self, state: DurableState) -> Record {
        Record {
            key: self.key,
            place: self.places.stored(self.ports),
            settings: self.plan().settings.clone(),
            dump_dir: self.dump_dir(),
            has_ended_well: false,
            state,
        }
    }

    /// Waits until the epoch of this coordinator is durable.
    pub(super) async fn until_durable(&self) {
        let is_durable = || {
            let cluster = self.cluster();
            cluster.durable().epoch == cluster.config().epoch
        };
        while !is_durable() {
            self.stored.notified().await;
        }
    }

    /// Stores the durable state, and passes the result to the cluster. Reports a store that fails or takes long.
    pub(super) async fn store(self: Rc<Driver>, number: u64, state: Box<DurableState>) {
        let (file, record) = (Arc::clone(&self.state_file), self.record(*state));
        let began = clock::now();
        let mut storing = tokio::task::spawn_blocking(move || file.store(&record));
        let stored = loop {
            match tokio::time::timeout(STORE_LATE, &mut storing).await {
                Ok(stored) => break stored,
                Err(_) => {
                    let waited = clock::now().since(began).as_secs();
                    let reason = format!(
                        "writing {} has not finished after {waited} s; check the disk",
                        self.dir.join(store::FILE_NAME).display()
                    );
                    self.warn_of_store("it takes long", &reason);
                    self.input(|cluster, now, sink| {
                        cluster.on_store_late(now, number, &reason, sink);
                    });
                }
            }
        };
        let stored = match stored {
            Ok(stored) => stored.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match stored {
            Ok(risk) => self.on_stored(number, risk),
            Err(reason) => {
                self.warn_of_store(&reason, &reason);
                self.input(|cluster, now, sink| {
                    cluster.on_store_failed(now, number, &reason, sink);
                });
            }
        }
    }

    fn on_stored(self: &Rc<Driver>, number: u64, risk: Option<String>) {
        match &risk {
            Some(risk) => self.warn_of_store(risk, &format!("the next store may fail: {risk}")),
            None => {
                if self.told_stores.forget(&()) {
                    self.console.say("the state is stored again");
                }
            }
        }
        self.cluster.borrow_mut().note_store_risk(risk);
        self.input(|cluster, now, sink| cluster.on_stored(now, number, sink));
        self.stored.notify_waiters();
        if self.takes_over.replace(false) {
            self.tell_taken_over();
            self.go_on_moving();
        }
    }
}
