//! An HTTP client with little overhead: one connection, prebuilt requests, and responses that are parsed only as far as
//! necessary. The load generator shares the cores with the server, so its CPU time reduces the server's.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The project key of a server with the default configuration.
const KEY: &str = "sk-ac-your-root-api-bearer-token";
const BOUNDARY: &str = "a-boundary-that-no-content-has";
/// The maximum size of a response body that is kept. The bytes of a larger body are counted and discarded.
const MAX_KEPT_BODY: usize = 1 << 20;
/// The maximum size of a body that is sent in a single write. The head is always sent separately, as most clients do.
const MAX_SINGLE_WRITE: usize = 64 << 10;
/// The maximum number of bytes that one read from the socket requests.
const CHUNK: usize = 256 << 10;

/// A request in its wire format.
#[derive(Clone)]
pub struct Request {
    /// The label of the request in a report.
    pub kind: &'static str,
    chunks: Vec<Bytes>,
}

impl Request {
    pub fn get(kind: &'static str, path: &str) -> Self {
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n");
        Self { kind, chunks: vec![head.into()] }
    }

    /// Returns a POST request without a body.
    pub fn post(kind: &'static str, path: &str) -> Self {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 0\r\n\r\n"
        );
        Self { kind, chunks: vec![head.into()] }
    }

    /// Returns a POST request with a JSON body.
    pub fn post_json(kind: &'static str, path: &str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        Self { kind, chunks: vec![head.into(), body] }
    }

    pub fn delete(kind: &'static str, path: &str) -> Self {
        let head = format!("DELETE {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n");
        Self { kind, chunks: vec![head.into()] }
    }

    pub fn new_disk() -> Self {
        Self::post("create a disk", "/api/v1/disk")
    }

    pub fn new_session(tracked: bool) -> Self {
        let body = serde_json::json!({"disable_task_tracking": !tracked}).to_string();
        Self::post_json("create a session", "/api/v1/session", body)
    }

    /// Returns a request that stores a file. Its content is the concatenation of the two parts.
    pub fn upload(kind: &'static str, disk: &str, directory: &str, name: &str, content: [Bytes; 2]) -> Self {
        let field =
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file_path\"\r\n\r\n{directory}\r\n");
        Self::form(kind, &format!("/api/v1/disk/{disk}/artifact"), &field, name, content)
    }

    /// Returns a request that creates a skill from an archive.
    pub fn skill(kind: &'static str, archive: Bytes) -> Self {
        Self::form(kind, "/api/v1/agent_skills", "", "skill.zip", [archive, Bytes::new()])
    }

    /// Returns a POST request with a multipart form: encoded fields, followed by a file.
    fn form(kind: &'static str, path: &str, fields: &str, name: &str, content: [Bytes; 2]) -> Self {
        let before = format!(
            "{fields}--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        let after = format!("\r\n--{BOUNDARY}--\r\n");
        let length = before.len() + content[0].len() + content[1].len() + after.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\
             Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {length}\r\n\r\n"
        );
        let [first, second] = content;
        let body = [before.into(), first, second, after.into()];
        let chunks = if length <= MAX_SINGLE_WRITE {
            vec![head.into(), body.concat().into()]
        } else {
            [vec![head.into()], body.into()].concat()
        };
        Self { kind, chunks }
    }

    /// Returns the request as it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.chunks.concat()
    }

    /// Returns the length of the body, or of the whole request if it has no body.
    pub fn length(&self) -> usize {
        self.chunks.iter().skip(usize::from(self.chunks.len() > 1)).map(Bytes::len).sum()
    }

    /// Replaces the key of the request.
    pub fn with_key(mut self, key: &str) -> Self {
        self.chunks[0] = String::from_utf8_lossy(&self.chunks[0]).replacen(KEY, key, 1).into();
        self
    }
}

/// A response of the server.
pub struct Response<'a> {
    pub status: u16,
    /// The body. Empty if it was larger than [`MAX_KEPT_BODY`] or had a chunked transfer encoding.
    pub body: &'a [u8],
    /// The length of the body, even if the body was discarded.
    pub length: usize,
}

impl Response<'_> {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// A client with one persistent connection.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends a request and reads the complete response.
    pub async fn send(&mut self, request: &Request) -> io::Result<Response<'_>> {
        for chunk in &request.chunks {
            self.stream.write_all(chunk).await?;
        }
        self.buffer.clear();
        let head = loop {
            if let Some(position) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break position + 4;
            }
            self.read_more(4 << 10).await?;
        };
        let (status, length) = read_head(&self.buffer[..head])?;
        let Some(length) = length else {
            let length = self.drop_chunks(head).await?;
            return Ok(Response { status, body: &[], length });
        };
        if length > MAX_KEPT_BODY {
            self.drop_body(length.saturating_sub(self.buffer.len() - head)).await?;
            return Ok(Response { status, body: &[], length });
        }
        while self.buffer.len() < head + length {
            self.read_more(head + length - self.buffer.len()).await?;
        }
        Ok(Response { status, body: &self.buffer[head..], length })
    }

    /// Sends a request and returns the `data` of its response. Returns an error if the response is not a success.
    pub async fn data(&mut self, request: &Request) -> anyhow::Result<Value> {
        Ok(self.timed(request).await?.0)
    }

    /// Sends a request and returns the `data` of its response, and the time until the response was complete.
    pub async fn timed(&mut self, request: &Request) -> anyhow::Result<(Value, Duration)> {
        let start = Instant::now();
        let response = self.send(request).await.with_context(|| format!("{} got no response", request.kind))?;
        let time = start.elapsed();
        let body = String::from_utf8_lossy(response.body);
        ensure!(response.is_success(), "{} returned {}: {body}", request.kind, response.status);
        let mut envelope: Value = serde_json::from_slice(response.body)?;
        Ok((envelope["data"].take(), time))
    }

    /// Creates a disk and returns its id.
    pub async fn new_disk(&mut self) -> anyhow::Result<String> {
        self.new_id(&Request::new_disk()).await
    }

    /// Creates a session and returns its id.
    pub async fn new_session(&mut self, tracked: bool) -> anyhow::Result<String> {
        self.new_id(&Request::new_session(tracked)).await
    }

    /// Sends a request that creates an entity, and returns the id of the entity.
    pub async fn new_id(&mut self, request: &Request) -> anyhow::Result<String> {
        let created = self.data(request).await?;
        Ok(created["id"].as_str().with_context(|| format!("{} returned no id", request.kind))?.to_owned())
    }

    async fn read_more(&mut self, at_least: usize) -> io::Result<()> {
        self.buffer.reserve(at_least.min(CHUNK));
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn drop_body(&mut self, mut remaining: usize) -> io::Result<()> {
        while remaining > 0 {
            self.buffer.clear();
            self.read_more(remaining).await?;
            remaining = remaining.saturating_sub(self.buffer.len());
        }
        Ok(())
    }

    /// Reads and discards a body with chunked transfer encoding. Returns its length.
    async fn drop_chunks(&mut self, head: usize) -> io::Result<usize> {
        self.buffer.drain(..head);
        let mut length = 0;
        loop {
            let end = loop {
                if let Some(position) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                    break position;
                }
                self.read_more(4 << 10).await?;
            };
            let size = std::str::from_utf8(&self.buffer[..end]).ok();
            let size = size.and_then(|size| usize::from_str_radix(size, 16).ok());
            let size = size.ok_or_else(|| protocol_error(&self.buffer[..end]))?;
            // The line with the size, and the chunk, each with its line break.
            let mut remaining = end + 2 + size + 2;
            while remaining > self.buffer.len() {
                remaining -= self.buffer.len();
                self.buffer.clear();
                self.read_more(remaining).await?;
            }
            self.buffer.drain(..remaining);
            length += size;
            if size == 0 {
                return Ok(length);
            }
        }
    }
}

fn protocol_error(bytes: &[u8]) -> io::Error {
    io::Error::other(format!("malformed response: {}", String::from_utf8_lossy(bytes)))
}

/// Returns the status and the length of the body. The length is `None` if the transfer encoding is chunked.
fn read_head(head: &[u8]) -> io::Result<(u16, Option<usize>)> {
    let protocol_error = || protocol_error(head);
    let text = std::str::from_utf8(head).map_err(|_| protocol_error())?;
    let status = text.get(9..12).and_then(|status| status.parse().ok()).ok_or_else(protocol_error)?;
    let is_length = |line: &&str| line.get(..15).is_some_and(|name| name.eq_ignore_ascii_case("content-length:"));
    let length = text.lines().find(is_length).and_then(|line| line[15..].trim().parse().ok());
    let is_chunked = |line: &str| line.eq_ignore_ascii_case("transfer-encoding: chunked");
    match length {
        None if !text.lines().any(is_chunked) => Err(protocol_error()),
        length => Ok((status, length)),
    }
}

/// Encodes text as the value of a query parameter.
pub fn percent_encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}
