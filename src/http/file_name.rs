//! Reads the name of an uploaded file from the header `Content-Disposition`.

use axum::http::header;
use multer::Field;

use crate::error::{Error, Result};

/// Returns the file name of a field, or `None` for a text field.
pub(super) fn parse_file_name(field: &Field<'_>, field_name: &str) -> Result<Option<String>> {
    let disposition = field.headers().get(header::CONTENT_DISPOSITION).map_or(&[][..], |value| value.as_bytes());
    let Ok(disposition) = std::str::from_utf8(disposition) else {
        return Err(Error::invalid_field(field_name, "file name is not valid UTF-8"));
    };
    match extended_file_name(disposition) {
        Some(value) => {
            let decoded = decode_extended_value(value).map(Some);
            let reason = "filename* must have the form UTF-8''<percent-encoded name>";
            decoded.ok_or_else(|| Error::invalid_field(field_name, reason))
        }
        None => Ok(field.file_name().map(ToOwned::to_owned)),
    }
}

/// Returns the value of the parameter `filename*`.
fn extended_file_name(disposition: &str) -> Option<&str> {
    let start = disposition.to_ascii_lowercase().find("filename*=")? + "filename*=".len();
    Some(disposition[start..].split(';').next().unwrap_or_default().trim().trim_matches('"'))
}

/// Decodes the value of `filename*`, which has the form `UTF-8''…` (RFC 5987).
fn decode_extended_value(value: &str) -> Option<String> {
    let (charset, rest) = value.split_once('\'')?;
    let (_, escaped) = rest.split_once('\'')?;
    charset.eq_ignore_ascii_case("utf-8").then(|| crate::percent::decode(escaped.as_bytes()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_file_names_are_decoded() {
        let decode = |text: &str| extended_file_name(text).map(decode_extended_value);
        assert_eq!(decode("form-data; filename*=UTF-8''gr%C3%B6%C3%9Fe.txt"), Some(Some("größe.txt".into())));
        assert_eq!(decode("form-data; filename=\"a\"; filename*=utf-8'en'b%20c"), Some(Some("b c".into())));
        assert_eq!(decode("form-data; filename*=latin1''a"), Some(None));
        assert_eq!(decode("form-data; filename*=UTF-8''%ff"), Some(None));
        assert_eq!(decode("form-data; filename=\"a\""), None);
    }
}
