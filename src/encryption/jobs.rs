//! The keys that background work is given: sealed with a key that only the server has, and gone with the job.

use aws_lc_rs::aead::LessSafeKey;

use super::{DecryptError, Kek, MasterKey, aes, open, random, seal};
use crate::crypto;
use crate::ids::ProjectId;

/// Seals projects' keys for the queue. Derived from the pepper, so that every process of an installation has the same one.
pub struct JobKeys(LessSafeKey);

impl JobKeys {
    /// # Errors
    /// None that can be helped.
    pub fn derive(pepper: &str) -> anyhow::Result<Self> {
        let key = crypto::derive(b"acontextd", pepper.as_bytes(), b"acontextd keys of jobs, first form")?;
        Ok(Self(aes(&key)?))
    }

    /// # Errors
    /// The system gives no random bytes.
    pub fn seal(&self, kek: &Kek) -> anyhow::Result<Vec<u8>> {
        let mut sealed = Vec::new();
        seal(&self.0, random()?, kek.project.0.as_bytes(), &**kek.master(), &mut sealed)?;
        Ok(sealed)
    }

    /// # Errors
    /// [`DecryptError`]: it is another project's, or was sealed under another pepper.
    pub fn open(&self, project: ProjectId, sealed: &[u8]) -> Result<Kek, DecryptError> {
        let mut sealed = zeroize::Zeroizing::new(sealed.to_vec());
        let master: &[u8; 32] =
            (&*open(&self.0, project.0.as_bytes(), &mut sealed)?).try_into().map_err(|_| DecryptError)?;
        Kek::new(project, MasterKey::new(*master)).map_err(|_| DecryptError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_for_its_project_under_its_pepper() {
        let (project, keys) = (ProjectId::new(), JobKeys::derive("pepper").unwrap());
        let kek = Kek::new(project, MasterKey::new([7; 32])).unwrap();
        let sealed = keys.seal(&kek).unwrap();
        assert!(!sealed.windows(32).any(|window| window == [7; 32]));
        assert_eq!(*keys.open(project, &sealed).unwrap().master(), MasterKey::new([7; 32]));
        assert!(keys.open(ProjectId::new(), &sealed).is_err());
        assert!(JobKeys::derive("salt").unwrap().open(project, &sealed).is_err());
        assert!(keys.open(project, &sealed[1..]).is_err());
    }
}
