//! Loads a page of messages with their contents. Reserves memory for a large page before it loads the contents.

use super::page::{self, MessagePageRequest, MessageRow};
use super::page_turns::find_extension;
use crate::db::page::Cursor;
use crate::error::Result;
use crate::http::memory::Reservations;
use crate::http::response_memory::ResponseReservation;
use crate::ids::{ProjectId, SessionId};
use crate::messages::Messages;
use crate::sessions;

/// A page of messages, oldest first.
pub(super) struct LoadedPage {
    pub(super) rows: Vec<MessageRow>,
    /// The cursor of the next page, if there is one.
    pub(super) next: Option<Cursor>,
    /// The memory that a page over 1 MiB has reserved for its response.
    pub(super) response_memory: Option<ResponseReservation>,
}

/// The size in bytes after which a page ends if there is no memory for a larger response. It is not lower because many clients
/// read only one page.
const REDUCED_PAGE_BYTES: u64 = 32 << 20;
/// The memory for the other fields of a message in the response, such as its id.
const MESSAGE_OVERHEAD_BYTES: u64 = 256;

/// Returns the estimated size of a message in the response.
fn response_bytes(row: &MessageRow) -> u64 {
    u64::try_from(row.content_length).unwrap_or_default() + row.user_meta.len() as u64 + MESSAGE_OVERHEAD_BYTES
}

/// Removes the rows after the one that reaches [`REDUCED_PAGE_BYTES`].
fn reduce_page(rows: &mut Vec<MessageRow>) {
    let mut bytes = 0;
    let kept = rows.iter().take_while(|row| {
        let is_kept = bytes <= REDUCED_PAGE_BYTES;
        bytes += response_bytes(row);
        is_kept
    });
    let kept = kept.count();
    rows.truncate(kept);
}

/// Loads a page of messages.
///
/// # Errors
/// Returns 404 if the session does not exist, and 503 if there is no memory for the response, or if the database fails.
pub(super) async fn load_page(
    ctx: &Messages,
    reservations: &Reservations,
    project: ProjectId,
    session: SessionId,
    page: &MessagePageRequest,
) -> Result<LoadedPage> {
    let (mut response_memory, mut is_reduced) = (None, false);
    let mut rows = loop {
        let mut conn = ctx.page_pool.acquire().await?;
        let mut rows = page::list(&mut conn, project, session, page).await?;
        if rows.is_empty() && !sessions::store::exists(&mut conn, project, session).await? {
            return Err(sessions::SESSION_NOT_FOUND);
        }
        let extension = find_extension(&mut conn, session, page, &rows).await?;
        let limit = page.limit + extension;
        // Usually, these messages are loaded already, and the one that shows that there is another page.
        if extension > 0 && limit >= rows.len() {
            rows = page::list(&mut conn, project, session, &MessagePageRequest { limit, ..*page }).await?;
        }
        drop(conn);
        rows.truncate(limit);
        if is_reduced {
            reduce_page(&mut rows);
        }
        if rows.iter().all(MessageRow::is_content_loaded) {
            break rows;
        }
        // Reserve only once, because an encryption conversion changes the length of a message by less than 200 bytes.
        if response_memory.is_none() {
            // The wait for response memory can be long, because it ends when clients read. Therefore it comes first: a request
            // must not hold body memory, which other requests need, while it waits.
            let memory = &ctx.request_context.response_memory;
            response_memory = memory.try_reserve(rows.iter().map(response_bytes).sum());
            if response_memory.is_none() {
                is_reduced = true;
                reduce_page(&mut rows);
                response_memory = Some(memory.reserve(rows.iter().map(response_bytes).sum()).await?);
            }
            let length = rows.iter().filter_map(|row| u64::try_from(row.content_length).ok()).sum();
            ctx.request_context.body_memory.reserve_body(reservations, length).await?;
        }
        let mut conn = ctx.page_pool.acquire().await?;
        if page::load_contents(&mut conn, &mut rows).await? {
            break rows;
        }
        // The session was deleted, or an encryption conversion has rewritten a message since the rows were read.
    };
    let has_more = |row: &&MessageRow| usize::try_from(row.total_in_page).is_ok_and(|total| total > rows.len());
    let next = rows.last().filter(has_more).map(MessageRow::cursor);
    if page.newest_first {
        rows.reverse();
    }
    Ok(LoadedPage { rows, next, response_memory })
}
