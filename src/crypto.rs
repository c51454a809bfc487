//! Keys: the forms of a project's key, how one is looked up and verified, and what is derived from the server's pepper.
//!
//! A compact key is `sk-ac-` and 76 characters: base64url of a version byte, 16 bytes of secret, and the project's master key
//! wrapped (RFC 3394) under a key that only secret and pepper together give. Any other text after the prefix is an old-style
//! key: the text itself is the secret, and there is no master key. All of it byte by byte as Acontext does it.

use anyhow::{Context, anyhow};
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use aws_lc_rs::{hkdf, hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

/// What every project key begins with.
pub const KEY_PREFIX: &str = "sk-ac-";

const COMPACT_VERSION: u8 = 1;
const COMPACT_TEXT: usize = 76;
const SECRET: usize = 16;
const WRAPPED: usize = 40;

/// The key that a project's content is sealed with; it exists only inside of compact keys and in memory.
pub type MasterKey = Zeroizing<[u8; 32]>;

/// A project key as a client sends it, taken apart.
#[derive(Clone)]
pub struct ProjectKey {
    /// Proves who is calling.
    secret: Zeroizing<String>,
    wrapped: Option<[u8; WRAPPED]>,
}

impl ProjectKey {
    /// Takes the text after the prefix apart. Any text is a key; whether it opens anything is another question.
    pub fn parse(body: &str) -> Self {
        Self::parse_compact(body).unwrap_or_else(|| Self { secret: Zeroizing::new(body.to_owned()), wrapped: None })
    }

    fn parse_compact(body: &str) -> Option<Self> {
        if body.len() != COMPACT_TEXT {
            return None;
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).ok()?);
        let (version, rest) = bytes.split_first()?;
        let (secret, wrapped) = rest.split_at_checked(SECRET)?;
        let wrapped = wrapped.try_into().ok()?;
        (*version == COMPACT_VERSION)
            .then(|| Self { secret: Zeroizing::new(hex::encode(secret)), wrapped: Some(wrapped) })
    }

    /// A new compact key around a new master key: the key and its text, without the prefix.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn generate(pepper: &str) -> anyhow::Result<(Self, Zeroizing<String>)> {
        let mut master = MasterKey::new([0; 32]);
        rand::fill(&mut *master)?;
        Self::generate_with_master_key(&master, pepper)
    }

    /// A new compact key around a master key that is there: what was sealed with it stays readable.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn generate_with_master_key(master: &MasterKey, pepper: &str) -> anyhow::Result<(Self, Zeroizing<String>)> {
        let mut secret = Zeroizing::new([0; SECRET]);
        rand::fill(&mut *secret)?;
        let hex_secret = Zeroizing::new(hex::encode(*secret));
        let wrapped = wrap(&*wrapping_key(&hex_secret, pepper)?, master)?;
        let mut bytes = Zeroizing::new(vec![COMPACT_VERSION]);
        bytes.extend_from_slice(&*secret);
        bytes.extend_from_slice(&wrapped);
        let body = Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes));
        Ok((Self { secret: hex_secret, wrapped: Some(wrapped) }, body))
    }

    /// What the project is found by: hex HMAC-SHA256 of the secret under the pepper.
    pub fn lookup(&self, pepper: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, pepper.as_bytes());
        hex::encode(hmac::sign(&key, self.secret.as_bytes()))
    }

    /// The master key inside, `None` for an old-style key.
    ///
    /// # Errors
    /// The key was damaged, or made under another pepper.
    pub fn master_key(&self, pepper: &str) -> anyhow::Result<Option<MasterKey>> {
        let Some(wrapped) = &self.wrapped else { return Ok(None) };
        unwrap(&*wrapping_key(&self.secret, pepper)?, wrapped).map(Some)
    }

    /// The hash that is stored beside the look-up. Slow by design: not for an async thread.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn hash(&self, pepper: &str) -> anyhow::Result<String> {
        let mut salt = [0; 16];
        rand::fill(&mut salt)?;
        let salt = SaltString::encode_b64(&salt).map_err(|err| anyhow!("{err}"))?;
        let params = Params::new(16 * 1024, 2, 1, Some(32)).map_err(|err| anyhow!("{err}"))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let hash = argon2.hash_password(self.peppered(pepper).as_bytes(), &salt).map_err(|err| anyhow!("{err}"))?;
        Ok(hash.to_string())
    }

    /// Whether a stored hash is of this key; the parameters come from the hash. Slow by design: not for an async thread.
    pub fn matches(&self, pepper: &str, phc: &str) -> bool {
        let Ok(hash) = PasswordHash::new(phc) else { return false };
        Argon2::default().verify_password(self.peppered(pepper).as_bytes(), &hash).is_ok()
    }

    fn peppered(&self, pepper: &str) -> Zeroizing<String> {
        Zeroizing::new(format!("{}{pepper}", *self.secret))
    }
}

fn wrapping_key(secret: &str, pepper: &str) -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let input = Zeroizing::new(format!("{secret}{pepper}"));
    let salt = Zeroizing::new(format!("{pepper}-master-key-wrap"));
    let info = Zeroizing::new(format!("{pepper} master key wrapping"));
    derive(salt.as_bytes(), input.as_bytes(), info.as_bytes())
}

fn wrap(wrapping_key: &[u8; 32], key: &[u8; 32]) -> anyhow::Result<[u8; WRAPPED]> {
    let mut wrapped = [0; WRAPPED];
    AesKek::new(&AES_256, wrapping_key)?.wrap(key, &mut wrapped).context("cannot wrap a key")?;
    Ok(wrapped)
}

fn unwrap(wrapping_key: &[u8; 32], wrapped: &[u8; WRAPPED]) -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    let length = AesKek::new(&AES_256, wrapping_key)?.unwrap(wrapped, &mut *key)?.len();
    if length == key.len() { Ok(key) } else { Err(anyhow!("a wrapped key of {length} bytes")) }
}

/// HKDF-SHA256 to 32 bytes.
pub(crate) fn derive(salt: &[u8], input: &[u8], info: &[u8]) -> anyhow::Result<Zeroizing<[u8; 32]>> {
    struct Length;
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            32
        }
    }
    let mut key = Zeroizing::new([0; 32]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(input).expand(&[info], Length)?.fill(&mut *key)?;
    Ok(key)
}

/// Seals the answer that is kept for one request, which may contain a secret: opens with the pepper and the key that the
/// client sent, which is kept nowhere; for encrypted projects with their master key besides.
pub struct ResponseCipher(RandomizedNonceKey);

impl ResponseCipher {
    /// # Errors
    /// None that can be helped.
    pub fn derive(request: &[u8], sent: &str, pepper: &str, master: Option<&MasterKey>) -> anyhow::Result<Self> {
        let parts: [&[u8]; 3] = [sent.as_bytes(), pepper.as_bytes(), master.map_or(&[], |master| master.as_slice())];
        let input = Zeroizing::new(parts.concat());
        let form: &[u8] = match master {
            None => b"acontextd kept answers, first form",
            Some(_) => b"acontextd kept answers of encrypted projects, first form",
        };
        let key = derive(request, &input, form)?;
        Ok(Self(RandomizedNonceKey::new(&AES_256_GCM, &*key)?))
    }

    /// The nonce, the sealed bytes, and their tag.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn seal(&self, plain: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut sealed = Vec::with_capacity(NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(&[0; NONCE_LEN]);
        sealed.extend_from_slice(plain);
        let (nonce, tag) = self.0.seal_in_place_separate_tag(Aad::empty(), &mut sealed[NONCE_LEN..])?;
        sealed[..NONCE_LEN].copy_from_slice(nonce.as_ref());
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// What was sealed.
    ///
    /// # Errors
    /// It was damaged, or sealed under another pepper.
    pub fn open(&self, mut sealed: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let (nonce, rest) = sealed.split_first_chunk_mut().context("a sealed answer is too short")?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.0.open_in_place(nonce, Aad::empty(), rest).context("cannot open a kept answer")?.len();
        sealed.truncate(NONCE_LEN + length);
        sealed.drain(..NONCE_LEN);
        Ok(sealed)
    }
}

/// Signs public links, and wraps the keys of sealed files in them. Derived from the pepper, so that every process of an
/// installation has the same one.
pub struct LinkKey {
    signing: hmac::Key,
    wrapping: Zeroizing<[u8; 32]>,
}

/// The key of a file in a link to it.
pub type WrappedFileKey = [u8; WRAPPED];

impl LinkKey {
    /// # Errors
    /// None that can be helped.
    pub fn derive(pepper: &str) -> anyhow::Result<Self> {
        let input = hmac::Key::new(hmac::HMAC_SHA256, pepper.as_bytes());
        let signing = hmac::sign(&input, b"acontextd public links, first form");
        let wrapping = derive(b"acontextd", pepper.as_bytes(), b"acontextd keys in public links, first form")?;
        Ok(Self { signing: hmac::Key::new(hmac::HMAC_SHA256, signing.as_ref()), wrapping })
    }

    pub fn sign(&self, bytes: &[u8]) -> [u8; 32] {
        let tag = hmac::sign(&self.signing, bytes);
        let mut out = [0; 32];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// Wraps a key, always in the same way (RFC 3394), so that the same link is made twice.
    ///
    /// # Errors
    /// None that can be helped.
    pub fn wrap(&self, key: &[u8; 32]) -> anyhow::Result<WrappedFileKey> {
        wrap(&self.wrapping, key)
    }

    /// # Errors
    /// It was wrapped under another pepper.
    pub fn unwrap(&self, wrapped: &WrappedFileKey) -> anyhow::Result<Zeroizing<[u8; 32]>> {
        unwrap(&self.wrapping, wrapped)
    }
}

/// Returns a keyed digest of the pepper, which tells whether another text is the same pepper and nothing else about it.
pub fn pepper_digest(pepper: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, pepper.as_bytes());
    hex::encode(hmac::sign(&key, b"acontextd pepper digest, first form"))
}

/// Compares two secrets in a time that does not depend on where they differ.
pub fn same(one: &str, other: &str) -> bool {
    use subtle::ConstantTimeEq;
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

/// A secret of 32 random bytes, in hex.
///
/// # Errors
/// The system gives no random bytes.
pub fn random_secret() -> anyhow::Result<Zeroizing<String>> {
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
    fn a_compact_key_is_taken_apart_as_upstream_does() {
        let key = ProjectKey::parse(BODY);
        assert_eq!(*key.secret, "000102030405060708090a0b0c0d0e0f");
        assert_eq!(key.lookup("test-pepper"), "1282c7aab3a743695466fde6adbce57bddb7d67dd9ab0c04bec8861dee6a14f2");
        let wrapping = wrapping_key(&key.secret, "test-pepper").unwrap();
        assert_eq!(hex::encode(*wrapping), "6e7a45a06d338af3616c533dbf443245e88c6cd4ac263eb8ab100d74a96f53a0");
        assert_eq!(hex::encode(*key.master_key("test-pepper").unwrap().unwrap()), MASTER);
    }

    /// RFC 3394, section 4.6.
    #[test]
    fn keys_are_wrapped_as_the_rfc_says() {
        let kek: [u8; 32] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let key = hex::decode("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f").unwrap();
        let wrapped = wrap(&kek, &key.clone().try_into().unwrap()).unwrap();
        let expected = "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21";
        assert_eq!(hex::encode(wrapped), expected);
        assert_eq!(unwrap(&kek, &wrapped).unwrap().as_slice(), key);
    }

    #[test]
    fn the_published_compact_key_opens_under_the_published_pepper() {
        let key = ProjectKey::parse("AaGyw9Tl9qe4ydDh8qO0xdZNkrobQvwHWFRsnp5a3QtfbaDSDJQeRHxXPr4bGpc0g130EqBSjRNF");
        assert_eq!(
            key.lookup("your-secret-pepper"),
            "fa7e5fe0f1ab1a66a1bfd1c4a5081e13d128cad5c2d41dfdc592fb42c25e373e"
        );
        assert_eq!(hex::encode(*key.master_key("your-secret-pepper").unwrap().unwrap()), "0123456789abcdef".repeat(4));
    }

    #[test]
    fn a_damaged_key_or_another_pepper_is_noticed() {
        assert!(ProjectKey::parse(BODY).master_key("other-pepper").is_err());
        let mut damaged = BODY.to_owned();
        damaged.replace_range(70..71, "A");
        assert!(ProjectKey::parse(&damaged).master_key("test-pepper").is_err());
    }

    #[test]
    fn any_other_text_is_an_old_style_key() {
        for body in
            ["plain", "", &BODY[1..], &format!("{BODY}A"), &BODY.replace('A', "!"), &BODY.replacen("AQ", "Ag", 1)]
        {
            let key = ProjectKey::parse(body);
            assert_eq!(*key.secret, body);
            assert!(key.master_key("test-pepper").unwrap().is_none(), "{body}");
        }
    }

    #[test]
    fn a_generated_key_opens_and_is_verified() {
        let (key, body) = ProjectKey::generate("pepper").unwrap();
        let read = ProjectKey::parse(&body);
        assert_eq!(read.lookup("pepper"), key.lookup("pepper"));
        assert!(read.master_key("pepper").unwrap().is_some());
        let phc = key.hash("pepper").unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=16384,t=2,p=1$"), "{phc}");
        assert!(read.matches("pepper", &phc));
        assert!(!read.matches("salt", &phc));
        assert!(!read.matches("pepper", "dummy-phc"));
    }

    #[test]
    fn a_new_key_around_a_master_key_has_that_one_and_another_secret() {
        let old = ProjectKey::parse(BODY);
        let master = old.master_key("test-pepper").unwrap().unwrap();
        let (new, body) = ProjectKey::generate_with_master_key(&master, "test-pepper").unwrap();
        assert_ne!(new.lookup("test-pepper"), old.lookup("test-pepper"));
        assert_eq!(hex::encode(*ProjectKey::parse(&body).master_key("test-pepper").unwrap().unwrap()), MASTER);
    }

    #[test]
    fn a_kept_answer_opens_only_with_pepper_key_and_request() {
        let key = |request: &[u8], sent, pepper| ResponseCipher::derive(request, sent, pepper, None).unwrap();
        let with_master = ResponseCipher::derive(b"request", "key", "pepper", Some(&MasterKey::new([1; 32]))).unwrap();
        let sealed = key(b"request", "key", "pepper").seal(b"an answer").unwrap();
        assert_ne!(sealed, key(b"request", "key", "pepper").seal(b"an answer").unwrap());
        assert_eq!(key(b"request", "key", "pepper").open(sealed.clone()).unwrap(), b"an answer");
        let others = [
            key(b"other", "key", "pepper"),
            key(b"request", "kex", "pepper"),
            key(b"request", "key", "salt"),
            with_master,
        ];
        assert!(others.iter().all(|other| other.open(sealed.clone()).is_err()));
        assert!(key(b"request", "key", "pepper").open(sealed[1..].to_vec()).is_err());
        assert!(key(b"request", "key", "pepper").open(Vec::new()).is_err());
    }
}
