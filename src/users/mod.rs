//! Users: the people an agent works for. They come into being when a request first names one.

pub mod store;

use serde::{Deserialize, Deserializer};

/// How a project names a user: any text without NUL, up to 1 024 bytes, compared exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identifier(String);

impl Identifier {
    const MAX_BYTES: usize = 1024;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Identifier {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() {
            return Err("must not be empty".into());
        }
        if text.len() > Self::MAX_BYTES {
            return Err(format!("must not be longer than {} bytes", Self::MAX_BYTES));
        }
        if text.contains('\0') {
            return Err("must not contain the character NUL".into());
        }
        Ok(Self(text))
    }
}

/// Reads an optional user: absent, null and empty all mean none.
pub fn optional<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Identifier>, D::Error> {
    match Option::<String>::deserialize(input)? {
        None => Ok(None),
        Some(text) if text.is_empty() => Ok(None),
        Some(text) => Identifier::try_from(text).map(Some).map_err(serde::de::Error::custom),
    }
}
