//! A client that calls the router in process, and its responses.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;
use uuid::Uuid;

use super::samples::skill_md;
use super::zip::zip_archive;

#[derive(Clone)]
pub struct Client {
    router: Router,
    key: Option<(Uuid, String)>,
}

impl Client {
    pub fn new(router: Router, key: Option<(Uuid, String)>) -> Self {
        Self { router, key }
    }

    /// Returns the same client with another key.
    pub fn with_key(&self, key: &str) -> Self {
        Self { router: self.router.clone(), key: Some((Uuid::nil(), key.to_owned())) }
    }

    /// Returns the project of the client's key.
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

    /// Sends a request. Not generic over the body, so that it is compiled once.
    pub async fn send(&self, request: Request<Body>) -> TestResponse {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes().to_vec();
        TestResponse { status: parts.status, headers: parts.headers, bytes }
    }

    pub async fn get(&self, path: &str) -> TestResponse {
        self.send(self.request(Method::GET, path).body(Body::empty()).unwrap()).await
    }

    pub async fn get_with(&self, path: &str, name: &str, value: &str) -> TestResponse {
        self.send(self.request(Method::GET, path).header(name, value).body(Body::empty()).unwrap()).await
    }

    pub async fn delete(&self, path: &str) -> TestResponse {
        self.send(self.request(Method::DELETE, path).body(Body::empty()).unwrap()).await
    }

    pub async fn post(&self, path: &str, json: Value) -> TestResponse {
        self.json(Method::POST, path, &json.to_string()).await
    }

    pub async fn patch(&self, path: &str, json: Value) -> TestResponse {
        self.json(Method::PATCH, path, &json.to_string()).await
    }

    pub async fn put(&self, path: &str, json: Value) -> TestResponse {
        self.json(Method::PUT, path, &json.to_string()).await
    }

    pub async fn json(&self, method: Method, path: &str, text: &str) -> TestResponse {
        let request = self.request(method, path).header(header::CONTENT_TYPE, "application/json");
        self.send(request.body(Body::from(text.to_owned())).unwrap()).await
    }

    /// Sends a request with an `Idempotency-Key`.
    pub async fn send_with_key(
        &self,
        key: &str,
        method: Method,
        path: &str,
        (content_type, body): (String, Vec<u8>),
    ) -> TestResponse {
        let key = header::HeaderValue::from_bytes(key.as_bytes()).unwrap();
        let request =
            self.request(method, path).header("idempotency-key", key).header(header::CONTENT_TYPE, content_type);
        self.send(request.body(Body::from(body)).unwrap()).await
    }

    /// Sends a JSON request with an `Idempotency-Key`.
    pub async fn json_with_key(&self, key: &str, method: Method, path: &str, json: &Value) -> TestResponse {
        self.send_with_key(key, method, path, ("application/json".into(), json.to_string().into_bytes())).await
    }

    /// Creates a disk and returns its id.
    pub async fn new_disk(&self) -> String {
        let response = self.post("/api/v1/disk", serde_json::json!({})).await;
        assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
        response.data()["id"].as_str().unwrap().to_owned()
    }

    /// Creates a sandbox and returns its id.
    pub async fn new_sandbox(&self) -> String {
        let response = self.post("/api/v1/sandbox", serde_json::json!({})).await;
        assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
        response.data()["sandbox_id"].as_str().unwrap().to_owned()
    }

    /// Creates a session and returns its id.
    pub async fn new_session(&self) -> String {
        let response = self.post("/api/v1/session", serde_json::json!({})).await;
        assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
        response.data()["id"].as_str().unwrap().to_owned()
    }

    /// Creates a learning space and returns its id.
    pub async fn new_space(&self) -> String {
        let response = self.post("/api/v1/learning_spaces", serde_json::json!({})).await;
        assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
        response.data()["id"].as_str().unwrap().to_owned()
    }

    /// Creates a skill and returns its id.
    pub async fn new_skill(&self, name: &str) -> String {
        let response = self.upload_skill(&[("SKILL.md", &skill_md(name))]).await;
        assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
        response.data()["id"].as_str().unwrap().to_owned()
    }

    /// Uploads files as a skill archive.
    pub async fn upload_skill(&self, files: &[(&str, &str)]) -> TestResponse {
        self.upload_skill_form(Form::new().file("file", "skill.zip", zip_archive(files))).await
    }

    /// Sends the form of a skill upload.
    pub async fn upload_skill_form(&self, form: Form) -> TestResponse {
        let (content_type, body) = form.finish();
        let request = self.request(Method::POST, "/api/v1/agent_skills").header(header::CONTENT_TYPE, content_type);
        self.send(request.body(Body::from(body)).unwrap()).await
    }

    /// Sends a request that stores a message.
    pub async fn store_message(&self, session: &str, format: &str, blob: Value) -> TestResponse {
        let body = serde_json::json!({"format": format, "blob": blob});
        self.post(&format!("/api/v1/session/{session}/messages"), body).await
    }

    /// Stores a text and returns the message's id.
    pub async fn store_text(&self, session: &str, text: &str) -> String {
        let response =
            self.store_message(session, "openai", serde_json::json!({"role": "user", "content": text})).await;
        assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
        response.data()["id"].as_str().unwrap().to_owned()
    }

    /// Returns the messages of a session for a query string.
    pub async fn messages(&self, session: &str, query: &str) -> Value {
        let response = self.get(&format!("/api/v1/session/{session}/messages?{query}")).await;
        assert_eq!(response.status, StatusCode::OK, "{}", response.text());
        response.data()
    }

    /// Sends a message as a multipart form.
    pub async fn store_form_message(&self, session: &str, form: Form) -> TestResponse {
        let (content_type, body) = form.finish();
        let request = self.request(Method::POST, &format!("/api/v1/session/{session}/messages"));
        self.send(request.header(header::CONTENT_TYPE, content_type).body(Body::from(body)).unwrap()).await
    }

    /// Uploads a file and returns the artifact.
    pub async fn upload(&self, disk: &str, directory: &str, name: &str, content: impl AsRef<[u8]>) -> Value {
        let response =
            self.upload_form(disk, Form::new().text("file_path", directory).file("file", name, content)).await;
        assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
        response.data()
    }

    /// Sends an upload form to a disk.
    pub async fn upload_form(&self, disk: &str, form: Form) -> TestResponse {
        let (content_type, body) = form.finish();
        let request = self.request(Method::POST, &format!("/api/v1/disk/{disk}/artifact"));
        self.send(request.header(header::CONTENT_TYPE, content_type).body(Body::from(body)).unwrap()).await
    }

    /// Returns the bytes of a file, or the status of the error response.
    pub async fn download(&self, disk: &str, path: &str) -> Result<Vec<u8>, StatusCode> {
        let response = self.get(&format!("/api/v1/disk/{disk}/artifact/download?file_path={path}")).await;
        if response.status == StatusCode::OK { Ok(response.bytes) } else { Err(response.status) }
    }
}

pub struct TestResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl TestResponse {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    pub fn data(&self) -> Value {
        self.json()["data"].clone()
    }

    /// Returns `true` if this is the stored response of an earlier request.
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

    /// Asserts that this is an error response with this status whose message contains a text.
    #[track_caller]
    pub fn assert_error(&self, status: u16, text: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        let body = self.json();
        assert_eq!(body["code"], status, "{body}");
        assert!(body["msg"].as_str().unwrap().contains(text), "{body} does not contain '{text}'");
        assert_eq!(self.header("content-type"), "application/json; charset=utf-8");
    }
}

/// A multipart form, written byte by byte.
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

    /// Returns the same form with another boundary, as clients do when they repeat a request.
    pub fn finish_with_other_boundary(self) -> (String, Vec<u8>) {
        let (content_type, body) = self.finish();
        let body = String::from_utf8(body).expect("a form of text").replace(BOUNDARY, "another-boundary");
        (content_type.replace(BOUNDARY, "another-boundary"), body.into_bytes())
    }

    /// Returns the content type and the body.
    pub fn finish(mut self) -> (String, Vec<u8>) {
        self.0.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        (format!("multipart/form-data; boundary={BOUNDARY}"), self.0)
    }
}
