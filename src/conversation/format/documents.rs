//! Documents of Anthropic for formats whose files have no context, and contain no blocks.

use super::media::{filename_in_meta, has_images};
use super::value::{Object, str_at, take_caption, take_nonempty_string, text_part};
use super::{Format, anthropic};
use crate::conversation::parts::{Part, PartKind, Role};

/// Splits the documents that a message of the target and role cannot contain.
///
/// A document that consists of blocks with images becomes a text with its name and context, followed by its texts and images. The
/// context of any other document becomes a text before it, unless the document becomes a text as a whole.
pub(super) fn split_documents(parts: Vec<Part>, target: Format, role: Role) -> Vec<Part> {
    match target {
        Format::Acontext => return parts,
        Format::Anthropic if role == Role::User => return parts,
        Format::OpenAi | Format::Anthropic | Format::Gemini => {}
    }
    if !parts.iter().any(|part| part.kind == PartKind::File) {
        return parts;
    }
    parts.into_iter().flat_map(split_document).collect()
}

fn split_document(mut document: Part) -> Vec<Part> {
    if document.kind != PartKind::File {
        return vec![document];
    }
    let reference = call_reference(&document.meta);
    let source = str_at(&document.meta, "type").to_owned();
    let mut parts = Vec::new();
    if document.asset.is_none() && source == "content" && has_images(document.meta.get("content")) {
        let heading = [filename_in_meta(&document.meta), str_at(&document.meta, "context")];
        let heading: Vec<_> = heading.into_iter().filter(|line| !line.is_empty()).collect();
        parts.extend((!heading.is_empty()).then(|| text_part(heading.join("\n"))));
        let content = document.meta.remove_entry("content").into_iter().collect();
        parts.extend(anthropic::to_parts(content).into_iter().filter(is_content));
        parts.extend(take_caption(&mut document).map(text_part));
    } else {
        if !matches!(source.as_str(), "text" | "content") {
            parts.extend(take_nonempty_string(&mut document.meta, "context").map(text_part));
        }
        parts.push(document);
    }
    for part in &mut parts {
        part.meta.extend(reference.clone());
    }
    parts
}

/// Returns `true` for a part that may be in a document, but is neither a thought nor a tool call or tool result.
fn is_content(part: &Part) -> bool {
    use PartKind::{Audio, Data, File, Image, Text, Video};
    matches!(part.kind, Text | Image | Audio | Video | File | Data)
}

/// Returns the entries of a part's meta that refer to the tool call to whose result the part belongs.
fn call_reference(meta: &Object) -> Object {
    ["tool_call_id", "function_name"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), meta.get(key)?.clone())))
        .collect()
}
