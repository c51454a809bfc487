//! Messages of Gemini: `{"role": "user" or "model", "parts": [...]}`.

use serde_json::Value;

use super::changes::Changes;
use super::media::{self, Media};
use super::value::{
    Object, arguments, drop_nulls, object, objects, part, refused, take_block, take_caption, take_filled, take_text,
    text_at, text_part, unknown,
};
use super::{Format, FunctionCall, FunctionResponse, InvalidMessage, RenderContext};
use crate::conversation::parts::{Kind, Part, Role};
use crate::json::ValueBudget;

/// What a part has besides objects.
const PLAIN_KEYS: [&str; 3] = ["text", "thought", "thoughtSignature"];

/// The objects that a part may hold, and what they have.
const INNER: [(&str, &[&str]); 9] = [
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

/// Checks a message; gives its role, its meta and its body.
pub(super) fn read(
    mut body: Object,
    new_call_id: &mut dyn FnMut() -> String,
) -> Result<(Role, Object, Object), InvalidMessage> {
    in_camel_case(&mut body, &["role", "parts"]);
    let role = match text_at(&body, "role") {
        "user" => Role::User,
        "model" => Role::Assistant,
        _ => return Err(refused("role", "must be user or model")),
    };
    let parts = body.entry("parts").or_insert_with(|| Value::Array(Vec::new()));
    let Some(parts) = parts.as_array_mut() else {
        return Err(refused("parts", "must be a list"));
    };
    for (at, part) in parts.iter_mut().enumerate() {
        let place = format!("parts[{at}]");
        let Value::Object(part) = part else {
            return Err(refused(place, "must be an object"));
        };
        clean(part);
        check(part, &place)?;
        if let Some(Value::Object(call)) = part.get_mut("functionCall")
            && text_at(call, "id").is_empty()
        {
            call.insert("id".into(), new_call_id().into());
        }
    }
    Ok((role, Object::new(), body))
}

/// Gives keys their right spelling: `function_call` or `FunctionCall` becomes `functionCall`.
fn in_camel_case(object: &mut Object, keys: &[&str]) {
    let plain = |key: &str| key.replace('_', "");
    let odd: Vec<_> = object.keys().filter(|key| !keys.contains(&key.as_str())).cloned().collect();
    for key in odd {
        let odd = plain(&key);
        let right = keys.iter().find(|right| right.eq_ignore_ascii_case(&odd) && !object.contains_key(**right));
        if let Some(right) = right
            && let Some(value) = object.remove(&key)
        {
            object.insert((*right).to_owned(), value);
        }
    }
}

/// Drops what is `null` from a part and what belongs to it, and spells the keys right.
fn clean(part: &mut Object) {
    drop_nulls(part, &[]);
    let keys: Vec<_> = PLAIN_KEYS.into_iter().chain(INNER.map(|(key, _)| key)).collect();
    in_camel_case(part, &keys);
    for (key, keys) in INNER {
        if let Some(Value::Object(inner)) = part.get_mut(key) {
            drop_nulls(inner, &[]);
            in_camel_case(inner, keys);
            // What a function returns besides its answer: images and files, as in a part.
            objects(inner.get_mut("parts").filter(|_| key == "functionResponse")).for_each(|(_, part)| clean(part));
        }
    }
}

/// Checks a part, and writes its bytes in standard base64.
fn check(part: &mut Object, place: &str) -> Result<(), InvalidMessage> {
    want(part, "text", place, "must be a string", Value::is_string)?;
    want(part, "thought", place, "must be true or false", Value::is_boolean)?;
    want_bytes(part, "thoughtSignature", place)?;
    for (key, _) in INNER {
        want(part, key, place, "must be an object", Value::is_object)?;
        let Some(Value::Object(inner)) = part.get_mut(key) else { continue };
        let place = format!("{place}.{key}");
        match key {
            "inlineData" => {
                want(inner, "mimeType", &place, "must be a string", Value::is_string)?;
                inner.entry("data").or_insert(Value::Null);
                want_bytes(inner, "data", &place)?;
            }
            "fileData" => {
                want(inner, "mimeType", &place, "must be a string", Value::is_string)?;
                want_name(inner, "fileUri", &place)?;
            }
            "functionCall" | "functionResponse" => {
                want_name(inner, "name", &place)?;
                let says = |id: &Value| id.as_str().is_some_and(|id| !id.contains('\0'));
                want(inner, "id", &place, "must be a string without the character NUL", says)?;
                let free = if key == "functionCall" { "args" } else { "response" };
                want(inner, free, &place, "must be an object", Value::is_object)?;
            }
            _ => {}
        }
    }
    let says = |(key, value): (&String, &Value)| match value {
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
        _ => key != "thought",
    };
    if part.iter().any(says) {
        return Ok(());
    }
    let why = "must hold something: text, inlineData, fileData, functionCall, functionResponse, ...";
    Err(refused(place, why))
}

/// What is there must be right.
fn want(of: &Object, key: &str, place: &str, why: &str, right: impl Fn(&Value) -> bool) -> Result<(), InvalidMessage> {
    if of.get(key).is_none_or(right) { Ok(()) } else { Err(refused(format!("{place}.{key}"), why)) }
}

fn want_name(of: &Object, key: &str, place: &str) -> Result<(), InvalidMessage> {
    let name = text_at(of, key);
    if !name.is_empty() && !name.contains('\0') {
        return Ok(());
    }
    Err(refused(format!("{place}.{key}"), "must be a string that is not empty, without the character NUL"))
}

/// What is there becomes standard base64.
fn want_bytes(of: &mut Object, key: &str, place: &str) -> Result<(), InvalidMessage> {
    let Some(value) = of.get_mut(key) else { return Ok(()) };
    let Value::String(bytes) = value.take() else {
        return Err(refused(format!("{place}.{key}"), "must be a string in base64"));
    };
    match media::standard_base64(bytes) {
        Some(bytes) => *value = bytes.into(),
        None => return Err(refused(format!("{place}.{key}"), "must be base64")),
    }
    Ok(())
}

/// The objects of this name in the parts of a body, with the places of their parts.
fn found<'a>(body: &'a Value, key: &'a str) -> impl Iterator<Item = (usize, &'a Object)> {
    let parts = body.get("parts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    parts.iter().enumerate().filter_map(move |(at, part)| Some((at, part.get(key)?.as_object()?)))
}

pub(super) fn calls(body: &Value) -> Vec<FunctionCall> {
    let call = |call| FunctionCall { id: text_at(call, "id").to_owned(), name: text_at(call, "name").to_owned() };
    found(body, "functionCall").map(|(_, found)| call(found)).collect()
}

pub(super) fn answers(body: &Value) -> Vec<FunctionResponse> {
    let answer = |(part, answer)| {
        let id = Some(text_at(answer, "id")).filter(|id| !id.is_empty());
        FunctionResponse { part, name: text_at(answer, "name").to_owned(), id: id.map(str::to_owned) }
    };
    found(body, "functionResponse").map(answer).collect()
}

pub(super) fn set_answer_id(body: &mut Value, part: usize, id: &str) {
    if let Some((_, part)) = objects(body.get_mut("parts")).find(|(at, _)| *at == part)
        && let Some(Value::Object(answer)) = part.get_mut("functionResponse")
    {
        answer.insert("id".into(), id.into());
    }
}

pub(super) fn parts(mut body: Object) -> Vec<Part> {
    let mut parts = Vec::new();
    match body.remove("parts") {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) => list.into_iter().for_each(|part| take_apart(part, &mut parts)),
        Some(other) => parts.push(unknown(Format::Gemini, other)),
    }
    parts
}

/// One part may say several things, although it should not.
fn take_apart(value: Value, parts: &mut Vec<Part>) {
    let mut from = match value {
        Value::Object(from) => from,
        other => return parts.push(unknown(Format::Gemini, other)),
    };
    let is_known = |key: &&str| from.get(*key).is_some_and(Value::is_object);
    let known = ["inlineData", "fileData", "functionCall", "functionResponse"].iter().any(is_known);
    if !known && text_at(&from, "text").is_empty() {
        return parts.push(unknown(Format::Gemini, Value::Object(from)));
    }
    if let Some(text) = take_filled(&mut from, "text") {
        let signature = take_filled(&mut from, "thoughtSignature").map(|bytes| ("signature".to_owned(), bytes.into()));
        parts.push(match from.get("thought") {
            Some(Value::Bool(true)) => part(Kind::Thinking, text, signature.into_iter().collect()),
            _ => text_part(text),
        });
    }
    parts.extend(take_media(&mut from));
    if let Some(Value::Object(mut call)) = from.remove("functionCall") {
        let args = call.remove("args").unwrap_or_default().to_string();
        let mut meta = object([("arguments", args.into()), ("type", "function".into())]);
        meta.extend(["id", "name"].map(|key| (key.to_owned(), take_text(&mut call, key).into())));
        parts.push(part(Kind::ToolCall, String::new(), meta));
    }
    if let Some(Value::Object(answer)) = from.remove("functionResponse") {
        take_answer(answer, parts);
    }
}

/// The answer, and after it what the function returned besides, as parts that name the call.
fn take_answer(mut answer: Object, parts: &mut Vec<Part>) {
    let text = answer.remove("response").unwrap_or_default().to_string();
    let id = take_filled(&mut answer, "id").map(|id| ("tool_call_id".to_owned(), Value::from(id)));
    let mut meta = object([("name", take_text(&mut answer, "name").into())]);
    meta.extend(id.clone());
    parts.push(part(Kind::ToolResult, text, meta));
    for (_, inner) in objects(answer.get_mut("parts")) {
        for mut media in take_media(inner) {
            media.meta.extend(id.clone());
            parts.push(media);
        }
    }
}

/// What is in a part as bytes, and what it refers to.
fn take_media(from: &mut Object) -> Vec<Part> {
    let mut found = Vec::new();
    if let Some(Value::Object(mut inline)) = from.remove("inlineData") {
        let mime = take_text(&mut inline, "mimeType");
        let kind = if mime.is_empty() { Kind::Image } else { kind_of(&mime) };
        let data = take_text(&mut inline, "data");
        found.push(part(kind, String::new(), media::held(mime, data)));
    }
    if let Some(Value::Object(mut file)) = from.remove("fileData") {
        let mime = take_filled(&mut file, "mimeType");
        let kind = kind_of(mime.as_deref().unwrap_or_default());
        let mut meta = object([("type", "url".into()), ("url", take_text(&mut file, "fileUri").into())]);
        meta.extend(mime.map(|mime| ("media_type".to_owned(), mime.into())));
        found.push(part(kind, String::new(), meta));
    }
    found
}

fn kind_of(mime: &str) -> Kind {
    media::kind_by_mime(&media::plain(mime)).unwrap_or(Kind::File)
}

/// Makes changes in a stored message.
pub(super) fn edit(body: &mut Object, changes: &mut Changes<'_>) {
    for (_, part) in objects(body.get_mut("parts")) {
        if let Some(Value::Object(call)) = part.get_mut("functionCall")
            && changes.next_call()
        {
            call.remove("partialArgs");
            call.insert("args".into(), Value::Object(Object::new()));
        }
        if let Some(Value::Object(answer)) = part.get_mut("functionResponse")
            && let Some(text) = changes.next_result()
        {
            // What came with an answer that names no call cannot be told from the parts after it.
            if !text_at(answer, "id").is_empty() {
                answer.remove("parts");
            }
            answer.remove("response");
            answer.extend(
                response(text.to_owned(), &ValueBudget::default())
                    .map(|response| ("response".to_owned(), Value::Object(response))),
            );
        }
    }
}

/// A message of these parts; one without any has an empty list.
pub(super) fn write(role: Role, parts: Vec<Part>, around: &RenderContext) -> Value {
    let mut said = Vec::new();
    for mut part in parts {
        let caption = take_caption(&mut part);
        let own = take_block(&mut part, Format::Gemini);
        said.extend(own.or_else(|| one_part(part, around).map(Value::Object)));
        said.extend(caption.map(|caption| Value::Object(text(caption))));
    }
    let role = match role {
        Role::User => "user",
        Role::Assistant => "model",
    };
    Value::Object(object([("role", role.into()), ("parts", Value::Array(said))]))
}

fn text(text: String) -> Object {
    object([("text", text.into())])
}

/// A part; `None` if Gemini has no form for it.
fn one_part(mut part: Part, around: &RenderContext) -> Option<Object> {
    match part.kind {
        Kind::Text | Kind::Thinking if part.text.is_empty() => None,
        Kind::Text => Some(text(part.text)),
        Kind::Thinking => {
            let mut said = object([("text", part.text.into()), ("thought", true.into())]);
            if let Some(signature) = take_filled(&mut part.meta, "signature") {
                // Signatures of others need not be base64, which they have to be here.
                let encoded = media::encode(&signature);
                let bytes = media::standard_base64(signature).unwrap_or(encoded);
                said.insert("thoughtSignature".into(), bytes.into());
            }
            Some(said)
        }
        Kind::ToolCall => call(part.meta, around),
        Kind::ToolResult => Some(answer(part, around)),
        Kind::Image | Kind::Audio | Kind::Video | Kind::File => media_part(Media::of(part, around)),
        Kind::Data | Kind::RedactedThinking => None,
    }
}

fn call(mut meta: Object, around: &RenderContext) -> Option<Object> {
    let mut call = object([("name", take_filled(&mut meta, "name")?.into())]);
    call.extend(take_filled(&mut meta, "id").map(|id| ("id".to_owned(), id.into())));
    let args = arguments(&mut meta, &around.values);
    if !args.is_empty() {
        call.insert("args".into(), Value::Object(args));
    }
    Some(object([("functionCall", Value::Object(call))]))
}

/// An answer must name its function; if nobody knows the name, the id of the call stands for it.
fn answer(mut part: Part, around: &RenderContext) -> Object {
    let meta = &mut part.meta;
    let name = take_filled(meta, "name").or_else(|| take_filled(meta, "function_name"));
    let id = take_filled(meta, "tool_call_id");
    let name = name.or_else(|| around.call_names.get(id.as_ref()?).cloned()).or_else(|| id.clone());
    let mut answer = object([("name", name.unwrap_or_else(|| "unknown".into()).into())]);
    answer.extend(id.map(|id| ("id".to_owned(), id.into())));
    answer.extend(response(part.text, &around.values).map(|response| ("response".to_owned(), Value::Object(response))));
    object([("functionResponse", Value::Object(answer))])
}

/// What a function returned, as the object that it has to be.
fn response(text: String, values: &ValueBudget) -> Option<Object> {
    match values.parse(&text) {
        Some(Value::Object(response)) => Some(response),
        Some(Value::Null) => None,
        _ if text.is_empty() => None,
        _ => Some(object([("output", text.into())])),
    }
}

fn media_part(mut media: Media) -> Option<Object> {
    let mime = media.guess_mime();
    let bytes = media.data.take_if(|_| mime.is_some()).and_then(media::standard_base64);
    if let (Some(bytes), Some(mime)) = (bytes, &mime) {
        let inline = object([("mimeType", mime.as_str().into()), ("data", bytes.into())]);
        return Some(object([("inlineData", Value::Object(inline))]));
    }
    if let Some(url) = media.link() {
        let mut file = object([("fileUri", url.into())]);
        file.extend(mime.map(|mime| ("mimeType".to_owned(), mime.into())));
        return Some(object([("fileData", Value::Object(file))]));
    }
    media.text().or_else(|| media.named()).map(text)
}
