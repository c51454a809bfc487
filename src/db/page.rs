//! Cursor pagination of lists that are ordered by `(created_at, id)`, in both directions.
//!
//! A cursor has upstream's format: unpadded base64url of `<unix nanoseconds>|<uuid>`. It is not bound to a list or a
//! direction. A query reads one row more than the page has, to detect whether there is another page.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::error::{Error, Result};

/// The position after which a page begins: the sort key of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub created_at: DateTime<Utc>,
    pub id: Uuid,
}

impl Cursor {
    /// The position before all rows of a list that begins with the oldest row.
    pub const START: Self = Self { created_at: DateTime::UNIX_EPOCH, id: Uuid::nil() };

    /// Returns the text of this cursor.
    pub fn encode(&self) -> String {
        // Nanoseconds fit into 64 bits until the year 2262. Upstream's clients have the same limit.
        let nanos = self.created_at.timestamp_nanos_opt().unwrap_or(i64::MAX);
        URL_SAFE_NO_PAD.encode(format!("{nanos}|{}", self.id))
    }

    /// Parses the text of a cursor. Returns `None` if its id is the nil UUID, which no row has.
    ///
    /// # Errors
    /// Returns 400 if the text is not a cursor.
    pub fn decode(cursor: &str) -> Result<Option<Self>> {
        let parsed = Self::parse(cursor).ok_or_else(|| {
            Error::invalid_field("cursor", "invalid cursor; use the next_cursor of the previous page")
        })?;
        Ok((!parsed.id.is_nil()).then_some(parsed))
    }

    fn parse(cursor: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
        let (nanos, id) = text.split_once('|')?;
        let created_at = DateTime::from_timestamp_nanos(nanos.parse().ok()?);
        Some(Self { created_at, id: Uuid::try_parse(id).ok()? })
    }
}

/// The parameters of a page.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    pub limit: usize,
    pub after: Option<Cursor>,
    pub newest_first: bool,
}

impl PageRequest {
    /// Returns the LIMIT of the query, one row more than the page has.
    pub fn fetch_limit(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX).saturating_add(1)
    }

    /// Returns the time and the id of the cursor, as two query parameters.
    pub fn after_params(&self) -> (Option<DateTime<Utc>>, Option<Uuid>) {
        (self.after.map(|cursor| cursor.created_at), self.after.map(|cursor| cursor.id))
    }
}

/// A row of a paginated list.
pub trait Paged {
    /// Returns the cursor of the page that begins after this row.
    fn cursor(&self) -> Cursor;
}

/// Implements [`Paged`] for rows with the fields `created_at` and `id`.
macro_rules! impl_paged {
    ($Row:ty) => {
        impl $crate::db::page::Paged for $Row {
            fn cursor(&self) -> $crate::db::page::Cursor {
                $crate::db::page::Cursor { created_at: self.created_at.0, id: self.id.0 }
            }
        }
    };
}

/// Reads a page of a list, for example:
///
/// ```ignore
/// fetch_page!(select_users!("users t where t.project_id = $4"; project as _), conn, page)
/// ```
///
/// `$select` is a macro that the caller defines. Its arguments are an SQL text and the parameters. It calls `query_as!` with
/// `select <columns> from <text>` and the parameters. `$rest` is the beginning of the text. It must begin with the table of the
/// list under the alias `t`, and end with a WHERE clause, to which this macro adds the condition for the cursor. The parameters
/// of the caller begin with `$4`, because this macro uses `$1` to `$3`.
///
/// There is one statement for each direction, so that both are checked at compile time and both can use an index.
macro_rules! fetch_page {
    ($select:ident!($rest:literal; $($parameter:expr),* $(,)?), $conn:expr, $page:expr) => {{
        let page: &$crate::db::page::PageRequest = $page;
        let (after_time, after_id) = page.after_params();
        if page.newest_first {
            $select!(
                $rest " and (t.created_at, t.id) < (coalesce($1, 'infinity'::timestamptz),
                                                    coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
                        order by t.created_at desc, t.id desc limit $3";
                after_time, after_id, page.fetch_limit() $(, $parameter)*
            )
            .fetch_all($conn)
            .await
        } else {
            $select!(
                $rest " and (t.created_at, t.id) > (coalesce($1, '-infinity'::timestamptz),
                                                    coalesce($2, '00000000-0000-0000-0000-000000000000'::uuid))
                        order by t.created_at, t.id limit $3";
                after_time, after_id, page.fetch_limit() $(, $parameter)*
            )
            .fetch_all($conn)
            .await
        }
    }};
}

pub(crate) use {fetch_page, impl_paged};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cursor_has_the_format_of_upstream() {
        let text = URL_SAFE_NO_PAD.encode("1704110400000000000|123e4567-e89b-12d3-a456-426614174000");
        let cursor = Cursor::decode(&text).unwrap().unwrap();
        assert_eq!(cursor.created_at.to_rfc3339(), "2024-01-01T12:00:00+00:00");
        assert_eq!(cursor.encode(), text);
    }

    #[test]
    fn a_cursor_with_the_nil_id_is_none() {
        let cursor = URL_SAFE_NO_PAD.encode(format!("1704110400000000000|{}", Uuid::nil()));
        assert_eq!(Cursor::decode(&cursor).unwrap(), None);
    }

    #[test]
    fn invalid_cursors_are_rejected() {
        for text in ["garbage", "####", "MTIz", "fHw", "MXwyfDM"] {
            assert!(Cursor::decode(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_cursor_round_trips(micros in 0_i64..4_000_000_000_000_000, id in any::<u128>()) {
            prop_assume!(id != 0);
            let cursor = Cursor {
                created_at: DateTime::from_timestamp_micros(micros).unwrap(),
                id: Uuid::from_u128(id),
            };
            prop_assert_eq!(Cursor::decode(&cursor.encode()).unwrap(), Some(cursor));
        }

        #[test]
        fn decoding_any_text_never_panics(text in ".{0,80}") {
            let _ = Cursor::decode(&text);
        }
    }
}
