//! The four formats a conversation is stored and read in. Everything here is pure: no I/O, no clock, no chance.
//!
//! A message is stored as the provider wrote it (its *body*), so reading it in its own format is showing that body. For
//! every other purpose the body is taken apart into [`Part`]s, and a format writes its own message from parts.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::parts::{Asset, Part, Role};
use crate::json::ValueBudget;
use crate::text_enum::text_enum;

mod acontext;
mod anthropic;
pub(super) mod changes;
mod gemini;
mod media;
mod openai;
#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
mod value;

pub use changes::Change;
use changes::Changes;

text_enum! {
    /// A provider's format, as clients name it.
    pub enum Format {
        OpenAi = "openai",
        Anthropic = "anthropic",
        Gemini = "gemini",
        Acontext = "acontext",
    }
}

/// Why a body is no message of its format.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidMessage {
    /// Where, such as `content[2].text`.
    pub field: String,
    /// What would do, such as `must be a string`.
    pub why: String,
}

/// A message that was checked, and is not stored yet.
#[derive(Debug)]
pub struct NormalizedMessage {
    pub format: Format,
    pub role: Role,
    /// What the format itself says about the message: `name`, `original_role`, `source_format`; for `acontext` the
    /// caller's `meta`.
    pub meta: Map<String, Value>,
    /// What will be stored: the message as it came, without what is `null` where that means absent.
    pub body: Value,
}

/// A function that a Gemini model calls; what answers it is stored with the same id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionCall {
    pub id: String,
    pub name: String,
}

/// The answer to a call, in a Gemini message; its call has still to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionResponse {
    /// Which of the message's parts it is.
    pub part: usize,
    pub name: String,
    pub id: Option<String>,
}

impl NormalizedMessage {
    /// The form fields that parts of an `acontext` message name, in the order of the parts: (index of the part, field).
    pub fn file_fields(&self) -> Vec<(usize, String)> {
        if self.format == Format::Acontext { acontext::file_fields(&self.body) } else { Vec::new() }
    }

    /// Puts a stored file in the place of a part's form field.
    pub fn set_file(&mut self, part: usize, asset: &Asset, filename: &str) {
        if self.format == Format::Acontext {
            acontext::set_file(&mut self.body, part, asset, filename);
        }
    }

    /// Gemini: the calls of this message, each with an id (`read` gave one to those that had none).
    pub fn calls(&self) -> Vec<FunctionCall> {
        if self.format == Format::Gemini { gemini::calls(&self.body) } else { Vec::new() }
    }

    /// Gemini: the answers of this message, in the order of its parts.
    pub fn answers(&self) -> Vec<FunctionResponse> {
        if self.format == Format::Gemini { gemini::answers(&self.body) } else { Vec::new() }
    }

    /// Gives an answer the id of its call.
    pub fn set_answer_id(&mut self, part: usize, id: &str) {
        if self.format == Format::Gemini {
            gemini::set_answer_id(&mut self.body, part, id);
        }
    }
}

/// Checks a message of a format. `new_call_id` gives an id to a function call of Gemini that has none.
///
/// The body stays as it came, except that
/// - a `null` that means absent is dropped: at the message, at its blocks or parts, and in the objects that belong to a
///   block of a known type; never in what is free JSON (arguments, answers, metadata) or in a block of an unknown type;
/// - a list that a message of the format always has (`content` of Anthropic, `parts` of Gemini and acontext) is there,
///   if only empty;
/// - `OpenAI`: arguments given as a value are a JSON text, and what a tool returns has `tool_call_id` and `content`, if only empty ones, and a list of mere texts is
///   one text;
/// - Anthropic: what the answer of a model has besides the message is in its meta; a tool result always has `content`, and says whether it `is_error`;
/// - Gemini: keys are in camel case, bytes are in standard base64, and each function call has an id;
/// - acontext: `asset`, `filename` and an empty `file_field` are dropped from parts.
pub fn read(
    format: Format,
    blob: Value,
    new_call_id: &mut dyn FnMut() -> String,
) -> Result<NormalizedMessage, InvalidMessage> {
    let Value::Object(mut message) = blob else {
        return Err(value::refused("blob", "must be an object"));
    };
    value::drop_nulls(&mut message, &[]);
    let (role, mut meta, body) = match format {
        Format::OpenAi => openai::read(message)?,
        Format::Anthropic => anthropic::read(message)?,
        Format::Gemini => gemini::read(message, new_call_id)?,
        Format::Acontext => acontext::read(message)?,
    };
    if !meta.get("source_format").is_some_and(Value::is_string) {
        meta.insert("source_format".into(), format.as_str().into());
    }
    Ok(NormalizedMessage { format, role, meta, body: Value::Object(body) })
}

/// Takes a stored body apart. What is not understood becomes a part of the kind `data`, so nothing is lost.
///
/// Such a part says in its meta of which format it is (`data_type`) and holds the `block` as it came; [`write()`] to that
/// format gives the block back.
pub fn parts(format: Format, body: Value) -> Vec<Part> {
    match (format, body) {
        (_, Value::Null) => Vec::new(),
        (Format::OpenAi, Value::Object(body)) => openai::parts(body),
        (Format::Anthropic, Value::Object(body)) => anthropic::parts(body),
        (Format::Gemini, Value::Object(body)) => gemini::parts(body),
        (Format::Acontext, Value::Object(body)) => acontext::parts(body),
        (format, other) => vec![value::unknown(format, other)],
    }
}

/// What a format needs besides the message to write it.
#[derive(Default)]
pub struct RenderContext {
    /// Links to assets by their sha256, if links are wanted.
    pub asset_urls: HashMap<String, String>,
    /// Contents of assets in standard base64 by their sha256, as far as they were loaded.
    pub asset_contents: HashMap<String, String>,
    /// Names of the functions that tool calls of this page call, by the id of the call.
    pub call_names: HashMap<String, String>,
    /// How many values may still be parsed from texts of the current message: arguments of tool calls, and results.
    pub values: ValueBudget,
}

/// A stored message in another format than its own, as one or more messages of that format. (More than one: `OpenAI`
/// wants a message for each tool result.) Never empty.
///
/// What a target has no form for is left out, except for media: a text names them. Nothing is ever fetched.
pub fn write(
    target: Format,
    role: Role,
    meta: &Map<String, Value>,
    parts: Vec<Part>,
    around: &RenderContext,
) -> Vec<Value> {
    match target {
        Format::OpenAi => openai::write(role, meta, parts, around),
        Format::Anthropic => vec![anthropic::write(role, parts, around)],
        Format::Gemini => vec![gemini::write(role, parts, around)],
        Format::Acontext => vec![acontext::write(role, meta, parts)],
    }
}

/// Makes the changes in a stored body. Everything else stays, with its ids, signatures and hints for caches.
///
/// The parts of the body are then those that were changed. Gemini alone has no plain text for a result; it says
/// `{"output": text}`, as whatever is written for it does.
pub fn edit(format: Format, body: &mut Value, changes: &[Change]) {
    let Value::Object(body) = body else { return };
    let mut changes = Changes::new(changes);
    match format {
        Format::OpenAi => openai::edit(body, &mut changes),
        Format::Anthropic => anthropic::edit(body, &mut changes),
        Format::Gemini => gemini::edit(body, &mut changes),
        Format::Acontext => acontext::edit(body, &mut changes),
    }
}
