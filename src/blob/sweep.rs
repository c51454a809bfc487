//! Removes stored objects that nothing refers to any more, a while after the last reference went.
//!
//! An uploader holds the row of the blob it is about to refer to, so the sweep locks first and only then looks for
//! references, in a statement of its own: a reference that was committed before the lock is seen, one that comes later finds
//! the blob dead. The object goes before its row, so that no object is ever unknown.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use sqlx::postgres::types::PgInterval;

use crate::app::App;
use crate::error::Result;
use crate::jobs::{self, Job, JobError, Running};

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
    jobs::enqueue(&mut conn, jobs::SERVER, &SweepBlobs {}, jobs::Delay::NONE).await?;
    app.jobs.wake();
    Ok(())
}

/// Removes what has been unreferenced (or never completed) for the configured time; done when a round finds nothing.
pub async fn sweep(app: &App) -> Result<()> {
    let limits = &app.config.limits;
    let grace = PgInterval::try_from(limits.blob_grace).unwrap_or_default();
    // As long as an upload may run, its object may still be put.
    let abandoned = PgInterval::try_from(limits.blob_grace + limits.upload).unwrap_or_default();
    while !app.shutdown.is_cancelled() {
        let mut tx = app.db.begin().await?;
        let marked = mark_released(&mut tx, &grace).await? + mark_abandoned(&mut tx, &abandoned).await?;
        tx.commit().await?;
        let removed = remove_dead(app).await?;
        if marked + removed == 0 {
            break;
        }
    }
    Ok(())
}

/// Marks blobs dead that were released long enough ago and that nothing refers to. Returns how many releases were settled.
async fn mark_released(conn: &mut PgConnection, grace: &PgInterval) -> Result<u64> {
    let ids = sqlx::query_scalar!(
        "select distinct blob_id from (
             select blob_id from released_blobs where released_at <= now() - $1::interval order by released_at limit $2) r",
        grace as _,
        BATCH,
    );
    let ids = ids.fetch_all(&mut *conn).await?;
    if ids.is_empty() {
        return Ok(0);
    }
    sqlx::query!("select id from blobs where id = any($1) and state = 'live' order by id for update", &ids)
        .fetch_all(&mut *conn)
        .await?;
    sqlx::query!(
        "update blobs b set state = 'dead'
         where id = any($1) and state = 'live'
           and not exists (select 1 from blob_references r where r.blob_id = b.id)",
        &ids,
    )
    .execute(&mut *conn)
    .await?;
    let settled = sqlx::query!(
        "delete from released_blobs where blob_id = any($1) and released_at <= now() - $2::interval",
        &ids,
        grace as _,
    );
    Ok(settled.execute(conn).await?.rows_affected())
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

/// Deletes the objects of dead blobs, then their rows.
async fn remove_dead(app: &App) -> Result<u64> {
    let dead = sqlx::query!("select id, object_key from blobs where state = 'dead' order by id limit $1", BATCH);
    let dead = dead.fetch_all(&app.db).await?;
    for blob in &dead {
        app.blobs.delete(&blob.object_key).await?;
    }
    let ids: Vec<_> = dead.iter().map(|blob| blob.id).collect();
    let gone = sqlx::query!("delete from blobs where id = any($1) and state = 'dead'", &ids);
    Ok(gone.execute(&app.db).await?.rows_affected())
}
