//! Long lessons: the skill agent gets all of their text.

use serde_json::json;

use super::{Learning, facts_report, finished_task};
use crate::support::model_server::{Lane, Latch, Step};
use crate::task_agent::{Calls, calls, finish, in_both_formats};

#[tokio::test]
async fn many_preferences_are_written_without_a_cut() {
    in_both_formats(&[], async |s| {
        let preferences: Vec<String> = (0..30).map(|n| format!("Preference {n:02}: {}", "tea ".repeat(240))).collect();
        s.store(&["these are my preferences"]).await;
        let submit = |step: Step, text: &String| step.and_call("submit_user_preference", json!({"preference": text}));
        s.script([preferences.iter().fold(calls(), submit).finish()]);
        s.app.drain_jobs().await;
        let learning = Learning::start(s).await;
        learning.script_learner((0..4).map(|_| finish()));
        s.app.drain_jobs().await;
        assert_eq!(learning.lessons().await, ["written preferences"; 4]);
        let requests = learning.take_requests(Lane::Learner);
        let texts = requests.last().unwrap().user_texts().concat();
        for n in 0..30 {
            assert!(texts.contains(&format!("Preference {n:02}:")), "{n} is missing");
        }
        assert!(!texts.contains("<cut/>"));
        assert_eq!(learning.status().await, "completed");
        let message_count = "select sum(cardinality(message_ids)) from lessons";
        assert_eq!(s.app.fetch_scalar::<i64>(message_count).await, 0, "the messages are not known");
    })
    .await;
}

#[tokio::test]
async fn a_long_lesson_does_not_continue_a_run() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        let latch = Latch::new();
        s.store(&["do A"]).await;
        s.script([finished_task("A")]);
        let facts: Vec<String> = (0..16).map(|n| format!("Fact {n:02}: {}.", "milk1 ".repeat(170))).collect();
        let long = Step::call("report_factual_content", json!({"task_goal": "B", "facts": facts}));
        learning.script_distillation([facts_report("A is short."), long]);
        learning.script_learner([finish().after(&latch), finish()]);
        s.while_jobs_run(async {
            latch.wait_for_requests(1).await;
            s.store(&["do B"]).await;
            s.script([calls().insert(1, "B").link(2, &[0, 0]).status(2, "success").finish()]);
            crate::support::wait_until("the second lesson waits", async || {
                learning.lessons().await.contains(&"pending facts".to_owned())
            })
            .await;
            latch.release();
            learning.wait_for_status(&s.session, "completed").await;
            s.app.until_idle().await;
        })
        .await;
        let requests = learning.take_requests(Lane::Learner);
        let counts: Vec<_> = requests.iter().map(|request| request.user_texts().len()).collect();
        assert_eq!(counts, [1, 1], "the job of the long lesson has its own run");
        let text = &requests[1].user_texts()[0];
        assert!(text.contains("Fact 15:") && !text.contains("<cut/>"), "{text}");
    })
    .await;
}
