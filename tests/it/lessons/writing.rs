//! The skill agent: what it reads, and what is stored.

use serde_json::json;
use tracing::Level;

use super::{Learning, SkillCalls, facts_report, success_report, success_report_about, think};
use crate::support::captured_log::CapturedLog;
use crate::support::client::Form;
use crate::support::model_server::{Lane, Latch, Step};
use crate::support::zip::zip_archive;
use crate::task_agent::{Calls, finish, in_both_formats, insert};

const NEW_SKILL: &str = "---\nname: Data Pipelines\ndescription: How pipelines are built.\n---\n# Pipelines\n";

#[tokio::test]
async fn a_lesson_becomes_a_file_of_a_skill() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_finished_task().await;
        learning.script_distillation([success_report()]);
        let read = Step::call("get_skill", json!({"skill_name": "daily-logs"})).read("daily-logs", "SKILL.md");
        let write = think().create_file("daily-logs", "2025-06-15.md", "# 2025-06-15\n\n## Did A\n");
        learning.script_learner([read, write, finish()]);
        let before = learning.skill("daily-logs").await["updated_at"].as_str().unwrap().to_owned();
        s.app.drain_jobs().await;
        assert_eq!(learning.status().await, "completed");
        assert_eq!(learning.file("daily-logs", "2025-06-15.md").await.as_deref(), Some("# 2025-06-15\n\n## Did A\n"));
        let skill = learning.skill("daily-logs").await;
        assert!(skill["updated_at"].as_str().unwrap() > before.as_str(), "clients fetch the changed skill");
        let requests = learning.take_requests(Lane::Learner);
        let first = &requests[0].user_texts()[0];
        assert!(first.contains("Goal: A") && first.contains("daily-logs") && first.contains("SKILL.md"), "{first}");
        let results = requests[1].last_results();
        assert!(results[1].contains("# Daily logs"), "{results:?}");
        assert_eq!(learning.lessons().await, ["written success"]);
    })
    .await;
}

#[tokio::test]
async fn preferences_are_written_without_a_distillation() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        s.store(&["I like tea and run every morning"]).await;
        let preference = |text: &str| json!({"preference": text});
        s.script([Step::call("submit_user_preference", preference("The user likes tea."))
            .and_call("submit_user_preference", preference("The user runs every morning."))
            .finish()]);
        let write = think().create_file("user-general-facts", "habits.md", "# Habits\n\n- The user runs.\n");
        learning.script_learner([write, finish()]);
        s.app.drain_jobs().await;
        let requests = s.model.take_requests();
        assert!(requests.iter().all(|request| request.lane != Lane::DistillSuccess));
        let learner = requests.iter().find(|request| request.lane == Lane::Learner).unwrap();
        let first = &learner.user_texts()[0];
        assert!(first.contains("The user likes tea.") && first.contains("The user runs every morning."), "{first}");
        assert!(learning.file("user-general-facts", "habits.md").await.is_some());
        assert_eq!(learning.lessons().await, ["written preferences"]);
    })
    .await;
}

#[tokio::test]
async fn a_new_skill_belongs_to_the_space_and_its_user() {
    in_both_formats(&[], async |s| {
        let space = s.client.post("/api/v1/learning_spaces", json!({"user": "anna"})).await.data();
        let learning = Learning { s, space: space["id"].as_str().unwrap().to_owned() };
        learning.learn(&s.session).await;
        learning.script_finished_task().await;
        learning.script_distillation([success_report()]);
        let create = think()
            .create_skill(NEW_SKILL)
            .create_skill("---\ndescription: no name\n---\n")
            .create_skill("# not YAML\n")
            .create_skill(NEW_SKILL)
            .create_file("Data-Pipelines", "steps/load.md", "# Load\n");
        learning.script_learner([create, finish()]);
        s.app.drain_jobs().await;
        let results = learning.take_requests(Lane::Learner)[1].last_results();
        assert!(results[2].contains("name") && results[3].contains("SKILL.md"), "{results:?}");
        assert!(results[4].contains("Data-Pipelines"), "the name is taken: {results:?}");
        let skill = learning.skill("Data-Pipelines").await;
        assert_eq!((&skill["description"], &skill["user_id"]), (&json!("How pipelines are built."), &space["user_id"]));
        assert_eq!(learning.file("Data-Pipelines", "SKILL.md").await.as_deref(), Some(NEW_SKILL));
        assert_eq!(learning.file("Data-Pipelines", "steps/load.md").await.as_deref(), Some("# Load\n"));
    })
    .await;
}

#[tokio::test]
async fn edits_of_files_are_stored_and_their_old_contents_kept() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        let files =
            [("SKILL.md", "---\nname: tools\ndescription: old\n---\n"), ("scripts/a.py", "print(1)\n"), ("c.md", "c")];
        let form = Form::new().file("file", "tools.zip", zip_archive(&files));
        let skill = s.client.upload_skill_form(form).await.data()["id"].as_str().unwrap().to_owned();
        let include = format!("/api/v1/learning_spaces/{}/skills", learning.space);
        s.client.post(&include, json!({"skill_id": skill})).await.assert_status(201);
        learning.script_finished_task().await;
        learning.script_distillation([success_report()]);
        let edit = think()
            .read("tools", "scripts/a.py")
            .replace("tools", "SKILL.md", "description: old", "description: new")
            .replace("tools", "SKILL.md", "name: tools", "name: other")
            .create_file("tools", "notes/b.md", "b")
            .move_file("tools", "scripts/a.py", "bin/a.py")
            .delete_file("tools", "c.md");
        learning.script_learner([edit, finish()]);
        s.app.drain_jobs().await;
        let results = learning.take_requests(Lane::Learner)[1].last_results();
        assert!(results[1].contains("print(1)"), "{results:?}");
        assert_eq!(learning.skill("tools").await["description"], "new");
        let text = learning.file("tools", "SKILL.md").await.unwrap();
        assert!(text.contains("name: tools\ndescription: new"), "{text}");
        assert_eq!(learning.file("tools", "notes/b.md").await.as_deref(), Some("b"));
        assert_eq!(learning.file("tools", "bin/a.py").await.as_deref(), Some("print(1)\n"));
        assert_eq!((learning.file("tools", "scripts/a.py").await, learning.file("tools", "c.md").await), (None, None));
        let versions =
            "select string_agg(path || filename || case when to_revision is null then '' else ' old' end, ', '
                        order by path, filename, from_revision) from artifact_versions v
                        join agent_skills s on s.disk_id = v.disk_id where s.name = 'tools'";
        assert_eq!(
            s.app.fetch_scalar::<String>(versions).await,
            "/SKILL.md old, /SKILL.md, /c.md old, /bin/a.py, /notes/b.md, /scripts/a.py old"
        );
    })
    .await;
}

#[tokio::test]
async fn the_date_of_the_session_is_used() {
    in_both_formats(&[], async |s| {
        for (date, expected) in [
            ("2023-05-06", Some("2023-05-06")),
            ("2023/05/08 (Mon) 13:56", Some("2023-05-08")),
            ("soon", None),
            ("", None),
        ] {
            let session = s.client.post("/api/v1/session", json!({"configs": {"original_date": date}})).await.data();
            let session = session["id"].as_str().unwrap();
            let learning = Learning { s, space: s.client.new_space().await };
            learning.learn(session).await;
            s.client.store_text(session, "do A").await;
            s.script([insert(0, "A").link(1, &[0, 0]).status(1, "success").finish()]);
            learning.script_distillation([success_report()]);
            learning.script_learner([finish()]);
            s.app.drain_jobs().await;
            let first = learning.take_requests(Lane::Learner)[0].user_texts()[0].clone();
            let today = chrono::Utc::now().format("%Y-%m-%d").to_string();
            assert!(first.contains(expected.unwrap_or(&today)), "{date}: {first}");
            assert_eq!(learning.status_of(session).await, "completed");
        }
    })
    .await;
}

/// Learning the same lesson again: the model sees the entry that the first run wrote, and nothing changes.
#[tokio::test]
async fn a_known_lesson_changes_nothing() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        let entry = "## First X, then Y\n- Principle: X before Y.\n";
        let mut contents = Vec::new();
        for number in 0..10 {
            let session = if number == 0 { s.session.clone() } else { s.client.new_session().await };
            if number > 0 {
                learning.learn(&session).await;
            }
            s.client.store_text(&session, "do A").await;
            s.script([insert(0, "A").link(1, &[0, 0]).status(1, "success").finish()]);
            learning.script_distillation([success_report()]);
            if number == 0 {
                learning.script_learner([
                    think().create_skill(NEW_SKILL).create_file("Data-Pipelines", "order.md", entry),
                    finish(),
                ]);
            } else {
                learning.script_learner([Step::text("").read("Data-Pipelines", "order.md"), finish()]);
            }
            s.app.drain_jobs().await;
            let requests = learning.take_requests(Lane::Learner);
            if number > 0 {
                assert!(requests[0].user_texts()[0].contains("order.md"));
                assert!(requests[1].last_results()[0].contains(entry), "{:?}", requests[1].last_results());
            }
            assert_eq!(learning.status_of(&session).await, "completed");
            contents.push((learning.file("Data-Pipelines", "order.md").await, learning.skills().await));
        }
        assert!(contents.windows(2).all(|pair| pair[0] == pair[1]));
    })
    .await;
}

#[tokio::test]
async fn a_run_ends_after_its_maximum_number_of_calls() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_finished_task().await;
        learning.script_distillation([success_report()]);
        learning.script_learner(
            (0..24).map(|n| if n == 0 { think().create_file("daily-logs", "a.md", "a") } else { think() }),
        );
        s.app.drain_jobs().await;
        assert_eq!(learning.take_requests(Lane::Learner).len(), 24);
        assert_eq!(learning.status().await, "completed");
        assert_eq!(learning.file("daily-logs", "a.md").await.as_deref(), Some("a"));
        let lessons = learning.lessons().await;
        assert!(
            lessons[0].starts_with("written success: ") && lessons[0].contains("SKILL_LEARN_AGENT_MAX_ITERATIONS"),
            "{lessons:?}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_model_that_calls_no_tool_is_reminded_once() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_finished_task().await;
        learning.script_distillation([success_report()]);
        let question = || Step::text("Which skill do you mean?");
        learning.script_learner([question(), think().create_file("daily-logs", "a.md", "a"), Step::text("Done.")]);
        s.app.drain_jobs().await;
        let requests = learning.take_requests(Lane::Learner);
        assert_eq!(requests.len(), 3, "after an edit, a text ends the lesson");
        let texts = requests[1].user_texts();
        assert!(texts.len() == 2 && texts[1].contains("called no tool") && texts[1].contains("`finish`"), "{texts:?}");
        assert_eq!(learning.file("daily-logs", "a.md").await.as_deref(), Some("a"));
        assert_eq!(learning.lessons().await, ["written success"]);

        s.store(&["do B"]).await;
        s.script([insert(1, "B").link(2, &[0, 0]).status(2, "success").finish()]);
        learning.script_distillation([success_report()]);
        learning.script_learner([question(), question()]);
        let (log, _guard) = CapturedLog::start(Level::WARN);
        s.app.drain_jobs().await;
        assert_eq!(learning.take_requests(Lane::Learner).len(), 2, "the model is reminded once");
        let reason = "the model ended its work without calling `finish`";
        assert_eq!(learning.lessons().await[1], format!("written success: {reason}"));
        let found = learning.get(&s.session).await;
        assert_eq!((&found["status"], &found["reason"]), (&json!("completed"), &json!(reason)));
        assert!(log.text().contains("although it was reminded") && log.text().contains("test-model"), "{}", log.text());
    })
    .await;
}

/// A request with the project's key changes a file while the model works.
#[tokio::test]
async fn edits_are_applied_to_a_changed_file_or_repeated() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        let disk = learning.skill("daily-logs").await["disk_id"].as_str().unwrap().to_owned();
        let put = async |text: &str| {
            let form = Form::new().text("file_path", "/").file("file", "log.md", text);
            s.client.upload_form(&disk, form).await.assert_status(201);
        };
        put("one\ntwo\n").await;
        learning.script_finished_task().await;
        learning.script_distillation([success_report()]);
        // The file gets another line: the replacement still fits.
        let latch = Latch::new();
        learning.script_learner([
            think().read("daily-logs", "log.md").replace("daily-logs", "log.md", "two", "2"),
            finish().after(&latch),
        ]);
        s.while_jobs_run(async {
            latch.wait_for_requests(1).await;
            put("zero\none\ntwo\n").await;
            latch.release();
            learning.wait_for_status(&s.session, "completed").await;
        })
        .await;
        assert_eq!(learning.file("daily-logs", "log.md").await.as_deref(), Some("zero\none\n2\n"));
        // The line is replaced: the lesson is repeated with the new text.
        s.store(&["do B"]).await;
        s.script([insert(1, "B").link(2, &[0, 0]).status(2, "success").finish()]);
        learning.script_distillation([success_report_about("B")]);
        let latch = Latch::new();
        learning.script_learner([
            think().read("daily-logs", "log.md").replace("daily-logs", "log.md", "one", "1"),
            finish().after(&latch),
            think().read("daily-logs", "log.md").replace("daily-logs", "log.md", "uno", "1"),
            finish(),
        ]);
        s.while_jobs_run(async {
            latch.wait_for_requests(1).await;
            put("zero\nuno\n2\n").await;
            latch.release();
            s.app.until_idle().await;
            s.end_backoff().await;
            s.app.until_idle().await;
        })
        .await;
        assert_eq!(learning.file("daily-logs", "log.md").await.as_deref(), Some("zero\n1\n2\n"));
        assert_eq!(learning.lessons().await, ["written success", "written success"]);
    })
    .await;
}

#[tokio::test]
async fn a_secret_is_not_written() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_finished_task().await;
        let secret = concat!("sk-", "proj-abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGH");
        learning.script_distillation([
            facts_report(&format!("The key is {secret}.")),
            facts_report("The key is in LLM_API_KEY."),
        ]);
        let write = think().create_file("daily-logs", "keys.md", &format!("key: {secret}"));
        learning.script_learner([write, finish()]);
        s.app.drain_jobs().await;
        assert_eq!(learning.file("daily-logs", "keys.md").await, None);
        let requests = learning.take_requests(Lane::Learner);
        assert!(!requests[0].user_texts()[0].contains(secret));
        assert_eq!(learning.lessons().await, ["written facts"]);
    })
    .await;
}
