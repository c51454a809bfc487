//! Fields of the providers' types that another format can express.

use super::*;
use crate::conversation::tokens::count_parts;

const OPENAI: Format = Format::OpenAi;
const ANTHROPIC: Format = Format::Anthropic;
const GEMINI: Format = Format::Gemini;

fn list_of(format: Format) -> &'static str {
    if format == GEMINI { "parts" } else { "content" }
}

/// Builds a message with one block.
fn message(format: Format, role: &str, block: &Value) -> Value {
    json!({"role": role, list_of(format): [block]})
}

/// Converts a block of a user's message and returns the list of the first message.
fn blocks(format: Format, block: &Value, target: Format) -> Value {
    convert(format, message(format, "user", block), target)[0][list_of(target)].clone()
}

/// Returns the text that `OpenAI` gets for a block of a model's message, after checking that it is the one that is counted.
fn text_of(format: Format, block: &Value) -> Value {
    let blob = message(format, if format == GEMINI { "model" } else { "assistant" }, block);
    let content = convert(format, blob.clone(), OPENAI)[0]["content"].take();
    let text = if content == "[no content]" { json!("") } else { content.clone() };
    let counted = count_parts(&to_parts(format, normalize_valid(format, blob).body));
    let expected = count_parts(&to_parts(OPENAI, json!({"role": "user", "content": text})));
    assert_eq!(counted, expected, "{block}");
    content
}

#[test]
fn metadata_of_the_client_is_no_text() {
    let metadata = json!({"title": "private", "inner": {"text": "private"}});
    assert_eq!(text_of(GEMINI, &json!({"partMetadata": metadata})), "[no content]");
    let code = json!({"executableCode": {"code": "1", "language": "PYTHON"}, "partMetadata": metadata});
    assert_eq!(text_of(GEMINI, &code), "1");
}

#[test]
fn nulls_of_a_prompt_cache_breakpoint_are_left_out() {
    let block = |breakpoint: Value, kind: &str, inner: Value| {
        message(OPENAI, "user", &json!({"type": kind, kind: inner, "prompt_cache_breakpoint": breakpoint}))
    };
    for (kind, inner) in [("text", json!("x")), ("file", json!({"file_id": "f"}))] {
        let stored = normalize_valid(OPENAI, block(json!({"mode": "explicit", "ttl": null}), kind, inner.clone())).body;
        assert_eq!(stored, block(json!({"mode": "explicit"}), kind, inner));
    }
}

#[test]
fn a_browser_state_says_its_tabs_and_changes() {
    let state = json!({"type": "browser_state",
        "tabs": [{"tab_id": "1", "title": "News", "url": "https://n", "active": true}, {"tab_id": "2", "title": "",
            "url": ""}],
        "state_changes": [{"type": "tab_opened", "tab_id": "2"}, {"type": "download_failed", "download_id": "d",
            "url": "https://d", "error": "timeout"}]});
    assert_eq!(text_of(ANTHROPIC, &state), "News\nhttps://n\n[tab_opened 2]\n[download_failed d timeout https://d]");
}

#[test]
fn changed_lines_and_error_messages_are_texts() {
    let result = |content: Value| json!({"type": "text_editor_code_execution_tool_result", "content": content});
    let replaced = json!({"type": "text_editor_code_execution_str_replace_result", "lines": ["-a", "+b"]});
    assert_eq!(text_of(ANTHROPIC, &result(replaced)), "-a\n+b");
    let error = json!({"type": "text_editor_code_execution_tool_result_error", "error_code": "file_not_found",
        "error_message": "no such file"});
    assert_eq!(text_of(ANTHROPIC, &result(error)), "file_not_found\nno such file");
}

#[test]
fn calls_and_responses_of_geminis_tools_are_texts() {
    for (part, text) in [
        (
            json!({"toolCall": {"id": "t", "toolType": "URL_CONTEXT", "args": {"url": "https://x"}}}),
            "[tool call URL_CONTEXT: {\"url\":\"https://x\"}]",
        ),
        (json!({"toolCall": {"id": "t", "toolType": "URL_CONTEXT"}}), "[tool call URL_CONTEXT: {}]"),
        (json!({"toolResponse": {"toolType": "URL_CONTEXT", "response": {"a": [42]}}}), "{\"a\":[42]}"),
        (json!({"toolResponse": {"toolType": "URL_CONTEXT", "response": {"output": "42"}}}), "42"),
        (json!({"toolResponse": {"toolType": "URL_CONTEXT", "response": {"error": "down"}}}), "down\n[error]"),
        (json!({"toolResponse": {"toolType": "URL_CONTEXT"}}), "[no content]"),
    ] {
        assert_eq!(text_of(GEMINI, &part), text, "{part}");
    }
}

#[test]
fn failures_are_texts() {
    let code = |return_code: Value| {
        json!({"type": "code_execution_tool_result", "content": {"type": "code_execution_result", "stdout": "out",
            "stderr": "", "return_code": return_code, "content": []}})
    };
    assert_eq!(text_of(ANTHROPIC, &code(json!(0))), "out");
    assert_eq!(text_of(ANTHROPIC, &code(json!(1))), "out\n[return code 1]");
    let result = |outcome: &str| json!({"codeExecutionResult": {"outcome": outcome}});
    assert_eq!(text_of(GEMINI, &result("OUTCOME_FAILED")), "[OUTCOME_FAILED]");
    assert_eq!(text_of(GEMINI, &result("OUTCOME_OK")), "[no content]");
    let failed = json!({"type": "unheard_of", "is_error": true, "content": "no"});
    assert_eq!(text_of(ANTHROPIC, &failed), "no\n[error]");
}

#[test]
fn a_file_with_only_an_id_is_named_by_it() {
    let file = json!({"type": "file", "file": {"file_id": "f1"}});
    assert_eq!(blocks(OPENAI, &file, ANTHROPIC), json!([{"type": "text", "text": "[file f1]"}]));
    assert_eq!(blocks(OPENAI, &file, GEMINI), json!([{"text": "[file f1]"}]));
    let image = json!({"type": "image", "source": {"type": "file", "file_id": "f1"}});
    assert_eq!(blocks(ANTHROPIC, &image, OPENAI), "[image f1]");
    let result = json!({"type": "tool_result", "tool_use_id": "t", "content": [image]});
    let response = json!({"id": "t", "name": "t", "response": {"output": "[image f1]"}});
    assert_eq!(blocks(ANTHROPIC, &result, GEMINI), json!([{"functionResponse": response}]));
    let unheard_of = json!({"type": "unheard_of", "file_id": "f1", "payload": {"text": "words"}});
    assert_eq!(text_of(ANTHROPIC, &unheard_of), "words\n[file f1]");
    let upload = json!({"type": "container_upload", "file_id": "f1"});
    assert_eq!(text_of(ANTHROPIC, &upload), "[file f1]");
}

/// Builds a document of Anthropic with a title and a context.
fn document(source: &Value) -> Value {
    json!({"type": "document", "source": source, "title": "T", "context": "C"})
}

#[test]
fn images_in_a_document_are_media() {
    let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}});
    let content = json!([{"type": "text", "text": "before"}, image, {"type": "text", "text": "after"}]);
    let document = document(&json!({"type": "content", "content": content}));
    let inline = json!({"inlineData": {"mimeType": "image/png", "data": PNG}});
    let parts = json!([{"text": "T\nC"}, {"text": "before"}, inline, {"text": "after"}]);
    assert_eq!(blocks(ANTHROPIC, &document, GEMINI), parts);
    let url = format!("data:image/png;base64,{PNG}");
    assert_eq!(blocks(ANTHROPIC, &document, OPENAI)[2], json!({"type": "image_url", "image_url": {"url": url}}));
    // A message of the assistant cannot contain images.
    let texts = convert(ANTHROPIC, message(ANTHROPIC, "assistant", &document), OPENAI)[0]["content"].take();
    assert_eq!(texts[2]["text"], "[image (image/png)]");

    let result = json!({"type": "tool_result", "tool_use_id": "t", "content": [document]});
    let messages = convert(ANTHROPIC, message(ANTHROPIC, "user", &result), OPENAI);
    let texts: Vec<_> = messages[0]["content"].as_array().unwrap().iter().map(|block| &block["text"]).collect();
    assert_eq!(texts, ["T\nC", "before", "after"]);
    assert_eq!(messages[1]["content"][0]["type"], "image_url");
}

#[test]
fn a_document_of_images_is_returned_through_acontext() {
    let image = json!({"type": "image", "source": {"type": "url", "url": "https://x/c.png"}});
    let blob = message(ANTHROPIC, "user", &document(&json!({"type": "content", "content": [image]})));
    assert_eq!(convert_via_acontext(ANTHROPIC, blob.clone(), ANTHROPIC), json!([blob]));
}

#[test]
fn title_and_context_of_a_document_are_texts() {
    for source in [
        json!({"type": "text", "media_type": "text/plain", "data": "words"}),
        json!({"type": "content", "content": "words"}),
    ] {
        let document = document(&source);
        assert_eq!(blocks(ANTHROPIC, &document, OPENAI), "T\nC\nwords");
        assert_eq!(blocks(ANTHROPIC, &document, GEMINI), json!([{"text": "T\nC\nwords"}]));
        assert_eq!(text_of_document_of_assistant(&document), "T\nC\nwords");
    }
    let pdf = document(&json!({"type": "base64", "media_type": "application/pdf", "data": "AAAA"}));
    let file = json!({"file_data": "data:application/pdf;base64,AAAA", "filename": "T"});
    let blocks_of_openai = json!([{"type": "text", "text": "C"}, {"type": "file", "file": file}]);
    assert_eq!(blocks(ANTHROPIC, &pdf, OPENAI), blocks_of_openai);
    let inline = json!({"mimeType": "application/pdf", "data": "AAAA"});
    assert_eq!(blocks(ANTHROPIC, &pdf, GEMINI), json!([{"text": "C"}, {"inlineData": inline}]));
}

/// Returns the text that `OpenAI` gets for a document in a message of the assistant.
fn text_of_document_of_assistant(document: &Value) -> Value {
    convert(ANTHROPIC, message(ANTHROPIC, "assistant", document), OPENAI)[0]["content"].take()
}

#[test]
fn display_names_are_file_names() {
    let inline = json!({"inlineData": {"mimeType": "application/pdf", "data": "AAAA", "displayName": "a.pdf"}});
    assert_eq!(blocks(GEMINI, &inline, OPENAI)[0]["file"]["filename"], "a.pdf");
    assert_eq!(blocks(GEMINI, &inline, ANTHROPIC)[0]["title"], "a.pdf");
    let file = json!({"fileData": {"mimeType": "image/png", "fileUri": "https://x/1", "displayName": "a.png"}});
    for part in [inline, file] {
        let blob = message(GEMINI, "user", &part);
        assert!(parts_of(GEMINI, blob.clone())[0]["meta"]["filename"].is_string());
        assert_eq!(convert_via_acontext(GEMINI, blob.clone(), GEMINI), json!([blob]));
    }
    let video = json!({"inlineData": {"mimeType": "video/mp4", "data": "AAAA", "displayName": "v"}});
    assert_eq!(blocks(GEMINI, &video, OPENAI), "[video v (video/mp4)]");
}

#[test]
fn a_transcription_replaces_audio_that_cannot_be_sent() {
    let audio = |mime: &str| json!({"inlineData": {"mimeType": mime, "data": "AAAA"}, "audioTranscription": {"text": "spoken"}});
    assert_eq!(blocks(GEMINI, &audio("audio/ogg"), OPENAI), "[audio (audio/ogg)]\nspoken");
    assert_eq!(blocks(GEMINI, &audio("audio/wav"), ANTHROPIC)[0]["text"], "[audio (audio/wav)]\nspoken");
    let sent = blocks(GEMINI, &audio("audio/wav"), OPENAI);
    assert_eq!(sent, json!([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]));
}

#[test]
fn every_value_of_a_part_is_converted() {
    let code = json!({"code": "print(1)", "language": "PYTHON"});
    let part = json!({"text": "so", "executableCode": code});
    let texts = json!([{"type": "text", "text": "so"}, {"type": "text", "text": "print(1)"}]);
    assert_eq!(text_of(GEMINI, &part), texts);
    let back = convert_via_acontext(GEMINI, message(GEMINI, "model", &part), GEMINI);
    assert_eq!(back[0]["parts"], json!([{"text": "so"}, {"executableCode": code}]));
    let thought = json!({"text": "hm", "thought": true, "executableCode": code});
    let messages = convert(GEMINI, message(GEMINI, "model", &thought), OPENAI);
    assert_eq!(messages[0]["content"], "[no content]", "the code is a part of the thought");
}

#[test]
fn a_document_at_a_url_is_a_pdf() {
    let document = json!({"type": "document", "source": {"type": "url", "url": "https://x/paper"}});
    let file = json!({"fileUri": "https://x/paper", "mimeType": "application/pdf"});
    assert_eq!(blocks(ANTHROPIC, &document, GEMINI), json!([{"fileData": file}]));
    let blob = message(ANTHROPIC, "user", &document);
    assert_eq!(convert_via_acontext(ANTHROPIC, blob.clone(), ANTHROPIC), json!([blob]));
}

#[test]
fn a_response_that_will_continue_says_so_to_gemini() {
    let response = json!({"id": "c", "name": "f", "response": {"output": "1"}, "willContinue": true});
    let blob = message(GEMINI, "user", &json!({"functionResponse": response}));
    assert_eq!(convert_via_acontext(GEMINI, blob.clone(), GEMINI), json!([blob]));
}
