//! Detects JSON, formats based on JSON, JSON lines, and tables.
//!
//! Only the head of a long file is available. Truncated text is therefore accepted: an incomplete value is JSON, and the
//! incomplete last line of a table is ignored. `disks::text_kind`, in contrast, checks the whole file and is strict.

use std::fmt;
use std::iter;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::Value as Json;

/// The minimum number of rows, and of columns, of a table.
const MIN_TABLE_DIMENSION: usize = 2;

/// The number of rows at the start of a table that must have the same number of columns.
const MAX_ROWS_COMPARED: usize = 10;

/// The values of `type` in <https://datatracker.ietf.org/doc/html/rfc7946#section-1.4>.
const GEO_TYPES: [&str; 9] = [
    "Feature",
    "FeatureCollection",
    "Point",
    "LineString",
    "Polygon",
    "MultiPoint",
    "MultiLineString",
    "MultiPolygon",
    "GeometryCollection",
];

/// Returns the MIME type if `text` is JSON or JSON lines. A document that consists of a single scalar is not treated as JSON.
pub(super) fn detect_json(text: &[u8], is_complete: bool) -> Option<&'static str> {
    if begins_object_or_array(text) && is_json(text, is_complete) {
        return Some(json_based_format(text).unwrap_or("application/json"));
    }
    is_json_lines(text, is_complete).then_some("application/x-ndjson")
}

/// Returns the MIME type if `text` is a table.
pub(super) fn detect_table(text: &[u8], is_complete: bool) -> Option<&'static str> {
    let complete_lines = match text.iter().rposition(|byte| *byte == b'\n') {
        Some(end) if !is_complete => &text[..end],
        _ => text,
    };
    [(b',', "text/csv"), (b'\t', "text/tab-separated-values")]
        .into_iter()
        .find(|(delimiter, _)| is_table(complete_lines, *delimiter))
        .map(|(_, mime)| mime)
}

/// Returns `true` if the first character of `text` begins an object or an array.
fn begins_object_or_array(text: &[u8]) -> bool {
    matches!(text.trim_ascii_start(), [b'{' | b'[', ..])
}

/// Returns `true` if `text` is one JSON value, or the beginning of one if it is incomplete.
fn is_json(text: &[u8], is_complete: bool) -> bool {
    if is_complete {
        return serde_json::from_slice::<IgnoredAny>(text).is_ok();
    }
    // Removes a number at the end, which may be incomplete. The parser reports "1." as invalid, not as truncated.
    let in_number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
    let end = text.iter().rposition(|byte| !in_number(byte));
    let text = &text[..end.map_or(0, |last| last + 1)];
    match serde_json::from_slice::<IgnoredAny>(text) {
        Ok(_) => true,
        Err(error) => error.is_eof(),
    }
}

/// Returns `true` if there are at least two lines, each line is blank or one value, and at least one value is an object or an
/// array. A column of numbers is plain text.
fn is_json_lines(text: &[u8], is_complete: bool) -> bool {
    let is_complete = is_complete || text.ends_with(b"\n");
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let mut lines = text.split(|byte| *byte == b'\n').peekable();
    let (mut count, mut objects_and_arrays) = (0, 0);
    while let Some(line) = lines.next() {
        let is_complete = is_complete || lines.peek().is_some();
        if !line.trim_ascii().is_empty() && !is_json(line, is_complete) {
            return false;
        }
        count += 1;
        objects_and_arrays += usize::from(begins_object_or_array(line));
    }
    count > 1 && objects_and_arrays > 0
}

/// Returns the MIME type of the JSON-based format to which a document belongs, if its members show this. `text` may be
/// truncated.
fn json_based_format(text: &[u8]) -> Option<&'static str> {
    let mut format = None;
    let visitor = FormatVisitor { format: &mut format };
    // A truncated document and an array are errors here. The members before the error are sufficient.
    let _ = serde_json::Deserializer::from_slice(text).deserialize_map(visitor);
    format
}

/// The visitor of the members of a document, which determines the JSON-based format.
struct FormatVisitor<'a> {
    format: &'a mut Option<&'static str>,
}

impl<'de> Visitor<'de> for FormatVisitor<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(name) = members.next_key::<String>()? {
            match name.as_str() {
                "type" => {
                    let value: Json = members.next_value()?;
                    if value.as_str().is_some_and(|name| GEO_TYPES.contains(&name)) {
                        *self.format = Some("application/geo+json");
                    }
                }
                "asset" => {
                    let value: Json = members.next_value()?;
                    if matches!(value["version"].as_str(), Some("1.0" | "2.0")) {
                        self.format.get_or_insert("model/gltf+json");
                    }
                }
                _ => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// Returns `true` if there are enough rows and columns, and the first rows have the same number of columns.
fn is_table(text: &[u8], delimiter: u8) -> bool {
    let rows = csv_rows(text, delimiter, Some(b'#')).take(MAX_ROWS_COMPARED);
    let columns: Vec<usize> = rows.map(|row| row.field_count).collect();
    columns.len() >= MIN_TABLE_DIMENSION
        && columns[0] >= MIN_TABLE_DIMENSION
        && columns.iter().all(|count| *count == columns[0])
}

/// A row of fields that are separated by a delimiter.
pub(crate) struct CsvRow {
    pub(crate) field_count: usize,
    /// `true` if quotes occur only as RFC 4180 allows: around whole fields, and doubled in quoted fields.
    pub(crate) is_strict: bool,
    state: CsvState,
}

/// The state of the parser after a byte of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CsvState {
    /// At the start of a field.
    FieldStart,
    /// In an unquoted field.
    Unquoted,
    /// In a quoted field.
    Quoted,
    /// After a quote in a quoted field. This quote ends the field, or escapes a second quote.
    QuoteInQuoted,
}

/// Returns the rows of `text`, without blank lines and lines that begin with `comment`. Unexpected quotes are interpreted as in
/// the `LazyQuotes` mode of Go's `encoding/csv`.
pub(crate) fn csv_rows(text: &[u8], delimiter: u8, comment: Option<u8>) -> impl Iterator<Item = CsvRow> {
    let mut lines = text.split_inclusive(|byte| *byte == b'\n');
    iter::from_fn(move || {
        let mut row = CsvRow { field_count: 1, is_strict: true, state: CsvState::FieldStart };
        for line in lines.by_ref() {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let is_continued = row.state == CsvState::Quoted;
            if !is_continued && (line.is_empty() || line.first() == comment.as_ref()) {
                continue;
            }
            for &byte in line {
                row.push(byte, delimiter);
            }
            if row.state != CsvState::Quoted {
                return Some(row);
            }
        }
        // The text ended in a quoted field.
        row.is_strict = false;
        (row.state == CsvState::Quoted).then_some(row)
    })
}

impl CsvRow {
    /// Parses the next byte of the row.
    fn push(&mut self, byte: u8, delimiter: u8) {
        let is_quote = byte == b'"';
        self.state = match self.state {
            CsvState::Quoted if is_quote => CsvState::QuoteInQuoted,
            CsvState::Quoted => CsvState::Quoted,
            CsvState::FieldStart | CsvState::QuoteInQuoted if is_quote => CsvState::Quoted,
            _ if byte == delimiter => {
                self.field_count += 1;
                CsvState::FieldStart
            }
            CsvState::FieldStart => CsvState::Unquoted,
            CsvState::Unquoted => {
                self.is_strict &= !is_quote;
                CsvState::Unquoted
            }
            CsvState::QuoteInQuoted => {
                self.is_strict = false;
                CsvState::Quoted
            }
        };
    }
}
