//! The Anthropic format: `{"role", "content"}`, where the content is a string or a list of content blocks.

mod edit;
mod read;
mod write;

pub(super) use edit::apply_changes;
pub(super) use read::{normalize, to_parts};
pub(super) use write::from_parts;
