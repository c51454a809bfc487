//! The names of functions in formats other than the one in which a call is stored.

use std::borrow::Cow;

use super::Format;

/// Converts the name of a function to one that the target accepts. A name that it accepts is unchanged. In other names, each
/// character that it does not accept is replaced by `_`, and the end is cut off.
///
/// `OpenAI` (type `FunctionDefinition`) accepts up to 64 letters, digits, `_` and `-`, and Anthropic (page "Define tools") up to
/// 128. Gemini (type `FunctionDeclaration`) accepts up to 128 of these, `.` and `:`, and requires that the first one is a letter or
/// `_`. `acontext` accepts any name.
pub(super) fn convert_function_name(target: Format, name: &str) -> Cow<'_, str> {
    let (max_len, others) = match target {
        Format::OpenAi => (64, "_-"),
        Format::Anthropic => (128, "_-"),
        Format::Gemini => (128, "_-.:"),
        Format::Acontext => return name.into(),
    };
    let is_accepted = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
    let needs_prefix = target == Format::Gemini && !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !needs_prefix && name.len() <= max_len && name.chars().all(is_accepted) {
        return name.into();
    }
    let characters = name.chars().map(|c| if is_accepted(c) { c } else { '_' });
    let prefix = needs_prefix.then_some('_');
    prefix.into_iter().chain(characters).take(max_len).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_names_are_unchanged() {
        for (target, name) in [
            (Format::OpenAi, "1st-look_up"),
            (Format::Anthropic, "mcp__server__look"),
            (Format::Gemini, "files.read:v-1"),
            (Format::Acontext, "any name: é"),
        ] {
            assert!(matches!(convert_function_name(target, name), Cow::Borrowed(same) if same == name), "{name}");
        }
    }

    #[test]
    fn other_characters_are_replaced() {
        assert_eq!(convert_function_name(Format::OpenAi, "files.read:é"), "files_read__");
        assert_eq!(convert_function_name(Format::Anthropic, "look up"), "look_up");
        assert_eq!(convert_function_name(Format::Gemini, "1st"), "_1st");
        assert_eq!(convert_function_name(Format::OpenAi, &"x".repeat(65)).len(), 64);
        assert_eq!(convert_function_name(Format::Anthropic, &"é".repeat(129)).len(), 128);
        assert_eq!(convert_function_name(Format::Gemini, &"1".repeat(128)).len(), 128);
    }
}
