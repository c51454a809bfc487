//! Reads a page of a session's messages: in one query, unless the page has more than 1 MiB.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::ProcessStatus;
use super::store::SLICE_BYTES;
use crate::conversation::format::Format;
use crate::conversation::parts::Role;
use crate::db::page::Cursor;
use crate::ids::{MessageId, ProjectId, SessionId};
use crate::time::Timestamp;

/// Planner settings of the connections that read pages. With them, the statement is planned once per connection and always uses
/// the same index. Planning takes longer than execution, and by default Postgres plans the statement again for each limit, or
/// reads and sorts the whole session.
pub(super) const PLANNER_SETTINGS: &[(&str, &str)] = &[
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_seqscan", "off"),
    ("enable_sort", "off"),
    ("plan_cache_mode", "force_generic_plan"),
];

/// A message as stored.
pub struct MessageRow {
    pub id: MessageId,
    pub parent_id: Option<MessageId>,
    pub role: Role,
    pub format: Format,
    /// JSON text, possibly encrypted. Empty until it is loaded, see [`Self::is_content_loaded`].
    pub content: Vec<u8>,
    /// Id of the message for which the content was encrypted; `None` if it is plaintext.
    pub encrypted_as: Option<Uuid>,
    /// Length of the stored content in bytes.
    pub content_length: i32,
    pub tokens: i32,
    /// JSON text.
    pub meta: String,
    /// JSON text.
    pub user_meta: String,
    /// JSON text with the message's references to tool calls; a string with the encrypted text if the message is encrypted.
    pub call_references: Option<String>,
    pub task_id: Option<Uuid>,
    pub status: ProcessStatus,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Number of messages that match the request, but at most [`MessagePageRequest::lookahead`] more than its limit. Includes
    /// messages that are left out because the page would become too large.
    pub total_in_page: i64,
}

impl MessageRow {
    /// Returns the length of the loaded content and metadata in bytes.
    pub fn text_len(&self) -> usize {
        self.content.len() + self.meta.len() + self.user_meta.len()
    }

    /// Returns `true` if the content is loaded. In a page over 1 MiB, [`load_contents`] loads it after memory was reserved.
    pub fn is_content_loaded(&self) -> bool {
        usize::try_from(self.content_length).is_ok_and(|length| length == self.content.len())
    }

    pub fn cursor(&self) -> Cursor {
        Cursor { created_at: self.created_at.0, id: self.id.0 }
    }
}

/// The page of messages to read.
#[derive(Clone, Copy)]
pub struct MessagePageRequest {
    pub after: Option<Cursor>,
    pub newest_first: bool,
    pub limit: usize,
    /// Maximum size of the page without its last message, in bytes.
    pub max_bytes: u64,
    /// The format of the response. A page is extended to the end of a tool turn that this format requires to stand together.
    pub target: Format,
}

impl MessagePageRequest {
    /// Returns the number of messages after the limit that are read with the page. The first one shows that there is another page.
    /// Two usually suffice to know where the tool turn of the page's last message ends.
    pub fn lookahead(&self) -> usize {
        if self.target == Format::Acontext { 1 } else { 2 }
    }
}

/// Maximum size of a page whose contents are returned by the same query, in bytes.
const MAX_SINGLE_QUERY_BYTES: i64 = 1 << 20;

/// Selects a page of messages in one direction. The literals are SQL: the condition for messages after the cursor, the order, and
/// expressions for the lowest and the highest time of the page.
macro_rules! select_page {
    ($after:literal, $order:literal, $low:literal, $high:literal; $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            MessageRow,
            r#"with page as (
                   select m.created_at,
                          octet_length(m.content) + pg_column_size(m.meta) + pg_column_size(m.user_meta) as size
                   from messages m
                   where exists (select 1 from sessions where id = $2 and project_id = $1)
                     and m.session_id = $2 and (m.created_at, m.id) "# + $after + r#"
                   order by m.created_at "# + $order + r#" limit $5
               ),
               summed as (
                   select created_at, size,
                          sum(size) over (order by created_at "# + $order + r#" rows unbounded preceding) - size as before
                   from page
               ),
               edges as materialized (
                   select "# + $low + r#" as low, "# + $high + r#" as high,
                          sum(size) filter (where before <= $6) as total_size, count(*) as total_in_page
                   from summed
               )
               select id as "id: MessageId", parent_id as "parent_id: MessageId", role as "role: Role", format as "format: Format",
                      case when octet_length(content) <= $7 and (select total_size from edges) <= $8
                           then content else '' end as "content!",
                      octet_length(content) as "content_length!", encrypted_as, tokens,
                      meta::text as "meta!", user_meta::text as "user_meta!", call_references::text, task_id,
                      session_task_process_status as "status: ProcessStatus", created_at as "created_at: Timestamp",
                      updated_at as "updated_at: Timestamp", (select total_in_page from edges) as "total_in_page!"
               from messages
               where session_id = $2 and created_at between (select low from edges) and (select high from edges)
               order by created_at "# + $order,
            $($parameter),*
        )
    };
}

/// Lists messages of a session in the requested order. Returns up to [`MessagePageRequest::lookahead`] messages more than the
/// limit, and fewer if their size exceeds the maximum. [`MessageRow::total_in_page`] shows if there are more messages.
///
/// The query finds the end of the page from the sizes alone, because a running sum over whole rows would copy the contents.
pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    page: &MessagePageRequest,
) -> sqlx::Result<Vec<MessageRow>> {
    let (time, id) = (page.after.map(|after| after.created_at), page.after.map(|after| after.id));
    let limit = i64::try_from(page.limit.saturating_add(page.lookahead())).unwrap_or(i64::MAX);
    let max_bytes = i64::try_from(page.max_bytes).unwrap_or(i64::MAX);
    let slice_bytes = i32::try_from(SLICE_BYTES).unwrap_or(i32::MAX);
    if page.newest_first {
        select_page!(
            "< (coalesce($3, 'infinity'::timestamptz), coalesce($4, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))",
            "desc", "min(created_at) filter (where before <= $6)", "max(created_at)";
            project as _, session as _, time, id, limit, max_bytes as _, slice_bytes, MAX_SINGLE_QUERY_BYTES as _,
        )
        .fetch_all(conn)
        .await
    } else {
        select_page!(
            "> (coalesce($3, '-infinity'::timestamptz), coalesce($4, '00000000-0000-0000-0000-000000000000'::uuid))",
            "asc", "min(created_at)", "max(created_at) filter (where before <= $6)";
            project as _, session as _, time, id, limit, max_bytes as _, slice_bytes, MAX_SINGLE_QUERY_BYTES as _,
        )
        .fetch_all(conn)
        .await
    }
}

/// The properties of a message that determine the tool turns and whether they are joined.
pub struct NeighborRow {
    pub role: Role,
    pub format: Format,
    pub has_references: bool,
}

/// Lists up to `limit` messages after `cursor`, in the requested order, without their contents.
pub async fn list_neighbors(
    conn: &mut PgConnection,
    session: SessionId,
    cursor: Cursor,
    newest_first: bool,
    limit: i64,
) -> sqlx::Result<Vec<NeighborRow>> {
    if newest_first {
        sqlx::query_as!(
            NeighborRow,
            r#"select role as "role: Role", format as "format: Format", call_references is not null as "has_references!"
               from messages where session_id = $1 and created_at < $2 order by created_at desc limit $3"#,
            session as _,
            cursor.created_at,
            limit
        )
        .fetch_all(conn)
        .await
    } else {
        sqlx::query_as!(
            NeighborRow,
            r#"select role as "role: Role", format as "format: Format", call_references is not null as "has_references!"
               from messages where session_id = $1 and created_at > $2 order by created_at limit $3"#,
            session as _,
            cursor.created_at,
            limit
        )
        .fetch_all(conn)
        .await
    }
}

/// Loads the contents that `rows` do not have yet. Returns `false` if a message was deleted, or if an encryption conversion has
/// rewritten its content since the rows were read.
pub async fn load_contents(conn: &mut PgConnection, rows: &mut [MessageRow]) -> sqlx::Result<bool> {
    let is_small = |row: &&MessageRow| usize::try_from(row.content_length).is_ok_and(|length| length <= SLICE_BYTES);
    let small: Vec<_> = rows.iter().filter(|row| !row.is_content_loaded()).filter(is_small).map(|row| row.id).collect();
    if !small.is_empty() {
        let found = sqlx::query!(
            r#"select id as "id: MessageId", content, encrypted_as from messages where id = any($1)"#,
            &small as &[MessageId]
        );
        let found = found.fetch_all(&mut *conn).await?;
        let mut contents: HashMap<_, _> =
            found.into_iter().map(|row| ((row.id, row.encrypted_as), row.content)).collect();
        for row in rows.iter_mut().filter(|row| !row.is_content_loaded() && is_small(&&**row)) {
            match contents.remove(&(row.id, row.encrypted_as)) {
                Some(content) => row.content = content,
                None => return Ok(false),
            }
        }
        conn.shrink_buffers();
    }
    for row in rows.iter_mut().filter(|row| !row.is_content_loaded()) {
        match read_large_content(conn, row.id, row.encrypted_as, row.content_length).await? {
            Some(content) => row.content = content,
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// Reads the content of a message in slices. The length is in bytes. Returns `None` if the message was deleted, or if its content
/// has another length or another encryption.
///
/// One statement returns all slices, so that they belong to one version of the content.
pub async fn read_large_content(
    conn: &mut PgConnection,
    id: MessageId,
    encrypted_as: Option<Uuid>,
    length: i32,
) -> sqlx::Result<Option<Vec<u8>>> {
    let length_bytes = usize::try_from(length).unwrap_or_default();
    let mut content = Vec::with_capacity(length_bytes);
    {
        let mut slices = sqlx::query_scalar!(
            r#"select substring(content from start for $4) as "slice!"
               from messages, generate_series(1, $3, $4) as start
               where id = $1 and encrypted_as is not distinct from $2 and octet_length(content) = $3"#,
            id as _,
            encrypted_as,
            length,
            i32::try_from(SLICE_BYTES).unwrap_or(i32::MAX)
        )
        .fetch(&mut *conn);
        while let Some(slice) = slices.try_next().await? {
            content.extend_from_slice(&slice);
        }
    }
    conn.shrink_buffers();
    Ok((content.len() == length_bytes).then_some(content))
}
