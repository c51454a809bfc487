//! The format of `OpenAI`'s chat completions API: `{"role", "content", "name"?, "tool_calls"?, "tool_call_id"?, ...}`.

mod edit;
mod normalize;
mod read;
mod reasoning;
mod write;

pub(super) use edit::apply_changes;
pub(super) use normalize::normalize;
pub(super) use read::to_parts;
pub(super) use write::from_parts;

/// A key in the meta of an opaque part. Its value names the message field that contained the block. The key is missing if that
/// field is `content`.
const BLOCK_FIELD_KEY: &str = "place";
const TOOL_CALLS: &str = "tool_calls";
/// The key of Google's signature next to a tool call or text: in the meta of a part, and in `extra_content.google` of `OpenAI`'s
/// format.
const THOUGHT_SIGNATURE_KEY: &str = "thought_signature";
