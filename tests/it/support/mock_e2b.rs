//! A mock of E2B: of its API, and of the service in its sandboxes, on one port. It runs no commands; tests set their events.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// The process of all commands.
pub const PID: u32 = 42;

/// The stream of a process: its chunks, and how it ends.
#[derive(Clone)]
pub struct Process {
    pub chunks: Vec<Bytes>,
    pub ending: Ending,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Ending {
    /// The response is complete.
    Complete,
    /// The connection fails.
    Broken,
    /// Nothing follows.
    Open,
}

impl Process {
    /// A process with these messages after its start, and the end of the stream.
    pub fn new(messages: &[Vec<u8>]) -> Self {
        let start = event(&json!({"start": {"pid": PID}}));
        Self { chunks: vec![[start, messages.concat()].concat().into()], ending: Ending::Complete }
    }

    /// A process that writes to its standard output and ends.
    pub fn with_output(stdout: &str, exit_code: i32) -> Self {
        Self::new(&[output("stdout", stdout.as_bytes()), end(exit_code), end_of_stream(&json!({}))])
    }

    pub fn ending(self, ending: Ending) -> Self {
        Self { ending, ..self }
    }

    /// Splits the stream into chunks of this length.
    pub fn in_chunks_of(self, length: usize) -> Self {
        let stream = self.chunks.concat();
        Self { chunks: stream.chunks(length).map(Bytes::copy_from_slice).collect(), ..self }
    }
}

/// Encodes a message of a Connect stream.
pub fn message(flags: u8, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    [&[flags], &u32::try_from(body.len()).unwrap().to_be_bytes()[..], body.as_bytes()].concat()
}

pub fn event(event: &Value) -> Vec<u8> {
    message(0, &json!({"event": event}))
}

pub fn output(name: &str, bytes: &[u8]) -> Vec<u8> {
    event(&json!({"data": {name: STANDARD.encode(bytes)}}))
}

/// The event for a process that has exited. As in the JSON of protobuf, 0 is left out.
pub fn end(exit_code: i32) -> Vec<u8> {
    let status = format!("exit status {exit_code}");
    let mut end = json!({"exited": true, "status": status});
    if exit_code != 0 {
        (end["exitCode"], end["error"]) = (json!(exit_code), json!(status));
    }
    event(&json!({"end": end}))
}

pub fn end_of_stream(body: &Value) -> Vec<u8> {
    message(2, body)
}

/// A request: `POST /path?query`, its headers, and its body. The body of a multipart form is the content of its field `file`.
#[derive(Clone, Debug)]
pub struct Request {
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Request {
    /// Returns the message of a request of the Connect protocol.
    pub fn rpc_message(&self) -> Value {
        let (prefix, message) = self.body.split_at(5);
        let length = u32::from_be_bytes(prefix[1..].try_into().unwrap());
        assert_eq!((prefix[0], length as usize), (0, message.len()), "one message");
        serde_json::from_slice(message).unwrap()
    }

    /// Returns the header as text, and `-` if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("-", |value| value.to_str().unwrap())
    }
}

type Commands = Box<dyn Fn(&str) -> Process + Send>;

struct Inner {
    requests: Vec<Request>,
    /// Responses that replace those to a method and path.
    responses: HashMap<String, (StatusCode, String)>,
    commands: Commands,
    files: HashMap<String, Bytes>,
    envd_version: &'static str,
}

pub struct MockE2b {
    pub url: String,
    inner: Arc<Mutex<Inner>>,
    _server: JoinSet<std::io::Result<()>>,
}

impl MockE2b {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let inner = Arc::new(Mutex::new(Inner {
            requests: Vec::new(),
            responses: HashMap::new(),
            commands: Box::new(|_| Process::with_output("", 0)),
            files: HashMap::new(),
            envd_version: "0.4.1",
        }));
        let router = Router::new().fallback(respond).with_state(Arc::clone(&inner));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await });
        Self { url, inner, _server: server }
    }

    /// Sets the response to a method and path, such as `POST /sandboxes`.
    pub fn set_response(&self, target: &str, status: u16, body: &str) {
        let response = (StatusCode::from_u16(status).unwrap(), body.to_owned());
        self.inner.lock().unwrap().responses.insert(target.to_owned(), response);
    }

    /// Sets the processes of commands.
    pub fn set_commands(&self, commands: impl Fn(&str) -> Process + Send + 'static) {
        self.inner.lock().unwrap().commands = Box::new(commands);
    }

    pub fn set_envd_version(&self, version: &'static str) {
        self.inner.lock().unwrap().envd_version = version;
    }

    pub fn set_file(&self, path: &str, content: Bytes) {
        self.inner.lock().unwrap().files.insert(path.to_owned(), content);
    }

    pub fn file(&self, path: &str) -> Option<Bytes> {
        self.inner.lock().unwrap().files.get(path).cloned()
    }

    /// Returns the requests since the last call.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.inner.lock().unwrap().requests)
    }
}

async fn respond(
    State(inner): State<Arc<Mutex<Inner>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let content_type = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let body = if content_type.starts_with("multipart/") { read_form(&content_type, body).await } else { body };
    let request = Request { target: format!("{method} {uri}"), headers, body };
    let mut inner = inner.lock().unwrap();
    inner.requests.push(request.clone());
    let target = format!("{method} {}", uri.path());
    if let Some((status, body)) = inner.responses.get(&target) {
        return response(*status, body.clone());
    }
    let sandbox = |id: &str, version: &str| {
        json!({"sandboxID": id, "templateID": "t", "clientID": "c", "envdVersion": version,
            "envdAccessToken": format!("token of {id}"), "domain": null})
    };
    match target.split(' ').nth(1).unwrap().split('/').collect::<Vec<_>>()[1..] {
        ["sandboxes"] => response(StatusCode::CREATED, sandbox("i1", inner.envd_version).to_string()),
        ["sandboxes", id, "connect"] => response(StatusCode::OK, sandbox(id, inner.envd_version).to_string()),
        ["sandboxes", _] => response(StatusCode::NO_CONTENT, String::new()),
        ["process.Process", "Start"] => {
            let message = request.rpc_message();
            respond_with((inner.commands)(message["process"]["args"][2].as_str().unwrap()))
        }
        ["process.Process", _] => response(StatusCode::OK, "{}"),
        ["files"] => respond_about_file(&mut inner, &method, &uri, request.body),
        _ => panic!("no such path: {target}"),
    }
}

fn respond_about_file(inner: &mut Inner, method: &Method, uri: &Uri, body: Bytes) -> Response<Body> {
    let url = reqwest::Url::parse(&format!("http://host{uri}")).unwrap();
    let path = url.query_pairs().find(|(name, _)| name == "path").unwrap().1.into_owned();
    if method == Method::POST {
        inner.files.insert(path.clone(), body);
        return response(StatusCode::OK, json!([{"path": path, "name": "n", "type": "file"}]).to_string());
    }
    match inner.files.get(&path) {
        Some(content) => response(StatusCode::OK, content.clone()),
        None => response(StatusCode::NOT_FOUND, json!({"code": 404, "message": "does not exist"}).to_string()),
    }
}

/// Returns the content of the only field of a form.
async fn read_form(content_type: &str, body: Bytes) -> Bytes {
    let body = stream::once(async move { Ok::<_, Infallible>(body) });
    let mut form = multer::Multipart::new(body, multer::parse_boundary(content_type).unwrap());
    let field = form.next_field().await.unwrap().unwrap();
    assert_eq!(field.name(), Some("file"));
    let content = field.bytes().await.unwrap();
    assert!(form.next_field().await.unwrap().is_none());
    content
}

fn respond_with(process: Process) -> Response<Body> {
    let chunks = stream::iter(process.chunks).map(Ok);
    let rest = match process.ending {
        Ending::Complete => stream::empty().boxed(),
        Ending::Broken => stream::once(async {
            // The chunks are sent when no more are ready.
            tokio::task::yield_now().await;
            Err(std::io::Error::other("broken"))
        })
        .boxed(),
        Ending::Open => stream::pending().boxed(),
    };
    let body = Body::from_stream(chunks.chain(rest));
    Response::builder().header("content-type", "application/connect+json").body(body).unwrap()
}

fn response(status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    Response::builder().status(status).body(body.into()).unwrap()
}
