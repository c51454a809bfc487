//! The files of messages: uploaded with a message whose parts name them, and returned as links or inside of a list of messages.

use std::collections::{BTreeMap, HashMap, HashSet};

use axum::extract::State;
use axum::http::{HeaderMap, Method};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Datelike, Utc};
use serde::Deserialize;

use super::PublicUrl;
use super::file_store::{self, MessageFile};
use super::incoming::Draft;
use crate::auth::Caller;
use crate::blob::content::Key;
use crate::blob::ingest::Claimed;
use crate::blob::rows;
use crate::blob::spool::{Spool, media_type_of};
use crate::conversation::parts::{Asset, Kind, Part};
use crate::crypto::WrappedFileKey;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::http::download::{self, DownloadMeta, FileResponse};
use crate::http::extract::{Path, Query};
use crate::http::multipart::UploadedFile;
use crate::ids::{ProjectId, SessionId};
use crate::material::signed_urls::{self, SignedUrl};
use crate::messages::Messages;
use crate::sessions;
use crate::time::Timestamp;

const MAX_NAME: usize = 1024;
/// How long links to the files of messages work, in seconds.
const LINK_TTL: i64 = 24 * 3600;

/// A file that parts of a message name, and what the parts contain of it.
pub(super) struct AttachedFile {
    pub(super) upload: UploadedFile,
    asset: Asset,
    filename: String,
}

impl AttachedFile {
    /// Returns the row of the file, whose content was claimed.
    pub(super) fn row(&self, blobs: &Claimed) -> Result<MessageFile<'_>> {
        let Asset { s3_key, sha256, mime, .. } = &self.asset;
        Ok(MessageFile { s3_key, content: blobs.get(sha256)?, sha256, mime, filename: &self.filename })
    }
}

/// Completes the parts that name files. Files that no part names are left out.
///
/// # Errors
/// 400 for a part that names a file which the request does not contain.
pub(super) fn attach_files(ctx: &Messages, project: ProjectId, draft: &mut Draft) -> Result<Vec<AttachedFile>> {
    let mut uploaded: HashMap<String, UploadedFile> =
        std::mem::take(&mut draft.files).into_iter().map(|file| (file.field.clone(), file)).collect();
    let mut attached: Vec<AttachedFile> = Vec::new();
    for (part, field) in draft.message.file_fields() {
        if !attached.iter().any(|one| one.upload.field == field) {
            let file = uploaded.remove(&field).ok_or_else(|| Error::bad_request(format!("missing file {field}")))?;
            attached.push(attach(ctx, project, file)?);
        }
        if let Some(one) = attached.iter().find(|one| one.upload.field == field) {
            draft.message.set_file(part, &one.asset, &one.filename);
        }
    }
    Ok(attached)
}

fn attach(ctx: &Messages, project: ProjectId, file: UploadedFile) -> Result<AttachedFile> {
    let filename = file.name.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
    if filename.len() > MAX_NAME || filename.contains('\0') {
        let wrong =
            format_args!("its file name must not be longer than {MAX_NAME} bytes, nor contain the character NUL");
        return Err(Error::invalid_field(&file.field, wrong));
    }
    let Spool { sha256, size, .. } = &file.content;
    let asset = Asset {
        bucket: ctx.config.s3.bucket.clone().unwrap_or_else(|| "acontext".into()),
        s3_key: s3_key(project, Utc::now(), sha256, &filename),
        etag: String::new(),
        sha256: sha256.clone(),
        mime: media_type_of(&file.content, &filename),
        size_b: *size,
    };
    Ok(AttachedFile { upload: file, asset, filename })
}

/// The public name of a file: by project, day and content, with the last extension of its name in lower case.
fn s3_key(project: ProjectId, now: DateTime<Utc>, sha256: &str, filename: &str) -> String {
    let extension = filename.rfind('.').map(|at| filename[at..].to_lowercase()).unwrap_or_default();
    format!("assets/{project}/{:04}/{:02}/{:02}/{sha256}{extension}", now.year(), now.month(), now.day())
}

/// Links to the files of these parts, by the SHA-256 of their content.
pub async fn public_urls<'a>(
    ctx: &Messages,
    encryption: &ProjectEncryption,
    parts: impl Iterator<Item = &'a Part> + Clone,
) -> Result<BTreeMap<String, PublicUrl>> {
    let keys = linked_keys(ctx, encryption, parts.clone()).await?;
    let end = signed_urls::end(Utc::now().timestamp(), LINK_TTL)?;
    let expire_at = Timestamp(DateTime::from_timestamp(end, 0).unwrap_or_default());
    let mut urls = BTreeMap::new();
    for part in parts {
        let Some(asset) = &part.asset else { continue };
        if urls.contains_key(&asset.sha256) {
            continue;
        }
        let link = SignedUrl {
            project: encryption.project,
            sha256: asset.sha256.clone(),
            mime: asset.mime.clone(),
            filename: part.filename.clone(),
            key: keys.get(&asset.sha256).copied(),
        };
        let url = link.url(ctx, end)?;
        urls.insert(asset.sha256.clone(), PublicUrl { url, expire_at });
    }
    Ok(urls)
}

/// The keys of those files of these parts that are sealed, for links to them.
async fn linked_keys<'a>(
    ctx: &Messages,
    encryption: &ProjectEncryption,
    parts: impl Iterator<Item = &'a Part>,
) -> Result<HashMap<String, WrappedFileKey>> {
    let hashes: HashSet<&str> = parts.filter_map(|part| Some(part.asset.as_ref()?.sha256.as_str())).collect();
    let hashes: Vec<String> = hashes.into_iter().map(ToOwned::to_owned).collect();
    // Without a key there would be none to tell.
    if hashes.is_empty() || encryption.kek.is_none() {
        return Ok(HashMap::new());
    }
    let mut conn = ctx.db.acquire().await?;
    let stored = rows::list_by_sha256(&mut conn, encryption.project, &hashes).await?;
    drop(conn);
    let mut keys = HashMap::new();
    for one in stored {
        if let Some(key) = signed_urls::wrap_key_for_link(&ctx.link_key, encryption, &one)? {
            keys.insert(one.sha256, key);
        }
    }
    Ok(keys)
}

/// The contents of files that a list shows as part of itself, in base64 by their SHA-256: in the order of the parts, as far as
/// the limit allows.
pub async fn contents<'a>(
    ctx: &Messages,
    encryption: &ProjectEncryption,
    parts: impl Iterator<Item = &'a Part>,
    wanted: impl Fn(&Asset, Kind) -> bool,
) -> Result<HashMap<String, String>> {
    // A content takes its size as often as it is shown.
    let mut sizes: Vec<(&str, u64)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for asset in parts.filter_map(|part| part.asset.as_ref().filter(|asset| wanted(asset, part.kind))) {
        let at = *places.entry(&asset.sha256).or_insert(sizes.len());
        if at == sizes.len() {
            sizes.push((&asset.sha256, 0));
        }
        sizes[at].1 += asset.size_b;
    }
    let mut left = ctx.config.limits.inline;
    let mut hashes: Vec<String> = Vec::new();
    for (sha256, size) in sizes {
        if size <= left {
            left -= size;
            hashes.push(sha256.to_owned());
        }
    }
    let mut contents = HashMap::new();
    if hashes.is_empty() {
        return Ok(contents);
    }
    let mut conn = ctx.db.acquire().await?;
    let stored = rows::list_by_sha256(&mut conn, encryption.project, &hashes).await?;
    drop(conn);
    for one in stored {
        let bytes = ctx.blobs.read(Key::Project(encryption.kek.as_deref()), &one).await?;
        let base64 = tokio::task::spawn_blocking(move || STANDARD.encode(bytes)).await.map_err(Error::internal)?;
        contents.insert(one.sha256, base64);
    }
    Ok(contents)
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DownloadAsset {
    /// The name that a message's part tells.
    #[param(required = true)]
    #[serde(default)]
    s3_key: Option<String>,
}

/// Download a file of a message
///
/// Knows `Range`, `If-None-Match` (the ETag is the content's SHA-256) and HEAD.
#[utoipa::path(get, path = "/api/v1/session/{session_id}/asset/download", tag = "message",
    params(("session_id" = SessionId, Path), DownloadAsset))]
pub async fn download_asset(
    State(ctx): State<Messages>,
    caller: Caller,
    Path(session): Path<SessionId>,
    Query(query): Query<DownloadAsset>,
    method: Method,
    headers: HeaderMap,
) -> Result<FileResponse> {
    let mut conn = ctx.db.acquire().await?;
    sessions::store::ensure_owned(&mut conn, caller.project, session).await?;
    let key =
        query.s3_key.filter(|key| !key.is_empty()).ok_or_else(|| Error::invalid_field("s3_key", "is required"))?;
    if !key.starts_with(&format!("assets/{}/", caller.project)) {
        return Err(Error::Forbidden("access denied: asset does not belong to this project"));
    }
    // No text of the database holds a NUL.
    let found =
        if key.contains('\0') { None } else { file_store::get_file(&mut conn, caller.project, session, &key).await? };
    drop(conn);
    let file = found.ok_or(Error::NotFound("asset not found"))?;
    let sha256 = &file.content.sha256;
    let meta = DownloadMeta { mime: "application/octet-stream", filename: &file.filename, sha256, public: false };
    let key = Key::Project(caller.encryption.kek.as_deref());
    download::serve(&ctx.blobs, &file.content, key, &meta, &method, &headers).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_name_has_day_and_last_extension() {
        let (project, day) = (ProjectId::new(), DateTime::from_timestamp(1_700_000_000, 0).unwrap());
        for (name, extension) in [("a.PNG", ".png"), ("a.tar.gz", ".gz"), ("plain", ""), (".profile", ".profile")] {
            assert_eq!(s3_key(project, day, "ab", name), format!("assets/{project}/2023/11/14/ab{extension}"));
        }
    }
}
