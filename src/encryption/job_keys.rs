//! Wraps the master keys that jobs need. A wrapped master key is stored in the row of its job, and is deleted with that row.

use aws_lc_rs::aead::LessSafeKey;

use super::{DecryptError, Kek, MasterKey, aes_key, open, random_nonce, seal};
use crate::crypto;
use crate::ids::ProjectId;

/// Wraps and unwraps master keys for the job queue. The wrapping key is derived from the pepper, so all processes on a database
/// use the same wrapping key.
pub struct JobKeyWrapper(LessSafeKey);

impl JobKeyWrapper {
    /// Derives the wrapping key from the pepper.
    ///
    /// # Errors
    /// Returns an error if the cryptographic library fails.
    pub fn derive(pepper: &str) -> anyhow::Result<Self> {
        let key = crypto::derive_key(b"acontextd", pepper.as_bytes(), b"acontextd keys of jobs, first form")?;
        Ok(Self(aes_key(&key)?))
    }

    /// Wraps the master key of a project and binds it to the project.
    ///
    /// # Errors
    /// Returns an error if the system's random number generator fails.
    pub fn wrap(&self, kek: &Kek) -> anyhow::Result<Vec<u8>> {
        let mut wrapped = Vec::new();
        seal(&self.0, random_nonce()?, kek.project.0.as_bytes(), &**kek.master(), &mut wrapped)?;
        Ok(wrapped)
    }

    /// Unwraps the master key of a project.
    ///
    /// # Errors
    /// Returns [`DecryptError`] if the wrapped key belongs to another project, was wrapped under another pepper, or was modified.
    pub fn unwrap(&self, project: ProjectId, wrapped: &[u8]) -> Result<Kek, DecryptError> {
        let mut wrapped = zeroize::Zeroizing::new(wrapped.to_vec());
        let master: &[u8; 32] =
            (&*open(&self.0, project.0.as_bytes(), &mut wrapped)?).try_into().map_err(|_| DecryptError)?;
        Kek::new(project, MasterKey::new(*master)).map_err(|_| DecryptError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_unwrapped_only_for_its_project_and_pepper() {
        let (project, wrapper) = (ProjectId::new(), JobKeyWrapper::derive("pepper").unwrap());
        let kek = Kek::new(project, MasterKey::new([7; 32])).unwrap();
        let encrypted_kek = wrapper.wrap(&kek).unwrap();
        assert!(!encrypted_kek.windows(32).any(|window| window == [7; 32]));
        assert_eq!(*wrapper.unwrap(project, &encrypted_kek).unwrap().master(), MasterKey::new([7; 32]));
        assert!(wrapper.unwrap(ProjectId::new(), &encrypted_kek).is_err());
        assert!(JobKeyWrapper::derive("salt").unwrap().unwrap(project, &encrypted_kek).is_err());
        assert!(wrapper.unwrap(project, &encrypted_kek[1..]).is_err());
    }
}
