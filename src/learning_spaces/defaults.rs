//! The skills that every learning space begins with.

use bytes::Bytes;
use futures_util::stream;

use crate::blob::ingest::Ingest;
use crate::blob::spool::SpoolDir;
use crate::disks::path::FilePath;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::platform::Platform;
use crate::skills::create::{PreparedFile, PreparedSkill};
use crate::skills::front_matter::FrontMatter;

/// Their SKILL.md, in the order of their creation.
const DEFAULT_SKILLS: [&str; 2] =
    [include_str!("defaults/daily-logs.md"), include_str!("defaults/user-general-facts.md")];

/// Stores their contents, if the project does not have them yet.
///
/// # Errors
/// 503 if the object store fails.
pub async fn upload_default_skills(
    platform: &Platform,
    encryption: &ProjectEncryption,
) -> Result<(Vec<PreparedSkill>, Ingest)> {
    let (mut skills, mut contents) = (Vec::new(), Vec::new());
    for text in DEFAULT_SKILLS {
        let at = FilePath::of_segments(&["SKILL.md"]).map_err(|wrong| Error::internal(anyhow::anyhow!(wrong)))?;
        let content = SpoolDir::from_bytes(Bytes::from_static(text.as_bytes()));
        let front_matter = FrontMatter::parse(text.as_bytes())?;
        skills.push(PreparedSkill { front_matter, files: vec![PreparedFile::new(at, &content)] });
        contents.push(content);
    }
    Ok((skills, platform.blobs.ingest(encryption, stream::iter(contents)).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_skills_with_names_that_clients_know() {
        let names = DEFAULT_SKILLS.map(|text| FrontMatter::parse(text.as_bytes()).unwrap());
        assert_eq!(names.each_ref().map(|says| says.name.as_str()), ["daily-logs", "user-general-facts"]);
        assert!(names.iter().all(|says| !says.description.contains('\n') && says.description.len() > 100));
    }
}
