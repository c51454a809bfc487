//! The default skills of a new learning space.

use bytes::Bytes;
use futures_util::stream;

use crate::blob::ingest::Ingest;
use crate::blob::spool::Spool;
use crate::disks::path::FilePath;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::platform::Platform;
use crate::skills::create::{PreparedFile, PreparedSkill};
use crate::skills::front_matter::FrontMatter;

/// The `SKILL.md` files of the default skills, in the order of creation.
const DEFAULT_SKILLS: [&str; 2] =
    [include_str!("defaults/daily-logs.md"), include_str!("defaults/user-general-facts.md")];

/// Uploads the files of the default skills, unless the project already has blobs with the same contents. The caller makes
/// the blobs live and inserts the skills.
///
/// # Errors
/// Returns 403 if the project is encrypted and the request has no key, and 503 if the object store fails.
pub async fn upload_default_skills(
    platform: &Platform,
    encryption: &ProjectEncryption,
) -> Result<(Vec<PreparedSkill>, Ingest)> {
    let (mut skills, mut contents) = (Vec::new(), Vec::new());
    for text in DEFAULT_SKILLS {
        let path = FilePath::from_segments(&["SKILL.md"]).map_err(|reason| Error::internal(anyhow::anyhow!(reason)))?;
        let content = Spool::from_bytes(Bytes::from_static(text.as_bytes()));
        let front_matter = FrontMatter::parse(text.as_bytes())?;
        skills.push(PreparedSkill { front_matter, files: vec![PreparedFile::new(path, &content)] });
        contents.push(content);
    }
    Ok((skills, platform.blobs.ingest(encryption, stream::iter(contents)).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_skills_have_the_names_that_clients_expect() {
        let skills = DEFAULT_SKILLS.map(|text| FrontMatter::parse(text.as_bytes()).unwrap());
        assert_eq!(skills.each_ref().map(|skill| skill.name.as_str()), ["daily-logs", "user-general-facts"]);
        assert!(skills.iter().all(|skill| !skill.description.contains('\n') && skill.description.len() > 100));
    }
}
