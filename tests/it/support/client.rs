//! A client that calls the surface in process, and its answers.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;
use uuid::Uuid;

use super::samples::skill_md;
use super::zip::written;

#[derive(Clone)]
pub struct Client {
    router: Router,
    key: Option<(Uuid, String)>,
}

impl Client {
    pub fn new(router: Router, key: Option<(Uuid, String)>) -> Self {
        Self { router, key }
    }

    /// The same client with another key.
    pub fn with_key(&self, key: &str) -> Self {
        Self { router: self.router.clone(), key: Some((Uuid::nil(), key.to_owned())) }
    }

    /// The project of the client's key.
    pub fn project(&self) -> Uuid {
        self.key.as_ref().expect("a client with a key").0
    }

    pub fn key(&self) -> &str {
        &self.key.as_ref().expect("a client with a key").1
    }

    pub fn request(&self, method: Method, path: &str) -> axum::http::request::Builder {
        let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        match &self.key {
            Some((_, key)) => request.header(header::AUTHORIZATION, format!("Bearer {key}")),
            None => request,
        }
    }

    /// The body is a plain parameter, so that this is compiled once.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes().to_vec();
        Answer { status: parts.status, headers: parts.headers, bytes }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path).body(Body::empty()).unwrap()).await
    }

    pub async fn get_with(&self, path: &str, name: &str, value: &str) -> Answer {
        self.send(self.request(Method::GET, path).header(name, value).body(Body::empty()).unwrap()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path).body(Body::empty()).unwrap()).await
    }

    pub async fn post(&self, path: &str, json: Value) -> Answer {
        self.json(Method::POST, path, &json.to_string()).await
    }

    pub async fn patch(&self, path: &str, json: Value) -> Answer {
        self.json(Method::PATCH, path, &json.to_string()).await
    }

    pub async fn put(&self, path: &str, json: Value) -> Answer {
        self.json(Method::PUT, path, &json.to_string()).await
    }

    pub async fn json(&self, method: Method, path: &str, text: &str) -> Answer {
        let request = self.request(method, path).header(header::CONTENT_TYPE, "application/json");
        self.send(request.body(Body::from(text.to_owned())).unwrap()).await
    }

    /// Sends a request with an `Idempotency-Key`.
    pub async fn send_once(&self, key: &str, method: Method, path: &str, (kind, body): (String, Vec<u8>)) -> Answer {
        let key = header::HeaderValue::from_bytes(key.as_bytes()).unwrap();
        let request = self.request(method, path).header("idempotency-key", key).header(header::CONTENT_TYPE, kind);
        self.send(request.body(Body::from(body)).unwrap()).await
    }

    /// As [`Client::send_once`], with JSON.
    pub async fn json_once(&self, key: &str, method: Method, path: &str, json: &Value) -> Answer {
        self.send_once(key, method, path, ("application/json".into(), json.to_string().into_bytes())).await
    }

    /// A new disk's id.
    pub async fn new_disk(&self) -> String {
        let answer = self.post("/api/v1/disk", serde_json::json!({})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        answer.data()["id"].as_str().unwrap().to_owned()
    }

    /// A new session's id.
    pub async fn new_session(&self) -> String {
        let answer = self.post("/api/v1/session", serde_json::json!({})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        answer.data()["id"].as_str().unwrap().to_owned()
    }

    /// A new learning space's id.
    pub async fn new_space(&self) -> String {
        let answer = self.post("/api/v1/learning_spaces", serde_json::json!({})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        answer.data()["id"].as_str().unwrap().to_owned()
    }

    /// A new skill's id.
    pub async fn new_skill(&self, name: &str) -> String {
        let answer = self.upload_skill(&[("SKILL.md", &skill_md(name))]).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        answer.data()["id"].as_str().unwrap().to_owned()
    }

    /// Sends a skill's files as an archive.
    pub async fn upload_skill(&self, files: &[(&str, &str)]) -> Answer {
        self.skill_form(Form::new().file("file", "skill.zip", written(files))).await
    }

    /// Sends the form of a skill.
    pub async fn skill_form(&self, form: Form) -> Answer {
        let (kind, body) = form.end();
        let request = self.request(Method::POST, "/api/v1/agent_skills").header(header::CONTENT_TYPE, kind);
        self.send(request.body(Body::from(body)).unwrap()).await
    }

    /// Asks for a message to be stored.
    pub async fn say(&self, session: &str, format: &str, blob: Value) -> Answer {
        let body = serde_json::json!({"format": format, "blob": blob});
        self.post(&format!("/api/v1/session/{session}/messages"), body).await
    }

    /// Stores a text, and wants that to work; the message's id.
    pub async fn say_text(&self, session: &str, text: &str) -> String {
        let answer = self.say(session, "openai", serde_json::json!({"role": "user", "content": text})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        answer.data()["id"].as_str().unwrap().to_owned()
    }

    /// Messages of a session, by the query of the request.
    pub async fn messages(&self, session: &str, query: &str) -> Value {
        let answer = self.get(&format!("/api/v1/session/{session}/messages?{query}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.data()
    }

    /// Sends a message as a form.
    pub async fn say_form(&self, session: &str, form: Form) -> Answer {
        let (kind, body) = form.end();
        let request = self.request(Method::POST, &format!("/api/v1/session/{session}/messages"));
        self.send(request.header(header::CONTENT_TYPE, kind).body(Body::from(body)).unwrap()).await
    }

    /// Stores a file, and wants that to work.
    pub async fn upload(&self, disk: &str, directory: &str, name: &str, content: impl AsRef<[u8]>) -> Value {
        let answer = self.form(disk, Form::new().text("file_path", directory).file("file", name, content)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        answer.data()
    }

    /// Sends an upload form to a disk.
    pub async fn form(&self, disk: &str, form: Form) -> Answer {
        let (kind, body) = form.end();
        let request = self.request(Method::POST, &format!("/api/v1/disk/{disk}/artifact"));
        self.send(request.header(header::CONTENT_TYPE, kind).body(Body::from(body)).unwrap()).await
    }

    /// The bytes of a file, or the status that came instead.
    pub async fn download(&self, disk: &str, path: &str) -> Result<Vec<u8>, StatusCode> {
        let answer = self.get(&format!("/api/v1/disk/{disk}/artifact/download?file_path={path}")).await;
        if answer.status == StatusCode::OK { Ok(answer.bytes) } else { Err(answer.status) }
    }
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub fn data(&self) -> Value {
        self.json()["data"].clone()
    }

    /// Whether this is what a former request was answered.
    pub fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == "true"
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    pub fn assert_status(&self, status: u16) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
    }

    /// Wants a refusal in the envelope whose message contains a text.
    #[track_caller]
    pub fn assert_refused(&self, status: u16, text: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        let body = self.json();
        assert_eq!(body["code"], status, "{body}");
        assert!(body["msg"].as_str().unwrap().contains(text), "{body} does not say '{text}'");
        assert_eq!(self.header("content-type"), "application/json; charset=utf-8");
    }
}

/// A multipart form, byte by byte.
#[derive(Default)]
pub struct Form(Vec<u8>);

const BOUNDARY: &str = "a-boundary-of-tests";

impl Form {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn text(self, name: &str, value: &str) -> Self {
        self.part(&format!("form-data; name=\"{name}\""), value.as_bytes())
    }

    pub fn file(self, name: &str, filename: &str, content: impl AsRef<[u8]>) -> Self {
        self.part(&format!("form-data; name=\"{name}\"; filename=\"{filename}\""), content.as_ref())
    }

    pub fn part(self, disposition: &str, content: &[u8]) -> Self {
        self.raw_part(disposition.as_bytes(), content)
    }

    pub fn raw_part(mut self, disposition: &[u8], content: &[u8]) -> Self {
        self.0.extend_from_slice(format!("--{BOUNDARY}\r\nContent-Disposition: ").as_bytes());
        self.0.extend_from_slice(disposition);
        self.0.extend_from_slice(b"\r\n\r\n");
        self.0.extend_from_slice(content);
        self.0.extend_from_slice(b"\r\n");
        self
    }

    /// The same form with another boundary, as a client writes it that sends it again.
    pub fn end_otherwise(self) -> (String, Vec<u8>) {
        let (kind, body) = self.end();
        let again = String::from_utf8(body).expect("a form of text").replace(BOUNDARY, "another-boundary");
        (kind.replace(BOUNDARY, "another-boundary"), again.into_bytes())
    }

    /// The content type and the body.
    pub fn end(mut self) -> (String, Vec<u8>) {
        self.0.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        (format!("multipart/form-data; boundary={BOUNDARY}"), self.0)
    }
}
