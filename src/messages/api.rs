//! The routes of messages.

use std::collections::BTreeMap;

use axum::extract::{Request, State};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use uuid::Uuid;

use super::incoming::{self, StoreMessage, format_of, on_the_side};
use super::page::{self, Row, Wanted};
use super::pieces::Pieces;
use super::shown::{self, Item, Opened, Rest};
use super::{ProcessStatus, Written, files, save, sealed, store};
use crate::auth::Caller;
use crate::conversation::edit::{self, ParseError};
use crate::conversation::format::{Format, RenderContext};
use crate::conversation::parts::{Asset, Kind, Part, Role};
use crate::db::page::Cursor;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::http::extract::{Flag, Int, Path, Query};
use crate::http::idempotency::Idempotency;
use crate::http::memory::Reservations;
use crate::http::response::{self, CommandResult, Created, Data, QueryResult};
use crate::ids::{MessageId, ProjectId, SessionId};
use crate::json;
use crate::messages::Messages;
use crate::sessions::{self, events};
use crate::time::Timestamp;

/// Up to this a page is converted right where it was read, in bytes.
const QUICK: usize = 64 * 1024;

/// A message that was stored.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Message {
    id: MessageId,
    session_id: SessionId,
    /// The message before.
    parent_id: Option<MessageId>,
    role: Role,
    /// What the client keeps with it.
    #[schema(value_type = Object)]
    meta: Map<String, Value>,
    parts: Vec<Part>,
    task_id: Option<Uuid>,
    /// `pending`, or `disable_tracking` if the session's tasks are not tracked.
    session_task_process_status: ProcessStatus,
    created_at: Timestamp,
    updated_at: Timestamp,
}

/// Store a message
///
/// As JSON, or as a form with the same in the field `payload` and the files that parts of the format `acontext` name.
#[utoipa::path(post, path = "/api/v1/session/{session_id}/messages", tag = "message",
    params(("session_id" = SessionId, Path)), request_body = StoreMessage)]
pub async fn store_message(
    State(ctx): State<Messages>,
    caller: Caller,
    idempotency: Idempotency,
    Path(session): Path<SessionId>,
    request: Request,
) -> CommandResult<Created<Message>> {
    caller.encryption.ensure_can_store()?;
    let draft = incoming::read(request, &ctx).await?;
    idempotency.replay_if_completed().await?;
    let Written { ready, stored, tx } = save::save(&ctx, &caller, &idempotency, session, draft).await?;
    let length = ready.message.content.len();
    let (message, parts) = ready.into_parts(&ctx).await?;
    let shown = Message {
        id: message.id,
        session_id: session,
        parent_id: stored.parent,
        role: message.role,
        meta: message.user_meta,
        parts,
        task_id: None,
        session_task_process_status: stored.status,
        created_at: stored.created_at,
        updated_at: stored.created_at,
    };
    let answer = on_the_side(&ctx, length, move || Ok(response::created(shown))).await?;
    match tx {
        Some(tx) => tx.commit(answer).await,
        None => Ok(answer),
    }
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GetMessages {
    /// How many messages at most; 0 or nothing for all.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 0, maximum = 200)]
    limit: Option<Int>,
    /// The `next_cursor` of the page before. Counts only with a limit.
    #[serde(default)]
    cursor: Option<String>,
    /// With a limit: the newest messages. They still come oldest first.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    time_desc: Option<Flag>,
    /// The format of the messages; `openai` if it is left out.
    #[serde(default)]
    #[param(value_type = Option<Format>)]
    format: Option<String>,
    /// Whether files are shown by links that need no key.
    #[serde(default)]
    #[param(value_type = Option<bool>, default = true)]
    with_asset_public_url: Option<Flag>,
    /// Whether the events between the first and the last of these messages are shown.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    with_events: Option<Flag>,
    /// How to shorten the conversation: a JSON list of objects with `type` and `params`, as text. The types are
    /// `remove_tool_result`, `remove_tool_call_params`, `middle_out` and `token_limit`.
    #[serde(default)]
    #[param(example = "[{\"type\": \"token_limit\", \"params\": {\"limit_tokens\": 20000}}]")]
    edit_strategies: Option<String>,
    /// The last message that is edited, by its id: what comes after it is shown as it is.
    #[serde(default)]
    pin_editing_strategies_at_message: Option<String>,
}

/// Messages of a session.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes an answer that is written in pieces")]
pub struct GotMessages<'a> {
    /// Oldest first, in the format that was asked for.
    items: Vec<Item<'a>>,
    /// Of the message that each item is of, or is a piece of.
    ids: Vec<MessageId>,
    /// What the client keeps with each.
    #[schema(value_type = Vec<Object>)]
    metas: Vec<Value>,
    /// Present only if there is more.
    next_cursor: Option<String>,
    has_more: bool,
    /// Of these messages together.
    this_time_tokens: i64,
    /// The last message that was or would be edited; left out if there is none.
    edit_at_message_id: Option<MessageId>,
    /// Left out if there are none.
    events: Option<Vec<events::Event>>,
    /// In the format `acontext`: links to files by the SHA-256 of their content.
    #[schema(value_type = Option<BTreeMap<String, super::PublicUrl>>)]
    public_urls: Option<Value>,
}

/// Get messages
#[utoipa::path(get, path = "/api/v1/session/{session_id}/messages", tag = "message",
    params(("session_id" = SessionId, Path), GetMessages))]
pub async fn get_messages(
    State(ctx): State<Messages>,
    caller: Caller,
    Path(session): Path<SessionId>,
    Query(query): Query<GetMessages>,
) -> QueryResult<Data<GotMessages<'static>>> {
    let format = query.format.as_deref().unwrap_or_default();
    let target = format_of(format)
        .ok_or_else(|| Error::invalid_field("format", "must be one of acontext, openai, anthropic or gemini"))?;
    let strategies = edit::parse(query.edit_strategies.as_deref().unwrap_or_default());
    if let Err(ParseError::Malformed { field, why }) = &strategies {
        return Err(Error::bad_request_with_reason("invalid edit_strategies JSON", format_args!("{field}: {why}")));
    }
    let wanted = wanted(&ctx, &query)?;
    let reservations = Reservations::default();
    let (rows, next) = read(&ctx, &reservations, caller.project, session, &wanted).await?;
    sealed::ensure_can_decrypt(&caller.encryption, &rows)?;
    let strategies = strategies.map_err(|refused| {
        let (ParseError::Malformed { field, why } | ParseError::Invalid { field, why }) = refused;
        Error::invalid_field(&field, why)
    })?;
    let pin = query.pin_editing_strategies_at_message.as_deref();
    let pin = pin.and_then(|pin| rows.iter().position(|row| row.id.to_string() == pin));
    let edited_at = edit::edited_at(&strategies, rows.len(), pin).map(|at| rows[at].id);
    let with_links = Flag::or(query.with_asset_public_url, true);
    let events = match (rows.first(), rows.last()) {
        (Some(first), Some(last)) if query.with_events.is_some_and(Flag::is_set) => {
            let mut conn = ctx.db.acquire().await?;
            let limit = i64::try_from(ctx.config.limits.messages).unwrap_or(i64::MAX);
            let (from, to) = (first.created_at, last.created_at);
            events::store::list_between(&mut conn, caller.project, session, from, to, limit).await?
        }
        _ => Vec::new(),
    };
    let next_cursor = next.map(|at| at.encode());
    let rest = Rest { session, next_cursor, edited_at, events, public_urls: BTreeMap::new() };
    // What is passed on as it is makes no work, but for its seal.
    let passed_on = strategies.is_empty() && shown::is_passed_on(&rows, target);
    let length = if passed_on { sealed::work(&rows) } else { rows.iter().map(Row::length).sum() };
    let rows = decrypt(&ctx, &reservations, caller.encryption.clone(), rows, passed_on).await?;
    let progress = converted(&ctx, length, move || {
        if strategies.is_empty() && shown::is_plain(&rows, target) {
            return shown::write_plain(rows, target, &rest).map(Progress::Written);
        }
        let messages = if strategies.is_empty() {
            shown::open(rows, target)?
        } else {
            shown::edit(rows, target, &strategies, pin)?
        };
        if messages.iter().flat_map(Opened::parts).any(|part| part.asset.is_some()) {
            return Ok(Progress::WithFiles(messages, rest));
        }
        let names = shown::call_names(&messages, target);
        let mut around = RenderContext { call_names: names, ..RenderContext::default() };
        shown::write(messages, target, &mut around, &rest).map(Progress::Written)
    })
    .await?;
    let response = match progress {
        Progress::Written(response) => response,
        Progress::WithFiles(messages, rest) => {
            with_files(&ctx, &caller.encryption, messages, target, with_links, length, rest).await?
        }
    };
    let (body, length) = response.into_body();
    Ok(response::ok_written(body, length))
}

/// Decrypts messages, and reserves memory for the values of those that are to be converted.
async fn decrypt(
    ctx: &Messages,
    reservations: &Reservations,
    encryption: ProjectEncryption,
    mut rows: Vec<Row>,
    passed_on: bool,
) -> Result<Vec<Row>> {
    let length: usize = rows.iter().map(Row::length).sum();
    if passed_on || length <= QUICK {
        return converted(ctx, sealed::work(&rows), move || sealed::open(&encryption, &mut rows).map(|()| rows)).await;
    }
    let (rows, estimate) = converted(ctx, length, move || {
        sealed::open(&encryption, &mut rows)?;
        let estimate = rows.iter().map(|row| json::estimate(&row.content).bytes).sum();
        Ok((rows, estimate))
    })
    .await?;
    ctx.request_context.body_memory.reserve_values(reservations, estimate).await?;
    Ok(rows)
}

/// How far an answer has come without looking for files.
enum Progress {
    Written(Pieces),
    WithFiles(Vec<Opened>, Rest),
}

/// As [`on_the_side`], for work that takes some microseconds for each KiB.
async fn converted<T: Send + 'static>(
    ctx: &Messages,
    length: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if length <= QUICK { work() } else { on_the_side(ctx, length, work).await }
}

fn wanted(ctx: &Messages, query: &GetMessages) -> Result<Wanted> {
    let limit = match query.limit.and_then(Int::given) {
        None => 0,
        Some(limit) => {
            let limit = usize::try_from(limit).ok().filter(|limit| *limit <= 200);
            limit.ok_or_else(|| Error::invalid_field("limit", "must be from 0 to 200"))?
        }
    };
    let bytes = ctx.config.limits.messages_bytes;
    if limit == 0 {
        let newest_first = false;
        return Ok(Wanted { after: None, newest_first, limit: ctx.config.limits.messages, bytes });
    }
    let after = match query.cursor.as_deref() {
        None | Some("") => None,
        Some(cursor) => Cursor::decode(cursor)?,
    };
    Ok(Wanted { after, newest_first: query.time_desc.is_some_and(Flag::is_set), limit, bytes })
}

/// The messages of a page, oldest first, and where the next one begins if there is one.
async fn read(
    ctx: &Messages,
    reservations: &Reservations,
    project: ProjectId,
    session: SessionId,
    wanted: &Wanted,
) -> Result<(Vec<Row>, Option<Cursor>)> {
    let mut conn = ctx.message_pages.acquire().await?;
    let mut rows = page::list(&mut conn, project, session, wanted).await?;
    if rows.is_empty() && !sessions::store::exists(&mut conn, project, session).await? {
        return Err(sessions::NOT_FOUND);
    }
    drop(conn);
    rows.truncate(wanted.limit);
    if rows.iter().any(|row| !row.is_whole()) {
        let length = rows.iter().filter_map(|row| u64::try_from(row.content_length).ok()).sum();
        ctx.request_context.body_memory.reserve_body(reservations, length).await?;
        let mut conn = ctx.message_pages.acquire().await?;
        if !page::load_contents(&mut conn, &mut rows).await? {
            return Err(sessions::NOT_FOUND);
        }
    }
    let more = |row: &&Row| usize::try_from(row.there).is_ok_and(|there| there > rows.len());
    let next = rows.last().filter(more).map(Row::cursor);
    if wanted.newest_first {
        rows.reverse();
    }
    Ok((rows, next))
}

/// The answer to messages that have files.
async fn with_files(
    ctx: &Messages,
    encryption: &ProjectEncryption,
    messages: Vec<Opened>,
    target: Format,
    with_links: bool,
    length: usize,
    mut rest: Rest,
) -> Result<Pieces> {
    let parts = || messages.iter().flat_map(Opened::parts);
    let mut around = RenderContext::default();
    let urls = if with_links { files::public_urls(ctx, encryption, parts()).await? } else { BTreeMap::new() };
    around.asset_urls = urls.iter().map(|(sha256, link)| (sha256.clone(), link.url.clone())).collect();
    around.asset_contents =
        files::contents(ctx, encryption, parts(), |asset, kind| shows_content(target, asset, kind, with_links)).await?;
    if target == Format::Acontext {
        rest.public_urls = urls;
    }
    on_the_side(ctx, length, move || {
        around.call_names = shown::call_names(&messages, target);
        shown::write(messages, target, &mut around, &rest)
    })
    .await
}

/// Whether a format shows this file by its content.
fn shows_content(target: Format, asset: &Asset, kind: Kind, with_links: bool) -> bool {
    let mime = asset.mime.split(';').next().unwrap_or_default();
    match target {
        Format::Acontext => false,
        Format::OpenAi => kind != Kind::Image || !with_links,
        Format::Anthropic => mime.starts_with("image/") || matches!(mime, "application/pdf" | "text/plain"),
        Format::Gemini => true,
    }
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct TokenCounts {
    total_tokens: i64,
}

/// Count the tokens of a session
#[utoipa::path(get, path = "/api/v1/session/{session_id}/token_counts", tag = "message",
    params(("session_id" = SessionId, Path)))]
pub async fn get_token_counts(
    State(ctx): State<Messages>,
    caller: Caller,
    Path(session): Path<SessionId>,
) -> QueryResult<Data<TokenCounts>> {
    let mut conn = ctx.db.acquire().await?;
    sessions::store::ensure_owned(&mut conn, caller.project, session).await?;
    let total_tokens = store::sum_tokens(&mut conn, caller.project, session).await?;
    Ok(response::ok(TokenCounts { total_tokens }))
}
