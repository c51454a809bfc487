//! A request that works for each operation of the API's description: for tests that hold for every operation. A new operation
//! fails them until it has a request here.

use acontextd::features::ACCESS_RULES;
use axum::body::Body;
use axum::http::{Method, header};
use serde_json::{Value, json};

use super::TestApp;
use super::client::{Answer, Client, Form};
use super::document;
use super::zip::written;

/// Every operation of the description: `POST /api/v1/disk`.
pub fn operations() -> Vec<String> {
    let document = serde_json::to_value(document()).unwrap();
    let paths = document["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, item)| {
        item.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    operations.collect()
}

/// A request that works, once.
pub struct Sample {
    pub client: Client,
    pub method: Method,
    pub path: String,
    /// Content type and bytes.
    pub body: (String, Vec<u8>),
}

impl Sample {
    pub async fn send(&self, client: &Client) -> Answer {
        let request = client.request(self.method.clone(), &self.path).header(header::CONTENT_TYPE, &self.body.0);
        client.send(request.body(Body::from(self.body.1.clone())).unwrap()).await
    }

    pub async fn send_once(&self, key: &str) -> Answer {
        self.client.send_once(key, self.method.clone(), &self.path, self.body.clone()).await
    }
}

/// The SKILL.md of a skill.
pub fn skill_md(name: &str) -> String {
    format!("---\nname: {name}\ndescription: What {name} is for\n---\n# {name}\n")
}

/// What a project has, one of each.
struct Things {
    disk: String,
    session: String,
    message: String,
    s3_key: String,
    skill: String,
    space: String,
    /// A skill that is in no space, and a session that no space learns.
    other_skill: String,
    other_session: String,
    user: String,
}

impl Things {
    async fn make(client: &Client) -> Self {
        let (disk, session) = (client.new_disk().await, client.new_session().await);
        client.upload(&disk, "/", "old.txt", "old").await;
        let message = client.say_text(&session, "said before").await;
        let payload =
            json!({"format": "acontext", "blob": {"role": "user", "parts": [{"type": "file", "file_field": "f"}]}});
        let form =
            Form::new().text("payload", &payload.to_string()).file("f", "notes.txt", client.project().to_string());
        let s3_key = client.say_form(&session, form).await.data()["parts"][0]["asset"]["s3_key"].clone();
        let space = client.new_space().await;
        let (skill, other_skill) = (client.new_skill("included").await, client.new_skill("alone").await);
        let at = format!("/api/v1/learning_spaces/{space}");
        client.post(&format!("{at}/skills"), json!({"skill_id": skill})).await.assert_status(201);
        client.post(&format!("{at}/learn"), json!({"session_id": session})).await.assert_status(201);
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
        }
    }
}

/// A request that works for a client, with ids of what it has.
pub async fn sample(app: &TestApp, client: &Client, operation: &str) -> Sample {
    let (method, _) = operation.split_once(' ').unwrap();
    let things = Things::make(client).await;
    if operation.ends_with("/decrypt") {
        client.post("/api/v1/project/encrypt", json!({})).await.assert_status(200);
    }
    let found = if operation.contains("/admin/") || operation.contains("/metrics/") {
        admin(app, operation).await
    } else {
        let conversation = conversations(&things, operation);
        conversation.or_else(|| files(&things, operation)).or_else(|| others(&things, operation))
    };
    let (path, body) = found.unwrap_or_else(|| panic!("{operation} has no request that works: give it one here"));
    let is_admins = (path.starts_with("/admin/") || path.starts_with("/metrics/"))
        && !ACCESS_RULES.project_admin.contains(&path.as_str());
    let client = if is_admins { app.admin() } else { client.clone() };
    Sample { client, method: method.parse().unwrap(), path, body }
}

type Request = (String, (String, Vec<u8>));

fn with_json(path: impl Into<String>, json: &Value) -> Request {
    (path.into(), ("application/json".to_owned(), json.to_string().into_bytes()))
}

fn plain(path: impl Into<String>) -> Request {
    with_json(path, &json!({}))
}

async fn admin(app: &TestApp, operation: &str) -> Option<Request> {
    Some(match operation {
        "POST /admin/v1/project" => with_json("/admin/v1/project", &json!({"configs": {}})),
        "POST /metrics/v1" => plain("/metrics/v1"),
        "PUT /admin/v1/project/secret_key" => plain("/admin/v1/project/secret_key"),
        "POST /admin/v1/project/encrypt" => plain("/admin/v1/project/encrypt"),
        "POST /admin/v1/project/decrypt" => plain("/admin/v1/project/decrypt"),
        "PUT /admin/v1/project/{project_id}/secret_key" => {
            plain(format!("/admin/v1/project/{}/secret_key", app.project().await.project()))
        }
        "DELETE /admin/v1/project/{project_id}" => {
            plain(format!("/admin/v1/project/{}", app.project().await.project()))
        }
        _ => return None,
    })
}

fn conversations(things: &Things, operation: &str) -> Option<Request> {
    let Things { message, s3_key, .. } = things;
    let session = format!("/api/v1/session/{}", things.session);
    let configs = json!({"configs": {"a": 1}});
    Some(match operation.replace("/api/v1/session", "…").as_str() {
        "GET …" => plain("/api/v1/session"),
        "POST …" => with_json("/api/v1/session", &json!({"user": "bob"})),
        "DELETE …/{session_id}" => plain(session),
        "GET …/{session_id}/configs" => plain(format!("{session}/configs")),
        "PUT …/{session_id}/configs" | "PATCH …/{session_id}/configs" => {
            with_json(format!("{session}/configs"), &configs)
        }
        "POST …/{session_id}/copy" => plain(format!("{session}/copy")),
        "GET …/{session_id}/events" => plain(format!("{session}/events")),
        "POST …/{session_id}/events" => with_json(format!("{session}/events"), &json!({"type": "t", "data": {}})),
        "GET …/{session_id}/messages" => plain(format!("{session}/messages")),
        "POST …/{session_id}/messages" => {
            with_json(format!("{session}/messages"), &json!({"blob": {"role": "user", "content": "hello"}}))
        }
        "PATCH …/{session_id}/messages/{message_id}/meta" => {
            with_json(format!("{session}/messages/{message}/meta"), &json!({"meta": {"a": 1}}))
        }
        "POST …/{session_id}/flush" => plain(format!("{session}/flush")),
        "GET …/{session_id}/asset/download" => plain(format!("{session}/asset/download?s3_key={s3_key}")),
        "GET …/{session_id}/observing_status" => plain(format!("{session}/observing_status")),
        "GET …/{session_id}/task" => plain(format!("{session}/task")),
        "GET …/{session_id}/token_counts" => plain(format!("{session}/token_counts")),
        _ => return None,
    })
}

fn files(things: &Things, operation: &str) -> Option<Request> {
    let Things { disk, skill, .. } = things;
    let artifact = format!("/api/v1/disk/{disk}/artifact");
    let skill = format!("/api/v1/agent_skills/{skill}");
    Some(match operation {
        "GET /api/v1/disk" => plain("/api/v1/disk"),
        "POST /api/v1/disk" => with_json("/api/v1/disk", &json!({"user": "alice"})),
        "DELETE /api/v1/disk/{disk_id}" => plain(format!("/api/v1/disk/{disk}")),
        "POST /api/v1/disk/{disk_id}/artifact" => (artifact, Form::new().file("file", "new.txt", "new").end()),
        "GET /api/v1/disk/{disk_id}/artifact" => plain(format!("{artifact}?file_path=/old.txt")),
        "PUT /api/v1/disk/{disk_id}/artifact" => {
            with_json(artifact, &json!({"file_path": "/old.txt", "meta": "{\"a\": 1}"}))
        }
        "DELETE /api/v1/disk/{disk_id}/artifact" => with_json(artifact, &json!({"file_path": "/old.txt"})),
        "GET /api/v1/disk/{disk_id}/artifact/download" => plain(format!("{artifact}/download?file_path=/old.txt")),
        "GET /api/v1/disk/{disk_id}/artifact/ls" => plain(format!("{artifact}/ls")),
        "GET /api/v1/disk/{disk_id}/artifact/glob" => plain(format!("{artifact}/glob?query=*")),
        "GET /api/v1/disk/{disk_id}/artifact/grep" => plain(format!("{artifact}/grep?query=old")),
        "GET /api/v1/agent_skills" => plain("/api/v1/agent_skills"),
        "POST /api/v1/agent_skills" => {
            let archive = written(&[("SKILL.md", skill_md("uploaded").as_str()), ("a.txt", "a")]);
            ("/api/v1/agent_skills".into(), Form::new().file("file", "skill.zip", archive).end())
        }
        "GET /api/v1/agent_skills/{skill_id}" | "DELETE /api/v1/agent_skills/{skill_id}" => plain(skill),
        "GET /api/v1/agent_skills/{skill_id}/file" => plain(format!("{skill}/file?file_path=SKILL.md")),
        "GET /api/v1/agent_skills/{skill_id}/download_zip" => plain(format!("{skill}/download_zip")),
        _ => return None,
    })
}

fn others(things: &Things, operation: &str) -> Option<Request> {
    let Things { session, skill, other_skill, other_session, user, .. } = things;
    let space = format!("/api/v1/learning_spaces/{}", things.space);
    Some(match operation.replace("/api/v1/learning_spaces", "…").as_str() {
        "GET …" => plain("/api/v1/learning_spaces"),
        "POST …" => with_json("/api/v1/learning_spaces", &json!({"user": "carol", "meta": {"a": 1}})),
        "GET …/{space_id}" | "DELETE …/{space_id}" => plain(space),
        "PATCH …/{space_id}" => with_json(space, &json!({"meta": {"b": 1}})),
        "POST …/{space_id}/learn" => with_json(format!("{space}/learn"), &json!({"session_id": other_session})),
        "GET …/{space_id}/sessions" => plain(format!("{space}/sessions")),
        "GET …/{space_id}/sessions/{session_id}" => plain(format!("{space}/sessions/{session}")),
        "GET …/{space_id}/skills" => plain(format!("{space}/skills")),
        "POST …/{space_id}/skills" => with_json(format!("{space}/skills"), &json!({"skill_id": other_skill})),
        "DELETE …/{space_id}/skills/{skill_id}" => plain(format!("{space}/skills/{skill}")),
        "GET /api/v1/user/ls" | "DELETE /api/v1/user/ls" => plain("/api/v1/user/ls"),
        "GET /api/v1/user/{identifier}/resources" => plain(format!("/api/v1/user/{user}/resources")),
        "DELETE /api/v1/user/{identifier}" => plain(format!("/api/v1/user/{user}")),
        "GET /api/v1/project/configs" => plain("/api/v1/project/configs"),
        "PATCH /api/v1/project/configs" => {
            with_json("/api/v1/project/configs", &json!({"task_success_criteria": "done"}))
        }
        "GET /api/v1/project/encryption" => plain("/api/v1/project/encryption"),
        "POST /api/v1/project/encrypt" => plain("/api/v1/project/encrypt"),
        "POST /api/v1/project/decrypt" => plain("/api/v1/project/decrypt"),
        "GET /api/v1/ping" => plain("/api/v1/ping"),
        _ => return None,
    })
}
