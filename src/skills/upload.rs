//! Stores the files of a skill that is uploaded as an archive. A separate thread extracts them, at most a few files ahead of the
//! object store, so that memory does not grow with the archive.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::archive::{ArchiveLimits, SkillArchive};
use super::create::{PreparedFile, PreparedSkill};
use super::front_matter::FrontMatter;
use crate::blob::ingest::Ingest;
use crate::blob::spool::Spool;
use crate::disks::FileMode;
use crate::disks::path::FilePath;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::platform::Platform;

/// The maximum number of extracted files that wait for the object store.
const CHANNEL_CAPACITY: usize = 4;

/// Extracts an archive and stores the contents of its files.
///
/// # Errors
/// Returns 400 if the archive is not a valid skill or is unsafe to extract, 403 if the project is encrypted and the request has
/// no key, 413 if the archive is too large, and 503 if the object store fails or a temporary file cannot be read or written.
pub async fn ingest_archive(
    platform: &Platform,
    encryption: &ProjectEncryption,
    archive: &Arc<Spool>,
) -> Result<(PreparedSkill, Ingest)> {
    let limits = &platform.config.limits;
    let archive_limits = ArchiveLimits {
        max_files: limits.max_skill_files,
        max_unpacked_bytes: limits.max_skill_unpacked_bytes,
        max_file_bytes: limits.max_artifact_bytes,
        max_skill_md_bytes: limits.max_skill_md_bytes,
    };
    let (sender, receiver) = mpsc::channel(CHANNEL_CAPACITY);
    let (archive, spool) = (Arc::clone(archive), platform.request_context.spool.clone());
    let extraction = tokio::task::spawn_blocking(move || -> Result<FrontMatter> {
        let reader = archive.reader().map_err(Error::internal)?;
        let mut archive = SkillArchive::open(reader, archive_limits)?;
        let front_matter = archive.front_matter()?;
        let receiver_dropped = |_| Error::unavailable("the object store failed to store the files");
        archive.extract(
            |file| spool.spool_from_reader(file),
            |path, mode, content| sender.blocking_send((path.clone(), mode, content)).map_err(receiver_dropped),
        )?;
        Ok(front_matter)
    });
    let mut files = Vec::new();
    let extracted = stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|file| (file, receiver)));
    let contents = extracted.map(|(path, mode, content): (FilePath, FileMode, Spool)| {
        files.push(PreparedFile::new(path, &content).with_mode(mode));
        content
    });
    let (front_matter, ingest) = tokio::join!(extraction, platform.blobs.ingest(encryption, contents));
    // If the object store fails, the extraction usually fails, too. The error of the ingest is returned, as it has the cause.
    let ingest = ingest?;
    let front_matter = front_matter.map_err(Error::internal)??;
    Ok((PreparedSkill { front_matter, files }, ingest))
}
