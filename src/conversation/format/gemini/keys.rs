//! The keys of Gemini's types. Google's Python SDK writes them in snake case too.

use serde_json::Value;

use super::super::value::{Object, indexed_objects_mut, remove_nulls};

/// The keys of a part whose values are not objects.
const SCALAR_KEYS: [&str; 4] = ["text", "thought", "thoughtSignature", "mediaProcessing"];

/// The keys of a part whose values are objects, and the keys of these objects.
pub(super) const OBJECT_KEYS: [(&str, &[&str]); 16] = [
    ("inlineData", &["mimeType", "data", "displayName"]),
    ("fileData", &["mimeType", "fileUri", "displayName"]),
    ("functionCall", &["id", "name", "args", "partialArgs", "willContinue"]),
    ("functionResponse", &["id", "name", "response", "parts", "scheduling", "willContinue"]),
    ("toolCall", &["id", "toolType", "args"]),
    ("toolResponse", &["id", "toolType", "response"]),
    ("executableCode", &["id", "language", "code"]),
    ("codeExecutionResult", &["id", "outcome", "output"]),
    ("videoMetadata", &["startOffset", "endOffset", "fps", "contentLayers"]),
    ("audioMetadata", &["startOffset", "endOffset"]),
    ("documentMetadata", &["startPage", "endPage", "contentLayers"]),
    ("spreadsheetMetadata", &["visibleCells", "sheetIndex", "contentLayers"]),
    ("speechMetadata", &["speaker", "style"]),
    ("mediaResolution", &["level", "numTokens"]),
    ("audioTranscription", &["text", "finished", "languageCode", "speakerLabel", "words", "startOffset", "endOffset"]),
    ("partMetadata", &[]),
];

/// The keys of objects whose values are lists of objects, and the keys of these objects. A `null` in them may be a value:
/// `nullValue` of a partial argument is `null` in JSON.
const LIST_KEYS: [(&str, &str, &[&str]); 2] = [
    (
        "functionCall",
        "partialArgs",
        &["jsonPath", "stringValue", "numberValue", "boolValue", "nullValue", "willContinue"],
    ),
    ("audioTranscription", "words", &["word", "startOffset", "endOffset"]),
];

/// Renames other spellings of `keys` to camel case: `function_call` or `FunctionCall` becomes `functionCall`, unless the object
/// has that key already.
pub(super) fn rename_keys_to_camel_case(object: &mut Object, keys: &[&str]) {
    let other_keys: Vec<_> = object.keys().filter(|key| !keys.contains(&key.as_str())).cloned().collect();
    for key in other_keys {
        let joined_words = key.replace('_', "");
        let camel_case =
            keys.iter().find(|name| name.eq_ignore_ascii_case(&joined_words) && !object.contains_key(**name));
        if let Some(camel_case) = camel_case
            && let Some(value) = object.remove(&key)
        {
            object.insert((*camel_case).to_owned(), value);
        }
    }
}

/// Removes `null` keys from a part and its objects, and converts their keys to camel case. The objects of the client
/// (`partMetadata`, arguments and responses) stay unchanged.
pub(super) fn normalize_keys(part: &mut Object) {
    remove_nulls(part, &[]);
    let keys: Vec<_> = SCALAR_KEYS.into_iter().chain(OBJECT_KEYS.map(|(key, _)| key)).collect();
    rename_keys_to_camel_case(part, &keys);
    for (key, keys) in OBJECT_KEYS {
        if key != "partMetadata"
            && let Some(Value::Object(inner)) = part.get_mut(key)
        {
            remove_nulls(inner, &[]);
            rename_keys_to_camel_case(inner, keys);
        }
    }
    for (key, list_key, keys) in LIST_KEYS {
        let list = part.get_mut(key).and_then(|inner| inner.get_mut(list_key));
        indexed_objects_mut(list).for_each(|(_, item)| rename_keys_to_camel_case(item, keys));
    }
    // A function response may contain parts with images and files.
    let nested = part.get_mut("functionResponse").and_then(|response| response.get_mut("parts"));
    indexed_objects_mut(nested).for_each(|(_, part)| normalize_keys(part));
}
