//! A page of a session's messages, as it is read from the database: one query, whatever its size.

use std::collections::HashMap;

use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::ProcessStatus;
use super::store::SLICE;
use crate::conversation::format::Format;
use crate::conversation::parts::Role;
use crate::db::page::Cursor;
use crate::ids::{MessageId, ProjectId, SessionId};
use crate::time::Timestamp;

/// Planner settings for reading pages of messages. That statement uses one index whatever the session, so it is planned once for
/// each connection: planning takes longer than running it, and without these settings Postgres plans it again for each limit,
/// or reads the whole session and sorts it.
pub(super) const SETTINGS: &[(&str, &str)] = &[
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_seqscan", "off"),
    ("enable_sort", "off"),
    ("plan_cache_mode", "force_generic_plan"),
];

/// A message as it is stored.
pub struct Row {
    pub id: MessageId,
    pub parent_id: Option<MessageId>,
    pub role: Role,
    pub format: Format,
    /// JSON text, sealed or not; empty until it is loaded, see [`Self::is_whole`].
    pub content: Vec<u8>,
    /// As which message it is sealed, if it is.
    pub encrypted_as: Option<Uuid>,
    /// How long it is.
    pub content_length: i32,
    pub tokens: i32,
    /// JSON text, like the next two; the last one may be sealed.
    pub meta: String,
    pub user_meta: String,
    pub pending_calls: Option<String>,
    pub task_id: Option<Uuid>,
    pub status: ProcessStatus,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Of the page that was asked for, before any was left out for its size.
    pub there: i64,
}

impl Row {
    /// How much text there is to work with, in bytes.
    pub fn length(&self) -> usize {
        self.content.len() + self.meta.len() + self.user_meta.len()
    }

    /// Returns `true` if the content is there. In a page over 1 MiB it is loaded with [`load_contents`], once there is
    /// memory for it.
    pub fn is_whole(&self) -> bool {
        usize::try_from(self.content_length).is_ok_and(|length| length == self.content.len())
    }

    pub fn cursor(&self) -> Cursor {
        Cursor { created_at: self.created_at.0, id: self.id.0 }
    }
}

/// Which messages of a session are wanted.
pub struct Wanted {
    pub after: Option<Cursor>,
    pub newest_first: bool,
    pub limit: usize,
    /// How much of them, in bytes; one message is always shown.
    pub bytes: u64,
}

/// How large a page may be whose messages come with their content, in bytes.
const WITH_CONTENT: i64 = 1 << 20;

/// Selects a page of messages in one direction: the condition of what comes after the cursor, the order, and the lowest and the highest
/// time of the page.
macro_rules! select_page {
    ($after:literal, $order:literal, $low:literal, $high:literal; $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            Row,
            r#"with page as (
                   select m.created_at,
                          octet_length(m.content) + pg_column_size(m.meta) + pg_column_size(m.user_meta) as size
                   from messages m join sessions s on s.id = m.session_id and s.project_id = $1
                   where m.session_id = $2 and (m.created_at, m.id) "# + $after + r#"
                   order by m.created_at "# + $order + r#" limit $5
               ),
               summed as (
                   select created_at, size,
                          sum(size) over (order by created_at "# + $order + r#" rows unbounded preceding) - size as before
                   from page
               ),
               edges as materialized (
                   select "# + $low + r#" as low, "# + $high + r#" as high,
                          sum(size) filter (where before <= $6) as total, count(*) as there
                   from summed
               )
               select id as "id: MessageId", parent_id as "parent_id: MessageId", role as "role: Role", format as "format: Format",
                      case when octet_length(content) <= $7 and (select total from edges) <= $8
                           then content else '' end as "content!",
                      octet_length(content) as "content_length!", encrypted_as, tokens,
                      meta::text as "meta!", user_meta::text as "user_meta!", pending_calls::text, task_id,
                      session_task_process_status as "status: ProcessStatus", created_at as "created_at: Timestamp",
                      updated_at as "updated_at: Timestamp", (select there from edges) as "there!"
               from messages
               where session_id = $2 and created_at between (select low from edges) and (select high from edges)
               order by created_at "# + $order,
            $($parameter),*
        )
    };
}

/// Lists messages of a session, in order of time: one more than the limit if there are as many, but no more than the bytes allow.
/// Each row contains how many there are up to one over the limit.
///
/// Where the page ends is found first, and without the contents: a sum that runs over whole rows would copy each of them.
pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    wanted: &Wanted,
) -> sqlx::Result<Vec<Row>> {
    let (time, id) = (wanted.after.map(|at| at.created_at), wanted.after.map(|at| at.id));
    let limit = i64::try_from(wanted.limit).unwrap_or(i64::MAX).saturating_add(1);
    let bytes = i64::try_from(wanted.bytes).unwrap_or(i64::MAX);
    let short = i32::try_from(SLICE).unwrap_or(i32::MAX);
    if wanted.newest_first {
        select_page!(
            "< (coalesce($3, 'infinity'::timestamptz), coalesce($4, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))",
            "desc", "min(created_at) filter (where before <= $6)", "max(created_at)";
            project as _, session as _, time, id, limit, bytes as _, short, WITH_CONTENT as _,
        )
        .fetch_all(conn)
        .await
    } else {
        select_page!(
            "> (coalesce($3, '-infinity'::timestamptz), coalesce($4, '00000000-0000-0000-0000-000000000000'::uuid))",
            "asc", "min(created_at)", "max(created_at) filter (where before <= $6)";
            project as _, session as _, time, id, limit, bytes as _, short, WITH_CONTENT as _,
        )
        .fetch_all(conn)
        .await
    }
}

/// Loads the contents that are missing in `rows`. Returns `false` if one of the messages was deleted in the meantime.
pub async fn load_contents(conn: &mut PgConnection, rows: &mut [Row]) -> sqlx::Result<bool> {
    let is_short = |row: &&Row| usize::try_from(row.content_length).is_ok_and(|length| length <= SLICE);
    let short: Vec<_> = rows.iter().filter(|row| !row.is_whole()).filter(is_short).map(|row| row.id).collect();
    if !short.is_empty() {
        let found = sqlx::query!(
            r#"select id as "id: MessageId", content from messages where id = any($1)"#,
            &short as &[MessageId]
        );
        let mut contents: HashMap<_, _> =
            found.fetch_all(&mut *conn).await?.into_iter().map(|row| (row.id, row.content)).collect();
        for row in rows.iter_mut().filter(|row| !row.is_whole()) {
            row.content = contents.remove(&row.id).unwrap_or_default();
        }
        conn.shrink_buffers();
    }
    for row in rows.iter_mut().filter(|row| !row.is_whole()) {
        match long_content(conn, row.id, row.content_length).await? {
            Some(content) => row.content = content,
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// The content of a message whose row came without it, of this length in bytes; `None` if the message is gone.
pub async fn long_content(conn: &mut PgConnection, id: MessageId, length: i32) -> sqlx::Result<Option<Vec<u8>>> {
    let length = usize::try_from(length).unwrap_or_default();
    let mut content = Vec::with_capacity(length);
    while content.len() < length {
        let from = i32::try_from(content.len() + 1).unwrap_or(i32::MAX);
        let slice = sqlx::query_scalar!(
            r#"select substring(content from $2 for $3) as "slice!" from messages where id = $1"#,
            id as _,
            from,
            i32::try_from(SLICE).unwrap_or(i32::MAX)
        );
        match slice.fetch_optional(&mut *conn).await? {
            Some(slice) if !slice.is_empty() => content.extend_from_slice(&slice),
            _ => return Ok(None),
        }
    }
    conn.shrink_buffers();
    Ok(Some(content))
}
