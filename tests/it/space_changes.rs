//! The list of the changes of a learning space's skills.

use std::collections::BTreeSet;

use acontextd::crypto::ProjectKey;
use acontextd::disks::apply::Change;
use acontextd::disks::changes::Cause;
use acontextd::encryption::{Kek, value};
use acontextd::ids::{LearningSpaceId, LessonId, MessageId, ProjectId, SessionId, TaskId};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::changes::{LEARNER, Skill, change, path};
use crate::support::client::Client;
use crate::support::statements::count_statements;
use crate::support::{PEPPER, TestApp, run};

/// A learning space with a skill that is not a default skill.
struct Space<'a> {
    client: Client,
    id: String,
    skill: Skill<'a>,
}

impl<'a> Space<'a> {
    async fn create(app: &'a TestApp) -> Self {
        let client = app.project().await;
        let id = client.new_space().await;
        let skill = Skill::create(app, &client, "kit").await;
        let space = Self { client, id, skill };
        space.include(&space.skill.id).await;
        space
    }

    async fn include(&self, skill: &str) {
        let path = format!("/api/v1/learning_spaces/{}/skills", self.id);
        self.client.post(&path, json!({"skill_id": skill})).await.assert_status(201);
    }

    fn url(&self, query: &str) -> String {
        format!("/api/v1/learning_spaces/{}/changes?{query}", self.id)
    }

    async fn list(&self, query: &str) -> Vec<Value> {
        let response = self.client.get(&self.url(query)).await;
        response.assert_status(200);
        response.data()["items"].as_array().unwrap().clone()
    }

    /// Returns the cause of a change that is learned from a new task of a session.
    async fn learn_from(&self, session: &str) -> Cause<'static> {
        let session = SessionId(session.parse().unwrap());
        let task: TaskId = sqlx::query_scalar(
            r#"insert into tasks (session_id, project_id, "order", data, status)
               select $1, $2, count(*) + 1, '{}', 'success' from tasks where session_id = $1 returning id"#,
        )
        .bind(session)
        .bind(self.client.project())
        .fetch_one(&*self.skill.app.app.db)
        .await
        .unwrap();
        let space = LearningSpaceId(self.id.parse().unwrap());
        Cause {
            model: Some("a-model"),
            learning_space: Some(space),
            session: Some(session),
            task: Some(task),
            lesson: Some(LessonId::new()),
            ..LEARNER
        }
    }

    async fn insert_lesson(&self, cause: &Cause<'_>, content: &[u8], encrypted_as: Option<Uuid>) {
        sqlx::query(
            "insert into lessons
                 (id, project_id, learning_space_id, session_id, task_id, ended_at, state, kind, content, encrypted_as)
             values ($1, $2, $3, $4, $5, now(), 'written', 'success', $6, $7)",
        )
        .bind(cause.lesson)
        .bind(self.client.project())
        .bind(cause.learning_space)
        .bind(cause.session)
        .bind(cause.task)
        .bind(content)
        .bind(encrypted_as)
        .execute(&*self.skill.app.app.db)
        .await
        .unwrap();
    }
}

fn ids(items: &[Value]) -> Vec<String> {
    items.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_learned_change_names_its_lesson_and_evidence() {
    run(async |app| {
        let space = Space::create(&app).await;
        let session = space.client.new_session().await;
        let messages = [MessageId::new(), MessageId::new()];
        let cause = Cause { messages: &messages, ..space.learn_from(&session).await };
        space.insert_lesson(&cause, "Check twice.".as_bytes(), None).await;
        let skill = &space.skill;
        let changes = [
            skill.put("/scripts/run.py", "pass", None).await,
            change("/scripts/run.py", Change::Move { to: path("/run.py") }),
        ];
        let id = skill.apply(cause, &changes).await.unwrap();
        let version = async |path: &str| {
            let sql = "select id from artifact_versions where path = $1 and filename = 'run.py'";
            sqlx::query_scalar::<_, Uuid>(sql).bind(path).fetch_one(&*app.app.db).await.unwrap()
        };
        let mut items = space.list("limit=1").await;
        assert!(items[0].as_object_mut().unwrap().remove("at").unwrap().is_string());
        let mut expected = json!({
            "id": id, "actor": "learner", "skill_id": skill.id, "skill_name": "kit",
            "files": [
                {"path": "scripts/run.py", "op": "create", "version_id": version("/scripts/").await},
                {"path": "run.py", "op": "move", "from_path": "scripts/run.py", "version_id": version("/").await},
            ],
            "lesson": {"id": cause.lesson, "kind": "success", "text": "Check twice."},
            "task_id": cause.task, "session_id": cause.session, "message_ids": messages, "model": "a-model",
        });
        assert_eq!(items, [expected.clone()]);
        space.client.delete(&format!("/api/v1/session/{session}")).await.assert_status(200);
        let mut items = space.list("limit=1").await;
        items[0].as_object_mut().unwrap().remove("at");
        expected["lesson"] = Value::Null;
        assert_eq!(items, [expected], "the lesson is deleted with its session");
    })
    .await;
}

#[tokio::test]
async fn a_space_lists_its_own_changes_and_the_requests_of_its_skills() {
    run(async |app| {
        let space = Space::create(&app).await;
        let (client, skill) = (&space.client, &space.skill);
        let actors = async |query: &str| {
            let items = space.list(query).await;
            let names = items.iter().map(|item| format!("{} {}", item["actor"], item["skill_name"]).replace('"', ""));
            names.collect::<Vec<_>>()
        };
        let created = ["key kit", "key user-general-facts", "key daily-logs"];
        assert_eq!(actors("").await, created);
        let other_skill = Skill::create(&app, client, "elsewhere").await;
        let session = client.new_session().await;
        let cause = space.learn_from(&session).await;
        skill.apply(cause, &[skill.put("/a.md", "a", None).await]).await;
        // A change that another space has learned belongs to that space only.
        let other_space = Cause { learning_space: Some(LearningSpaceId::new()), ..cause };
        skill.apply(other_space, &[skill.put("/a.md", "b", None).await]).await;
        other_skill.apply(cause, &[other_skill.put("/a.md", "c", None).await]).await;
        client.upload(&skill.disk.to_string(), "/", "notes.md", "by request").await;
        let learned = ["key kit", "learner elsewhere", "learner kit"];
        assert_eq!(actors("").await, [&learned[..], &created[..]].concat());
        // The requests of a skill belong to the space while the skill is in it, and what the space has learned always does.
        let path = format!("/api/v1/learning_spaces/{}/skills/{}", space.id, skill.id);
        client.delete(&path).await.assert_status(200);
        assert_eq!(actors("").await, [&learned[1..], &created[1..]].concat());
        client.delete(&format!("/api/v1/agent_skills/{}", other_skill.id)).await.assert_status(200);
        assert_eq!(actors("").await, [&learned[2..], &created[1..]].concat());
    })
    .await;
}

#[tokio::test]
async fn changes_are_filtered_by_skill_session_and_task() {
    run(async |app| {
        let space = Space::create(&app).await;
        let skill = &space.skill;
        let sessions = [space.client.new_session().await, space.client.new_session().await];
        let mut learned = Vec::new();
        for session in [&sessions[0], &sessions[0], &sessions[1]] {
            let cause = space.learn_from(session).await;
            let id = skill.apply(cause, &[skill.put("/a.md", session, None).await]).await.unwrap().to_string();
            learned.push((cause.task.unwrap(), id));
        }
        let filtered = async |query: String| ids(&space.list(&query).await);
        let [(first_task, first), (_, second), (_, third)] = &learned[..] else { panic!("three changes") };
        let (first, second, third) = (first.as_str(), second.as_str(), third.as_str());
        assert_eq!(filtered(format!("session_id={}", sessions[0])).await, [second, first]);
        assert_eq!(filtered(format!("session_id={}&time_desc=false", sessions[0])).await, [first, second]);
        assert_eq!(filtered(format!("task_id={first_task}")).await, [first]);
        assert_eq!(filtered(format!("task_id={first_task}&session_id={}", sessions[1])).await, [] as [&str; 0]);
        let of_skill = filtered(format!("skill_id={}", skill.id)).await;
        assert_eq!(of_skill[..3], [third, second, first]);
        assert_eq!(of_skill.len(), 4, "and its upload");
        assert_eq!(filtered(format!("skill_id={}", Uuid::now_v7())).await, [] as [&str; 0]);
        assert_eq!(filtered("skill_id=&session_id=&task_id=".to_owned()).await.len(), 6);
        for name in ["skill_id", "session_id", "task_id", "cursor", "limit"] {
            space.client.get(&space.url(&format!("{name}=x"))).await.assert_error(400, name);
        }
    })
    .await;
}

#[tokio::test]
async fn pages_of_changes_have_no_gaps_and_need_no_statement_per_change() {
    run(async |app| {
        let space = Space::create(&app).await;
        let session = space.client.new_session().await;
        let statements = async |query: &str| {
            let url = space.url(query);
            count_statements(async { space.client.get(&url).await.assert_status(200) }).await.total
        };
        statements("").await;
        let few = statements("limit=1").await;
        for n in 0..10 {
            let cause = if n % 3 == 0 { Cause::REQUEST } else { space.learn_from(&session).await };
            space.skill.apply(cause, &[space.skill.put("/a.md", &n.to_string(), None).await]).await;
        }
        assert_eq!(statements("limit=200").await, few);
        let all = ids(&space.list("limit=200").await);
        assert_eq!(all.len(), 13);
        let sorted: BTreeSet<_> = all.iter().rev().cloned().collect();
        assert_eq!(sorted.into_iter().rev().collect::<Vec<_>>(), all, "newest first");
        for (limit, newest_first) in [(1, true), (4, true), (13, true), (1, false), (5, false)] {
            let (mut found, mut cursor) = (Vec::new(), String::new());
            loop {
                let url = space.url(&format!("limit={limit}&time_desc={newest_first}&cursor={cursor}"));
                let page = space.client.get(&url).await.data();
                found.extend(ids(page["items"].as_array().unwrap()));
                let Some(next) = page["next_cursor"].as_str() else { break };
                next.clone_into(&mut cursor);
            }
            if !newest_first {
                found.reverse();
            }
            assert_eq!(found, all, "limit {limit}, newest first: {newest_first}");
        }
    })
    .await;
}

#[tokio::test]
async fn changes_of_another_project_are_not_listed() {
    run(async |app| {
        let (space, other) = (Space::create(&app).await, Space::create(&app).await);
        other.client.get(&space.url("")).await.assert_error(404, "learning space not found");
        assert_eq!(other.list(&format!("skill_id={}", space.skill.id)).await, [] as [Value; 0]);
        let (own, theirs) = (ids(&space.list("").await), ids(&other.list("").await));
        assert_eq!((own.len(), theirs.len()), (3, 3));
        assert!(own.iter().all(|id| !theirs.contains(id)));
    })
    .await;
}

#[tokio::test]
async fn the_changes_of_an_encrypted_project_require_its_key() {
    run(async |app| {
        let space = Space::create(&app).await;
        let client = &space.client;
        let key = ProjectKey::parse(client.key().strip_prefix("sk-ac-").unwrap());
        let kek = Kek::new(ProjectId(client.project()), key.master_key(PEPPER).unwrap().unwrap()).unwrap();
        let cause = space.learn_from(&client.new_session().await).await;
        let encrypted_as = Uuid::now_v7();
        let encrypted = value::encrypt(&kek, encrypted_as, b"Check twice.").unwrap();
        space.insert_lesson(&cause, &encrypted, Some(encrypted_as)).await;
        space.skill.apply(cause, &[space.skill.put("/a.md", "a", None).await]).await;
        client.post("/api/v1/project/encrypt", json!({})).await.assert_status(200);
        app.drain_jobs().await;
        let items = space.list("").await;
        assert_eq!(items[0]["lesson"]["text"], "Check twice.");
        app.execute(
            "update lessons set content =
                 set_byte(content, length(content) - 1, get_byte(content, length(content) - 1) # 1)",
        )
        .await;
        let items = space.list("").await;
        assert_eq!(items[0]["lesson"]["text"], "This lesson cannot be displayed because its stored text is corrupt.");

        // The same project with a key that has no master key.
        let keyless = app.replace_with_keyless(client).await;
        for query in ["", "skill_id=00000000-0000-0000-0000-000000000001"] {
            let response = keyless.get(&space.url(query)).await;
            response.assert_error(403, "encryption enabled, API key required");
            assert_eq!(response.json()["error"], "ENCRYPTION_KEY_REQUIRED");
        }
    })
    .await;
}
