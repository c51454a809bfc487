//! Deletes objects that have been unreferenced for the grace period.
//!
//! A transaction that inserts a reference locks the row of the blob. The sweep therefore locks the rows first, and then checks
//! for references in another statement. This statement finds every reference that was committed before the sweep acquired the
//! lock. A transaction that acquires the lock after the sweep finds that the blob is dead. The object is deleted before its row,
//! so that every object has a row.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use sqlx::postgres::types::PgInterval;
use uuid::Uuid;

use super::service::BlobService;
use crate::db::interval;
use crate::encryption::ProjectEncryption;
use crate::error::Result;
use crate::jobs::{self, Delay, Job, JobError, JobHandler, RunningJob};

/// The number of rows per transaction.
const BATCH_SIZE: i64 = 200;

/// The job that runs [`BlobService::sweep`]. Across all processes, at most one such job is ready and at most one runs.
#[derive(Debug, Serialize, Deserialize)]
pub struct SweepBlobs {}

impl Job for SweepBlobs {
    const KIND: &'static str = "sweep_blobs";

    fn lane(&self) -> Option<String> {
        Some("sweep_blobs".into())
    }

    fn dedupe_key(&self) -> Option<String> {
        Some(String::new())
    }
}

impl JobHandler for SweepBlobs {
    type Context = BlobService;

    const TIMEOUT: Duration = Duration::from_mins(10);
    const MAX_ATTEMPTS: i32 = 3;

    async fn run(self, blobs: &BlobService, _: &RunningJob) -> Result<(), JobError> {
        Ok(blobs.sweep().await?)
    }
}

/// Enqueues a sweep, unless a sweep is ready already.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn enqueue_sweep(blobs: BlobService) -> Result<()> {
    let mut tx = blobs.db.begin().await?;
    blobs
        .queue
        .enqueue(&mut tx, &ProjectEncryption::unencrypted(jobs::SYSTEM_PROJECT), &SweepBlobs {}, Delay::NONE)
        .await?;
    Ok(tx.commit().await?)
}

impl BlobService {
    /// Deletes blobs that have been unreferenced for the grace period, and pending blobs of abandoned uploads. Returns when
    /// nothing is left to delete, when half of the job's timeout is used up, or at shutdown. A later job deletes the rest.
    ///
    /// # Errors
    /// Returns an error if the database fails or an object cannot be deleted.
    pub async fn sweep(&self) -> Result<()> {
        let unreferenced_age = interval(self.grace_period);
        // An upload that is still running may write its object until it times out.
        let pending_age = interval(self.grace_period + self.upload_timeout);
        let deadline = Instant::now() + SweepBlobs::TIMEOUT / 2;
        while !self.process.shutdown.is_cancelled() && Instant::now() < deadline {
            let mut tx = self.db.begin().await?;
            let released = mark_released(&mut tx, &unreferenced_age).await?;
            let abandoned = mark_abandoned(&mut tx, &pending_age).await?;
            tx.commit().await?;
            let deleted = self.delete_dead_objects().await?;
            if released + abandoned + deleted == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Deletes the objects of dead blobs, and then the rows. Returns the number of rows. If an object cannot be deleted,
    /// continues with the other objects and returns the error at the end.
    async fn delete_dead_objects(&self) -> Result<u64> {
        let (mut after, mut deleted_rows, mut last_error) = (Uuid::nil(), 0, None);
        loop {
            let dead = sqlx::query!(
                "select id, object_key from blobs where state = 'dead' and id > $1 order by id limit $2",
                after,
                BATCH_SIZE,
            );
            let dead = dead.fetch_all(&*self.db).await?;
            let Some(last) = dead.last() else { break };
            after = last.id;
            let mut deleted_ids = Vec::with_capacity(dead.len());
            for blob in &dead {
                match self.store.delete(&blob.object_key).await {
                    Ok(()) => deleted_ids.push(blob.id),
                    Err(err) => last_error = Some(err),
                }
            }
            let rows = sqlx::query!("delete from blobs where id = any($1) and state = 'dead'", &deleted_ids);
            deleted_rows += rows.execute(&*self.db).await?.rows_affected();
            if deleted_ids.is_empty() {
                // The object store is probably unavailable, so the remaining objects are left to a later sweep.
                break;
            }
        }
        last_error.map_or(Ok(deleted_rows), |err| Err(err.into()))
    }
}

/// Deletes rows of `blob_releases` that are older than `age`, and returns their number. Marks a blob of these rows dead if it has
/// no reference and no newer release.
async fn mark_released(conn: &mut PgConnection, age: &PgInterval) -> Result<u64> {
    let released = sqlx::query_scalar!(
        "delete from blob_releases where ctid in (
             select ctid from blob_releases where released_at <= now() - $1::interval order by released_at limit $2)
         returning blob_id",
        age as _,
        BATCH_SIZE,
    );
    let released = released.fetch_all(&mut *conn).await?;
    // The weakest sufficient lock. `for update` would block inserts into `blob_releases`, whose foreign key locks the blob.
    sqlx::query!("select id from blobs where id = any($1) and state = 'live' order by id for no key update", &released)
        .fetch_all(&mut *conn)
        .await?;
    sqlx::query!(
        "update blobs b set state = 'dead'
         where id = any($1) and state = 'live'
           and not exists (select 1 from blob_references r where r.blob_id = b.id)
           and not exists (select 1 from blob_releases r where r.blob_id = b.id)",
        &released,
    )
    .execute(conn)
    .await?;
    Ok(released.len() as u64)
}

/// Marks pending blobs that are older than `age` dead, because their uploads were abandoned. Returns the number of these blobs.
async fn mark_abandoned(conn: &mut PgConnection, age: &PgInterval) -> Result<u64> {
    let marked = sqlx::query!(
        "update blobs set state = 'dead' where id in (
             select id from blobs where state = 'pending' and created_at <= now() - $1::interval
             order by id limit $2 for update skip locked)",
        age as _,
        BATCH_SIZE,
    );
    Ok(marked.execute(conn).await?.rows_affected())
}
