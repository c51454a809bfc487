//! What nothing refers to any more is removed after its time, and nothing in use ever is.

use std::time::Duration;

use acontextd::blob::ingest::Ingest;
use acontextd::blob::spool::SpoolDir;
use acontextd::blob::sweep;
use acontextd::encryption::ProjectEncryption;
use acontextd::error::Error;
use acontextd::ids::ProjectId;
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::stream;

use crate::support::{Setup, TestApp, run, run_with};

fn at_once() -> Setup {
    Setup::default().with("ACONTEXTD_BLOB_GRACE", "0s")
}

async fn ingest(app: &TestApp, encryption: &ProjectEncryption, content: &'static str) -> Result<Ingest, Error> {
    app.app.blobs.ingest(encryption, stream::iter([SpoolDir::from_bytes(Bytes::from(content))])).await
}

async fn blobs(app: &TestApp) -> (i64, usize) {
    (app.value::<i64>("select count(*) from blobs").await, app.blobs.keys().len())
}

#[tokio::test]
async fn bytes_go_when_their_last_reference_has_been_gone_for_the_time() {
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
        assert_eq!(blobs(&app).await, (2, 2), "an hour has not passed");
        app.execute("update blob_releases set released_at = released_at - interval '1 hour'").await;
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(blobs(&app).await, (1, 1));
        assert_eq!(app.value::<i64>("select count(*) from blob_releases").await, 0);
        assert_eq!(client.download(&disk, "b.txt").await.unwrap(), b"shared");
        client.delete(&format!("/api/v1/disk/{disk}")).await;
        app.execute("update blob_releases set released_at = released_at - interval '1 hour'").await;
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(blobs(&app).await, (0, 0));
    })
    .await;
}

#[tokio::test]
async fn versions_that_are_pruned_release_their_bytes() {
    run_with(at_once().with("ACONTEXTD_FILE_VERSIONS", "2"), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        for n in 0..5 {
            client.upload(&disk, "/", "a.txt", format!("content {n}")).await;
        }
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(blobs(&app).await, (2, 2));
    })
    .await;
}

#[tokio::test]
async fn uploads_that_never_completed_are_removed_after_the_time() {
    run(async |app| {
        let client = app.project().await;
        let encryption = ProjectEncryption::unencrypted(ProjectId(client.project()));
        // The object is there, and the row that would refer to it never came.
        let _ = ingest(&app, &encryption, "lost").await.unwrap();
        // The row is there, and the object never came.
        app.blobs.set_down(true);
        assert!(ingest(&app, &encryption, "never").await.is_err());
        app.blobs.set_down(false);
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(blobs(&app).await, (2, 1), "they may still be on their way");
        app.execute("update blobs set created_at = created_at - interval '2 hours'").await;
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(blobs(&app).await, (0, 0));
    })
    .await;
}

#[tokio::test]
async fn a_store_that_is_down_leaves_the_rows_for_the_next_round() {
    run_with(at_once(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "bytes").await;
        client.delete(&format!("/api/v1/disk/{disk}")).await;
        app.blobs.set_down(true);
        app.app.blobs.sweep().await.unwrap_err();
        assert_eq!(blobs(&app).await, (1, 1));
        app.blobs.set_down(false);
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(blobs(&app).await, (0, 0));
    })
    .await;
}

#[tokio::test]
async fn an_upload_that_found_the_bytes_holds_them_against_the_sweep() {
    run_with(at_once(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "bytes").await;
        client.delete(&format!("/api/v1/disk/{disk}/artifact?file_path=a.txt")).await;
        let contents = ingest(&app, &ProjectEncryption::unencrypted(ProjectId(client.project())), "bytes").await.unwrap();
        let mut tx = app.app.db.begin().await.unwrap();
        assert!(contents.claim(&mut tx).await.unwrap().is_some());
        // The sweep comes while the reference is not committed yet: it waits, and then sees it.
        let sweeping = app.app.blobs.sweep();
        tokio::pin!(sweeping);
        assert!(tokio::time::timeout(Duration::from_millis(300), &mut sweeping).await.is_err(), "it did not wait");
        sqlx::query("insert into artifact_versions (disk_id, path, filename, from_revision, blob_id, meta, mime, size, sha256, author)
                     select $1, '/', 'b.txt', 99, id, '{}', '', 5, '', 'key' from blobs")
            .bind(disk.parse::<uuid::Uuid>().unwrap())
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        sweeping.await.unwrap();
        assert_eq!(blobs(&app).await, (1, 1), "a reference was lost");
    })
    .await;
}

#[tokio::test]
async fn an_upload_that_comes_after_the_sweep_begins_again() {
    run_with(at_once(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "bytes").await;
        client.delete(&format!("/api/v1/disk/{disk}/artifact?file_path=a.txt")).await;
        let contents =
            ingest(&app, &ProjectEncryption::unencrypted(ProjectId(client.project())), "bytes").await.unwrap();
        app.app.blobs.sweep().await.unwrap();
        let mut tx = app.app.db.begin().await.unwrap();
        assert!(contents.claim(&mut tx).await.unwrap().is_none(), "it refers to bytes that are gone");
    })
    .await;
}

#[tokio::test]
async fn uploads_deletes_and_sweeps_of_the_same_bytes_at_once_lose_nothing() {
    run_with(at_once(), async |app| {
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
        // Those that lost a race to be stored first never completed.
        app.execute("update blobs set created_at = created_at - interval '1 day'").await;
        app.app.blobs.sweep().await.unwrap();
        for name in 0..6 {
            assert_eq!(client.download(&disk, &format!("{name}.txt")).await.unwrap(), b"content 1");
        }
        assert_eq!(blobs(&app).await, (1, 1), "nothing that is not referred to is left");
    })
    .await;
}

#[tokio::test]
async fn the_sweep_is_a_job_and_only_one_waits() {
    run_with(at_once(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "bytes").await;
        client.delete(&format!("/api/v1/disk/{disk}")).await;
        for _ in 0..3 {
            sweep::enqueue_sweep(app.app.blobs.clone()).await.unwrap();
        }
        assert_eq!(app.value::<i64>("select count(*) from jobs").await, 1);
        app.drain_jobs().await;
        assert_eq!(blobs(&app).await, (0, 0));
        assert_eq!(app.value::<i64>("select count(*) from jobs").await, 0);
    })
    .await;
}

#[tokio::test]
async fn the_time_begins_anew_when_bytes_were_used_again() {
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
        assert_eq!(blobs(&app).await, (1, 1), "in use a moment ago");
        app.execute("update blob_releases set released_at = released_at - interval '61 minutes'").await;
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(blobs(&app).await, (0, 0));
    })
    .await;
}

#[tokio::test]
async fn a_sweep_and_a_release_of_the_same_bytes_do_not_wait_for_each_other() {
    run_with(at_once(), async |app| {
        let client = app.project().await;
        let (disk, other) = (client.new_disk().await, client.new_disk().await);
        client.upload(&disk, "/", "a.txt", "bytes").await;
        client.upload(&other, "/", "a.txt", "bytes").await;
        client.delete(&format!("/api/v1/disk/{other}")).await;
        // A transaction that has released the bytes and is not over yet.
        let mut tx = app.app.db.begin().await.unwrap();
        sqlx::query("delete from artifact_versions").execute(&mut *tx).await.unwrap();
        let swept = tokio::time::timeout(Duration::from_secs(10), app.app.blobs.sweep()).await;
        swept.expect("the sweep waited").unwrap();
        tx.commit().await.unwrap();
        assert_eq!(blobs(&app).await, (1, 1), "the reference was still there");
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(blobs(&app).await, (0, 0), "and its release was not lost");
    })
    .await;
}

#[tokio::test]
async fn an_object_that_cannot_be_deleted_does_not_keep_the_others() {
    run_with(at_once(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "stuck").await;
        client.upload(&disk, "/", "b.txt", "loose").await;
        let stuck: String = app.value("select object_key from blobs order by id limit 1").await;
        app.blobs.set_stuck(&stuck);
        client.delete(&format!("/api/v1/disk/{disk}")).await;
        app.app.blobs.sweep().await.unwrap_err();
        assert_eq!(app.blobs.keys(), [stuck]);
        assert_eq!(app.value::<i64>("select count(*) from blobs").await, 1);
    })
    .await;
}
