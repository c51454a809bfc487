//! Signed URLs, also called public links. The token of a URL grants access to one content without an API key until it expires.
//!
//! Tokens are stateless. They contain the hash of the content, its media type and file name, the expiry, and a signature with a
//! key that is derived from the server's pepper. A token is valid only as long as a row of the project refers to the content. For
//! TTLs of an hour or more, the expiry is rounded up to the hour, so that links to the same file are equal within an hour and
//! prompts that contain them stay byte-identical.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::blob::content::{self, ContentKey};
use crate::blob::rows::StoredBlob;
use crate::crypto::{LinkKeys, LinkWrappedDataKey};
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::ids::ProjectId;
use crate::platform::Platform;

/// The version of a token for plaintext content. The version is the first byte of a token.
const VERSION_PLAIN: u8 = 1;
/// The version of a token for encrypted content, which also contains the wrapped data key.
const VERSION_ENCRYPTED: u8 = 2;
const SIGNATURE_LEN: usize = 16;
const HOUR: i64 = 3600;
/// The maximum TTL: seven days.
pub const MAX_TTL_SECS: i64 = 7 * 24 * HOUR;

/// The data in the token of a signed URL, except the expiry: the hash of the content, and its media type and file name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedUrl {
    pub project: ProjectId,
    /// The SHA-256 of the content in lower-case hex.
    pub sha256: String,
    pub mime: String,
    pub filename: String,
    /// The wrapped data key, if the content is encrypted.
    pub wrapped_dek: Option<LinkWrappedDataKey>,
}

/// Returns the expiry of a link that is created at `now` (Unix seconds) with a TTL in seconds. For a TTL of an hour or more, the
/// expiry is rounded up to the hour.
///
/// # Errors
/// Returns 400 if the TTL is not between 1 second and 7 days.
pub fn expires_at(now: i64, ttl: i64) -> Result<i64> {
    if !(1..=MAX_TTL_SECS).contains(&ttl) {
        return Err(Error::invalid_field("expire", format_args!("must be from 1 to {MAX_TTL_SECS} seconds")));
    }
    let expires_at = now + ttl;
    Ok(if ttl >= HOUR { (expires_at + HOUR - 1) / HOUR * HOUR } else { expires_at })
}

/// Wraps the data key of a blob for its signed URL. Returns `None` if the blob is not encrypted.
///
/// # Errors
/// Returns 403 if the blob is encrypted and the master key is missing, and 500 if the wrapped data key is corrupt.
pub fn wrap_dek_for_link(
    link_keys: &LinkKeys,
    encryption: &ProjectEncryption,
    blob: &StoredBlob,
) -> Result<Option<LinkWrappedDataKey>> {
    let dek = content::unwrap_dek(blob, ContentKey::Kek(encryption.kek.as_deref()))?;
    Ok(dek.map(|dek| link_keys.wrap(dek.bytes())).transpose()?)
}

impl SignedUrl {
    /// Returns the URL, which is valid until `expires_at` (Unix seconds).
    ///
    /// # Errors
    /// Returns 500 if the media type is longer than 64 KiB.
    pub fn url(&self, platform: &Platform, expires_at: i64) -> Result<String> {
        Ok(format!("{}/api/v1/material/{}", platform.public_url, self.to_token(&platform.link_keys, expires_at)?))
    }

    /// Returns the signed token.
    ///
    /// # Errors
    /// Returns 500 if the media type is longer than 64 KiB.
    pub fn to_token(&self, link_keys: &LinkKeys, expires_at: i64) -> Result<String> {
        let mut token = vec![if self.wrapped_dek.is_some() { VERSION_ENCRYPTED } else { VERSION_PLAIN }];
        token.extend_from_slice(self.project.0.as_bytes());
        token.extend_from_slice(&hex::decode(&self.sha256).map_err(Error::internal)?);
        token.extend_from_slice(&expires_at.to_be_bytes());
        token.extend_from_slice(self.wrapped_dek.as_ref().map_or(&[], |wrapped| wrapped.as_slice()));
        token.extend_from_slice(&u16::try_from(self.mime.len()).map_err(Error::internal)?.to_be_bytes());
        token.extend_from_slice(self.mime.as_bytes());
        token.extend_from_slice(self.filename.as_bytes());
        let signature = link_keys.sign(&token);
        token.extend_from_slice(&signature[..SIGNATURE_LEN]);
        Ok(URL_SAFE_NO_PAD.encode(token))
    }

    /// Decodes and verifies a token. Returns `None` if the token is malformed, has an invalid signature, or has expired.
    pub fn verify(token: &str, link_keys: &LinkKeys, now: i64) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (signed, signature) = bytes.split_at_checked(bytes.len().checked_sub(SIGNATURE_LEN)?)?;
        if !bool::from(subtle::ConstantTimeEq::ct_eq(&link_keys.sign(signed)[..SIGNATURE_LEN], signature)) {
            return None;
        }
        let (version, rest) = signed.split_first()?;
        let (project, rest) = rest.split_first_chunk::<16>()?;
        let (sha256, rest) = rest.split_first_chunk::<32>()?;
        let (expires_at, rest) = rest.split_first_chunk::<8>()?;
        let (wrapped_dek, rest) = match *version {
            VERSION_PLAIN => (None, rest),
            VERSION_ENCRYPTED => rest.split_first_chunk().map(|(wrapped, rest)| (Some(*wrapped), rest))?,
            _ => return None,
        };
        let (mime_length, rest) = rest.split_first_chunk::<2>()?;
        let (mime, filename) = rest.split_at_checked(usize::from(u16::from_be_bytes(*mime_length)))?;
        if i64::from_be_bytes(*expires_at) < now {
            return None;
        }
        Some(Self {
            project: ProjectId(Uuid::from_bytes(*project)),
            sha256: hex::encode(sha256),
            mime: String::from_utf8(mime.to_vec()).ok()?,
            filename: String::from_utf8(filename.to_vec()).ok()?,
            wrapped_dek,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_700_000_123;

    fn link_keys(pepper: &str) -> LinkKeys {
        LinkKeys::derive(pepper).unwrap()
    }

    fn link() -> SignedUrl {
        SignedUrl {
            project: ProjectId::new(),
            sha256: "ab".repeat(32),
            mime: "text/plain; charset=utf-8".into(),
            filename: "größe.txt".into(),
            wrapped_dek: None,
        }
    }

    #[test]
    fn link_is_valid_until_it_expires() {
        let link_keys = link_keys("pepper");
        let wrapped = link_keys.wrap(&[7; 32]).unwrap();
        for link in [link(), SignedUrl { wrapped_dek: Some(wrapped), ..link() }] {
            let token = link.to_token(&link_keys, NOW + 60).unwrap();
            assert_eq!(SignedUrl::verify(&token, &link_keys, NOW + 60), Some(link));
            assert_eq!(SignedUrl::verify(&token, &link_keys, NOW + 61), None);
        }
        assert_eq!(*link_keys.unwrap(&wrapped).unwrap(), [7; 32]);
    }

    #[test]
    fn link_of_another_server_is_invalid() {
        let token = link().to_token(&link_keys("pepper"), NOW + 60).unwrap();
        assert_eq!(SignedUrl::verify(&token, &link_keys("salt"), NOW), None);
    }

    #[test]
    fn long_links_expire_at_full_hours() {
        let hour = NOW / HOUR * HOUR;
        assert_eq!(expires_at(hour + 1, HOUR).unwrap(), hour + 2 * HOUR);
        assert_eq!(expires_at(hour + HOUR - 1, HOUR).unwrap(), hour + 2 * HOUR);
        assert_eq!(expires_at(hour, HOUR).unwrap(), hour + HOUR);
        assert_eq!(expires_at(NOW, 60).unwrap(), NOW + 60);
    }

    #[test]
    fn ttl_out_of_range_is_rejected() {
        for ttl in [0, -1, MAX_TTL_SECS + 1, i64::MAX, i64::MIN] {
            assert!(expires_at(NOW, ttl).is_err(), "{ttl}");
        }
    }

    proptest! {
        #[test]
        fn modified_token_is_invalid(index in 0_usize..200, byte in any::<u8>()) {
            let link_keys = link_keys("pepper");
            let token = link().to_token(&link_keys, NOW + 60).unwrap();
            let mut bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
            let index = index % bytes.len();
            prop_assume!(bytes[index] != byte);
            bytes[index] = byte;
            prop_assert_eq!(SignedUrl::verify(&URL_SAFE_NO_PAD.encode(bytes), &link_keys, NOW), None);
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in ".{0,300}") {
            prop_assert_eq!(SignedUrl::verify(&text, &link_keys("pepper"), NOW), None);
        }
    }
}
