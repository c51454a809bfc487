//! Writes the messages of a conversation as the libraries of the providers do.

use acontextd::conversation::format::Format;
use serde_json::{Value, json};

use super::model::{Answer, Call, Item, Step, Thought};

pub const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC";
pub const PDF: &str = "JVBERi0xLjQKJSVFT0YK";
pub const IMAGE_URL: &str = "https://x.org/a.png";
const SIGNATURE: &str = "c2lnbmF0dXJlIG9mIGEgdGhvdWdodA==";

/// Returns the id of a call in the format of its message. Calls of Gemini may have none.
pub fn call_id(format: Format, call: &Call) -> Option<String> {
    let index = call.index;
    Some(match (format, call.id_style % 4) {
        (Format::Gemini, 0) => return None,
        (Format::Gemini, 1) => format!("{}/+={index}", "signature".repeat(200)),
        (Format::Gemini, 2) => format!("function-call-{index}"),
        (Format::Anthropic, 0) => format!("toolu_{}_{index}", "0".repeat(80)),
        (Format::OpenAi, 0) => format!("call|{index}.f:1"),
        (Format::OpenAi, 1) => format!("call_{index:0>35}"),
        _ => format!("call_{index}"),
    })
}

pub fn system_message(text: &str) -> Value {
    json!({"role": "developer", "content": text})
}

pub fn user_message(format: Format, items: &[Item]) -> Value {
    let list: Vec<_> = items.iter().map(|item| user_item(format, item)).collect();
    match (format, items) {
        // The API treats a content without a role as a user's.
        (Format::Gemini, [Item::Text(text)]) if text.len().is_multiple_of(2) => json!({"parts": list}),
        (Format::Gemini, _) => json!({"role": "user", "parts": list}),
        // A single text may be a string.
        (_, [Item::Text(text)]) => json!({"role": "user", "content": text}),
        _ => json!({"role": "user", "content": list}),
    }
}

fn text_item(format: Format, text: &str) -> Value {
    match format {
        Format::Gemini => json!({"text": text}),
        _ => json!({"type": "text", "text": text}),
    }
}

fn image(format: Format, mime: &str) -> Value {
    match format {
        Format::OpenAi => json!({"type": "image_url", "image_url": {"url": format!("data:{mime};base64,{PNG}")}}),
        Format::Anthropic => json!({"type": "image", "source": {"type": "base64", "media_type": mime, "data": PNG}}),
        _ => json!({"inlineData": {"mimeType": mime, "data": PNG}}),
    }
}

fn user_item(format: Format, item: &Item) -> Value {
    match (format, item) {
        (_, Item::Text(text)) => text_item(format, text),
        (Format::Anthropic, Item::Blank) => text_item(format, "not blank"),
        (_, Item::Blank) => text_item(format, " "),
        (_, Item::Image) => image(format, "image/png"),
        (Format::OpenAi, Item::ImageUrl) => json!({"type": "image_url", "image_url": {"url": IMAGE_URL}}),
        (Format::Anthropic, Item::ImageUrl) => {
            json!({"type": "image", "source": {"type": "url", "url": IMAGE_URL}})
        }
        (_, Item::ImageUrl) => json!({"fileData": {"mimeType": "image/png", "fileUri": IMAGE_URL}}),
        (Format::OpenAi, Item::Pdf) => {
            json!({"type": "file", "file": {"filename": "a.pdf", "file_data": format!("data:application/pdf;base64,{PDF}")}})
        }
        (Format::Anthropic, Item::Pdf) => {
            let source = json!({"type": "base64", "media_type": "application/pdf", "data": PDF});
            json!({"type": "document", "title": "a.pdf", "source": source})
        }
        (_, Item::Pdf) => json!({"inlineData": {"mimeType": "application/pdf", "data": PDF}}),
        (_, Item::Special(choice)) => special_item(format, *choice),
    }
}

fn special_item(format: Format, choice: u8) -> Value {
    match (format, choice % 4) {
        (Format::OpenAi, 0) => json!({"type": "input_audio", "input_audio": {"data": PDF, "format": "mp3"}}),
        (Format::OpenAi, 1) => json!({"type": "file", "file": {"file_id": "file-1"}}),
        (Format::OpenAi, 2) => image(format, "image/gif"),
        (Format::OpenAi, _) => json!({"type": "input_audio", "input_audio": {"data": PDF, "format": "wav"}}),
        (Format::Anthropic, 0) => {
            json!({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a text"}})
        }
        (Format::Anthropic, 1) => {
            let content = json!([{"type": "text", "text": "a block"}]);
            json!({"type": "document", "source": {"type": "content", "content": content}})
        }
        (Format::Anthropic, 2) => json!({"type": "image", "source": {"type": "file", "file_id": "file_1"}}),
        (Format::Anthropic, _) => json!({
            "type": "search_result", "source": "https://x.org", "title": "A page",
            "content": [{"type": "text", "text": "found"}],
        }),
        (_, 0) => image(format, "image/heic"),
        (_, 1) => json!({"inlineData": {"mimeType": "audio/ogg", "data": PDF}}),
        (_, 2) => json!({"fileData": {"mimeType": "video/mp4", "fileUri": "gs://a/b.mp4"}}),
        (_, _) => json!({"inlineData": {"mimeType": "text/csv", "data": "YSxiCjEsMgo="}}),
    }
}

/// Returns the blocks of a thought. `OpenAI` has none.
fn thought(format: Format, thought: Option<&Thought>) -> Option<Value> {
    let Thought { text, is_signed, is_redacted } = thought?;
    match format {
        Format::Anthropic if *is_redacted => Some(json!({"type": "redacted_thinking", "data": SIGNATURE})),
        Format::Anthropic => Some(json!({"type": "thinking", "thinking": text, "signature": SIGNATURE})),
        Format::Gemini if text.is_empty() => None,
        Format::Gemini if *is_signed => Some(json!({"text": text, "thought": true, "thoughtSignature": SIGNATURE})),
        Format::Gemini => Some(json!({"text": text, "thought": true})),
        _ => None,
    }
}

fn call_block(format: Format, call: &Call) -> Value {
    let Call { name, args, .. } = call;
    let id = call_id(format, call);
    match format {
        Format::OpenAi => {
            json!({"id": id, "type": "function", "function": {"name": name, "arguments": args.to_string()}})
        }
        Format::Anthropic => json!({"type": "tool_use", "id": id, "name": name, "input": args}),
        _ => {
            let mut part = json!({"functionCall": {"name": name, "args": args}});
            if let Some(id) = id {
                part["functionCall"]["id"] = id.into();
            }
            if call.is_signed {
                part["thoughtSignature"] = SIGNATURE.into();
            }
            part
        }
    }
}

/// Returns the messages of the assistant in a step.
pub fn call_messages(step: &Step) -> Vec<Value> {
    let format = step.format;
    let calls: Vec<_> = step.calls.iter().map(|call| call_block(format, call)).collect();
    if format == Format::OpenAi {
        return match &step.text {
            Some(text) if step.is_split => {
                vec![json!({"role": "assistant", "content": text}), json!({"role": "assistant", "tool_calls": calls})]
            }
            text => vec![json!({"role": "assistant", "content": text, "tool_calls": calls})],
        };
    }
    let text = step.text.as_ref().map(|text| text_item(format, text));
    let blocks: Vec<_> = thought(format, step.thought.as_ref()).into_iter().chain(text).chain(calls).collect();
    match format {
        Format::Anthropic if step.is_split => {
            blocks.iter().map(|block| json!({"role": "assistant", "content": [block]})).collect()
        }
        Format::Anthropic => vec![json!({"role": "assistant", "content": blocks})],
        _ => vec![json!({"role": "model", "parts": blocks})],
    }
}

/// Returns the messages of a format with the results of calls, each with the id that the client has read.
pub fn result_messages(format: Format, results: &[(&Call, Option<String>)], is_split: bool) -> Vec<Value> {
    let results: Vec<_> = results.iter().map(|(call, id)| result(format, call, id.as_deref())).collect();
    match format {
        Format::OpenAi => results,
        Format::Anthropic if is_split => {
            results.iter().map(|block| json!({"role": "user", "content": [block]})).collect()
        }
        Format::Anthropic => vec![json!({"role": "user", "content": results})],
        // Gemini demands all results of a turn in one content.
        _ => vec![json!({"role": "user", "parts": results})],
    }
}

fn result(format: Format, call: &Call, id: Option<&str>) -> Value {
    let texts: Vec<_> = call.result.iter().filter_map(|item| text_of(format, item)).collect();
    let blocks: Vec<_> = texts.iter().map(|text| text_item(format, text)).collect();
    let media: Vec<_> = call.result.iter().filter_map(|item| result_media(format, item)).collect();
    match format {
        Format::OpenAi => {
            let content = if let [text] = texts[..] {
                text.into()
            } else if blocks.is_empty() {
                "".into()
            } else {
                Value::Array(blocks)
            };
            json!({"role": "tool", "tool_call_id": id, "content": content})
        }
        Format::Anthropic => {
            let mut result = json!({"type": "tool_result", "tool_use_id": id});
            // A failed result contains only texts.
            if call.has_failed && !blocks.is_empty() && media.is_empty() {
                result["is_error"] = true.into();
            }
            let has_media = !media.is_empty();
            match texts[..] {
                [text] if !has_media && call.id_style.is_multiple_of(2) => result["content"] = text.into(),
                [] if !has_media => {}
                _ => result["content"] = blocks.into_iter().chain(media).collect(),
            }
            result
        }
        _ => {
            let key = if call.has_failed { "error" } else { "output" };
            let response = match texts[..] {
                [] => json!({}),
                [text] => json!({key: text}),
                _ => json!({"lines": texts}),
            };
            let mut inner = json!({"name": call.name, "response": response});
            if let Some(id) = id {
                inner["id"] = id.into();
            }
            if !media.is_empty() {
                inner["parts"] = media.into();
            }
            json!({"functionResponse": inner})
        }
    }
}

/// Returns the media of a tool result. `OpenAI` has none.
fn result_media(format: Format, item: &Item) -> Option<Value> {
    let is_media = matches!(item, Item::Image | Item::ImageUrl | Item::Pdf);
    (is_media && format != Format::OpenAi).then(|| user_item(format, item))
}

fn text_of(format: Format, item: &Item) -> Option<&str> {
    match item {
        Item::Text(text) => Some(text),
        Item::Blank if format != Format::Anthropic => Some(" "),
        _ => None,
    }
}

pub fn answer_message(answer: &Answer) -> Value {
    let format = answer.format;
    let texts = answer.texts.iter().map(|text| text_item(format, text));
    let mut blocks: Vec<_> = thought(format, answer.thought.as_ref()).into_iter().chain(texts).collect();
    match (format, &answer.texts[..]) {
        (Format::Gemini, _) => {
            if answer.is_signed {
                // So end streams of Gemini 3.
                blocks.push(json!({"text": "", "thoughtSignature": SIGNATURE}));
            }
            json!({"role": "model", "parts": blocks})
        }
        (Format::OpenAi, [text]) => json!({"role": "assistant", "content": text}),
        _ => json!({"role": "assistant", "content": blocks}),
    }
}
