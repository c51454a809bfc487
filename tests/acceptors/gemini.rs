//! Gemini's `generateContent`. Types are those of `google.genai.types`, in the JSON names of the REST API.

use serde_json::{Map, Value};

use super::{At, Check, any_base64, demand, fields, identifier, list, nonempty, object, one_of, string, violation};

/// The fields of a `Part` of which exactly one is set: "Exactly one field within a Part should be set, representing the specific
/// type of content being conveyed."
const DATA_KEYS: [&str; 9] = [
    "text",
    "inlineData",
    "fileData",
    "functionCall",
    "functionResponse",
    "executableCode",
    "codeExecutionResult",
    "toolCall",
    "toolResponse",
];

/// The function calls of a content: id, if there is one, and name.
type Calls<'a> = Vec<(Option<&'a str>, &'a str)>;

pub(super) fn check(history: &[Value]) -> Check {
    let mut previous_role = "";
    let mut awaited = Calls::new();
    for (index, content) in history.iter().enumerate() {
        (previous_role, awaited) = check_content(content, previous_role, &awaited).at_index("contents", index)?;
    }
    demand(awaited.is_empty(), "must be the content with the function responses").at_index("contents", history.len())
}

/// Checks a content. Returns its role and its function calls.
fn check_content<'a>(
    content: &'a Value,
    previous_role: &str,
    awaited: &Calls<'_>,
) -> Result<(&'a str, Calls<'a>), String> {
    let content = object(content)?;
    fields(content, &["parts"], &["role"])?;
    // `Content.role`: "Must be either 'user' or 'model'. If not set, the service will default to 'user'."
    let role = if content.contains_key("role") { string(content, "role")? } else { "user" };
    one_of(role, &["user", "model"]).at("role")?;
    // API: "Please ensure that multiturn requests start with a user turn."
    demand(role == "user" || !previous_role.is_empty(), "must be user in the first content").at("role")?;
    let parts = list(&content["parts"]).at("parts")?;
    // API: "contents.parts must not be empty."
    demand(!parts.is_empty(), "must have at least one part").at("parts")?;
    for (index, part) in parts.iter().enumerate() {
        object(part).and_then(|part| check_part(part, role)).at_index("parts", index)?;
    }
    check_responses(parts, awaited).at("parts")?;
    let calls: Calls<'_> = parts.iter().filter_map(|part| part.get("functionCall")).map(id_and_name).collect();
    // API: "Please ensure that function call turn comes immediately after a user turn or after a function response turn."
    demand(calls.is_empty() || previous_role == "user", "must not have a functionCall after a model content")
        .at("parts")?;
    let ids: Vec<_> = calls.iter().filter_map(|(id, _)| *id).collect();
    let is_unique = ids.iter().enumerate().all(|(index, id)| !ids[..index].contains(id));
    // `FunctionCall.id`: "The unique id of the function call."
    demand(is_unique, "must have calls with different ids").at("parts")?;
    Ok((role, calls))
}

fn id_and_name(call: &Value) -> (Option<&str>, &str) {
    (call["id"].as_str(), call["name"].as_str().unwrap_or_default())
}

/// Checks that the function responses of a content are those to the calls of the preceding content.
fn check_responses(parts: &[Value], awaited: &Calls<'_>) -> Check {
    let responses: Calls<'_> = parts.iter().filter_map(|part| part.get("functionResponse")).map(id_and_name).collect();
    // API: "Please ensure that function response turn comes immediately after a function call turn.", "Please ensure that the
    // number of function response parts is equal to the number of function call parts of the function call turn."
    demand(
        responses.len() == awaited.len(),
        format_args!("must have {} function responses, not {}", awaited.len(), responses.len()),
    )?;
    let mut unanswered = awaited.clone();
    for (id, name) in responses {
        // `FunctionResponse.id`: "Populated by the client to match the corresponding function call `id`." `FunctionResponse.name`:
        // "Matches [...] FunctionCall.name."
        let answers = |(call_id, call_name): &(Option<&str>, &str)| *call_id == id && *call_name == name;
        match unanswered.iter().position(answers) {
            Some(call) => drop(unanswered.remove(call)),
            None => return violation(format_args!("no preceding call has the id {id:?} and the name {name}")),
        }
    }
    Ok(())
}

/// `Part`.
fn check_part(part: &Map<String, Value>, role: &str) -> Check {
    let modifiers = ["thought", "thoughtSignature", "videoMetadata", "mediaResolution", "partMetadata"];
    fields(part, &[], &[DATA_KEYS.as_slice(), modifiers.as_slice()].concat())?;
    let mut data_keys = DATA_KEYS.into_iter().filter(|key| part.contains_key(*key));
    // API: "required oneof field 'data' must have one initialized field".
    let (Some(key), None) = (data_keys.next(), data_keys.next()) else {
        return violation(format_args!("must have exactly one of {}", DATA_KEYS.join(", ")));
    };
    check_thought(part, role)?;
    let is_media = matches!(key, "inlineData" | "fileData");
    demand(is_media || !part.contains_key("videoMetadata"), "is only valid with media").at("videoMetadata")?;
    if key == "text" {
        // The API treats an empty text as unset. Only the end of a model's stream is an empty text with a signature: page "Thought
        // signatures", section "Signatures in non-functionCall parts".
        let text = string(part, "text")?;
        return demand(!text.is_empty() || part.contains_key("thoughtSignature"), "must not be empty").at("text");
    }
    let is_of_user = key == "functionResponse";
    let is_of_model = !is_of_user && !is_media;
    // `FunctionCall` is "predicted" by the model, `FunctionResponse` is "populated by the client".
    demand(!is_of_user || role == "user", "is only valid in a user content").at(key)?;
    demand(!is_of_model || role == "model", "is only valid in a model content").at(key)?;
    object(&part[key]).and_then(|inner| check_data(key, inner)).at(key)
}

/// `Part.thought`, `Part.thought_signature`: only the model has thoughts.
fn check_thought(part: &Map<String, Value>, role: &str) -> Check {
    if let Some(thought) = part.get("thought") {
        demand(thought.is_boolean(), "must be a boolean").at("thought")?;
        demand(role == "model" || thought == false, "is only valid in a model content").at("thought")?;
    }
    if part.contains_key("thoughtSignature") {
        demand(role == "model", "is only valid in a model content").at("thoughtSignature")?;
        any_base64(string(part, "thoughtSignature")?).at("thoughtSignature")?;
    }
    Ok(())
}

fn check_data(key: &str, data: &Map<String, Value>) -> Check {
    match key {
        // `Blob`: both are required.
        "inlineData" => check_inline(data, is_supported_mime),
        // `FileData`: both are required.
        "fileData" => {
            fields(data, &["fileUri", "mimeType"], &["displayName"])?;
            nonempty(data, "fileUri")?;
            demand(is_supported_mime(string(data, "mimeType")?), "is not supported").at("mimeType")
        }
        "functionCall" => check_call(data),
        "functionResponse" => check_response(data),
        // `ExecutableCode`, `Language`.
        "executableCode" => {
            fields(data, &["language", "code"], &["id"])?;
            one_of(string(data, "language")?, &["PYTHON"]).at("language")?;
            string(data, "code").map(drop)
        }
        // `CodeExecutionResult`, `Outcome`.
        "codeExecutionResult" => {
            fields(data, &["outcome"], &["output", "id"])?;
            let outcomes = ["OUTCOME_OK", "OUTCOME_FAILED", "OUTCOME_DEADLINE_EXCEEDED"];
            one_of(string(data, "outcome")?, &outcomes).at("outcome")
        }
        // `ToolCall`, `ToolResponse`.
        _ => fields(data, &[], &["id", "toolType", "args", "response"]),
    }
}

fn check_inline(data: &Map<String, Value>, is_supported: impl Fn(&str) -> bool) -> Check {
    fields(data, &["mimeType", "data"], &["displayName"])?;
    demand(is_supported(string(data, "mimeType")?), "is not supported").at("mimeType")?;
    any_base64(string(data, "data")?).at("data")
}

/// Pages "Image understanding", "Audio understanding", "Video understanding", "Document understanding", and the list of the
/// model pages of the Gemini Enterprise Agent Platform. GIF and JSON are in none of them.
fn is_supported_mime(mime: &str) -> bool {
    let Some((kind, subtype)) = mime.split_once('/') else { return false };
    let subtypes: &[&str] = match kind {
        "image" => &["png", "jpeg", "webp", "heic", "heif"],
        "audio" => {
            &["wav", "mp3", "aiff", "aac", "ogg", "flac", "x-aac", "m4a", "mpeg", "mpga", "mp4", "opus", "pcm", "webm"]
        }
        "video" => {
            &["mp4", "mpeg", "mov", "quicktime", "avi", "x-flv", "mpg", "mpegps", "webm", "wmv", "x-ms-wmv", "3gpp"]
        }
        "text" => return !subtype.is_empty(),
        "application" => &["pdf"],
        _ => &[],
    };
    subtypes.contains(&subtype)
}

/// `FunctionCall`. `partial_args` and `will_continue`: "This field is not supported in Gemini API."
fn check_call(call: &Map<String, Value>) -> Check {
    fields(call, &["name"], &["id", "args"])?;
    check_name(call)?;
    check_id(call)?;
    call.get("args").map_or(Ok(()), |args| object(args).at("args").map(drop))
}

/// `FunctionDeclaration.name`: "Must start with a letter or an underscore. Must be a-z, A-Z, 0-9, or contain underscores, dots,
/// colons and dashes, with a maximum length of 128."
fn check_name(data: &Map<String, Value>) -> Check {
    let name = string(data, "name")?;
    identifier(name, "_.:-", 128).at("name")?;
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    demand(starts_well, "must start with a letter or an underscore").at("name")
}

fn check_id(data: &Map<String, Value>) -> Check {
    if data.contains_key("id") { nonempty(data, "id").map(drop) } else { Ok(()) }
}

/// `FunctionResponse`: `name` and `response` are required. `will_continue` belongs to non-blocking functions, which only the Live
/// API has, and "is not supported in Vertex AI".
fn check_response(data: &Map<String, Value>) -> Check {
    fields(data, &["name", "response"], &["id", "parts", "scheduling"])?;
    check_name(data)?;
    check_id(data)?;
    object(&data["response"]).at("response")?;
    if data.contains_key("scheduling") {
        one_of(string(data, "scheduling")?, &["SILENT", "WHEN_IDLE", "INTERRUPT"]).at("scheduling")?;
    }
    let parts = data.get("parts").map_or(Ok(&[][..]), list).at("parts")?;
    parts.iter().enumerate().try_for_each(|(index, part)| check_response_part(part).at_index("parts", index))
}

/// `FunctionResponsePart`. Page "Function calling", section "Multimodal function responses": PNG, JPEG, WebP, PDF and plain text.
fn check_response_part(part: &Value) -> Check {
    let part = object(part)?;
    let is_supported =
        |mime: &str| matches!(mime, "image/png" | "image/jpeg" | "image/webp" | "application/pdf" | "text/plain");
    if part.contains_key("fileData") {
        fields(part, &["fileData"], &[])?;
        let file = object(&part["fileData"]).at("fileData")?;
        fields(file, &["fileUri", "mimeType"], &["displayName"]).at("fileData")?;
        return demand(is_supported(string(file, "mimeType")?), "is not supported").at("fileData.mimeType");
    }
    fields(part, &["inlineData"], &[])?;
    object(&part["inlineData"]).and_then(|data| check_inline(data, is_supported)).at("inlineData")
}

/// Checks the signatures of the function calls in the current turn, which begins with the last user content that is not only
/// function responses: the first `functionCall` of each of its model contents has a `thoughtSignature`.
///
/// Page "Thought signatures": "If you omit a `thought_signature` for the first `functionCall` part in any step of the current turn,
/// the request fails with a 400 error." Only Gemini 3 and later models do.
pub(super) fn check_signatures(history: &[Value]) -> Check {
    let parts = |content: &'_ Value| content["parts"].as_array().cloned().unwrap_or_default();
    let begins_turn = |content: &Value| {
        content["role"] != "model" && parts(content).iter().any(|part| part.get("functionResponse").is_none())
    };
    let turn = history.iter().rposition(begins_turn).unwrap_or_default();
    for (index, content) in history.iter().enumerate().skip(turn) {
        let first_call = parts(content).into_iter().find(|part| part.get("functionCall").is_some());
        let is_signed = first_call.is_none_or(|call| call.get("thoughtSignature").is_some());
        demand(is_signed, "the first functionCall must have a thoughtSignature").at_index("contents", index)?;
    }
    Ok(())
}
