//! The one way a skill comes into being: its contents are put into the object store, and then one short transaction makes its
//! disk, the files on it, and the skill.

use std::collections::HashMap;

use futures_util::{Stream, StreamExt, TryStreamExt};
use serde_json::{Map, Value};
use sqlx::PgConnection;

use super::front_matter::FrontMatter;
use super::store::{self, NewSkill};
use super::{FileEntry, Skill};
use crate::blob::ingest::Upload;
use crate::blob::spool::Spool;
use crate::disks;
use crate::disks::changes::{self, Author, Change, Content, FileChange};
use crate::disks::path::FilePath;
use crate::encryption::Owner;
use crate::error::{Error, OnConstraint, Result, UNAUTHORIZED};
use crate::ids::{ProjectId, UserId};
use crate::media;
use crate::platform::Platform;

/// How many contents are put into the object store at once.
const AT_ONCE: usize = 8;
/// How often a skill is begun again because equal contents came first, or the sweep.
pub const TRIES: usize = 5;
/// What to say when even that was not enough.
pub const RACED: &str = "equal files are being stored and removed at once; try again in a moment";

/// A skill whose contents are in the object store, where no row refers to them yet.
pub struct Prepared {
    says: FrontMatter,
    files: Vec<File>,
    /// Each content once.
    contents: Vec<Upload>,
}

struct File {
    at: FilePath,
    mime: String,
    size: i64,
    sha256: String,
    /// Its place among the contents.
    content: usize,
}

/// Contents as they were put there.
#[derive(Default)]
pub struct Contents {
    files: Vec<File>,
    uploads: Vec<Upload>,
}

impl Contents {
    /// Puts files into the object store, several at a time, equal ones once.
    ///
    /// # Errors
    /// 503 if the object store fails.
    pub async fn put(
        platform: &Platform,
        owner: &Owner,
        source: impl Stream<Item = (FilePath, Spool)>,
    ) -> Result<Self> {
        let (mut files, mut known) = (Vec::new(), HashMap::new());
        let new = source.filter_map(|(at, content)| {
            let next = known.len();
            let place = *known.entry(content.sha256.clone()).or_insert(next);
            files.push(File::of(at, &content, place));
            std::future::ready((place == next).then_some((place, content)))
        });
        let put = new.map(async |(place, content)| -> Result<(usize, Upload)> {
            Ok((place, platform.blobs.upload(owner, &content).await?))
        });
        let mut uploads: Vec<_> = put.buffer_unordered(AT_ONCE).try_collect().await?;
        uploads.sort_by_key(|(place, _)| *place);
        Ok(Self { files, uploads: uploads.into_iter().map(|(_, upload)| upload).collect() })
    }

    /// What they are the files of.
    pub fn of_skill(self, says: FrontMatter) -> Prepared {
        Prepared { says, files: self.files, contents: self.uploads }
    }
}

impl File {
    fn of(at: FilePath, content: &Spool, place: usize) -> Self {
        let whole = content.head.len() as u64 == content.size;
        let mime = media::detect(&content.head, whole, at.filename());
        let size = i64::try_from(content.size).unwrap_or(i64::MAX);
        Self { at, mime, size, sha256: content.sha256.clone(), content: place }
    }
}

impl Prepared {
    /// Makes the skill, in the caller's transaction. `None` if another one took the place of a content meanwhile: roll back,
    /// and prepare it again.
    ///
    /// # Errors
    /// 401 if the project is deleted just now.
    pub async fn insert(
        &self,
        conn: &mut PgConnection,
        platform: &Platform,
        project: ProjectId,
        user: Option<UserId>,
        meta: Option<Map<String, Value>>,
    ) -> Result<Option<Skill>> {
        let blobs = match platform.blobs.claim_all(conn, &self.contents).await {
            Ok(Some(blobs)) => blobs,
            Ok(None) => return Ok(None),
            // Another transaction takes them in another order.
            Err(fault) if fault.is_deadlock() => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let disk =
            disks::store::insert(conn, project, user).await.on_constraint("disks_project_id_fkey", || UNAUTHORIZED)?.id;
        let changes: Vec<FileChange> = self.files.iter().map(|file| file.put(&blobs)).collect();
        let author = Author { author: "api", reason: None, keep: platform.config.limits.file_versions };
        let applied = changes::apply(conn, project, disk, &changes, author).await?;
        applied.map_err(|_| Error::internal(anyhow::anyhow!("a disk that was made is not there")))?;
        let row = store::insert(conn, project, NewSkill { disk, user, says: &self.says, meta }).await?;
        Ok(Some(row.with_files(self.files.iter().map(File::entry).collect())))
    }
}

impl File {
    fn put(&self, blobs: &[crate::ids::BlobId]) -> FileChange {
        let Self { at, mime, size, sha256, content } = self;
        let content = Content { blob: blobs[*content], mime: mime.clone(), size: *size, sha256: sha256.clone() };
        FileChange { at: at.clone(), change: Change::Put { content, meta: Map::new() } }
    }

    fn entry(&self) -> FileEntry {
        FileEntry { path: self.at.relative(), mime: self.mime.clone() }
    }
}
