//! The Gemini format: `{"role": "user" or "model", "parts": [...]}`.

use serde_json::Value;

use super::changes::ChangeCursor;
use super::media::{self, Media};
use super::value::{
    Object, indexed_objects_mut, invalid, object, opaque_part, part, remove_nulls, str_at, take_arguments,
    take_as_string, take_caption, take_nonempty_string, take_opaque_block, text_part,
};
use super::{Format, FunctionResponse, InvalidMessage, RenderContext};
use crate::conversation::parts::{Part, PartKind, Role};
use crate::json::ValueBudget;

/// The keys of a part whose values are not objects.
const SCALAR_KEYS: [&str; 3] = ["text", "thought", "thoughtSignature"];

/// The keys of a part whose values are objects, and the keys of these objects.
const OBJECT_KEYS: [(&str, &[&str]); 9] = [
    ("inlineData", &["mimeType", "data", "displayName"]),
    ("fileData", &["mimeType", "fileUri", "displayName"]),
    ("functionCall", &["id", "name", "args", "partialArgs", "willContinue"]),
    ("functionResponse", &["id", "name", "response", "parts", "scheduling", "willContinue"]),
    ("executableCode", &["language", "code"]),
    ("codeExecutionResult", &["outcome", "output"]),
    ("videoMetadata", &["startOffset", "endOffset", "fps"]),
    ("mediaResolution", &["level", "numTokens"]),
    ("partMetadata", &[]),
];

/// Normalizes a message and returns its role, meta and body.
pub(super) fn normalize(
    mut body: Object,
    new_call_id: &mut dyn FnMut() -> String,
) -> Result<(Role, Object, Object), InvalidMessage> {
    rename_keys_to_camel_case(&mut body, &["role", "parts"]);
    let role = match str_at(&body, "role") {
        "user" => Role::User,
        "model" => Role::Assistant,
        _ => return Err(invalid("role", "must be user or model")),
    };
    let parts = body.entry("parts").or_insert_with(|| Value::Array(Vec::new()));
    let Some(parts) = parts.as_array_mut() else {
        return Err(invalid("parts", "must be a list"));
    };
    for (index, part) in parts.iter_mut().enumerate() {
        let path = format!("parts[{index}]");
        let Value::Object(part) = part else {
            return Err(invalid(path, "must be an object"));
        };
        normalize_part(part);
        validate_part(part, &path)?;
        if let Some(Value::Object(call)) = part.get_mut("functionCall")
            && str_at(call, "id").is_empty()
        {
            call.insert("id".into(), new_call_id().into());
        }
    }
    Ok((role, Object::new(), body))
}

/// Renames other spellings of `keys` to camel case: `function_call` or `FunctionCall` becomes `functionCall`, unless the object
/// has that key already.
fn rename_keys_to_camel_case(object: &mut Object, keys: &[&str]) {
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

/// Removes `null` keys from a part and its objects, and converts their keys to camel case.
fn normalize_part(part: &mut Object) {
    remove_nulls(part, &[]);
    let keys: Vec<_> = SCALAR_KEYS.into_iter().chain(OBJECT_KEYS.map(|(key, _)| key)).collect();
    rename_keys_to_camel_case(part, &keys);
    for (key, keys) in OBJECT_KEYS {
        if let Some(Value::Object(inner)) = part.get_mut(key) {
            remove_nulls(inner, &[]);
            rename_keys_to_camel_case(inner, keys);
            // A function response may contain parts with images and files.
            let nested = inner.get_mut("parts").filter(|_| key == "functionResponse");
            indexed_objects_mut(nested).for_each(|(_, part)| normalize_part(part));
        }
    }
}

/// Validates a part, and converts its binary data to standard base64.
fn validate_part(part: &mut Object, path: &str) -> Result<(), InvalidMessage> {
    validate_field(part, "text", path, "must be a string", Value::is_string)?;
    validate_field(part, "thought", path, "must be true or false", Value::is_boolean)?;
    normalize_base64(part, "thoughtSignature", path)?;
    for (key, _) in OBJECT_KEYS {
        validate_field(part, key, path, "must be an object", Value::is_object)?;
        let Some(Value::Object(inner)) = part.get_mut(key) else { continue };
        let path = format!("{path}.{key}");
        match key {
            "inlineData" => {
                validate_field(inner, "mimeType", &path, "must be a string", Value::is_string)?;
                // Missing data is rejected, like a value that is not a string.
                inner.entry("data").or_insert(Value::Null);
                normalize_base64(inner, "data", &path)?;
            }
            "fileData" => {
                validate_field(inner, "mimeType", &path, "must be a string", Value::is_string)?;
                validate_nonempty_string(inner, "fileUri", &path)?;
            }
            "functionCall" | "functionResponse" => {
                validate_nonempty_string(inner, "name", &path)?;
                let is_valid_id = |id: &Value| id.as_str().is_some_and(|id| !id.contains('\0'));
                validate_field(inner, "id", &path, "must be a string without the character NUL", is_valid_id)?;
                let json_key = if key == "functionCall" { "args" } else { "response" };
                validate_field(inner, json_key, &path, "must be an object", Value::is_object)?;
            }
            _ => {}
        }
    }
    let has_content = |(key, value): (&String, &Value)| match value {
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
        // `thought` only describes the text next to it.
        _ => key != "thought",
    };
    if part.iter().any(has_content) {
        return Ok(());
    }
    let reason = "must have a non-empty field such as text, inlineData, fileData, functionCall or functionResponse";
    Err(invalid(path, reason))
}

/// Returns an error with the reason unless the value at the key is missing or valid.
fn validate_field(
    object: &Object,
    key: &str,
    path: &str,
    reason: &str,
    is_valid: impl Fn(&Value) -> bool,
) -> Result<(), InvalidMessage> {
    if object.get(key).is_none_or(is_valid) { Ok(()) } else { Err(invalid(format!("{path}.{key}"), reason)) }
}

/// Returns an error unless the value at the key is a non-empty string without NUL.
fn validate_nonempty_string(object: &Object, key: &str, path: &str) -> Result<(), InvalidMessage> {
    let text = str_at(object, key);
    if !text.is_empty() && !text.contains('\0') {
        return Ok(());
    }
    Err(invalid(format!("{path}.{key}"), "must be a non-empty string without the character NUL"))
}

/// Converts the value at the key, if there is one, to standard base64.
fn normalize_base64(object: &mut Object, key: &str, path: &str) -> Result<(), InvalidMessage> {
    let Some(value) = object.get_mut(key) else { return Ok(()) };
    let Value::String(text) = value.take() else {
        return Err(invalid(format!("{path}.{key}"), "must be a base64 string"));
    };
    match media::to_standard_base64(text) {
        Some(base64) => *value = base64.into(),
        None => return Err(invalid(format!("{path}.{key}"), "must be valid base64")),
    }
    Ok(())
}

/// Iterates over the parts that have an object at the key. Yields the index of the part and that object.
fn objects_at<'a>(body: &'a Value, key: &'a str) -> impl Iterator<Item = (usize, &'a Object)> {
    let parts = body.get("parts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    parts.iter().enumerate().filter_map(move |(index, part)| Some((index, part.get(key)?.as_object()?)))
}

pub(super) fn function_responses(body: &Value) -> Vec<FunctionResponse> {
    let to_response = |(part_index, response)| {
        let id = Some(str_at(response, "id")).filter(|id| !id.is_empty());
        let will_continue = response.get("willContinue").and_then(Value::as_bool).unwrap_or_default();
        let name = str_at(response, "name").to_owned();
        FunctionResponse { part_index, name, id: id.map(str::to_owned), will_continue }
    };
    objects_at(body, "functionResponse").map(to_response).collect()
}

pub(super) fn set_response_id(body: &mut Value, part_index: usize, id: &str) {
    if let Some((_, part)) = indexed_objects_mut(body.get_mut("parts")).find(|(index, _)| *index == part_index)
        && let Some(Value::Object(response)) = part.get_mut("functionResponse")
    {
        response.insert("id".into(), id.into());
    }
}

pub(super) fn to_parts(mut body: Object) -> Vec<Part> {
    let mut parts = Vec::new();
    match body.remove("parts") {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) => list.into_iter().for_each(|part| push_parts(part, &mut parts)),
        Some(other) => parts.push(opaque_part(Format::Gemini, other)),
    }
    parts
}

/// Converts a part. A Gemini part should have only one value; if it has several, each value becomes a part.
fn push_parts(value: Value, parts: &mut Vec<Part>) {
    let mut fields = match value {
        Value::Object(fields) => fields,
        other => return parts.push(opaque_part(Format::Gemini, other)),
    };
    let has_object = |key: &&str| fields.get(*key).is_some_and(Value::is_object);
    let is_known = ["inlineData", "fileData", "functionCall", "functionResponse"].iter().any(has_object);
    if !is_known && str_at(&fields, "text").is_empty() {
        return parts.push(opaque_part(Format::Gemini, Value::Object(fields)));
    }
    if let Some(text) = take_nonempty_string(&mut fields, "text") {
        let signature = take_nonempty_string(&mut fields, "thoughtSignature");
        let signature = signature.map(|base64| ("signature".to_owned(), base64.into()));
        parts.push(match fields.get("thought") {
            Some(Value::Bool(true)) => part(PartKind::Thinking, text, signature.into_iter().collect()),
            _ => text_part(text),
        });
    }
    parts.extend(take_media(&mut fields));
    if let Some(Value::Object(mut call)) = fields.remove("functionCall") {
        let args = call.remove("args").unwrap_or_default().to_string();
        let mut meta = object([("arguments", args.into()), ("type", "function".into())]);
        meta.extend(["id", "name"].map(|key| (key.to_owned(), take_as_string(&mut call, key).into())));
        parts.push(part(PartKind::ToolCall, String::new(), meta));
    }
    if let Some(Value::Object(response)) = fields.remove("functionResponse") {
        push_function_response(response, parts);
    }
}

/// Converts a function response to a tool result, followed by its media as parts with the same `tool_call_id`.
fn push_function_response(mut response: Object, parts: &mut Vec<Part>) {
    let text = response.remove("response").unwrap_or_default().to_string();
    let id = take_nonempty_string(&mut response, "id").map(|id| ("tool_call_id".to_owned(), Value::from(id)));
    let mut meta = object([("name", take_as_string(&mut response, "name").into())]);
    meta.extend(id.clone());
    if response.get("willContinue") == Some(&Value::Bool(true)) {
        meta.insert("will_continue".into(), true.into());
    }
    parts.push(part(PartKind::ToolResult, text, meta));
    for (_, inner) in indexed_objects_mut(response.get_mut("parts")) {
        for mut media in take_media(inner) {
            media.meta.extend(id.clone());
            parts.push(media);
        }
    }
}

/// Removes `inlineData` and `fileData` from a part and converts them.
fn take_media(fields: &mut Object) -> Vec<Part> {
    let mut media = Vec::new();
    if let Some(Value::Object(mut inline)) = fields.remove("inlineData") {
        let mime = take_as_string(&mut inline, "mimeType");
        let kind = if mime.is_empty() { PartKind::Image } else { media_kind(&mime) };
        let data = take_as_string(&mut inline, "data");
        media.push(part(kind, String::new(), media::base64_source(mime, data)));
    }
    if let Some(Value::Object(mut file)) = fields.remove("fileData") {
        let mime = take_nonempty_string(&mut file, "mimeType");
        let kind = media_kind(mime.as_deref().unwrap_or_default());
        let mut meta = object([("type", "url".into()), ("url", take_as_string(&mut file, "fileUri").into())]);
        meta.extend(mime.map(|mime| ("media_type".to_owned(), mime.into())));
        media.push(part(kind, String::new(), meta));
    }
    media
}

fn media_kind(mime: &str) -> PartKind {
    media::kind_by_mime(&media::normalize_mime(mime)).unwrap_or(PartKind::File)
}

/// Applies changes to a stored body.
pub(super) fn apply_changes(body: &mut Object, changes: &mut ChangeCursor<'_>) {
    for (_, part) in indexed_objects_mut(body.get_mut("parts")) {
        if let Some(Value::Object(call)) = part.get_mut("functionCall")
            && changes.clears_next_call()
        {
            call.remove("partialArgs");
            call.insert("args".into(), Value::Object(Object::new()));
        }
        if let Some(Value::Object(response)) = part.get_mut("functionResponse")
            && let Some(text) = changes.next_result_text()
        {
            // In a response without a call id, the nested parts do not refer to the call, so they are not attachments.
            if !str_at(response, "id").is_empty() {
                response.remove("parts");
            }
            response.remove("response");
            response.extend(
                response_object(text.to_owned(), &ValueBudget::default())
                    .map(|object| ("response".to_owned(), Value::Object(object))),
            );
        }
    }
}

/// Builds a message from parts.
pub(super) fn from_parts(role: Role, _meta: &Object, parts: Vec<Part>, ctx: &RenderContext) -> Value {
    let mut out = Vec::new();
    for mut part in parts {
        let caption = take_caption(&mut part);
        let opaque = take_opaque_block(&mut part, Format::Gemini);
        out.extend(opaque.or_else(|| from_part(part, ctx).map(Value::Object)));
        out.extend(caption.map(|caption| Value::Object(gemini_text(caption))));
    }
    let role = match role {
        Role::User => "user",
        Role::Assistant => "model",
    };
    Value::Object(object([("role", role.into()), ("parts", Value::Array(out))]))
}

fn gemini_text(text: String) -> Object {
    object([("text", text.into())])
}

/// Converts a part; returns `None` if Gemini cannot represent it.
fn from_part(mut part: Part, ctx: &RenderContext) -> Option<Object> {
    match part.kind {
        PartKind::Text | PartKind::Thinking if part.text.is_empty() => None,
        PartKind::Text => Some(gemini_text(part.text)),
        PartKind::Thinking => {
            let mut thought = object([("text", part.text.into()), ("thought", true.into())]);
            if let Some(signature) = take_nonempty_string(&mut part.meta, "signature") {
                // Gemini requires base64, but signatures of other providers may be any text.
                let encoded = media::encode_base64(&signature);
                let base64 = media::to_standard_base64(signature).unwrap_or(encoded);
                thought.insert("thoughtSignature".into(), base64.into());
            }
            Some(thought)
        }
        PartKind::ToolCall => function_call(part.meta, ctx),
        PartKind::ToolResult => Some(function_response(part, ctx)),
        PartKind::Image | PartKind::Audio | PartKind::Video | PartKind::File => media_part(Media::from_part(part, ctx)),
        PartKind::Data | PartKind::RedactedThinking => None,
    }
}

fn function_call(mut meta: Object, ctx: &RenderContext) -> Option<Object> {
    let mut call = object([("name", take_nonempty_string(&mut meta, "name")?.into())]);
    call.extend(take_nonempty_string(&mut meta, "id").map(|id| ("id".to_owned(), id.into())));
    let args = take_arguments(&mut meta, &ctx.value_budget);
    if !args.is_empty() {
        call.insert("args".into(), Value::Object(args));
    }
    Some(object([("functionCall", Value::Object(call))]))
}

/// Builds a function response, which requires the name of the function. An unknown name is replaced by the id of the call, or by
/// `unknown` if there is no id either.
fn function_response(mut part: Part, ctx: &RenderContext) -> Object {
    let meta = &mut part.meta;
    let name = take_nonempty_string(meta, "name").or_else(|| take_nonempty_string(meta, "function_name"));
    let id = take_nonempty_string(meta, "tool_call_id");
    let name = name.or_else(|| ctx.call_names.get(id.as_ref()?).cloned()).or_else(|| id.clone());
    let mut fields = object([("name", name.unwrap_or_else(|| "unknown".into()).into())]);
    fields.extend(id.map(|id| ("id".to_owned(), id.into())));
    let response = response_object(part.text, &ctx.value_budget);
    fields.extend(response.map(|response| ("response".to_owned(), Value::Object(response))));
    object([("functionResponse", Value::Object(fields))])
}

/// Converts the text of a tool result to the object that Gemini requires. A text that is a JSON object within the budget is
/// parsed. Any other text becomes `{"output": text}`. Returns `None` for `null` and an empty text.
fn response_object(text: String, budget: &ValueBudget) -> Option<Object> {
    match budget.parse(&text) {
        Some(Value::Object(response)) => Some(response),
        Some(Value::Null) => None,
        _ if text.is_empty() => None,
        _ => Some(object([("output", text.into())])),
    }
}

fn media_part(mut media: Media) -> Option<Object> {
    let mime = media.guess_mime();
    let data = media.data.take_if(|_| mime.is_some()).and_then(media::to_standard_base64);
    if let (Some(data), Some(mime)) = (data, &mime) {
        let inline = object([("mimeType", mime.as_str().into()), ("data", data.into())]);
        return Some(object([("inlineData", Value::Object(inline))]));
    }
    if let Some(url) = media.take_url() {
        let mut file = object([("fileUri", url.into())]);
        file.extend(mime.map(|mime| ("mimeType".to_owned(), mime.into())));
        return Some(object([("fileData", Value::Object(file))]));
    }
    media.take_text().or_else(|| media.placeholder_text()).map(gemini_text)
}
