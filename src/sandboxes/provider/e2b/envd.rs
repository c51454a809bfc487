//! The service in each sandbox that runs commands and copies files. E2B calls it envd.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Body, Method, RequestBuilder, StatusCode};
use serde_json::Value;
use uuid::Uuid;

use crate::blob::ByteStream;
use crate::blob::spool::{Spool, SpoolDir};
use crate::sandboxes::provider::ProviderError;
use crate::sandboxes::provider::http::{JsonApi, message};

/// The port of the service.
pub(super) const PORT: u16 = 49983;
/// How long the transfer of a file may take.
pub(super) const TRANSFER_TIMEOUT: Duration = Duration::from_mins(5);

/// See the [module](self).
pub(super) struct Envd {
    /// Its headers contain the token of the sandbox.
    pub(super) api: JsonApi,
    /// The user that runs commands and owns files. `None` for the default user of the template, which old versions do not know.
    pub(super) user: Option<&'static str>,
}

impl Envd {
    /// Reads a file. Its content may have at most `max_bytes`.
    pub(super) async fn read_file(&self, path: &str, max_bytes: u64, spool: &SpoolDir) -> Result<Spool, ProviderError> {
        let read = async {
            let response = self.api.send(self.file_request(Method::GET, path)).await?;
            if response.status() != StatusCode::OK {
                return Err(match self.api.read_json(response).await? {
                    (StatusCode::NOT_FOUND, _) => ProviderError::FileNotFound(path.to_owned()),
                    (StatusCode::BAD_REQUEST, body) => rejected(path, &body),
                    (status, body) => self.api.unexpected_status(status, &body),
                });
            }
            let (mut body, mut content) = (response.bytes_stream(), spool.writer());
            while let Some(chunk) = body.try_next().await.map_err(|err| self.api.unreachable(&err))? {
                if content.size() + chunk.len() as u64 > max_bytes {
                    return Err(ProviderError::FileTooLarge(max_bytes));
                }
                content.write(&chunk).await.map_err(ProviderError::Content)?;
            }
            content.finish().await.map_err(ProviderError::Content)
        };
        self.api.within(TRANSFER_TIMEOUT, read).await
    }

    /// Writes a file and the directories above it. Replaces an existing file.
    pub(super) async fn write_file(&self, path: &str, content: ByteStream) -> Result<(), ProviderError> {
        let boundary = Uuid::new_v4().simple().to_string();
        let begin = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"file\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        let end = format!("\r\n--{boundary}--\r\n");
        let (content, content_error) = keep_error(content);
        let part = |text: String| stream::once(async move { Ok(Bytes::from(text)) });
        let form = part(begin).chain(content).chain(part(end));
        let request = self
            .file_request(Method::POST, path)
            .header(CONTENT_TYPE, format!("multipart/form-data; boundary={boundary}"))
            .body(Body::wrap_stream(form));
        let written = self.api.within(TRANSFER_TIMEOUT, async {
            let (status, body) = self.api.read(self.api.send(request).await?).await?;
            match (status.as_u16(), body) {
                // The service itself responds with 500 if it cannot write the path, a proxy with another body.
                (400 | 500 | 507, Ok(body)) if body["code"].is_number() => Err(rejected(path, &body)),
                (_, body) => match self.api.check(status, body)? {
                    (StatusCode::OK, _) => Ok(()),
                    (status, body) => Err(self.api.unexpected_status(status, &body)),
                },
            }
        });
        let written = written.await;
        // The request fails if its content cannot be read.
        let content_error = content_error.lock().unwrap_or_else(PoisonError::into_inner).take();
        content_error.map_or(written, |err| Err(ProviderError::Content(err)))
    }

    fn file_request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.api.request(method, "/files").query(&[("path", path)]);
        if let Some(user) = self.user { request.query(&[("username", user)]) } else { request }
    }
}

/// Returns the error for a file that the sandbox does not accept.
fn rejected(path: &str, body: &Value) -> ProviderError {
    ProviderError::FileRejected(format!("the sandbox does not accept the path {path}{}", message(body)))
}

/// Returns a stream with the same content, and its error once it has failed, which is otherwise lost in that of the request.
fn keep_error(content: ByteStream) -> (ByteStream, Arc<Mutex<Option<io::Error>>>) {
    let kept = Arc::new(Mutex::new(None));
    let error = Arc::clone(&kept);
    let content = content.map_err(move |err| {
        let copy = io::Error::from(err.kind());
        *error.lock().unwrap_or_else(PoisonError::into_inner) = Some(err);
        copy
    });
    (content.boxed(), kept)
}
