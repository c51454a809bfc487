//! Another service, as this one sees it: a server on a port of its own that notes what it is asked and answers what it is told.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What the service was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Clone)]
struct Shared {
    asked: Arc<Mutex<Vec<Asked>>>,
    answer: Arc<Mutex<(StatusCode, String)>>,
    /// Whoever asks waits for this word.
    held: Arc<Mutex<Option<Arc<Notify>>>>,
}

pub struct Service {
    pub url: String,
    shared: Shared,
    _server: JoinSet<std::io::Result<()>>,
}

impl Service {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = Arc::new(Mutex::new((StatusCode::OK, "{}".to_owned())));
        let shared = Shared { asked: Arc::default(), answer, held: Arc::default() };
        let router = Router::new().fallback(answer_it).with_state(shared.clone());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await });
        Self { url, shared, _server: server }
    }

    /// What it answers from now on.
    pub fn answer(&self, status: u16, body: &Value) {
        *self.shared.answer.lock().unwrap() = (StatusCode::from_u16(status).unwrap(), body.to_string());
    }

    /// What it was asked since the last time.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.shared.asked.lock().unwrap())
    }

    /// From now on it answers only when the word is given.
    pub fn hold(&self) -> Arc<Notify> {
        let word = Arc::new(Notify::new());
        *self.shared.held.lock().unwrap() = Some(Arc::clone(&word));
        word
    }
}

async fn answer_it(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, [(&'static str, &'static str); 1], String) {
    shared.asked.lock().unwrap().push(Asked { method, uri, headers, body });
    let held = shared.held.lock().unwrap().clone();
    if let Some(word) = held {
        word.notified().await;
    }
    let (status, body) = shared.answer.lock().unwrap().clone();
    (status, [("content-type", "application/json")], body)
}
