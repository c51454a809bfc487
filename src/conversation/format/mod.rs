//! The four message formats. All functions are pure: no I/O, no clock, no randomness.
//!
//! A message is stored as its *body*: the message in the format of its provider, normalized. A request for this format returns
//! the body unchanged. If another format is requested, [`to_parts`] converts the body to [`Part`]s, and [`from_parts`] converts
//! these to the requested format.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::parts::{Asset, Part, Role};
use crate::json::ValueBudget;
use crate::text_enum::text_enum;

mod acontext;
mod anthropic;
pub(super) mod changes;
mod dialect;
mod documents;
mod function_name;
mod gemini;
mod media;
mod opaque;
mod openai;
#[cfg(test)]
mod proptests;
mod signatures;
#[cfg(test)]
mod tests;
mod value;

pub use changes::BodyChange;
use changes::ChangeCursor;
pub use gemini::add_placeholder_signature;
pub(super) use opaque::opaque_text;

text_enum! {
    /// A message format, by its name in the API.
    pub enum Format {
        OpenAi = "openai",
        Anthropic = "anthropic",
        Gemini = "gemini",
        Acontext = "acontext",
    }
}

/// The reason why a message is invalid in its format.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidMessage {
    /// Path of the invalid field, such as `content[2].text`.
    pub field: String,
    /// The violated requirement, such as `must be a string`.
    pub reason: String,
}

/// A validated and normalized message that is not stored yet.
#[derive(Debug)]
pub struct NormalizedMessage {
    pub format: Format,
    pub role: Role,
    /// The meta of the message: `source_format`, and depending on the format `name` (`OpenAI`), `original_role` (`OpenAI` and
    /// Anthropic), `response` (Anthropic), or the fields of the message's own `meta` (`acontext`).
    pub meta: Map<String, Value>,
    /// The message as it is stored; see [`normalize`].
    pub body: Value,
}

/// A function response in a Gemini message. It may lack the id of its call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionResponse {
    /// Index of the part in the message.
    pub part_index: usize,
    pub name: String,
    pub id: Option<String>,
    /// `true` if further responses to the same call follow.
    pub will_continue: bool,
}

impl NormalizedMessage {
    /// Returns the index of each part of an `acontext` message that refers to an uploaded file, and the name of the form field
    /// that contains the file.
    pub fn file_fields(&self) -> Vec<(usize, String)> {
        if self.format == Format::Acontext { acontext::file_fields(&self.body) } else { Vec::new() }
    }

    /// Replaces the form field of a part of an `acontext` message with the stored file. Does nothing for a message of another
    /// format.
    pub fn set_file(&mut self, part_index: usize, asset: &Asset, filename: &str) {
        if self.format == Format::Acontext {
            acontext::set_file(&mut self.body, part_index, asset, filename);
        }
    }

    /// Returns the function responses of a Gemini message, in the order of its parts.
    pub fn function_responses(&self) -> Vec<FunctionResponse> {
        if self.format == Format::Gemini { gemini::function_responses(&self.body) } else { Vec::new() }
    }

    /// Sets the call id of the function response in a part of a Gemini message. Does nothing for a message of another format.
    pub fn set_response_id(&mut self, part_index: usize, id: &str) {
        if self.format == Format::Gemini {
            gemini::set_response_id(&mut self.body, part_index, id);
        }
    }
}

/// Validates and normalizes a message of a format. `new_call_id` generates ids for Gemini function calls that have none.
///
/// The body is the message as it was sent, except for the following changes:
/// - Keys with the value `null` are removed where `null` means absent: in the message, in its blocks or parts of a known type,
///   and in the objects that the format defines inside these. They are preserved in free-form JSON (arguments, results, `meta`),
///   and in blocks of an unknown type. `content: null` of an `OpenAI` message is preserved too.
/// - The list that every message of the format has (`content` of Anthropic, `parts` of acontext) is added if it is missing.
/// - `OpenAI`: Tool call arguments that are an object or array are converted to a JSON string.
/// - Anthropic: All fields of a model's response except `role` and `content` are moved to the meta.
/// - Gemini: Keys are converted to camel case, and binary data to standard base64. Each function call has an id.
/// - acontext: `asset`, `filename` and an empty `file_field` are removed from parts.
///
/// # Errors
/// Returns the first invalid field and the reason.
pub fn normalize(
    format: Format,
    message: Value,
    new_call_id: &mut dyn FnMut() -> String,
) -> Result<NormalizedMessage, InvalidMessage> {
    let Value::Object(mut message) = message else {
        // `blob` is the field of the request that contains the message.
        return Err(value::invalid("blob", "must be an object"));
    };
    // Clients of `OpenAI` distinguish a message with `content: null` from one without the key.
    message.retain(|key, value| !value.is_null() || (format == Format::OpenAi && key == "content"));
    let (role, mut meta, body) = match format {
        Format::OpenAi => openai::normalize(message)?,
        Format::Anthropic => anthropic::normalize(message)?,
        Format::Gemini => gemini::normalize(message, new_call_id)?,
        Format::Acontext => acontext::normalize(message)?,
    };
    // An `acontext` message may name the format from which it was converted.
    if !meta.get("source_format").is_some_and(Value::is_string) {
        meta.insert("source_format".into(), format.as_str().into());
    }
    Ok(NormalizedMessage { format, role, meta, body: Value::Object(body) })
}

/// Converts a stored body to parts. A block of an unknown type becomes a part of the kind `data`, so that it is not lost.
///
/// The meta of such a part contains the format (`data_type`) and the unchanged `block`; [`from_parts`] restores the block if
/// the target is the same format.
pub fn to_parts(format: Format, body: Value) -> Vec<Part> {
    match (format, body) {
        (_, Value::Null) => Vec::new(),
        (Format::OpenAi, Value::Object(body)) => openai::to_parts(body),
        (Format::Anthropic, Value::Object(body)) => anthropic::to_parts(body),
        (Format::Gemini, Value::Object(body)) => gemini::to_parts(body),
        (Format::Acontext, Value::Object(body)) => acontext::to_parts(body),
        (format, other) => vec![value::opaque_part(format, other)],
    }
}

/// The choices of a request that change how messages are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a parameter of the request")]
pub struct RenderOptions {
    /// Writes thoughts to the field `reasoning_content` of `OpenAI` messages. By default they are left out, because `OpenAI`'s API
    /// rejects fields that it does not know.
    pub with_reasoning_content: bool,
    /// Writes system messages with the role `system` in the Anthropic format. By default they have the role `user`.
    pub with_native_system: bool,
    /// Repairs the history, so that its provider accepts it; see [`crate::conversation::history`].
    pub with_repair: bool,
    /// Writes a placeholder for the missing signatures of Gemini's function calls. By default they have no signature, which
    /// Gemini 3 rejects in the current turn.
    pub with_placeholder_signatures: bool,
}

impl RenderOptions {
    /// Returns `true` if messages that are stored in the target format may be written differently.
    pub fn changes_own_format(self, target: Format) -> bool {
        self.with_repair || (self.with_placeholder_signatures && target == Format::Gemini)
    }
}

/// Input of the conversion that is not part of a message.
#[derive(Default)]
pub struct RenderContext {
    pub options: RenderOptions,
    /// URLs of assets by SHA-256; empty if no URLs were requested.
    pub asset_urls: HashMap<String, String>,
    /// Contents of the assets that were loaded, in standard base64, by SHA-256.
    pub asset_contents: HashMap<String, String>,
    /// Number of JSON values that may still be parsed from the tool call arguments and tool results of the current message.
    pub value_budget: ValueBudget,
}

/// Converts a message to the target format. Returns at least one message, and several only for `OpenAI`, which requires a
/// message for each tool result.
///
/// `meta` is the meta of the message, see [`NormalizedMessage::meta`]. Parts that the target cannot represent are omitted, except
/// for media, which are replaced by the text that they contain, or else by a text that describes them. URLs are never fetched.
pub fn from_parts(
    target: Format,
    role: Role,
    meta: &Map<String, Value>,
    mut parts: Vec<Part>,
    ctx: &RenderContext,
) -> Vec<Value> {
    signatures::remove_foreign_signatures(&mut parts, meta, target);
    let parts = documents::split_documents(parts, target, role);
    match target {
        Format::OpenAi => openai::from_parts(role, meta, parts, ctx),
        Format::Anthropic => vec![anthropic::from_parts(role, meta, parts, ctx)],
        Format::Gemini => vec![gemini::from_parts(role, meta, parts, ctx)],
        Format::Acontext => vec![acontext::from_parts(role, meta, parts)],
    }
}

/// Returns `true` if [`from_parts`] has written the item for a message without content.
pub fn is_placeholder(target: Format, item: &Value) -> bool {
    let list = match target {
        Format::Gemini => item.get("parts"),
        _ => item.get("content"),
    };
    let text = match list {
        Some(Value::Array(list)) if list.len() == 1 => list[0].get("text"),
        content => content,
    };
    text.is_some_and(|text| text == value::NO_CONTENT) && item.get("tool_calls").is_none()
}

/// Applies changes to a stored body. Everything else is preserved, including ids, signatures and cache hints.
///
/// Afterwards, [`to_parts`] returns the edited parts. The only exception is the result of a Gemini function call, which must be
/// an object: a text that is a JSON object loses its white space.
pub fn apply_changes(format: Format, body: &mut Value, changes: &[BodyChange]) {
    let Value::Object(body) = body else { return };
    let mut changes = ChangeCursor::new(changes);
    match format {
        Format::OpenAi => openai::apply_changes(body, &mut changes),
        Format::Anthropic => anthropic::apply_changes(body, &mut changes),
        Format::Gemini => gemini::apply_changes(body, &mut changes),
        Format::Acontext => acontext::apply_changes(body, &mut changes),
    }
}
