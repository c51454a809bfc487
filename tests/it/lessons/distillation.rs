//! The distillation: which tasks become lessons, and what the model gets.

use serde_json::json;

use super::{Learning, facts_report, failure_report, finished_task, success_report, think};
use crate::support::model_server::{Lane, Step};
use crate::task_agent::{Calls, Scenario, calls, finish, in_both_formats, insert, section};

#[tokio::test]
async fn a_skipped_task_leaves_no_trace_in_the_skills() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        let before = learning.skills().await;
        learning.script_finished_task().await;
        learning.script_distillation([Step::call("skip_learning", json!({"reason": "small talk about [[secret]]"}))]);
        s.app.drain_jobs().await;
        assert_eq!(learning.status().await, "completed");
        assert_eq!(learning.lessons().await, ["skipped -: the model has found nothing to learn from the task"]);
        assert_eq!(learning.take_requests(Lane::Learner).len(), 0);
        assert_eq!(learning.skills().await, before);
    })
    .await;
}

#[tokio::test]
async fn a_failed_task_becomes_a_warning_with_all_fields() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        s.store(&["do A", "that failed"]).await;
        s.script([insert(0, "A").link(1, &[0, 1]).progress(1, "tried it").status(1, "failed").finish()]);
        s.model.script(Lane::DistillFailure, "", [failure_report()]);
        learning.script_learner([think(), finish()]);
        s.app.drain_jobs().await;
        let requests = s.model.take_requests();
        let distillation = requests.iter().find(|request| request.lane == Lane::DistillFailure).unwrap();
        assert_eq!(distillation.tool_names(), ["report_failure_analysis"]);
        let task = section(distillation, "finished-task");
        let today = chrono::Utc::now().date_naive();
        assert_eq!(task, format!("<task status=\"failed\" date=\"{today}\">A</task>\n<progress>tried it</progress>"));
        let messages = section(distillation, "messages");
        assert!(messages.contains("do A") && messages.contains("that failed"), "{messages}");
        let skills = section(distillation, "skills");
        assert!(skills.contains("daily-logs: ") && skills.contains("user-general-facts: "), "{skills}");
        let learner = requests.iter().find(|request| request.lane == Lane::Learner).unwrap().user_texts().join("\n");
        for field in ["the failure point", "the flawed reasoning", "the better way", "the prevention", "the condition"]
        {
            assert!(learner.contains(field), "{field}: {learner}");
        }
        assert_eq!(
            (learning.lessons().await, learning.status().await),
            (vec!["written failure".into()], "completed".into())
        );
    })
    .await;
}

#[tokio::test]
async fn an_unusable_response_is_repaired_once() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_finished_task().await;
        learning.script_distillation([Step::text("I would say..."), facts_report("A is done.")]);
        learning.script_learner([finish()]);
        s.app.drain_jobs().await;
        assert_eq!(learning.lessons().await, ["written facts"]);
        s.model.take_requests();
        s.store(&["do B"]).await;
        s.script([insert(1, "B").link(2, &[0, 0]).status(2, "success").finish()]);
        learning.script_distillation([Step::text("one"), Step::text("two")]);
        s.app.drain_jobs().await;
        let lessons = learning.lessons().await;
        assert!(lessons[1].starts_with("failed -") && lessons[1].contains("called no tool"), "{lessons:?}");
        assert_eq!(learning.take_requests(Lane::Learner).len(), 0);
        assert_eq!(learning.status().await, "completed", "the status does not go back");
    })
    .await;
}

#[tokio::test]
async fn a_report_without_a_field_fails_after_a_repair() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_finished_task().await;
        let incomplete = || Step::call("report_success_analysis", json!({"task_goal": "A", "approach": "x"}));
        learning.script_distillation([incomplete(), incomplete(), incomplete()]);
        s.app.drain_jobs().await;
        assert_eq!(learning.status().await, "failed");
        let reason = learning.get(&s.session).await["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains("the model test-model made only invalid tool calls"), "{reason}");
        let job = s.jobs().await.remove(0);
        assert_eq!((&job["kind"], &job["state"]), (&json!("distill"), &json!("failed")));
    })
    .await;
}

#[tokio::test]
async fn a_task_that_ends_several_times_in_a_run_is_distilled_once() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        s.store(&["do A"]).await;
        s.script([insert(0, "A").status(1, "success").status(1, "success"), calls().status(1, "success").finish()]);
        learning.script_distillation([success_report()]);
        learning.script_learner([finish()]);
        s.app.drain_jobs().await;
        assert_eq!(learning.take_requests(Lane::DistillSuccess).len(), 1);
        // Writing the same status again is no end, and an end after a new attempt is another one.
        s.store(&["thanks"]).await;
        s.script([calls().status(1, "success").finish()]);
        s.app.drain_jobs().await;
        assert_eq!(learning.take_requests(Lane::DistillSuccess).len(), 0);
        s.store(&["again"]).await;
        s.script([calls().status(1, "running").link(1, &[0, 0]).status(1, "success").finish()]);
        learning.script_distillation([success_report()]);
        learning.script_learner([finish()]);
        s.app.drain_jobs().await;
        assert_eq!(learning.take_requests(Lane::DistillSuccess).len(), 1);
        assert_eq!(learning.lessons().await, ["written success", "written success"]);
    })
    .await;
}

#[tokio::test]
async fn a_task_that_is_reopened_before_its_distillation_is_skipped() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        delay_distillations(s).await;
        learning.script_finished_task().await;
        s.app.drain_jobs().await;
        s.store(&["not yet"]).await;
        s.model.script(Lane::Task, "", [calls().status(1, "running").finish()]);
        s.app.drain_jobs().await;
        resume_distillations(s).await;
        s.app.drain_jobs().await;
        assert_eq!(learning.take_requests(Lane::DistillSuccess).len(), 0);
        assert_eq!(learning.lessons().await, ["skipped -: the task was reopened before it was distilled"]);
        assert_eq!(learning.status().await, "completed");
        // The next end is learned.
        s.store(&["now"]).await;
        s.model.script(Lane::Task, "", [calls().status(1, "success").finish()]);
        learning.script_distillation([success_report()]);
        learning.script_learner([finish()]);
        s.app.drain_jobs().await;
        assert_eq!(learning.lessons().await[1], "written success");
    })
    .await;
}

/// Lets new distillations wait for an hour, as if other jobs ran before them.
async fn delay_distillations(s: &Scenario) {
    s.app
        .execute(
            "create function delay_distillation() returns trigger language plpgsql as
                 $$ begin new.run_at = now() + interval '1 hour'; return new; end $$",
        )
        .await;
    s.app
        .execute(
            "create trigger delay_distillation before insert on jobs for each row when (new.kind = 'distill')
             execute function delay_distillation()",
        )
        .await;
}

async fn resume_distillations(s: &Scenario) {
    s.app.execute("drop trigger delay_distillation on jobs").await;
    s.end_backoff().await;
}

/// The task fails, is reopened and succeeds before anything is distilled.
#[tokio::test]
async fn each_end_of_a_task_is_distilled_with_its_state_at_that_end() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        delay_distillations(s).await;
        s.store(&["do A", "that failed"]).await;
        s.script([insert(0, "A").link(1, &[0, 1]).progress(1, "tried it").status(1, "failed").finish()]);
        s.app.drain_jobs().await;
        s.store(&["again", "now it works"]).await;
        let succeed = calls()
            .status(1, "running")
            .and_call("update_task", json!({"task_order": 1, "task_description": "A with care"}))
            .link(1, &[0, 1])
            .progress(1, "did it")
            .status(1, "success");
        s.script([succeed.finish()]);
        s.app.drain_jobs().await;
        assert_eq!(s.task_lines().await, ["1 A with care success"]);
        resume_distillations(s).await;
        s.model.script(Lane::DistillFailure, "", [failure_report()]);
        learning.script_distillation([success_report()]);
        learning.script_learner([finish(), finish()]);
        s.app.drain_jobs().await;
        assert_eq!(learning.lessons().await, ["written failure", "written success"]);

        let requests = s.model.take_requests();
        let find = |lane| requests.iter().find(|request| request.lane == lane).unwrap();
        let first = find(Lane::DistillFailure);
        assert_eq!(first.tool_names(), ["report_failure_analysis"]);
        let today = chrono::Utc::now().date_naive();
        assert_eq!(
            section(first, "finished-task"),
            format!("<task status=\"failed\" date=\"{today}\">A</task>\n<progress>tried it</progress>")
        );
        assert_eq!(section(first, "all-tasks"), "<task order=\"1\" status=\"failed\">A</task>");
        let messages = section(first, "messages");
        assert!(messages.contains("do A") && messages.contains("that failed"), "{messages}");
        assert!(!messages.contains("again") && !messages.contains("now it works"), "{messages}");
        let second = find(Lane::DistillSuccess);
        assert_eq!(
            section(second, "finished-task"),
            format!(
                "<task status=\"success\" date=\"{today}\">A with care</task>\n<progress>tried it</progress>\n\
                 <progress>did it</progress>"
            )
        );
        let messages = section(second, "messages");
        for text in ["do A", "that failed", "again", "now it works"] {
            assert!(messages.contains(text), "{text}: {messages}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_distillation_sees_the_links_of_the_whole_run() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        s.store(&["first", "second"]).await;
        s.script([
            insert(0, "A").link(1, &[0, 0]).status(1, "success"),
            calls().status(1, "running").link(1, &[1, 1]).status(1, "success").finish(),
        ]);
        learning.script_distillation([success_report()]);
        learning.script_learner([finish()]);
        s.app.drain_jobs().await;
        let requests = learning.take_requests(Lane::DistillSuccess);
        let messages = section(&requests[0], "messages");
        assert!(messages.contains("first") && messages.contains("second"), "{messages}");
    })
    .await;
}

#[tokio::test]
async fn a_session_that_is_learned_later_is_learned_completely() {
    in_both_formats(&[], async |s| {
        s.store(&["do A"]).await;
        let preference = json!({"preference": "The user likes tea."});
        s.script([finished_task("A").and_call("submit_user_preference", preference)]);
        s.app.drain_jobs().await;
        let learning = Learning::start(s).await;
        learning.script_distillation([success_report()]);
        learning.script_learner([finish(), finish()]);
        s.app.drain_jobs().await;
        assert_eq!(learning.status().await, "completed");
        let mut lessons = learning.lessons().await;
        lessons.sort();
        assert_eq!(lessons, ["written preferences", "written success"]);
    })
    .await;
}

#[tokio::test]
async fn a_copied_session_is_not_learned_with_its_original() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_finished_task().await;
        learning.script_distillation([success_report()]);
        learning.script_learner([finish()]);
        s.app.drain_jobs().await;
        s.model.take_requests();
        let copy = s.client.post(&format!("/api/v1/session/{}/copy", s.session), json!({})).await.data();
        s.app.drain_jobs().await;
        let copy = copy["new_session_id"].as_str().unwrap();
        assert!(s.model.take_requests().is_empty());
        let tasks = s.client.get(&format!("/api/v1/session/{copy}/task")).await.data();
        assert_eq!((tasks["items"].as_array().unwrap().len(), &tasks["items"][0]["status"]), (1, &json!("success")));
        assert_eq!(learning.lessons().await.len(), 1);
    })
    .await;
}
