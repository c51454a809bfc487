//! Reads text files whose content is part of a JSON response.

use bytes::Bytes;
use serde::Serialize;

use super::files::ArtifactRow;
use super::text_kind::TextKind;
use crate::blob::content::ContentKey;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::platform::Platform;

/// The content of a text file.
#[derive(Serialize, utoipa::ToSchema)]
pub struct FileContent {
    /// The kind of the text file: `text`, `json`, `csv` or `code`.
    r#type: &'static str,
    /// The text.
    raw: String,
}

impl FileContent {
    pub(crate) fn new(kind: TextKind, raw: String) -> Self {
        Self { r#type: kind.name(), raw }
    }
}

/// Returns the content of a text file, or `None` if the file is not a text file or cannot be parsed as its kind. Invalid UTF-8 is
/// replaced.
pub(super) async fn read_content(
    platform: &Platform,
    encryption: &ProjectEncryption,
    file: &ArtifactRow,
) -> Result<Option<FileContent>> {
    let text = read_if_text(platform, encryption, file).await?;
    Ok(text.map(|(kind, bytes)| FileContent::new(kind, String::from_utf8_lossy(&bytes).into_owned())))
}

/// Returns the kind and the bytes of a text file, or `None` if the file is not a text file or cannot be parsed as its kind.
pub(crate) async fn read_if_text(
    platform: &Platform,
    encryption: &ProjectEncryption,
    file: &ArtifactRow,
) -> Result<Option<(TextKind, Bytes)>> {
    let Some(kind) = TextKind::detect(&file.filename, &file.mime) else {
        return Ok(None);
    };
    let key = ContentKey::Kek(encryption.kek.as_deref());
    let (_permit, bytes) = platform.blobs.read_within_budget(key, &file.blob()).await?;
    let validate = move || kind.is_valid(&bytes).then_some((kind, bytes));
    tokio::task::spawn_blocking(validate).await.map_err(Error::internal)
}
