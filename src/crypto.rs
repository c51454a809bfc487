//! Project keys: their formats, lookup hash and verification; and the keys that are derived from the server's pepper.
//!
//! A compact key is `sk-ac-` and 76 characters: the base64url encoding of a version byte, a secret of 16 bytes, and the
//! project's master key, wrapped (RFC 3394) with a key that is derived from the secret and the pepper. Any other text after
//! the prefix is a legacy key: the text itself is the secret, and there is no master key. All formats are byte for byte
//! those of Acontext.
//!
//! The labels of key derivations (`…_INFO_V1`, `…_LABEL_V1`) must not change, because stored data and public links depend on
//! them.

use anyhow::{Context, anyhow};
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use aws_lc_rs::{hkdf, hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

/// The prefix of every project key.
pub const KEY_PREFIX: &str = "sk-ac-";

const COMPACT_KEY_VERSION: u8 = 1;
/// The length of a compact key without the prefix, in characters.
const COMPACT_KEY_LEN: usize = 76;
const SECRET_LEN: usize = 16;
const WRAPPED_KEY_LEN: usize = 40;

const RESPONSE_KEY_INFO_V1: &[u8] = b"acontextd kept answers, first form";
const ENCRYPTED_PROJECT_RESPONSE_KEY_INFO_V1: &[u8] = b"acontextd kept answers of encrypted projects, first form";
const LINK_SIGNING_LABEL_V1: &[u8] = b"acontextd public links, first form";
const LINK_WRAPPING_KEY_INFO_V1: &[u8] = b"acontextd keys in public links, first form";
const PEPPER_DIGEST_LABEL_V1: &[u8] = b"acontextd pepper digest, first form";

/// A project's master key, which wraps the data keys of its content. Outside of memory it exists only wrapped.
pub type MasterKey = Zeroizing<[u8; 32]>;

/// The parsed key of a project.
#[derive(Clone)]
pub struct ProjectKey {
    /// The part that authenticates the project. In a compact key it consists of 16 bytes, which are here in hex.
    secret: Zeroizing<String>,
    wrapped_master_key: Option<[u8; WRAPPED_KEY_LEN]>,
}

impl ProjectKey {
    /// Parses a key without its prefix. Any text that is not a compact key is a legacy key, so this never fails.
    pub fn parse(unprefixed: &str) -> Self {
        Self::parse_compact(unprefixed)
            .unwrap_or_else(|| Self { secret: Zeroizing::new(unprefixed.to_owned()), wrapped_master_key: None })
    }

    fn parse_compact(unprefixed: &str) -> Option<Self> {
        if unprefixed.len() != COMPACT_KEY_LEN {
            return None;
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(unprefixed).ok()?);
        let (version, rest) = bytes.split_first()?;
        let (secret, wrapped) = rest.split_at_checked(SECRET_LEN)?;
        let wrapped = wrapped.try_into().ok()?;
        (*version == COMPACT_KEY_VERSION)
            .then(|| Self { secret: Zeroizing::new(hex::encode(secret)), wrapped_master_key: Some(wrapped) })
    }

    /// Generates a compact key with a new master key. Returns the key and its text without the prefix.
    ///
    /// # Errors
    /// Returns an error if the system's random number generator fails.
    pub fn generate(pepper: &str) -> anyhow::Result<(Self, Zeroizing<String>)> {
        let mut master = MasterKey::new([0; 32]);
        rand::fill(&mut *master)?;
        Self::generate_with_master_key(&master, pepper)
    }

    /// Generates a compact key with an existing master key, so that existing content stays readable. Returns the key and its
    /// text without the prefix.
    ///
    /// # Errors
    /// Returns an error if the system's random number generator fails.
    pub fn generate_with_master_key(master: &MasterKey, pepper: &str) -> anyhow::Result<(Self, Zeroizing<String>)> {
        let mut secret = Zeroizing::new([0; SECRET_LEN]);
        rand::fill(&mut *secret)?;
        let hex_secret = Zeroizing::new(hex::encode(*secret));
        let wrapped = wrap_key(&*derive_wrapping_key(&hex_secret, pepper)?, master)?;
        let mut bytes = Zeroizing::new(vec![COMPACT_KEY_VERSION]);
        bytes.extend_from_slice(&*secret);
        bytes.extend_from_slice(&wrapped);
        let unprefixed = Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes));
        Ok((Self { secret: hex_secret, wrapped_master_key: Some(wrapped) }, unprefixed))
    }

    /// Returns the lookup hash, by which the project is found: the hex HMAC-SHA256 of the secret, keyed with the pepper.
    pub fn lookup_hash(&self, pepper: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, pepper.as_bytes());
        hex::encode(hmac::sign(&key, self.secret.as_bytes()))
    }

    /// Returns `true` for a compact key, and `false` for a legacy key.
    pub fn is_compact(&self) -> bool {
        self.wrapped_master_key.is_some()
    }

    /// Returns the unwrapped master key; `None` for a legacy key.
    ///
    /// # Errors
    /// Returns an error if the key was modified or created with a different pepper.
    pub fn master_key(&self, pepper: &str) -> anyhow::Result<Option<MasterKey>> {
        let Some(wrapped) = &self.wrapped_master_key else { return Ok(None) };
        unwrap_key(&*derive_wrapping_key(&self.secret, pepper)?, wrapped).map(Some)
    }

    /// Returns an Argon2id hash of the secret and the pepper, as a PHC string. Slow by design: do not call it on an async
    /// thread.
    ///
    /// # Errors
    /// Returns an error if the system's random number generator fails.
    pub fn hash(&self, pepper: &str) -> anyhow::Result<String> {
        let mut salt = [0; 16];
        rand::fill(&mut salt)?;
        let salt = SaltString::encode_b64(&salt).map_err(|err| anyhow!("{err}"))?;
        let params = Params::new(16 * 1024, 2, 1, Some(32)).map_err(|err| anyhow!("{err}"))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let hash =
            argon2.hash_password(self.concat_pepper(pepper).as_bytes(), &salt).map_err(|err| anyhow!("{err}"))?;
        Ok(hash.to_string())
    }

    /// Returns `true` if `phc` is a hash of this key. Uses the Argon2 parameters in `phc`. Slow by design: do not call it on an
    /// async thread.
    pub fn verify_hash(&self, pepper: &str, phc: &str) -> bool {
        let Ok(hash) = PasswordHash::new(phc) else { return false };
        Argon2::default().verify_password(self.concat_pepper(pepper).as_bytes(), &hash).is_ok()
    }

    fn concat_pepper(&self, pepper: &str) -> Zeroizing<String> {
        Zeroizing::new(format!("{}{pepper}", *self.secret))
    }
}

/// Derives the key that wraps the master key in a compact key.
fn derive_wrapping_key(secret: &str, pepper: &str) -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let input = Zeroizing::new(format!("{secret}{pepper}"));
    let salt = Zeroizing::new(format!("{pepper}-master-key-wrap"));
    let info = Zeroizing::new(format!("{pepper} master key wrapping"));
    derive_key(salt.as_bytes(), input.as_bytes(), info.as_bytes())
}

fn wrap_key(wrapping_key: &[u8; 32], key: &[u8; 32]) -> anyhow::Result<[u8; WRAPPED_KEY_LEN]> {
    let mut wrapped = [0; WRAPPED_KEY_LEN];
    AesKek::new(&AES_256, wrapping_key)?.wrap(key, &mut wrapped).context("failed to wrap a key")?;
    Ok(wrapped)
}

fn unwrap_key(wrapping_key: &[u8; 32], wrapped: &[u8; WRAPPED_KEY_LEN]) -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    let length = AesKek::new(&AES_256, wrapping_key)?.unwrap(wrapped, &mut *key)?.len();
    if length == key.len() { Ok(key) } else { Err(anyhow!("the unwrapped key has {length} bytes instead of 32")) }
}

/// Derives a key of 32 bytes with HKDF-SHA256.
pub(crate) fn derive_key(salt: &[u8], input: &[u8], info: &[u8]) -> anyhow::Result<Zeroizing<[u8; 32]>> {
    struct OutputLen;
    impl hkdf::KeyType for OutputLen {
        fn len(&self) -> usize {
            32
        }
    }
    let mut key = Zeroizing::new([0; 32]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(input).expand(&[info], OutputLen)?.fill(&mut *key)?;
    Ok(key)
}

/// A cipher for the stored response of a request with an idempotency key. Responses are stored encrypted because they may
/// contain secrets. The key of the cipher is derived from the pepper and the idempotency key, which is not stored. For encrypted
/// projects it is also derived from the master key.
pub struct ResponseCipher(RandomizedNonceKey);

impl ResponseCipher {
    /// Derives the cipher for one request. `record_id` is the id of its idempotency record, `idempotency_key` the key that the
    /// client sent.
    ///
    /// # Errors
    /// Returns an error if the cryptographic library fails.
    pub fn derive(
        record_id: &[u8],
        idempotency_key: &str,
        pepper: &str,
        master: Option<&MasterKey>,
    ) -> anyhow::Result<Self> {
        let master_bytes: &[u8] = master.map_or(&[], |master| master.as_slice());
        let input = Zeroizing::new([idempotency_key.as_bytes(), pepper.as_bytes(), master_bytes].concat());
        let info = match master {
            None => RESPONSE_KEY_INFO_V1,
            Some(_) => ENCRYPTED_PROJECT_RESPONSE_KEY_INFO_V1,
        };
        let key = derive_key(record_id, &input, info)?;
        Ok(Self(RandomizedNonceKey::new(&AES_256_GCM, &*key)?))
    }

    /// Returns a random nonce, the ciphertext, and the tag.
    ///
    /// # Errors
    /// Returns an error if the system's random number generator fails.
    pub fn encrypt(&self, plaintext: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut encrypted = Vec::with_capacity(NONCE_LEN + plaintext.len() + AES_256_GCM.tag_len());
        encrypted.extend_from_slice(&[0; NONCE_LEN]);
        encrypted.extend_from_slice(plaintext);
        let (nonce, tag) = self.0.seal_in_place_separate_tag(Aad::empty(), &mut encrypted[NONCE_LEN..])?;
        encrypted[..NONCE_LEN].copy_from_slice(nonce.as_ref());
        encrypted.extend_from_slice(tag.as_ref());
        Ok(encrypted)
    }

    /// Decrypts the output of [`ResponseCipher::encrypt`] in place and returns the plaintext.
    ///
    /// # Errors
    /// Returns an error if the response is corrupt or was encrypted with a different key.
    pub fn decrypt(&self, mut encrypted: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let (nonce, rest) = encrypted.split_first_chunk_mut().context("a stored response is too short")?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plaintext =
            self.0.open_in_place(nonce, Aad::empty(), rest).context("failed to decrypt a stored response")?;
        let length = plaintext.len();
        encrypted.truncate(NONCE_LEN + length);
        encrypted.drain(..NONCE_LEN);
        Ok(encrypted)
    }
}

/// The two keys of public links. One signs each link. The other wraps the data key that a link to an encrypted object contains.
/// They are derived from the pepper, so they are the same in every process of an installation.
pub struct LinkKeys {
    signing: hmac::Key,
    wrapping: Zeroizing<[u8; 32]>,
}

/// The data key of an encrypted object, wrapped with the [`LinkKeys`]. A public link contains it.
pub type LinkWrappedDataKey = [u8; WRAPPED_KEY_LEN];

impl LinkKeys {
    /// Derives the keys from the pepper.
    ///
    /// # Errors
    /// Returns an error if the cryptographic library fails.
    pub fn derive(pepper: &str) -> anyhow::Result<Self> {
        let pepper_key = hmac::Key::new(hmac::HMAC_SHA256, pepper.as_bytes());
        let signing = hmac::sign(&pepper_key, LINK_SIGNING_LABEL_V1);
        let wrapping = derive_key(b"acontextd", pepper.as_bytes(), LINK_WRAPPING_KEY_INFO_V1)?;
        Ok(Self { signing: hmac::Key::new(hmac::HMAC_SHA256, signing.as_ref()), wrapping })
    }

    /// Returns the HMAC-SHA256 of `bytes`.
    pub fn sign(&self, bytes: &[u8]) -> [u8; 32] {
        let tag = hmac::sign(&self.signing, bytes);
        let mut out = [0; 32];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// Wraps a data key deterministically (RFC 3394), so that two links to the same object with the same expiry are equal.
    ///
    /// # Errors
    /// Returns an error if the cryptographic library fails.
    pub fn wrap(&self, key: &[u8; 32]) -> anyhow::Result<LinkWrappedDataKey> {
        wrap_key(&self.wrapping, key)
    }

    /// Unwraps the data key that [`LinkKeys::wrap`] has wrapped.
    ///
    /// # Errors
    /// Returns an error if the key was modified or wrapped with a different pepper.
    pub fn unwrap(&self, wrapped: &LinkWrappedDataKey) -> anyhow::Result<Zeroizing<[u8; 32]>> {
        unwrap_key(&self.wrapping, wrapped)
    }
}

/// Returns the hex HMAC-SHA256 of a constant under the pepper. Two peppers with the same digest are equal. The digest does not
/// reveal the pepper.
pub fn pepper_digest(pepper: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, pepper.as_bytes());
    hex::encode(hmac::sign(&key, PEPPER_DIGEST_LABEL_V1))
}

/// Returns `true` if two secrets are equal. The duration does not depend on where they differ.
pub fn constant_time_eq(a: &str, b: &str) -> bool {
    use subtle::ConstantTimeEq;
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

/// Generates a secret of 32 random bytes, in hex.
///
/// # Errors
/// Returns an error if the system's random number generator fails.
pub fn generate_secret() -> anyhow::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    rand::fill(&mut *bytes)?;
    Ok(Zeroizing::new(hex::encode(*bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = "AQABAgMEBQYHCAkKCwwNDg-yiVI_UwOmeAB81C3NJqQFOQ7emn0VZgFRX8lNwXENcevkvKBBY2hS";
    const MASTER: &str = "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f";

    #[test]
    fn compact_keys_are_parsed_as_upstream_does() {
        let key = ProjectKey::parse(BODY);
        assert_eq!(*key.secret, "000102030405060708090a0b0c0d0e0f");
        assert_eq!(key.lookup_hash("test-pepper"), "1282c7aab3a743695466fde6adbce57bddb7d67dd9ab0c04bec8861dee6a14f2");
        let wrapping = derive_wrapping_key(&key.secret, "test-pepper").unwrap();
        assert_eq!(hex::encode(*wrapping), "6e7a45a06d338af3616c533dbf443245e88c6cd4ac263eb8ab100d74a96f53a0");
        assert_eq!(hex::encode(*key.master_key("test-pepper").unwrap().unwrap()), MASTER);
    }

    /// RFC 3394, section 4.6.
    #[test]
    fn key_wrapping_matches_the_rfc_vector() {
        let kek: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let key = hex::decode("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f").unwrap();
        let wrapped = wrap_key(&kek, &key.clone().try_into().unwrap()).unwrap();
        let expected = "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21";
        assert_eq!(hex::encode(wrapped), expected);
        assert_eq!(unwrap_key(&kek, &wrapped).unwrap().as_slice(), key);
    }

    #[test]
    fn the_published_compact_key_unwraps_with_the_published_pepper() {
        let key = ProjectKey::parse("AaGyw9Tl9qe4ydDh8qO0xdZNkrobQvwHWFRsnp5a3QtfbaDSDJQeRHxXPr4bGpc0g130EqBSjRNF");
        assert_eq!(
            key.lookup_hash("your-secret-pepper"),
            "fa7e5fe0f1ab1a66a1bfd1c4a5081e13d128cad5c2d41dfdc592fb42c25e373e"
        );
        assert_eq!(hex::encode(*key.master_key("your-secret-pepper").unwrap().unwrap()), "0123456789abcdef".repeat(4));
    }

    #[test]
    fn a_modified_key_or_another_pepper_is_detected() {
        assert!(ProjectKey::parse(BODY).master_key("other-pepper").is_err());
        let mut modified = BODY.to_owned();
        modified.replace_range(70..71, "A");
        assert!(ProjectKey::parse(&modified).master_key("test-pepper").is_err());
    }

    #[test]
    fn any_other_text_is_a_legacy_key() {
        for body in
            ["plain", "", &BODY[1..], &format!("{BODY}A"), &BODY.replace('A', "!"), &BODY.replacen("AQ", "Ag", 1)]
        {
            let key = ProjectKey::parse(body);
            assert_eq!(*key.secret, body);
            assert!(key.master_key("test-pepper").unwrap().is_none(), "{body}");
        }
    }

    #[test]
    fn a_generated_key_unwraps_and_is_verified() {
        let (key, body) = ProjectKey::generate("pepper").unwrap();
        let parsed = ProjectKey::parse(&body);
        assert_eq!(parsed.lookup_hash("pepper"), key.lookup_hash("pepper"));
        assert!(parsed.master_key("pepper").unwrap().is_some());
        let phc = key.hash("pepper").unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=16384,t=2,p=1$"), "{phc}");
        assert!(parsed.verify_hash("pepper", &phc));
        assert!(!parsed.verify_hash("salt", &phc));
        assert!(!parsed.verify_hash("pepper", "dummy-phc"));
    }

    #[test]
    fn a_rotated_key_has_the_same_master_key_and_another_secret() {
        let old = ProjectKey::parse(BODY);
        let master = old.master_key("test-pepper").unwrap().unwrap();
        let (new, body) = ProjectKey::generate_with_master_key(&master, "test-pepper").unwrap();
        assert_ne!(new.lookup_hash("test-pepper"), old.lookup_hash("test-pepper"));
        assert_eq!(hex::encode(*ProjectKey::parse(&body).master_key("test-pepper").unwrap().unwrap()), MASTER);
    }

    #[test]
    fn a_stored_response_is_bound_to_pepper_key_and_request() {
        let cipher = |request: &[u8], key, pepper| ResponseCipher::derive(request, key, pepper, None).unwrap();
        let with_master = ResponseCipher::derive(b"request", "key", "pepper", Some(&MasterKey::new([1; 32]))).unwrap();
        let encrypted = cipher(b"request", "key", "pepper").encrypt(b"a response").unwrap();
        assert_ne!(encrypted, cipher(b"request", "key", "pepper").encrypt(b"a response").unwrap());
        assert_eq!(cipher(b"request", "key", "pepper").decrypt(encrypted.clone()).unwrap(), b"a response");
        let others = [
            cipher(b"other", "key", "pepper"),
            cipher(b"request", "kex", "pepper"),
            cipher(b"request", "key", "salt"),
            with_master,
        ];
        assert!(others.iter().all(|other| other.decrypt(encrypted.clone()).is_err()));
        assert!(cipher(b"request", "key", "pepper").decrypt(encrypted[1..].to_vec()).is_err());
        assert!(cipher(b"request", "key", "pepper").decrypt(Vec::new()).is_err());
    }
}
