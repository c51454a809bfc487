//! Finds passwords and keys in texts that a model has written. Such texts are stored and read by other agents.
//!
//! Only what is very likely a secret is found, because a text may explain where a password is configured, and may name variables
//! and placeholders. The prompts instruct the models to write no secrets at all.

use std::collections::HashSet;
use std::sync::LazyLock;

use regex::Regex;

/// A pattern for one kind of secret.
struct SecretPattern {
    /// The kind, as the end of a sentence: "It contains what looks like …".
    name: &'static str,
    regex: Regex,
    /// Returns `true` if the group `value` of a match is a secret.
    is_secret: fn(&str) -> bool,
}

/// The words before a value that is a secret.
const SECRET_NAMES: &str =
    "(passwords?|passwd|pwd|passphrase|secret([_-]?access)?([_-]?key)?|api[ _-]?key|access[_-]?key|token)";

impl SecretPattern {
    /// Returns the secrets of this kind in a text.
    fn find_all<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let values = self.regex.captures_iter(text).filter_map(|found| Some(found.name("value")?.as_str()));
        values.filter(move |value| (self.is_secret)(value))
    }
}

static PATTERNS: LazyLock<Vec<SecretPattern>> = LazyLock::new(|| {
    let any: fn(&str) -> bool = |_| true;
    // A text such as `password = "hunter2"` or "the password is `hunter2`".
    let quoted = format!(r#"(?i){SECRET_NAMES}["'`]?\s*(=>|:?=|:|\bis\b)\s*(?<quote>["'`])(?<value>[^\s"'`]+)["'`]"#);
    // A text such as `password = hunter2` at the end of a line or a sentence. Text after the value shows that it is prose.
    let unquoted =
        format!(r#"(?im){SECRET_NAMES}["'`]?[ \t]*(=>|:?=|:)[ \t]*(?<value>[^\s"'`,;]+?)[ \t]*\.?([,;\r]|$)"#);
    let patterns = [
        ("a private key", r"(?<value>-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----)", any),
        ("an access key of AWS", r"\b(?<value>(AKIA|ASIA)[0-9A-Z]{16})\b", any),
        ("a token of GitHub", r"\b(?<value>gh[pousr]_[0-9A-Za-z]{30,}|github_pat_[0-9A-Za-z_]{22,})", any),
        ("a token of GitLab", r"\b(?<value>glpat-[0-9A-Za-z_-]{20,})", any),
        ("a token of Slack", r"\b(?<value>xox[abeoprs]-[0-9A-Za-z-]{10,})", any),
        ("an API key of Google", r"\b(?<value>AIza[0-9A-Za-z_-]{35})", any),
        ("an API key", r"(?:^|[^0-9A-Za-z_-])(?<value>(sk-|[rs]k_(live|test)_)[0-9A-Za-z_-]{16,})", is_mixed),
        ("a signed token", r"\b(?<value>eyJ[0-9A-Za-z_-]{8,}\.eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,})", any),
        ("a bearer token", r"(?i)\bbearer\s+(?<value>[0-9A-Za-z._~+/=-]{16,})", is_mixed),
        ("a URL with a password", r"\b[a-z][a-z0-9+.-]*://[^\s/:@]*:(?<value>[^\s/@]+)@", is_secret_value),
        ("a password or key", &quoted, is_secret_value),
        ("a password or key", &unquoted, is_secret_value),
    ];
    let compile = |(name, regex, is_secret): (_, &str, _)| {
        let regex = Regex::new(regex).expect("a constant pattern is valid");
        SecretPattern { name, regex, is_secret }
    };
    patterns.into_iter().map(compile).collect()
});

/// Algorithms and formats whose names look like passwords.
const ALGORITHMS: [&str; 14] = [
    "argon2", "argon2i", "argon2id", "base64", "ed25519", "es256", "hs256", "oauth2", "pbkdf2", "rs256", "sha1",
    "sha256", "sha512", "uuid4",
];

/// Texts in placeholders.
const PLACEHOLDERS: [&str; 6] = ["your", "xxx", "***", "changeme", "placeholder", "redacted"];

/// A reference to a field, such as `config.db2.password`, and words with dashes, such as `db-credentials-v2`.
static REFERENCE: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"^([A-Za-z_]\w*(\.[A-Za-z_]\w*)+|[a-z]+\d?([_-]([a-z]+\d?|v?\d{1,2}))+)$";
    Regex::new(pattern).expect("a constant pattern is valid")
});

/// Returns the kind of the first secret that a text contains, such as "a private key".
pub fn find_secret(text: &str) -> Option<&'static str> {
    PATTERNS.iter().find(|pattern| pattern.find_all(text).next().is_some()).map(|pattern| pattern.name)
}

/// Returns the kind of the first secret that an edit of a text adds: one that `edited` contains and `previous` does not. The edit
/// alone does not show it, because a value may be a secret only after a word such as `password:` in the text around it.
pub fn find_added_secret(previous: &str, edited: &str) -> Option<&'static str> {
    let is_added = |pattern: &&SecretPattern| {
        let found: HashSet<&str> = pattern.find_all(edited).collect();
        !found.is_empty() && !found.is_subset(&pattern.find_all(previous).collect())
    };
    PATTERNS.iter().find(is_added).map(|pattern| pattern.name)
}

/// Returns `true` if a value is a secret, and not a placeholder, an expression, a path or the name of something.
fn is_secret_value(value: &str) -> bool {
    let lower = value.to_lowercase();
    let is_expression = value.starts_with(['$', '%', '/', '~', '.']) || value.contains(['(', '[', '{', '<', '\\']);
    let is_constant = value.contains('_') && value.chars().all(|c| matches!(c, 'A'..='Z' | '0'..='9' | '_'));
    let is_placeholder = PLACEHOLDERS.iter().any(|placeholder| lower.contains(placeholder));
    let is_name = ALGORITHMS.contains(&lower.as_str()) || REFERENCE.is_match(value) || value.contains("://");
    value.len() >= 6 && is_mixed(value) && !is_expression && !is_constant && !is_placeholder && !is_name
}

/// Returns `true` if a value has letters and digits. Most secrets do, and most words and numbers do not.
fn is_mixed(value: &str) -> bool {
    value.contains(|c: char| c.is_ascii_alphabetic()) && value.contains(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Joins the parts of an example, so that programs that search the source for secrets do not find it.
    fn join(parts: &[&str]) -> String {
        parts.concat()
    }

    #[test]
    fn secrets_are_found() {
        for (text, name) in [
            (join(&["-----BEGIN ", "PRIVATE KEY-----\nMIIE"]), "a private key"),
            (join(&["-----BEGIN RSA ", "PRIVATE KEY-----\nMIIE"]), "a private key"),
            (join(&["-----BEGIN OPENSSH ", "PRIVATE KEY-----\nb3Bl"]), "a private key"),
            (join(&["The key is AKIA", "IOSFODNN7EXAMPLE."]), "an access key of AWS"),
            (join(&["use gh", "p_16C7e42F292c6912E7710c838347Ae178B4a"]), "a token of GitHub"),
            (join(&["github_", "pat_11ABCDEFG0abcdefghijkl_xyz"]), "a token of GitHub"),
            (join(&["glp", "at-abcdefghij0123456789"]), "a token of GitLab"),
            (join(&["xox", "b-123456789012-abcdefghijkl"]), "a token of Slack"),
            (join(&["AIza", "SyA1234567890abcdefghijklmnopqrstuv"]), "an API key of Google"),
            (join(&["sk-", "proj-abcDEF123456ghiJKL789"]), "an API key"),
            (join(&["`sk-", "ant-api03-abcDEF123456ghiJKL`"]), "an API key"),
            (join(&["sk", "_live_51H8abcdefghijklmnop"]), "an API key"),
            (join(&["eyJ", "hbGciOiJIUzI1NiJ9.eyJ", "zdWIiOiIxMjM0In0.dozjgNryP4J3jVmN"]), "a signed token"),
            (join(&["Authorization: Bearer ", "abcdef0123456789abcdef"]), "a bearer token"),
            (join(&["postgres://app:", "s3cretPass@db.example/app"]), "a URL with a password"),
            (join(&["password = ", "hunter2"]), "a password or key"),
            (join(&["DB_PASSWORD=", "S3cr3t!pass\nDB_HOST=db"]), "a password or key"),
            (join(&["\"password\": ", "\"hunter2!\","]), "a password or key"),
            (join(&["the admin password is `", "hunter2`"]), "a password or key"),
            (join(&["Password: ", "Tr0ub4dor&3."]), "a password or key"),
            (join(&["api_key: ", "0123456789abcdef"]), "a password or key"),
            (join(&["aws_secret_access_key = ", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYKEY"]), "a password or key"),
            (join(&["client_secret := ", "'8f14e45fceea167a'"]), "a password or key"),
        ] {
            assert_eq!(find_secret(&text), Some(name), "{text}");
        }
    }

    #[test]
    fn texts_about_secrets_are_not_secrets() {
        for text in [
            "The password of the database is in `config/production.yml`, in the field `password`.",
            "Set `DB_PASSWORD` before the start. Password: see the file secrets/db1.env of the operator.",
            "password = os.environ[\"DB_PASSWORD2\"]",
            "password = settings.database2.password",
            "password: ${DB_PASSWORD_2}",
            "password: <your password with 2 digits>",
            "password: your-password-1",
            "PASSWORD=DB_PASSWORD_1",
            "token = get_token2()",
            "token: 4096",
            "max_tokens: 4096, token: 12345678",
            "The token is base64 text. token: base64",
            "secret: sha256 of the file, computed in step 2",
            "secret: db-credentials-v2",
            "The password must have at least 12 characters, 1 digit and 1 symbol.",
            "passwords are hashed with argon2id",
            "Send the header `Authorization: Bearer <token>`.",
            "Authorization: Bearer $ACCESS_TOKEN_2",
            "Authorization: Bearer sk-ac-your-root-api-bearer-token",
            "-----BEGIN CERTIFICATE-----",
            "-----BEGIN PUBLIC KEY-----",
            "Keys of AWS begin with AKIA, those of GitHub with ghp_, others with sk- or sk-ant-.",
            "risk-assessment-2026-report-final",
            "postgres://acontext:helloworld@127.0.0.1:15432/acontext",
            "postgres://user:${PASSWORD1}@host/db",
            "https://example.com:8443/path@v2",
            "The secret of a good summary: 3 bullets.",
            "git@github.com:user/repo.git",
        ] {
            assert_eq!(find_secret(text), None, "{text}");
        }
    }

    #[test]
    fn secrets_of_the_previous_text_are_not_added() {
        let kind = Some("a password or key");
        for (previous, edited, expected) in [
            ("password: see-vault", "password: hunter2x", kind),
            ("password: hunter2x", "password: hunter3x", kind),
            ("user: bob", "user: bob\npassword: hunter2x", kind),
            ("a\npassword: hunter2x", "b\npassword: hunter2x", None),
            ("password: hunter2x", "password: see-vault", None),
        ] {
            assert_eq!(find_added_secret(previous, edited), expected, "{previous} -> {edited}");
        }
    }

    #[test]
    fn long_texts_are_searched_quickly() {
        let text = "password: ".repeat(50_000) + &"a://".repeat(50_000) + &"sk-".repeat(50_000);
        assert_eq!(find_secret(&text), None);
        assert_eq!(find_added_secret(&text, &text), None);
    }
}
