//! Failures of the model, of a message and of the database.

use acontextd::jobs::periodic;
use serde_json::json;
use tracing::Level;

use super::{Calls, TTL, batch, batch_texts, calls, finish, in_both_formats, insert, section};
use crate::support::captured_log::CapturedLog;
use crate::support::model_server::{Lane, Step, Wire};

#[tokio::test]
async fn a_request_to_an_unavailable_model_is_repeated_with_backoff() {
    in_both_formats(&[], async |s| {
        s.store(&["A"]).await;
        // The client sends a request three times.
        let requests = s.observe((0..3).map(|_| Step::status(500))).await;
        let gaps: Vec<_> = requests.windows(2).map(|pair| pair[1].received_at - pair[0].received_at).collect();
        assert!(gaps.len() == 2 && gaps[0].as_millis() >= 375 && gaps[1].as_millis() >= 750, "{gaps:?}");
        assert_eq!((s.counts().await, s.message_statuses().await), ([1, 0, 0], vec!["pending".to_owned()]));
        let job = s.jobs().await.remove(0);
        assert_eq!((&job["state"], &job["attempt"], &job["wait_reason"]), (&json!("ready"), &json!(1), &json!(null)));
        assert_eq!(job["error"]["class"], "model");
        assert!(job["error"]["message"].as_str().unwrap().starts_with("LLM complete failed"), "{job}");
        assert!(s.observe([]).await.is_empty(), "the job has a backoff");
        s.end_backoff().await;
        let requests = s.observe([Step::status(500), insert(0, "A"), finish()]).await;
        assert_eq!(requests.len(), 3);
        assert_eq!((s.counts().await, s.task_lines().await), ([0, 0, 1], vec!["1 A pending".to_owned()]));
        assert!(s.jobs().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_long_delay_that_the_provider_requests_is_the_backoff_of_the_job() {
    in_both_formats(&[], async |s| {
        s.store(&["A"]).await;
        let error = Step::status(429).retry_after("50");
        assert_eq!(s.observe([error]).await.len(), 1, "the client does not wait for the next request");
        let seconds = "select extract(epoch from run_at - updated_at)::bigint from jobs where state = 'ready'";
        assert_eq!(s.app.fetch_scalar::<i64>(seconds).await, 50);
        assert_eq!(s.message_statuses().await, ["pending"]);
    })
    .await;
}

#[tokio::test]
async fn messages_fail_when_the_attempts_are_used_up() {
    in_both_formats(&[], async |s| {
        s.store(&["A"]).await;
        for attempt in 1..=5 {
            assert_eq!(s.counts().await, [1, 0, 0], "{attempt}");
            s.observe((0..3).map(|_| Step::status(503).retry_after("0"))).await;
            s.end_backoff().await;
        }
        assert_eq!((s.counts().await, s.message_statuses().await), ([0, 0, 0], vec!["failed".to_owned()]));
        let job = s.jobs().await.remove(0);
        assert_eq!((&job["state"], &job["attempt"]), (&json!("failed"), &json!(5)));
        s.script([finish()]);
        s.while_jobs_run(async {
            assert_eq!(s.flush().await, super::flushed());
            // The job completes after the flush has returned.
            s.app.until_idle().await;
        })
        .await;
        assert_eq!(s.counts().await, [0, 0, 1]);
        assert!(s.jobs().await.is_empty(), "the new job has replaced the failed one");
    })
    .await;
}

/// The state of a job whose process has died during its last attempt, and of its message.
const LOSE_LAST_ATTEMPT: &str = "with job as (
        update jobs set state = 'running', attempt = 5, worker_id = gen_random_uuid(),
                        lease_expires_at = now() - interval '1 second' where kind = 'observe')
    update messages set session_task_process_status = 'running' where session_task_process_status = 'pending'";

#[tokio::test]
async fn messages_fail_together_with_a_job_whose_worker_is_lost() {
    in_both_formats(&[(TTL, "1h")], async |s| {
        s.store(&["A"]).await;
        s.app.execute(LOSE_LAST_ATTEMPT).await;
        periodic::reclaim_expired(s.app.runner()).await.unwrap();
        assert_eq!(s.message_statuses().await, ["failed"]);
        let states = async || s.jobs().await.iter().map(|job| job["state"].clone()).collect::<Vec<_>>();
        assert_eq!(states().await, ["failed"], "nothing is left to observe");
        s.script([Step::text("ok")]);
        assert_eq!(s.while_jobs_run(s.flush()).await, super::flushed());
        // A message that was pending in the meantime gets a new job.
        s.store(&["B"]).await;
        s.app.execute(LOSE_LAST_ATTEMPT).await;
        s.store(&["C"]).await;
        periodic::reclaim_expired(s.app.runner()).await.unwrap();
        assert_eq!(s.message_statuses().await, ["success", "failed", "pending"]);
        assert_eq!(states().await, ["failed", "ready"]);
        let requests = s.observe([Step::text("ok")]).await;
        assert_eq!(batch_texts(requests.last().unwrap()), ["C"]);
    })
    .await;
}

#[tokio::test]
async fn a_run_without_a_valid_call_fails() {
    in_both_formats(&[(TTL, "1h")], async |s| {
        let unknown = || Step::call("create_task", json!({"name": "A"}));
        for (steps, reason) in [
            ((0..3).map(|_| unknown()).collect::<Vec<_>>(), "the model test-model made only invalid tool calls"),
            (vec![Step::refusal("I cannot help with that.")], "withheld the response of the model test-model"),
        ] {
            s.store(&["A"]).await;
            s.script(steps);
            let flushed = s.while_jobs_run(s.flush()).await;
            let errmsg = flushed["errmsg"].as_str().unwrap();
            assert!(flushed["status"] == 502 && errmsg.starts_with("LLM complete failed"), "{flushed}");
            assert!(errmsg.contains(reason) && errmsg.contains("LLM_SIMPLE_MODEL"), "{flushed}");
            let job = s.jobs().await.remove(0);
            assert_eq!((&job["state"], &job["error"]["class"]), (&json!("failed"), &json!("model")));
            assert_eq!(s.message_statuses().await.last().unwrap(), "failed");
        }
        // A model that calls no tool may be right.
        let (log, _guard) = CapturedLog::start(Level::WARN);
        s.script([Step::text("There is no task.")]);
        assert_eq!(s.while_jobs_run(s.flush()).await, super::flushed());
        assert!(log.text().contains("the model called no tool") && log.text().contains("test-model"), "{}", log.text());
        // The edits before a refusal are stored.
        s.store(&["B"]).await;
        s.script([insert(0, "B").link(1, &[0, 0]), Step::refusal("no")]);
        assert_eq!(s.while_jobs_run(s.flush()).await, super::flushed());
        assert_eq!(s.task_lines().await, ["1 B running"]);
    })
    .await;
}

#[tokio::test]
async fn a_rejected_request_fails_immediately() {
    in_both_formats(&[(TTL, "1h")], async |s| {
        let space = s.client.new_space().await;
        let learn = format!("/api/v1/learning_spaces/{space}/learn");
        s.client.post(&learn, json!({"session_id": s.session})).await.assert_status(201);
        s.store(&["A"]).await;
        s.script([Step::status(400)]);
        let flushed = s.while_jobs_run(s.flush()).await;
        assert_eq!(flushed["status"], 502, "{flushed}");
        assert!(flushed["errmsg"].as_str().unwrap().starts_with("LLM complete failed"), "{flushed}");
        let errmsg = flushed["errmsg"].as_str().unwrap();
        assert!(errmsg.contains("1 message has failed: flush again to retry it"), "{flushed}");
        assert!(errmsg.contains("400"), "the reason is missing: {flushed}");
        assert_eq!(s.message_statuses().await, ["failed"]);
        let job = s.jobs().await.remove(0);
        assert_eq!((&job["kind"], &job["state"], &job["attempt"]), (&json!("observe"), &json!("failed"), &json!(1)));
        assert_eq!(job["error"]["class"], "model");
        let learning = s.client.get(&format!("/api/v1/learning_spaces/{space}/sessions/{}", s.session)).await.data();
        assert_eq!(learning["status"], "failed", "{learning}");
        assert_eq!(s.model.take_requests().len(), 1);
        // The next flush does not rely on a job that is about to end.
        s.script([Step::status(400), Step::text("ok")]);
        let (again, last) = s.while_jobs_run(async { (s.flush().await, s.flush().await) }).await;
        assert_eq!((&again["status"], last), (&json!(502), super::flushed()));
        assert_eq!(s.message_statuses().await, ["success"]);
    })
    .await;
}

// No part of a message is read from the object store, so an object that is missing delays nothing.
#[tokio::test]
async fn an_unavailable_object_store_delays_no_observation() {
    in_both_formats(&[], async |s| {
        let long = "many words ".repeat(50_000);
        s.store(&[&long]).await;
        let parts = json!([{"type": "text", "text": "see the file"}, {"type": "file", "file_field": "f"}]);
        let payload = json!({"format": "acontext", "blob": {"role": "user", "parts": parts}}).to_string();
        let form = crate::support::client::Form::new().text("payload", &payload).file("f", "report.pdf", "content");
        s.client.store_form_message(&s.session, form).await.assert_status(201);
        s.app.blobs.set_down(true);
        let requests = s.observe([Step::text("ok")]).await;
        let messages = batch(&requests[0]);
        assert!(messages[0].starts_with("<text>many words many words") && messages[0].ends_with("<cut/></text>"));
        assert_eq!(messages[1], "<text>see the file</text>\n<omitted type=\"file\">report.pdf</omitted>");
        assert_eq!(s.counts().await, [0, 0, 2]);
    })
    .await;
}

#[tokio::test]
async fn a_malformed_message_does_not_affect_the_others() {
    in_both_formats(&[], async |s| {
        s.store(&["before"]).await;
        let call = json!({"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{not json"}});
        let blob = json!({"role": "assistant", "content": null, "tool_calls": [call]});
        s.client.store_message(&s.session, "openai", blob).await.assert_status(201);
        s.store(&["no meta", "unreadable", "after"]).await;
        // The API rejects such messages, but imported ones may have this form.
        let parts = json!([{"type": "tool-call"}, {"type": "tool-result", "text": "r"}]);
        let no_meta = json!({"role": "assistant", "parts": parts});
        for (index, format, content) in [(2, "acontext", no_meta.to_string()), (3, "openai", "{\"role\":".to_owned())] {
            let update = "update messages set format = $1, content = $2 where id =
                (select id from messages order by created_at offset $3 limit 1)";
            let update = sqlx::query(update).bind(format).bind(content.into_bytes()).bind(index);
            update.execute(&*s.app.app.db).await.unwrap();
        }
        let requests = s.observe([insert(0, "A").link(1, &[0, 4]).finish()]).await;
        let messages = batch(&requests[0]);
        assert_eq!((messages[0].as_str(), messages[4].as_str()), ("<text>before</text>", "<text>after</text>"));
        assert_eq!(messages[1], "<tool-call>{\"tool_name\":\"look\",\"arguments\":\"{not json\"}</tool-call>");
        assert_eq!(
            messages[2],
            "<tool-call>{\"tool_name\":null,\"arguments\":null}</tool-call>\n\
             <tool-result>{\"result\":\"r\"}</tool-result>"
        );
        assert_eq!(messages[3], "<text>[this message cannot be read]</text>");
        assert_eq!((s.counts().await, s.links().await), ([0, 0, 5], vec![Some(1); 5]));
    })
    .await;
}

// All edits of a run are stored in one transaction.
#[tokio::test]
async fn a_database_error_undoes_the_whole_run() {
    in_both_formats(&[], async |s| {
        let space = s.client.new_space().await;
        let learn = format!("/api/v1/learning_spaces/{space}/learn");
        s.client.post(&learn, json!({"session_id": s.session})).await.assert_status(201);
        s.store(&["A"]).await;
        let fail = "create function fail() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$";
        s.app.execute(fail).await;
        // The counter is written after the tasks and the links.
        s.app.execute("create trigger fail before insert on metrics for each row execute function fail()").await;
        let run = || [insert(0, "A").link(1, &[0, 0]), calls().progress(1, "p").status(1, "success"), finish()];
        let (log, _guard) = CapturedLog::start(Level::INFO);
        assert_eq!(s.observe(run()).await.len(), 3);
        assert!(!log.text().contains("messages observed"), "{}", log.text());
        assert_eq!((s.tasks().await.len(), s.links().await), (0, vec![None]));
        assert_eq!((s.counts().await, s.message_statuses().await), ([1, 0, 0], vec!["pending".to_owned()]));
        assert_eq!(s.created_tasks().await, 0);
        let jobs = s.jobs().await;
        let [job] = &jobs[..] else { panic!("{jobs:?}") };
        assert_eq!((&job["kind"], &job["state"], &job["attempt"]), (&json!("observe"), &json!("ready"), &json!(1)));
        assert_eq!(job["error"]["class"], "database");
        s.app.execute("drop trigger fail on metrics").await;
        s.end_backoff().await;
        s.model.script(Lane::DistillSuccess, "", [Step::call("skip_learning", json!({"reason": "none"}))]);
        let requests = s.observe(run()).await;
        assert_eq!(requests.iter().filter(|request| request.lane == Lane::Task).count(), 3);
        assert_eq!((s.task_lines().await, s.links().await), (vec!["1 A success".to_owned()], vec![Some(1)]));
        assert_eq!((s.counts().await, s.created_tasks().await), ([0, 0, 1], 1));
        assert!(log.text().contains("messages observed"), "{}", log.text());
        assert_eq!(s.app.fetch_scalar::<i64>("select count(*) from lessons").await, 1);
    })
    .await;
}

/// An error of a provider whose model cannot process that number of tokens.
fn too_long(wire: Wire) -> Step {
    match wire {
        Wire::OpenAi => Step::error(400, "This model's maximum context length is 8192 tokens."),
        Wire::Anthropic => Step::error(400, "prompt is too long: 208310 tokens > 200000 maximum"),
    }
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_cut_once() {
    in_both_formats(&[(TTL, "1h")], async |s| {
        let long = format!("{} end", "some words ".repeat(80));
        for _ in 0..20 {
            s.store(&[&long]).await;
        }
        let requests = s.observe([too_long(s.wire), insert(0, "A").link(1, &[0, 19]), finish()]).await;
        let lengths: Vec<_> = requests.iter().map(|request| section(request, "messages").len()).collect();
        assert!(lengths[1] * 10 < lengths[0] * 6 && lengths[1] == lengths[2], "{lengths:?}");
        assert_eq!(batch(&requests[1]).len(), 20, "each message keeps its beginning");
        assert_eq!((s.counts().await, s.links().await), ([0, 0, 20], vec![Some(1); 20]));
        // If the half is too long as well, another attempt would fail too.
        s.store(&["more"]).await;
        s.script([too_long(s.wire), too_long(s.wire)]);
        let flushed = s.while_jobs_run(s.flush()).await;
        assert_eq!(flushed["status"], 502, "{flushed}");
        assert_eq!(s.model.take_requests().len(), 2);
        let job = s.jobs().await.remove(0);
        assert_eq!(
            (&job["state"], &job["attempt"], &job["error"]["class"]),
            (&json!("failed"), &json!(1), &json!("model"))
        );
        assert_eq!(s.message_statuses().await[20], "failed");
    })
    .await;
}

#[tokio::test]
async fn messages_wait_until_a_wrong_key_is_corrected() {
    in_both_formats(&[], async |s| {
        s.store(&["A"]).await;
        let error = Step::error(401, "Incorrect API key provided: test-key-0123456789");
        assert_eq!(s.observe([error]).await.len(), 1, "the client does not repeat the request");
        assert_eq!((s.counts().await, s.message_statuses().await), ([1, 0, 0], vec!["pending".to_owned()]));
        let job = s.jobs().await.remove(0);
        assert_eq!((&job["state"], &job["attempt"]), (&json!("ready"), &json!(1)));
        assert_eq!(job["error"]["class"], "model_settings");
        let reason = job["error"]["message"].as_str().unwrap();
        assert!(reason.contains("401") && reason.contains("LLM_API_KEY") && !reason.contains("0123456789"), "{reason}");
        let run_at: chrono::DateTime<chrono::Utc> = job["run_at"].as_str().unwrap().parse().unwrap();
        assert!(run_at > chrono::Utc::now(), "the job has a backoff");
        s.script([Step::status(401)]);
        let flushed = s.while_jobs_run(s.flush()).await;
        assert_eq!(flushed["status"], 502, "{flushed}");
        let reason = flushed["errmsg"].as_str().unwrap();
        assert!(reason.starts_with("LLM complete failed") && reason.contains("1 message is still pending"), "{reason}");
        // The key is valid again.
        s.end_backoff().await;
        let requests = s.observe([Step::text("ok")]).await;
        assert_eq!(batch_texts(requests.last().unwrap()), ["A"]);
        assert_eq!(s.counts().await, [0, 0, 1]);
    })
    .await;
}
