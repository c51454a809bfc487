//! Cursor paging: one way to walk a list that is ordered by `(created_at, id)`, in both directions.
//!
//! A cursor is a position, spelled as clients of Acontext know it: unpadded base64url of `<unix nanoseconds>|<uuid>`. It is
//! bound to no list and no direction. A list reads one row more than it shows; that row tells whether there is more.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::extract::{Flag, Int};
use crate::error::{Error, Result};

/// Where a page begins: after this row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub created_at: DateTime<Utc>,
    pub id: Uuid,
}

impl Position {
    /// The cursor that names this position.
    pub fn encode(&self) -> String {
        // In range until the year 2262, as in every client.
        let nanos = self.created_at.timestamp_nanos_opt().unwrap_or(i64::MAX);
        URL_SAFE_NO_PAD.encode(format!("{nanos}|{}", self.id))
    }

    /// Reads a cursor; `Ok(None)` for one that names no row (the nil id).
    pub fn decode(cursor: &str) -> Result<Option<Self>> {
        let position = Self::parse(cursor).ok_or_else(|| {
            Error::field("cursor", "cannot be read; send the next_cursor of the page before, or none")
        })?;
        Ok((!position.id.is_nil()).then_some(position))
    }

    fn parse(cursor: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
        let (nanos, id) = text.split_once('|')?;
        let created_at = DateTime::from_timestamp_nanos(nanos.parse().ok()?);
        Some(Self { created_at, id: Uuid::try_parse(id).ok()? })
    }
}

/// The paging parameters of a list, as they come.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// How many entries at most.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 200)]
    pub limit: Option<Int>,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    pub cursor: Option<String>,
    /// Newest first.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    pub time_desc: Option<Flag>,
}

/// The paging parameters of a list, understood.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    pub limit: usize,
    pub after: Option<Position>,
    pub newest_first: bool,
}

impl PageQuery {
    /// `default` entries if no limit is given; from 1 to `max`.
    pub fn parse(self, default: u16, max: u16) -> Result<Page> {
        self.parse_within(default.into(), 1, max)
    }

    /// `all` entries if no limit is given, or 0; up to `max` otherwise.
    pub fn parse_or_all(mut self, all: usize, max: u16) -> Result<Page> {
        self.limit = self.limit.filter(|limit| limit.given() != Some(0));
        self.parse_within(all, 0, max)
    }

    fn parse_within(self, default: usize, min: u16, max: u16) -> Result<Page> {
        let limit = match self.limit.and_then(Int::given) {
            None => default,
            Some(n) => u16::try_from(n)
                .ok()
                .filter(|n| (min..=max).contains(n))
                .ok_or_else(|| Error::field("limit", format_args!("must be from {min} to {max}")))?
                .into(),
        };
        let after = match self.cursor.as_deref() {
            None | Some("") => None,
            Some(cursor) => Position::decode(cursor)?,
        };
        Ok(Page { limit, after, newest_first: self.time_desc.is_some_and(Flag::is_set) })
    }
}

impl Page {
    /// What a query asks for: one row more than the page shows.
    pub fn fetch(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX).saturating_add(1)
    }

    /// The time and id after which rows are wanted, as two query parameters.
    pub fn start(&self) -> (Option<DateTime<Utc>>, Option<Uuid>) {
        (self.after.map(|at| at.created_at), self.after.map(|at| at.id))
    }
}

/// One page of a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PageOf<T> {
    pub items: Vec<T>,
    /// Present only if there is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    pub has_more: bool,
}

impl<T> PageOf<T> {
    /// Makes a page of the rows that [`Page::fetch`] brought; `position` tells where a row stands in the order.
    pub fn new(mut rows: Vec<T>, page: &Page, position: impl Fn(&T) -> Position) -> Self {
        let has_more = rows.len() > page.limit;
        rows.truncate(page.limit);
        let next_cursor = rows.last().filter(|_| has_more).map(|row| position(row).encode());
        Self { items: rows, next_cursor, has_more }
    }

    /// Ends a page earlier than its limit says: after `n` rows, at least one.
    #[must_use]
    pub fn end_after(mut self, n: usize, position: impl Fn(&T) -> Position) -> Self {
        self.items.truncate(n.max(1));
        let next_cursor = self.items.last().map(|row| position(row).encode());
        Self { items: self.items, next_cursor, has_more: true }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cursor_is_spelled_as_upstream_spells_it() {
        let cursor = URL_SAFE_NO_PAD.encode("1704110400000000000|123e4567-e89b-12d3-a456-426614174000");
        let position = Position::decode(&cursor).unwrap().unwrap();
        assert_eq!(position.created_at.to_rfc3339(), "2024-01-01T12:00:00+00:00");
        assert_eq!(position.encode(), cursor);
    }

    #[test]
    fn a_cursor_with_the_nil_id_names_no_row() {
        let cursor = URL_SAFE_NO_PAD.encode(format!("1704110400000000000|{}", Uuid::nil()));
        assert_eq!(Position::decode(&cursor).unwrap(), None);
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        for text in ["garbage", "####", "MTIz", "fHw", "MXwyfDM"] {
            assert!(Position::decode(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_cursor_round_trips(micros in 0_i64..4_000_000_000_000_000, id in any::<u128>()) {
            prop_assume!(id != 0);
            let position = Position {
                created_at: DateTime::from_timestamp_micros(micros).unwrap(),
                id: Uuid::from_u128(id),
            };
            prop_assert_eq!(Position::decode(&position.encode()).unwrap(), Some(position));
        }

        #[test]
        fn reading_any_text_never_panics(text in ".{0,80}") {
            let _ = Position::decode(&text);
        }
    }
}
