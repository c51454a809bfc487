//! A client that costs next to nothing: one connection, requests as bytes that are ready to send, answers read only as far as
//! they must be. What the load generator spends, the server on the same cores does not get.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The key of a server that nothing is configured for.
const KEY: &str = "sk-ac-your-root-api-bearer-token";
const BOUNDARY: &str = "a-boundary-that-no-content-has";
/// An answer up to this size is kept, the bytes of a larger one are counted and dropped.
const KEPT: usize = 1 << 20;
/// A body up to this size leaves in one piece. The head always goes before it by itself, as most clients send it.
const ONE_PIECE: usize = 64 << 10;
/// What is read from the socket at once.
const CHUNK: usize = 256 << 10;

/// A request as it goes over the wire.
#[derive(Clone)]
pub struct Request {
    /// What it is called in a table.
    pub kind: &'static str,
    pieces: Vec<Bytes>,
}

impl Request {
    pub fn get(kind: &'static str, path: &str) -> Self {
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n");
        Self { kind, pieces: vec![head.into()] }
    }

    /// A POST without a body.
    pub fn post(kind: &'static str, path: &str) -> Self {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 0\r\n\r\n"
        );
        Self { kind, pieces: vec![head.into()] }
    }

    /// A POST of JSON.
    pub fn post_json(kind: &'static str, path: &str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        Self { kind, pieces: vec![head.into(), body] }
    }

    pub fn delete(kind: &'static str, path: &str) -> Self {
        let head = format!("DELETE {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n");
        Self { kind, pieces: vec![head.into()] }
    }

    pub fn new_disk() -> Self {
        Self::post("create a disk", "/api/v1/disk")
    }

    pub fn new_session(tracked: bool) -> Self {
        let body = serde_json::json!({"disable_task_tracking": !tracked}).to_string();
        Self::post_json("create a session", "/api/v1/session", body)
    }

    /// Stores a file whose content is the two parts, one after the other.
    pub fn upload(kind: &'static str, disk: &str, directory: &str, name: &str, content: [Bytes; 2]) -> Self {
        let field =
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file_path\"\r\n\r\n{directory}\r\n");
        Self::form(kind, &format!("/api/v1/disk/{disk}/artifact"), &field, name, content)
    }

    /// Makes a skill of an archive.
    pub fn skill(kind: &'static str, archive: Bytes) -> Self {
        Self::form(kind, "/api/v1/agent_skills", "", "skill.zip", [archive, Bytes::new()])
    }

    /// A POST of a form: fields that are ready to send, and then a file.
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
        let pieces = if length <= ONE_PIECE {
            vec![head.into(), body.concat().into()]
        } else {
            [vec![head.into()], body.into()].concat()
        };
        Self { kind, pieces }
    }

    /// The bytes of the body, or of the request if it has none.
    pub fn length(&self) -> usize {
        self.pieces.iter().skip(usize::from(self.pieces.len() > 1)).map(Bytes::len).sum()
    }

    /// The same with another key.
    pub fn with_key(mut self, key: &str) -> Self {
        self.pieces[0] = String::from_utf8_lossy(&self.pieces[0]).replacen(KEY, key, 1).into();
        self
    }
}

/// What the server said.
pub struct Answer<'a> {
    pub status: u16,
    /// Empty if it was too large to be kept, or came in chunks.
    pub body: &'a [u8],
    /// How long the body was, whether it was kept or not.
    pub length: usize,
}

impl Answer<'_> {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// A connection that is kept alive.
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

    /// Sends a request and reads its answer to the end.
    pub async fn send(&mut self, request: &Request) -> io::Result<Answer<'_>> {
        for piece in &request.pieces {
            self.stream.write_all(piece).await?;
        }
        self.buffer.clear();
        let head = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.read_more(4 << 10).await?;
        };
        let (status, length) = read_head(&self.buffer[..head])?;
        let Some(length) = length else {
            let length = self.drop_chunks(head).await?;
            return Ok(Answer { status, body: &[], length });
        };
        if length > KEPT {
            self.drop_body(length.saturating_sub(self.buffer.len() - head)).await?;
            return Ok(Answer { status, body: &[], length });
        }
        while self.buffer.len() < head + length {
            self.read_more(head + length - self.buffer.len()).await?;
        }
        Ok(Answer { status, body: &self.buffer[head..], length })
    }

    /// The `data` of an answer that must be a success.
    pub async fn data(&mut self, request: &Request) -> anyhow::Result<Value> {
        Ok(self.timed(request).await?.0)
    }

    /// The same, with how long the answer took to be here.
    pub async fn timed(&mut self, request: &Request) -> anyhow::Result<(Value, Duration)> {
        let start = Instant::now();
        let answer = self.send(request).await.with_context(|| format!("{} got no answer", request.kind))?;
        let time = start.elapsed();
        let said = String::from_utf8_lossy(answer.body);
        ensure!(answer.is_success(), "{} answered {}: {said}", request.kind, answer.status);
        let mut envelope: Value = serde_json::from_slice(answer.body)?;
        Ok((envelope["data"].take(), time))
    }

    /// A new disk's id.
    pub async fn new_disk(&mut self) -> anyhow::Result<String> {
        self.new_id(&Request::new_disk()).await
    }

    /// A new session's id.
    pub async fn new_session(&mut self, tracked: bool) -> anyhow::Result<String> {
        self.new_id(&Request::new_session(tracked)).await
    }

    /// The id of what a request makes.
    pub async fn new_id(&mut self, request: &Request) -> anyhow::Result<String> {
        let made = self.data(request).await?;
        Ok(made["id"].as_str().with_context(|| format!("{} gave no id", request.kind))?.to_owned())
    }

    async fn read_more(&mut self, at_least: usize) -> io::Result<()> {
        self.buffer.reserve(at_least.min(CHUNK));
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn drop_body(&mut self, mut left: usize) -> io::Result<()> {
        while left > 0 {
            self.buffer.clear();
            self.read_more(left).await?;
            left = left.saturating_sub(self.buffer.len());
        }
        Ok(())
    }

    /// Reads a body that comes in chunks after the head, and tells how long it was.
    async fn drop_chunks(&mut self, head: usize) -> io::Result<usize> {
        self.buffer.drain(..head);
        let mut length = 0;
        loop {
            let end = loop {
                if let Some(at) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                    break at;
                }
                self.read_more(4 << 10).await?;
            };
            let size = std::str::from_utf8(&self.buffer[..end]).ok();
            let size = size.and_then(|size| usize::from_str_radix(size, 16).ok());
            let size = size.ok_or_else(|| wrong(&self.buffer[..end]))?;
            // Its length and itself, each with the end of a line.
            let mut left = end + 2 + size + 2;
            while left > self.buffer.len() {
                left -= self.buffer.len();
                self.buffer.clear();
                self.read_more(left).await?;
            }
            self.buffer.drain(..left);
            length += size;
            if size == 0 {
                return Ok(length);
            }
        }
    }
}

fn wrong(what: &[u8]) -> io::Error {
    io::Error::other(format!("not understood: {}", String::from_utf8_lossy(what)))
}

/// The status, and how many bytes follow; `None` if they come in chunks.
fn read_head(head: &[u8]) -> io::Result<(u16, Option<usize>)> {
    let wrong = || wrong(head);
    let text = std::str::from_utf8(head).map_err(|_| wrong())?;
    let status = text.get(9..12).and_then(|status| status.parse().ok()).ok_or_else(wrong)?;
    let is_length = |line: &&str| line.get(..15).is_some_and(|name| name.eq_ignore_ascii_case("content-length:"));
    let length = text.lines().find(is_length).and_then(|line| line[15..].trim().parse().ok());
    let is_chunked = |line: &str| line.eq_ignore_ascii_case("transfer-encoding: chunked");
    match length {
        None if !text.lines().any(is_chunked) => Err(wrong()),
        length => Ok((status, length)),
    }
}

/// Text as the value of a query parameter.
pub fn percent_encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}
