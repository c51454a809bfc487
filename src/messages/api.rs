//! The routes of messages.

use std::collections::BTreeMap;

use axum::extract::{Request, State};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::call_references;
use super::decode::{self, DecodedMessage};
use super::earlier_calls::load_earlier_calls;
use super::json_writer::ChunkedJson;
use super::list_params::GetMessagesParams;
use super::load_page::{LoadedPage, load_page};
use super::page::MessageRow;
use super::render::{self, AcontextMessage, PageFields};
use super::request::{self, StoreMessageRequest, run_blocking};
use super::{ProcessStatus, StoredMessage, encryption, files, save, store};
use crate::auth::Caller;
use crate::conversation::edit::{self, ParseError};
use crate::conversation::format::{Format, RenderContext};
use crate::conversation::parts::{Asset, Part, PartKind, Role};
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::http::extract::{LenientBool, Path, Query};
use crate::http::idempotency::Idempotency;
use crate::http::memory::Reservations;
use crate::http::response::{self, CommandResult, Created, Data, QueryResult};
use crate::http::response_memory::{MAX_UNRESERVED_BYTES, ResponseReservation};
use crate::ids::{MessageId, SessionId};
use crate::json;
use crate::messages::Messages;
use crate::sessions::events::Event;
use crate::sessions::{self, events};
use crate::time::Timestamp;

/// Maximum size in bytes of a page that is converted on the thread that serves the request.
const MAX_INLINE_CONVERSION_BYTES: usize = 64 * 1024;

/// A stored message.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Message {
    id: MessageId,
    session_id: SessionId,
    /// Id of the previous message of the session.
    parent_id: Option<MessageId>,
    role: Role,
    /// Client-supplied metadata.
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
/// The body is JSON or a multipart form. A form has the same JSON in the field `payload`, and files in other fields. A part of an
/// `acontext` message names the form field of its file in `file_field`.
#[utoipa::path(post, path = "/api/v1/session/{session_id}/messages", tag = "message",
    params(("session_id" = SessionId, Path)), request_body = StoreMessageRequest)]
pub async fn store_message(
    State(ctx): State<Messages>,
    caller: Caller,
    idempotency: Idempotency,
    Path(session): Path<SessionId>,
    request: Request,
) -> CommandResult<Created<Message>> {
    caller.encryption.ensure_can_store()?;
    let parsed = request::read(request, &ctx).await?;
    idempotency.replay_if_completed().await?;
    let StoredMessage { prepared, inserted, tx } = save::save(&ctx, &caller, &idempotency, session, parsed).await?;
    let length = prepared.message.content.len();
    let (message, parts) = prepared.into_parts(&ctx).await?;
    let message = Message {
        id: message.id,
        session_id: session,
        parent_id: inserted.parent,
        role: message.role,
        meta: message.user_meta,
        parts,
        task_id: None,
        session_task_process_status: inserted.status,
        created_at: inserted.created_at,
        updated_at: inserted.created_at,
    };
    let response = run_blocking(&ctx, length, move || Ok(response::created(message))).await?;
    match tx {
        Some(tx) => tx.commit(response).await,
        None => Ok(response),
    }
}

/// A page of a session's messages.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the response that `render` writes")]
pub struct GetMessagesResponse<'a> {
    /// The messages in the requested format, oldest first. A message can become several items.
    items: Vec<AcontextMessage<'a>>,
    /// For each item, the id of its message.
    ids: Vec<MessageId>,
    /// For each item, the client-supplied metadata of its message.
    #[schema(value_type = Vec<Object>)]
    metas: Vec<Value>,
    /// Cursor of the next page; absent on the last page.
    next_cursor: Option<String>,
    has_more: bool,
    /// Number of tokens in the returned messages.
    this_time_tokens: i64,
    /// Id of the last message that the edit strategies could change. A later request that passes it as
    /// `pin_editing_strategies_at_message` edits the same messages. Absent if there are no messages.
    edit_at_message_id: Option<MessageId>,
    /// Events, if `with_events` is `true`; absent if there are none.
    events: Option<Vec<Event>>,
    /// In the format `acontext`: public links to files, by the SHA-256 of their content.
    #[schema(value_type = Option<BTreeMap<String, super::PublicUrl>>)]
    public_urls: Option<Value>,
}

/// Get messages
#[utoipa::path(get, path = "/api/v1/session/{session_id}/messages", tag = "message",
    params(("session_id" = SessionId, Path), GetMessagesParams))]
pub async fn get_messages(
    State(ctx): State<Messages>,
    caller: Caller,
    Path(session): Path<SessionId>,
    Query(query): Query<GetMessagesParams>,
) -> QueryResult<Data<GetMessagesResponse<'static>>> {
    let target = query.target()?;
    let strategies = edit::parse(query.edit_strategies.as_deref().unwrap_or_default());
    if let Err(ParseError::Malformed { field, reason }) = &strategies {
        return Err(Error::bad_request_with_reason("invalid edit_strategies JSON", format_args!("{field}: {reason}")));
    }
    let page = query.page_request(&ctx, target)?;
    let options = query.render_options()?;
    let reservations = Reservations::default();
    let LoadedPage { rows, next, response_memory } =
        load_page(&ctx, &reservations, caller.project, session, &page).await?;
    encryption::ensure_can_decrypt(&caller.encryption, &rows)?;
    // Like upstream, report an invalid strategy only if the session exists.
    let strategies = strategies.map_err(invalid_strategy_error)?;
    let pin = query.pin_editing_strategies_at_message.as_deref();
    let pin = pin.and_then(|pin| rows.iter().position(|row| row.id.to_string() == pin));
    let edit_at_message_id = edit::pin_index(&strategies, rows.len(), pin).map(|index| rows[index].id);
    let events = load_events(&ctx, &caller, session, &query, &rows).await?;
    let next_cursor = next.map(|cursor| cursor.encode());
    // Messages that are passed through only have to be decrypted.
    let is_passthrough = strategies.is_empty() && render::is_passthrough(&rows, target, options);
    let cost =
        if is_passthrough { encryption::decrypt_cost(&rows) } else { rows.iter().map(MessageRow::text_len).sum() };
    let rows = decrypt_page(&ctx, &reservations, caller.encryption.clone(), rows, is_passthrough).await?;
    let earlier_calls = load_earlier_calls(&ctx, &caller.encryption, session, &rows, target).await?;
    let unanswered_calls =
        call_references::load_unanswered_calls(&ctx, &caller.encryption, session, &rows, target).await?;
    let public_urls = BTreeMap::new();
    let page_fields =
        PageFields { session, next_cursor, edit_at_message_id, events, public_urls, earlier_calls, unanswered_calls };
    let render_ctx = RenderContext { options, ..RenderContext::default() };
    let outcome = run_conversion(&ctx, cost, move || {
        if strategies.is_empty() && (is_passthrough || render::is_streamable(&rows)) {
            return render::write_streamed(rows, target, &render_ctx, &page_fields).map(RenderOutcome::Done);
        }
        let messages = if strategies.is_empty() {
            decode::decode(rows, target)?
        } else {
            decode::edit_and_decode(rows, target, &strategies, pin, &page_fields.earlier_calls)?
        };
        if messages.iter().flat_map(DecodedMessage::parts).any(|part| part.asset.is_some()) {
            return Ok(RenderOutcome::NeedsFiles(Box::new(DecodedPage { messages, target, render_ctx, page_fields })));
        }
        render::write_response(messages, target, &render_ctx, &page_fields).map(RenderOutcome::Done)
    })
    .await?;
    let response = match outcome {
        RenderOutcome::Done(response) => response,
        RenderOutcome::NeedsFiles(page) => {
            let with_links = LenientBool::unwrap_or(query.with_asset_public_url, true);
            render_with_files(&ctx, &caller.encryption, *page, with_links, cost).await?
        }
    };
    // The memory for the conversion is no longer used. Other requests must not wait for it while this one waits.
    drop(reservations);
    build_response(&ctx, response, response_memory).await
}

/// Loads the events between the first and the last message of a page, if they are requested.
async fn load_events(
    ctx: &Messages,
    caller: &Caller,
    session: SessionId,
    query: &GetMessagesParams,
    rows: &[MessageRow],
) -> Result<Vec<Event>> {
    let (first, last) = match (rows.first(), rows.last()) {
        (Some(first), Some(last)) if query.with_events.is_some_and(LenientBool::is_set) => (first, last),
        _ => return Ok(Vec::new()),
    };
    let mut conn = ctx.db.acquire().await?;
    let limit = i64::try_from(ctx.config.limits.max_messages).unwrap_or(i64::MAX);
    let (from, to) = (first.created_at, last.created_at);
    Ok(events::store::list_between(&mut conn, caller.project, session, from, to, limit).await?)
}

/// Attaches the memory reservation of a response to its body. Reserves memory if the page has not reserved any.
async fn build_response<T>(
    ctx: &Messages,
    response: ChunkedJson,
    reservation: Option<ResponseReservation>,
) -> QueryResult<Data<T>> {
    let length = response.length();
    let reservation = match (reservation, u64::try_from(length).unwrap_or(u64::MAX)) {
        (Some(reservation), length) => Some(reservation.resize(length)),
        (None, length) if length > MAX_UNRESERVED_BYTES => {
            Some(ctx.request_context.response_memory.reserve_complete(length).await?)
        }
        (None, _) => None,
    };
    Ok(response::ok_serialized(response.into_body(reservation), length))
}

fn invalid_strategy_error(err: ParseError) -> Error {
    let (ParseError::Malformed { field, reason } | ParseError::Invalid { field, reason }) = err;
    Error::invalid_field(&field, reason)
}

/// Decrypts a page of messages. If it is large and must be converted, reserves memory for its JSON values.
async fn decrypt_page(
    ctx: &Messages,
    reservations: &Reservations,
    encryption: ProjectEncryption,
    mut rows: Vec<MessageRow>,
    is_passthrough: bool,
) -> Result<Vec<MessageRow>> {
    let length: usize = rows.iter().map(MessageRow::text_len).sum();
    if is_passthrough || length <= MAX_INLINE_CONVERSION_BYTES {
        let cost = encryption::decrypt_cost(&rows);
        return run_conversion(ctx, cost, move || encryption::decrypt_rows(&encryption, &mut rows).map(|()| rows))
            .await;
    }
    let (rows, estimate) = run_conversion(ctx, length, move || {
        encryption::decrypt_rows(&encryption, &mut rows)?;
        let estimate = rows.iter().map(|row| json::estimate(&row.content).bytes).sum();
        Ok((rows, estimate))
    })
    .await?;
    ctx.request_context.body_memory.reserve_values(reservations, estimate).await?;
    Ok(rows)
}

/// The result of rendering a page without its files.
enum RenderOutcome {
    Done(ChunkedJson),
    /// Some messages have files, which must be loaded first.
    NeedsFiles(Box<DecodedPage>),
}

/// A page of which only the files are missing.
struct DecodedPage {
    messages: Vec<DecodedMessage>,
    target: Format,
    render_ctx: RenderContext,
    page_fields: PageFields,
}

/// Runs work that takes as long as the conversion of `cost` bytes, which is some microseconds per KiB. If `cost` is at most
/// [`MAX_INLINE_CONVERSION_BYTES`], the work runs on the current thread, otherwise with [`run_blocking`].
async fn run_conversion<T: Send + 'static>(
    ctx: &Messages,
    cost: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if cost <= MAX_INLINE_CONVERSION_BYTES { work() } else { run_blocking(ctx, cost, work).await }
}

/// Renders messages that have files.
async fn render_with_files(
    ctx: &Messages,
    encryption: &ProjectEncryption,
    page: DecodedPage,
    with_links: bool,
    cost: usize,
) -> Result<ChunkedJson> {
    let DecodedPage { messages, target, mut render_ctx, mut page_fields } = page;
    let parts = || messages.iter().flat_map(DecodedMessage::parts);
    let urls = if with_links { files::create_public_urls(ctx, encryption, parts()).await? } else { BTreeMap::new() };
    render_ctx.asset_urls = urls.iter().map(|(sha256, link)| (sha256.clone(), link.url.clone())).collect();
    render_ctx.asset_contents = files::load_inline_contents(ctx, encryption, parts(), |asset, kind| {
        inlines_content(target, asset, kind, with_links)
    })
    .await?;
    if target == Format::Acontext {
        page_fields.public_urls = urls;
    }
    run_blocking(ctx, cost, move || render::write_response(messages, target, &render_ctx, &page_fields)).await
}

/// Returns `true` if messages of this format contain the file's content instead of a link.
fn inlines_content(target: Format, asset: &Asset, kind: PartKind, with_links: bool) -> bool {
    let mime = asset.mime.split(';').next().unwrap_or_default();
    match target {
        Format::Acontext => false,
        Format::OpenAi => kind != PartKind::Image || !with_links,
        Format::Anthropic => mime.starts_with("image/") || matches!(mime, "application/pdf" | "text/plain"),
        Format::Gemini => true,
    }
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct GetTokenCountsResponse {
    /// Number of tokens in all messages of the session.
    total_tokens: i64,
}

/// Count the tokens of a session
#[utoipa::path(get, path = "/api/v1/session/{session_id}/token_counts", tag = "message",
    params(("session_id" = SessionId, Path)))]
pub async fn get_token_counts(
    State(ctx): State<Messages>,
    caller: Caller,
    Path(session): Path<SessionId>,
) -> QueryResult<Data<GetTokenCountsResponse>> {
    let mut conn = ctx.db.acquire().await?;
    sessions::store::ensure_owned(&mut conn, caller.project, session).await?;
    let total_tokens = store::sum_tokens(&mut conn, caller.project, session).await?;
    Ok(response::ok(GetTokenCountsResponse { total_tokens }))
}
