//! Generators of valid messages and of invalid ones.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::super::Format;
use super::claims::Claim;

/// A message that normalization does not change, and the claims that must hold for it in every format.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub blob: Value,
    pub claims: Vec<Claim>,
}

/// A block of a message and its claims.
type Block = (Value, Vec<Claim>);

fn words() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,9}", "[ -~]{1,20}[a-z]", "\\PC{1,12}z", Just("ünï 寿司 \u{2028}<&>\n\"q\"".to_owned())]
}

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z_]{0,9}"
}

fn base64() -> impl Strategy<Value = String> {
    "([A-Za-z0-9+/]{4}){1,9}([A-Za-z0-9+/]{2}==)?"
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec!["9007199254740993", "1.10", "-0.0", "1e400", "123456789012345678901234567890"])
            .prop_map(|digits| serde_json::from_str(digits).unwrap()),
    ]
}

/// Generates any JSON value, including nulls.
pub(super) fn free_json() -> impl Strategy<Value = Value> {
    let leaf =
        prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), number(), words().prop_map(Value::from),];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,6}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

fn free_object() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-z_]{1,6}", free_json(), 0..4).prop_map(|map| map.into_iter().collect())
}

fn text_claim(text: &str) -> Vec<Claim> {
    vec![Claim::Text(text.into())]
}

/// Builds a message from blocks.
fn message(role: &str, list: &str, blocks: Vec<Block>) -> Sample {
    let (blocks, claims): (Vec<_>, Vec<_>) = blocks.into_iter().unzip();
    Sample { blob: json!({"role": role, list: blocks}), claims: claims.concat() }
}

fn messages_of(
    roles: [&'static str; 2],
    list: &'static str,
    user: BoxedStrategy<Block>,
    assistant: BoxedStrategy<Block>,
) -> BoxedStrategy<Sample> {
    prop_oneof![
        prop::collection::vec(user, 1..5).prop_map(move |blocks| message(roles[0], list, blocks)),
        prop::collection::vec(assistant, 1..5).prop_map(move |blocks| message(roles[1], list, blocks)),
    ]
    .boxed()
}

pub(super) fn sample(format: Format) -> BoxedStrategy<Sample> {
    match format {
        Format::OpenAi => openai(),
        Format::Anthropic => anthropic(),
        Format::Gemini => gemini(),
        Format::Acontext => acontext(),
    }
}

/// Builds an assistant message with one tool call.
pub(super) fn tool_call(format: Format, id: &str, name: &str, args: &Value) -> Value {
    match format {
        Format::OpenAi => json!({"role": "assistant", "tool_calls": [
            {"id": id, "type": "function", "function": {"name": name, "arguments": args.to_string()}}]}),
        Format::Anthropic => json!({"role": "assistant", "content": [
            {"type": "tool_use", "id": id, "name": name, "input": args}]}),
        Format::Gemini => json!({"role": "model", "parts": [{"functionCall": {"id": id, "name": name, "args": args}}]}),
        Format::Acontext => json!({"role": "assistant", "parts": [
            {"type": "tool-call", "meta": {"id": id, "name": name, "arguments": args}}]}),
    }
}

/// Generates tool calls as blocks.
fn calls(format: Format) -> impl Strategy<Value = Block> {
    (name(), name(), free_object()).prop_map(move |(id, name, args)| {
        let message = tool_call(format, &id, &name, &args);
        let list = ["tool_calls", "content", "parts"].into_iter().find_map(|key| message.get(key));
        (list.unwrap()[0].clone(), vec![Claim::FunctionCall { id, name, arguments: args }])
    })
}

fn openai() -> BoxedStrategy<Sample> {
    let item = prop_oneof![
        words().prop_map(|text| (json!({"type": "text", "text": text}), text_claim(&text))),
        name().prop_map(|name| {
            let url = format!("https://img.example/{name}.png");
            (json!({"type": "image_url", "image_url": {"url": url, "detail": "low"}}), vec![Claim::Image(url)])
        }),
        base64().prop_map(|data| {
            let url = format!("data:image/png;base64,{data}");
            (json!({"type": "image_url", "image_url": {"url": url}}), vec![Claim::Image(url)])
        }),
        base64()
            .prop_map(|data| (json!({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}), vec![])),
        free_json().prop_map(|inside| (json!({"type": "video_url", "video_url": inside, "more": null}), vec![])),
    ];
    let text = words().prop_map(|text| (json!({"type": "text", "text": text}), text_claim(&text)));
    prop_oneof![
        words().prop_map(|text| Sample { blob: json!({"role": "user", "content": text}), claims: text_claim(&text) }),
        prop::collection::vec(item, 1..5).prop_map(|blocks| message("user", "content", blocks)),
        words()
            .prop_map(|text| Sample { blob: json!({"role": "assistant", "content": text}), claims: text_claim(&text) }),
        prop::collection::vec(text, 1..4).prop_map(|blocks| message("assistant", "content", blocks)),
        prop::collection::vec(calls(Format::OpenAi), 1..4).prop_map(|blocks| message(
            "assistant",
            "tool_calls",
            blocks
        )),
        (name(), words()).prop_map(|(id, text)| Sample {
            blob: json!({"role": "tool", "tool_call_id": id, "content": text}),
            claims: vec![Claim::Result { id, text }],
        }),
        (words(), name()).prop_map(|(text, name)| Sample {
            blob: json!({"role": "system", "content": text, "name": name}),
            claims: text_claim(&text),
        }),
    ]
    .boxed()
}

fn anthropic() -> BoxedStrategy<Sample> {
    let text = words().prop_map(|text| (json!({"type": "text", "text": text}), text_claim(&text))).boxed();
    let unknown =
        free_object().prop_map(|inside| (json!({"type": "server_tool_use", "input": inside, "x": null}), vec![]));
    let image = prop_oneof![
        name().prop_map(|name| {
            let url = format!("https://img.example/{name}.png");
            (json!({"type": "image", "source": {"type": "url", "url": url}}), vec![Claim::Image(url)])
        }),
        base64().prop_map(|data| {
            let url = format!("data:image/png;base64,{data}");
            let source = json!({"type": "base64", "media_type": "image/png", "data": data});
            (json!({"type": "image", "source": source}), vec![Claim::Image(url)])
        }),
    ]
    .boxed();
    let result =
        (name(), words(), any::<bool>(), prop::option::of(image.clone())).prop_map(|(id, text, is_error, image)| {
            let mut content = vec![json!({"type": "text", "text": text})];
            let mut claims = vec![Claim::Result { id: id.clone(), text }];
            if let Some((image, image_claims)) = image {
                content.push(image);
                claims.extend(image_claims);
            }
            (json!({"type": "tool_result", "tool_use_id": id, "is_error": is_error, "content": content}), claims)
        });
    let document = base64().prop_map(|data| {
        let source = json!({"type": "base64", "media_type": "application/pdf", "data": data});
        (json!({"type": "document", "source": source, "title": "t", "citations": {"enabled": true}}), vec![])
    });
    let thinking = (words(), base64()).prop_map(|(text, signature)| {
        let block = json!({"type": "thinking", "thinking": text, "signature": signature});
        (block, vec![Claim::Thought(text)])
    });
    let user = prop_oneof![text.clone(), image, result, document].boxed();
    let assistant = prop_oneof![text, thinking, calls(Format::Anthropic), unknown].boxed();
    messages_of(["user", "assistant"], "content", user, assistant)
}

fn gemini() -> BoxedStrategy<Sample> {
    let text = words().prop_map(|text| (json!({"text": text}), text_claim(&text))).boxed();
    let image = prop_oneof![
        name().prop_map(|name| {
            let url = format!("https://img.example/{name}.png");
            (json!({"fileData": {"fileUri": url, "mimeType": "image/png"}}), vec![Claim::Image(url)])
        }),
        base64().prop_map(|data| {
            let url = format!("data:image/png;base64,{data}");
            (json!({"inlineData": {"mimeType": "image/png", "data": data}}), vec![Claim::Image(url)])
        }),
    ];
    let result = (name(), name(), free_object()).prop_map(|(id, name, response)| {
        let claims = vec![Claim::Result { id: id.clone(), text: response.to_string() }];
        (json!({"functionResponse": {"id": id, "name": name, "response": response}}), claims)
    });
    let thinking = (words(), base64()).prop_map(|(text, signature)| {
        let part = json!({"text": text, "thought": true, "thoughtSignature": signature});
        (part, vec![Claim::Thought(text)])
    });
    let code = words().prop_map(|code| (json!({"executableCode": {"language": "PYTHON", "code": code}}), vec![]));
    let user = prop_oneof![text.clone(), image, result].boxed();
    let assistant = prop_oneof![text, thinking, calls(Format::Gemini), code].boxed();
    messages_of(["user", "model"], "parts", user, assistant)
}

fn acontext() -> BoxedStrategy<Sample> {
    let text = (words(), free_object())
        .prop_map(|(text, meta)| (json!({"type": "text", "text": text, "meta": meta}), text_claim(&text)))
        .boxed();
    let image = name().prop_map(|name| {
        let url = format!("https://img.example/{name}.png");
        (json!({"type": "image", "meta": {"url": url, "x": null}, "unheard_of": 5}), vec![Claim::Image(url)])
    });
    let result = (name(), words()).prop_map(|(id, text)| {
        let part = json!({"type": "tool-result", "text": text, "meta": {"tool_call_id": id, "more": [null]}});
        (part, vec![Claim::Result { id, text }])
    });
    let data =
        free_json().prop_map(|value| (json!({"type": "data", "meta": {"data_type": "chart", "v": value}}), vec![]));
    let thinking = words().prop_map(|text| (json!({"type": "thinking", "text": text}), vec![Claim::Thought(text)]));
    let user = prop_oneof![text.clone(), image, result, data].boxed();
    let assistant = prop_oneof![text, thinking, calls(Format::Acontext)].boxed();
    messages_of(["user", "assistant"], "parts", user, assistant)
}

/// Calls `change` with every block of a known type and with its inner objects.
fn change_known_blocks(format: Format, message: &mut Value, change: &mut dyn FnMut(&mut Map<String, Value>)) {
    for list in ["content", "parts", "tool_calls"] {
        let Some(Value::Array(blocks)) = message.get_mut(list) else { continue };
        for block in blocks {
            let kind = block.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
            if matches!(kind.as_str(), "video_url" | "server_tool_use") {
                continue;
            }
            if format == Format::Anthropic {
                change_known_blocks(format, block, change);
            }
            for inner in ["image_url", "input_audio", "function", "source", "inlineData", "fileData", "functionCall"] {
                if let Some(Value::Object(inner)) = block.get_mut(inner) {
                    change(inner);
                }
            }
            block.as_object_mut().into_iter().for_each(&mut *change);
        }
    }
}

/// Adds nulls to a message wherever they mean absent.
pub(super) fn with_nulls(format: Format, mut message: Value) -> Value {
    change_known_blocks(format, &mut message, &mut |object| {
        object.insert("cache_control".into(), Value::Null);
        object.insert("thing".into(), Value::Null);
    });
    for key in ["refusal", "audio", "weight", "meta"] {
        message[key] = Value::Null;
    }
    message
}

/// Converts the keys of a message to snake case, as Google's Python SDK writes them.
pub(super) fn to_snake_case(mut message: Value) -> Value {
    change_known_blocks(Format::Gemini, &mut message, &mut |object| {
        for key in
            ["inlineData", "fileData", "functionCall", "functionResponse", "thoughtSignature", "mimeType", "fileUri"]
        {
            if let Some(value) = object.remove(key) {
                let snake = key.replace(char::is_uppercase, "_*");
                let upper = key.chars().find(|letter| letter.is_uppercase()).unwrap();
                object.insert(snake.replace('*', &upper.to_ascii_lowercase().to_string()), value);
            }
        }
    });
    message
}

/// Generates messages with random changes, and values that are not messages.
pub(super) fn mutated(format: Format) -> impl Strategy<Value = Value> {
    let change = (any::<prop::sample::Index>(), odd_json(), prop::option::of(key()));
    let changed = (sample(format), prop::collection::vec(change, 1..5)).prop_map(|(sample, changes)| {
        let mut message = sample.blob;
        for (index, value, key) in changes {
            let mut remaining = index.index(count_nodes(&message));
            apply_change(&mut message, &mut remaining, &mut Some((value, key)));
        }
        message
    });
    prop_oneof![9 => changed, 1 => odd_json()]
}

fn count_nodes(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count_nodes).sum(),
        Value::Object(object) => object.values().map(count_nodes).sum::<usize>(),
        _ => 0,
    }
}

/// Replaces the node after `remaining` nodes with the value. If there is a key and the node is an object, inserts the value
/// there instead.
fn apply_change(node: &mut Value, remaining: &mut usize, change: &mut Option<(Value, Option<String>)>) {
    if *remaining == 0 {
        match (change.take(), &mut *node) {
            (Some((value, Some(key))), Value::Object(object)) => _ = object.insert(key, value),
            (Some((value, _)), node) => *node = value,
            (None, _) => {}
        }
        return;
    }
    *remaining -= 1;
    let children: Vec<_> = match node {
        Value::Array(list) => list.iter_mut().collect(),
        Value::Object(object) => object.values_mut().collect(),
        _ => return,
    };
    for child in children {
        let size = count_nodes(child);
        if *remaining < size {
            return apply_change(child, remaining, change);
        }
        *remaining -= size;
    }
}

fn key() -> impl Strategy<Value = String> {
    let keys = "type role content parts text tool_calls function_call functionCall function_call Text function custom \
        input_audio file file_data source data media_type mimeType inline_data fileData file_uri response parts url \
        is_error tool_use_id tool_call_id id name arguments args input meta data_type block place asset filename \
        file_field refusal audio reasoning_content reasoning reasoning_details thinking_blocks extra_content google \
        toolCallId toolName output result summary input_text image_url thought thoughtSignature cache_control \
        original_role format";
    prop::sample::select(keys.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
}

fn odd_json() -> impl Strategy<Value = Value> {
    let texts = "user assistant model system developer tool function text image image_url document tool_use base64 \
        tool_result thinking redacted_thinking custom file video openai anthropic gemini acontext content url null \
        data: data:, data:;base64, data:image/png;base64,AAAA dätä:;base64,A gs://b/x.mp4 https://x/y.pdf?z image/png \
        input_text input_image input_file reasoning reasoning.text reasoning.encrypted audio/wav \
        text/plain AAAA A=== -_-_ {} [] {\"a\":1e400} \0 a\0b tool-call tool-result data";
    let mut texts: Vec<_> = texts.split(' ').map(|text| Value::from(text.trim())).collect();
    texts.push("".into());
    let leaf = prop_oneof![
        2 => prop::sample::select(vec![Value::Null, true.into(), false.into(), 5.into(), json!({}), json!([])]),
        1 => number(),
        5 => prop::sample::select(texts),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key(), inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}
