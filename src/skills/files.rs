//! HTTP handlers for the files of a skill: a single file, or all files as an archive.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use chrono::{Datelike, Timelike, Utc};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use zip::ZipWriter;
use zip::write::{SimpleFileOptions, StreamWriter};

use super::api::SKILL_NOT_FOUND;
use super::store;
use crate::auth::Caller;
use crate::blob::content::ContentKey;
use crate::disks::artifacts::create_public_url;
use crate::disks::file_content::{FileContent, read_if_text};
use crate::disks::files::{self, ArtifactRow};
use crate::disks::path::{self, FilePath};
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::http::extract::{LenientInt, Path, PathParam, Query};
use crate::http::response::{self, Data, QueryResult, RawResponse};
use crate::ids::SkillId;
use crate::material::signed_urls;
use crate::percent;
use crate::platform::Platform;

const SKILL_FILE_NOT_FOUND: Error = Error::NotFound("file not found");
/// The default lifetime of a public link to a skill file, in seconds.
const DEFAULT_LINK_TTL_SECS: i64 = 900;

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GetSkillFileParams {
    /// A path from `file_index`; `.` and `..` are resolved.
    #[param(required = true, example = "scripts/run.py")]
    #[serde(default)]
    file_path: Option<String>,
    /// Lifetime of the public link in seconds.
    #[serde(default)]
    #[param(value_type = Option<u32>, minimum = 1, maximum = 604_800, default = 900)]
    expire: Option<LenientInt>,
}

/// A file of a skill: either its text or a public link.
#[derive(Serialize, utoipa::ToSchema)]
pub struct GetSkillFileResponse {
    /// The requested path.
    path: String,
    mime: String,
    /// Absent if the file is not a text file, cannot be parsed as its type, or is not valid UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<FileContent>,
    /// A public link; absent if `content` is present.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

/// Get a skill file
///
/// Returns the text of a text file. If the file is not a text file, cannot be parsed as its type, or is not valid UTF-8, returns
/// a public link instead.
#[utoipa::path(get, path = "/api/v1/agent_skills/{skill_id}/file", tag = "agent_skills",
    params(("skill_id" = SkillId, Path), GetSkillFileParams))]
pub async fn get_skill_file(
    State(platform): State<Platform>,
    caller: Caller,
    Path(skill): Path<SkillId>,
    Query(query): Query<GetSkillFileParams>,
) -> QueryResult<Data<GetSkillFileResponse>> {
    let path = query.file_path.filter(|path| !path.is_empty());
    let path = path.ok_or_else(|| Error::bad_request_with_reason("parameter error", "file_path is required"))?;
    let ttl = query.expire.and_then(LenientInt::get).unwrap_or(DEFAULT_LINK_TTL_SECS);
    let expires_at = signed_urls::expires_at(Utc::now().timestamp(), ttl)?;
    let resolved = resolve_path(&path).ok_or(SKILL_FILE_NOT_FOUND)?;
    let mut conn = platform.db.acquire().await?;
    let row = store::get(&mut conn, caller.project, skill).await?.ok_or(SKILL_FILE_NOT_FOUND)?;
    let file = files::get(&mut conn, caller.project, row.disk_id, &resolved).await?.ok_or(SKILL_FILE_NOT_FOUND)?;
    drop(conn);
    let content = match read_if_text(&platform, &caller.encryption, &file).await? {
        Some((kind, bytes)) => String::from_utf8(bytes.into()).ok().map(|raw| FileContent::new(kind, raw)),
        None => None,
    };
    let url = if content.is_none() { Some(create_public_url(&platform, &caller, &file, expires_at)?) } else { None };
    Ok(response::ok(GetSkillFileResponse { path, mime: file.mime, content, url }))
}

/// Resolves `.` and `..`, and omits empty segments, in a path that is relative to the root of a skill. Returns `None` if the path
/// begins or ends with a slash, leaves the root, or is not allowed.
fn resolve_path(path: &str) -> Option<FilePath> {
    if path.starts_with('/') || path.ends_with('/') {
        return None;
    }
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()?),
            name => segments.push(name),
        }
    }
    FilePath::from_segments(&segments).ok()
}

/// A skill id that is not validated. On this route, clients expect another error for an invalid id than on other routes.
pub struct RawSkillId(String);

impl RawSkillId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PathParam for RawSkillId {
    const NAME: &'static str = "skill_id";

    fn parse(text: &str) -> Result<Self, &'static str> {
        Ok(Self(text.to_owned()))
    }
}

/// Download a skill
///
/// Returns a zip archive of the skill's files. By default, the skill must not have more than 200 files or 50 MiB.
#[utoipa::path(get, path = "/api/v1/agent_skills/{skill_id}/download_zip", tag = "agent_skills",
    params(("skill_id" = SkillId, Path)),
    responses((status = 200, description = "The archive", content_type = "application/zip")))]
pub async fn download_skill(
    State(platform): State<Platform>,
    caller: Caller,
    Path(id): Path<RawSkillId>,
) -> Result<RawResponse> {
    let skill: SkillId = id.0.parse().map_err(|_| Error::bad_request("invalid skill id"))?;
    let limits = &platform.config.limits;
    let (max_files, max_bytes) = (limits.max_skill_download_files, limits.max_skill_download_bytes);
    let mut conn = platform.db.acquire().await?;
    let row = store::get(&mut conn, caller.project, skill).await?.ok_or(SKILL_NOT_FOUND)?;
    let (count, size) = store::count_files_and_bytes(&mut conn, row.disk_id).await?;
    if count > max_files as u64 {
        return Err(Error::PayloadTooLarge(format!("skill has too many files ({count}), maximum is {max_files}")));
    }
    if size > max_bytes {
        let msg = format!("skill total size ({size} bytes) exceeds maximum ({max_bytes} bytes)");
        return Err(Error::PayloadTooLarge(msg));
    }
    let files = files::list_all(&mut conn, row.disk_id, max_files).await?;
    drop(conn);
    let archive = ZipStream::new(platform.clone(), caller.encryption, files);
    let mut chunks = Box::pin(stream::unfold(archive, ZipStream::next));
    // Reads the first file before the response begins, so that the response can still be an error.
    let first = chunks.next().await.transpose()?;
    let rest = chunks.map(move |chunk| chunk.map_err(|err| abort_stream(skill, &err)));
    let body = Body::from_stream(stream::iter(first.map(Ok)).chain(rest));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/zip"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(name) = HeaderValue::from_str(&content_disposition(&row.name)) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response.into())
}

/// Returns the `Content-Disposition` header for the archive of a skill with this name. The header contains the file name twice:
/// in ASCII for old clients, and percent-encoded.
fn content_disposition(name: &str) -> String {
    let replace = |c: char| if c.is_ascii() && !matches!(c, '"' | '\\') { c } else { '_' };
    let ascii: String = name.chars().map(replace).collect();
    let encoded = percent::encode(name.as_bytes(), b"$&+=:@");
    format!("attachment; filename=\"{ascii}.zip\"; filename*=UTF-8''{encoded}.zip")
}

/// Logs an error that occurs after the status has been sent. Returns an I/O error, which aborts the response.
fn abort_stream(skill: SkillId, err: &Error) -> std::io::Error {
    tracing::error!(skill.id = %skill, error = ?err, "failed to read a file of the skill; download aborted");
    std::io::Error::other("a file of the skill cannot be read")
}

/// A zip archive that is created while it is sent. Only one file at a time is in memory.
struct ZipStream {
    platform: Platform,
    encryption: ProjectEncryption,
    files: VecDeque<ArtifactRow>,
    /// `None` if the archive is complete or an error has occurred.
    writer: Option<BoxedZipWriter>,
    buffer: ZipBuffer,
}

/// A zip writer. It is boxed, because it is large and moves between threads.
type BoxedZipWriter = Box<ZipWriter<StreamWriter<ZipBuffer>>>;

/// The bytes of the archive that have not been sent yet. Clones share the bytes.
#[derive(Clone, Default)]
struct ZipBuffer(Arc<Mutex<Vec<u8>>>);

impl ZipBuffer {
    fn take(&self) -> Bytes {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

impl Write for ZipBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl ZipStream {
    fn new(platform: Platform, encryption: ProjectEncryption, files: Vec<ArtifactRow>) -> Self {
        let buffer = ZipBuffer::default();
        Self {
            platform,
            encryption,
            files: files.into(),
            writer: Some(Box::new(ZipWriter::new_stream(buffer.clone()))),
            buffer,
        }
    }

    /// Returns the next chunk of the archive: a file, or the central directory, which is the last one.
    async fn next(mut self) -> Option<(Result<Bytes>, Self)> {
        let writer = self.writer.take()?;
        let result = match self.files.pop_front() {
            Some(file) => self.append(writer, file).await.map(|writer| self.writer = Some(writer)),
            None => writer.finish().map(drop).map_err(Error::internal),
        };
        Some((result.map(|()| self.buffer.take()), self))
    }

    async fn append(&self, mut writer: BoxedZipWriter, file: ArtifactRow) -> Result<BoxedZipWriter> {
        let key = ContentKey::Kek(self.encryption.kek.as_deref());
        let (_permit, bytes) = self.platform.blobs.read_within_budget(key, &file.blob()).await?;
        let compress = move || -> anyhow::Result<_> {
            let name = path::join_relative(&file.path, &file.filename);
            let options = SimpleFileOptions::default().unix_permissions(file.mode.permissions());
            writer.start_file(name, options.last_modified_time(zip_mtime(&file)))?;
            writer.write_all(&bytes)?;
            Ok(writer)
        };
        Ok(tokio::task::spawn_blocking(compress).await.map_err(Error::internal)??)
    }
}

/// Returns the time of the file's last change as a ZIP time, which has a resolution of two seconds. Returns the first day of 1980
/// if ZIP cannot represent the time.
fn zip_mtime(file: &ArtifactRow) -> zip::DateTime {
    let time = file.updated_at.0;
    let to_u8 = |n: u32| u8::try_from(n).unwrap_or_default();
    let year = u16::try_from(time.year()).unwrap_or_default();
    let (month, day) = (to_u8(time.month()), to_u8(time.day()));
    let (hour, minute, second) = (to_u8(time.hour()), to_u8(time.minute()), to_u8(time.second()));
    zip::DateTime::from_date_and_time(year, month, day, hour, minute, second).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_resolved_from_the_root_of_the_skill() {
        let file = |path: &str| resolve_path(path).map(|resolved| resolved.relative());
        let cases = [("a.md", "a.md"), ("./x/a.md", "x/a.md"), ("x/../a.md", "a.md"), ("x//y/./a.md", "x/y/a.md")];
        for (path, expected) in cases {
            assert_eq!(file(path).as_deref(), Some(expected), "{path}");
        }
        for path in ["/a.md", "../a.md", "x/../../a.md", "x/", ".", "..", "/", "a\0b"] {
            assert_eq!(file(path), None, "{path}");
        }
    }

    #[test]
    fn content_disposition_encodes_any_name() {
        assert_eq!(content_disposition("kit"), "attachment; filename=\"kit.zip\"; filename*=UTF-8''kit.zip");
        let odd = "attachment; filename=\"gr__e-_.zip\"; filename*=UTF-8''gr%C3%B6%C3%9Fe-%22.zip";
        assert_eq!(content_disposition("größe-\""), odd);
    }
}
