//! Learning in encrypted projects.

use acontextd::crypto::ProjectKey;
use serde_json::json;
use tracing::Level;

use super::{Learning, SkillCalls, facts_report, think};
use crate::encryption::{MARK, decrypt, encrypt};
use crate::support::PEPPER;
use crate::support::captured_log::CapturedLog;
use crate::support::model_server::{Lane, Latch};
use crate::task_agent::{Calls, finish, flushed, in_both_formats, insert};

#[tokio::test]
async fn an_encrypted_project_learns_without_leaving_plaintext() {
    in_both_formats(&[], async |s| {
        encrypt(&s.app, &s.client).await;
        let learning = Learning::start(s).await;
        let (log, _guard) = CapturedLog::start(Level::DEBUG);
        let key = s.client.key().trim_start_matches("sk-ac-").to_owned();
        let assert_private = async || {
            for secret in [MARK, &key] {
                let tables = s.app.tables_containing(secret).await;
                assert!(tables.is_empty(), "{tables:?}");
                assert!(!log.text().contains(secret), "{}", log.text());
            }
        };
        s.store(&[&format!("remember {MARK}")]).await;
        s.script([insert(0, "A").link(1, &[0, 0]).status(1, "success").finish()]);
        let (distillation, learner) = (Latch::new(), Latch::new());
        learning.script_distillation([facts_report(&format!("The word is {MARK}.")).after(&distillation)]);
        let write = think().create_file("daily-logs", "word.md", &format!("- {MARK}\n"));
        learning.script_learner([write.after(&learner), finish()]);
        s.while_jobs_run(async {
            assert_eq!(s.flush().await, flushed());
            for latch in [&distillation, &learner] {
                latch.wait_for_requests(1).await;
                assert_private().await;
                let with_key = "select count(*) from jobs where state = 'running' and encrypted_kek is not null";
                assert_eq!(s.app.fetch_scalar::<i64>(with_key).await, 1, "the job has the encrypted key");
                latch.release();
            }
            learning.wait_for_status(&s.session, "completed").await;
            s.app.until_idle().await;
        })
        .await;
        let request = learning.take_requests(Lane::Learner).remove(0);
        assert!(request.user_texts()[0].contains(MARK), "the model gets the lesson");
        assert_eq!(learning.file("daily-logs", "word.md").await, Some(format!("- {MARK}\n")));
        assert_eq!(s.app.fetch_scalar::<i64>("select count(*) from jobs").await, 0, "no job keeps the key");
        let encrypted = "select count(*) from lessons where encrypted_as = id";
        assert_eq!(s.app.fetch_scalar::<i64>(encrypted).await, 1);
        assert_private().await;
    })
    .await;
}

/// Reads the learning status with a key that has no master key. A request with the project's own key would provide the master
/// key.
async fn assert_waits_for_key(learning: &Learning<'_>, status: &str) {
    let app = &learning.s.app;
    let replace_hash = async |hash: &str| {
        sqlx::query("update projects set secret_key_hmac = $1").bind(hash).execute(&*app.app.db).await.unwrap();
        app.clear_key_cache();
    };
    let own_hash = app.fetch_scalar::<String>("select secret_key_hmac from projects").await;
    replace_hash(&ProjectKey::parse("a-legacy-key").lookup_hash(PEPPER)).await;
    let keyless = learning.s.client.with_key("sk-ac-a-legacy-key");
    let sessions = format!("/api/v1/learning_spaces/{}/sessions", learning.space);
    let found = keyless.get(&format!("{sessions}/{}", learning.s.session)).await.data();
    assert_eq!(found["status"], status, "{found}");
    assert!(found["reason"].as_str().is_some_and(|reason| reason.contains("the project's API key")), "{found}");
    assert_eq!(keyless.get(&sessions).await.data()[0], found);
    replace_hash(&own_hash).await;
}

#[tokio::test]
async fn messages_that_wait_for_the_key_are_a_reason() {
    in_both_formats(&[], async |s| {
        encrypt(&s.app, &s.client).await;
        let learning = Learning::start(s).await;
        s.store(&["hello"]).await;
        s.app.execute("update jobs set encrypted_kek = null").await;
        s.app.drain_jobs().await;
        assert_waits_for_key(&learning, "pending").await;
        // A request with the key provides it.
        assert!(learning.get(&s.session).await.get("reason").is_none());
        s.script([finish()]);
        s.app.drain_jobs().await;
        assert_eq!(learning.status().await, "completed");
    })
    .await;
}

#[tokio::test]
async fn a_lesson_waits_for_the_key_and_is_converted_with_the_project() {
    in_both_formats(&[], async |s| {
        encrypt(&s.app, &s.client).await;
        let learning = Learning::start(s).await;
        s.store(&[&format!("remember {MARK}")]).await;
        s.script([insert(0, "A").link(1, &[0, 0]).status(1, "success").finish()]);
        learning.script_distillation([facts_report(&format!("The word is {MARK}."))]);
        s.app
            .execute(
                "create function remove_key() returns trigger language plpgsql as
                     $$ begin new.encrypted_kek = null; return new; end $$",
            )
            .await;
        s.app
            .execute(
                "create trigger remove_key before insert on jobs for each row when (new.kind = 'write_lesson')
                 execute function remove_key()",
            )
            .await;
        s.app.drain_jobs().await;
        s.app.execute("drop trigger remove_key on jobs").await;
        let found = learning.lessons().await;
        assert_eq!(found, ["pending facts"], "the lesson waits for the key");
        let job = s.jobs().await.remove(0);
        assert_eq!((&job["kind"], &job["wait_reason"]), (&json!("write_lesson"), &json!("key")));
        assert_waits_for_key(&learning, "skill_writing").await;
        // A request for the status provides it.
        learning.script_learner([finish()]);
        let status = learning.get(&s.session).await;
        assert_eq!(status["status"], "skill_writing", "{status}");
        s.app.drain_jobs().await;
        assert_eq!(learning.status().await, "completed");
        decrypt(&s.app, &s.client).await;
        let text = "select convert_from(content, 'UTF8') from lessons where encrypted_as is null";
        assert_eq!(
            s.app.fetch_scalar::<String>(text).await,
            format!("Facts\nSubject: Facts\nFacts:\n  - The word is {MARK}.")
        );
    })
    .await;
}
