//! The Gemini format: `{"role": "user" or "model", "parts": [...]}`.

use super::value::{Object, str_at};

mod chunks;
mod edit;
mod functions;
mod keys;
mod normalize;
mod read;
mod write;

pub(super) use edit::apply_changes;
pub use functions::add_placeholder_signature;
pub(super) use functions::{function_responses, set_response_id};
pub(super) use normalize::normalize;
pub(super) use read::to_parts;
pub(super) use write::from_parts;

/// The key in the meta of a part that contains Gemini's signature of a text or of a function call, in standard base64. The
/// signature of a thought has another key, because other providers sign thoughts too.
const THOUGHT_SIGNATURE_KEY: &str = "thought_signature";

/// Returns `true` for a chunk of a streamed function call: it continues the call in an earlier part and has no name. It is not
/// counted as a call.
fn is_partial_call(call: &Object) -> bool {
    let is_chunk = call.is_empty() || call.contains_key("partialArgs") || call.contains_key("willContinue");
    is_chunk && str_at(call, "name").is_empty()
}
