//! The limits of requests: sizes, counts and timeouts.

use std::time::Duration;

use clap::Args;

use super::values::{parse_bytes, parse_count, parse_duration, parse_nonzero_duration};

#[derive(Args, Clone, Debug)]
pub struct Limits {
    /// Maximum size of the JSON body of a request that stores a message. The maximum for other requests is four times
    /// ACONTEXTD_META_LIMIT, or 64 KiB for requests without metadata
    #[arg(
        long = "json-limit",
        env = "ACONTEXTD_JSON_LIMIT",
        value_name = "BYTES",
        default_value = "32MiB",
        value_parser = parse_bytes
    )]
    pub max_json_bytes: u64,
    /// Maximum number of values in a JSON body, including nested values
    #[arg(
        long = "json-values",
        env = "ACONTEXTD_JSON_VALUES",
        value_name = "N",
        default_value = "250000",
        value_parser = parse_count
    )]
    pub max_json_values: usize,
    /// Maximum size of an uploaded file, and of each file in a skill archive
    #[arg(
        long = "artifact-limit",
        env = "ARTIFACT_MAX_UPLOAD_SIZE_BYTES",
        value_name = "BYTES",
        default_value = "16777216",
        value_parser = parse_bytes
    )]
    pub max_artifact_bytes: u64,
    /// Maximum size of a command for a sandbox
    #[arg(
        long = "command-limit",
        env = "ACONTEXTD_COMMAND_LIMIT",
        value_name = "BYTES",
        default_value = "1MiB",
        value_parser = parse_bytes
    )]
    pub max_command_bytes: u64,
    /// Maximum size of a text field in a multipart form, except the field payload of a message, for which
    /// ACONTEXTD_JSON_LIMIT applies
    #[arg(
        long = "form-field-limit",
        env = "ACONTEXTD_FORM_FIELD_LIMIT",
        value_name = "BYTES",
        default_value = "1MiB",
        value_parser = parse_bytes
    )]
    pub max_form_field_bytes: u64,
    /// Maximum size of a metadata object (such as meta, configs, or the data of an event) as serialized JSON
    #[arg(
        long = "meta-limit",
        env = "ACONTEXTD_META_LIMIT",
        value_name = "BYTES",
        default_value = "1MiB",
        value_parser = parse_bytes
    )]
    pub max_meta_bytes: u64,
    /// Maximum size of a message, including its files
    #[arg(
        long = "message-limit",
        env = "ACONTEXTD_MESSAGE_LIMIT",
        value_name = "BYTES",
        default_value = "128MiB",
        value_parser = parse_bytes
    )]
    pub max_message_bytes: u64,
    /// Maximum number of files per message
    #[arg(
        long = "message-files",
        env = "ACONTEXTD_MESSAGE_FILES",
        value_name = "N",
        default_value = "64",
        value_parser = parse_count
    )]
    pub max_message_files: usize,
    /// Maximum number of parts per message
    #[arg(
        long = "message-parts",
        env = "ACONTEXTD_MESSAGE_PARTS",
        value_name = "N",
        default_value = "1000",
        value_parser = parse_count
    )]
    pub max_message_parts: usize,
    /// Maximum number of messages in the response to a request that does not set the limit parameter, and of events in any
    /// response with messages
    #[arg(
        long = "messages-limit",
        env = "ACONTEXTD_MESSAGES_LIMIT",
        value_name = "N",
        default_value = "10000",
        value_parser = parse_count
    )]
    pub max_messages: usize,
    /// A response with messages ends when their total size exceeds this value, and contains a cursor for the following
    /// messages
    #[arg(
        long = "messages-bytes",
        env = "ACONTEXTD_MESSAGES_BYTES",
        value_name = "BYTES",
        default_value = "64MiB",
        value_parser = parse_bytes
    )]
    pub max_messages_bytes: u64,
    /// Maximum memory for responses over 64 KiB, other than downloads, that clients have not read yet. If it is used up, a page
    /// of messages ends after 32 MiB, and a further response waits for up to 10 seconds; then a GET fails with a 503
    #[arg(
        long = "response-memory",
        env = "ACONTEXTD_RESPONSE_MEMORY",
        value_name = "BYTES",
        default_value = "512MiB",
        value_parser = parse_bytes
    )]
    pub response_memory: u64,
    /// Maximum number of messages in a copied session
    #[arg(
        long = "copy-limit",
        env = "ACONTEXTD_COPY_LIMIT",
        value_name = "N",
        default_value = "5000",
        value_parser = parse_count
    )]
    pub max_copied_messages: usize,
    /// Maximum total size of the files that a list of messages contains as base64; further files are returned as links
    #[arg(
        long = "inline-limit",
        env = "ACONTEXTD_INLINE_LIMIT",
        value_name = "BYTES",
        default_value = "32MiB",
        value_parser = parse_bytes
    )]
    pub max_inline_bytes: u64,
    /// Maximum length of a regular expression or glob pattern, in characters
    #[arg(
        long = "pattern-limit",
        env = "ACONTEXTD_PATTERN_LIMIT",
        value_name = "N",
        default_value = "1000",
        value_parser = parse_count
    )]
    pub max_pattern_chars: usize,
    /// Maximum size of a compiled regular expression
    #[arg(
        long = "regex-limit",
        env = "ACONTEXTD_REGEX_LIMIT",
        value_name = "BYTES",
        default_value = "10MiB",
        value_parser = parse_bytes
    )]
    pub max_regex_bytes: u64,
    /// Maximum number of entries in a list without pages (files of a directory, files of a skill, skills or sessions of a
    /// learning space), and of users in the response to a request that does not set the limit parameter
    #[arg(
        long = "list-limit",
        env = "ACONTEXTD_LIST_LIMIT",
        value_name = "N",
        default_value = "10000",
        value_parser = parse_count
    )]
    pub max_list_entries: usize,
    /// Number of versions kept per file, including the current one
    #[arg(
        long = "file-versions",
        env = "ACONTEXTD_FILE_VERSIONS",
        value_name = "N",
        default_value = "50",
        value_parser = parse_count
    )]
    pub max_file_versions: usize,
    /// Maximum size of an uploaded skill archive
    #[arg(
        long = "skill-limit",
        env = "ACONTEXTD_SKILL_LIMIT",
        value_name = "BYTES",
        default_value = "50MiB",
        value_parser = parse_bytes
    )]
    pub max_skill_archive_bytes: u64,
    /// Maximum total size of the extracted files of a skill archive
    #[arg(
        long = "skill-unpacked",
        env = "ACONTEXTD_SKILL_UNPACKED",
        value_name = "BYTES",
        default_value = "50MiB",
        value_parser = parse_bytes
    )]
    pub max_skill_unpacked_bytes: u64,
    /// Maximum number of files in a skill archive
    #[arg(
        long = "skill-files",
        env = "ACONTEXTD_SKILL_FILES",
        value_name = "N",
        default_value = "1000",
        value_parser = parse_count
    )]
    pub max_skill_files: usize,
    /// Maximum size of the file SKILL.md
    #[arg(
        long = "skill-md-limit",
        env = "ACONTEXTD_SKILL_MD_LIMIT",
        value_name = "BYTES",
        default_value = "1MiB",
        value_parser = parse_bytes
    )]
    pub max_skill_md_bytes: u64,
    /// Maximum number of files in a downloaded skill archive
    #[arg(
        long = "skill-download-files",
        env = "ACONTEXTD_SKILL_DOWNLOAD_FILES",
        value_name = "N",
        default_value = "200",
        value_parser = parse_count
    )]
    pub max_skill_download_files: usize,
    /// Maximum total size of the files in a downloaded skill archive
    #[arg(
        long = "skill-download",
        env = "ACONTEXTD_SKILL_DOWNLOAD",
        value_name = "BYTES",
        default_value = "50MiB",
        value_parser = parse_bytes
    )]
    pub max_skill_download_bytes: u64,
    /// Maximum number of open client connections; at most the limit of open files (ulimit -n) minus 256. While more than half of
    /// them are open, connections that have sent nothing for 10 seconds, or no new request for 2 minutes, are closed
    #[arg(
        long = "max-connections",
        env = "ACONTEXTD_MAX_CONNECTIONS",
        value_name = "N",
        default_value = "4096",
        value_parser = parse_count
    )]
    pub max_connections: usize,
    /// Timeout of a request other than a multipart request or a command in a sandbox
    #[arg(
        long = "request-timeout",
        env = "ACONTEXTD_REQUEST_TIMEOUT",
        value_name = "DURATION",
        default_value = "60s",
        value_parser = parse_nonzero_duration
    )]
    pub request_timeout: Duration,
    /// Timeout of a multipart request
    #[arg(
        long = "upload-timeout",
        env = "ACONTEXTD_UPLOAD_TIMEOUT",
        value_name = "DURATION",
        default_value = "15m",
        value_parser = parse_nonzero_duration
    )]
    pub upload_timeout: Duration,
    /// Maximum pause between two chunks of a multipart request body
    #[arg(
        long = "idle-timeout",
        env = "ACONTEXTD_IDLE_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = parse_nonzero_duration
    )]
    pub body_idle_timeout: Duration,
    /// How long a request waits for a concurrent request with the same Idempotency-Key
    #[arg(
        long = "idempotency-wait",
        env = "ACONTEXTD_IDEMPOTENCY_WAIT",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = parse_nonzero_duration
    )]
    pub idempotency_wait: Duration,
    /// How long an encrypt or decrypt request waits for the conversion. A conversion that takes longer continues in the
    /// background
    #[arg(
        long = "conversion-wait",
        env = "ACONTEXTD_CONVERSION_WAIT",
        value_name = "DURATION",
        default_value = "25s",
        value_parser = parse_nonzero_duration
    )]
    pub conversion_wait: Duration,
    /// Timeout of a grep or glob search
    #[arg(
        long = "grep-timeout",
        env = "ACONTEXTD_GREP_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = parse_nonzero_duration
    )]
    pub grep_timeout: Duration,
    /// How long an unreferenced object is kept before it is deleted
    #[arg(
        long = "blob-grace",
        env = "ACONTEXTD_BLOB_GRACE",
        value_name = "DURATION",
        default_value = "1h",
        value_parser = parse_duration
    )]
    pub blob_grace: Duration,
}
