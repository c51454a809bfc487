//! The buffer: when messages are observed, and in which batches.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Calls, TTL, batch_texts, finish, flushed, in_both_formats, insert, numbered};
use crate::support::model_server::{Latch, Step};
use crate::support::statements::count_statements;
use crate::support::wait_until;

/// The time for a busy machine. The job runner claims a job when it is due, without waiting for its next poll.
const TOLERANCE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_message_is_observed_after_the_ttl() {
    let ttl = Duration::from_millis(500);
    in_both_formats(&[(TTL, "500ms")], async |s| {
        s.script([insert(0, "A"), finish()]);
        s.while_jobs_run(async {
            let stored_at = Instant::now();
            s.store(&["do A"]).await;
            s.wait_for_counts([0, 0, 1]).await;
            let requests = s.model.take_requests();
            let waited = requests[0].received_at - stored_at;
            assert!(waited >= ttl.mul_f64(0.9) && waited < ttl + TOLERANCE, "{waited:?}");
            assert_eq!(requests.len(), 2);
        })
        .await;
        assert_eq!(s.task_lines().await, ["1 A pending"]);
        assert_eq!(s.message_statuses().await, ["success"]);
    })
    .await;
}

#[tokio::test]
async fn a_batch_sends_no_statement_per_message() {
    in_both_formats(&[("PROJECT_SESSION_MESSAGE_BUFFER_MAX_TURNS", "200")], async |s| {
        let mut counts = Vec::new();
        for (first, last) in [(0, 9), (10, 209)] {
            for number in first..=last {
                s.client.store_text(&s.session, &format!("m{number}")).await;
            }
            s.script([insert(0, "A").link(1, &[0, last - first]), finish()]);
            counts.push(count_statements(s.app.drain_jobs()).await.in_jobs);
        }
        assert!(counts[0] > 0, "nothing was counted");
        // A few statements differ, because connections are opened, or verified after they were idle.
        assert!(counts[1] < counts[0] + 10, "{counts:?}");
        assert_eq!(s.links().await.iter().filter(|link| link.is_some()).count(), 210);
    })
    .await;
}

#[tokio::test]
async fn many_messages_are_observed_before_the_ttl() {
    in_both_formats(&[(TTL, "1h")], async |s| {
        s.store_numbered(16).await;
        let requests = s.observe([Step::text("ok")]).await;
        assert_eq!(requests.len(), 1);
        assert_eq!(batch_texts(&requests[0]), numbered(16));
        assert_eq!(s.counts().await, [0, 0, 16]);
    })
    .await;
}

#[tokio::test]
async fn later_messages_do_not_delay_the_first_one() {
    let ttl = Duration::from_secs(1);
    in_both_formats(&[(TTL, "1s")], async |s| {
        let (first_stored_at, last_stored_at) = s
            .while_jobs_run(async {
                let mut interval = tokio::time::interval(ttl * 3 / 15);
                let first_stored_at = Instant::now();
                // Fewer than the maximum of turns, so that the number of messages is not the reason.
                for text in numbered(15) {
                    interval.tick().await;
                    s.store(&[&text]).await;
                }
                let last_stored_at = Instant::now();
                s.wait_for_counts([0, 0, 15]).await;
                (first_stored_at, last_stored_at)
            })
            .await;
        let requests = s.model.take_requests();
        assert!(requests[0].received_at < last_stored_at, "the first batch waited for the last message");
        assert!(requests[0].received_at - first_stored_at >= ttl.mul_f64(0.9));
        assert!(requests.len() >= 2);
        assert_eq!(requests.iter().flat_map(batch_texts).collect::<Vec<_>>(), numbered(15));
    })
    .await;
}

#[tokio::test]
async fn a_flush_leaves_nothing_for_the_ttl() {
    in_both_formats(&[(TTL, "1h")], async |s| {
        s.script([Step::text("ok")]);
        s.while_jobs_run(async {
            s.store_numbered(5).await;
            assert_eq!(s.flush().await, flushed());
            wait_until("no job waits for the TTL", async || s.jobs().await.is_empty()).await;
        })
        .await;
        assert_eq!(s.model.take_requests().len(), 1);
        assert_eq!(s.counts().await, [0, 0, 5]);
    })
    .await;
}

#[tokio::test]
async fn the_rest_of_a_large_batch_is_observed_next() {
    in_both_formats(&[(TTL, "1h")], async |s| {
        s.store_numbered(40).await;
        let requests = s.observe([Step::text("ok"), Step::text("ok")]).await;
        let batches: Vec<_> = requests.iter().map(batch_texts).collect();
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [32, 8]);
        assert_eq!(batches.concat(), numbered(40));
        assert_eq!(s.counts().await, [0, 0, 40]);
    })
    .await;
}

#[tokio::test]
async fn a_session_without_tracking_is_not_observed() {
    in_both_formats(&[], async |s| {
        let session = s.client.post("/api/v1/session", json!({"disable_task_tracking": true})).await.data();
        let session = session["id"].as_str().unwrap();
        s.client.store_text(session, "not observed").await;
        assert_eq!(super::flush(&s.client, session).await, flushed());
        s.app.drain_jobs().await;
        let page = s.client.messages(session, "format=acontext").await;
        assert_eq!(page["items"][0]["session_task_process_status"], "disable_tracking");
        assert_eq!(s.counts_of(session).await, [0, 0, 0]);
        assert!(s.model.take_requests().is_empty());
    })
    .await;
}

#[tokio::test]
async fn messages_over_the_quota_are_observed_when_it_allows_them_again() {
    in_both_formats(&[], async |s| {
        s.store_numbered(2).await;
        let flag = "insert into metrics (project_id, tag, increment) select id, 'excess.task.created', 1 from projects";
        s.app.execute(flag).await;
        assert!(s.observe([]).await.is_empty());
        assert_eq!(s.message_statuses().await, ["limit_exceed", "limit_exceed"]);
        assert_eq!((s.counts().await, s.jobs().await.len()), ([0, 0, 0], 0));
        // A flush changes nothing while the flag is set.
        let errmsg = "the project has exceeded its quota of tasks; 2 messages were not observed";
        assert_eq!(s.while_jobs_run(s.flush()).await, json!({"status": 200, "errmsg": errmsg}));
        assert_eq!(s.message_statuses().await, ["limit_exceed", "limit_exceed"]);
        s.app.execute("delete from metrics").await;
        s.script([Step::text("ok")]);
        assert_eq!(s.while_jobs_run(s.flush()).await, flushed());
        assert_eq!(s.counts().await, [0, 0, 2]);
        assert_eq!(batch_texts(&s.model.take_requests()[0]), numbered(2));
    })
    .await;
}

#[tokio::test]
async fn the_counts_follow_the_observation() {
    in_both_formats(&[], async |s| {
        let latch = Latch::new();
        s.script([finish().after(&latch)]);
        s.store_numbered(3).await;
        assert_eq!(s.counts().await, [3, 0, 0]);
        s.while_jobs_run(async {
            latch.wait_for_requests(1).await;
            assert_eq!(s.counts().await, [0, 3, 0]);
            assert_eq!(s.message_statuses().await, ["running", "running", "running"]);
            let jobs = s.jobs().await;
            assert_eq!((&jobs[0]["state"], &jobs[0]["kind"]), (&json!("running"), &json!("observe")));
            assert!(jobs[0]["lease_until"].is_string(), "{jobs:?}");
            // A message that is stored in the meantime waits for the next batch.
            s.script([Step::text("ok")]);
            s.store(&["later"]).await;
            assert_eq!(s.counts().await, [1, 3, 0]);
            latch.release();
            s.wait_for_counts([0, 0, 4]).await;
        })
        .await;
        s.app.drain_jobs().await;
        let requests = s.model.take_requests();
        assert_eq!((requests.len(), batch_texts(&requests[1])), (2, vec!["later".to_owned()]));
        assert!(s.jobs().await.is_empty());
    })
    .await;
}
