//! Flushes: observe what is pending, and wait for the result.

use std::time::Duration;

use serde_json::json;

use super::{TTL, batch_texts, flushed, in_both_formats, numbered};
use crate::support::model_server::{Latch, Step};

#[tokio::test]
async fn a_flush_of_an_empty_session_calls_no_model() {
    in_both_formats(&[], async |s| {
        assert_eq!(s.while_jobs_run(s.flush()).await, flushed());
        assert!(s.model.take_requests().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_flush_observes_all_pending_messages() {
    in_both_formats(&[(TTL, "1h")], async |s| {
        s.store_numbered(40).await;
        s.script([Step::text("ok"), Step::text("ok")]);
        assert_eq!(s.while_jobs_run(s.flush()).await, flushed());
        assert_eq!(s.message_statuses().await, vec!["success"; 40]);
        assert_eq!(s.model.take_requests().iter().flat_map(batch_texts).collect::<Vec<_>>(), numbered(40));
    })
    .await;
}

#[tokio::test]
async fn a_flush_waits_for_a_running_batch_until_its_deadline() {
    in_both_formats(&[], async |s| {
        let latch = Latch::new();
        s.script([Step::text("ok").after(&latch)]);
        s.store_numbered(2).await;
        // Another process on the same database, with a shorter deadline.
        let impatient = s.app.second_process(s.model.config(s.wire).with("ACONTEXTD_FLUSH_TIMEOUT", "200ms")).await;
        let impatient = impatient.client().with_key(s.client.key());
        s.while_jobs_run(async {
            latch.wait_for_requests(1).await;
            let timed_out = super::flush(&impatient, &s.session).await;
            assert_eq!(timed_out["status"], 504, "{timed_out}");
            assert!(timed_out["errmsg"].as_str().unwrap().contains("2 messages are still pending"), "{timed_out}");
            assert_eq!(s.counts().await, [0, 2, 0], "the batch is unharmed");
            let mut flush = std::pin::pin!(s.flush());
            let early = tokio::time::timeout(Duration::from_millis(300), &mut flush).await;
            assert!(early.is_err(), "the flush has not waited: {early:?}");
            latch.release();
            let waited = flush.await;
            assert_eq!(waited, flushed());
        })
        .await;
        assert_eq!(s.counts().await, [0, 0, 2]);
        assert_eq!(s.model.take_requests().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_flush_of_a_session_that_is_deleted_is_not_found() {
    in_both_formats(&[], async |s| {
        let latch = Latch::new();
        s.script([Step::text("ok").after(&latch)]);
        s.store_numbered(1).await;
        let path = format!("/api/v1/session/{}", s.session);
        let flush_path = format!("{path}/flush");
        let delete = async {
            latch.wait_for_requests(1).await;
            s.client.delete(&path).await.assert_status(200);
            latch.release();
        };
        let flush_and_delete = async { tokio::join!(s.client.post(&flush_path, json!({})), delete) };
        let (flushed, ()) = s.while_jobs_run(flush_and_delete).await;
        flushed.assert_status(404);
    })
    .await;
}

#[tokio::test]
async fn a_deleted_session_has_no_jobs() {
    in_both_formats(&[(TTL, "1h")], async |s| {
        s.store_numbered(1).await;
        let other = s.client.new_session().await;
        s.client.store_text(&other, "m").await;
        s.script([Step::status(400)]);
        s.while_jobs_run(s.flush()).await;
        s.store_numbered(1).await;
        assert_eq!(s.jobs().await.len(), 2, "a failed job and a ready one");
        s.client.delete(&format!("/api/v1/session/{}", s.session)).await.assert_status(200);
        let sessions = "select string_agg(payload ->> 'session', ' ') from jobs";
        assert_eq!(s.app.fetch_scalar::<String>(sessions).await, other);
    })
    .await;
}
