//! Statements about the content of a message that hold in every format.

use serde_json::Value;

use super::super::Format;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Claim {
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

/// Returns `true` if messages that were converted from the format `source` contain the claim.
pub(super) fn contains_claim(source: Format, format: Format, messages: &[Value], claim: &Claim) -> bool {
    let claims: Vec<_> = messages.iter().flat_map(|message| claims_of(format, message)).collect();
    match claim {
        // All thoughts of an OpenAI message are in one field, on separate lines.
        Claim::Thought(text) if format == Format::OpenAi => {
            claims.iter().any(|claim| matches!(claim, Claim::Thought(thoughts) if thoughts.contains(text)))
        }
        // Anthropic rejects thoughts without its own signature.
        Claim::Thought(_) if format == Format::Anthropic && source != format => true,
        claim => claims.contains(claim),
    }
}

fn claims_of(format: Format, message: &Value) -> Vec<Claim> {
    match format {
        Format::OpenAi => claims_of_openai(message),
        Format::Anthropic => list(&message["content"]).iter().flat_map(claims_of_anthropic).collect(),
        Format::Gemini => list(&message["parts"]).iter().filter_map(claims_of_gemini).collect(),
        Format::Acontext => list(&message["parts"]).iter().filter_map(claims_of_acontext).collect(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn claims_of_openai(message: &Value) -> Vec<Claim> {
    if message["role"] == "tool" {
        let texts = list(&message["content"]).iter().map(|item| text(&item["text"]));
        let result_text = text(&message["content"]) + &texts.collect::<String>();
        return vec![Claim::Result { id: text(&message["tool_call_id"]), text: result_text }];
    }
    let thoughts = message["reasoning_content"].as_str().map(|text| Claim::Thought(text.into()));
    let lone = message["content"].as_str().map(|text| Claim::Text(text.into()));
    let items = list(&message["content"]).iter().filter_map(|item| match item["type"].as_str()? {
        "text" => Some(Claim::Text(text(&item["text"]))),
        "image_url" => Some(Claim::Image(text(&item["image_url"]["url"]))),
        _ => None,
    });
    let calls = list(&message["tool_calls"]).iter().map(|call| {
        let function = &call["function"];
        let arguments = serde_json::from_str(function["arguments"].as_str().unwrap_or_default()).unwrap_or_default();
        Claim::FunctionCall { id: text(&call["id"]), name: text(&function["name"]), arguments }
    });
    thoughts.into_iter().chain(lone).chain(items).chain(calls).collect()
}

fn claims_of_anthropic(block: &Value) -> Vec<Claim> {
    match block["type"].as_str().unwrap_or_default() {
        "text" => vec![Claim::Text(text(&block["text"]))],
        "thinking" => vec![Claim::Thought(text(&block["thinking"]))],
        "image" => vec![Claim::Image(match block["source"]["type"].as_str() {
            Some("url") => text(&block["source"]["url"]),
            _ => data_url(&block["source"]["media_type"], &block["source"]["data"]),
        })],
        "tool_use" => {
            let arguments = block["input"].clone();
            vec![Claim::FunctionCall { id: text(&block["id"]), name: text(&block["name"]), arguments }]
        }
        "tool_result" => {
            let texts = list(&block["content"]).iter().map(|inner| text(&inner["text"])).collect();
            let attachments = list(&block["content"]).iter().flat_map(claims_of_anthropic);
            let result = Claim::Result { id: text(&block["tool_use_id"]), text: texts };
            [result].into_iter().chain(attachments).collect()
        }
        _ => Vec::new(),
    }
}

fn claims_of_gemini(part: &Value) -> Option<Claim> {
    if let Some(text) = part["text"].as_str() {
        let is_thought = part["thought"] == true;
        return Some(if is_thought { Claim::Thought(text.into()) } else { Claim::Text(text.into()) });
    }
    if let Some(inline) = part.get("inlineData") {
        return Some(Claim::Image(data_url(&inline["mimeType"], &inline["data"])));
    }
    if let Some(file) = part.get("fileData") {
        return Some(Claim::Image(text(&file["fileUri"])));
    }
    if let Some(call) = part.get("functionCall") {
        let arguments = call.get("args").cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        return Some(Claim::FunctionCall { id: text(&call["id"]), name: text(&call["name"]), arguments });
    }
    let response = part.get("functionResponse")?;
    let value = &response["response"];
    let output = match value["output"].as_str().or_else(|| value["error"].as_str()) {
        Some(output) => output.to_owned(),
        None => value.to_string(),
    };
    Some(Claim::Result { id: text(&response["id"]), text: output })
}

fn claims_of_acontext(part: &Value) -> Option<Claim> {
    let meta = &part["meta"];
    Some(match part["type"].as_str()? {
        "text" => Claim::Text(text(&part["text"])),
        "thinking" => Claim::Thought(text(&part["text"])),
        "tool-call" => {
            let arguments = match &meta["arguments"] {
                Value::String(text) => serde_json::from_str(text).unwrap_or_default(),
                value => value.clone(),
            };
            Claim::FunctionCall { id: text(&meta["id"]), name: text(&meta["name"]), arguments }
        }
        "tool-result" => Claim::Result { id: text(&meta["tool_call_id"]), text: text(&part["text"]) },
        "image" => Claim::Image(match meta["url"].as_str() {
            Some(url) => url.to_owned(),
            None => data_url(&meta["media_type"], &meta["data"]),
        }),
        _ => return None,
    })
}

fn data_url(mime: &Value, data: &Value) -> String {
    format!("data:{};base64,{}", text(mime), text(data))
}
