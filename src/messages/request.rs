//! Reads requests that store a message: `{"blob", "format", "meta"}` as a JSON body, or as the field `payload` of a multipart
//! form with files.
//!
//! A message passes through these types: a [`ParsedMessage`] is validated and normalized. A [`PreparedMessage`] also has an id, a
//! number of tokens and serialized content. [`PreparedMessage::to_storage`] converts it to the project's storage format.

use axum::extract::Request;
use bytes::Bytes;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::call_references::{references_of, to_column};
use super::encryption;
use super::new_message::NewMessage;
use crate::auth::Caller;
use crate::conversation::format::{self, Format, FunctionResponse, NormalizedMessage};
use crate::conversation::parts::{PENDING_CALLS_KEY, Part, USER_META_KEY};
use crate::conversation::tokens;
use crate::encryption::{ProjectEncryption, StorageFormat};
use crate::error::{Error, Result};
use crate::http::body::read_body;
use crate::http::extract::parse_object;
use crate::http::json_fields::validate_storable;
use crate::http::memory::{MAX_INLINE_WORK_BYTES, Reservations};
use crate::http::multipart::{FormLimits, MultipartForm, UploadedFile};
use crate::http::request_headers::media_type;
use crate::ids::{MessageId, SessionId};
use crate::json;
use crate::messages::Messages;

/// Maximum size of a message's user metadata, in bytes.
const MAX_USER_META_BYTES: usize = 64 * 1024;
/// Maximum length of the id of a tool call, in bytes.
///
/// Gateways pack signatures of several KiB into the ids of calls. The limit exists because each part of a result repeats the id.
const MAX_CALL_ID_BYTES: usize = 8 * 1024;

/// A message to store.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes a body that is read field by field")]
pub struct StoreMessageRequest {
    /// The message in its provider's format.
    #[schema(value_type = Object)]
    blob: Value,
    /// Format of `blob`; `openai` by default.
    format: Option<Format>,
    /// Client-supplied metadata, up to 64 KiB.
    #[schema(value_type = Option<Object>)]
    meta: Option<Map<String, Value>>,
}

/// A message that was parsed, validated and normalized.
pub struct ParsedMessage {
    pub message: NormalizedMessage,
    pub user_meta: Map<String, Value>,
    pub files: Vec<UploadedFile>,
    /// Length of the JSON text, in bytes.
    length: usize,
}

/// Reads and validates the body of a request that stores a message.
///
/// # Errors
/// Returns 400 with the name of the invalid field, and 413 if the body or a file is too large.
pub async fn read(request: Request, ctx: &Messages) -> Result<ParsedMessage> {
    let limits = &ctx.config.limits;
    let reservations = Reservations::from_extensions(request.extensions());
    if media_type(request.headers()) == "multipart/form-data" {
        let form = MultipartForm::read(request, &ctx.request_context, &FormLimits::message(limits)).await?;
        let mut form = form.ok_or_else(|| Error::invalid_field("Content-Type", "multipart boundary is missing"))?;
        let payload = form.take_text("payload");
        let (files, max_parts) = (form.files, limits.max_message_parts);
        let parse =
            move |payload: Bytes| StoreMessageFields::from_form(&payload)?.validate(files, payload.len(), max_parts);
        return ctx
            .request_context
            .body_memory
            .parse(&reservations, "payload", payload.into(), limits.max_json_values, parse)
            .await;
    }
    let body = read_body(request, &ctx.request_context, limits.max_json_bytes).await?;
    let max_parts = limits.max_message_parts;
    let parse = move |body: Bytes| {
        let (fields, length) = (parse_object(&body)?, body.len());
        drop(body);
        StoreMessageFields::from_json(fields)?.validate(Vec::new(), length, max_parts)
    };
    ctx.request_context.body_memory.parse(&reservations, "body", body, limits.max_json_values, parse).await
}

/// Runs work on a text of `length` bytes. If the text is longer than [`MAX_INLINE_WORK_BYTES`], the work waits for permits of
/// `blocking_budget`, which bounds the memory of all such work, and runs on a blocking thread.
pub async fn run_blocking<T: Send + 'static>(
    ctx: &Messages,
    length: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if length <= MAX_INLINE_WORK_BYTES {
        return work();
    }
    let kib = u32::try_from(length / 1024).unwrap_or(u32::MAX).min(BLOCKING_BUDGET_KIB);
    let _permit = ctx.blocking_budget.acquire_many(kib).await.map_err(Error::internal)?;
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

/// Maximum amount of text that blocking threads process concurrently, in KiB. Parsed JSON needs several times the memory of its
/// text.
pub(super) const BLOCKING_BUDGET_KIB: u32 = 32 * 1024;

/// The fields of a [`StoreMessageRequest`].
struct StoreMessageFields {
    blob: Value,
    format: Format,
    meta: Map<String, Value>,
}

impl StoreMessageFields {
    fn from_json(mut fields: Map<String, Value>) -> Result<Self> {
        let blob = match fields.remove("blob") {
            // Upstream's command-line client sends the message as the request body, without `blob`.
            None if fields.contains_key("role") && fields.contains_key("content") => {
                let message = ["role", "content"].into_iter().filter_map(|key| fields.remove_entry(key));
                Value::Object(message.collect())
            }
            None | Some(Value::Null) => return Err(Error::invalid_field("blob", "is required")),
            Some(blob) => blob,
        };
        let format = match fields.get("format") {
            None | Some(Value::Null) => Some(Format::OpenAi),
            Some(Value::String(name)) => parse_format(name),
            Some(_) => None,
        };
        let format = format.ok_or_else(|| Error::invalid_field("format", INVALID_FORMAT))?;
        let meta = match fields.remove("meta") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(meta)) => meta,
            Some(_) => return Err(Error::invalid_field("meta", "must be a JSON object")),
        };
        Ok(Self { blob, format, meta })
    }

    fn from_form(text: &[u8]) -> Result<Self> {
        let invalid = |reason: &dyn std::fmt::Display| {
            Error::bad_request_with_reason("invalid payload json", format_args!("payload: {reason}"))
        };
        let payload = if text.is_empty() { Value::Null } else { json::parse(text).map_err(|err| invalid(&err))? };
        let mut fields = match payload {
            Value::Null => Map::new(),
            Value::Object(fields) => fields,
            _ => return Err(invalid(&"must be a JSON object")),
        };
        let format = match fields.get("format") {
            None | Some(Value::Null) => Some(Format::OpenAi),
            Some(Value::String(name)) => parse_format(name),
            Some(_) => return Err(invalid(&"format must be a string")),
        };
        let format = format.ok_or_else(|| {
            Error::bad_request_with_reason("invalid format", format_args!("format: {INVALID_FORMAT}"))
        })?;
        let meta = match fields.remove("meta") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(meta)) => meta,
            Some(_) => return Err(invalid(&"meta must be an object")),
        };
        Ok(Self { blob: fields.remove("blob").unwrap_or_default(), format, meta })
    }

    fn validate(self, files: Vec<UploadedFile>, length: usize, max_parts: usize) -> Result<ParsedMessage> {
        validate_user_meta(&self.meta)?;
        let new_call_id = &mut || format!("call_{}", &Uuid::new_v4().simple().to_string()[..8]);
        let mut message = format::normalize(self.format, self.blob, new_call_id).map_err(|err| {
            let reason = format_args!("{}: {}", err.field, err.reason).to_string();
            Error::bad_request_with_reason(normalize_error_msg(self.format), reason)
        })?;
        for key in RESERVED_META_KEYS {
            message.meta.remove(key);
        }
        if let Some(key) = oversized_list_key(&message.body, max_parts) {
            return Err(Error::invalid_field(key, format_args!("exceeds the maximum of {max_parts} parts")));
        }
        if let Some(key) = oversized_id_key(&message.body) {
            return Err(Error::invalid_field(key, format_args!("must not be longer than {MAX_CALL_ID_BYTES} bytes")));
        }
        let field = if self.format == Format::Acontext { "blob.meta" } else { "blob" };
        validate_storable(field, &message.meta, 1 << 20)?;
        Ok(ParsedMessage { message, user_meta: self.meta, files, length })
    }
}

/// Returns the key of the list with which the number of parts in the message exceeds `max_parts`. Parts in tool results are
/// counted, too.
fn oversized_list_key(body: &Value, max_parts: usize) -> Option<&'static str> {
    let length = |list: Option<&Value>| list.and_then(Value::as_array).map_or(0, Vec::len);
    let nested_len = |block: &Value| {
        length(block.get("content")) + length(block.get("functionResponse").and_then(|result| result.get("parts")))
    };
    let mut count = 0;
    ["content", "parts", "tool_calls"].into_iter().find(|key| {
        let list = body.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        count += list.len() + list.iter().map(nested_len).sum::<usize>();
        count > max_parts
    })
}

/// Returns the key of a call id that is too long: of the id in a call or result, or of the function name that takes its place.
fn oversized_id_key(body: &Value) -> Option<&'static str> {
    // An id that is not a string is stored as its JSON text.
    let is_oversized = |id: &Value| id.as_str().map_or_else(|| id.to_string().len(), str::len) > MAX_CALL_ID_BYTES;
    let has_oversized = |object: &Value, key| object.get(key).is_some_and(is_oversized);
    if has_oversized(body, "tool_call_id") {
        return Some("tool_call_id");
    }
    if body.get("role").is_some_and(|role| role == "function") && has_oversized(body, "name") {
        return Some("name");
    }
    let blocks = ["content", "parts", "tool_calls"].iter().filter_map(|key| body.get(key)?.as_array()).flatten();
    blocks.into_iter().find_map(|block| {
        let inner = |key| block.get(key).unwrap_or(&Value::Null);
        let (call, result, meta) = (inner("functionCall"), inner("functionResponse"), inner("meta"));
        [
            (block, "id"),
            (block, "tool_use_id"),
            (call, "id"),
            (result, "id"),
            (result, "name"),
            (meta, "id"),
            (meta, "tool_call_id"),
        ]
        .into_iter()
        .find_map(|(object, key)| has_oversized(object, key).then_some(key))
    })
}

/// Keys in the meta of an `acontext` message that only the server sets; they are removed from a client's message.
const RESERVED_META_KEYS: [&str; 2] = [USER_META_KEY, PENDING_CALLS_KEY];

const INVALID_FORMAT: &str = "must be one of acontext, openai, anthropic or gemini";

/// Parses the name of a format. An empty name is `openai`.
pub fn parse_format(name: &str) -> Option<Format> {
    if name.is_empty() { Some(Format::OpenAi) } else { name.parse().ok() }
}

fn normalize_error_msg(format: Format) -> &'static str {
    match format {
        Format::OpenAi => "failed to normalize openai message",
        Format::Anthropic => "failed to normalize anthropic message",
        Format::Gemini => "failed to normalize gemini message",
        Format::Acontext => "failed to normalize acontext message",
    }
}

/// Validates user metadata, or a patch of it.
///
/// # Errors
/// Returns 400 if it is too large or cannot be stored as JSON.
pub fn validate_user_meta(meta: &Map<String, Value>) -> Result<()> {
    if serde_json::to_vec(meta).map_err(Error::internal)?.len() > MAX_USER_META_BYTES {
        return Err(Error::bad_request("meta size exceeds 64KB limit"));
    }
    // Postgres writes numbers without exponents, so they can become longer than in the request.
    validate_storable("meta", meta, 1 << 20)
}

/// A message that is ready to be stored, but not encrypted yet.
#[derive(Clone)]
pub struct PreparedMessage {
    pub message: NewMessage,
    /// The responses of a Gemini message, which may still have to be matched with their calls.
    pub function_responses: Vec<FunctionResponse>,
    /// The parts of the message; `None` if it is long, to save memory.
    parts: Option<Vec<Part>>,
}

impl ParsedMessage {
    /// Counts the tokens, serializes the content, and assigns the id.
    pub async fn prepare(self, ctx: &Messages, caller: &Caller, session: SessionId) -> Result<PreparedMessage> {
        let Self { message, user_meta, length, .. } = self;
        let (project, max_buffer_turns) = (caller.project, caller.max_buffer_turns);
        run_blocking(ctx, length, move || {
            let function_responses = message.function_responses();
            let NormalizedMessage { format, role, meta, body } = message;
            let content = Bytes::from(json::to_vec(&body));
            let parts = format::to_parts(format, body);
            let tokens = i32::try_from(tokens::count_parts(&parts)).unwrap_or(i32::MAX);
            let id = MessageId::new();
            let message = NewMessage {
                id,
                project,
                session,
                role,
                format,
                content,
                tokens,
                meta,
                user_meta,
                call_references: to_column(&references_of(role, &parts)),
                max_buffer_turns,
                encrypted_kek: None,
            };
            let parts = (length <= MAX_INLINE_WORK_BYTES).then_some(parts);
            Ok(PreparedMessage { message, function_responses, parts })
        })
        .await
    }
}

impl PreparedMessage {
    /// Returns `true` if a response of the message does not name its call.
    pub fn needs_call_ids(&self) -> bool {
        self.function_responses.iter().any(|response| response.id.is_none())
    }

    /// Returns the message in this storage format: encrypts it if the format requires that.
    ///
    /// # Errors
    /// Returns 403 if it must be encrypted and the request has no master key.
    pub async fn to_storage(
        &self,
        ctx: &Messages,
        encryption: &ProjectEncryption,
        format: StorageFormat,
    ) -> Result<NewMessage> {
        if encryption.encryption_key(format)?.is_none() {
            return Ok(self.message.clone());
        }
        let (encryption, message) = (encryption.clone(), self.message.clone());
        let encrypted_kek = ctx.queue.wrap_kek(encryption.decryption_key()?)?;
        run_blocking(ctx, message.content.len(), move || {
            encryption::encrypt_message(encryption.decryption_key()?, message, encrypted_kek)
        })
        .await
    }

    /// Returns the message with these ids in its function results. Each entry is the index of a part and the id of its call.
    pub async fn with_call_ids(&self, ctx: &Messages, ids: Vec<(usize, String)>) -> Result<Self> {
        let mut message = self.message.clone();
        run_blocking(ctx, message.content.len(), move || {
            let body = json::parse_trusted(&message.content).map_err(Error::internal)?;
            let NewMessage { format, role, .. } = message;
            let mut normalized = NormalizedMessage { format, role, meta: Map::new(), body };
            for (part, id) in &ids {
                normalized.set_response_id(*part, id);
            }
            message.content = json::to_vec(&normalized.body).into();
            let parts = format::to_parts(format, normalized.body);
            message.call_references = to_column(&references_of(role, &parts));
            Ok(Self { message, function_responses: Vec::new(), parts: None })
        })
        .await
    }

    /// Returns the message and its parts. The content of a long message is left out, to save memory.
    pub async fn into_parts(self, ctx: &Messages) -> Result<(NewMessage, Vec<Part>)> {
        let Self { message, parts, .. } = self;
        if let Some(parts) = parts {
            return Ok((message, parts));
        }
        run_blocking(ctx, message.content.len(), move || {
            let body = json::parse_trusted(&message.content).map_err(Error::internal)?;
            let format = message.format;
            Ok((NewMessage { content: Bytes::new(), ..message }, format::to_parts(format, body)))
        })
        .await
    }
}
