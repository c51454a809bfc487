//! The format of `OpenAI`'s chat completions API: `{"role", "content", "name"?, "tool_calls"?, "tool_call_id"?, ...}`.

mod edit;
mod read;
mod write;

pub(super) use edit::apply_changes;
pub(super) use read::{normalize, to_parts};
pub(super) use write::from_parts;

/// A key in the meta of an opaque part. Its value names the message field that contained the block. The key is missing if that
/// field is `content`.
const BLOCK_FIELD_KEY: &str = "place";
const TOOL_CALLS: &str = "tool_calls";
