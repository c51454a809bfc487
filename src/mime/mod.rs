//! Detects the MIME type of a file from its content, and for plain text also from its name.
//!
//! The MIME types are exactly those of upstream, because clients and stored rows compare them. Only `text/plain`,
//! `text/html`, `text/xml` and the types that the file name determines can have a `charset` parameter. Every result is a valid
//! `Content-Type` header, even if the file declares an invalid charset.
//!
//! `binary` detects types by signatures, `text` the types of texts, `json_and_tables` JSON and tables, and `charset` the
//! charset of a text. See also `disks::text_kind`, which decides which files can be read as text.

mod binary;
mod charset;
mod json_and_tables;
#[cfg(test)]
mod tests;
mod text;

pub(crate) use json_and_tables::csv_rows;

/// The number of bytes at the start of a file from which its type is detected.
const MAX_HEAD_BYTES: usize = 3072;

/// Strings that the subtypes of active content contain. `javascript`, for example, occurs in `x-javascript`, too.
const ACTIVE_SUBTYPES: [&str; 8] =
    ["html", "javascript", "ecmascript", "jscript", "livescript", "vbscript", "shockwave", "futuresplash"];

/// Returns the MIME type of the file that begins with `head`. `is_complete` is `true` if `head` is the whole file.
pub(crate) fn detect(head: &[u8], is_complete: bool, filename: &str) -> String {
    let mime = detect_from_content(head, is_complete);
    match mime.strip_prefix("text/plain") {
        Some(parameters) => format!("{}{parameters}", mime_from_extension(&extension(filename))),
        None => mime,
    }
}

/// Returns the file name extension in lower case, with the dot. The extension of a name such as `.gitignore` is the whole
/// name.
pub(crate) fn extension(filename: &str) -> String {
    let name = filename.rsplit_once('/').map_or(filename, |(_, last)| last);
    name.rfind('.').map(|dot| name[dot..].to_lowercase()).unwrap_or_default()
}

/// Returns `true` if a browser that opens this type may run scripts in the context of the site that serves it.
///
/// PDF is not active content, because its viewer isolates it from the site.
pub(crate) fn is_active_content(mime: &str) -> bool {
    let essence = mime.split(';').next().unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    let (top_level, subtype) = essence.split_once('/').unwrap_or(("", &essence));

    let is_xml = matches!(subtype, "xml" | "xsl") || subtype.starts_with("xml-") || subtype.ends_with("+xml");
    let may_be_mhtml = top_level == "multipart" || matches!(subtype, "rfc822" | "x-mimearchive");
    is_xml || may_be_mhtml || ACTIVE_SUBTYPES.iter().any(|name| subtype.contains(name))
}

/// Returns the MIME type that the content of a file implies.
fn detect_from_content(head: &[u8], is_complete: bool) -> String {
    let is_complete = is_complete && head.len() <= MAX_HEAD_BYTES;
    let head = &head[..head.len().min(MAX_HEAD_BYTES)];
    let is_text = is_text(head);

    if let Some(mime) = binary::detect_binary(head, is_text) {
        return mime.to_owned();
    }
    if !is_text {
        return "application/octet-stream".to_owned();
    }
    let mime = text::detect_text(head, is_complete);
    match charset::charset_parameter(mime, head, is_complete) {
        Some(charset) => format!("{mime}; charset={charset}"),
        None => mime.to_owned(),
    }
}

/// Returns `true` if `head` begins with a byte order mark or contains no binary data byte as defined by
/// <https://mimesniff.spec.whatwg.org/#binary-data-byte>.
fn is_text(head: &[u8]) -> bool {
    let is_binary = |byte: &u8| matches!(byte, 0x00..=0x08 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f);
    charset::from_bom(head).is_some() || !head.iter().any(is_binary)
}

/// Returns the MIME type of a plain text with this file name extension.
fn mime_from_extension(extension: &str) -> &'static str {
    match extension {
        ".md" | ".markdown" => "text/markdown",
        ".yaml" | ".yml" => "text/yaml",
        ".csv" => "text/csv",
        ".json" => "application/json",
        ".xml" => "application/xml",
        ".html" | ".htm" => "text/html",
        ".css" => "text/css",
        ".js" => "text/javascript",
        ".ts" => "text/typescript",
        ".go" => "text/x-go",
        ".py" => "text/x-python",
        ".rs" => "text/x-rust",
        ".rb" => "text/x-ruby",
        ".java" => "text/x-java",
        ".c" | ".h" => "text/x-c",
        ".cpp" | ".hpp" => "text/x-c++",
        ".sh" | ".bash" => "text/x-shellscript",
        ".sql" => "text/x-sql",
        ".toml" => "text/x-toml",
        ".ini" | ".cfg" | ".conf" => "text/x-ini",
        _ => "text/plain",
    }
}
