//! SQL of idempotency records.

use std::time::Duration;

use sqlx::PgConnection;

use super::fingerprint::Hash;
use crate::db::{Db, interval};
use crate::error::Result;
use crate::ids::ProjectId;

/// How long a response is stored.
const RETENTION: Duration = Duration::from_hours(24);
/// The maximum number of records that one statement deletes, because a record may be large.
const PURGE_BATCH_SIZE: i64 = 100;

/// Tries to acquire an idempotency key without blocking. Returns `true` if no other transaction holds the key and no response is
/// stored. The transaction then holds the key until it ends. To hold a key means to hold the advisory lock whose id is
/// `advisory_lock_id`. Two keys may have the same lock; their requests then run one after the other.
pub async fn try_acquire(
    conn: &mut PgConnection,
    record_id: &Hash,
    project: Option<ProjectId>,
    fingerprint: &Hash,
) -> sqlx::Result<bool> {
    let acquired = sqlx::query_scalar!(
        "insert into idempotency_records as record (key_hash, project_id, fingerprint)
         select $1, $2, $3 where pg_try_advisory_xact_lock($4)
         on conflict (key_hash) do update
             set fingerprint = excluded.fingerprint, status = null, body = null, created_at = now()
             where record.created_at <= now() - $5::interval
         returning 1 as one",
        &record_id[..],
        project as _,
        &fingerprint[..],
        advisory_lock_id(record_id),
        interval(RETENTION) as _,
    );
    Ok(acquired.fetch_optional(conn).await?.is_some())
}

/// Returns the id of the advisory lock for a record: the first 8 bytes of the record id.
fn advisory_lock_id(record_id: &Hash) -> i64 {
    record_id.iter().take(8).fold(0, |lock_id, byte| lock_id << 8 | i64::from(*byte))
}

/// A stored response with the fingerprint of its request.
pub struct IdempotencyRecord {
    pub fingerprint: Vec<u8>,
    pub status: i16,
    pub encrypted_body: Vec<u8>,
    /// `true` if the key that encrypts the body was also derived from the project's master key.
    pub encrypted_with_master_key: bool,
}

/// Returns the record of a request, or `None` if no response is stored.
pub async fn get(conn: &mut PgConnection, record_id: &Hash) -> sqlx::Result<Option<IdempotencyRecord>> {
    sqlx::query_as!(
        IdempotencyRecord,
        r#"select fingerprint, status as "status!", body as "encrypted_body!", encrypted_with_master_key
           from idempotency_records where key_hash = $1 and status is not null and created_at > now() - $2::interval"#,
        &record_id[..],
        interval(RETENTION) as _,
    )
    .fetch_optional(conn)
    .await
}

/// Returns `true` if a response is stored.
pub async fn exists(conn: &mut PgConnection, record_id: &Hash) -> sqlx::Result<bool> {
    let record = sqlx::query_scalar!(
        "select 1 as one from idempotency_records
         where key_hash = $1 and status is not null and created_at > now() - $2::interval",
        &record_id[..],
        interval(RETENTION) as _,
    );
    Ok(record.fetch_optional(conn).await?.is_some())
}

/// Stores the encrypted response, in the transaction that acquired the key.
pub async fn store_response(
    conn: &mut PgConnection,
    record_id: &Hash,
    status: i16,
    encrypted_body: &[u8],
    encrypted_with_master_key: bool,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update idempotency_records set status = $2, body = $3, encrypted_with_master_key = $4 where key_hash = $1",
        &record_id[..],
        status,
        encrypted_body,
        encrypted_with_master_key
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Deletes expired records. This is a periodic task.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn purge_expired(db: Db) -> Result<()> {
    while !db.process().shutdown.is_cancelled() {
        let deleted = sqlx::query!(
            "delete from idempotency_records where key_hash in (
                 select key_hash from idempotency_records where created_at <= now() - $1::interval
                 order by created_at limit $2 for update skip locked)",
            interval(RETENTION) as _,
            PURGE_BATCH_SIZE,
        );
        if deleted.execute(&*db).await?.rows_affected() == 0 {
            break;
        }
    }
    Ok(())
}
