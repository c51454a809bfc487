//! The parts of a message: the one model between the four formats, and what the `acontext` format shows as it is.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::json;
use crate::text_enum::text_enum;

/// The key in the meta of an `acontext` message that holds the user metadata.
pub const USER_META: &str = "__user_meta__";
/// The key in the meta of an `acontext` message that holds its pending Gemini function calls.
pub const OPEN_CALLS: &str = "__gemini_call_info__";

text_enum! {
    /// The sender of a message. Other roles of a format are mapped to one of these; the meta of the message has the original role.
    pub enum Role {
        User = "user",
        Assistant = "assistant",
    }
}

/// What a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Kind {
    #[serde(rename = "text")]
    Text,
    #[serde(rename = "image")]
    Image,
    #[serde(rename = "audio")]
    Audio,
    #[serde(rename = "video")]
    Video,
    #[serde(rename = "file")]
    File,
    #[serde(rename = "tool-call")]
    ToolCall,
    #[serde(rename = "tool-result")]
    ToolResult,
    #[serde(rename = "data")]
    Data,
    #[serde(rename = "thinking")]
    Thinking,
    #[serde(rename = "redacted_thinking")]
    RedactedThinking,
}

/// A file that was stored with a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Asset {
    pub bucket: String,
    /// A public name, not the key of the object.
    pub s3_key: String,
    /// Always empty; typed clients want the key.
    pub etag: String,
    /// Of the content, in hex.
    pub sha256: String,
    pub mime: String,
    /// Bytes.
    pub size_b: u64,
}

/// One part of a message. What is empty is left out when it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Part {
    #[serde(rename = "type")]
    pub kind: Kind,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asset: Option<Asset>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filename: String,
    /// What the kind needs besides: `name` and `arguments` of a tool call, `url` of an image, ...
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub meta: Map<String, Value>,
    /// Keys of an `acontext` part that nobody knows.
    #[serde(flatten)]
    #[schema(ignore)]
    pub extra: Map<String, Value>,
}

impl Part {
    /// Writes the part as JSON at the end of a text, just as it is serialized.
    pub fn write(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        out.extend_from_slice(b"{\"type\":");
        serde_json::to_writer(&mut *out, &self.kind)?;
        for (key, text) in [(",\"text\":", &self.text), (",\"filename\":", &self.filename)] {
            if !text.is_empty() {
                out.extend_from_slice(key.as_bytes());
                json::write_text(text, out);
            }
        }
        if let Some(asset) = &self.asset {
            out.extend_from_slice(b",\"asset\":");
            serde_json::to_writer(&mut *out, asset)?;
        }
        if !self.meta.is_empty() {
            out.extend_from_slice(b",\"meta\":{");
            json::write_fields(&self.meta, out);
            out.push(b'}');
        }
        json::write_fields(&self.extra, out);
        out.push(b'}');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_part_is_written_as_it_is_serialized() {
        let object = |value: Value| value.as_object().cloned().unwrap_or_default();
        let bare = Part {
            kind: Kind::RedactedThinking,
            text: String::new(),
            asset: None,
            filename: String::new(),
            meta: Map::new(),
            extra: Map::new(),
        };
        let asset = Asset {
            bucket: "b".into(),
            s3_key: "assets/\"x\"".into(),
            etag: String::new(),
            sha256: "ab".into(),
            mime: "text/plain".into(),
            size_b: u64::MAX,
        };
        let full = Part {
            kind: Kind::ToolCall,
            text: "a \"text\"\n".into(),
            asset: Some(asset),
            filename: "f.txt".into(),
            meta: object(json!({"name": "f", "arguments": {"a": [1, 2.50, null]}})),
            extra: object(json!({"unknown": true, "also": {}})),
        };
        let extra = Part { extra: full.extra.clone(), ..bare.clone() };
        for part in [bare, full, extra] {
            let mut written = Vec::new();
            part.write(&mut written).expect("can be written");
            let written: Value = serde_json::from_slice(&written).expect("is JSON");
            assert_eq!(written, serde_json::to_value(&part).expect("can be serialized"));
        }
    }
}
