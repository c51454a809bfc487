//! A mock HTTP server on its own port. It records its requests and returns a configured response.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;

type Header = (&'static str, &'static str);

/// A request that the server has received.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Clone)]
struct Shared {
    requests: Arc<Mutex<Vec<RecordedRequest>>>,
    response: Arc<Mutex<(StatusCode, String)>>,
    /// The responses to requests for specific paths.
    path_responses: Arc<Mutex<HashMap<String, (Header, String)>>>,
    /// Requests wait for this notification before they get a response.
    blocked: Arc<Mutex<Option<Arc<Notify>>>>,
}

pub struct MockServer {
    pub url: String,
    shared: Shared,
    _server: JoinSet<std::io::Result<()>>,
}

impl MockServer {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let response = Arc::new(Mutex::new((StatusCode::OK, "{}".to_owned())));
        let shared =
            Shared { requests: Arc::default(), response, path_responses: Arc::default(), blocked: Arc::default() };
        let router = Router::new().fallback(respond).with_state(shared.clone());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await });
        Self { url, shared, _server: server }
    }

    /// Sets the response to all further requests.
    pub fn set_response(&self, status: u16, body: &Value) {
        *self.shared.response.lock().unwrap() = (StatusCode::from_u16(status).unwrap(), body.to_string());
    }

    /// Sets the response to all further requests to a text that is not JSON.
    pub fn set_text_response(&self, status: u16, body: &str) {
        *self.shared.response.lock().unwrap() = (StatusCode::from_u16(status).unwrap(), body.to_owned());
    }

    /// Sets the response to all further requests for a path, with status 200 and a header.
    pub fn set_path_response(&self, path: &str, header: Header, body: &str) {
        self.shared.path_responses.lock().unwrap().insert(path.to_owned(), (header, body.to_owned()));
    }

    /// Returns the requests since the last call.
    pub fn take_requests(&self) -> Vec<RecordedRequest> {
        std::mem::take(&mut *self.shared.requests.lock().unwrap())
    }

    /// Blocks all further responses until the returned handle is notified.
    pub fn block(&self) -> Arc<Notify> {
        let release = Arc::new(Notify::new());
        *self.shared.blocked.lock().unwrap() = Some(Arc::clone(&release));
        release
    }
}

async fn respond(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, [Header; 1], String) {
    let path_response = shared.path_responses.lock().unwrap().get(uri.path()).cloned();
    shared.requests.lock().unwrap().push(RecordedRequest { method, uri, headers, body });
    let blocked = shared.blocked.lock().unwrap().clone();
    if let Some(release) = blocked {
        release.notified().await;
    }
    if let Some((header, body)) = path_response {
        return (StatusCode::OK, [header], body);
    }
    let (status, body) = shared.response.lock().unwrap().clone();
    (status, [("content-type", "application/json")], body)
}
