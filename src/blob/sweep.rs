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

use crate::app::App;
use crate::db::interval;
use crate::error::Result;
use crate::jobs::{self, Job, JobError, Running};
use crate::seal::Owner;

/// How many blobs are looked at in one transaction.
const BATCH: i64 = 200;

/// One round over everything that is due. The queue holds at most one waiting, and one runs at a time, whatever the number of
/// processes.
#[derive(Debug, Serialize, Deserialize)]
pub struct SweepBlobs {}

impl Job for SweepBlobs {
    const KIND: &'static str = "sweep_blobs";
    const TIMEOUT: Duration = Duration::from_mins(10);
    const MAX_ATTEMPTS: i32 = 3;

    fn lane(&self) -> Option<String> {
        Some("sweep_blobs".into())
    }

    fn dedupe(&self) -> Option<String> {
        Some(String::new())
    }

    async fn run(self, app: App, _: &Running) -> Result<(), JobError> {
        Ok(sweep(&app).await?)
    }
}

/// The reconciler: puts a sweep on the queue, unless one waits there.
pub async fn request(app: App) -> Result<()> {
    let mut conn = app.db.acquire().await?;
    jobs::enqueue(&app, &mut conn, &Owner::plain(jobs::SERVER), &SweepBlobs {}, jobs::Delay::NONE).await?;
    app.jobs.wake();
    Ok(())
}

/// Removes what has been unreferenced (or never completed) for the configured time; done when a round finds nothing, or when
/// there is enough for another job.
pub async fn sweep(app: &App) -> Result<()> {
    let limits = &app.config.limits;
    let grace = interval(limits.blob_grace);
    // As long as an upload may run, its object may still be put.
    let abandoned = interval(limits.blob_grace + limits.upload);
    let enough = Instant::now() + SweepBlobs::TIMEOUT / 2;
    while !app.shutdown.is_cancelled() && Instant::now() < enough {
        let mut tx = app.begin().await?;
        let marked = mark_released(&mut tx, &grace).await? + mark_abandoned(&mut tx, &abandoned).await?;
        tx.commit().await?;
        let removed = remove_dead(app).await?;
        if marked + removed == 0 {
            break;
        }
    }
    Ok(())
}

/// Settles releases that are due: marks those of their blobs dead that nothing refers to, and that no later release speaks
/// for. Returns how many releases there were.
async fn mark_released(conn: &mut PgConnection, grace: &PgInterval) -> Result<u64> {
    let released = sqlx::query_scalar!(
        "delete from released_blobs where ctid in (
             select ctid from released_blobs where released_at <= now() - $1::interval order by released_at limit $2)
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
           and not exists (select 1 from released_blobs r where r.blob_id = b.id)",
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

/// Deletes the objects of dead blobs, then their rows. One that cannot be deleted does not keep the others.
async fn remove_dead(app: &App) -> Result<u64> {
    let (mut after, mut removed, mut failed) = (Uuid::nil(), 0, None);
    loop {
        let dead = sqlx::query!(
            "select id, object_key from blobs where state = 'dead' and id > $1 order by id limit $2",
            after,
            BATCH,
        );
        let dead = dead.fetch_all(&app.db).await?;
        let Some(last) = dead.last() else { break };
        after = last.id;
        let mut gone = Vec::with_capacity(dead.len());
        for blob in &dead {
            match app.blobs.delete(&blob.object_key).await {
                Ok(()) => gone.push(blob.id),
                Err(fault) => failed = Some(fault),
            }
        }
        let rows = sqlx::query!("delete from blobs where id = any($1) and state = 'dead'", &gone);
        removed += rows.execute(&app.db).await?.rows_affected();
        if gone.is_empty() {
            // The store is down: no use in asking for each of them.
            break;
        }
    }
    failed.map_or(Ok(removed), |fault| Err(fault.into()))
}
