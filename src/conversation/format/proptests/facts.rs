//! What a message says, whatever its format.

use serde_json::Value;

use super::super::Format;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fact {
    Text(String),
    Thought(String),
    FunctionCall {
        id: String,
        name: String,
        arguments: Value,
    },
    Result {
        id: String,
        text: String,
    },
    /// A URL, or a `data:` URL.
    Image(String),
}

/// Whether messages of a format say it.
pub(super) fn says(format: Format, written: &[Value], fact: &Fact) -> bool {
    let told: Vec<_> = written.iter().flat_map(|message| told(format, message)).collect();
    match fact {
        // OpenAI has no other form for it.
        Fact::Thought(text) if format == Format::OpenAi => told.contains(&Fact::Text(text.clone())),
        fact => told.contains(fact),
    }
}

fn told(format: Format, message: &Value) -> Vec<Fact> {
    match format {
        Format::OpenAi => told_by_openai(message),
        Format::Anthropic => list(&message["content"]).iter().flat_map(told_by_anthropic).collect(),
        Format::Gemini => list(&message["parts"]).iter().filter_map(told_by_gemini).collect(),
        Format::Acontext => list(&message["parts"]).iter().filter_map(told_by_acontext).collect(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn told_by_openai(message: &Value) -> Vec<Fact> {
    if message["role"] == "tool" {
        return vec![Fact::Result { id: text(&message["tool_call_id"]), text: text(&message["content"]) }];
    }
    let lone = message["content"].as_str().map(|text| Fact::Text(text.into()));
    let items = list(&message["content"]).iter().filter_map(|item| match item["type"].as_str()? {
        "text" => Some(Fact::Text(text(&item["text"]))),
        "image_url" => Some(Fact::Image(text(&item["image_url"]["url"]))),
        _ => None,
    });
    let calls = list(&message["tool_calls"]).iter().map(|call| {
        let of = &call["function"];
        let arguments = serde_json::from_str(of["arguments"].as_str().unwrap_or_default()).unwrap_or_default();
        Fact::FunctionCall { id: text(&call["id"]), name: text(&of["name"]), arguments }
    });
    lone.into_iter().chain(items).chain(calls).collect()
}

fn told_by_anthropic(block: &Value) -> Vec<Fact> {
    match block["type"].as_str().unwrap_or_default() {
        "text" => vec![Fact::Text(text(&block["text"]))],
        "thinking" => vec![Fact::Thought(text(&block["thinking"]))],
        "image" => vec![Fact::Image(match block["source"]["type"].as_str() {
            Some("url") => text(&block["source"]["url"]),
            _ => data_url(&block["source"]["media_type"], &block["source"]["data"]),
        })],
        "tool_use" => {
            let arguments = block["input"].clone();
            vec![Fact::FunctionCall { id: text(&block["id"]), name: text(&block["name"]), arguments }]
        }
        "tool_result" => {
            let words = list(&block["content"]).iter().map(|inner| text(&inner["text"])).collect();
            let others = list(&block["content"]).iter().flat_map(told_by_anthropic);
            let result = Fact::Result { id: text(&block["tool_use_id"]), text: words };
            [result].into_iter().chain(others).collect()
        }
        _ => Vec::new(),
    }
}

fn told_by_gemini(part: &Value) -> Option<Fact> {
    if let Some(words) = part["text"].as_str() {
        let thought = part["thought"] == true;
        return Some(if thought { Fact::Thought(words.into()) } else { Fact::Text(words.into()) });
    }
    if let Some(inline) = part.get("inlineData") {
        return Some(Fact::Image(data_url(&inline["mimeType"], &inline["data"])));
    }
    if let Some(file) = part.get("fileData") {
        return Some(Fact::Image(text(&file["fileUri"])));
    }
    if let Some(call) = part.get("functionCall") {
        let arguments = call.get("args").cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        return Some(Fact::FunctionCall { id: text(&call["id"]), name: text(&call["name"]), arguments });
    }
    let answer = part.get("functionResponse")?;
    let words = match answer["response"]["output"].as_str() {
        Some(words) => words.to_owned(),
        None => answer["response"].to_string(),
    };
    Some(Fact::Result { id: text(&answer["id"]), text: words })
}

fn told_by_acontext(part: &Value) -> Option<Fact> {
    let meta = &part["meta"];
    Some(match part["type"].as_str()? {
        "text" => Fact::Text(text(&part["text"])),
        "thinking" => Fact::Thought(text(&part["text"])),
        "tool-call" => {
            let arguments = match &meta["arguments"] {
                Value::String(text) => serde_json::from_str(text).unwrap_or_default(),
                value => value.clone(),
            };
            Fact::FunctionCall { id: text(&meta["id"]), name: text(&meta["name"]), arguments }
        }
        "tool-result" => Fact::Result { id: text(&meta["tool_call_id"]), text: text(&part["text"]) },
        "image" => Fact::Image(match meta["url"].as_str() {
            Some(url) => url.to_owned(),
            None => data_url(&meta["media_type"], &meta["data"]),
        }),
        _ => return None,
    })
}

fn data_url(mime: &Value, data: &Value) -> String {
    format!("data:{};base64,{}", text(mime), text(data))
}
