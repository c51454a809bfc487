//! The routes of what is in a skill: one file, or all of them as an archive.

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

use super::api::NOT_FOUND;
use super::store;
use crate::auth::Caller;
use crate::blob::content::Key;
use crate::disks::artifacts::{FileContent, public_url, readable};
use crate::disks::files::{self, File};
use crate::disks::path::{self, FilePath};
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::http::extract::{Int, Path, PathParam, Query};
use crate::http::response::{self, Data, QueryResult, RawResponse};
use crate::ids::SkillId;
use crate::material::signed_urls;
use crate::percent;
use crate::platform::Platform;

const NO_FILE: Error = Error::NotFound("file not found");
/// How long a link to a file works, in seconds, if nothing else is asked for.
const LINK_TTL: i64 = 900;

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GetSkillFile {
    /// As in `file_index`; `.` and `..` are resolved.
    #[param(required = true, example = "scripts/run.py")]
    #[serde(default)]
    file_path: Option<String>,
    /// How long a link works, in seconds.
    #[serde(default)]
    #[param(value_type = Option<u32>, minimum = 1, maximum = 604_800, default = 900)]
    expire: Option<Int>,
}

/// A file of a skill: its text, or a link that needs no key.
#[derive(Serialize, utoipa::ToSchema)]
pub struct SkillFile {
    /// As it was asked for.
    path: String,
    mime: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<FileContent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

/// Get a file of a skill
///
/// Its text if it is one; else, and if it does not parse as what it claims to be, a link.
#[utoipa::path(get, path = "/api/v1/agent_skills/{skill_id}/file", tag = "agent_skills",
    params(("skill_id" = SkillId, Path), GetSkillFile))]
pub async fn get_skill_file(
    State(platform): State<Platform>,
    caller: Caller,
    Path(skill): Path<SkillId>,
    Query(query): Query<GetSkillFile>,
) -> QueryResult<Data<SkillFile>> {
    let path = query.file_path.filter(|path| !path.is_empty());
    let path = path.ok_or_else(|| Error::bad_request_with_reason("parameter error", "file_path is required"))?;
    let life = query.expire.and_then(Int::given).unwrap_or(LINK_TTL);
    let end = signed_urls::end(Utc::now().timestamp(), life)?;
    let at = resolve(&path).ok_or(NO_FILE)?;
    let mut conn = platform.db.acquire().await?;
    let row = store::get(&mut conn, caller.project, skill).await?.ok_or(NO_FILE)?;
    let file = files::get(&mut conn, caller.project, row.disk_id, &at).await?.ok_or(NO_FILE)?;
    drop(conn);
    let content = match readable(&platform, &caller.encryption, &file).await? {
        Some((kind, bytes)) => String::from_utf8(bytes.into()).ok().map(|raw| FileContent::new(kind, raw)),
        None => None,
    };
    let url = if content.is_none() { Some(public_url(&platform, &caller, &file, end)?) } else { None };
    Ok(response::ok(SkillFile { path, mime: file.mime, content, url }))
}

/// Where a path leads from the root of a skill; `None` where no file can be.
fn resolve(path: &str) -> Option<FilePath> {
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
    FilePath::of_segments(&segments).ok()
}

/// The id as it came: clients know a text of its own for one that cannot be read.
pub struct Downloaded(String);

impl PathParam for Downloaded {
    const NAME: &'static str = "skill_id";

    fn read(text: &str) -> Result<Self, &'static str> {
        Ok(Self(text.to_owned()))
    }
}

/// Download a skill
///
/// As a zip archive of its files. Up to 200 files and 50 MiB.
#[utoipa::path(get, path = "/api/v1/agent_skills/{skill_id}/download_zip", tag = "agent_skills",
    params(("skill_id" = SkillId, Path)),
    responses((status = 200, description = "The archive", content_type = "application/zip")))]
pub async fn download_skill(
    State(platform): State<Platform>,
    caller: Caller,
    Path(id): Path<Downloaded>,
) -> Result<RawResponse> {
    let skill: SkillId = id.0.parse().map_err(|_| Error::bad_request("invalid skill id"))?;
    let limits = &platform.config.limits;
    let (most, bytes) = (limits.skill_download_files, limits.skill_download);
    let mut conn = platform.db.acquire().await?;
    let row = store::get(&mut conn, caller.project, skill).await?.ok_or(NOT_FOUND)?;
    let (count, size) = store::measure(&mut conn, row.disk_id).await?;
    if count > most as u64 {
        return Err(Error::PayloadTooLarge(format!("skill has too many files ({count}), maximum is {most}")));
    }
    if size > bytes {
        let msg = format!("skill total size ({size} bytes) exceeds maximum ({bytes} bytes)");
        return Err(Error::PayloadTooLarge(msg));
    }
    let files = files::list_all(&mut conn, row.disk_id, most).await?;
    drop(conn);
    let mut chunks = Box::pin(stream::unfold(Packer::new(platform.clone(), caller.encryption, files), Packer::next));
    // Whether the first file can be read is known before anything is promised.
    let first = chunks.next().await.transpose()?;
    let rest = chunks.map(|chunk| chunk.map_err(|err| cut_short(&err)));
    let body = Body::from_stream(stream::iter(first.map(Ok)).chain(rest));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/zip"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(name) = HeaderValue::from_str(&disposition(&row.name)) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response.into())
}

fn disposition(name: &str) -> String {
    let plain = |c: char| if c.is_ascii() && !matches!(c, '"' | '\\') { c } else { '_' };
    let plain: String = name.chars().map(plain).collect();
    let whole = percent::encode(name.as_bytes(), b"$&+=:@");
    format!("attachment; filename=\"{plain}.zip\"; filename*=UTF-8''{whole}.zip")
}

/// The answer has begun, so all that can be done is to end it where it is; the log says why.
fn cut_short(err: &Error) -> std::io::Error {
    tracing::error!(error = ?err, "a download of a skill was cut short");
    std::io::Error::other("a file of the skill cannot be read")
}

/// Packs one file after the other; each is in memory only while it is packed.
struct Packer {
    platform: Platform,
    encryption: ProjectEncryption,
    files: VecDeque<File>,
    /// `None` when the archive is whole.
    archive: Option<Archive>,
    out: Out,
}

/// Large, and handed from thread to thread.
type Archive = Box<ZipWriter<StreamWriter<Out>>>;

/// What was packed and not sent yet.
#[derive(Clone, Default)]
struct Out(Arc<Mutex<Vec<u8>>>);

impl Out {
    fn take(&self) -> Bytes {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Packer {
    fn new(platform: Platform, encryption: ProjectEncryption, files: Vec<File>) -> Self {
        let out = Out::default();
        Self {
            platform,
            encryption,
            files: files.into(),
            archive: Some(Box::new(ZipWriter::new_stream(out.clone()))),
            out,
        }
    }

    /// The next part of the archive: a file, or its end.
    async fn next(mut self) -> Option<(Result<Bytes>, Self)> {
        let archive = self.archive.take()?;
        let packed = match self.files.pop_front() {
            Some(file) => self.pack(archive, file).await.map(|archive| self.archive = Some(archive)),
            None => archive.finish().map(drop).map_err(Error::internal),
        };
        Some((packed.map(|()| self.out.take()), self))
    }

    async fn pack(&self, mut archive: Archive, file: File) -> Result<Archive> {
        let key = Key::Project(self.encryption.kek.as_deref());
        let (_permit, bytes) = self.platform.blobs.read_within_budget(key, &file.stored()).await?;
        let pack = move || -> anyhow::Result<_> {
            let name = path::relative(&file.path, &file.filename);
            archive.start_file(name, SimpleFileOptions::default().last_modified_time(changed(&file)))?;
            archive.write_all(&bytes)?;
            Ok(archive)
        };
        Ok(tokio::task::spawn_blocking(pack).await.map_err(Error::internal)??)
    }
}

/// When a file was changed, as archives tell it: in steps of two seconds, from 1980.
fn changed(file: &File) -> zip::DateTime {
    let time = file.updated_at.0;
    let part = |n: u32| u8::try_from(n).unwrap_or_default();
    let (date, clock) = ((part(time.month()), part(time.day())), (part(time.hour()), part(time.minute())));
    let year = u16::try_from(time.year()).unwrap_or_default();
    zip::DateTime::from_date_and_time(year, date.0, date.1, clock.0, clock.1, part(time.second())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_resolved_from_the_root_of_the_skill() {
        let file = |path: &str| resolve(path).map(|at| at.relative());
        for (path, at) in [("a.md", "a.md"), ("./x/a.md", "x/a.md"), ("x/../a.md", "a.md"), ("x//y/./a.md", "x/y/a.md")]
        {
            assert_eq!(file(path).as_deref(), Some(at), "{path}");
        }
        for path in ["/a.md", "../a.md", "x/../../a.md", "x/", ".", "..", "/", "a\0b"] {
            assert_eq!(file(path), None, "{path}");
        }
    }

    #[test]
    fn a_name_of_any_signs_goes_into_the_header() {
        assert_eq!(disposition("kit"), "attachment; filename=\"kit.zip\"; filename*=UTF-8''kit.zip");
        let odd = "attachment; filename=\"gr__e-_.zip\"; filename*=UTF-8''gr%C3%B6%C3%9Fe-%22.zip";
        assert_eq!(disposition("größe-\""), odd);
    }
}
