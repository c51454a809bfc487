//! The route of signed URLs.

use axum::extract::State;
use axum::http::{HeaderMap, Method};
use chrono::Utc;

use super::signed_urls::SignedUrl;
use crate::blob::content::Key;
use crate::blob::rows;
use crate::encryption::Dek;
use crate::error::{Error, Result};
use crate::http::download::{self, DownloadMeta, FileResponse};
use crate::http::extract::{Path, PathParam};
use crate::platform::Platform;

/// The token of a public link.
pub struct Token(String);

impl PathParam for Token {
    const NAME: &'static str = "token";

    fn read(text: &str) -> Result<Self, &'static str> {
        Ok(Self(text.to_owned()))
    }
}

/// Open a public link
///
/// Needs no key. Serves exactly the bytes that the link was made for, as long as the project keeps them.
#[utoipa::path(get, path = "/api/v1/material/{token}", tag = "material", security(()),
    params(("token" = String, Path, description = "From a public URL")))]
pub async fn get_material(
    State(platform): State<Platform>,
    token: Result<Path<Token>>,
    method: Method,
    headers: HeaderMap,
) -> Result<FileResponse> {
    const MATERIAL_NOT_FOUND: Error = Error::NotFound("material not found");
    let Path(Token(token)) = token.map_err(|_| MATERIAL_NOT_FOUND)?;
    let link = SignedUrl::verify(&token, &platform.link_key, Utc::now().timestamp()).ok_or(MATERIAL_NOT_FOUND)?;
    let mut conn = platform.db.acquire().await?;
    let stored = rows::get_by_sha256(&mut conn, link.project, &link.sha256).await?.ok_or(MATERIAL_NOT_FOUND)?;
    drop(conn);
    let meta = DownloadMeta { mime: &link.mime, filename: &link.filename, sha256: &link.sha256, public: true };
    let dek = link
        .key
        .map(|key| platform.link_key.unwrap(&key))
        .transpose()
        .map_err(|_| MATERIAL_NOT_FOUND)?
        .map(|key| Dek::from_bytes(*key));
    let key = dek.as_ref().map_or(Key::Project(None), Key::Object);
    match download::serve(&platform.blobs, &stored, key, &meta, &method, &headers).await {
        // It was sealed after the link was made, or sealed anew.
        Err(Error::KeyRequired | Error::Corrupt { .. }) => Err(MATERIAL_NOT_FOUND),
        served => served,
    }
}
