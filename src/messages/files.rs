//! The files of messages. They are uploaded with a message whose parts refer to them. A list of messages contains the contents of
//! files, or public links to them.

use std::collections::{BTreeMap, HashMap, HashSet};

use axum::extract::State;
use axum::http::{HeaderMap, Method};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Datelike, Utc};
use serde::Deserialize;

use super::PublicUrl;
use super::file_store::{self, NewMessageFile};
use super::request::ParsedMessage;
use crate::auth::Caller;
use crate::blob::content::ContentKey;
use crate::blob::ingest::LiveBlobs;
use crate::blob::rows;
use crate::blob::spool::{Spool, detect_media_type};
use crate::conversation::parts::{Asset, Part, PartKind};
use crate::crypto::LinkWrappedDataKey;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::http::download::{self, FileInfo, FileResponse};
use crate::http::extract::{Path, Query};
use crate::http::multipart::UploadedFile;
use crate::ids::{ProjectId, SessionId};
use crate::material::signed_urls::{self, SignedUrl};
use crate::messages::Messages;
use crate::sessions;
use crate::time::Timestamp;

/// Maximum length of a file name, in bytes.
const MAX_FILENAME_BYTES: usize = 1024;
/// TTL of public links to the files of messages, in seconds.
const LINK_TTL: i64 = 24 * 3600;

/// An uploaded file that parts of a message refer to, and its description in these parts.
pub(super) struct AttachedFile {
    pub(super) upload: UploadedFile,
    asset: Asset,
    filename: String,
}

impl AttachedFile {
    /// Returns the row to insert for the file. `blobs` are the blobs of all attached files.
    pub(super) fn row(&self, blobs: &LiveBlobs) -> Result<NewMessageFile<'_>> {
        let Asset { s3_key, sha256, mime, .. } = &self.asset;
        Ok(NewMessageFile { s3_key, blob: blobs.get(sha256)?, sha256, mime, filename: &self.filename })
    }
}

/// Sets the assets of the parts that refer to uploaded files, and returns these files. Ignores files that no part refers to.
///
/// # Errors
/// Returns 400 if a part refers to a file that the request does not contain.
pub(super) fn attach_files(
    ctx: &Messages,
    project: ProjectId,
    parsed: &mut ParsedMessage,
) -> Result<Vec<AttachedFile>> {
    let mut uploaded: HashMap<String, UploadedFile> =
        std::mem::take(&mut parsed.files).into_iter().map(|file| (file.field.clone(), file)).collect();
    let mut attached: Vec<AttachedFile> = Vec::new();
    for (part, field) in parsed.message.file_fields() {
        if !attached.iter().any(|file| file.upload.field == field) {
            let file = uploaded.remove(&field).ok_or_else(|| Error::bad_request(format!("missing file {field}")))?;
            attached.push(attach(ctx, project, file)?);
        }
        if let Some(file) = attached.iter().find(|file| file.upload.field == field) {
            parsed.message.set_file(part, &file.asset, &file.filename);
        }
    }
    Ok(attached)
}

fn attach(ctx: &Messages, project: ProjectId, file: UploadedFile) -> Result<AttachedFile> {
    let filename = file.name.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
    if filename.len() > MAX_FILENAME_BYTES || filename.contains('\0') {
        let reason = format_args!("file name must not exceed {MAX_FILENAME_BYTES} bytes or contain a NUL character");
        return Err(Error::invalid_field(&file.field, reason));
    }
    let Spool { sha256, size, .. } = &file.content;
    let asset = Asset {
        bucket: ctx.config.s3.bucket.clone().unwrap_or_else(|| "acontext".into()),
        s3_key: build_s3_key(project, Utc::now(), sha256, &filename),
        etag: String::new(),
        sha256: sha256.clone(),
        mime: detect_media_type(&file.content, &filename),
        size_b: *size,
    };
    Ok(AttachedFile { upload: file, asset, filename })
}

/// Returns the `s3_key` of a file: project, day and content hash, with the last extension of its file name in lower case.
fn build_s3_key(project: ProjectId, now: DateTime<Utc>, sha256: &str, filename: &str) -> String {
    let extension = filename.rfind('.').map(|dot| filename[dot..].to_lowercase()).unwrap_or_default();
    format!("assets/{project}/{:04}/{:02}/{:02}/{sha256}{extension}", now.year(), now.month(), now.day())
}

/// Creates public links to the files of these parts, by the SHA-256 of their content.
pub async fn create_public_urls<'a>(
    ctx: &Messages,
    encryption: &ProjectEncryption,
    parts: impl Iterator<Item = &'a Part> + Clone,
) -> Result<BTreeMap<String, PublicUrl>> {
    let keys = load_link_keys(ctx, encryption, parts.clone()).await?;
    let expiry = signed_urls::expires_at(Utc::now().timestamp(), LINK_TTL)?;
    let expire_at = Timestamp(DateTime::from_timestamp(expiry, 0).unwrap_or_default());
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
            wrapped_dek: keys.get(&asset.sha256).copied(),
        };
        let url = link.url(ctx, expiry)?;
        urls.insert(asset.sha256.clone(), PublicUrl { url, expire_at });
    }
    Ok(urls)
}

/// Returns the data keys of the encrypted files of these parts, wrapped for public links, by the SHA-256 of their content.
async fn load_link_keys<'a>(
    ctx: &Messages,
    encryption: &ProjectEncryption,
    parts: impl Iterator<Item = &'a Part>,
) -> Result<HashMap<String, LinkWrappedDataKey>> {
    let hashes: HashSet<&str> = parts.filter_map(|part| Some(part.asset.as_ref()?.sha256.as_str())).collect();
    let hashes: Vec<String> = hashes.into_iter().map(ToOwned::to_owned).collect();
    // Without the master key, links cannot contain data keys.
    if hashes.is_empty() || encryption.kek.is_none() {
        return Ok(HashMap::new());
    }
    let mut conn = ctx.db.acquire().await?;
    let stored = rows::list_by_sha256(&mut conn, encryption.project, &hashes).await?;
    drop(conn);
    let mut keys = HashMap::new();
    for blob in stored {
        if let Some(key) = signed_urls::wrap_dek_for_link(&ctx.link_keys, encryption, &blob)? {
            keys.insert(blob.sha256, key);
        }
    }
    Ok(keys)
}

/// Loads the files whose content is part of the response. Returns their contents in base64, by SHA-256. Considers the files in
/// the order of the parts, and leaves out each file that does not fit in the rest of `limits.max_inline_bytes`.
pub async fn load_inline_contents<'a>(
    ctx: &Messages,
    encryption: &ProjectEncryption,
    parts: impl Iterator<Item = &'a Part>,
    is_inlined: impl Fn(&Asset, PartKind) -> bool,
) -> Result<HashMap<String, String>> {
    // A file counts towards the limit once for each part that contains it.
    let mut sizes: Vec<(&str, u64)> = Vec::new();
    let mut indexes: HashMap<&str, usize> = HashMap::new();
    for asset in parts.filter_map(|part| part.asset.as_ref().filter(|asset| is_inlined(asset, part.kind))) {
        let index = *indexes.entry(&asset.sha256).or_insert(sizes.len());
        if index == sizes.len() {
            sizes.push((&asset.sha256, 0));
        }
        sizes[index].1 += asset.size_b;
    }
    let mut remaining = ctx.config.limits.max_inline_bytes;
    let mut hashes: Vec<String> = Vec::new();
    for (sha256, size) in sizes {
        if size <= remaining {
            remaining -= size;
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
    for blob in stored {
        let bytes = ctx.blobs.read(ContentKey::Kek(encryption.kek.as_deref()), &blob).await?;
        let base64 = tokio::task::spawn_blocking(move || STANDARD.encode(bytes)).await.map_err(Error::internal)?;
        contents.insert(blob.sha256, base64);
    }
    Ok(contents)
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DownloadAssetParams {
    /// The `s3_key` of an asset in a message.
    #[param(required = true)]
    #[serde(default)]
    s3_key: Option<String>,
}

/// Download a file of a message
///
/// Supports `Range`, `If-None-Match` (the ETag is the SHA-256 of the content) and HEAD.
#[utoipa::path(get, path = "/api/v1/session/{session_id}/asset/download", tag = "message",
    params(("session_id" = SessionId, Path), DownloadAssetParams))]
pub async fn download_asset(
    State(ctx): State<Messages>,
    caller: Caller,
    Path(session): Path<SessionId>,
    Query(query): Query<DownloadAssetParams>,
    method: Method,
    headers: HeaderMap,
) -> Result<FileResponse> {
    let mut conn = ctx.db.acquire().await?;
    sessions::store::ensure_owned(&mut conn, caller.project, session).await?;
    let s3_key =
        query.s3_key.filter(|key| !key.is_empty()).ok_or_else(|| Error::invalid_field("s3_key", "is required"))?;
    if !s3_key.starts_with(&format!("assets/{}/", caller.project)) {
        return Err(Error::Forbidden("access denied: asset does not belong to this project"));
    }
    // Postgres stores no NUL characters in text.
    let found = if s3_key.contains('\0') {
        None
    } else {
        file_store::get_file(&mut conn, caller.project, session, &s3_key).await?
    };
    drop(conn);
    let file = found.ok_or(Error::NotFound("asset not found"))?;
    let sha256 = &file.blob.sha256;
    let info = FileInfo { mime: "application/octet-stream", filename: &file.filename, sha256, is_public: false };
    let key = ContentKey::Kek(caller.encryption.kek.as_deref());
    download::serve(&ctx.blobs, &file.blob, key, &info, &method, &headers).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s3_keys_contain_the_day_and_the_last_extension() {
        let (project, day) = (ProjectId::new(), DateTime::from_timestamp(1_700_000_000, 0).unwrap());
        for (name, extension) in [("a.PNG", ".png"), ("a.tar.gz", ".gz"), ("plain", ""), (".profile", ".profile")] {
            assert_eq!(build_s3_key(project, day, "ab", name), format!("assets/{project}/2023/11/14/ab{extension}"));
        }
    }
}
