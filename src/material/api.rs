//! The HTTP handler that serves the content of a signed URL.

use axum::extract::State;
use axum::http::{HeaderMap, Method};
use chrono::Utc;

use super::signed_urls::SignedUrl;
use crate::blob::content::ContentKey;
use crate::blob::rows;
use crate::encryption::Dek;
use crate::error::{Error, Result};
use crate::http::download::{self, FileInfo, FileResponse};
use crate::http::extract::{Path, PathParam};
use crate::platform::Platform;

/// The token of a public link.
pub struct LinkToken(String);

impl PathParam for LinkToken {
    const NAME: &'static str = "token";

    fn parse(text: &str) -> Result<Self, &'static str> {
        Ok(Self(text.to_owned()))
    }
}

/// Download a file by public link
///
/// Requires no API key. Serves exactly the content for which the link was created, as long as the project stores it.
#[utoipa::path(get, path = "/api/v1/material/{token}", tag = "material", security(()),
    params(("token" = String, Path, description = "The last path segment of a public link")))]
pub async fn get_material(
    State(platform): State<Platform>,
    token: Result<Path<LinkToken>>,
    method: Method,
    headers: HeaderMap,
) -> Result<FileResponse> {
    const MATERIAL_NOT_FOUND: Error = Error::NotFound("material not found");
    let Path(LinkToken(token)) = token.map_err(|_| MATERIAL_NOT_FOUND)?;
    let link = SignedUrl::verify(&token, &platform.link_keys, Utc::now().timestamp()).ok_or(MATERIAL_NOT_FOUND)?;
    let mut conn = platform.db.acquire().await?;
    let blob = rows::get_by_sha256(&mut conn, link.project, &link.sha256).await?.ok_or(MATERIAL_NOT_FOUND)?;
    drop(conn);
    let info = FileInfo { mime: &link.mime, filename: &link.filename, sha256: &link.sha256, is_public: true };
    let dek = link
        .wrapped_dek
        .map(|wrapped| platform.link_keys.unwrap(&wrapped))
        .transpose()
        .map_err(|_| MATERIAL_NOT_FOUND)?
        .map(|bytes| Dek::from_bytes(*bytes));
    let content_key = dek.as_ref().map_or(ContentKey::Kek(None), ContentKey::Dek);
    match download::serve(&platform.blobs, &blob, content_key, &info, &method, &headers).await {
        // After the link was created, the content was encrypted, or encrypted again with another data key. In the second case
        // the data key of the link is wrong, which looks the same as corrupt content.
        Err(Error::KeyRequired | Error::Corrupt { .. }) => Err(MATERIAL_NOT_FOUND),
        result => result,
    }
}
