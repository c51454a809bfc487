//! The signatures of thoughts. A provider verifies the signatures in a history and rejects those that it has not made.

use super::Format;
use super::value::{Object, str_at};
use crate::conversation::parts::{Part, PartKind};

/// The key in the meta of a thought that contains its signature.
pub(super) const SIGNATURE_KEY: &str = "signature";
/// The key in the meta of a thought that names the format of the provider that has made the signature. Without it, the provider
/// is that of the message.
pub(super) const PROVIDER_KEY: &str = "provider";

/// Removes from the parts of a message with this meta all signatures and encrypted thoughts that come from another provider than
/// that of the target. Does nothing if the target is `acontext`, which preserves everything.
pub(super) fn remove_foreign_signatures(parts: &mut Vec<Part>, meta: &Object, target: Format) {
    if target == Format::Acontext {
        return;
    }
    parts.retain_mut(|part| match part.kind {
        PartKind::Thinking if provider(part, meta) != target => {
            part.meta.remove(SIGNATURE_KEY);
            true
        }
        PartKind::RedactedThinking => provider(part, meta) == target,
        _ => true,
    });
}

/// Returns the format of the provider that has made the signature of a thought. If a client has stored the message in the format
/// `acontext` and named no provider, it is Anthropic: the parts of this format have Anthropic's fields.
fn provider(part: &Part, meta: &Object) -> Format {
    let name = match str_at(&part.meta, PROVIDER_KEY) {
        "" => str_at(meta, "source_format"),
        name => name,
    };
    match name.parse() {
        Ok(Format::Acontext) | Err(_) => Format::Anthropic,
        Ok(format) => format,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::value::{object, part};
    use super::*;

    fn thought(meta: Value) -> Part {
        let Value::Object(meta) = meta else { panic!("not an object") };
        part(PartKind::Thinking, "hm".into(), meta)
    }

    fn keeps_signature(source: &str, meta: Value, target: Format) -> bool {
        let mut parts = vec![thought(meta)];
        remove_foreign_signatures(&mut parts, &object([("source_format", source.into())]), target);
        assert_eq!(parts[0].text, "hm", "the thought itself stays");
        parts[0].meta.contains_key(SIGNATURE_KEY)
    }

    #[test]
    fn a_signature_only_goes_to_its_provider() {
        let signed = || json!({"signature": "c2ln"});
        assert!(keeps_signature("anthropic", signed(), Format::Anthropic));
        assert!(!keeps_signature("anthropic", signed(), Format::Gemini));
        assert!(!keeps_signature("gemini", signed(), Format::Anthropic));
        assert!(keeps_signature("gemini", signed(), Format::Gemini));
        assert!(!keeps_signature("openai", signed(), Format::Anthropic));
        assert!(keeps_signature("openai", json!({"signature": "c2ln", "provider": "anthropic"}), Format::Anthropic));
        assert!(!keeps_signature("openai", json!({"signature": "c2ln", "provider": "anthropic"}), Format::Gemini));
        assert!(keeps_signature("acontext", signed(), Format::Anthropic));
        assert!(!keeps_signature("acontext", signed(), Format::Gemini));
        for source in ["openai", "anthropic", "gemini", "acontext"] {
            assert!(keeps_signature(source, signed(), Format::Acontext));
        }
    }

    #[test]
    fn encrypted_thoughts_only_go_to_their_provider() {
        let parts = || vec![part(PartKind::RedactedThinking, String::new(), object([("data", "x".into())]))];
        for (source, target, stays) in [
            ("anthropic", Format::Anthropic, true),
            ("anthropic", Format::Gemini, false),
            ("gemini", Format::Anthropic, false),
            ("acontext", Format::Anthropic, true),
        ] {
            let mut parts = parts();
            remove_foreign_signatures(&mut parts, &object([("source_format", source.into())]), target);
            assert_eq!(!parts.is_empty(), stays, "{source} to {target:?}");
        }
    }
}
