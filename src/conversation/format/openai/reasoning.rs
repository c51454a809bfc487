//! Reads the thoughts of assistant messages. `OpenAI`'s API has no field for them, but compatible servers have several:
//! - `thinking_blocks` (`LiteLLM`): Anthropic's blocks
//! - `reasoning_details` (`OpenRouter`): texts, summaries and encrypted thoughts of several providers
//! - `reasoning_content` (`DeepSeek`, vLLM) and `reasoning` (`OpenRouter`, vLLM): a text

use serde_json::Value;

use super::super::dialect::{redacted_part, thought_part};
use super::super::signatures::{PROVIDER_KEY, SIGNATURE_KEY};
use super::super::value::{Object, object, part, str_at, take_as_string, take_nonempty_string};
use crate::conversation::parts::{Part, PartKind};

/// The thoughts of a message.
#[derive(Default)]
pub(super) struct Thoughts {
    pub(super) parts: Vec<Part>,
    /// Google's signatures of tool calls, by call id.
    pub(super) call_signatures: Object,
    /// The index of the last text in `reasoning_details`, if it has one.
    text_index: Option<Value>,
}

/// Removes the thoughts from a message. A thought that several fields contain is returned once, from the field with signatures.
pub(super) fn take_thoughts(body: &mut Object) -> Thoughts {
    let mut thoughts = Thoughts::default();
    for (key, read) in
        [("thinking_blocks", read_block as fn(Object, &mut Thoughts)), ("reasoning_details", read_detail)]
    {
        let Some(Value::Array(items)) = body.remove(key) else { continue };
        let mut of_field = Thoughts::default();
        for item in items {
            if let Value::Object(item) = item {
                read(item, &mut of_field);
            }
        }
        thoughts.merge(of_field);
    }
    for key in ["reasoning_content", "reasoning"] {
        // Other values than strings belong to an unknown dialect.
        if let Some(text) = take_nonempty_string(body, key) {
            thoughts.merge(Thoughts { parts: vec![thought_part(text, None)], ..Thoughts::default() });
        }
    }
    thoughts
}

impl Thoughts {
    /// Adds the thoughts of another field, except for those that are already known.
    fn merge(&mut self, other: Self) {
        let known_text = text_without_spaces(self.parts.iter().map(|part| part.text.as_str()));
        let known_data: Vec<_> = self.parts.iter().filter_map(|part| part.meta.get("data").cloned()).collect();
        self.parts.extend(other.parts.into_iter().filter(|part| match part.kind {
            PartKind::RedactedThinking => part.meta.get("data").is_some_and(|data| !known_data.contains(data)),
            _ => part.text.is_empty() || !known_text.contains(&text_without_spaces([part.text.as_str()])),
        }));
        self.call_signatures.extend(other.call_signatures);
    }
}

/// Joins texts without their white space, because fields differ in how they join thoughts.
fn text_without_spaces<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    texts.into_iter().flat_map(str::chars).filter(|c| !c.is_whitespace()).collect()
}

/// Reads an item of `thinking_blocks`.
fn read_block(mut block: Object, thoughts: &mut Thoughts) {
    match str_at(&block, "type") {
        "thinking" => {
            let text = take_as_string(&mut block, "thinking");
            let signature = take_nonempty_string(&mut block, "signature").map(|signature| (signature, "anthropic"));
            push_thought(text, signature, thoughts);
        }
        "redacted_thinking" => thoughts.parts.extend(take_nonempty_string(&mut block, "data").map(redacted_part)),
        _ => {}
    }
}

/// Reads an item of `reasoning_details`.
fn read_detail(mut detail: Object, thoughts: &mut Thoughts) {
    let provider = provider(&detail);
    let index = detail.remove("index").filter(|_| str_at(&detail, "type") == "reasoning.text");
    let last_index = std::mem::replace(&mut thoughts.text_index, index);
    match str_at(&detail, "type") {
        "reasoning.text" => {
            let mut text = take_as_string(&mut detail, "text");
            let signature = take_nonempty_string(&mut detail, "signature");
            // Streamed chunks of one thought have the same index. The last one has the signature.
            if last_index.is_some()
                && last_index == thoughts.text_index
                && let Some(chunk) = thoughts.parts.pop_if(|chunk| !chunk.meta.contains_key(SIGNATURE_KEY))
            {
                text.insert_str(0, &chunk.text);
            }
            push_thought(text, signature.map(|signature| (signature, provider)), thoughts);
        }
        "reasoning.summary" => push_thought(take_as_string(&mut detail, "summary"), None, thoughts),
        "reasoning.encrypted" => {
            let Some(data) = take_nonempty_string(&mut detail, "data") else { return };
            if provider == "gemini"
                && let Some(call_id) = take_nonempty_string(&mut detail, "id")
            {
                thoughts.call_signatures.insert(call_id, data.into());
            } else {
                let meta = object([("data", data.into()), (PROVIDER_KEY, provider.into())]);
                thoughts.parts.push(part(PartKind::RedactedThinking, String::new(), meta));
            }
        }
        _ => {}
    }
}

fn push_thought(text: String, signature: Option<(String, &str)>, thoughts: &mut Thoughts) {
    if !text.is_empty() || signature.is_some() {
        thoughts.parts.push(thought_part(text, signature));
    }
}

/// Returns the name of the format whose provider has made an item of `reasoning_details`. Older items do not name it; only the
/// texts of Anthropic had signatures then.
fn provider(detail: &Object) -> &'static str {
    match str_at(detail, "format") {
        "" | "unknown" if str_at(detail, "type") == "reasoning.text" => "anthropic",
        format if format.starts_with("anthropic") => "anthropic",
        format if format.starts_with("google") => "gemini",
        _ => "openai",
    }
}
