//! The ids of tool calls in formats other than the one in which the call is stored.

use std::borrow::Cow;

use aws_lc_rs::digest;
use uuid::Uuid;

use crate::conversation::format::Format;

/// Maximum length of a call id in the `OpenAI` format, in bytes. Several of `OpenAI`'s models reject longer ids.
const MAX_OPENAI_ID_BYTES: usize = 40;
/// Maximum length of an unchanged call id in the Anthropic format, in bytes. The API documents no maximum.
const MAX_ANTHROPIC_ID_BYTES: usize = 64;
/// Separates the beginning of a changed id from its hash.
const HASH_SEPARATOR: &str = "_x";
/// Number of hexadecimal digits of the hash in a changed id.
const HASH_DIGITS: usize = 20;
/// Maximum length of the beginning of the original id in a changed id, in bytes.
const PREFIX_BYTES: usize = MAX_OPENAI_ID_BYTES - HASH_SEPARATOR.len() - HASH_DIGITS;

/// Converts the id of a call or result to an id that the target accepts. The same id always has the same result, and different
/// ids have different results. An id that the target accepts is unchanged.
///
/// Anthropic accepts letters, digits, `_` and `-`. `OpenAI` accepts up to 40 characters. Gemini and `acontext` accept any id.
pub(super) fn convert_call_id(target: Format, id: &str) -> Cow<'_, str> {
    let is_accepted = match target {
        Format::Anthropic => id.len() <= MAX_ANTHROPIC_ID_BYTES && id.bytes().all(is_identifier_byte),
        Format::OpenAi => id.len() <= MAX_OPENAI_ID_BYTES && id.bytes().all(|byte| byte.is_ascii_graphic()),
        Format::Gemini | Format::Acontext => return id.into(),
    };
    // An id that looks like a changed one is changed too, so that it cannot equal the changed form of another id.
    if is_accepted && !has_hash(id) { id.into() } else { changed_id(id).into() }
}

/// Returns the ids by which a client may name a call, depending on the format in which it has read the call.
pub fn all_ids(id: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let converted = [Format::OpenAi, Format::Anthropic].into_iter().map(move |format| convert_call_id(format, id));
    std::iter::once(Cow::Borrowed(id)).chain(converted.filter(|id| matches!(id, Cow::Owned(_))))
}

/// Returns the id of a call that was stored without one, given the id of its message and its index among the calls of the
/// message.
pub fn generate_call_id(message: Uuid, index: usize) -> String {
    format!("call_{}", hash(format!("{message}/{index}").as_bytes()))
}

fn is_identifier_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn changed_id(id: &str) -> String {
    let prefix = id.chars().take(PREFIX_BYTES).map(|c| match u8::try_from(c) {
        Ok(byte) if is_identifier_byte(byte) => c,
        _ => '_',
    });
    prefix.chain(HASH_SEPARATOR.chars()).chain(hash(id.as_bytes()).chars()).collect()
}

/// Returns `true` if the id ends like the result of [`changed_id`].
fn has_hash(id: &str) -> bool {
    let is_hash =
        |hash: &str| hash.len() == HASH_DIGITS && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    id.rsplit_once(HASH_SEPARATOR).is_some_and(|(_, hash)| is_hash(hash))
}

/// Returns the first [`HASH_DIGITS`] digits of the SHA-256 of some bytes.
fn hash(bytes: &[u8]) -> String {
    let mut digits = hex::encode(digest::digest(&digest::SHA256, bytes));
    digits.truncate(HASH_DIGITS);
    digits
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepted_ids_are_unchanged() {
        for (target, id) in [
            (Format::Anthropic, "toolu_01A-b"),
            (Format::OpenAi, "functions.look:0"),
            (Format::Gemini, "any id, of any length: é"),
        ] {
            assert_eq!(convert_call_id(target, id), id);
        }
    }

    #[test]
    fn other_ids_get_a_hash() {
        let id = convert_call_id(Format::Anthropic, "functions.look:0");
        assert!(id.starts_with("functions_look_0_x"), "{id}");
        let long = "signature/".repeat(800);
        assert_eq!(convert_call_id(Format::OpenAi, &long).len(), MAX_OPENAI_ID_BYTES);
        assert_ne!(convert_call_id(Format::OpenAi, &long), convert_call_id(Format::OpenAi, &long[1..]));
    }

    #[test]
    fn an_id_that_equals_the_changed_form_of_another_id_is_changed() {
        let changed = convert_call_id(Format::OpenAi, "a b").into_owned();
        assert_ne!(convert_call_id(Format::OpenAi, &changed), changed);
    }

    proptest! {
        #[test]
        fn converted_ids_are_accepted_and_distinct(ids in prop::collection::hash_set("\\PC{1,60}", 2..8)) {
            for target in [Format::OpenAi, Format::Anthropic] {
                let converted: HashSet<_> = ids.iter().map(|id| convert_call_id(target, id)).collect();
                prop_assert_eq!(converted.len(), ids.len());
                for id in converted {
                    prop_assert!(!id.is_empty() && id.len() <= MAX_ANTHROPIC_ID_BYTES, "{}", id);
                    prop_assert!(target != Format::Anthropic || id.bytes().all(is_identifier_byte), "{}", id);
                    prop_assert!(target != Format::OpenAi || id.len() <= MAX_OPENAI_ID_BYTES, "{}", id);
                }
            }
        }
    }
}
