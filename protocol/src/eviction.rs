//! The policy of eviction: the entries that a full table removes to make room for writes (`--eviction`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The policy of eviction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Eviction {
    /// No entry is removed; writes that find no room are rejected.
    #[default]
    None,
    /// Entries that are seldom used are removed.
    Lfu,
    /// Entries with the nearest deadlines are removed, and entries without a deadline never.
    Ttl,
}

impl Eviction {
    /// All policies.
    pub const ALL: [Eviction; 3] = [Eviction::None, Eviction::Lfu, Eviction::Ttl];

    /// Returns the policy with this number in a message.
    pub const fn from_wire(number: u8) -> Option<Eviction> {
        match number {
            0 => Some(Eviction::None),
            1 => Some(Eviction::Lfu),
            2 => Some(Eviction::Ttl),
            _ => None,
        }
    }

    /// Returns the name of the policy.
    pub const fn name(self) -> &'static str {
        match self {
            Eviction::None => "none",
            Eviction::Lfu => "lfu",
            Eviction::Ttl => "ttl",
        }
    }
}

impl fmt::Display for Eviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The error if a text is not the name of a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an eviction policy; expected none, lfu or ttl")]
pub struct NotAnEviction(String);

impl FromStr for Eviction {
    type Err = NotAnEviction;

    fn from_str(text: &str) -> Result<Eviction, NotAnEviction> {
        let found = Eviction::ALL.into_iter().find(|policy| policy.name() == text);
        found.ok_or_else(|| NotAnEviction(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_read_from_its_name() {
        for policy in Eviction::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
            assert_eq!(Eviction::from_wire(policy as u8), Some(policy));
        }
        assert!("LRU".parse::<Eviction>().is_err());
    }
}
