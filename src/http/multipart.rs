//! Parses multipart forms. Text fields are read into memory, files into spools.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::Request;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use multer::{Constraints, Field, Multipart, SizeLimit};
use serde_json::{Map, Value};

use super::context::RequestContext;
use super::file_name::parse_file_name;
use super::idempotency::fingerprint::{Fingerprint, Hash, RequestHasher};
use super::memory::{self, Reservations};
use super::request_headers::{content_length, content_type};
use crate::blob::spool::Spool;
use crate::config::Limits;
use crate::error::storage::temp_file_error;
use crate::error::{Error, Result};

/// The maximum length in bytes of everything in a form except for the content of its fields: boundaries, part headers, and the
/// epilogue.
const MULTIPART_OVERHEAD: u64 = 64 * 1024;
/// The maximum number of text fields.
const MAX_TEXT_FIELDS: usize = 64;

/// The fields that a route accepts in a form, and their limits.
pub struct FormLimits {
    /// The only field that may contain a file, or `None` if every field may.
    file_field: Option<&'static str>,
    max_files: usize,
    /// The maximum size of each file.
    max_file_bytes: u64,
    /// The maximum size of all fields together.
    max_total_bytes: u64,
    /// The text field that may be as long as a JSON body. The others have at most [`Limits::max_form_field_bytes`].
    long_field: Option<&'static str>,
}

impl FormLimits {
    /// Returns the limits of a form with at most one file, in the field `file`.
    pub fn one_file(limits: &Limits) -> Self {
        Self::with_one_file(limits, limits.max_artifact_bytes)
    }

    /// Returns the limits of a form with at most one skill archive, in the field `file`.
    pub fn archive(limits: &Limits) -> Self {
        Self::with_one_file(limits, limits.max_skill_archive_bytes)
    }

    fn with_one_file(limits: &Limits, max_file_bytes: u64) -> Self {
        let max_total_bytes = max_file_bytes.saturating_add(limits.max_form_field_bytes.saturating_mul(2));
        Self { file_field: Some("file"), max_files: 1, max_file_bytes, max_total_bytes, long_field: None }
    }

    /// Returns the limits of a form with a message: its JSON in the field `payload`, and its files.
    pub fn message(limits: &Limits) -> Self {
        Self {
            file_field: None,
            max_files: limits.max_message_files,
            max_file_bytes: limits.max_artifact_bytes,
            max_total_bytes: limits.max_message_bytes,
            long_field: Some("payload"),
        }
    }

    /// Returns the maximum length of the text field `name` in bytes.
    fn max_text_bytes(&self, name: &str, limits: &Limits) -> u64 {
        if self.long_field == Some(name) { limits.max_json_bytes } else { limits.max_form_field_bytes }
    }

    /// Returns the maximum length of all text fields together, in bytes.
    fn max_total_text_bytes(&self, limits: &Limits) -> u64 {
        let long = if self.long_field.is_some() { limits.max_json_bytes } else { 0 };
        long.saturating_add(limits.max_form_field_bytes.saturating_mul(2))
    }

    fn too_large(&self) -> Error {
        match self.file_field {
            Some(_) => file_too_large(self.max_file_bytes),
            None => form_too_large(self.max_total_bytes),
        }
    }
}

/// A form that has been read completely.
#[derive(Default)]
pub struct MultipartForm {
    /// The text fields.
    pub fields: Map<String, Value>,
    /// The files, in the order of the form.
    pub files: Vec<UploadedFile>,
}

/// A file of a form.
pub struct UploadedFile {
    /// The name of the form field.
    pub field: String,
    /// The file name from the client, which may contain directories.
    pub name: String,
    pub content: Spool,
}

impl MultipartForm {
    /// Reads a form. Returns `None` if `Content-Type` is not `multipart/form-data` with a boundary.
    ///
    /// # Errors
    /// Returns 400 if the form is malformed, has a duplicate field or too many fields, and 413 if it exceeds a size limit. If
    /// every field may contain a file, a second file in the same field is not an error, but is ignored.
    pub async fn read(request: Request, ctx: &RequestContext, form_limits: &FormLimits) -> Result<Option<Self>> {
        let limits = &ctx.limits;
        let Ok(boundary) = multer::parse_boundary(content_type(request.headers())) else {
            return Ok(None);
        };
        let max_length = form_limits.max_total_bytes.saturating_add(MULTIPART_OVERHEAD);
        if content_length(request.headers()).is_some_and(|length| length > max_length) {
            return Err(form_limits.too_large());
        }
        let fingerprint = Fingerprint::from_request(&request);
        let max_total_text_bytes = form_limits.max_total_text_bytes(limits);
        let mut text_reader = TextFieldReader {
            reservations: Reservations::from_extensions(request.extensions()),
            bytes_to_reserve: content_length(request.headers()).unwrap_or(u64::MAX).min(max_total_text_bytes),
            length: 0,
        };
        let mut chunks = body_chunks(request, limits.body_idle_timeout);
        let prefix = read_first_boundary(&mut chunks, &boundary).await;
        // Without this limit, multer would buffer an endless part header in memory.
        let constraints = Constraints::new().size_limit(SizeLimit::new().whole_stream(max_length));
        let body = futures_util::stream::iter(prefix).chain(chunks.by_ref());
        let parts = Multipart::with_constraints(body, boundary, constraints);
        let form = Self::read_parts(parts, ctx, form_limits, &mut text_reader).await?;
        drain_epilogue(&mut chunks).await;
        if let Some(fingerprint) = fingerprint {
            fingerprint.set_body_hash(form.hash().await);
        }
        Ok(Some(form))
    }

    async fn read_parts(
        mut parts: Multipart<'_>,
        ctx: &RequestContext,
        form_limits: &FormLimits,
        text_reader: &mut TextFieldReader,
    ) -> Result<Self> {
        let mut form = Self::default();
        while let Some(field) = parts.next_field().await.map_err(|err| multipart_error(&err))? {
            let field_name = field.name().unwrap_or_default().to_owned();
            match parse_file_name(&field, &field_name)? {
                Some(file_name)
                    if form_limits.file_field.is_none_or(|allowed| allowed == field_name) && !file_name.is_empty() =>
                {
                    if form.file(&field_name).is_some() {
                        match form_limits.file_field {
                            Some(_) => return Err(duplicate_field(&field_name)),
                            None => discard_field(field, form_limits.max_file_bytes).await?,
                        }
                        continue;
                    }
                    if form.files.len() == form_limits.max_files {
                        return Err(Error::invalid_field(
                            &field_name,
                            format_args!("exceeds the maximum of {} files", form_limits.max_files),
                        ));
                    }
                    let content = spool_field(field, ctx, form_limits.max_file_bytes).await?;
                    form.files.push(UploadedFile { field: field_name, name: file_name, content });
                }
                // A file in a field that the route ignores, or a file without a name.
                Some(_) => discard_field(field, form_limits.max_file_bytes).await?,
                None => {
                    let text = text_reader.read_field(field, &field_name, ctx, form_limits).await?;
                    if form.fields.len() == MAX_TEXT_FIELDS {
                        return Err(Error::invalid_field(
                            &field_name,
                            format_args!("exceeds the maximum of {MAX_TEXT_FIELDS} text fields"),
                        ));
                    }
                    if form.fields.insert(field_name.clone(), Value::String(text)).is_some() {
                        return Err(duplicate_field(&field_name));
                    }
                }
            }
        }
        Ok(form)
    }

    /// Returns the hash of the fields and files. The bytes of the body are not hashed, because a client that repeats the request
    /// may choose another boundary.
    async fn hash(&self) -> Hash {
        let mut hasher = RequestHasher::default();
        for (name, value) in &self.fields {
            hasher.add(b"text");
            hasher.add(name.as_bytes());
            hasher.add_large(value.as_str().unwrap_or_default().as_bytes()).await;
        }
        for file in &self.files {
            hasher.add(b"file");
            hasher.add(file.field.as_bytes());
            hasher.add(file.name.as_bytes());
            hasher.add(file.content.sha256.as_bytes());
        }
        hasher.finish()
    }

    /// Removes a text field and returns its value, or an empty string if there is none.
    pub fn take_text(&mut self, field: &str) -> String {
        match self.fields.remove(field) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        }
    }

    /// Returns the file in a field.
    pub fn file(&self, field: &str) -> Option<&UploadedFile> {
        self.files.iter().find(|file| file.field == field)
    }
}

/// Reads the text fields of a form and ignores its files.
pub async fn read_text_fields(request: Request, ctx: &RequestContext) -> Result<Map<String, Value>> {
    let form = MultipartForm::read(request, ctx, &FormLimits::one_file(&ctx.limits)).await?;
    form.map(|form| form.fields).ok_or_else(|| Error::invalid_field("Content-Type", "multipart boundary is missing"))
}

type BodyChunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Returns the body as a stream that fails if no data arrives for `idle_timeout`.
fn body_chunks(request: Request, idle_timeout: Duration) -> BodyChunks {
    let body: BodyDataStream = request.into_body().into_data_stream();
    let chunks = futures_util::stream::unfold(body, move |mut body| async move {
        let chunk = match tokio::time::timeout(idle_timeout, body.next()).await {
            Ok(chunk) => chunk?.map_err(io::Error::other),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "timed out waiting for the request body")),
        };
        Some((chunk, body))
    });
    Box::pin(chunks.fuse())
}

/// Reads at least as many bytes as the first boundary has. Without this, multer may reject a complete body as incomplete: it
/// polls the body twice while it searches for the boundary, and the whole body may arrive between the two polls (rwf2/multer,
/// pull request 70).
async fn read_first_boundary(chunks: &mut BodyChunks, boundary: &str) -> Vec<io::Result<Bytes>> {
    let mut prefix = Vec::new();
    let mut missing = boundary.len() + "--\r\n".len();
    while missing > 0 {
        let Some(chunk) = chunks.next().await else { break };
        missing = chunk.as_ref().map_or(0, |chunk| missing.saturating_sub(chunk.len()));
        prefix.push(chunk);
    }
    prefix
}

/// Reads the epilogue, which follows the last boundary, up to [`MULTIPART_OVERHEAD`] bytes. Otherwise the connection could not be
/// used for another request.
async fn drain_epilogue(chunks: &mut BodyChunks) {
    let mut length = 0;
    while let Some(Ok(chunk)) = chunks.next().await {
        length += chunk.len() as u64;
        if length > MULTIPART_OVERHEAD {
            break;
        }
    }
}

/// Writes a file to a spool.
async fn spool_field(mut field: Field<'_>, ctx: &RequestContext, limit: u64) -> Result<Spool> {
    let mut writer = ctx.spool.writer();
    while let Some(chunk) = next_chunk(&mut field).await? {
        writer.write(&chunk).await.map_err(temp_file_error)?;
        if writer.size() > limit {
            return Err(file_too_large(limit));
        }
    }
    writer.finish().await.map_err(temp_file_error)
}

/// A reader of the text fields of one form, which counts their total length.
struct TextFieldReader {
    reservations: Reservations,
    /// The memory that is reserved if the fields are longer than [`MAX_UNRESERVED_TEXT_BYTES`].
    bytes_to_reserve: u64,
    /// The total length of the fields that have been read, in bytes.
    length: u64,
}

impl TextFieldReader {
    async fn read_field(
        &mut self,
        mut field: Field<'_>,
        name: &str,
        ctx: &RequestContext,
        form_limits: &FormLimits,
    ) -> Result<String> {
        let max_length = form_limits.max_text_bytes(name, &ctx.limits);
        let max_total_length = form_limits.max_total_text_bytes(&ctx.limits);
        let mut text = Vec::new();
        while let Some(chunk) = next_chunk(&mut field).await? {
            let was_short = self.length <= MAX_UNRESERVED_TEXT_BYTES;
            self.length += chunk.len() as u64;
            if self.length > max_total_length {
                return Err(Error::PayloadTooLarge(format!(
                    "the text fields exceed the maximum of {max_total_length} bytes"
                )));
            }
            if was_short && self.length > MAX_UNRESERVED_TEXT_BYTES {
                ctx.body_memory.reserve_body(&self.reservations, self.bytes_to_reserve).await?;
            }
            text.extend_from_slice(&chunk);
            if text.len() as u64 > max_length {
                return Err(Error::PayloadTooLarge(format!("{name}: exceeds the maximum of {max_length} bytes")));
            }
        }
        String::from_utf8(text).map_err(|_| Error::invalid_field(name, "is not valid UTF-8"))
    }
}

/// The maximum total length of text fields that are read without a reservation.
const MAX_UNRESERVED_TEXT_BYTES: u64 = memory::MAX_INLINE_WORK_BYTES as u64;

/// Reads a file and discards it.
async fn discard_field(mut field: Field<'_>, limit: u64) -> Result<()> {
    let mut size = 0;
    while let Some(chunk) = next_chunk(&mut field).await? {
        size += chunk.len() as u64;
        if size > limit {
            return Err(file_too_large(limit));
        }
    }
    Ok(())
}

async fn next_chunk(field: &mut Field<'_>) -> Result<Option<Bytes>> {
    field.chunk().await.map_err(|err| multipart_error(&err))
}

fn multipart_error(err: &multer::Error) -> Error {
    if let multer::Error::StreamSizeExceeded { limit } = err {
        return form_too_large(*limit);
    }
    let detail = format_args!("body: incomplete or malformed multipart form ({err})");
    Error::bad_request_with_reason("parameter error", detail)
}

fn form_too_large(limit: u64) -> Error {
    Error::PayloadTooLarge(format!("the form exceeds the maximum of {limit} bytes"))
}

fn duplicate_field(name: &str) -> Error {
    Error::invalid_field(name, "must not appear more than once in the form")
}

/// Returns the error for a file that exceeds the limit. Clients match the text, which has the limit in MiB with two decimals.
#[expect(clippy::cast_precision_loss, reason = "the text has only two decimals")]
fn file_too_large(limit: u64) -> Error {
    let mebibytes = limit as f64 / 1_048_576.0;
    Error::PayloadTooLarge(format!("file size exceeds maximum allowed size of {mebibytes:.2}MB"))
}
