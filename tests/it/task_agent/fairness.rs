//! Projects that share a model.

use serde_json::json;

use super::in_both_formats;
use crate::support::model_server::{Lane, Latch, Step};
use crate::support::wait_until;

#[tokio::test]
async fn a_process_runs_no_more_jobs_than_requests() {
    in_both_formats(&[("ACONTEXTD_LLM_CONCURRENCY", "2")], async |s| {
        let other = s.app.project().await;
        let latch = Latch::new();
        s.model.script(Lane::Task, "[[A]]", (0..3).map(|_| Step::text("ok").after(&latch)));
        s.model.script(Lane::Task, "[[B]]", [Step::text("ok").after(&latch)]);
        for _ in 0..3 {
            let session = s.client.new_session().await;
            s.client.store_text(&session, "[[A]]").await;
        }
        let session = other.new_session().await;
        other.store_text(&session, "[[B]]").await;
        s.while_jobs_run(async {
            latch.wait_for_requests(2).await;
            // One transaction has claimed them, for the free permits.
            let running = "select count(*) from jobs where state = 'running'";
            assert_eq!(s.app.fetch_scalar::<i64>(running).await, 2, "a job waits for a request while its time runs");
            let projects = "select count(distinct project_id) from jobs where state = 'running'";
            assert_eq!(s.app.fetch_scalar::<i64>(projects).await, 2, "the other project waits");
            latch.release();
            let observed = "select count(*) from messages where session_task_process_status = 'success'";
            wait_until("all are observed", async || s.app.fetch_scalar::<i64>(observed).await == 4).await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_one_project_does_not_delay_another() {
    in_both_formats(&[], async |s| {
        let other = s.app.project().await;
        let latch = Latch::new();
        // A fifth request of the first project would get a response, and be counted below.
        s.model.script(Lane::Task, "[[A]]", (0..4).map(|_| Step::text("ok").after(&latch)));
        s.model.script(Lane::Task, "[[B]]", [Step::text("ok")]);
        for _ in 0..200 {
            let session = s.client.new_session().await;
            s.client.store_text(&session, "[[A]]").await;
        }
        s.while_jobs_run(async {
            latch.wait_for_requests(4).await;
            let session = other.new_session().await;
            other.store_text(&session, "[[B]]").await;
            let status = format!("/api/v1/session/{session}/observing_status");
            // No request of the first project is answered before.
            wait_until("the other project is observed", async || {
                other.get(&status).await.data()["observed"] == json!(1)
            })
            .await;
            let of_first = s.model.take_requests().iter().filter(|request| request.markers == ["[[A]]"]).count();
            assert_eq!(of_first, 4, "ACONTEXTD_LLM_PROJECT_CONCURRENCY");
            latch.release();
            let observed = "select count(*) from messages where session_task_process_status = 'success'";
            wait_until("the first project continues", async || s.app.fetch_scalar::<i64>(observed).await > 5).await;
        })
        .await;
    })
    .await;
}
