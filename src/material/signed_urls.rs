//! Signed URLs: their tokens grant access to one content without a key, until the time in the token.
//!
//! A token is stateless: what it opens, how to present it, and a signature with a key derived from the server's pepper. It
//! serves exactly the bytes it was made for, as long as some row of the project refers to them. Its end is rounded up to
//! the hour for lives of an hour and more, so that the same file asked for twice within an hour has the same link, and
//! prompts that contain it stay byte-identical.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::blob::content::{self, Key};
use crate::blob::rows::StoredBlob;
use crate::crypto::{LinkKey, WrappedFileKey};
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::ids::ProjectId;
use crate::platform::Platform;

/// The first byte of every token, so that another form can be told from this one. The second form has the key of a sealed file.
const PLAIN: u8 = 1;
const SEALED: u8 = 2;
const SIGNATURE: usize = 16;
const HOUR: i64 = 3600;
/// The longest life: seven days.
pub const MAX_TTL: i64 = 7 * 24 * HOUR;

/// What a token opens and how it is presented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedUrl {
    pub project: ProjectId,
    /// Of the content, in lower-case hex.
    pub sha256: String,
    pub mime: String,
    pub filename: String,
    /// Opens this one content, if it is sealed.
    pub key: Option<WrappedFileKey>,
}

/// When a link made at `now` (Unix seconds) for `life` seconds ends.
///
/// # Errors
/// 400 for a life outside of 1 second to 7 days.
pub fn end(now: i64, life: i64) -> Result<i64> {
    if !(1..=MAX_TTL).contains(&life) {
        return Err(Error::invalid_field("expire", format_args!("must be from 1 to {MAX_TTL} seconds")));
    }
    let end = now + life;
    Ok(if life >= HOUR { (end + HOUR - 1) / HOUR * HOUR } else { end })
}

/// What a link to this content must tell; nothing if it is not sealed.
///
/// # Errors
/// 403 if it is sealed and the project's key not at hand; 500 if its own key is damaged.
pub fn wrap_key_for_link(
    key: &LinkKey,
    encryption: &ProjectEncryption,
    stored: &StoredBlob,
) -> Result<Option<WrappedFileKey>> {
    let dek = content::dek(stored, Key::Project(encryption.kek.as_deref()))?;
    Ok(dek.map(|dek| key.wrap(dek.bytes())).transpose()?)
}

impl SignedUrl {
    /// Returns the URL of this link, valid until `end` (Unix seconds).
    ///
    /// # Errors
    /// The content type is longer than 64 KiB.
    pub fn url(&self, platform: &Platform, end: i64) -> Result<String> {
        Ok(format!("{}/api/v1/material/{}", platform.public_url, self.sign(&platform.link_key, end)?))
    }

    /// Returns the token of this link.
    ///
    /// # Errors
    /// As for [`SignedUrl::url`].
    pub fn sign(&self, key: &LinkKey, end: i64) -> Result<String> {
        let mut token = vec![if self.key.is_some() { SEALED } else { PLAIN }];
        token.extend_from_slice(self.project.0.as_bytes());
        token.extend_from_slice(&hex::decode(&self.sha256).map_err(Error::internal)?);
        token.extend_from_slice(&end.to_be_bytes());
        token.extend_from_slice(self.key.as_ref().map_or(&[], |key| key.as_slice()));
        token.extend_from_slice(&u16::try_from(self.mime.len()).map_err(Error::internal)?.to_be_bytes());
        token.extend_from_slice(self.mime.as_bytes());
        token.extend_from_slice(self.filename.as_bytes());
        let signature = key.sign(&token);
        token.extend_from_slice(&signature[..SIGNATURE]);
        Ok(URL_SAFE_NO_PAD.encode(token))
    }

    /// Reads a token; `None` if it is not one of ours, was changed, or has ended.
    pub fn verify(token: &str, key: &LinkKey, now: i64) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (signed, signature) = bytes.split_at_checked(bytes.len().checked_sub(SIGNATURE)?)?;
        if !bool::from(subtle::ConstantTimeEq::ct_eq(&key.sign(signed)[..SIGNATURE], signature)) {
            return None;
        }
        let (version, rest) = signed.split_first()?;
        let (project, rest) = rest.split_first_chunk::<16>()?;
        let (sha256, rest) = rest.split_first_chunk::<32>()?;
        let (end, rest) = rest.split_first_chunk::<8>()?;
        let (key, rest) = match *version {
            PLAIN => (None, rest),
            SEALED => rest.split_first_chunk().map(|(key, rest)| (Some(*key), rest))?,
            _ => return None,
        };
        let (mime_length, rest) = rest.split_first_chunk::<2>()?;
        let (mime, filename) = rest.split_at_checked(usize::from(u16::from_be_bytes(*mime_length)))?;
        if i64::from_be_bytes(*end) < now {
            return None;
        }
        Some(Self {
            project: ProjectId(Uuid::from_bytes(*project)),
            sha256: hex::encode(sha256),
            mime: String::from_utf8(mime.to_vec()).ok()?,
            filename: String::from_utf8(filename.to_vec()).ok()?,
            key,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_700_000_123;

    fn key(pepper: &str) -> LinkKey {
        LinkKey::derive(pepper).unwrap()
    }

    fn link() -> SignedUrl {
        SignedUrl {
            project: ProjectId::new(),
            sha256: "ab".repeat(32),
            mime: "text/plain; charset=utf-8".into(),
            filename: "größe.txt".into(),
            key: None,
        }
    }

    #[test]
    fn a_link_opens_until_its_end() {
        let key = key("pepper");
        let wrapped = key.wrap(&[7; 32]).unwrap();
        for link in [link(), SignedUrl { key: Some(wrapped), ..link() }] {
            let token = link.sign(&key, NOW + 60).unwrap();
            assert_eq!(SignedUrl::verify(&token, &key, NOW + 60), Some(link));
            assert_eq!(SignedUrl::verify(&token, &key, NOW + 61), None);
        }
        assert_eq!(*key.unwrap(&wrapped).unwrap(), [7; 32]);
    }

    #[test]
    fn a_link_of_another_server_does_not_open() {
        let token = link().sign(&key("pepper"), NOW + 60).unwrap();
        assert_eq!(SignedUrl::verify(&token, &key("salt"), NOW), None);
    }

    #[test]
    fn long_links_made_within_an_hour_end_together() {
        let hour = NOW / HOUR * HOUR;
        assert_eq!(end(hour + 1, HOUR).unwrap(), hour + 2 * HOUR);
        assert_eq!(end(hour + HOUR - 1, HOUR).unwrap(), hour + 2 * HOUR);
        assert_eq!(end(hour, HOUR).unwrap(), hour + HOUR);
        assert_eq!(end(NOW, 60).unwrap(), NOW + 60);
    }

    #[test]
    fn a_life_out_of_range_is_refused() {
        for life in [0, -1, MAX_TTL + 1, i64::MAX, i64::MIN] {
            assert!(end(NOW, life).is_err(), "{life}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_token_does_not_open(at in 0_usize..200, with in any::<u8>()) {
            let key = key("pepper");
            let token = link().sign(&key, NOW + 60).unwrap();
            let mut bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != with);
            bytes[at] = with;
            prop_assert_eq!(SignedUrl::verify(&URL_SAFE_NO_PAD.encode(bytes), &key, NOW), None);
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,300}") {
            prop_assert_eq!(SignedUrl::verify(&text, &key("pepper"), NOW), None);
        }
    }
}
