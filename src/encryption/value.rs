//! Encrypted values in the database. The format is that of Acontext: the version `0x01`, the length of the wrapped key (16 bits,
//! big-endian), the wrapped key in base64, and the nonce, ciphertext and tag of the value.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;

use super::{DecryptError, Dek, Kek, NONCE_LEN, TAG_LEN, WRAPPED_KEY_LEN, open, random_nonce, seal};

const VERSION: u8 = 1;
/// The length of a wrapped key in base64.
const WRAPPED_KEY_BASE64_LEN: usize = WRAPPED_KEY_LEN / 3 * 4;
const HEADER_LEN: usize = 3 + WRAPPED_KEY_BASE64_LEN;

/// The number of bytes by which an encrypted value is longer than its plaintext.
pub const OVERHEAD: usize = HEADER_LEN + NONCE_LEN + TAG_LEN;

/// Encrypts a value with a new data key and binds the result to a message. A copy of the message has another id, but keeps
/// `message_id` in the column `encrypted_as`.
///
/// # Errors
/// Returns an error if the system's random number generator fails.
pub fn encrypt(kek: &Kek, message_id: Uuid, plaintext: &[u8]) -> anyhow::Result<Vec<u8>> {
    let nonces = [random_nonce()?, random_nonce()?];
    encrypt_with_aad(kek, &kek.aad(message_id.as_bytes()), &Dek::random()?, nonces, plaintext)
}

fn encrypt_with_aad(
    kek: &Kek,
    aad: &[u8],
    dek: &Dek,
    [key_nonce, value_nonce]: [[u8; NONCE_LEN]; 2],
    plaintext: &[u8],
) -> anyhow::Result<Vec<u8>> {
    let wrapped = STANDARD.encode(kek.wrap_with_aad(dek, aad, key_nonce)?);
    let mut value = Vec::with_capacity(OVERHEAD + plaintext.len());
    value.push(VERSION);
    value.extend_from_slice(&u16::try_from(wrapped.len())?.to_be_bytes());
    value.extend_from_slice(wrapped.as_bytes());
    seal(&dek.aes_key()?, value_nonce, aad, plaintext, &mut value)?;
    Ok(value)
}

/// Decrypts a value that [`encrypt`] has encrypted for the same message.
///
/// # Errors
/// Returns [`DecryptError`] if the value was modified, or belongs to another message or KEK.
pub fn decrypt(kek: &Kek, message_id: Uuid, value: Vec<u8>) -> Result<Vec<u8>, DecryptError> {
    decrypt_with_aad(kek, &kek.aad(message_id.as_bytes()), value)
}

/// Decrypts a value that Acontext has encrypted, which uses no associated data.
///
/// # Errors
/// Returns [`DecryptError`] if the value was modified or belongs to another KEK.
pub fn decrypt_without_aad(kek: &Kek, value: Vec<u8>) -> Result<Vec<u8>, DecryptError> {
    decrypt_with_aad(kek, &[], value)
}

fn decrypt_with_aad(kek: &Kek, aad: &[u8], mut value: Vec<u8>) -> Result<Vec<u8>, DecryptError> {
    let (header, nonce_and_ciphertext) = value.split_at_mut_checked(HEADER_LEN).ok_or(DecryptError)?;
    let wrapped_len = u16::from_be_bytes([header[1], header[2]]);
    if header[0] != VERSION || usize::from(wrapped_len) != WRAPPED_KEY_BASE64_LEN {
        return Err(DecryptError);
    }
    let wrapped = STANDARD.decode(&header[3..]).map_err(|_| DecryptError)?;
    let key = kek.unwrap_with_aad(&wrapped, aad)?.aes_key().map_err(|_| DecryptError)?;
    let plaintext_len = open(&key, aad, nonce_and_ciphertext)?.len();
    value.truncate(HEADER_LEN + NONCE_LEN + plaintext_len);
    value.drain(..HEADER_LEN + NONCE_LEN);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::MasterKey;
    use crate::ids::ProjectId;

    fn kek(project: ProjectId, master: u8) -> Kek {
        Kek::new(project, MasterKey::new([master; 32])).unwrap()
    }

    /// Returns consecutive numbers as bytes, beginning with `first`.
    fn nonce(first: u8) -> [u8; NONCE_LEN] {
        std::array::from_fn(|i| first + u8::try_from(i).unwrap())
    }

    /// A value that a running Acontext has encrypted.
    const ACONTEXT_VALUE: &str = "AQBQWkdWbVoyaHBhbXRzYlc1dnBIeWZ3czZnNWR6TlJjN0ptd2FQZk5pVDlHOHYyMzljMGxGL2JtWllOaklKbXp6UlBnN0tHYWdDQmpldEg2SFUAAQIDBAUGBwgJCgt7htp/FJst9vAB+SLyEfAvJ4ZL1Is=";

    #[test]
    fn value_has_the_bytes_that_acontext_writes() {
        let master: [u8; 32] = std::array::from_fn(|i| 0x20 + u8::try_from(i).unwrap());
        let kek = Kek::new(ProjectId::new(), MasterKey::new(master)).unwrap();
        let dek = Dek::from_bytes([0x11; 32]);
        let wrapped = kek.wrap_with_aad(&dek, &[], nonce(100)).unwrap();
        let expected = "ZGVmZ2hpamtsbW5vpHyfws6g5dzNRc7JmwaPfNiT9G8v239c0lF/bmZYNjIJmzzRPg7KGagCBjetH6HU";
        assert_eq!(STANDARD.encode(&wrapped), expected);
        assert_eq!(kek.unwrap_without_aad(&wrapped).unwrap().bytes(), dek.bytes());
        let value = encrypt_with_aad(&kek, &[], &dek, [nonce(100), nonce(0)], b"hello").unwrap();
        assert_eq!(STANDARD.encode(&value), ACONTEXT_VALUE);
        assert_eq!(decrypt_without_aad(&kek, value).unwrap(), b"hello");
    }

    #[test]
    fn value_decrypts_only_for_its_row_project_and_key() {
        let (project, id) = (ProjectId::new(), Uuid::now_v7());
        let value = encrypt(&kek(project, 1), id, b"text").unwrap();
        assert_eq!(value.len(), OVERHEAD + 4);
        assert_eq!(decrypt(&kek(project, 1), id, value.clone()).unwrap(), b"text");
        assert_eq!(decrypt(&kek(project, 1), Uuid::now_v7(), value.clone()), Err(DecryptError), "another row");
        assert_eq!(decrypt(&kek(ProjectId::new(), 1), id, value.clone()), Err(DecryptError), "another project");
        assert_eq!(decrypt(&kek(project, 2), id, value.clone()), Err(DecryptError), "another key");
        assert_eq!(decrypt_without_aad(&kek(project, 1), value), Err(DecryptError), "no associated data");
    }

    #[test]
    fn equal_plaintexts_have_different_ciphertexts() {
        let (kek, id) = (kek(ProjectId::new(), 1), Uuid::now_v7());
        assert_ne!(encrypt(&kek, id, b"text").unwrap(), encrypt(&kek, id, b"text").unwrap());
    }

    proptest! {
        #[test]
        fn modified_or_truncated_value_is_rejected(text in ".{0,40}", index in any::<prop::sample::Index>(), bit in 0..8) {
            let (kek, id) = (kek(ProjectId::new(), 1), Uuid::now_v7());
            let value = encrypt(&kek, id, text.as_bytes()).unwrap();
            prop_assert_eq!(decrypt(&kek, id, value.clone()).unwrap(), text.as_bytes());
            let mut modified = value.clone();
            let index = index.index(value.len());
            modified[index] ^= 1_u8 << bit;
            prop_assert_eq!(decrypt(&kek, id, modified), Err(DecryptError));
            prop_assert_eq!(decrypt(&kek, id, value[..index].to_vec()), Err(DecryptError));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(decrypt(&kek(ProjectId::new(), 1), Uuid::now_v7(), bytes), Err(DecryptError));
        }
    }
}
