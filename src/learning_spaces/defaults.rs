//! The skills that every learning space begins with.

use bytes::Bytes;
use futures_util::stream;

use crate::blob::spool::SpoolDir;
use crate::disks::path::FilePath;
use crate::encryption::Owner;
use crate::error::{Error, Result};
use crate::platform::Platform;
use crate::skills::create::{Contents, Prepared};
use crate::skills::front_matter::FrontMatter;

/// Their SKILL.md, in the order they are made.
const SKILLS: [&str; 2] = [include_str!("defaults/daily-logs.md"), include_str!("defaults/user-general-facts.md")];

/// Puts their contents into the object store, if the project does not have them yet.
///
/// # Errors
/// 503 if the object store fails.
pub async fn prepare(platform: &Platform, owner: &Owner) -> Result<Vec<Prepared>> {
    let mut prepared = Vec::with_capacity(SKILLS.len());
    for text in SKILLS {
        let at = FilePath::of_segments(&["SKILL.md"]).map_err(|wrong| Error::internal(anyhow::anyhow!(wrong)))?;
        let content = SpoolDir::of_bytes(Bytes::from_static(text.as_bytes()));
        let contents = Contents::put(platform, owner, stream::iter([(at, content)])).await?;
        prepared.push(contents.of_skill(FrontMatter::parse(text.as_bytes())?));
    }
    Ok(prepared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_skills_with_names_that_clients_know() {
        let names = SKILLS.map(|text| FrontMatter::parse(text.as_bytes()).unwrap());
        assert_eq!(names.each_ref().map(|says| says.name.as_str()), ["daily-logs", "user-general-facts"]);
        assert!(names.iter().all(|says| !says.description.contains('\n') && says.description.len() > 100));
    }
}
