//! Images, sound, films and files: where their content is, whatever format they came in, and the words that stand for
//! one that a target cannot say.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::RenderContext;
use super::value::{Object, object, take_filled, text_at};
use crate::conversation::parts::{Kind, Part};

/// A media part, understood. One of `data`, `url` and `words` is there, unless nobody knows where the content is.
pub(super) struct Media {
    /// By the mime type where that is clear, else as the part says.
    pub kind: Kind,
    pub filename: String,
    /// Without parameters; empty if unknown.
    pub mime: String,
    /// The content in base64.
    pub data: Option<String>,
    /// Where the content is, if not (only) here.
    pub url: Option<String>,
    /// The content of a file that is a text.
    pub words: Option<String>,
    /// What else the part says.
    pub meta: Object,
}

impl Media {
    /// Looks for the content of a part: a stored file first, then what the part itself holds.
    pub(super) fn of(part: Part, around: &RenderContext) -> Self {
        let mut media = Self {
            kind: part.kind,
            filename: part.filename,
            mime: String::new(),
            data: None,
            url: None,
            words: None,
            meta: part.meta,
        };
        if let Some(asset) = part.asset {
            media.mime = plain(&asset.mime);
            media.url = around.asset_urls.get(&asset.sha256).cloned();
            media.data = around.asset_contents.get(&asset.sha256).cloned();
        }
        if media.data.is_none() && media.url.is_none() {
            media.look_into_meta();
        }
        if media.filename.is_empty() {
            let name =
                ["filename", "name"].map(|key| text_at(&media.meta, key)).into_iter().find(|name| !name.is_empty());
            media.filename = name.unwrap_or_default().to_owned();
        }
        if media.data.is_some() && media.mime.is_empty() && media.kind == Kind::Image {
            media.mime = "image/png".into();
        }
        media.kind = kind_by_mime(&media.mime).unwrap_or(media.kind);
        media
    }

    fn look_into_meta(&mut self) {
        let meta = &mut self.meta;
        if self.mime.is_empty() {
            self.mime = plain(text_at(meta, "media_type"));
        }
        match text_at(meta, "type") {
            "text" => self.words = take_filled(meta, "data"),
            "content" => self.words = meta.get("content").map(words_of).filter(|words| !words.is_empty()),
            _ => self.data = take_filled(meta, "data"),
        }
        if self.kind == Kind::Audio && self.mime.is_empty() && !text_at(meta, "format").is_empty() {
            self.mime = plain(&format!("audio/{}", text_at(meta, "format")));
        }
        if self.data.is_none() && self.words.is_none() {
            self.look_at_urls();
        }
    }

    /// A `data:` URL holds the content itself. `OpenAI`'s `file_data` is one, or the bare base64 of a PDF.
    fn look_at_urls(&mut self) {
        if let Some(data) = take_filled(&mut self.meta, "file_data") {
            match split_data_url(&data) {
                Some((mime, content)) => self.embed(mime, content),
                None if is_data_url(&data) => self.url = Some(data),
                None => {
                    let by_name = mime_by_name(text_at(&self.meta, "filename"));
                    self.embed(by_name.unwrap_or("application/pdf"), &data);
                }
            }
        } else if let Some(url) = take_filled(&mut self.meta, "url") {
            match split_data_url(&url) {
                Some((mime, content)) => self.embed(mime, content),
                None => self.url = Some(url),
            }
        }
    }

    fn embed(&mut self, mime: &str, content: &str) {
        if !mime.is_empty() {
            self.mime = plain(mime);
        }
        self.data = Some(content.to_owned());
    }

    /// The mime type, or what the name or the URL suggests.
    pub(super) fn guess_mime(&self) -> Option<String> {
        if !self.mime.is_empty() {
            return Some(self.mime.clone());
        }
        let guess = mime_by_name(&self.filename).or_else(|| mime_by_name(self.url.as_deref()?));
        guess.map(str::to_owned)
    }

    /// Where the content is, outside of this message.
    pub(super) fn link(&mut self) -> Option<String> {
        self.url.take_if(|url| !is_data_url(url))
    }

    /// The same for who cannot look into Google's own storage.
    pub(super) fn public_link(&mut self) -> Option<String> {
        self.url.take_if(|url| !is_data_url(url) && !url.starts_with("gs://"))
    }

    /// The content as a text, for a file that is one.
    pub(super) fn text(&mut self) -> Option<String> {
        let is_text = self.mime.starts_with("text/") || self.mime == "application/json";
        self.words.take().or_else(|| {
            let bytes = STANDARD.decode(self.data.as_ref().filter(|_| is_text)?).ok()?;
            String::from_utf8(bytes).ok()
        })
    }

    /// The words that stand for media that cannot be said: `[image cat.png (image/png): https://...]`. `None` if there
    /// is nothing to tell.
    pub(super) fn named(&self) -> Option<String> {
        let kind = match self.kind {
            Kind::Image => "image",
            Kind::Audio => "audio",
            Kind::Video => "video",
            _ => "file",
        };
        let filename = Some(&self.filename).filter(|name| !name.is_empty()).map(|name| format!(" {name}"));
        let mime = Some(&self.mime).filter(|mime| !mime.is_empty()).map(|mime| format!(" ({mime})"));
        let url = self.url.as_ref().filter(|url| !is_data_url(url)).map(|url| format!(": {url}"));
        let words: String = [filename, mime, url].into_iter().flatten().collect();
        (!words.is_empty()).then(|| format!("[{kind}{words}]"))
    }
}

pub(super) fn data_url(mime: &str, data: &str) -> String {
    format!("data:{mime};base64,{data}")
}

/// The kind that a mime type makes plain.
pub(super) fn kind_by_mime(mime: &str) -> Option<Kind> {
    match mime.split('/').next() {
        Some("image") => Some(Kind::Image),
        Some("audio") => Some(Kind::Audio),
        Some("video") => Some(Kind::Video),
        Some("text") => Some(Kind::File),
        _ => (mime == "application/pdf").then_some(Kind::File),
    }
}

/// A mime type without its parameters, in lower case, and by its right name.
pub(super) fn plain(mime: &str) -> String {
    let mime = mime.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if mime == "image/jpg" { "image/jpeg".into() } else { mime }
}

/// Bytes as standard base64 without line breaks. They may come as base64 for URLs, which is what Google's Python SDK
/// writes. `None` if they are neither.
pub(super) fn standard_base64(text: String) -> Option<String> {
    if is_base64(text.bytes()) {
        return Some(text);
    }
    let standard = |letter: char| match letter {
        '-' => '+',
        '_' => '/',
        other => other,
    };
    let text: String = text.chars().filter(|letter| !matches!(letter, '\r' | '\n')).map(standard).collect();
    is_base64(text.bytes()).then_some(text)
}

/// Groups of four, and at most two `=` at the end.
fn is_base64(bytes: impl ExactSizeIterator<Item = u8>) -> bool {
    let length = bytes.len();
    let mut padding = 0;
    for byte in bytes {
        match byte {
            b'=' => padding += 1,
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' if padding == 0 => {}
            _ => return false,
        }
    }
    length.is_multiple_of(4) && padding <= 2
}

/// The base64 of a text's bytes.
pub(super) fn encode(text: &str) -> String {
    STANDARD.encode(text)
}

pub(super) fn is_data_url(url: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

/// The mime type (maybe empty) and the content of a `data:` URL in base64.
fn split_data_url(url: &str) -> Option<(&str, &str)> {
    let (head, content) = url.split_once(',').filter(|_| is_data_url(url))?;
    let (mime, encoding) = head[5..].rsplit_once(';')?;
    encoding.trim().eq_ignore_ascii_case("base64").then_some((mime, content))
}

/// The texts in the content of a document: a string, or a list of blocks.
fn words_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts: Vec<_> = blocks.iter().filter_map(|block| block.get("text")?.as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

/// What the end of a file name or of a URL's path says.
fn mime_by_name(name: &str) -> Option<&'static str> {
    let path = name.split(['?', '#']).next()?;
    let (_, extension) = path.rsplit('/').next()?.rsplit_once('.')?;
    Some(match extension.to_ascii_lowercase().as_str() {
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "heic" => "image/heic",
        "heif" => "image/heif",
        "bmp" => "image/bmp",
        "svg" => "image/svg+xml",
        "pdf" => "application/pdf",
        "txt" => "text/plain",
        "md" => "text/markdown",
        "csv" => "text/csv",
        "html" | "htm" => "text/html",
        "json" => "application/json",
        "wav" => "audio/wav",
        "mp3" => "audio/mp3",
        "ogg" => "audio/ogg",
        "flac" => "audio/flac",
        "aac" => "audio/aac",
        "m4a" => "audio/mp4",
        "mp4" => "video/mp4",
        "mov" => "video/quicktime",
        "webm" => "video/webm",
        "mpg" | "mpeg" => "video/mpeg",
        _ => return None,
    })
}

/// Media that a block holds, in the words of parts.
pub(super) fn held(mime: String, data: String) -> Object {
    object([("type", "base64".into()), ("media_type", mime.into()), ("data", data.into())])
}
