//! A valid request for each operation of the API description, for tests that cover every operation. A new operation
//! fails these tests until it has a request here.

use acontextd::features::ACCESS_RULES;
use axum::body::Body;
use axum::http::{Method, header};
use serde_json::{Value, json};
use uuid::Uuid;

use super::TestApp;
use super::client::{Client, Form, TestResponse};
use super::document;
use super::zip::zip_archive;

/// Returns the operations of the API description, such as `POST /api/v1/disk`.
pub fn operations() -> Vec<String> {
    let document = serde_json::to_value(document()).unwrap();
    let paths = document["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, item)| {
        item.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    operations.collect()
}

/// A request that succeeds when it is sent for the first time.
pub struct SampleRequest {
    pub client: Client,
    pub method: Method,
    pub path: String,
    /// The content type and the bytes.
    pub body: (String, Vec<u8>),
}

impl SampleRequest {
    pub async fn send(&self, client: &Client) -> TestResponse {
        let request = client.request(self.method.clone(), &self.path).header(header::CONTENT_TYPE, &self.body.0);
        client.send(request.body(Body::from(self.body.1.clone())).unwrap()).await
    }

    pub async fn send_with_key(&self, key: &str) -> TestResponse {
        self.client.send_with_key(key, self.method.clone(), &self.path, self.body.clone()).await
    }
}

/// Returns the text of a `SKILL.md`.
pub fn skill_md(name: &str) -> String {
    format!("---\nname: {name}\ndescription: What {name} is for\n---\n# {name}\n")
}

/// One entity of each kind in a project.
struct Fixtures {
    disk: String,
    session: String,
    message: String,
    s3_key: String,
    skill: String,
    space: String,
    /// A skill that is in no space.
    other_skill: String,
    /// A session that no space learns.
    other_session: String,
    user: String,
    sandbox: String,
}

impl Fixtures {
    async fn create(client: &Client) -> Self {
        let (disk, session) = (client.new_disk().await, client.new_session().await);
        client.upload(&disk, "/", "old.txt", "old").await;
        let message = client.store_text(&session, "a message").await;
        let payload =
            json!({"format": "acontext", "blob": {"role": "user", "parts": [{"type": "file", "file_field": "f"}]}});
        let form =
            Form::new().text("payload", &payload.to_string()).file("f", "notes.txt", client.project().to_string());
        let s3_key = client.store_form_message(&session, form).await.data()["parts"][0]["asset"]["s3_key"].clone();
        let space = client.new_space().await;
        let (skill, other_skill) = (client.new_skill("included").await, client.new_skill("alone").await);
        let path = format!("/api/v1/learning_spaces/{space}");
        client.post(&format!("{path}/skills"), json!({"skill_id": skill})).await.assert_status(201);
        client.post(&format!("{path}/learn"), json!({"session_id": session})).await.assert_status(201);
        let user = format!("user of {}", client.project());
        for user in [user.as_str(), "ls"] {
            client.post("/api/v1/disk", json!({"user": user})).await.assert_status(201);
        }
        Self {
            disk,
            session,
            message,
            s3_key: s3_key.as_str().unwrap().to_owned(),
            skill,
            space,
            other_skill,
            other_session: client.new_session().await,
            user: acontextd::percent::encode(user.as_bytes(), b""),
            sandbox: client.new_sandbox().await,
        }
    }
}

/// Returns a valid request of a client for an operation, with new entities of the client.
pub async fn sample_request(app: &TestApp, client: &Client, operation: &str) -> SampleRequest {
    let (method, _) = operation.split_once(' ').unwrap();
    let fixtures = Fixtures::create(client).await;
    if operation.ends_with("/decrypt") {
        client.post("/api/v1/project/encrypt", json!({})).await.assert_status(200);
    }
    let request = if operation.contains("/admin/") || operation.contains("/metrics/") {
        admin_request(app, operation).await
    } else if operation == "POST /api/v1/jobs/{job_id}/retry" {
        Some(empty_request(format!("/api/v1/jobs/{}/retry", insert_failed_job(app, client).await)))
    } else {
        let request = session_request(&fixtures, operation);
        request.or_else(|| file_request(&fixtures, operation)).or_else(|| other_request(&fixtures, operation))
    };
    let (path, body) = request.unwrap_or_else(|| panic!("{operation} has no sample request: add one here"));
    let requires_admin = (path.starts_with("/admin/") || path.starts_with("/metrics/"))
        && !ACCESS_RULES.project_admin.contains(&path.as_str());
    let client = if requires_admin { app.admin() } else { client.clone() };
    SampleRequest { client, method: method.parse().unwrap(), path, body }
}

/// The path, the content type and the body.
type Request = (String, (String, Vec<u8>));

fn json_request(path: impl Into<String>, json: &Value) -> Request {
    (path.into(), ("application/json".to_owned(), json.to_string().into_bytes()))
}

/// Returns a request with an empty JSON object.
fn empty_request(path: impl Into<String>) -> Request {
    json_request(path, &json!({}))
}

/// Inserts a job of the client's project that has failed. Returns its id.
async fn insert_failed_job(app: &TestApp, client: &Client) -> Uuid {
    let job = Uuid::now_v7();
    sqlx::query(
        "insert into jobs (id, project_id, kind, payload, state, attempt, last_error, error_class)
         values ($1, $2, 'distill', '{}', 'failed', 5, 'the model does not respond', 'model')",
    )
    .bind(job)
    .bind(client.project())
    .execute(&*app.app.db)
    .await
    .unwrap();
    job
}

async fn admin_request(app: &TestApp, operation: &str) -> Option<Request> {
    Some(match operation {
        "POST /admin/v1/project" => json_request("/admin/v1/project", &json!({"configs": {}})),
        "POST /metrics/v1" => empty_request("/metrics/v1"),
        "PUT /admin/v1/project/secret_key" => empty_request("/admin/v1/project/secret_key"),
        "POST /admin/v1/project/encrypt" => empty_request("/admin/v1/project/encrypt"),
        "POST /admin/v1/project/decrypt" => empty_request("/admin/v1/project/decrypt"),
        "PUT /admin/v1/project/{project_id}/secret_key" => {
            empty_request(format!("/admin/v1/project/{}/secret_key", app.project().await.project()))
        }
        "DELETE /admin/v1/project/{project_id}" => {
            empty_request(format!("/admin/v1/project/{}", app.project().await.project()))
        }
        _ => return None,
    })
}

fn session_request(fixtures: &Fixtures, operation: &str) -> Option<Request> {
    let Fixtures { message, s3_key, .. } = fixtures;
    let session = format!("/api/v1/session/{}", fixtures.session);
    let configs = json!({"configs": {"a": 1}});
    Some(match operation.replace("/api/v1/session", "…").as_str() {
        "GET …" => empty_request("/api/v1/session"),
        "POST …" => json_request("/api/v1/session", &json!({"user": "bob"})),
        "DELETE …/{session_id}" => empty_request(session),
        "GET …/{session_id}/configs" => empty_request(format!("{session}/configs")),
        "PUT …/{session_id}/configs" | "PATCH …/{session_id}/configs" => {
            json_request(format!("{session}/configs"), &configs)
        }
        "POST …/{session_id}/copy" => empty_request(format!("{session}/copy")),
        "GET …/{session_id}/events" => empty_request(format!("{session}/events")),
        "POST …/{session_id}/events" => json_request(format!("{session}/events"), &json!({"type": "t", "data": {}})),
        "GET …/{session_id}/messages" => empty_request(format!("{session}/messages")),
        "POST …/{session_id}/messages" => {
            json_request(format!("{session}/messages"), &json!({"blob": {"role": "user", "content": "hello"}}))
        }
        "PATCH …/{session_id}/messages/{message_id}/meta" => {
            json_request(format!("{session}/messages/{message}/meta"), &json!({"meta": {"a": 1}}))
        }
        "POST …/{session_id}/flush" => empty_request(format!("{session}/flush")),
        "GET …/{session_id}/asset/download" => empty_request(format!("{session}/asset/download?s3_key={s3_key}")),
        "GET …/{session_id}/observing_status" => empty_request(format!("{session}/observing_status")),
        "GET …/{session_id}/task" => empty_request(format!("{session}/task")),
        "GET …/{session_id}/token_counts" => empty_request(format!("{session}/token_counts")),
        _ => return None,
    })
}

fn file_request(fixtures: &Fixtures, operation: &str) -> Option<Request> {
    let Fixtures { disk, skill, .. } = fixtures;
    let artifact = format!("/api/v1/disk/{disk}/artifact");
    let sandbox_id = &fixtures.sandbox;
    let skill = format!("/api/v1/agent_skills/{skill}");
    Some(match operation {
        "GET /api/v1/disk" => empty_request("/api/v1/disk"),
        "POST /api/v1/disk" => json_request("/api/v1/disk", &json!({"user": "alice"})),
        "DELETE /api/v1/disk/{disk_id}" => empty_request(format!("/api/v1/disk/{disk}")),
        "POST /api/v1/disk/{disk_id}/artifact" => (artifact, Form::new().file("file", "new.txt", "new").finish()),
        "GET /api/v1/disk/{disk_id}/artifact" => empty_request(format!("{artifact}?file_path=/old.txt")),
        "PUT /api/v1/disk/{disk_id}/artifact" => {
            json_request(artifact, &json!({"file_path": "/old.txt", "meta": "{\"a\": 1}"}))
        }
        "DELETE /api/v1/disk/{disk_id}/artifact" => json_request(artifact, &json!({"file_path": "/old.txt"})),
        "GET /api/v1/disk/{disk_id}/artifact/download" => {
            empty_request(format!("{artifact}/download?file_path=/old.txt"))
        }
        "GET /api/v1/disk/{disk_id}/artifact/ls" => empty_request(format!("{artifact}/ls")),
        "GET /api/v1/disk/{disk_id}/artifact/glob" => empty_request(format!("{artifact}/glob?query=*")),
        "GET /api/v1/disk/{disk_id}/artifact/grep" => empty_request(format!("{artifact}/grep?query=old")),
        "POST /api/v1/disk/{disk_id}/artifact/download_to_sandbox" => json_request(
            format!("{artifact}/download_to_sandbox"),
            &json!({"file_path": "/", "filename": "old.txt", "sandbox_id": sandbox_id, "sandbox_path": "/workspace"}),
        ),
        "POST /api/v1/disk/{disk_id}/artifact/upload_from_sandbox" => json_request(
            format!("{artifact}/upload_from_sandbox"),
            &json!({"file_path": "/", "sandbox_filename": "old.txt", "sandbox_id": sandbox_id, "sandbox_path": "/tmp"}),
        ),
        "POST /api/v1/agent_skills/{skill_id}/download_to_sandbox" => {
            json_request(format!("{skill}/download_to_sandbox"), &json!({"sandbox_id": sandbox_id}))
        }
        "GET /api/v1/agent_skills" => empty_request("/api/v1/agent_skills"),
        "POST /api/v1/agent_skills" => {
            let archive = zip_archive(&[("SKILL.md", skill_md("uploaded").as_str()), ("a.txt", "a")]);
            ("/api/v1/agent_skills".into(), Form::new().file("file", "skill.zip", archive).finish())
        }
        "GET /api/v1/agent_skills/{skill_id}" | "DELETE /api/v1/agent_skills/{skill_id}" => empty_request(skill),
        "GET /api/v1/agent_skills/{skill_id}/file" => empty_request(format!("{skill}/file?file_path=SKILL.md")),
        "GET /api/v1/agent_skills/{skill_id}/download_zip" => empty_request(format!("{skill}/download_zip")),
        _ => return None,
    })
}

fn other_request(fixtures: &Fixtures, operation: &str) -> Option<Request> {
    let Fixtures { session, skill, other_skill, other_session, user, sandbox, .. } = fixtures;
    let space = format!("/api/v1/learning_spaces/{}", fixtures.space);
    Some(match operation.replace("/api/v1/learning_spaces", "…").as_str() {
        "GET …" => empty_request("/api/v1/learning_spaces"),
        "POST …" => json_request("/api/v1/learning_spaces", &json!({"user": "carol", "meta": {"a": 1}})),
        "GET …/{space_id}" | "DELETE …/{space_id}" => empty_request(space),
        "PATCH …/{space_id}" => json_request(space, &json!({"meta": {"b": 1}})),
        "POST …/{space_id}/learn" => json_request(format!("{space}/learn"), &json!({"session_id": other_session})),
        "GET …/{space_id}/sessions" => empty_request(format!("{space}/sessions")),
        "GET …/{space_id}/sessions/{session_id}" => empty_request(format!("{space}/sessions/{session}")),
        "GET …/{space_id}/changes" => empty_request(format!("{space}/changes")),
        "GET …/{space_id}/skills" => empty_request(format!("{space}/skills")),
        "POST …/{space_id}/skills" => json_request(format!("{space}/skills"), &json!({"skill_id": other_skill})),
        "DELETE …/{space_id}/skills/{skill_id}" => empty_request(format!("{space}/skills/{skill}")),
        "GET /api/v1/user/ls" | "DELETE /api/v1/user/ls" => empty_request("/api/v1/user/ls"),
        "GET /api/v1/user/{identifier}/resources" => empty_request(format!("/api/v1/user/{user}/resources")),
        "DELETE /api/v1/user/{identifier}" => empty_request(format!("/api/v1/user/{user}")),
        "GET /api/v1/project/configs" => empty_request("/api/v1/project/configs"),
        "PATCH /api/v1/project/configs" => {
            json_request("/api/v1/project/configs", &json!({"task_success_criteria": "done"}))
        }
        "GET /api/v1/project/model_usage" => empty_request("/api/v1/project/model_usage"),
        "GET /api/v1/jobs" => empty_request("/api/v1/jobs"),
        "GET /api/v1/project/encryption" => empty_request("/api/v1/project/encryption"),
        "POST /api/v1/project/encrypt" => empty_request("/api/v1/project/encrypt"),
        "POST /api/v1/project/decrypt" => empty_request("/api/v1/project/decrypt"),
        "POST /api/v1/sandbox" => empty_request("/api/v1/sandbox"),
        "GET /api/v1/sandbox/logs" => empty_request("/api/v1/sandbox/logs"),
        "DELETE /api/v1/sandbox/{sandbox_id}" => empty_request(format!("/api/v1/sandbox/{sandbox}")),
        "POST /api/v1/sandbox/{sandbox_id}/exec" => {
            json_request(format!("/api/v1/sandbox/{sandbox}/exec"), &json!({"command": "true"}))
        }
        "GET /api/v1/ping" => empty_request("/api/v1/ping"),
        _ => return None,
    })
}
