//! The calls that precede a page. What a message says must not depend on where the page begins, so the converter needs to know
//! them. They are cached, because a client that reads the newest messages again and again needs the same calls, and a few more.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use sqlx::PgConnection;

use super::call_references::{self, CallReference};
use super::page::MessageRow;
use crate::conversation::format::Format;
use crate::conversation::history::{EarlierCalls, generate_call_id};
use crate::encryption::{ProjectEncryption, StorageFormat};
use crate::error::Result;
use crate::ids::{MessageId, SessionId};
use crate::messages::Messages;
use crate::time::Timestamp;

/// The memory for cached calls, in bytes.
const MAX_CACHE_BYTES: u64 = 32 << 20;
/// How long the calls of a session are cached after the last request for them.
const IDLE_TIME: Duration = Duration::from_mins(10);

/// The calls of recently read sessions, without those of encrypted projects.
///
/// A cached value is never outdated, because messages are only appended to a session and their calls do not change. It names the
/// last message that it covers: a client may create another session with the id of a deleted one, but message ids are unique.
pub(super) struct EarlierCallCache(Cache<SessionId, CachedCalls>);

/// The calls of the messages of a session up to a message.
#[derive(Clone)]
struct CachedCalls {
    last: MessageId,
    calls: Arc<EarlierCalls>,
}

impl Default for EarlierCallCache {
    fn default() -> Self {
        let weigh = |_: &SessionId, cached: &CachedCalls| {
            u32::try_from(cached.calls.memory_bytes() + size_of::<CachedCalls>()).unwrap_or(u32::MAX)
        };
        Self(Cache::builder().max_capacity(MAX_CACHE_BYTES).weigher(weigh).time_to_idle(IDLE_TIME).build())
    }
}

/// Loads the calls that precede a page, if a message of the page is converted to the target and may refer to them.
///
/// # Errors
/// Returns 403 if a message is encrypted and `encryption` has no master key.
pub(super) async fn load_earlier_calls(
    ctx: &Messages,
    encryption: &ProjectEncryption,
    session: SessionId,
    rows: &[MessageRow],
    target: Format,
) -> Result<Arc<EarlierCalls>> {
    let is_converted = |row: &MessageRow| row.format != target && row.call_references.is_some();
    let Some((first, last)) = rows.first().and_then(|first| Some((first, first.parent_id?))) else {
        return Ok(Arc::default());
    };
    if target == Format::Acontext || !rows.iter().any(is_converted) {
        return Ok(Arc::default());
    }
    let is_cacheable = encryption.format == StorageFormat::Plaintext;
    let cached = if is_cacheable { ctx.earlier_calls.0.get(&session) } else { None };
    if let Some(CachedCalls { calls, .. }) = cached.as_ref().filter(|cached| cached.last == last) {
        return Ok(Arc::clone(calls));
    }
    let mut conn = ctx.db.acquire().await?;
    let cached_until = match &cached {
        Some(cached) => find_time(&mut conn, session, cached.last).await?,
        None => None,
    };
    // The calls before a later page are of no use for this one.
    let from = cached_until.filter(|time| *time < first.created_at);
    let mut calls = cached.filter(|_| from.is_some()).map(|cached| cached.calls).unwrap_or_default();
    add_calls(&mut conn, encryption, session, from, first.created_at, Arc::make_mut(&mut calls)).await?;
    let is_latest = from.is_some() || cached_until.is_none();
    if is_cacheable && is_latest {
        ctx.earlier_calls.0.insert(session, CachedCalls { last, calls: Arc::clone(&calls) });
    }
    Ok(calls)
}

/// Returns when a message of the session was created. `None` if the session does not have the message.
async fn find_time(conn: &mut PgConnection, session: SessionId, id: MessageId) -> sqlx::Result<Option<Timestamp>> {
    let time = sqlx::query_scalar!(
        r#"select created_at as "created_at: Timestamp" from messages where id = $1 and session_id = $2"#,
        id as _,
        session as _
    );
    time.fetch_optional(conn).await
}

/// Adds the calls of the messages from the time `from` until before the time `before`.
async fn add_calls(
    conn: &mut PgConnection,
    encryption: &ProjectEncryption,
    session: SessionId,
    from: Option<Timestamp>,
    before: Timestamp,
    calls: &mut EarlierCalls,
) -> Result<()> {
    for message in call_references::list_readable(conn, encryption, session, from, Some(before)).await? {
        for (index, reference) in message.references.into_iter().enumerate() {
            if let CallReference::Call { id, name } = reference {
                calls.add(if id.is_empty() { generate_call_id(message.id.0, index) } else { id }, name);
            }
        }
    }
    Ok(())
}
