//! Takes a skill in that comes as an archive. It is unpacked on a thread of its own, a few files ahead of the object store, so
//! that memory does not grow with the archive.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::archive::{Archive, Bounds};
use super::create::{PreparedFile, PreparedSkill};
use super::front_matter::FrontMatter;
use crate::blob::ingest::Ingest;
use crate::blob::spool::Spool;
use crate::disks::path::FilePath;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::platform::Platform;

/// How many unpacked files wait for the object store.
const AHEAD: usize = 4;

/// Unpacks an archive and stores the contents of its files.
///
/// # Errors
/// 400 for an archive that is no skill, or one that cannot be unpacked without harm; 413 if it is too large; 503 if the object
/// store fails or there is no room.
pub async fn unpack(
    platform: &Platform,
    encryption: &ProjectEncryption,
    archive: &Arc<Spool>,
) -> Result<(PreparedSkill, Ingest)> {
    let limits = &platform.config.limits;
    let bounds = Bounds {
        files: limits.skill_files,
        unpacked: limits.skill_unpacked,
        file: limits.artifact,
        skill_md: limits.skill_md,
    };
    let (sender, receiver) = mpsc::channel(AHEAD);
    let (archive, spool) = (Arc::clone(archive), platform.request_context.spool.clone());
    let unpacked = tokio::task::spawn_blocking(move || -> Result<FrontMatter> {
        let reader = archive.reader().map_err(Error::internal)?;
        let mut archive = Archive::open(reader, bounds)?;
        let says = archive.front_matter()?;
        let stopped = |_| Error::unavailable("the object store does not take the files");
        archive.unpack(
            |file| spool.spool_from_reader(file),
            |at, content| sender.blocking_send((at.clone(), content)).map_err(stopped),
        )?;
        Ok(says)
    });
    let mut files = Vec::new();
    let unpacking = stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|file| (file, receiver)));
    let contents = unpacking.map(|(at, content): (FilePath, Spool)| {
        files.push(PreparedFile::new(at, &content));
        content
    });
    let (front_matter, contents) = tokio::join!(unpacked, platform.blobs.ingest(encryption, contents));
    // If the object store fails, unpacking stops for that reason.
    let contents = contents?;
    let front_matter = front_matter.map_err(Error::internal)??;
    Ok((PreparedSkill { front_matter, files }, contents))
}
