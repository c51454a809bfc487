//! The short text of `-h`: the settings that most operators need. `--help` lists all settings.

use std::ffi::OsString;

/// The environment variables of these settings, each with a short description.
const SETTINGS: &[(&str, &str)] = &[
    ("ACONTEXTD_DATA_DIR", "directory for all data that is not in an external database or bucket"),
    ("ACONTEXTD_HOST", "address to listen on; 127.0.0.1 by default"),
    ("API_EXPORT_PORT", "port to listen on; 8029 by default"),
    ("APP_EXTERNALURL", "base URL of public links"),
    ("ROOT_API_BEARER_TOKEN", "API key of the default project, without sk-ac-"),
    ("ROOT_SECRET_PEPPER", "secret from which keys are derived; it must never change"),
    ("ADMIN_API_TOKEN", "token for /admin/v1 and /metrics"),
    ("DATABASE_URL", "external Postgres, instead of the embedded one"),
    ("S3_BUCKET", "S3 bucket for objects, instead of the data directory"),
    ("S3_ENDPOINT", "URL of the S3 endpoint; AWS by default"),
    ("LLM_API_KEY", "API key for the language model; messages stay pending without a model"),
    ("LLM_SDK", "API of the language model: openai (default) or anthropic"),
    ("LLM_BASE_URL", "URL of a server with this API, such as http://localhost:11434/v1 for Ollama"),
    ("LLM_SIMPLE_MODEL", "name of the language model; gpt-4.1 for OpenAI by default"),
    ("LOG_LEVEL", "log filter; info by default"),
];

/// Returns `true` if the first help flag in `args` is `-h`.
pub(super) fn requests_short_help(args: &[OsString]) -> bool {
    args.iter().skip(1).find(|arg| *arg == "-h" || *arg == "--help").is_some_and(|arg| arg == "-h")
}

/// Returns the text of `-h`. `flags` are pairs of the environment variable and the flag of each setting.
pub(super) fn short_text(flags: &[(&str, &str)]) -> String {
    let lines = SETTINGS.iter().map(|(name, description)| {
        let flag = flags.iter().find(|(env, _)| env == name).map_or("", |(_, flag)| flag);
        format!("  {flag:<16} {name:<22} {description}\n")
    });
    let lines: String = lines.collect();
    format!(
        "Data and memory backend for AI agents, wire-compatible with Acontext.\n\nUsage: acontextd [OPTIONS] \
         [COMMAND]\n\nThe most important settings, as flags and as environment variables:\n{lines}\n--help lists all \
         settings and commands.\n"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use clap::CommandFactory;

    use crate::config::{Config, EarlyExit};

    fn help(args: &[&str]) -> String {
        let environment = HashMap::from([("ADMIN_API_TOKEN".into(), "0123456789".into())]);
        match Config::from_args_and_env([&["acontextd"], args].concat(), &environment) {
            Err(EarlyExit::Help(text)) => text,
            _ => panic!("{args:?} print no help text"),
        }
    }

    #[test]
    fn the_short_help_lists_few_settings_with_their_flags() {
        let text = help(&["-h"]);
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("  ")).collect();
        assert_eq!(lines.len(), 15, "{text}");
        let command = Config::command();
        for line in lines {
            let mut words = line.split_whitespace();
            let (flag, name) = (words.next().unwrap(), words.next().unwrap());
            let setting = command.get_arguments().find(|setting| setting.get_env().is_some_and(|env| env == name));
            assert_eq!(setting.and_then(|setting| setting.get_long()), flag.strip_prefix("--"), "{line}");
            assert!(line.len() <= 120, "{line}");
        }
        assert!(text.contains("--help lists all settings") && !text.contains("0123456789"), "{text}");
    }

    #[test]
    fn the_first_help_flag_determines_the_text() {
        for args in [&["--help"][..], &["--help", "-h"], &["--port", "1", "--help"], &["health", "--help"]] {
            assert!(help(args).contains("ACONTEXTD_GREP_TIMEOUT"), "{args:?}");
        }
        for args in [&["-h"][..], &["-h", "--help"], &["--port", "1", "-h"]] {
            assert!(!help(args).contains("ACONTEXTD_GREP_TIMEOUT"), "{args:?}");
        }
    }
}
