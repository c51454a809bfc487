//! The sweep deletes unreferenced blobs after the grace period, and never a referenced blob.

use std::time::Duration;

use acontextd::blob::ingest::Ingest;
use acontextd::blob::spool::Spool;
use acontextd::blob::sweep;
use acontextd::encryption::ProjectEncryption;
use acontextd::error::Error;
use acontextd::ids::ProjectId;
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::stream;

use crate::support::{TestApp, TestConfig, run, run_with};

fn without_grace_period() -> TestConfig {
    TestConfig::default().with("ACONTEXTD_BLOB_GRACE", "0s")
}

async fn ingest(app: &TestApp, encryption: &ProjectEncryption, content: &'static str) -> Result<Ingest, Error> {
    app.app.blobs.ingest(encryption, stream::iter([Spool::from_bytes(Bytes::from(content))])).await
}

/// Returns the number of rows in `blobs` and the number of objects.
async fn count_blobs_and_objects(app: &TestApp) -> (i64, usize) {
    (app.fetch_scalar::<i64>("select count(*) from blobs").await, app.blobs.keys().len())
}

#[tokio::test]
async fn unreferenced_blobs_are_deleted_after_the_grace_period() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "shared").await;
        client.upload(&disk, "/", "b.txt", "shared").await;
        client.upload(&disk, "/", "c.txt", "own").await;
        for name in ["a.txt", "c.txt"] {
            client.delete(&format!("/api/v1/disk/{disk}/artifact?file_path={name}")).await;
        }
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(count_blobs_and_objects(&app).await, (2, 2), "the grace period has not passed");
        app.execute("update blob_releases set released_at = released_at - interval '1 hour'").await;
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(count_blobs_and_objects(&app).await, (1, 1));
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blob_releases").await, 0);
        assert_eq!(client.download(&disk, "b.txt").await.unwrap(), b"shared");
        client.delete(&format!("/api/v1/disk/{disk}")).await;
        app.execute("update blob_releases set released_at = released_at - interval '1 hour'").await;
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(count_blobs_and_objects(&app).await, (0, 0));
    })
    .await;
}

#[tokio::test]
async fn pruned_versions_release_their_blobs() {
    run_with(without_grace_period().with("ACONTEXTD_FILE_VERSIONS", "2"), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        for n in 0..5 {
            client.upload(&disk, "/", "a.txt", format!("content {n}")).await;
        }
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(count_blobs_and_objects(&app).await, (2, 2));
    })
    .await;
}

#[tokio::test]
async fn abandoned_uploads_are_deleted_after_the_grace_period() {
    run(async |app| {
        let client = app.project().await;
        let encryption = ProjectEncryption::unencrypted(ProjectId(client.project()));
        // The object is stored, but no row ever refers to the blob.
        let _ = ingest(&app, &encryption, "lost").await.unwrap();
        // The row of the blob is inserted, but the object is never stored.
        app.blobs.set_down(true);
        assert!(ingest(&app, &encryption, "never").await.is_err());
        app.blobs.set_down(false);
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(count_blobs_and_objects(&app).await, (2, 1), "the uploads may still be in progress");
        app.execute("update blobs set created_at = created_at - interval '2 hours'").await;
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(count_blobs_and_objects(&app).await, (0, 0));
    })
    .await;
}

#[tokio::test]
async fn an_unavailable_object_store_leaves_blobs_to_the_next_sweep() {
    run_with(without_grace_period(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "bytes").await;
        client.delete(&format!("/api/v1/disk/{disk}")).await;
        app.blobs.set_down(true);
        app.app.blobs.sweep().await.unwrap_err();
        assert_eq!(count_blobs_and_objects(&app).await, (1, 1));
        app.blobs.set_down(false);
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(count_blobs_and_objects(&app).await, (0, 0));
    })
    .await;
}

#[tokio::test]
async fn blob_of_a_new_reference_is_not_deleted() {
    run_with(without_grace_period(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "bytes").await;
        client.delete(&format!("/api/v1/disk/{disk}/artifact?file_path=a.txt")).await;
        let contents =
            ingest(&app, &ProjectEncryption::unencrypted(ProjectId(client.project())), "bytes").await.unwrap();
        let mut tx = app.app.db.begin().await.unwrap();
        assert!(contents.make_live(&mut tx).await.unwrap().is_some());
        // The sweep runs while the new blob reference is not committed. It waits for the transaction, and then finds
        // it.
        let sweeping = app.app.blobs.sweep();
        tokio::pin!(sweeping);
        let finished = tokio::time::timeout(Duration::from_millis(300), &mut sweeping).await;
        assert!(finished.is_err(), "the sweep did not wait");
        sqlx::query(
            "insert into artifact_versions
                 (disk_id, path, filename, from_revision, blob_id, meta, mime, size, sha256)
             select $1, '/', 'b.txt', 99, id, '{}', '', 5, '' from blobs",
        )
        .bind(disk.parse::<uuid::Uuid>().unwrap())
        .execute(&mut *tx)
        .await
        .unwrap();
        tx.commit().await.unwrap();
        sweeping.await.unwrap();
        assert_eq!(count_blobs_and_objects(&app).await, (1, 1), "a reference was lost");
    })
    .await;
}

#[tokio::test]
async fn deleted_blob_cannot_be_made_live() {
    run_with(without_grace_period(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "bytes").await;
        client.delete(&format!("/api/v1/disk/{disk}/artifact?file_path=a.txt")).await;
        let contents =
            ingest(&app, &ProjectEncryption::unencrypted(ProjectId(client.project())), "bytes").await.unwrap();
        app.app.blobs.sweep().await.unwrap();
        let mut tx = app.app.db.begin().await.unwrap();
        assert!(contents.make_live(&mut tx).await.unwrap().is_none(), "a deleted blob was made live");
    })
    .await;
}

#[tokio::test]
async fn concurrent_uploads_deletions_and_sweeps_lose_nothing() {
    run_with(without_grace_period(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let write = async |name: usize| {
            for round in 0..15 {
                let path = format!("{name}.txt");
                client.upload(&disk, "/", &path, format!("content {}", round % 3)).await;
                assert_eq!(
                    client.download(&disk, &path).await.map(|bytes| bytes.len()),
                    Ok(9),
                    "{path}, round {round}"
                );
                let deleted = client.delete(&format!("/api/v1/disk/{disk}/artifact?file_path={path}")).await;
                assert_eq!(deleted.status, StatusCode::OK);
            }
            client.upload(&disk, "/", &format!("{name}.txt"), "content 1").await;
        };
        let writers = futures_util::future::join_all((0..6).map(write));
        let sweeps = async {
            loop {
                app.app.blobs.sweep().await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = writers => {}
            () = sweeps => {}
        }
        // Uploads whose content another upload stored first were abandoned.
        app.execute("update blobs set created_at = created_at - interval '1 day'").await;
        app.app.blobs.sweep().await.unwrap();
        for name in 0..6 {
            assert_eq!(client.download(&disk, &format!("{name}.txt")).await.unwrap(), b"content 1");
        }
        assert_eq!(count_blobs_and_objects(&app).await, (1, 1), "no unreferenced blob is left");
    })
    .await;
}

#[tokio::test]
async fn only_one_sweep_job_is_ready() {
    run_with(without_grace_period(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "bytes").await;
        client.delete(&format!("/api/v1/disk/{disk}")).await;
        for _ in 0..3 {
            sweep::enqueue_sweep(app.app.blobs.clone()).await.unwrap();
        }
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from jobs").await, 1);
        app.drain_jobs().await;
        assert_eq!(count_blobs_and_objects(&app).await, (0, 0));
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from jobs").await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_new_release_restarts_the_grace_period() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let use_and_delete = async || {
            client.upload(&disk, "/", "a.txt", "bytes").await;
            client.delete(&format!("/api/v1/disk/{disk}/artifact?file_path=a.txt")).await;
        };
        use_and_delete().await;
        app.execute("update blob_releases set released_at = released_at - interval '61 minutes'").await;
        use_and_delete().await;
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(count_blobs_and_objects(&app).await, (1, 1), "the blob was released recently");
        app.execute("update blob_releases set released_at = released_at - interval '61 minutes'").await;
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(count_blobs_and_objects(&app).await, (0, 0));
    })
    .await;
}

#[tokio::test]
async fn a_sweep_does_not_wait_for_a_release_of_the_same_blob() {
    run_with(without_grace_period(), async |app| {
        let client = app.project().await;
        let (disk, other) = (client.new_disk().await, client.new_disk().await);
        client.upload(&disk, "/", "a.txt", "bytes").await;
        client.upload(&other, "/", "a.txt", "bytes").await;
        client.delete(&format!("/api/v1/disk/{other}")).await;
        // A transaction that has released the blob and is not committed.
        let mut tx = app.app.db.begin().await.unwrap();
        sqlx::query("delete from artifact_versions").execute(&mut *tx).await.unwrap();
        let swept = tokio::time::timeout(Duration::from_secs(10), app.app.blobs.sweep()).await;
        swept.expect("the sweep waited").unwrap();
        tx.commit().await.unwrap();
        assert_eq!(count_blobs_and_objects(&app).await, (1, 1), "the blob reference was still visible");
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(count_blobs_and_objects(&app).await, (0, 0), "the release was not lost");
    })
    .await;
}

#[tokio::test]
async fn an_object_that_cannot_be_deleted_does_not_block_others() {
    run_with(without_grace_period(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "stuck").await;
        client.upload(&disk, "/", "b.txt", "loose").await;
        let stuck: String = app.fetch_scalar("select object_key from blobs order by id limit 1").await;
        app.blobs.fail_deletes_of(&stuck);
        client.delete(&format!("/api/v1/disk/{disk}")).await;
        app.app.blobs.sweep().await.unwrap_err();
        assert_eq!(app.blobs.keys(), [stuck]);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blobs").await, 1);
    })
    .await;
}
