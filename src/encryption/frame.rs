//! Sealed values in the database: `0x01`, the length of the wrapped key (16 bits, big-endian), the wrapped key in base64, and
//! nonce, ciphertext and tag of the value.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;

use super::{DecryptError, Dek, Kek, NONCE_LEN, TAG, WRAPPED, open as open_with, random, seal as seal_with};

const VERSION: u8 = 1;
/// Of a wrapped key in base64.
const WRAPPED_TEXT: usize = WRAPPED / 3 * 4;
const HEAD: usize = 3 + WRAPPED_TEXT;

/// How much longer a sealed value is, in bytes.
pub const OVERHEAD: usize = HEAD + NONCE_LEN + TAG;

/// Seals a value that belongs to the row of this id.
///
/// # Errors
/// The system gives no random bytes.
pub fn seal(kek: &Kek, of: Uuid, plain: &[u8]) -> anyhow::Result<Vec<u8>> {
    seal_as(kek, &kek.bound(of.as_bytes()), &Dek::random()?, [random()?, random()?], plain)
}

fn seal_as(
    kek: &Kek,
    bound: &[u8],
    dek: &Dek,
    [wrap, body]: [[u8; NONCE_LEN]; 2],
    plain: &[u8],
) -> anyhow::Result<Vec<u8>> {
    let wrapped = STANDARD.encode(kek.wrap_with(dek, bound, wrap)?);
    let mut frame = Vec::with_capacity(OVERHEAD + plain.len());
    frame.push(VERSION);
    frame.extend_from_slice(&u16::try_from(wrapped.len())?.to_be_bytes());
    frame.extend_from_slice(wrapped.as_bytes());
    seal_with(&dek.aes()?, body, bound, plain, &mut frame)?;
    Ok(frame)
}

/// Opens what [`seal`] has sealed for this id.
///
/// # Errors
/// [`DecryptError`]
pub fn open(kek: &Kek, of: Uuid, frame: Vec<u8>) -> Result<Vec<u8>, DecryptError> {
    open_as(kek, &kek.bound(of.as_bytes()), frame)
}

/// Opens a frame as Acontext writes it, which is bound to nothing.
///
/// # Errors
/// [`DecryptError`]
pub fn open_unbound(kek: &Kek, frame: Vec<u8>) -> Result<Vec<u8>, DecryptError> {
    open_as(kek, &[], frame)
}

fn open_as(kek: &Kek, bound: &[u8], mut frame: Vec<u8>) -> Result<Vec<u8>, DecryptError> {
    let (head, body) = frame.split_at_mut_checked(HEAD).ok_or(DecryptError)?;
    let length = u16::from_be_bytes([head[1], head[2]]);
    if head[0] != VERSION || usize::from(length) != WRAPPED_TEXT {
        return Err(DecryptError);
    }
    let wrapped = STANDARD.decode(&head[3..]).map_err(|_| DecryptError)?;
    let key = kek.unwrap_with(&wrapped, bound)?.aes().map_err(|_| DecryptError)?;
    let length = open_with(&key, bound, body)?.len();
    frame.truncate(HEAD + NONCE_LEN + length);
    frame.drain(..HEAD + NONCE_LEN);
    Ok(frame)
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

    /// The numbers 0, 1, 2 and so on.
    fn nonce(from: u8) -> [u8; NONCE_LEN] {
        std::array::from_fn(|at| from + u8::try_from(at).unwrap())
    }

    /// Made by a running Acontext.
    const OF_UPSTREAM: &str = "AQBQWkdWbVoyaHBhbXRzYlc1dnBIeWZ3czZnNWR6TlJjN0ptd2FQZk5pVDlHOHYyMzljMGxGL2JtWllOaklKbXp6UlBnN0tHYWdDQmpldEg2SFUAAQIDBAUGBwgJCgt7htp/FJst9vAB+SLyEfAvJ4ZL1Is=";

    #[test]
    fn a_frame_has_the_bytes_that_acontext_writes() {
        let master: [u8; 32] = std::array::from_fn(|at| 0x20 + u8::try_from(at).unwrap());
        let kek = Kek::new(ProjectId::new(), MasterKey::new(master)).unwrap();
        let dek = Dek::from_bytes([0x11; 32]);
        let wrapped = kek.wrap_with(&dek, &[], nonce(100)).unwrap();
        let text = "ZGVmZ2hpamtsbW5vpHyfws6g5dzNRc7JmwaPfNiT9G8v239c0lF/bmZYNjIJmzzRPg7KGagCBjetH6HU";
        assert_eq!(STANDARD.encode(&wrapped), text);
        assert_eq!(kek.unwrap_unbound(&wrapped).unwrap().bytes(), dek.bytes());
        let frame = seal_as(&kek, &[], &dek, [nonce(100), nonce(0)], b"hello").unwrap();
        assert_eq!(STANDARD.encode(&frame), OF_UPSTREAM);
        assert_eq!(open_unbound(&kek, frame).unwrap(), b"hello");
    }

    #[test]
    fn a_frame_opens_only_where_it_belongs() {
        let (project, id) = (ProjectId::new(), Uuid::now_v7());
        let frame = seal(&kek(project, 1), id, b"said").unwrap();
        assert_eq!(frame.len(), OVERHEAD + 4);
        assert_eq!(open(&kek(project, 1), id, frame.clone()).unwrap(), b"said");
        assert_eq!(open(&kek(project, 1), Uuid::now_v7(), frame.clone()), Err(DecryptError), "another row");
        assert_eq!(open(&kek(ProjectId::new(), 1), id, frame.clone()), Err(DecryptError), "another project");
        assert_eq!(open(&kek(project, 2), id, frame.clone()), Err(DecryptError), "another key");
        assert_eq!(open_unbound(&kek(project, 1), frame), Err(DecryptError), "as if it were bound to nothing");
    }

    #[test]
    fn the_same_value_is_sealed_differently_each_time() {
        let (kek, id) = (kek(ProjectId::new(), 1), Uuid::now_v7());
        assert_ne!(seal(&kek, id, b"said").unwrap(), seal(&kek, id, b"said").unwrap());
    }

    proptest! {
        #[test]
        fn a_changed_or_shortened_frame_does_not_open(text in ".{0,40}", at in any::<prop::sample::Index>(), bit in 0..8) {
            let (kek, id) = (kek(ProjectId::new(), 1), Uuid::now_v7());
            let frame = seal(&kek, id, text.as_bytes()).unwrap();
            prop_assert_eq!(open(&kek, id, frame.clone()).unwrap(), text.as_bytes());
            let mut changed = frame.clone();
            let at = at.index(frame.len());
            changed[at] ^= 1_u8 << bit;
            prop_assert_eq!(open(&kek, id, changed), Err(DecryptError));
            prop_assert_eq!(open(&kek, id, frame[..at].to_vec()), Err(DecryptError));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(open(&kek(ProjectId::new(), 1), Uuid::now_v7(), bytes), Err(DecryptError));
        }
    }
}
