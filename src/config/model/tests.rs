//! Tests of the settings of the language model.

use secrecy::ExposeSecret;

use crate::config::{Config, EarlyExit, Model, Provider};

fn load(settings: &[(&str, &str)]) -> Result<Model, String> {
    let environment = settings.iter().map(|(name, value)| (name.into(), value.into())).collect();
    match Config::from_args_and_env(["acontextd"], &environment) {
        Ok(config) => Ok(config.model),
        Err(EarlyExit::Error(message)) => Err(message),
        Err(EarlyExit::Help(_)) => panic!("{settings:?} print a help text"),
    }
}

fn loaded(settings: &[(&str, &str)]) -> Model {
    load(settings).unwrap_or_else(|message| panic!("{settings:?} were rejected: {message}"))
}

const KEY: (&str, &str) = ("LLM_API_KEY", "sk-0123456789");
const URL: (&str, &str) = ("LLM_BASE_URL", "http://localhost:11434/v1");
const MODEL: (&str, &str) = ("LLM_SIMPLE_MODEL", "qwen3");
const ANTHROPIC: (&str, &str) = ("LLM_SDK", "anthropic");
const KWARGS: (&str, &str) = ("LLM_OPENAI_COMPLETION_KWARGS", r#"{"temperature": 0}"#);

#[test]
fn the_provider_is_openai_if_a_key_or_a_base_url_is_set() {
    assert_eq!(loaded(&[]).provider(), Provider::None);
    assert_eq!(loaded(&[KEY]).provider(), Provider::OpenAi);
    assert_eq!(loaded(&[URL, MODEL]).provider(), Provider::OpenAi);
    assert_eq!(loaded(&[("LLM_SDK", "none"), KEY, URL]).provider(), Provider::None);
    assert_eq!(loaded(&[("LLM_SDK", "Mock"), KEY]).provider(), Provider::Mock);
    assert_eq!(loaded(&[ANTHROPIC, KEY, MODEL]).provider(), Provider::Anthropic);
}

#[test]
fn an_empty_base_url_is_that_of_the_provider() {
    let openai = loaded(&[KEY, ("LLM_BASE_URL", "")]);
    assert_eq!(openai.base_url().unwrap().as_str(), "https://api.openai.com/v1");
    assert!(openai.uses_host_of_provider());
    let anthropic = loaded(&[ANTHROPIC, KEY, MODEL, ("LLM_BASE_URL", "")]);
    assert_eq!(anthropic.base_url().unwrap().as_str(), "https://api.anthropic.com/");
    assert!(!loaded(&[URL, MODEL]).uses_host_of_provider());
    assert!(loaded(&[KEY, ("LLM_BASE_URL", "https://api.openai.com/v1/")]).uses_host_of_provider());
    assert!(loaded(&[]).base_url().is_none());
}

#[test]
fn only_openai_itself_has_a_default_model() {
    assert_eq!(loaded(&[KEY]).name(), Some("gpt-4.1"));
    assert_eq!(loaded(&[KEY, URL, MODEL]).name(), Some("qwen3"));
    assert!(load(&[URL]).unwrap_err().contains("LLM_SIMPLE_MODEL is not set"));
    assert!(load(&[ANTHROPIC, KEY]).unwrap_err().contains("LLM_SIMPLE_MODEL is not set"));
    assert_eq!(loaded(&[("LLM_SDK", "mock"), MODEL]).name(), None);
}

#[test]
fn providers_themselves_require_a_key() {
    assert!(load(&[("LLM_SDK", "openai")]).unwrap_err().contains("LLM_API_KEY is not set"));
    assert!(load(&[ANTHROPIC, MODEL]).unwrap_err().contains("LLM_API_KEY is not set"));
    loaded(&[ANTHROPIC, MODEL, URL]);
    let header = ("LLM_OPENAI_DEFAULT_HEADER", r#"{"Authorization": "Bearer 1"}"#);
    loaded(&[("LLM_SDK", "openai"), header]);
    assert!(load(&[KEY, header]).unwrap_err().contains("LLM_API_KEY has no effect"));
    assert_eq!(loaded(&[("LLM_SDK", "openai"), header]).key_setting(), Some("LLM_OPENAI_DEFAULT_HEADER"));
    let azure = ("LLM_OPENAI_DEFAULT_HEADER", r#"{"Api-Key": "1"}"#);
    assert_eq!(loaded(&[URL, MODEL, azure]).key_setting(), Some("LLM_OPENAI_DEFAULT_HEADER"));
    assert_eq!(loaded(&[KEY]).key_setting(), Some("LLM_API_KEY"));
    let title = ("LLM_OPENAI_DEFAULT_HEADER", r#"{"X-Title": "planner"}"#);
    assert_eq!(loaded(&[URL, MODEL, title]).key_setting(), None);
}

#[test]
fn settings_without_effect_are_rejected_or_listed() {
    for unused in [MODEL, KWARGS] {
        let message = load(&[unused]).unwrap_err();
        assert!(message.starts_with(unused.0) && message.contains("set LLM_API_KEY"), "{message}");
    }
    let message = load(&[ANTHROPIC, KEY, MODEL, KWARGS]).unwrap_err();
    assert!(message.starts_with("LLM_OPENAI_COMPLETION_KWARGS") && message.contains("no effect"), "{message}");
    let unused = loaded(&[("LLM_SDK", "none"), KEY, KWARGS]).unused_settings();
    assert_eq!(unused, ["LLM_API_KEY", "LLM_OPENAI_COMPLETION_KWARGS"]);
    assert!(loaded(&[KEY, KWARGS]).unused_settings().is_empty());
}

#[test]
fn invalid_values_are_rejected_with_a_hint_and_without_secrets() {
    for (name, value, hint) in [
        ("LLM_BASE_URL", "localhost:11434/v1", "begins with http://"),
        ("LLM_BASE_URL", "http://", "begins with http://"),
        ("LLM_BASE_URL", "https://me:hunter2@example.org", "LLM_API_KEY"),
        ("LLM_BASE_URL", "https://example.org/v1?key=hunter2", "LLM_OPENAI_DEFAULT_QUERY"),
        ("LLM_API_KEY", "hunter2 two", "without spaces"),
        ("LLM_RESPONSE_TIMEOUT", "0", "10s"),
        ("LLM_RESPONSE_TIMEOUT", "601s", "at most 600s"),
        ("ACONTEXTD_LLM_MAX_TOKENS", "0", "4096"),
        ("LLM_OPENAI_DEFAULT_QUERY", "hunter2", "JSON object"),
        ("LLM_OPENAI_DEFAULT_QUERY", r#"{"a": 1}"#, "a is not a string"),
        ("LLM_OPENAI_DEFAULT_HEADER", r#"{"a b": "hunter2"}"#, "header name"),
        ("LLM_OPENAI_DEFAULT_HEADER", r#"{"a": "hunter2\n"}"#, "control characters"),
        ("LLM_OPENAI_DEFAULT_HEADER", r#"{"Content-Length": "1"}"#, "the server sets itself"),
        ("LLM_OPENAI_COMPLETION_KWARGS", "[]", "JSON object"),
        ("LLM_OPENAI_COMPLETION_KWARGS", "{hunter2", "JSON object"),
        ("LLM_OPENAI_COMPLETION_KWARGS", r#"{"model": "x"}"#, "set LLM_SIMPLE_MODEL"),
        ("LLM_OPENAI_COMPLETION_KWARGS", r#"{"messages": []}"#, "must not contain messages"),
        ("LLM_OPENAI_COMPLETION_KWARGS", r#"{"tools": []}"#, "must not contain tools"),
        ("LLM_OPENAI_COMPLETION_KWARGS", r#"{"stream": true}"#, "must not contain stream"),
        ("LLM_OPENAI_COMPLETION_KWARGS", r#"{"extra_body": {}}"#, "move its fields"),
    ] {
        let message = load(&[KEY, MODEL, (name, value)]).unwrap_err();
        assert!(message.contains(name) && message.contains(hint) && !message.contains("hunter2"), "{message}");
    }
}

#[test]
fn debug_output_contains_no_secrets() {
    let secrets = [
        ("LLM_API_KEY", "hunter2"),
        ("LLM_OPENAI_DEFAULT_HEADER", r#"{"x-key": "hunter2"}"#),
        ("LLM_OPENAI_DEFAULT_QUERY", r#"{"key": "hunter2"}"#),
    ];
    let model = loaded(&secrets);
    assert!(!format!("{model:?}").contains("hunter2"), "{model:?}");
    assert_eq!(model.api_key.as_ref().unwrap().expose_secret(), "hunter2");
    assert_eq!(model.openai_query().collect::<Vec<_>>(), [("key", "hunter2")]);
}
