//! The treatment of transactions of Redis clients whose keys are of several shards (`--redis-multi`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The treatment of transactions with keys of several shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedisMulti {
    /// Their commands are refused when they are queued.
    #[default]
    Refuse,
    /// Their commands are executed one after the other, without isolation.
    Ordered,
}

impl RedisMulti {
    /// All treatments.
    pub const ALL: [RedisMulti; 2] = [RedisMulti::Refuse, RedisMulti::Ordered];

    /// Returns the name of the treatment.
    pub const fn name(self) -> &'static str {
        match self {
            RedisMulti::Refuse => "refuse",
            RedisMulti::Ordered => "ordered",
        }
    }
}

impl fmt::Display for RedisMulti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The error if a text is not the name of a treatment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no treatment of transactions; expected refuse or ordered")]
pub struct NotARedisMulti(String);

impl FromStr for RedisMulti {
    type Err = NotARedisMulti;

    fn from_str(text: &str) -> Result<RedisMulti, NotARedisMulti> {
        let found = RedisMulti::ALL.into_iter().find(|multi| multi.name() == text);
        found.ok_or_else(|| NotARedisMulti(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_treatment_is_read_from_its_name() {
        for multi in RedisMulti::ALL {
            assert_eq!(multi.to_string().parse(), Ok(multi));
        }
        assert!("atomic".parse::<RedisMulti>().is_err());
    }
}
