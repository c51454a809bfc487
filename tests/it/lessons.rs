//! Learning with the scripted model: finished tasks become lessons, and lessons become files of skills. Every scenario runs with
//! both APIs of the scripted model, through the real clients, job runner and routes.

mod concurrency;
mod distillation;
mod encrypted;
mod failures;
mod interruptions;
mod long_lessons;
mod status;
mod writing;

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::model_server::{Lane, ModelRequest, Step};
use crate::support::wait_until;
use crate::task_agent::{Calls, Scenario, calls, insert};

/// The end of the reason of a failure that a client can do something about.
const TRY_AGAIN: &str = "; a flush of the session tries it again";

/// A learning space that learns from the session of a scenario.
struct Learning<'a> {
    s: &'a Scenario,
    space: String,
}

impl<'a> Learning<'a> {
    /// Creates a space that learns from the session.
    async fn start(s: &'a Scenario) -> Self {
        let space = s.client.new_space().await;
        let learning = Self { s, space };
        learning.learn(&s.session).await;
        learning
    }

    async fn learn(&self, session: &str) {
        learn(&self.s.client, &self.space, session).await;
    }

    fn script_distillation(&self, steps: impl IntoIterator<Item = Step>) {
        self.s.model.script(Lane::DistillSuccess, "", steps);
    }

    fn script_learner(&self, steps: impl IntoIterator<Item = Step>) {
        self.s.model.script(Lane::Learner, "", steps);
    }

    /// Stores a message, and lets the task agent finish the task `A` with it. Does not run the jobs.
    async fn script_finished_task(&self) {
        self.s.store(&["do A"]).await;
        self.s.script([finished_task("A")]);
    }

    /// Stores a message, and lets the task agent begin the task `A` with it and submit a preference. Does not run the jobs.
    async fn script_running_task_with_preference(&self) {
        self.s.store(&["do A, and I like tea"]).await;
        let preference = json!({"preference": "The user likes tea."});
        let running = insert(0, "A").link(1, &[0, 0]).status(1, "running");
        self.s.script([running.and_call("submit_user_preference", preference).finish()]);
    }

    /// Deletes the space, or else the session.
    async fn delete(&self, deletes_space: bool) {
        let path = if deletes_space {
            format!("/api/v1/learning_spaces/{}", self.space)
        } else {
            format!("/api/v1/session/{}", self.s.session)
        };
        self.s.client.delete(&path).await.assert_status(200);
    }

    async fn status(&self) -> String {
        self.status_of(&self.s.session).await
    }

    async fn status_of(&self, session: &str) -> String {
        self.get(session).await["status"].as_str().unwrap().to_owned()
    }

    async fn get(&self, session: &str) -> Value {
        let path = format!("/api/v1/learning_spaces/{}/sessions/{session}", self.space);
        self.s.client.get(&path).await.data()
    }

    /// Returns the sessions of the space.
    async fn list(&self) -> Vec<Value> {
        let path = format!("/api/v1/learning_spaces/{}/sessions", self.space);
        self.s.client.get(&path).await.data().as_array().unwrap().clone()
    }

    async fn wait_for_status(&self, session: &str, status: &str) {
        wait_until(&format!("the status is {status}"), async || self.status_of(session).await == status).await;
    }

    /// Returns the text of a file of a skill; `None` if the file does not exist.
    async fn file(&self, skill: &str, path: &str) -> Option<String> {
        let skill = self.skill(skill).await["id"].as_str().unwrap().to_owned();
        let response = self.s.client.get(&format!("/api/v1/agent_skills/{skill}/file?file_path={path}")).await;
        (response.status == 200).then(|| response.data()["content"]["raw"].as_str().unwrap().to_owned())
    }

    /// Returns the skill of the space with this name.
    async fn skill(&self, name: &str) -> Value {
        let skills = self.skills().await;
        skills
            .iter()
            .find(|skill| skill["name"] == name)
            .unwrap_or_else(|| panic!("no skill {name}: {skills:?}"))
            .clone()
    }

    async fn skills(&self) -> Vec<Value> {
        let path = format!("/api/v1/learning_spaces/{}/skills", self.space);
        self.s.client.get(&path).await.data().as_array().unwrap().clone()
    }

    /// Returns the state, kind and reason of each lesson, oldest first.
    async fn lessons(&self) -> Vec<String> {
        let lessons = "select state || ' ' || coalesce(kind, '-') || coalesce(': ' || reason, '') from lessons order by created_at, id";
        sqlx::query_scalar(lessons).fetch_all(&*self.s.app.app.db).await.unwrap()
    }

    /// Returns the requests of a lane, and removes all requests.
    fn take_requests(&self, lane: Lane) -> Vec<ModelRequest> {
        self.s.model.take_requests().into_iter().filter(|request| request.lane == lane).collect()
    }
}

async fn learn(client: &Client, space: &str, session: &str) {
    let path = format!("/api/v1/learning_spaces/{space}/learn");
    client.post(&path, json!({"session_id": session})).await.assert_status(201);
}

/// A response of the task agent that inserts a task, links the first message to it, and finishes it.
fn finished_task(description: &str) -> Step {
    insert(0, description).link(1, &[0, 0]).status(1, "success").finish()
}

fn success_report() -> Step {
    success_report_about("A")
}

fn success_report_about(goal: &str) -> Step {
    Step::call(
        "report_success_analysis",
        json!({"task_goal": goal, "approach": "Step by step.", "key_decisions": ["First X."],
               "generalizable_pattern": "X, then Y.", "applies_when": "Always."}),
    )
}

fn facts_report(fact: &str) -> Step {
    Step::call("report_factual_content", json!({"task_goal": "Facts", "facts": [fact]}))
}

fn failure_report() -> Step {
    Step::call(
        "report_failure_analysis",
        json!({"task_goal": "A", "failure_point": "the failure point", "flawed_reasoning": "the flawed reasoning",
               "what_should_have_been_done": "the better way", "prevention_principle": "the prevention",
               "applies_when": "the condition"}),
    )
}

fn think() -> Step {
    calls().think()
}

/// Calls of the skill agent.
trait SkillCalls {
    fn think(self) -> Self;
    fn create_file(self, skill: &str, path: &str, content: &str) -> Self;
    fn replace(self, skill: &str, path: &str, old: &str, new: &str) -> Self;
    fn read(self, skill: &str, path: &str) -> Self;
    fn create_skill(self, skill_md: &str) -> Self;
    fn delete_file(self, skill: &str, path: &str) -> Self;
    fn move_file(self, skill: &str, from: &str, to: &str) -> Self;
}

impl SkillCalls for Step {
    fn think(self) -> Self {
        self.and_call("report_thinking", json!({"thinking": "a plan"}))
    }

    fn create_file(self, skill: &str, path: &str, content: &str) -> Self {
        self.and_call("create_skill_file", json!({"skill_name": skill, "file_path": path, "content": content}))
    }

    fn replace(self, skill: &str, path: &str, old: &str, new: &str) -> Self {
        let arguments = json!({"skill_name": skill, "file_path": path, "old_string": old, "new_string": new});
        self.and_call("str_replace_skill_file", arguments)
    }

    fn read(self, skill: &str, path: &str) -> Self {
        self.and_call("get_skill_file", json!({"skill_name": skill, "file_path": path}))
    }

    fn create_skill(self, skill_md: &str) -> Self {
        self.and_call("create_skill", json!({"skill_md_content": skill_md}))
    }

    fn delete_file(self, skill: &str, path: &str) -> Self {
        self.and_call("delete_skill_file", json!({"skill_name": skill, "file_path": path}))
    }

    fn move_file(self, skill: &str, from: &str, to: &str) -> Self {
        let arguments = json!({"skill_name": skill, "source_path": from, "destination_path": to});
        self.and_call("mv_skill_file", arguments)
    }
}
