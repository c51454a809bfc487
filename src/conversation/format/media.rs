//! Media parts (images, audio, video and files) of any format: the location of their content, and the placeholder text for those
//! that a target cannot represent.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::RenderContext;
use super::value::{Object, is_blank, object, str_at, take_nonempty_string, type_of};
use crate::conversation::parts::{Part, PartKind};

/// A media part and its content. At least one of `data`, `url` and `text` is set, unless the part has no content.
pub(super) struct Media {
    /// The kind that the MIME type determines, or else the kind of the part.
    pub kind: PartKind,
    pub filename: String,
    /// The MIME type without parameters; empty if unknown. An embedded image of unknown type gets `image/png`.
    pub mime: String,
    /// The content in base64.
    pub data: Option<String>,
    /// The URL of the content. It is never a base64 `data:` URL, which is split into `mime` and `data`.
    pub url: Option<String>,
    /// The content of a text file, or the text of a document that consists of blocks.
    pub text: Option<String>,
    /// The rest of the part's meta.
    pub meta: Object,
}

impl Media {
    /// Finds the content of a part: the asset if `ctx` has its content or URL, or else the content or URL in the part's meta.
    pub(super) fn from_part(part: Part, ctx: &RenderContext) -> Self {
        let mut media = Self {
            kind: part.kind,
            filename: part.filename,
            mime: String::new(),
            data: None,
            url: None,
            text: None,
            meta: part.meta,
        };
        if let Some(asset) = part.asset {
            media.mime = normalize_mime(&asset.mime);
            media.url = ctx.asset_urls.get(&asset.sha256).cloned();
            media.data = ctx.asset_contents.get(&asset.sha256).cloned();
        }
        if media.data.is_none() && media.url.is_none() {
            media.take_content_from_meta();
        }
        if media.filename.is_empty() {
            media.filename = filename_in_meta(&media.meta).to_owned();
        }
        if media.data.is_some() && media.mime.is_empty() && media.kind == PartKind::Image {
            media.mime = "image/png".into();
        }
        media.kind = kind_by_mime(&media.mime).unwrap_or(media.kind);
        media
    }

    /// Sets `mime`, and takes the content or its URL from the meta.
    fn take_content_from_meta(&mut self) {
        let meta = &mut self.meta;
        if self.mime.is_empty() {
            self.mime = normalize_mime(str_at(meta, "media_type"));
        }
        match str_at(meta, "type") {
            "text" => self.text = take_nonempty_string(meta, "data"),
            "content" => self.text = meta.get("content").map(text_of_document).filter(|text| !text.is_empty()),
            _ => self.data = take_nonempty_string(meta, "data"),
        }
        if self.kind == PartKind::Audio && self.mime.is_empty() && !str_at(meta, "format").is_empty() {
            self.mime = normalize_mime(&format!("audio/{}", str_at(meta, "format")));
        }
        if self.data.is_none() && self.text.is_none() {
            self.take_content_from_url();
        }
    }

    /// Takes the content from `file_data` or `url` in the meta. A base64 `data:` URL is split; any other URL is kept.
    ///
    /// `OpenAI`'s `file_data` is a `data:` URL or only base64, whose MIME type is guessed from the file name. The default is PDF.
    fn take_content_from_url(&mut self) {
        if let Some(data) = take_nonempty_string(&mut self.meta, "file_data") {
            match split_data_url(&data) {
                Some((mime, content)) => self.set_data(mime, content),
                None if is_data_url(&data) => self.url = Some(data),
                None => {
                    let guess = mime_by_name(str_at(&self.meta, "filename"));
                    self.set_data(guess.unwrap_or("application/pdf"), &data);
                }
            }
        } else if let Some(url) = take_nonempty_string(&mut self.meta, "url") {
            match split_data_url(&url) {
                Some((mime, content)) => self.set_data(mime, content),
                None => self.url = Some(url),
            }
        }
    }

    fn set_data(&mut self, mime: &str, content: &str) {
        if !mime.is_empty() {
            self.mime = normalize_mime(mime);
        }
        self.data = Some(content.to_owned());
    }

    /// Returns the MIME type, or a guess from the extension of the file name or URL.
    pub(super) fn guess_mime(&self) -> Option<String> {
        if !self.mime.is_empty() {
            return Some(self.mime.clone());
        }
        let guess = mime_by_name(&self.filename).or_else(|| mime_by_name(self.url.as_deref()?));
        guess.map(str::to_owned)
    }

    /// Removes and returns the URL, unless it is a `data:` URL.
    pub(super) fn take_url(&mut self) -> Option<String> {
        self.url.take_if(|url| !is_data_url(url))
    }

    /// Removes and returns the URL if its scheme is `http` or `https`. Other URLs, such as `gs://`, are private to a provider.
    pub(super) fn take_public_url(&mut self) -> Option<String> {
        self.url.take_if(|url| {
            let scheme = url.split_once("://").map(|(scheme, _)| scheme).unwrap_or_default();
            ["http", "https"].iter().any(|public| scheme.eq_ignore_ascii_case(public))
        })
    }

    /// Takes the text of a document, or decodes the content of a text file. Returns `None` if there is neither.
    pub(super) fn take_text(&mut self) -> Option<String> {
        let is_text = self.mime.starts_with("text/") || self.mime == "application/json";
        self.text.take().or_else(|| {
            let bytes = STANDARD.decode(self.data.as_ref().filter(|_| is_text)?).ok()?;
            String::from_utf8(bytes).ok()
        })
    }

    /// Returns the text for a message that cannot contain the media. It consists of the file name or, if the media have no text,
    /// their description, the context of a document, the text, and the transcript of speech, each on a line. Returns `None` if
    /// there are none of these.
    pub(super) fn into_text(mut self) -> Option<String> {
        let text = self.take_text().filter(|text| !is_blank(text));
        let name = match text {
            Some(_) => Some(self.filename.clone()).filter(|name| !name.is_empty()),
            None => self.placeholder_text(),
        };
        let [context, transcript] = ["context", "transcript"].map(|key| take_nonempty_string(&mut self.meta, key));
        let lines: Vec<_> = [name, context, text, transcript].into_iter().flatten().collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    /// Returns a text that describes the media, such as `[image cat.png (image/png): https://...]`, or `None` if it has neither a
    /// file name or id, nor a MIME type, nor a URL other than a `data:` URL.
    fn placeholder_text(&self) -> Option<String> {
        let kind = match self.kind {
            PartKind::Image => "image",
            PartKind::Audio => "audio",
            PartKind::Video => "video",
            _ => "file",
        };
        let mut names = [self.filename.as_str(), str_at(&self.meta, "file_id")].into_iter();
        let name = names.find(|name| !name.is_empty()).map(|name| format!(" {name}"));
        let mime = Some(&self.mime).filter(|mime| !mime.is_empty()).map(|mime| format!(" ({mime})"));
        let url = self.url.as_ref().filter(|url| !is_data_url(url)).map(|url| format!(": {url}"));
        let details: String = [name, mime, url].into_iter().flatten().collect();
        (!details.is_empty()).then(|| format!("[{kind}{details}]"))
    }
}

/// Returns the file name in the meta of a part; empty if there is none.
pub(super) fn filename_in_meta(meta: &Object) -> &str {
    let mut names = ["filename", "name", "title"].into_iter().map(|key| str_at(meta, key));
    names.find(|name| !name.is_empty()).unwrap_or_default()
}

pub(super) fn data_url(mime: &str, data: &str) -> String {
    format!("data:{mime};base64,{data}")
}

/// Returns the kind of part that a MIME type determines. Returns `None` for types such as `application/zip`.
pub(super) fn kind_by_mime(mime: &str) -> Option<PartKind> {
    match mime.split('/').next() {
        Some("image") => Some(PartKind::Image),
        Some("audio") => Some(PartKind::Audio),
        Some("video") => Some(PartKind::Video),
        Some("text") => Some(PartKind::File),
        _ => (mime == "application/pdf").then_some(PartKind::File),
    }
}

/// Returns a MIME type without parameters, in lower case, with `image/jpg` corrected to `image/jpeg`.
pub(super) fn normalize_mime(mime: &str) -> String {
    let mime = mime.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if mime == "image/jpg" { "image/jpeg".into() } else { mime }
}

/// Converts base64 to standard base64 without line breaks. The input may be URL-safe base64, which Google's Python SDK writes, and
/// it may lack the padding, as Google's API allows. Returns `None` if the input is not base64.
pub(super) fn to_standard_base64(text: String) -> Option<String> {
    if is_standard_base64(text.bytes()) {
        return Some(text);
    }
    let to_standard = |character: char| match character {
        '-' => '+',
        '_' => '/',
        other => other,
    };
    let mut text: String =
        text.chars().filter(|character| !matches!(character, '\r' | '\n')).map(to_standard).collect();
    if !text.contains('=') && text.len() % 4 > 1 {
        text.push_str(&"=="[text.len() % 4 - 2..]);
    }
    is_standard_base64(text.bytes()).then_some(text)
}

/// Returns `true` for standard base64 without line breaks: only characters of the standard alphabet, at most two `=` at the end,
/// and a length that is a multiple of four.
fn is_standard_base64(bytes: impl ExactSizeIterator<Item = u8>) -> bool {
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

pub(super) fn is_data_url(url: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

/// Splits a base64 `data:` URL into its MIME type, which may be empty, and its content.
fn split_data_url(url: &str) -> Option<(&str, &str)> {
    let (header, content) = url.split_once(',').filter(|_| is_data_url(url))?;
    let (mime, encoding) = header[5..].rsplit_once(';')?;
    encoding.trim().eq_ignore_ascii_case("base64").then_some((mime, content))
}

/// Returns the text of a document's content, which is a string or a list of blocks.
fn text_of_document(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts: Vec<_> = blocks.iter().filter_map(|block| block.get("text")?.as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

/// Returns `true` if a document's content has blocks with images.
pub(super) fn has_images(content: Option<&Value>) -> bool {
    content.and_then(Value::as_array).is_some_and(|blocks| blocks.iter().any(|block| type_of(block) == "image"))
}

/// Guesses the MIME type from the extension of a file name or URL.
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

/// Returns the meta of a part with embedded content. It has the fields of an Anthropic source.
pub(super) fn base64_source(mime: String, data: String) -> Object {
    object([("type", "base64".into()), ("media_type", mime.into()), ("data", data.into())])
}
