use super::*;

fn provider(path: &str, key_setting: Option<&'static str>) -> ProviderInfo {
    ProviderInfo {
        host: "llm.example.org".into(),
        path: path.into(),
        model: "gpt-test".into(),
        key_setting,
        secrets: vec!["sk-0123456789".into(), "a".into()],
    }
}

fn failure(status: u16, body: &str) -> Failure {
    provider("/v1/chat/completions", Some("LLM_API_KEY")).failure_for(status, body.as_bytes())
}

#[test]
fn statuses_determine_whether_another_attempt_may_succeed() {
    for status in [408, 409, 429, 500, 502, 503, 529] {
        let failure = failure(status, r#"{"error": {"message": "busy"}}"#);
        assert!(failure.is_transient && matches!(failure.error, LlmError::Unavailable(_)), "{status}");
        assert_eq!(failure.error.to_string(), format!("llm.example.org returned {status}: busy"));
    }
    for status in [400, 415, 422] {
        let failure = failure(status, r#"{"error": {"message": "bad"}}"#);
        assert!(!failure.is_transient && matches!(failure.error, LlmError::Rejected(_)), "{status}");
    }
}

#[test]
fn wrong_settings_are_named() {
    let no_model = r#"{"error": "model 'gpt-test' not found"}"#;
    for (status, body, setting) in [
        (401, "{}", "LLM_API_KEY"),
        (402, "{}", "LLM_API_KEY"),
        (403, "{}", "LLM_SIMPLE_MODEL"),
        (404, no_model, "LLM_SIMPLE_MODEL"),
        (404, r#"{"error": {"message": "unknown", "code": "model_not_found"}}"#, "LLM_SIMPLE_MODEL"),
        (404, "404 page not found", "LLM_BASE_URL"),
        (404, r#"{"detail": "Not Found"}"#, "LLM_BASE_URL"),
        (307, "", "LLM_BASE_URL"),
        (405, "", "LLM_BASE_URL"),
    ] {
        let Failure { error, is_transient, .. } = failure(status, body);
        assert!(!is_transient && matches!(error, LlmError::Misconfigured(_)), "{status} {body}");
        assert!(error.to_string().contains(setting), "{error}");
    }
    let without_v1 = provider("/chat/completions", None);
    assert!(without_v1.failure_for(404, b"").error.to_string().contains("usually ends with /v1"));
    assert!(without_v1.failure_for(401, b"").error.to_string().ends_with("(401): set LLM_API_KEY"));
    // The key is in a header.
    let with_header = provider("/v1/chat/completions", Some("LLM_OPENAI_DEFAULT_HEADER"));
    for status in [401, 402, 403] {
        let error = with_header.failure_for(status, b"").error.to_string();
        assert!(error.contains("LLM_OPENAI_DEFAULT_HEADER") && !error.contains("LLM_API_KEY"), "{error}");
    }
}

#[test]
fn an_account_without_credit_is_a_wrong_setting() {
    for (status, body) in [
        (
            429,
            r#"{"error": {"message": "You exceeded your current quota.", "type": "insufficient_quota",
                "code": "insufficient_quota"}}"#,
        ),
        (
            400,
            r#"{"type": "error", "error": {"type": "invalid_request_error",
                "message": "Your credit balance is too low to access the Anthropic API."}}"#,
        ),
    ] {
        let Failure { error, is_transient, .. } = failure(status, body);
        assert!(!is_transient && matches!(error, LlmError::Misconfigured(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("({status}: ")) && text.contains("check the balance"), "{text}");
    }
}

#[test]
fn a_context_that_is_too_long_is_recognized_for_each_provider() {
    for (provider, status, body) in [
        ("OpenAI", 400, r#"{"error": {"message": "too long", "code": "context_length_exceeded"}}"#),
        ("OpenAI", 400, r#"{"error": {"message": "This model's maximum context length is 8192 tokens."}}"#),
        (
            "Anthropic",
            400,
            r#"{"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 5 > 4"}}"#,
        ),
        ("Anthropic", 413, r#"{"type": "error", "error": {"type": "request_too_large", "message": "x"}}"#),
        (
            "llama.cpp",
            400,
            r#"{"error": {"code": 400, "type": "exceed_context_size_error",
                "message": "the request exceeds the available context size, try to increase it"}}"#,
        ),
        ("vLLM", 400, r#"{"object": "error", "message": "This model's maximum context length is 8 tokens."}"#),
        ("a proxy", 413, "<html>413 Request Entity Too Large</html>"),
        (
            "OpenAI, a limit per minute",
            429,
            r#"{"error": {"message": "Request too large for gpt-4.1 on tokens per min: Limit 30000, Requested 47000.",
                "type": "tokens", "code": "rate_limit_exceeded"}}"#,
        ),
    ] {
        let Failure { error, is_transient, .. } = failure(status, body);
        assert!(!is_transient && matches!(error, LlmError::ContextTooLong(_)), "{provider}: {error}");
    }
    let other = failure(400, r#"{"error": {"message": "max_tokens is too large: 9"}}"#).error;
    assert!(matches!(other, LlmError::Rejected(_)), "{other}");
}

#[test]
fn messages_are_cut_and_contain_no_secrets_or_control_characters() {
    let text = |message: &str| {
        let body = serde_json::json!({"error": {"message": message}}).to_string();
        failure(400, &body).error.to_string()
    };
    let error = text("key sk-0123456789 and sk-01***89\u{1b}[31m\r\nnext a");
    assert!(error.contains("key [secret] and [secret] [31m next a"), "{error}");
    let error = text("\u{202e}left\u{2066} and\u{200f} right");
    assert!(error.contains("left and right"), "{error}");
    let error = text(&"é ".repeat(400));
    assert!(error.contains('…') && error.chars().count() < MAX_MESSAGE_CHARS + 60, "{error}");
}

#[test]
fn short_secrets_are_replaced_where_they_are_words() {
    assert_eq!(replace_word("key=abc: abc, 'abc' abcd xabc abc", "abc", "*"), "key=*: *, '*' abcd xabc *");
    assert_eq!(replace_word("é abcé", "abc", "*"), "é abcé");
}

#[test]
fn errors_in_bodies_have_several_formats() {
    let read = |body: &str| ReportedError::from_body(&json::parse(body.as_bytes()).unwrap());
    assert_eq!(read(r#"{"error": "no"}"#).message, "no");
    assert_eq!(read(r#"{"message": "no", "code": 400}"#).status, Some(400));
    let openrouter =
        read(r#"{"error": {"code": 429, "message": "Provider returned error", "metadata": {"raw": "slow"}}}"#);
    assert_eq!((openrouter.message.as_str(), openrouter.status), ("Provider returned error (slow)", Some(429)));
    assert_eq!(read(r#"{"error": {"code": "503", "message": null}}"#).status, Some(503));
    assert_eq!(read(r#"{"detail": [{"msg": "bad"}]}"#).message, r#"[{"msg":"bad"}]"#);
    assert_eq!(read("[]"), ReportedError::default());
}
