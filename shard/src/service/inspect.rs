//! The state of a shard as text, for the exhaustive search over states in the simulator.

use kv_protocol::ids::GroupId;

use super::{DialState, Hosted, Service};

impl Service {
    /// Returns everything about a group on which the behaviour of this service depends, as text, except times and log
    /// limits of dials. The pattern names all fields of [`Hosted`], so that the omission of a new one is a compiler
    /// error.
    pub(crate) fn describe(&self, group: GroupId) -> String {
        let Some(hosted) = self.hosted.iter().find(|hosted| hosted.replica.group() == group) else {
            return String::new();
        };
        let Hosted {
            replica,
            stream,
            dialled,
            partner,
            dial,
            is_frozen,
            stands_log: _,
            down_log: _,
        } = hosted;
        let dial = dial.as_ref().map(|dial| {
            let state = match dial.state {
                DialState::Due(_) => "due",
                DialState::Connecting => "connecting",
                DialState::Connected => "connected",
            };
            (dial.address, dial.view, state)
        });
        let stream = stream.is_some();
        format!("{stream} {dialled:?} {partner:?} {dial:?} {is_frozen} {}", replica.describe())
    }
}
