//! The parts of a message: the common model of the four formats, which is also the JSON of the `acontext` format.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::json;
use crate::text_enum::text_enum;

/// The key in the meta of an `acontext` message that contains the metadata of the client.
pub const USER_META_KEY: &str = "__user_meta__";
/// The key in the meta of an `acontext` message that contains its pending calls.
pub const PENDING_CALLS_KEY: &str = "__gemini_call_info__";

text_enum! {
    /// The sender of a message. Other roles of a format are mapped to one of these. The meta of a message with the role `system` or
    /// `developer` contains the original role.
    pub enum Role {
        User = "user",
        Assistant = "assistant",
    }
}

/// The kind of a part: the field `type` in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub enum PartKind {
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

/// A file that is attached to a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Asset {
    /// Name of the S3 bucket; `acontext` if no bucket is configured.
    pub bucket: String,
    /// A public name of the file, not its object key.
    pub s3_key: String,
    /// Always empty. Typed clients require the field.
    pub etag: String,
    /// SHA-256 of the content in hex.
    pub sha256: String,
    pub mime: String,
    /// Size of the content in bytes.
    pub size_b: u64,
}

/// A part of a message. Empty fields are omitted.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Part {
    #[serde(rename = "type")]
    pub kind: PartKind,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asset: Option<Asset>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filename: String,
    /// Fields of this kind of part, such as the `name` and `arguments` of a tool call or the `url` of an image.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub meta: Map<String, Value>,
    /// Unknown fields of an `acontext` part.
    #[serde(flatten)]
    #[schema(ignore)]
    pub extra: Map<String, Value>,
}

impl Part {
    /// Appends the part as JSON to `out`. The fields are those of the [`Serialize`] implementation, in another order.
    ///
    /// # Errors
    /// Returns an error if serialization fails.
    pub fn write(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        out.extend_from_slice(b"{\"type\":");
        serde_json::to_writer(&mut *out, &self.kind)?;
        for (key, text) in [(",\"text\":", &self.text), (",\"filename\":", &self.filename)] {
            if !text.is_empty() {
                out.extend_from_slice(key.as_bytes());
                json::write_string(text, out);
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
    fn written_parts_equal_serialized_parts() {
        let object = |value: Value| value.as_object().cloned().unwrap_or_default();
        let bare = Part {
            kind: PartKind::RedactedThinking,
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
            kind: PartKind::ToolCall,
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
