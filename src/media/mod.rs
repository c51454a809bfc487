//! The MIME type of an artifact: what its content shows, refined by its name where the content is plain text.
//!
//! Clients and stored rows compare these strings, so they are Acontext's, to the letter. Two things always hold: only
//! `text/plain`, `text/html`, `text/xml` and what an extension makes of plain text carry a parameter, and every answer
//! can be sent as a `Content-Type` as it is, whatever the file says about itself.
//!
//! Next: `binary` (signatures), `text` (the order of the text types), `data` (JSON and tables), `charset`; then
//! `disks::parse`, which decides what of a file can be read as text.

mod binary;
mod charset;
mod data;
#[cfg(test)]
mod tests;
mod text;

pub(crate) use data::csv_rows;

/// How many bytes from the start of a file say what it is.
const WINDOW: usize = 3072;

/// Parts of subtypes, so that every spelling there has been of them is met.
const ACTIVE_CONTENT: [&str; 8] =
    ["html", "javascript", "ecmascript", "jscript", "livescript", "vbscript", "shockwave", "futuresplash"];

/// The MIME type of the file that begins with `head`; `whole` tells that nothing comes after it.
pub(crate) fn detect(head: &[u8], whole: bool, filename: &str) -> String {
    let sniffed = sniff(head, whole);
    match sniffed.strip_prefix("text/plain") {
        Some(parameters) => format!("{}{parameters}", by_extension(&extension(filename))),
        None => sniffed,
    }
}

/// The lowercased suffix of the last path element, dot included; a name that is all suffix (`.gitignore`) is its own.
pub(crate) fn extension(filename: &str) -> String {
    let name = filename.rsplit_once('/').map_or(filename, |(_, last)| last);
    name.rfind('.').map(|dot| name[dot..].to_lowercase()).unwrap_or_default()
}

/// Whether a browser that opens this type runs scripts in it, or builds a document that may carry some.
///
/// A PDF counts as harmless: its viewer keeps it apart from the site that served it.
pub(crate) fn is_active_content(mime: &str) -> bool {
    let essence = mime.split(';').next().unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    let (family, subtype) = essence.split_once('/').unwrap_or(("", &essence));

    let xml = matches!(subtype, "xml" | "xsl") || subtype.starts_with("xml-") || subtype.ends_with("+xml");
    let archive = family == "multipart" || matches!(subtype, "rfc822" | "x-mimearchive");
    xml || archive || ACTIVE_CONTENT.iter().any(|name| subtype.contains(name))
}

fn sniff(head: &[u8], whole: bool) -> String {
    let whole = whole && head.len() <= WINDOW;
    let head = &head[..head.len().min(WINDOW)];
    let is_text = is_text(head);

    if let Some(kind) = binary::kind(head, is_text) {
        return kind.to_owned();
    }
    if !is_text {
        return "application/octet-stream".to_owned();
    }
    let kind = text::kind(head, whole);
    match charset::parameter(kind, head, whole) {
        Some(charset) => format!("{kind}; charset={charset}"),
        None => kind.to_owned(),
    }
}

/// Text begins with a byte order mark, or has none of the bytes called binary by
/// <https://mimesniff.spec.whatwg.org/#binary-data-byte>.
fn is_text(head: &[u8]) -> bool {
    let is_binary = |byte: &u8| matches!(byte, 0x00..=0x08 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f);
    charset::of_byte_order_mark(head).is_some() || !head.iter().any(is_binary)
}

/// What plain text is, going by its name.
fn by_extension(extension: &str) -> &'static str {
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
