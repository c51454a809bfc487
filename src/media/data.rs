//! Text that is data: JSON in its dialects, JSON lines, and tables.
//!
//! The start of a long file has to be enough, so what the end of the window cuts off gets the benefit of the doubt: a
//! value that ends too early is still JSON, and the last line of a table does not count.
//!
//! Next: `disks::parse`, which is strict, for it sees the whole file.

use std::fmt;
use std::iter;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::Value as Json;

/// A table has at least this many rows, and as many columns.
const SMALLEST_TABLE: usize = 2;

/// How many rows of a table have to agree on the number of columns.
const ROWS_COMPARED: usize = 10;

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

/// The kind of data, if `text` is any. A lone string or number is no JSON document here, just words.
pub(super) fn json(text: &[u8], whole: bool) -> Option<&'static str> {
    if is_container(text) && is_json(text, whole) {
        return Some(json_dialect(text).unwrap_or("application/json"));
    }
    is_json_lines(text, whole).then_some("application/x-ndjson")
}

pub(super) fn table(text: &[u8], whole: bool) -> Option<&'static str> {
    let complete = match text.iter().rposition(|byte| *byte == b'\n') {
        Some(end) if !whole => &text[..end],
        _ => text,
    };
    [(b',', "text/csv"), (b'\t', "text/tab-separated-values")]
        .into_iter()
        .find(|(delimiter, _)| is_table(complete, *delimiter))
        .map(|(_, kind)| kind)
}

fn is_container(text: &[u8]) -> bool {
    matches!(text.trim_ascii_start(), [b'{' | b'[', ..])
}

fn is_json(text: &[u8], whole: bool) -> bool {
    if whole {
        return serde_json::from_slice::<IgnoredAny>(text).is_ok();
    }
    // A number may end anywhere, but a parser takes "1." for a mistake and not for the beginning of something.
    let in_number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
    let end = text.iter().rposition(|byte| !in_number(byte));
    let text = &text[..end.map_or(0, |last| last + 1)];
    match serde_json::from_slice::<IgnoredAny>(text) {
        Ok(_) => true,
        Err(error) => error.is_eof(),
    }
}

/// One value per line, at least two lines, and not only scalars: a column of numbers is a text.
fn is_json_lines(text: &[u8], whole: bool) -> bool {
    let whole = whole || text.ends_with(b"\n");
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let mut lines = text.split(|byte| *byte == b'\n').peekable();
    let (mut count, mut containers) = (0, 0);
    while let Some(line) = lines.next() {
        let whole = whole || lines.peek().is_some();
        if !line.trim_ascii().is_empty() && !is_json(line, whole) {
            return false;
        }
        count += 1;
        containers += usize::from(is_container(line));
    }
    count > 1 && containers > 0
}

/// The format built on JSON that the members of a document show. Members past the end of the window are not missed.
fn json_dialect(text: &[u8]) -> Option<&'static str> {
    let mut dialect = None;
    let members = Members { dialect: &mut dialect };
    // A cut document and an array are errors here; what was seen before counts.
    let _ = serde_json::Deserializer::from_slice(text).deserialize_map(members);
    dialect
}

struct Members<'a> {
    dialect: &'a mut Option<&'static str>,
}

impl<'de> Visitor<'de> for Members<'_> {
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
                        *self.dialect = Some("application/geo+json");
                    }
                }
                "asset" => {
                    let value: Json = members.next_value()?;
                    if matches!(value["version"].as_str(), Some("1.0" | "2.0")) {
                        self.dialect.get_or_insert("model/gltf+json");
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

fn is_table(text: &[u8], delimiter: u8) -> bool {
    let widths: Vec<usize> = csv_rows(text, delimiter, Some(b'#')).take(ROWS_COMPARED).map(|row| row.width).collect();
    widths.len() >= SMALLEST_TABLE && widths[0] >= SMALLEST_TABLE && widths.iter().all(|width| *width == widths[0])
}

/// A row of comma-separated values, or of values separated by something else.
pub(crate) struct CsvRow {
    /// The number of fields.
    pub(crate) width: usize,
    /// Whether quotes stand only around whole fields, as RFC 4180 wants it.
    pub(crate) is_strict: bool,
    place: Place,
}

/// Where in a row the reader is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    FieldStart,
    Plain,
    Quoted,
    /// Behind a quote in a quoted field: that is the end of the field, or the first half of a doubled quote.
    Quote,
}

/// The rows of `text`, without blank lines and those that begin with `comment`. Stray quotes are read as the lazy mode
/// of Go's `encoding/csv` reads them.
pub(crate) fn csv_rows(text: &[u8], delimiter: u8, comment: Option<u8>) -> impl Iterator<Item = CsvRow> {
    let mut lines = text.split_inclusive(|byte| *byte == b'\n');
    iter::from_fn(move || {
        let mut row = CsvRow { width: 1, is_strict: true, place: Place::FieldStart };
        for line in lines.by_ref() {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let is_continued = row.place == Place::Quoted;
            if !is_continued && (line.is_empty() || line.first() == comment.as_ref()) {
                continue;
            }
            for &byte in line {
                row.read(byte, delimiter);
            }
            if row.place != Place::Quoted {
                return Some(row);
            }
        }
        // The text ended inside quotes.
        row.is_strict = false;
        (row.place == Place::Quoted).then_some(row)
    })
}

impl CsvRow {
    fn read(&mut self, byte: u8, delimiter: u8) {
        let is_quote = byte == b'"';
        self.place = match self.place {
            Place::Quoted if is_quote => Place::Quote,
            Place::Quoted => Place::Quoted,
            Place::FieldStart | Place::Quote if is_quote => Place::Quoted,
            _ if byte == delimiter => {
                self.width += 1;
                Place::FieldStart
            }
            Place::FieldStart => Place::Plain,
            Place::Plain => {
                self.is_strict &= !is_quote;
                Place::Plain
            }
            Place::Quote => {
                self.is_strict = false;
                Place::Quoted
            }
        };
    }
}
