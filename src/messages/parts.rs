//! The parts of a message: the one model between the four formats, and what the `acontext` format shows as it is.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Who speaks. Other roles of a format are one of these, and its meta says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    User,
    Assistant,
}

impl Role {
    /// As it stands in the database and in the `acontext` format.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
        }
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
