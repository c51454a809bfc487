//! Messages of `OpenAI`'s chat completions: `{"role", "content", "name"?, "tool_calls"?, "tool_call_id"?, ...}`.

mod edit;
mod read;
mod write;

pub(super) use edit::edit;
pub(super) use read::{parts, read};
pub(super) use write::write;

/// Where in a message an unknown block stood, if not in its content.
const PLACE: &str = "place";
const TOOL_CALLS: &str = "tool_calls";
