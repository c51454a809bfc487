//! Removes stored objects that nothing refers to any more, a while after the last reference went.
//!
//! An uploader holds the row of the blob it is about to refer to, so the sweep locks first and only then looks for
//! references, in a statement of its own: a reference that was committed before the lock is seen, one that comes later finds
//! the blob dead. The object goes before its row, so that no object is ever unknown.

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

/// How many blobs are looked at in one transaction.
const BATCH: i64 = 200;

/// One round over everything that is due. The queue holds at most one waiting, and one runs at a time, whatever the number of
/// processes.
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

/// Enqueues a sweep, unless one is waiting.
///
/// # Errors
/// The database fails.
pub async fn enqueue_sweep(blobs: BlobService) -> Result<()> {
    let mut tx = blobs.db.begin().await?;
    blobs
        .queue
        .enqueue(&mut tx, &ProjectEncryption::unencrypted(jobs::SYSTEM_PROJECT), &SweepBlobs {}, Delay::NONE)
        .await?;
    Ok(tx.commit().await?)
}

impl BlobService {
    /// Removes what has been unreferenced (or never completed) for the configured time; done when a round finds nothing, or when
    /// there is enough for another job.
    pub async fn sweep(&self) -> Result<()> {
        let grace = interval(self.grace);
        // As long as an upload may run, its object may still be put.
        let abandoned = interval(self.grace + self.upload_timeout);
        let enough = Instant::now() + SweepBlobs::TIMEOUT / 2;
        while !self.process.shutdown.is_cancelled() && Instant::now() < enough {
            let mut tx = self.db.begin().await?;
            let marked = mark_released(&mut tx, &grace).await? + mark_abandoned(&mut tx, &abandoned).await?;
            tx.commit().await?;
            let removed = self.delete_dead_objects().await?;
            if marked + removed == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Deletes the objects of dead blobs, then their rows. One that cannot be deleted does not keep the others.
    async fn delete_dead_objects(&self) -> Result<u64> {
        let (mut after, mut removed, mut failed) = (Uuid::nil(), 0, None);
        loop {
            let dead = sqlx::query!(
                "select id, object_key from blobs where state = 'dead' and id > $1 order by id limit $2",
                after,
                BATCH,
            );
            let dead = dead.fetch_all(&*self.db).await?;
            let Some(last) = dead.last() else { break };
            after = last.id;
            let mut gone = Vec::with_capacity(dead.len());
            for blob in &dead {
                match self.store.delete(&blob.object_key).await {
                    Ok(()) => gone.push(blob.id),
                    Err(err) => failed = Some(err),
                }
            }
            let rows = sqlx::query!("delete from blobs where id = any($1) and state = 'dead'", &gone);
            removed += rows.execute(&*self.db).await?.rows_affected();
            if gone.is_empty() {
                // The store is down: no use in asking for each of them.
                break;
            }
        }
        failed.map_or(Ok(removed), |err| Err(err.into()))
    }
}

/// Settles releases that are due: marks those of their blobs dead that nothing refers to, and that no later release speaks
/// for. Returns how many releases there were.
async fn mark_released(conn: &mut PgConnection, grace: &PgInterval) -> Result<u64> {
    let released = sqlx::query_scalar!(
        "delete from blob_releases where ctid in (
             select ctid from blob_releases where released_at <= now() - $1::interval order by released_at limit $2)
         returning blob_id",
        grace as _,
        BATCH,
    );
    let released = released.fetch_all(&mut *conn).await?;
    // As weak as can be: releases refer to blobs too, and must not wait for this.
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

/// Marks uploads dead that were begun long ago and never completed.
async fn mark_abandoned(conn: &mut PgConnection, age: &PgInterval) -> Result<u64> {
    let marked = sqlx::query!(
        "update blobs set state = 'dead' where id in (
             select id from blobs where state = 'pending' and created_at <= now() - $1::interval
             order by id limit $2 for update skip locked)",
        age as _,
        BATCH,
    );
    Ok(marked.execute(conn).await?.rows_affected())
}
