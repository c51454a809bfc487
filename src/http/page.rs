//! The query parameters and the response of paginated lists. [`crate::db::page`] explains the order and the cursors.

use serde::{Deserialize, Serialize};

use super::extract::{LenientBool, LenientInt};
use crate::db::page::{Cursor, PageRequest, Paged};
use crate::error::{Error, Result};

/// The query parameters of a paginated list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageParams {
    /// Maximum number of entries.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 200)]
    pub limit: Option<LenientInt>,
    /// `next_cursor` of the previous page.
    #[serde(default)]
    pub cursor: Option<String>,
    /// Return the newest entries first.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    pub time_desc: Option<LenientBool>,
}

impl PageParams {
    /// Parses the parameters. The limit must be from 1 to `max`. If it is absent, the limit is `default`.
    ///
    /// # Errors
    /// Returns 400 with the name of the parameter if a parameter is invalid.
    pub fn parse(self, default: u16, max: u16) -> Result<PageRequest> {
        self.parse_within(default.into(), 1, max)
    }

    fn parse_within(self, default: usize, min: u16, max: u16) -> Result<PageRequest> {
        let limit = match self.limit.and_then(LenientInt::get) {
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
        Ok(PageRequest { limit, after, newest_first: self.time_desc.is_some_and(LenientBool::is_set) })
    }
}

/// The query parameters of a list that returns all entries if the request has no limit.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UnlimitedPageParams {
    /// Maximum number of entries. Without it, or with 0, all entries are returned, up to the limits of the server.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 0, maximum = 200)]
    limit: Option<LenientInt>,
    /// `next_cursor` of the previous page.
    #[serde(default)]
    cursor: Option<String>,
    /// Return the newest entries first.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    time_desc: Option<LenientBool>,
}

impl UnlimitedPageParams {
    /// Parses the parameters. The limit must be from 0 to `max`. If it is 0 or absent, the limit is `default`.
    ///
    /// # Errors
    /// Returns 400 with the name of the parameter if a parameter is invalid.
    pub fn parse(self, default: usize, max: u16) -> Result<PageRequest> {
        let limit = self.limit.filter(|limit| limit.get() != Some(0));
        PageParams { limit, cursor: self.cursor, time_desc: self.time_desc }.parse_within(default, 0, max)
    }
}

/// One page of a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Page<T> {
    /// Entries of the page.
    pub items: Vec<T>,
    /// Cursor of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// `true` if there is another page.
    pub has_more: bool,
    /// For each entry, the cursor of the page that begins after it.
    #[serde(skip)]
    pub cursors: Vec<Cursor>,
}

/// The size of the serialized entries in bytes after which a page ends early. It is not lower because many clients read only one
/// page.
const MAX_PAGE_BYTES: usize = 32 << 20;

impl<T: Paged> Page<T> {
    /// Creates a page from the rows of a query whose LIMIT is [`PageRequest::fetch_limit`].
    pub fn new(mut rows: Vec<T>, page: &PageRequest) -> Self {
        let has_more = rows.len() > page.limit;
        rows.truncate(page.limit);
        let cursors: Vec<_> = rows.iter().map(Paged::cursor).collect();
        let next_cursor = cursors.last().filter(|_| has_more).map(Cursor::encode);
        Self { items: rows, next_cursor, has_more, cursors }
    }

    /// Removes all entries after the first `n`, but keeps at least one. The page must have more than `n` entries.
    #[must_use]
    pub fn truncate_to(mut self, n: usize) -> Self {
        self.items.truncate(n.max(1));
        self.cursors.truncate(n.max(1));
        let next_cursor = self.cursors.last().map(Cursor::encode);
        Self { next_cursor, has_more: true, ..self }
    }
}

impl<T: Serialize> Page<T> {
    /// Serializes the response envelope with this page. If the entries exceed `MAX_PAGE_BYTES`, the page ends early, and the next
    /// one begins with the following entry.
    ///
    /// # Errors
    /// Returns an error if an entry cannot be serialized, which never happens.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut json = b"{\"code\":0,\"data\":{\"items\":[".to_vec();
        let (mut next_cursor, mut has_more) = (self.next_cursor.clone(), self.has_more);
        for (i, item) in self.items.iter().enumerate() {
            if i > 0 {
                json.push(b',');
            }
            serde_json::to_writer(&mut json, item)?;
            if json.len() > MAX_PAGE_BYTES && i + 1 < self.items.len() {
                (next_cursor, has_more) = (self.cursors.get(i).map(Cursor::encode), true);
                break;
            }
        }
        json.push(b']');
        if let Some(next_cursor) = next_cursor {
            json.extend_from_slice(b",\"next_cursor\":");
            serde_json::to_writer(&mut json, &next_cursor)?;
        }
        json.extend_from_slice(b",\"has_more\":");
        serde_json::to_writer(&mut json, &has_more)?;
        json.extend_from_slice(b"},\"msg\":\"\"}");
        Ok(json)
    }
}
