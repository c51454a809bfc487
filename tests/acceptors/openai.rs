//! `OpenAI`'s chat completions. Types are those of `openai.types.chat`.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{
    At, Check, base64, demand, fields, identifier, list, nonempty, object, one_of, split_data_url, string, violation,
    web_url,
};

/// The results that must follow before any other message.
enum Awaited {
    Nothing,
    /// The results of these calls. API: "An assistant message with `tool_calls` must be followed by tool messages responding to
    /// each `tool_call_id`."
    Tools(HashSet<String>),
    /// The result of the deprecated `function_call` of this function.
    Function(String),
}

pub(super) fn check(history: &[Value]) -> Check {
    let mut awaited = Awaited::Nothing;
    for (index, message) in history.iter().enumerate() {
        awaited = check_message(message, awaited).at_index("messages", index)?;
    }
    check_nothing_awaited(&awaited).at_index("messages", history.len())
}

fn check_nothing_awaited(awaited: &Awaited) -> Check {
    match awaited {
        Awaited::Nothing => Ok(()),
        Awaited::Tools(ids) => {
            let mut ids: Vec<_> = ids.iter().map(String::as_str).collect();
            ids.sort_unstable();
            violation(format_args!("must be the tool message with the result of {}", ids.join(", ")))
        }
        Awaited::Function(name) => violation(format_args!("must be the function message with the result of {name}")),
    }
}

/// Checks a message and returns the results that are awaited after it.
fn check_message(message: &Value, awaited: Awaited) -> Result<Awaited, String> {
    let message = object(message)?;
    let role = string(message, "role")?;
    if !matches!(role, "tool" | "function") {
        check_nothing_awaited(&awaited)?;
    }
    // `ChatCompletionMessageParam`: the union of the messages of these six roles.
    match role {
        // `ChatCompletionSystemMessageParam`, `ChatCompletionDeveloperMessageParam`.
        "system" | "developer" => {
            fields(message, &["role", "content"], &["name"])?;
            check_name(message)?;
            check_content(&message["content"], check_text_part, false).at("content")?;
            Ok(Awaited::Nothing)
        }
        // `ChatCompletionUserMessageParam`.
        "user" => {
            fields(message, &["role", "content"], &["name"])?;
            check_name(message)?;
            check_content(&message["content"], check_user_part, false).at("content")?;
            Ok(Awaited::Nothing)
        }
        "assistant" => check_assistant(message),
        "tool" => check_tool(message, awaited),
        "function" => check_function(message, &awaited),
        _ => violation("must be system, developer, user, assistant, tool or function").at("role"),
    }
}

/// API: the name of a participant matches `^[^\s<|\\/>]+$` and has at most 64 characters.
fn check_name(message: &Map<String, Value>) -> Check {
    if !message.contains_key("name") {
        return Ok(());
    }
    let name = string(message, "name")?;
    let is_valid = |character: char| !character.is_whitespace() && !"<|\\/>".contains(character);
    demand(!name.is_empty() && name.chars().all(is_valid), r"must match ^[^\s<|\\/>]+$").at("name")?;
    demand(name.chars().count() <= 64, "must not be longer than 64 characters").at("name")
}

/// Checks a content: a string or a list of parts. An empty list is invalid for the API ("Expected an array with minimum length
/// 1"). An empty string is invalid where it would be all that the message says.
fn check_content(content: &Value, check_part: impl Fn(&Map<String, Value>) -> Check, may_be_empty: bool) -> Check {
    match content {
        Value::String(text) => demand(may_be_empty || !text.is_empty(), "must not be empty"),
        Value::Array(parts) => {
            demand(!parts.is_empty(), "must have at least one part")?;
            parts
                .iter()
                .enumerate()
                .try_for_each(|(index, part)| object(part).and_then(&check_part).at(format_args!("[{index}]")))
        }
        _ => violation("must be a string or a list"),
    }
}

/// `ChatCompletionContentPartTextParam`.
fn check_text_part(part: &Map<String, Value>) -> Check {
    one_of(string(part, "type")?, &["text"]).at("type")?;
    fields(part, &["type", "text"], &["prompt_cache_breakpoint"])?;
    string(part, "text").map(drop)
}

/// `ChatCompletionAssistantMessageParam.content`: texts and `ChatCompletionContentPartRefusalParam`.
fn check_assistant_part(part: &Map<String, Value>) -> Check {
    if string(part, "type")? != "refusal" {
        return check_text_part(part);
    }
    fields(part, &["type", "refusal"], &[])?;
    string(part, "refusal").map(drop)
}

/// `ChatCompletionContentPartParam`.
fn check_user_part(part: &Map<String, Value>) -> Check {
    let kind = string(part, "type")?;
    if kind == "text" {
        return check_text_part(part);
    }
    one_of(kind, &["image_url", "input_audio", "file"]).at("type")?;
    fields(part, &["type", kind], &["prompt_cache_breakpoint"])?;
    let inner = object(&part[kind]).at(kind)?;
    let check = match kind {
        "image_url" => check_image(inner),
        "input_audio" => check_audio(inner),
        _ => check_file(inner),
    };
    check.at(kind)
}

/// `chat_completion_content_part_image_param.ImageURL`; guide "Images and vision": PNG, JPEG, WEBP and non-animated GIF.
fn check_image(image: &Map<String, Value>) -> Check {
    fields(image, &["url"], &["detail"])?;
    if image.contains_key("detail") {
        one_of(string(image, "detail")?, &["auto", "low", "high", "original"]).at("detail")?;
    }
    let url = string(image, "url")?;
    match split_data_url(url) {
        Some((mime, data)) => {
            one_of(mime, &["image/png", "image/jpeg", "image/webp", "image/gif"]).at("url")?;
            base64(data).at("url")
        }
        None => web_url(url).at("url"),
    }
}

/// `chat_completion_content_part_input_audio_param.InputAudio`.
fn check_audio(audio: &Map<String, Value>) -> Check {
    fields(audio, &["data", "format"], &[])?;
    base64(string(audio, "data")?).at("data")?;
    one_of(string(audio, "format")?, &["wav", "mp3"]).at("format")
}

/// `chat_completion_content_part_param.FileFile`: the content in base64, which the guide "File inputs" sends as a `data:` URL, or
/// the id of an uploaded file.
fn check_file(file: &Map<String, Value>) -> Check {
    fields(file, &[], &["file_data", "file_id", "filename"])?;
    if file.contains_key("filename") {
        nonempty(file, "filename")?;
    }
    if file.contains_key("file_id") {
        nonempty(file, "file_id")?;
        return demand(!file.contains_key("file_data"), "must not be set with file_id").at("file_data");
    }
    let data = string(file, "file_data")?;
    let (mime, content) = split_data_url(data).unwrap_or(("application/pdf", data));
    demand(mime.contains('/'), "must have a MIME type").at("file_data")?;
    base64(content).at("file_data")
}

/// `ChatCompletionAssistantMessageParam`.
fn check_assistant(message: &Map<String, Value>) -> Result<Awaited, String> {
    let optional =
        ["content?", "audio?", "function_call?", "refusal?", "name", "tool_calls", "annotations", "extra_content"];
    fields(message, &["role"], &optional)?;
    check_annotations(message)?;
    check_name(message)?;
    check_extra_content(message)?;
    let is_set = |key: &str| message.get(key).is_some_and(|value| !value.is_null());
    let has_calls = is_set("tool_calls") || is_set("function_call");
    // "Required unless `tool_calls` or `function_call` is specified." An answer as audio or refusal has no content either.
    let may_be_empty = has_calls || is_set("audio") || is_set("refusal");
    match message.get("content").filter(|content| !content.is_null()) {
        Some(content) => check_content(content, check_assistant_part, may_be_empty).at("content")?,
        None => demand(may_be_empty, "is required without calls").at("content")?,
    }
    if is_set("refusal") {
        string(message, "refusal")?;
    }
    if let Some(audio) = message.get("audio").filter(|audio| !audio.is_null()) {
        object(audio).and_then(|audio| fields(audio, &["id"], &[]).and_then(|()| nonempty(audio, "id"))).at("audio")?;
    }
    if let Some(calls) = message.get("tool_calls") {
        demand(!is_set("function_call"), "must not be set with tool_calls").at("function_call")?;
        return check_calls(calls).at("tool_calls").map(Awaited::Tools);
    }
    if let Some(call) = message.get("function_call").filter(|call| !call.is_null()) {
        // `chat_completion_assistant_message_param.FunctionCall`.
        return object(call).and_then(check_function_call).at("function_call").map(Awaited::Function);
    }
    Ok(Awaited::Nothing)
}

/// Checks the annotations of a response. The type of a request does not have them, but the guide "Function calling" appends the
/// message of the response to the history, and the API accepts it: `ChatCompletionMessage.annotations`,
/// `chat_completion_message.Annotation`.
fn check_annotations(message: &Map<String, Value>) -> Check {
    let annotations = message.get("annotations").map_or(Ok(&[][..]), list).at("annotations")?;
    let check = |annotation: &Map<String, Value>| {
        one_of(string(annotation, "type")?, &["url_citation"]).at("type")?;
        fields(annotation, &["type", "url_citation"], &[])?;
        let citation = object(&annotation["url_citation"]).at("url_citation")?;
        fields(citation, &["start_index", "end_index", "title", "url"], &[]).at("url_citation")
    };
    let check = |(index, entry)| object(entry).and_then(check).at_index("annotations", index);
    annotations.iter().enumerate().try_for_each(check)
}

/// Checks the calls of a turn and returns their ids.
fn check_calls(calls: &Value) -> Result<HashSet<String>, String> {
    let mut ids = HashSet::new();
    let calls = list(calls)?;
    // API: "[] is too short - 'messages.1.tool_calls'", and at most 128 calls.
    demand((1..=128).contains(&calls.len()), "must have 1 to 128 calls")?;
    for (index, call) in calls.iter().enumerate() {
        let id = object(call).and_then(check_call).at(format_args!("[{index}]"))?;
        // Each result names its call by the id only.
        demand(ids.insert(id), "must be unique in its message").at("id").at(format_args!("[{index}]"))?;
    }
    Ok(ids)
}

/// Google's reference of its OpenAI-compatible API, page "Thought signatures": a message or a call may have the signature of Gemini.
fn check_extra_content(object_with_signature: &Map<String, Value>) -> Check {
    let Some(extra) = object_with_signature.get("extra_content") else { return Ok(()) };
    let google = object(extra).and_then(|extra| {
        fields(extra, &["google"], &[])?;
        object(&extra["google"])
    });
    let google = google.at("extra_content")?;
    fields(google, &["thought_signature"], &[]).at("extra_content.google")?;
    base64(string(google, "thought_signature")?).at("extra_content.google.thought_signature")
}

/// `ChatCompletionMessageToolCallUnionParam`. Returns the id.
fn check_call(call: &Map<String, Value>) -> Result<String, String> {
    let kind = string(call, "type")?;
    one_of(kind, &["function", "custom"]).at("type")?;
    fields(call, &["id", "type", kind], &["extra_content"])?;
    check_extra_content(call)?;
    let inner = object(&call[kind]).at(kind)?;
    if kind == "function" {
        check_function_call(inner).at(kind)?;
    } else {
        // `chat_completion_message_custom_tool_call_param.Custom`: the input is any text.
        fields(inner, &["name", "input"], &[]).at(kind)?;
        string(inner, "input").at(kind)?;
        check_function_name(inner).at(kind)?;
    }
    let id = string(call, "id")?;
    check_id(id).at("id")?;
    Ok(id.to_owned())
}

/// API: "Invalid `messages[2].tool_calls[0].id`: string too long. Expected a string with maximum length 40". Several models enforce
/// it.
fn check_id(id: &str) -> Check {
    demand(!id.is_empty(), "must not be empty")?;
    demand(id.chars().count() <= 40, "must not be longer than 40 characters")
}

/// `chat_completion_message_function_tool_call_param.Function`. Returns the name.
fn check_function_call(function: &Map<String, Value>) -> Result<String, String> {
    fields(function, &["name", "arguments"], &[])?;
    check_function_name(function)?;
    // "The arguments to call the function with, as generated by the model in JSON format." The parameters of a function are a JSON
    // Schema of the type `object`.
    let arguments = serde_json::from_str::<Value>(string(function, "arguments")?);
    demand(arguments.is_ok_and(|arguments| arguments.is_object()), "must be the JSON text of an object")
        .at("arguments")?;
    Ok(string(function, "name")?.to_owned())
}

/// `openai.types.shared_params.FunctionDefinition.name`.
fn check_function_name(function: &Map<String, Value>) -> Check {
    identifier(string(function, "name")?, "_-", 64).at("name")
}

/// `ChatCompletionToolMessageParam`. API: "messages with role `tool` must be a response to a preceding message with `tool_calls`".
fn check_tool(message: &Map<String, Value>, awaited: Awaited) -> Result<Awaited, String> {
    fields(message, &["role", "content", "tool_call_id"], &[])?;
    // A tool may return nothing.
    check_content(&message["content"], check_text_part, true).at("content")?;
    let id = string(message, "tool_call_id")?;
    check_id(id).at("tool_call_id")?;
    let mut ids = if let Awaited::Tools(ids) = awaited { ids } else { HashSet::new() };
    demand(ids.remove(id), "must be the id of a call of the preceding assistant message, once").at("tool_call_id")?;
    Ok(if ids.is_empty() { Awaited::Nothing } else { Awaited::Tools(ids) })
}

/// `ChatCompletionFunctionMessageParam`.
fn check_function(message: &Map<String, Value>, awaited: &Awaited) -> Result<Awaited, String> {
    fields(message, &["role", "name"], &["content?"])?;
    demand(message.contains_key("content"), "is required").at("content")?;
    if !message["content"].is_null() {
        string(message, "content")?;
    }
    let name = string(message, "name")?;
    match awaited {
        Awaited::Function(function) if function == name => Ok(Awaited::Nothing),
        _ => violation("must be the name in the function_call of the preceding assistant message").at("name"),
    }
}
