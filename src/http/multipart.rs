//! Multipart forms. Text fields are kept in memory; files flow through a spool, whatever their size.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::Request;
use axum::http::header;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use multer::{Constraints, Field, Multipart, SizeLimit};
use serde_json::{Map, Value};

use super::context::RequestContext;
use super::head::{content_length, content_type};
use super::idempotency::fingerprint::{Fingerprint, Hash, Hasher};
use super::memory::{self, Reservations};
use crate::blob::spool::Spool;
use crate::config::Limits;
use crate::error::{Error, Result};

/// What a form may add to the bytes of its fields: boundaries and headers of its parts.
const FRAME: u64 = 64 * 1024;
/// Beside the files, no route needs more.
const MAX_TEXTS: usize = 64;

/// What a route expects of a form.
pub struct FormLimits {
    /// The field of the one file that counts; `None` if files may come in any field.
    only: Option<&'static str>,
    /// How many files there may be.
    files: usize,
    /// Bytes of each file.
    file: u64,
    /// Bytes of all fields.
    whole: u64,
    /// A text field that may be as long as a JSON body; the others are short.
    long_text: Option<&'static str>,
}

impl FormLimits {
    /// A form with at most one file, in the field `file`.
    pub fn one_file(limits: &Limits) -> Self {
        Self::one(limits, limits.artifact)
    }

    /// A form with at most one archive, in the field `file`.
    pub fn archive(limits: &Limits) -> Self {
        Self::one(limits, limits.skill)
    }

    fn one(limits: &Limits, file: u64) -> Self {
        let whole = file.saturating_add(limits.form_field.saturating_mul(2));
        Self { only: Some("file"), files: 1, file, whole, long_text: None }
    }

    /// A message in the field `payload`, and its files.
    pub fn message(limits: &Limits) -> Self {
        let whole = limits.message;
        Self { only: None, files: limits.message_files, file: limits.artifact, whole, long_text: Some("payload") }
    }

    fn text_limit(&self, name: &str, limits: &Limits) -> u64 {
        if self.long_text == Some(name) { limits.json } else { limits.form_field }
    }

    /// The maximum length of all text fields together, in bytes.
    fn max_texts(&self, limits: &Limits) -> u64 {
        let long = if self.long_text.is_some() { limits.json } else { 0 };
        long.saturating_add(limits.form_field.saturating_mul(2))
    }

    fn too_large(&self) -> Error {
        match self.only {
            Some(_) => file_too_large(self.file),
            None => form_too_large(self.whole),
        }
    }
}

/// A form that was read to its end.
#[derive(Default)]
pub struct MultipartForm {
    /// The text fields.
    pub fields: Map<String, Value>,
    /// In the order they came.
    pub files: Vec<UploadedFile>,
}

/// A file of a form.
pub struct UploadedFile {
    pub field: String,
    /// As the client named it, directories and all.
    pub name: String,
    pub content: Spool,
}

impl MultipartForm {
    /// Reads a form. `None` if the body is no multipart form.
    ///
    /// # Errors
    /// 400 for a broken form and a text that stands twice, 413 for what is too large.
    pub async fn read(request: Request, ctx: &RequestContext, rules: &FormLimits) -> Result<Option<Self>> {
        let limits = &ctx.limits;
        let Ok(boundary) = multer::parse_boundary(content_type(request.headers())) else {
            return Ok(None);
        };
        let largest = rules.whole.saturating_add(FRAME);
        if content_length(request.headers()).is_some_and(|length| length > largest) {
            return Err(rules.too_large());
        }
        let fingerprint = Fingerprint::wanted_by(&request);
        let mut texts = Texts {
            reservations: Reservations::of(request.extensions()),
            expected: content_length(request.headers()).unwrap_or(u64::MAX).min(rules.max_texts(limits)),
            length: 0,
        };
        let mut chunks = chunks(request, limits.idle);
        let begun = first_bytes(&mut chunks, &boundary).await;
        // A part's head that never ends would otherwise be kept as it comes.
        let whole = Constraints::new().size_limit(SizeLimit::new().whole_stream(largest));
        let body = futures_util::stream::iter(begun).chain(chunks.by_ref());
        let form = Self::read_parts(Multipart::with_constraints(body, boundary, whole), ctx, rules, &mut texts).await?;
        finish(&mut chunks).await;
        if let Some(fingerprint) = fingerprint {
            fingerprint.set_body(form.hash().await);
        }
        Ok(Some(form))
    }

    async fn read_parts(
        mut parts: Multipart<'_>,
        ctx: &RequestContext,
        rules: &FormLimits,
        texts: &mut Texts,
    ) -> Result<Self> {
        let mut form = Self::default();
        while let Some(field) = parts.next_field().await.map_err(|err| broken(&err))? {
            let name = field.name().unwrap_or_default().to_owned();
            match file_name(&field, &name)? {
                Some(file) if rules.only.is_none_or(|only| only == name) && !file.is_empty() => {
                    if form.file(&name).is_some() {
                        match rules.only {
                            Some(_) => return Err(twice(&name)),
                            None => skip(field, rules.file).await?,
                        }
                        continue;
                    }
                    if form.files.len() == rules.files {
                        return Err(Error::invalid_field(
                            &name,
                            format_args!("is more than the {} files that may come", rules.files),
                        ));
                    }
                    let content = spool(field, ctx, rules.file).await?;
                    form.files.push(UploadedFile { field: name, name: file, content });
                }
                // A file that nobody asked for, or one without a name.
                Some(_) => skip(field, rules.file).await?,
                None => {
                    let text = texts.read(field, &name, ctx, rules).await?;
                    if form.fields.len() == MAX_TEXTS {
                        return Err(Error::invalid_field(
                            &name,
                            format_args!("is more than the {MAX_TEXTS} texts that may come"),
                        ));
                    }
                    if form.fields.insert(name.clone(), Value::String(text)).is_some() {
                        return Err(twice(&name));
                    }
                }
            }
        }
        Ok(form)
    }

    /// Hashes the contents of the form. Its bytes do not count: a client that sends it again chooses another boundary.
    async fn hash(&self) -> Hash {
        let mut hasher = Hasher::default();
        for (name, value) in &self.fields {
            hasher.add(b"text");
            hasher.add(name.as_bytes());
            hasher.add_long(value.as_str().unwrap_or_default().as_bytes()).await;
        }
        for file in &self.files {
            hasher.add(b"file");
            hasher.add(file.field.as_bytes());
            hasher.add(file.name.as_bytes());
            hasher.add(file.content.sha256.as_bytes());
        }
        hasher.finish()
    }

    /// Takes a text field out; empty if there is none.
    pub fn take_text(&mut self, field: &str) -> String {
        match self.fields.remove(field) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        }
    }

    /// The file that came in a field.
    pub fn file(&self, field: &str) -> Option<&UploadedFile> {
        self.files.iter().find(|file| file.field == field)
    }
}

/// The text fields of a form whose files nobody wants.
pub async fn text_fields(request: Request, ctx: &RequestContext) -> Result<Map<String, Value>> {
    let form = MultipartForm::read(request, ctx, &FormLimits::one_file(&ctx.limits)).await?;
    form.map(|form| form.fields).ok_or_else(|| Error::invalid_field("Content-Type", "has no boundary"))
}

type Chunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

fn chunks(request: Request, idle: Duration) -> Chunks {
    let body: BodyDataStream = request.into_body().into_data_stream();
    let chunks = futures_util::stream::unfold(body, move |mut body| async move {
        let chunk = match tokio::time::timeout(idle, body.next()).await {
            Ok(chunk) => chunk?.map_err(io::Error::other),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the bytes stopped coming")),
        };
        Some((chunk, body))
    });
    Box::pin(chunks.fuse())
}

/// Waits for as much as the first boundary takes. multer polls twice while it looks for it, and takes a body that arrives
/// whole between the two for one that was cut short (rwf2/multer, pull request 70).
async fn first_bytes(chunks: &mut Chunks, boundary: &str) -> Vec<io::Result<Bytes>> {
    let mut begun = Vec::new();
    let mut wanted = boundary.len() + "--\r\n".len();
    while wanted > 0 {
        let Some(chunk) = chunks.next().await else { break };
        wanted = chunk.as_ref().map_or(0, |chunk| wanted.saturating_sub(chunk.len()));
        begun.push(chunk);
    }
    begun
}

/// Takes in what follows the last boundary, within reason: a connection with unread bytes is not kept.
async fn finish(chunks: &mut Chunks) {
    let mut rest = 0;
    while let Some(Ok(chunk)) = chunks.next().await {
        rest += chunk.len() as u64;
        if rest > FRAME {
            break;
        }
    }
}

/// The name of a part that is a file.
fn file_name(field: &Field<'_>, name: &str) -> Result<Option<String>> {
    let disposition = field.headers().get(header::CONTENT_DISPOSITION).map_or(&[][..], |value| value.as_bytes());
    let Ok(disposition) = std::str::from_utf8(disposition) else {
        return Err(Error::invalid_field(name, "its file name is not valid UTF-8"));
    };
    match extended_value(disposition) {
        Some(value) => {
            read_extended(value).map(Some).ok_or_else(|| Error::invalid_field(name, "its file name is badly escaped"))
        }
        None => Ok(field.file_name().map(ToOwned::to_owned)),
    }
}

/// What stands after `filename*=`.
fn extended_value(disposition: &str) -> Option<&str> {
    let at = disposition.to_ascii_lowercase().find("filename*=")? + "filename*=".len();
    Some(disposition[at..].split(';').next().unwrap_or_default().trim().trim_matches('"'))
}

/// Reads `UTF-8''…` of RFC 5987.
fn read_extended(value: &str) -> Option<String> {
    let (charset, rest) = value.split_once('\'')?;
    let (_, escaped) = rest.split_once('\'')?;
    charset.eq_ignore_ascii_case("utf-8").then(|| crate::percent::decode(escaped.as_bytes()))?
}

async fn spool(mut field: Field<'_>, ctx: &RequestContext, limit: u64) -> Result<Spool> {
    let mut writer = ctx.spool.writer();
    while let Some(chunk) = next_chunk(&mut field).await? {
        writer.write(&chunk).await.map_err(no_room)?;
        if writer.size() > limit {
            return Err(file_too_large(limit));
        }
    }
    writer.finish().await.map_err(no_room)
}

/// The text fields of a form while it is read.
struct Texts {
    reservations: Reservations,
    /// An upper bound of their length together, in bytes.
    expected: u64,
    /// Their length so far, in bytes.
    length: u64,
}

impl Texts {
    async fn read(
        &mut self,
        mut field: Field<'_>,
        name: &str,
        ctx: &RequestContext,
        rules: &FormLimits,
    ) -> Result<String> {
        let limits = &ctx.limits;
        let (limit, max_texts) = (rules.text_limit(name, limits), rules.max_texts(limits));
        let mut text = Vec::new();
        while let Some(chunk) = next_chunk(&mut field).await? {
            let was_short = self.length <= SHORT;
            self.length += chunk.len() as u64;
            if self.length > max_texts {
                return Err(Error::PayloadTooLarge(format!(
                    "the text fields are larger than the maximum of {max_texts} bytes"
                )));
            }
            if was_short && self.length > SHORT {
                ctx.body_memory.reserve_body(&self.reservations, self.expected).await?;
            }
            text.extend_from_slice(&chunk);
            if text.len() as u64 > limit {
                return Err(Error::PayloadTooLarge(format!("{name}: is larger than the maximum of {limit} bytes")));
            }
        }
        String::from_utf8(text).map_err(|_| Error::invalid_field(name, "is not valid UTF-8"))
    }
}

/// Text fields up to this length together are read without a reservation, in bytes.
const SHORT: u64 = memory::SHORT as u64;

async fn skip(mut field: Field<'_>, limit: u64) -> Result<()> {
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
    field.chunk().await.map_err(|err| broken(&err))
}

fn broken(err: &multer::Error) -> Error {
    if let multer::Error::StreamSizeExceeded { limit } = err {
        return form_too_large(*limit);
    }
    Error::bad_request_with_reason("parameter error", format_args!("body: is no whole multipart form ({err})"))
}

fn form_too_large(limit: u64) -> Error {
    Error::PayloadTooLarge(format!("the form is larger than the maximum of {limit} bytes"))
}

fn twice(name: &str) -> Error {
    Error::invalid_field(name, "stands in the form twice")
}

fn no_room(err: io::Error) -> Error {
    let msg = "the server has no room for the upload; try again in a moment".into();
    Error::Unavailable { msg, cause: Some(err.into()) }
}

/// The refusal of a file over the limit, as clients know it: in MiB with two decimals.
#[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
fn file_too_large(limit: u64) -> Error {
    let mebibytes = limit as f64 / 1_048_576.0;
    Error::PayloadTooLarge(format!("file size exceeds maximum allowed size of {mebibytes:.2}MB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_extended_form_are_read() {
        let read = |text: &str| extended_value(text).map(read_extended);
        assert_eq!(read("form-data; filename*=UTF-8''gr%C3%B6%C3%9Fe.txt"), Some(Some("größe.txt".into())));
        assert_eq!(read("form-data; filename=\"a\"; filename*=utf-8'en'b%20c"), Some(Some("b c".into())));
        assert_eq!(read("form-data; filename*=latin1''a"), Some(None));
        assert_eq!(read("form-data; filename*=UTF-8''%ff"), Some(None));
        assert_eq!(read("form-data; filename=\"a\""), None);
    }
}
