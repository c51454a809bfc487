//! Id types, one per entity, so that a disk's id cannot be passed where a project's id is expected.
//!
//! In JSON and in Postgres each id is a plain UUID. Clients may send an id in any notation of a UUID (hyphenated, 32 hex
//! digits, `urn:uuid:`, braces, any case). Ids are always written in lower case with hyphens.

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

macro_rules! define_id {
    (@new) => {
        /// Generates an id that begins with the time (UUID version 7), so that rows created together are adjacent in indexes.
        pub fn new() -> Self {
            Self(Uuid::now_v7())
        }
    };
    (@new random) => {
        /// Generates a random id (UUID version 4).
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
    /// The id of a project, the tenant that owns everything else.
    ProjectId
);
define_id!(
    /// The id of a user, a person an agent works for.
    UserId
);
define_id!(
    /// The id of a disk.
    DiskId
);
// Random, because upstream's TypeScript SDK cannot copy sessions whose id is a UUID of version 7.
define_id!(
    /// The id of a session.
    SessionId,
    random
);
define_id!(
    /// The id of a message.
    MessageId
);
define_id!(
    /// The id of a task in a session.
    TaskId
);
define_id!(
    /// The id of an event in a session.
    EventId
);
define_id!(
    /// The id of a skill.
    SkillId
);
define_id!(
    /// The id of a learning space.
    LearningSpaceId
);
define_id!(
    /// The id of a skill's membership in a learning space.
    LearningSpaceSkillId
);
define_id!(
    /// The id of a session's membership in a learning space.
    LearningSpaceSessionId
);
define_id!(
    /// The id of a blob, a deduplicated content of a project.
    BlobId
);
define_id!(
    /// The id of a change of files.
    ChangeId
);
define_id!(
    /// The id of an artifact version.
    VersionId
);
define_id!(
    /// The id of a lesson, which a learning space learns from a session.
    LessonId
);
// Random, so that an id cannot be guessed from the time at which the sandbox was created.
define_id!(
    /// The id of a sandbox.
    SandboxId,
    random
);
define_id!(
    /// The id of a command that runs in a sandbox.
    SandboxCommandId
);
define_id!(
    /// The id of a job.
    JobId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_notation_is_accepted_and_one_is_written() {
        let canonical = "123e4567-e89b-12d3-a456-426614174000";
        for notation in [
            canonical.to_owned(),
            canonical.to_uppercase(),
            canonical.replace('-', ""),
            format!("urn:uuid:{canonical}"),
            format!("{{{canonical}}}"),
        ] {
            assert_eq!(notation.parse::<DiskId>().map(|id| id.to_string()).as_deref(), Ok(canonical), "{notation}");
        }
        assert!("123e4567".parse::<DiskId>().is_err());
        assert!("".parse::<DiskId>().is_err());
    }
}
