//! Several lessons for one space, and several spaces with one skill.

use serde_json::json;
use tracing::Level;

use super::{Learning, SkillCalls, learn, success_report, success_report_about, think};
use crate::support::captured_log::CapturedLog;
use crate::support::client::Form;
use crate::support::model_server::{Lane, Latch, Step};
use crate::task_agent::{Calls, Scenario, finish, in_both_formats, insert};

/// Stores a message with a marker in a new session that the space learns from, and scripts its task and its distillation.
pub(super) async fn script_session(learning: &Learning<'_>, number: usize) -> String {
    let s = learning.s;
    let session = s.client.new_session().await;
    learning.learn(&session).await;
    let marker = format!("[[P{number}]]");
    s.client.store_text(&session, &format!("do it {marker}")).await;
    let task = insert(0, &format!("Task {marker}")).link(1, &[0, 0]).status(1, "success").finish();
    s.model.script(Lane::Task, &marker, [task]);
    s.model.script(Lane::DistillSuccess, &marker, [success_report_about(&format!("Goal {marker}"))]);
    session
}

/// Returns how many lessons have this state.
async fn count_lessons(s: &Scenario, state: &str) -> i64 {
    let count = sqlx::query_scalar("select count(*) from lessons where state = $1").bind(state);
    count.fetch_one(&*s.app.app.db).await.unwrap()
}

pub(super) async fn wait_for_lessons(s: &Scenario, state: &str, count: i64) {
    crate::support::wait_until(&format!("{count} lessons are {state}"), async || {
        count_lessons(s, state).await == count
    })
    .await;
}

#[tokio::test]
async fn a_second_lesson_waits_and_continues_the_conversation() {
    in_both_formats(&[], async |s| {
        let learning = Learning { s, space: s.client.new_space().await };
        let first = script_session(&learning, 1).await;
        let latch = Latch::new();
        // The model finishes the first lesson while the second one waits: the run continues with the second.
        learning.script_learner([
            think().create_file("daily-logs", "one.md", "1").finish().after(&latch),
            Step::text("").create_file("daily-logs", "two.md", "2").finish(),
        ]);
        s.while_jobs_run(async {
            latch.wait_for_requests(1).await;
            let second = script_session(&learning, 2).await;
            learning.wait_for_status(&second, "queued").await;
            assert_eq!(learning.status_of(&first).await, "skill_writing");
            latch.release();
            learning.wait_for_status(&first, "completed").await;
            learning.wait_for_status(&second, "completed").await;
            s.app.until_idle().await;
        })
        .await;
        let requests = learning.take_requests(Lane::Learner);
        assert_eq!(requests.len(), 2, "one conversation");
        let texts = requests[1].user_texts();
        assert!(texts.last().unwrap().contains("Goal [[P2]]") && !texts[0].contains("Goal [[P2]]"), "{texts:?}");
        for (file, content) in [("one.md", "1"), ("two.md", "2")] {
            assert_eq!(learning.file("daily-logs", file).await.as_deref(), Some(content));
        }
    })
    .await;
}

#[tokio::test]
async fn many_lessons_are_written_in_order_with_five_in_a_run() {
    in_both_formats(&[], async |s| {
        let learning = Learning { s, space: s.client.new_space().await };
        let latch = Latch::new();
        // While the first lesson is being written, six others arrive.
        learning.script_learner([finish().after(&latch)]);
        learning.script_learner((0..6).map(|_| finish()));
        let mut sessions = vec![script_session(&learning, 0).await];
        s.while_jobs_run(async {
            latch.wait_for_requests(1).await;
            for number in 1..7_usize {
                sessions.push(script_session(&learning, number).await);
                wait_for_lessons(s, "pending", i64::try_from(number).unwrap()).await;
            }
            latch.release();
            wait_for_lessons(s, "written", 7).await;
            s.app.until_idle().await;
        })
        .await;
        let requests = learning.take_requests(Lane::Learner);
        assert_eq!(requests.len(), 7);
        let starts: Vec<_> = requests.iter().map(|request| request.user_texts().len()).collect();
        assert_eq!(starts, [1, 2, 3, 4, 5, 1, 2], "the first run has five lessons");
        for (number, request) in requests.iter().enumerate() {
            let text = request.user_texts().last().unwrap().clone();
            assert!(text.contains(&format!("Goal [[P{number}]]")), "{number}: {text}");
        }
        for session in sessions {
            assert_eq!(learning.status_of(&session).await, "completed");
        }
    })
    .await;
}

#[tokio::test]
async fn a_rejected_lesson_does_not_affect_the_others() {
    in_both_formats(&[], async |s| {
        let learning = Learning { s, space: s.client.new_space().await };
        let latch = Latch::new();
        learning.script_learner([Step::status(400).after(&latch), finish(), finish()]);
        let mut sessions = vec![script_session(&learning, 0).await];
        s.while_jobs_run(async {
            latch.wait_for_requests(1).await;
            for number in 1..3_usize {
                sessions.push(script_session(&learning, number).await);
                wait_for_lessons(s, "pending", i64::try_from(number).unwrap()).await;
            }
            latch.release();
            wait_for_lessons(s, "written", 2).await;
            s.app.until_idle().await;
        })
        .await;
        let mut statuses = Vec::new();
        for session in &sessions {
            statuses.push(learning.status_of(session).await);
        }
        assert_eq!(statuses, ["failed", "completed", "completed"]);
    })
    .await;
}

/// The next lesson cannot be read, or the model rejects it. Then the job of the first lesson completes nevertheless, and the next
/// lesson is written by its own job.
#[tokio::test]
async fn a_failure_of_the_next_lesson_does_not_affect_a_written_one() {
    in_both_formats(&[], async |s| {
        for is_readable in [false, true] {
            let learning = Learning { s, space: s.client.new_space().await };
            let latch = Latch::new();
            learning.script_learner([finish().after(&latch)]);
            if is_readable {
                learning.script_learner([Step::status(400)]);
            }
            let first = script_session(&learning, 1).await;
            let (log, _guard) = CapturedLog::start(Level::WARN);
            let second = s
                .while_jobs_run(async {
                    latch.wait_for_requests(1).await;
                    let second = script_session(&learning, 2).await;
                    wait_for_lessons(s, "pending", 1).await;
                    if is_readable {
                        learning.script_learner([finish()]);
                    } else {
                        s.app.execute("update lessons set content = '\\xff' where state = 'pending'").await;
                    }
                    latch.release();
                    s.app.until_idle().await;
                    second
                })
                .await;
            let count = "select count(*) from jobs where payload ->> 'session' = $1";
            let count = sqlx::query_scalar::<_, i64>(count).bind(&first).fetch_one(&*s.app.app.db);
            assert_eq!(count.await.unwrap(), 0, "the job of the first lesson has completed");
            assert_eq!(learning.status_of(&first).await, "completed");
            if is_readable {
                assert!(log.text().contains("failed to write another lesson of the run"), "{}", log.text());
            } else {
                assert!(log.text().contains("failed to continue a run with the next lesson"), "{}", log.text());
                assert_eq!(learning.status_of(&second).await, "skill_writing");
                s.app.execute("update lessons set content = 'readable' where state = 'pending'").await;
                learning.script_learner([finish()]);
                s.end_backoff().await;
                s.app.drain_jobs().await;
            }
            assert_eq!(learning.status_of(&second).await, "completed");
        }
    })
    .await;
}

/// Sixteen sessions finish together, and each lesson adds a line to the same file.
#[tokio::test]
async fn sessions_that_finish_together_all_leave_their_lesson() {
    in_both_formats(&[], async |s| {
        let learning = Learning { s, space: s.client.new_space().await };
        let mut sessions = Vec::new();
        for number in 0..16 {
            sessions.push(script_session(&learning, number).await);
        }
        let line = |request: &crate::support::model_server::ModelRequest| {
            let text = request.user_texts().last().unwrap().clone();
            let number = text.split("Goal [[P").nth(1).unwrap().split(']').next().unwrap().to_owned();
            if number.is_empty() { panic!("{text}") } else { format!("- lesson {number}\n") }
        };
        learning.script_learner((0..16).map(|number| {
            Step::hook(move |request| {
                let line = line(request);
                if number == 0 {
                    think().create_file("daily-logs", "log.md", &format!("# Log\n{line}")).finish()
                } else {
                    think().replace("daily-logs", "log.md", "# Log\n", &format!("# Log\n{line}")).finish()
                }
            })
        }));
        s.app.drain_jobs().await;
        let log = learning.file("daily-logs", "log.md").await.unwrap();
        let mut lines: Vec<_> = log.lines().skip(1).collect();
        lines.sort_unstable();
        let mut expected: Vec<_> = (0..16).map(|number| format!("- lesson {number}")).collect();
        expected.sort_unstable();
        assert_eq!(lines, expected);
        for session in sessions {
            assert_eq!(learning.status_of(&session).await, "completed");
        }
    })
    .await;
}

/// Two spaces share a skill, and both add a line to the same file at the same time.
#[tokio::test]
async fn two_spaces_with_one_skill_lose_no_edit() {
    in_both_formats(&[], async |s| {
        let spaces = [s.client.new_space().await, s.client.new_space().await];
        let shared = "---\nname: shared\ndescription: d\n---\n";
        let skill = s.client.upload_skill(&[("SKILL.md", shared), ("log.md", "# Log\n")]).await.data();
        let latch = Latch::new();
        for (number, space) in spaces.iter().enumerate() {
            let include = format!("/api/v1/learning_spaces/{space}/skills");
            s.client.post(&include, json!({"skill_id": skill["id"]})).await.assert_status(201);
            let session = s.client.new_session().await;
            learn(&s.client, space, &session).await;
            let marker = format!("[[S{number}]]");
            s.client.store_text(&session, &format!("do it {marker}")).await;
            let task = insert(0, &format!("Task {marker}")).link(1, &[0, 0]).status(1, "success").finish();
            s.model.script(Lane::Task, &marker, [task]);
            s.model.script(Lane::DistillSuccess, &marker, [success_report_about(&format!("Goal {marker}"))]);
            let edit = think().replace("shared", "log.md", "# Log\n", &format!("# Log\n- {number}\n"));
            s.model.script(Lane::Learner, &marker, [edit, finish().after(&latch)]);
        }
        s.while_jobs_run(async {
            latch.wait_for_requests(2).await;
            latch.release();
            wait_for_lessons(s, "written", 2).await;
            s.app.until_idle().await;
        })
        .await;
        let path = format!("/api/v1/agent_skills/{}/file?file_path=log.md", skill["id"].as_str().unwrap());
        let log = s.client.get(&path).await.data()["content"]["raw"].as_str().unwrap().to_owned();
        assert!(log == "# Log\n- 0\n- 1\n" || log == "# Log\n- 1\n- 0\n", "{log}");
    })
    .await;
}

/// A skill is deleted while the model works on it: the other edits are stored, or the lesson is repeated without it.
#[tokio::test]
async fn a_skill_that_is_deleted_during_the_run_does_not_fail_the_lesson() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_finished_task().await;
        learning.script_distillation([success_report()]);
        let latch = Latch::new();
        learning.script_learner([
            think().create_file("user-general-facts", "a.md", "a").create_file("daily-logs", "b.md", "b"),
            finish().after(&latch),
            think().create_file("daily-logs", "b.md", "b"),
            finish(),
        ]);
        let skill = learning.skill("user-general-facts").await["id"].as_str().unwrap().to_owned();
        s.while_jobs_run(async {
            latch.wait_for_requests(1).await;
            s.client.delete(&format!("/api/v1/agent_skills/{skill}")).await.assert_status(200);
            latch.release();
            s.app.until_idle().await;
            s.end_backoff().await;
            s.app.until_idle().await;
        })
        .await;
        assert_eq!(learning.file("daily-logs", "b.md").await.as_deref(), Some("b"));
        assert_eq!(learning.lessons().await, ["written success"]);
    })
    .await;
}

/// Uploads of files to a disk whose skill is being written wait only for the transaction, not for the model.
#[tokio::test]
async fn requests_do_not_wait_for_the_model() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_finished_task().await;
        learning.script_distillation([success_report()]);
        let latch = Latch::new();
        learning.script_learner([think().create_file("daily-logs", "a.md", "a"), finish().after(&latch)]);
        let disk = learning.skill("daily-logs").await["disk_id"].as_str().unwrap().to_owned();
        s.while_jobs_run(async {
            latch.wait_for_requests(1).await;
            let form = Form::new().text("file_path", "/").file("file", "b.md", "b");
            s.client.upload_form(&disk, form).await.assert_status(201);
            assert_eq!(learning.file("daily-logs", "b.md").await.as_deref(), Some("b"));
            latch.release();
            learning.wait_for_status(&s.session, "completed").await;
        })
        .await;
        assert_eq!(learning.file("daily-logs", "a.md").await.as_deref(), Some("a"));
    })
    .await;
}
