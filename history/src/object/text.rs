//! The serialization of values: one character for each byte, which is readable for values of ASCII.

use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

use super::Text;

pub(super) fn serialize<S: Serializer>(text: &Text, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&text.iter().copied().map(char::from).collect::<String>())
}

pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Text, D::Error> {
    let text = String::deserialize(from)?;
    let bytes: Result<Vec<u8>, _> = text.chars().map(u8::try_from).collect();
    bytes.map(Text::from).map_err(D::Error::custom)
}

/// The same for a value that may be absent.
pub(super) mod option {
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    use crate::object::Text;

    #[derive(serde::Serialize, Deserialize)]
    #[serde(transparent)]
    struct Present(#[serde(with = "super")] Text);

    pub(in crate::object) fn serialize<S: Serializer>(
        text: &Option<Text>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        text.clone().map(Present).serialize(to)
    }

    pub(in crate::object) fn deserialize<'a, D: Deserializer<'a>>(
        from: D,
    ) -> Result<Option<Text>, D::Error> {
        Ok(Option::<Present>::deserialize(from)?.map(|present| present.0))
    }
}
