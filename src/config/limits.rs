//! How much a request may ask for, and how long it may take.

use std::time::Duration;

use clap::Args;

use super::values::{bytes, count, duration, span};

#[derive(Args, Clone, Debug)]
pub struct Limits {
    /// The largest JSON body of a message. Bodies of other requests may have four times ACONTEXTD_META_LIMIT, and 64 KiB if they
    /// have no free-form object
    #[arg(long = "json-limit", env = "ACONTEXTD_JSON_LIMIT", value_name = "BYTES", default_value = "32MiB", value_parser = bytes)]
    pub json: u64,
    /// The most values in a JSON body, those inside of others included
    #[arg(long = "json-values", env = "ACONTEXTD_JSON_VALUES", value_name = "N", default_value = "250000", value_parser = count)]
    pub json_values: usize,
    /// The largest file
    #[arg(
        long = "artifact-limit",
        env = "ARTIFACT_MAX_UPLOAD_SIZE_BYTES",
        value_name = "BYTES",
        default_value = "16777216",
        value_parser = bytes
    )]
    pub artifact: u64,
    /// The largest text field of a multipart form
    #[arg(long = "form-field-limit", env = "ACONTEXTD_FORM_FIELD_LIMIT", value_name = "BYTES", default_value = "1MiB", value_parser = bytes)]
    pub form_field: u64,
    /// The largest free-form JSON object, as text
    #[arg(long = "meta-limit", env = "ACONTEXTD_META_LIMIT", value_name = "BYTES", default_value = "1MiB", value_parser = bytes)]
    pub meta: u64,
    /// The largest message: its text and its files together
    #[arg(long = "message-limit", env = "ACONTEXTD_MESSAGE_LIMIT", value_name = "BYTES", default_value = "128MiB", value_parser = bytes)]
    pub message: u64,
    /// The most files that come with one message
    #[arg(long = "message-files", env = "ACONTEXTD_MESSAGE_FILES", value_name = "N", default_value = "64", value_parser = count)]
    pub message_files: usize,
    /// The most parts of one message
    #[arg(long = "message-parts", env = "ACONTEXTD_MESSAGE_PARTS", value_name = "N", default_value = "1000", value_parser = count)]
    pub message_parts: usize,
    /// The most messages that a list without a limit of its own answers with
    #[arg(long = "messages-limit", env = "ACONTEXTD_MESSAGES_LIMIT", value_name = "N", default_value = "10000", value_parser = count)]
    pub messages: usize,
    /// How much of stored messages one list answers with, before it says that there is more
    #[arg(long = "messages-bytes", env = "ACONTEXTD_MESSAGES_BYTES", value_name = "BYTES", default_value = "64MiB", value_parser = bytes)]
    pub messages_bytes: u64,
    /// The most messages that a session may have to be copied
    #[arg(long = "copy-limit", env = "ACONTEXTD_COPY_LIMIT", value_name = "N", default_value = "5000", value_parser = count)]
    pub copy: usize,
    /// How much of stored files one list of messages shows as part of itself; the rest is shown as links
    #[arg(long = "inline-limit", env = "ACONTEXTD_INLINE_LIMIT", value_name = "BYTES", default_value = "32MiB", value_parser = bytes)]
    pub inline: u64,
    /// The longest regular expression or glob pattern, in characters
    #[arg(long = "pattern-limit", env = "ACONTEXTD_PATTERN_LIMIT", value_name = "N", default_value = "1000", value_parser = count)]
    pub pattern: usize,
    /// The largest compiled regular expression
    #[arg(long = "regex-limit", env = "ACONTEXTD_REGEX_LIMIT", value_name = "BYTES", default_value = "10MiB", value_parser = bytes)]
    pub regex: u64,
    /// The most entries of a list that shows all: files of a directory or a skill, users, skills and sessions of a space
    #[arg(long = "list-limit", env = "ACONTEXTD_LIST_LIMIT", value_name = "N", default_value = "10000", value_parser = count)]
    pub list: usize,
    /// How many contents of a file are kept, the current one among them
    #[arg(long = "file-versions", env = "ACONTEXTD_FILE_VERSIONS", value_name = "N", default_value = "50", value_parser = count)]
    pub file_versions: usize,
    /// The largest archive that a skill comes in
    #[arg(long = "skill-limit", env = "ACONTEXTD_SKILL_LIMIT", value_name = "BYTES", default_value = "50MiB", value_parser = bytes)]
    pub skill: u64,
    /// How much the files of such an archive may be together
    #[arg(long = "skill-unpacked", env = "ACONTEXTD_SKILL_UNPACKED", value_name = "BYTES", default_value = "50MiB", value_parser = bytes)]
    pub skill_unpacked: u64,
    /// The most files in such an archive
    #[arg(long = "skill-files", env = "ACONTEXTD_SKILL_FILES", value_name = "N", default_value = "1000", value_parser = count)]
    pub skill_files: usize,
    /// The largest SKILL.md
    #[arg(long = "skill-md-limit", env = "ACONTEXTD_SKILL_MD_LIMIT", value_name = "BYTES", default_value = "1MiB", value_parser = bytes)]
    pub skill_md: u64,
    /// The most files of a skill that is downloaded as an archive
    #[arg(long = "skill-download-files", env = "ACONTEXTD_SKILL_DOWNLOAD_FILES", value_name = "N", default_value = "200", value_parser = count)]
    pub skill_download_files: usize,
    /// How much the files of such a skill may be together
    #[arg(long = "skill-download", env = "ACONTEXTD_SKILL_DOWNLOAD", value_name = "BYTES", default_value = "50MiB", value_parser = bytes)]
    pub skill_download: u64,
    /// How long a request may take
    #[arg(long = "request-timeout", env = "ACONTEXTD_REQUEST_TIMEOUT", value_name = "TIME", default_value = "60s", value_parser = span)]
    pub request: Duration,
    /// How long an upload may take
    #[arg(long = "upload-timeout", env = "ACONTEXTD_UPLOAD_TIMEOUT", value_name = "TIME", default_value = "15m", value_parser = span)]
    pub upload: Duration,
    /// How long the bytes of a body may stop coming
    #[arg(long = "idle-timeout", env = "ACONTEXTD_IDLE_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = span)]
    pub idle: Duration,
    /// How long a request waits for another one with the same Idempotency-Key
    #[arg(long = "idempotency-wait", env = "ACONTEXTD_IDEMPOTENCY_WAIT", value_name = "TIME", default_value = "10s", value_parser = span)]
    pub idempotency_wait: Duration,
    /// How long a request to encrypt or decrypt a project waits until all is done, before it goes on in the background
    #[arg(long = "conversion-wait", env = "ACONTEXTD_CONVERSION_WAIT", value_name = "TIME", default_value = "25s", value_parser = span)]
    pub conversion_wait: Duration,
    /// How long a grep may take
    #[arg(long = "grep-timeout", env = "ACONTEXTD_GREP_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = span)]
    pub grep: Duration,
    /// How long stored bytes stay after the last row that refers to them is gone
    #[arg(long = "blob-grace", env = "ACONTEXTD_BLOB_GRACE", value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub blob_grace: Duration,
}
