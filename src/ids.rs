//! Ids as types, so that a disk's id can never be passed where a project's is meant.
//!
//! On the wire and in Postgres each is a plain UUID. They are read leniently, in every spelling that the existing clients
//! may send (hyphenated, 32 hex digits, `urn:uuid:`, braces, any case), and always written in lower case with hyphens.

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

macro_rules! define_id {
    (@new) => {
        /// A new id; the time is in its first bits, so that rows made together lie together.
        pub fn new() -> Self {
            Self(Uuid::now_v7())
        }
    };
    (@new random) => {
        /// A new id, at random.
        pub fn new() -> Self {
            Self(Uuid::new_v4())
        }
    };
    ($(#[$doc:meta])* $name:ident $(, $version:ident)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, sqlx::Type, utoipa::ToSchema)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            define_id!(@new $($version)?);
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = &'static str;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(text).map(Self).map_err(|_| "must be a UUID")
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(input)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

define_id!(
    /// A project: the tenant that everything else belongs to.
    ProjectId
);
define_id!(
    /// A person an agent works for.
    UserId
);
define_id!(
    /// A disk of files.
    DiskId
);
define_id!(
    /// A session. At random, because a client refuses to copy one whose id is of a newer kind.
    SessionId,
    random
);
define_id!(
    /// A message.
    MessageId
);
define_id!(
    /// A task in a session.
    TaskId
);
define_id!(
    /// An event in a session.
    EventId
);
define_id!(
    /// An agent skill.
    SkillId
);
define_id!(
    /// A learning space.
    SpaceId
);
define_id!(
    /// A skill in a learning space.
    SpaceSkillId
);
define_id!(
    /// A session in a learning space.
    SpaceSessionId
);
define_id!(
    /// A stored object's row.
    BlobId
);
define_id!(
    /// A background job.
    JobId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_read_and_one_is_written() {
        let canonical = "123e4567-e89b-12d3-a456-426614174000";
        for spelling in [
            canonical.to_owned(),
            canonical.to_uppercase(),
            canonical.replace('-', ""),
            format!("urn:uuid:{canonical}"),
            format!("{{{canonical}}}"),
        ] {
            assert_eq!(spelling.parse::<DiskId>().map(|id| id.to_string()).as_deref(), Ok(canonical), "{spelling}");
        }
        assert!("123e4567".parse::<DiskId>().is_err());
        assert!("".parse::<DiskId>().is_err());
    }
}
