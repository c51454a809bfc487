//! Whose content it is.

use std::sync::Arc;

use super::Kek;
use crate::error::{Error, Result};
use crate::ids::ProjectId;

/// A project, and what seals and opens its content, if that is at hand.
#[derive(Clone)]
pub struct Owner {
    pub project: ProjectId,
    /// Whether the project is encrypted, as far as is known: that may change at any moment.
    pub encrypted: bool,
    pub kek: Option<Arc<Kek>>,
}

impl Owner {
    /// One whose content is not sealed.
    pub fn plain(project: ProjectId) -> Self {
        Self { project, encrypted: false, kek: None }
    }

    /// What content is to be sealed with; nothing if it is to be stored as it is.
    ///
    /// # Errors
    /// 403 if the project is encrypted and its key not at hand.
    pub fn sealing(&self, encrypted: bool) -> Result<Option<&Kek>> {
        match (encrypted, &self.kek) {
            (false, _) => Ok(None),
            (true, Some(kek)) => Ok(Some(kek)),
            (true, None) => Err(Error::KeyRequired),
        }
    }

    /// Refuses what could not be stored in any case, before it is taken in.
    ///
    /// # Errors
    /// As for [`Owner::sealing`].
    pub fn check_may_store(&self) -> Result<()> {
        self.sealing(self.encrypted).map(drop)
    }

    /// What opens content that is sealed.
    ///
    /// # Errors
    /// 403 if the key is not at hand.
    pub fn opening(&self) -> Result<&Kek> {
        self.kek.as_deref().ok_or(Error::KeyRequired)
    }
}
