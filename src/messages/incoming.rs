//! What a client sends to be stored: `{"blob", "format", "meta"}` as a JSON body, or as the field `payload` of a form that
//! brings files along.

use axum::extract::Request;
use bytes::Bytes;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::new_message::NewMessage;
use super::sealed;
use super::store::shown_calls;
use crate::auth::Caller;
use crate::conversation::format::{self, Format, FunctionCall, FunctionResponse, NormalizedMessage};
use crate::conversation::parts::{OPEN_CALLS, Part, USER_META};
use crate::conversation::tokens;
use crate::encryption::{ProjectEncryption, StorageFormat};
use crate::error::{Error, Result};
use crate::http::body::body_bytes;
use crate::http::extract::first_object;
use crate::http::head::media_type;
use crate::http::json::validate_storable;
use crate::http::memory::{Reservations, SHORT};
use crate::http::multipart::{FormLimits, MultipartForm, UploadedFile};
use crate::ids::{MessageId, SessionId};
use crate::json;
use crate::messages::Messages;

/// Of what a client keeps with a message, in bytes.
const MAX_USER_META: usize = 64 * 1024;
/// Of the id of a tool's call, in bytes.
const MAX_ID: usize = 1024;

/// The body of a request that stores a message.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes a body that is read field by field")]
pub struct StoreMessage {
    /// The message as its provider writes it.
    #[schema(value_type = Object)]
    blob: Value,
    /// `openai` if it is left out.
    format: Option<Format>,
    /// An object to keep with the message, up to 64 KiB.
    #[schema(value_type = Option<Object>)]
    meta: Option<Map<String, Value>>,
}

/// A message that was read and checked.
pub struct Draft {
    pub message: NormalizedMessage,
    pub user_meta: Map<String, Value>,
    pub files: Vec<UploadedFile>,
    /// How long the JSON was, in bytes.
    length: usize,
}

/// Reads and checks a request's body.
///
/// # Errors
/// 400 that names the field, 413 for what is too large.
pub async fn read(request: Request, ctx: &Messages) -> Result<Draft> {
    let limits = &ctx.config.limits;
    let reservations = Reservations::of(request.extensions());
    if media_type(request.headers()) == "multipart/form-data" {
        let form = MultipartForm::read(request, &ctx.request_context, &FormLimits::message(limits)).await?;
        let mut form = form.ok_or_else(|| Error::invalid_field("Content-Type", "has no boundary"))?;
        let payload = form.take_text("payload");
        let (files, parts) = (form.files, limits.message_parts);
        let read = move |payload: Bytes| Bound::of_payload(&payload)?.check(files, payload.len(), parts);
        return ctx
            .request_context
            .body_memory
            .parse(&reservations, "payload", payload.into(), limits.json_values, read)
            .await;
    }
    let body = body_bytes(request, &ctx.request_context, limits.json).await?;
    let parts = limits.message_parts;
    let read = move |body: Bytes| {
        let (fields, length) = (first_object(&body)?, body.len());
        drop(body);
        Bound::of_body(fields)?.check(Vec::new(), length, parts)
    };
    ctx.request_context.body_memory.parse(&reservations, "body", body, limits.json_values, read).await
}

/// Does what may take long for a long text in a thread of its own, and no more of it at once than memory allows.
pub async fn on_the_side<T: Send + 'static>(
    ctx: &Messages,
    length: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if length <= SHORT {
        return work();
    }
    let kib = u32::try_from(length / 1024).unwrap_or(u32::MAX).min(PARSE_BUDGET_KIB);
    let _permit = ctx.parse_budget.acquire_many(kib).await.map_err(Error::internal)?;
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

/// Of the text of long messages that is worked on at one time, in KiB. JSON takes many times its length meanwhile.
pub(super) const PARSE_BUDGET_KIB: u32 = 32 * 1024;

/// The fields of a request.
struct Bound {
    blob: Value,
    format: Format,
    meta: Map<String, Value>,
}

impl Bound {
    fn of_body(mut fields: Map<String, Value>) -> Result<Self> {
        let blob = match fields.remove("blob") {
            // A client of the command line sends the message itself.
            None if fields.contains_key("role") && fields.contains_key("content") => {
                let said = ["role", "content"].into_iter().filter_map(|key| fields.remove_entry(key));
                Value::Object(said.collect())
            }
            None | Some(Value::Null) => return Err(Error::invalid_field("blob", "is required")),
            Some(blob) => blob,
        };
        let format = match fields.get("format") {
            None | Some(Value::Null) => Some(Format::OpenAi),
            Some(Value::String(name)) => format_of(name),
            Some(_) => None,
        };
        let format = format.ok_or_else(|| Error::invalid_field("format", FORMATS))?;
        let meta = match fields.remove("meta") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(meta)) => meta,
            Some(_) => return Err(Error::invalid_field("meta", "must be a JSON object")),
        };
        Ok(Self { blob, format, meta })
    }

    fn of_payload(text: &[u8]) -> Result<Self> {
        let invalid = |why: &dyn std::fmt::Display| {
            Error::bad_request_with_reason("invalid payload json", format_args!("payload: {why}"))
        };
        let payload = if text.is_empty() { Value::Null } else { json::parse(text).map_err(|why| invalid(&why))? };
        let mut fields = match payload {
            Value::Null => Map::new(),
            Value::Object(fields) => fields,
            _ => return Err(invalid(&"must be a JSON object")),
        };
        let format = match fields.get("format") {
            None | Some(Value::Null) => Some(Format::OpenAi),
            Some(Value::String(name)) => format_of(name),
            Some(_) => return Err(invalid(&"format must be a string")),
        };
        let format = format
            .ok_or_else(|| Error::bad_request_with_reason("invalid format", format_args!("format: {FORMATS}")))?;
        let meta = match fields.remove("meta") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(meta)) => meta,
            Some(_) => return Err(invalid(&"meta must be an object")),
        };
        Ok(Self { blob: fields.remove("blob").unwrap_or_default(), format, meta })
    }

    fn check(self, files: Vec<UploadedFile>, length: usize, max_parts: usize) -> Result<Draft> {
        check_user_meta(&self.meta)?;
        let new_call_id = &mut || format!("call_{}", &Uuid::new_v4().simple().to_string()[..8]);
        let mut message = format::read(self.format, self.blob, new_call_id).map_err(|refused| {
            let why = format_args!("{}: {}", refused.field, refused.why).to_string();
            Error::bad_request_with_reason(not_of(self.format), why)
        })?;
        for key in RESERVED {
            message.meta.remove(key);
        }
        if let Some(key) = too_many(&message.body, max_parts) {
            return Err(Error::invalid_field(key, format_args!("must not make it more than {max_parts} parts")));
        }
        if let Some(key) = long_id(&message.body) {
            return Err(Error::invalid_field(key, format_args!("must not be longer than {MAX_ID} bytes")));
        }
        let said = if self.format == Format::Acontext { "blob.meta" } else { "blob" };
        validate_storable(said, &message.meta, 1 << 20)?;
        Ok(Draft { message, user_meta: self.meta, files, length })
    }
}

/// The list that makes a message have more parts than it may, those inside of tool results among them.
fn too_many(body: &Value, max_parts: usize) -> Option<&'static str> {
    let length = |list: Option<&Value>| list.and_then(Value::as_array).map_or(0, Vec::len);
    let inside = |block: &Value| {
        length(block.get("content")) + length(block.get("functionResponse").and_then(|answer| answer.get("parts")))
    };
    let mut count = 0;
    ["content", "parts", "tool_calls"].into_iter().find(|key| {
        let list = body.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        count += list.len() + list.iter().map(inside).sum::<usize>();
        count > max_parts
    })
}

/// The id of a call, or the name that stands for it, that is too long. What a tool returns tells it with each of its parts.
fn long_id(body: &Value) -> Option<&'static str> {
    // What is no text is taken as its JSON.
    let is_long = |id: &Value| id.as_str().map_or_else(|| id.to_string().len(), str::len) > MAX_ID;
    let has_long = |of: &Value, key| of.get(key).is_some_and(is_long);
    if has_long(body, "tool_call_id") {
        return Some("tool_call_id");
    }
    if body.get("role").is_some_and(|role| role == "function") && has_long(body, "name") {
        return Some("name");
    }
    let blocks = ["content", "parts"].iter().filter_map(|key| body.get(key)?.as_array()).flatten();
    blocks.into_iter().find_map(|block| {
        let answer = block.get("functionResponse").unwrap_or(&Value::Null);
        [(block, "tool_use_id"), (answer, "id"), (answer, "name")]
            .into_iter()
            .find_map(|(of, key)| has_long(of, key).then_some(key))
    })
}

/// What the format `acontext` shows in a message's meta that is the server's, so a client's is left out.
const RESERVED: [&str; 2] = [USER_META, OPEN_CALLS];

const FORMATS: &str = "must be one of acontext, openai, anthropic or gemini";

/// Reads the name of a format; the empty one is `openai`.
pub fn format_of(name: &str) -> Option<Format> {
    if name.is_empty() { Some(Format::OpenAi) } else { name.parse().ok() }
}

fn not_of(format: Format) -> &'static str {
    match format {
        Format::OpenAi => "failed to normalize openai message",
        Format::Anthropic => "failed to normalize anthropic message",
        Format::Gemini => "failed to normalize gemini message",
        Format::Acontext => "failed to normalize acontext message",
    }
}

/// What a client may keep with a message, or add to it.
pub fn check_user_meta(meta: &Map<String, Value>) -> Result<()> {
    if serde_json::to_vec(meta).map_err(Error::internal)?.len() > MAX_USER_META {
        return Err(Error::bad_request("meta size exceeds 64KB limit"));
    }
    // Numbers take more room where they are stored.
    validate_storable("meta", meta, 1 << 20)
}

/// A message that is ready to be stored, but for its seal.
#[derive(Clone)]
pub struct Ready {
    pub message: NewMessage,
    /// Results of Gemini function calls, whose ids have still to be found.
    pub results: Vec<FunctionResponse>,
    /// Its parts, if it is not a long one.
    parts: Option<Vec<Part>>,
}

impl Draft {
    /// Counts the tokens and writes the content out.
    pub async fn finish(self, ctx: &Messages, caller: &Caller, session: SessionId) -> Result<Ready> {
        let Self { message, user_meta, length, .. } = self;
        let (project, buffer_turns) = (caller.project, caller.buffer_turns);
        on_the_side(ctx, length, move || {
            let (pending_calls, results): (Vec<FunctionCall>, _) = (message.calls(), message.answers());
            let NormalizedMessage { format, role, meta, body } = message;
            let content = Bytes::from(json::to_vec(&body));
            let parts = format::parts(format, body);
            let tokens = i32::try_from(tokens::of_parts(&parts)).unwrap_or(i32::MAX);
            // The memory of a long one is needed for other copies of it.
            let parts = (length <= SHORT).then_some(parts);
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
                pending_calls: shown_calls(&pending_calls),
                buffer_turns,
                job_key: None,
            };
            Ok(Ready { message, results, parts })
        })
        .await
    }
}

impl Ready {
    /// Returns the message as it is stored in this format.
    ///
    /// # Errors
    /// 403 if it is to be encrypted and the request has not brought the project's key.
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
        let job_key = ctx.queue.wrap_kek(encryption.decryption_key()?)?;
        on_the_side(ctx, message.content.len(), move || sealed::seal(encryption.decryption_key()?, message, job_key))
            .await
    }

    /// Returns the message with the ids of the calls in its results: (index of the part, id).
    pub async fn with_call_ids(&self, ctx: &Messages, ids: Vec<(usize, String)>) -> Result<Self> {
        let mut message = self.message.clone();
        on_the_side(ctx, message.content.len(), move || {
            let body = json::parse_own(&message.content).map_err(Error::internal)?;
            let NewMessage { format, role, .. } = message;
            let mut whole = NormalizedMessage { format, role, meta: Map::new(), body };
            for (part, id) in &ids {
                whole.set_answer_id(*part, id);
            }
            message.content = json::to_vec(&whole.body).into();
            Ok(Self { message, results: Vec::new(), parts: None })
        })
        .await
    }

    /// The message without its content, and its parts, to show them.
    pub async fn into_parts(self, ctx: &Messages) -> Result<(NewMessage, Vec<Part>)> {
        let Self { message, parts, .. } = self;
        if let Some(parts) = parts {
            return Ok((message, parts));
        }
        on_the_side(ctx, message.content.len(), move || {
            let body = json::parse_own(&message.content).map_err(Error::internal)?;
            let format = message.format;
            Ok((NewMessage { content: Bytes::new(), ..message }, format::parts(format, body)))
        })
        .await
    }
}
