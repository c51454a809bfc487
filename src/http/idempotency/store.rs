//! SQL of kept answers.

use std::time::Duration;

use sqlx::PgConnection;

use super::fingerprint::Hash;
use crate::db::{Db, interval};
use crate::error::Result;
use crate::ids::ProjectId;

/// How long an answer is kept.
const KEPT: Duration = Duration::from_hours(24);
/// How many are forgotten in one statement; one of them may be large.
const BATCH: i64 = 100;

/// Takes a key for this transaction: whether nobody else holds it and no answer is kept. Never waits for another request:
/// whoever takes a key holds a lock of the same number until its transaction ends, and only who gets that one writes the row.
/// Two keys with one number do no more than take turns.
pub async fn take(
    conn: &mut PgConnection,
    id: &Hash,
    project: Option<ProjectId>,
    fingerprint: &Hash,
) -> sqlx::Result<bool> {
    let taken = sqlx::query_scalar!(
        "insert into idempotency_records as k (key_hash, project_id, fingerprint)
         select $1, $2, $3 where pg_try_advisory_xact_lock($4)
         on conflict (key_hash) do update
             set fingerprint = excluded.fingerprint, status = null, body = null, created_at = now()
             where k.created_at <= now() - $5::interval
         returning 1 as one",
        &id[..],
        project as _,
        &fingerprint[..],
        number(id),
        interval(KEPT) as _,
    );
    Ok(taken.fetch_optional(conn).await?.is_some())
}

/// The number of a key's lock.
fn number(id: &Hash) -> i64 {
    id.iter().take(8).fold(0, |number, byte| number << 8 | i64::from(*byte))
}

/// An answer as it is kept.
pub struct IdempotencyRecord {
    pub fingerprint: Vec<u8>,
    pub status: i16,
    pub body: Vec<u8>,
    /// Whether it is sealed with the project's key too.
    pub encrypted_with_master_key: bool,
}

/// The answer that was committed under a key.
pub async fn get(conn: &mut PgConnection, id: &Hash) -> sqlx::Result<Option<IdempotencyRecord>> {
    sqlx::query_as!(
        IdempotencyRecord,
        r#"select fingerprint, status as "status!", body as "body!", encrypted_with_master_key
           from idempotency_records where key_hash = $1 and status is not null and created_at > now() - $2::interval"#,
        &id[..],
        interval(KEPT) as _,
    )
    .fetch_optional(conn)
    .await
}

/// Whether an answer was committed under a key.
pub async fn exists(conn: &mut PgConnection, id: &Hash) -> sqlx::Result<bool> {
    let found = sqlx::query_scalar!(
        "select 1 as one from idempotency_records where key_hash = $1 and status is not null and created_at > now() - $2::interval",
        &id[..],
        interval(KEPT) as _,
    );
    Ok(found.fetch_optional(conn).await?.is_some())
}

/// Writes the answer down, in the transaction that took its key.
pub async fn keep(
    conn: &mut PgConnection,
    id: &Hash,
    status: i16,
    body: &[u8],
    encrypted_with_master_key: bool,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update idempotency_records set status = $2, body = $3, encrypted_with_master_key = $4 where key_hash = $1",
        &id[..],
        status,
        body,
        encrypted_with_master_key
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Deletes records that have expired. Periodic.
///
/// # Errors
/// The database fails.
pub async fn purge_expired(db: Db) -> Result<()> {
    while !db.process().shutdown.is_cancelled() {
        let deleted = sqlx::query!(
            "delete from idempotency_records where key_hash in (
                 select key_hash from idempotency_records where created_at <= now() - $1::interval
                 order by created_at limit $2 for update skip locked)",
            interval(KEPT) as _,
            BATCH,
        );
        if deleted.execute(&*db).await?.rows_affected() == 0 {
            break;
        }
    }
    Ok(())
}
