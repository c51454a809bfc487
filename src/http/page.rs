//! The paging parameters of a list, and one page of it; see [`crate::db::page`] for the order and the cursors.

use serde::{Deserialize, Serialize};

use super::extract::{Flag, Int};
use crate::db::page::{Cursor, PageRequest, Paged};
use crate::error::{Error, Result};

/// The paging parameters of a list, as a client sends them.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageParams {
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

impl PageParams {
    /// Parses the parameters, with `default` entries if no limit is given, and from 1 to `max`.
    ///
    /// # Errors
    /// Returns 400 that names the parameter.
    pub fn parse(self, default: u16, max: u16) -> Result<PageRequest> {
        self.parse_within(default.into(), 1, max)
    }

    /// Parses the parameters, with `all` entries if no limit or 0 is given, and up to `max` otherwise.
    ///
    /// # Errors
    /// Returns 400 that names the parameter.
    pub fn parse_or_all(mut self, all: usize, max: u16) -> Result<PageRequest> {
        self.limit = self.limit.filter(|limit| limit.given() != Some(0));
        self.parse_within(all, 0, max)
    }

    fn parse_within(self, default: usize, min: u16, max: u16) -> Result<PageRequest> {
        let limit = match self.limit.and_then(Int::given) {
            None => default,
            Some(n) => u16::try_from(n)
                .ok()
                .filter(|n| (min..=max).contains(n))
                .ok_or_else(|| Error::invalid_field("limit", format_args!("must be from {min} to {max}")))?
                .into(),
        };
        let after = match self.cursor.as_deref() {
            None | Some("") => None,
            Some(cursor) => Cursor::decode(cursor)?,
        };
        Ok(PageRequest { limit, after, newest_first: self.time_desc.is_some_and(Flag::is_set) })
    }
}

/// One page of a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Present only if there is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    pub has_more: bool,
}

impl<T: Paged> Page<T> {
    /// Makes a page of rows that were read with [`PageRequest::fetch_limit`].
    pub fn new(mut rows: Vec<T>, page: &PageRequest) -> Self {
        let has_more = rows.len() > page.limit;
        rows.truncate(page.limit);
        let next_cursor = rows.last().filter(|_| has_more).map(|row| row.cursor().encode());
        Self { items: rows, next_cursor, has_more }
    }

    /// Ends the page before its limit: after `n` rows, at least one.
    #[must_use]
    pub fn truncate_to(mut self, n: usize) -> Self {
        self.items.truncate(n.max(1));
        let next_cursor = self.items.last().map(|row| row.cursor().encode());
        Self { items: self.items, next_cursor, has_more: true }
    }
}
