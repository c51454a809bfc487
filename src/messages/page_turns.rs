//! Extends a page to the end of its last tool turn, because the messages of a tool turn become one item in another format.

use sqlx::PgConnection;

use super::page::{self, MessagePageRequest, MessageRow, NeighborRow};
use crate::conversation::format::Format;
use crate::conversation::history::turns::{MessageShape, ToolTurn, find_turns};
use crate::conversation::parts::Role;
use crate::ids::SessionId;

/// Maximum number of messages by which a page is extended. A longer turn is cut, and read as an interrupted one.
const MAX_EXTENSION: usize = 64;

/// A message of the page, or one that follows it.
#[derive(Clone, Copy)]
struct TurnMessage {
    shape: MessageShape,
    /// `true` if the message is stored in the format of the response.
    is_own: bool,
}

impl TurnMessage {
    fn new(role: Role, has_references: bool, is_own: bool) -> Self {
        // The references of an assistant's message are calls, and those of a user's message are results.
        let is_assistant = role == Role::Assistant;
        let shape = MessageShape {
            is_assistant,
            has_calls: is_assistant && has_references,
            has_results: !is_assistant && has_references,
        };
        Self { shape, is_own }
    }
}

/// Returns the number of messages after the page's limit that belong to the tool turn of its last message, in the order of the
/// page. `rows` is the page, and up to [`MessagePageRequest::lookahead`] messages after it.
///
/// It is 0 if the turn is not joined, see [`ToolTurn::is_joined`].
pub(super) async fn find_extension(
    conn: &mut PgConnection,
    session: SessionId,
    request: &MessagePageRequest,
    rows: &[MessageRow],
) -> sqlx::Result<usize> {
    let (page, following) = rows.split_at(request.limit.min(rows.len()));
    let Some(last) = page.last().filter(|_| !following.is_empty() && request.target != Format::Acontext) else {
        return Ok(0);
    };
    let new_message =
        |row: &MessageRow| TurnMessage::new(row.role, row.call_references.is_some(), row.format == request.target);
    // A page is cut if it would become too large.
    let is_cut = usize::try_from(last.total_in_page).is_ok_and(|total| total > rows.len());
    let page_boundary = PageBoundary {
        page: page.iter().map(new_message).collect(),
        neighbors: following.iter().map(new_message).collect(),
        newest_first: request.newest_first,
        has_more: following.len() == request.lookahead() || is_cut,
    };
    if let Some(extension) = page_boundary.count_extension() {
        return Ok(extension);
    }
    let limit = i64::try_from(MAX_EXTENSION).unwrap_or(i64::MAX);
    let neighbors = page::list_neighbors(conn, session, last.cursor(), request.newest_first, limit).await?;
    let neighbors = neighbors.into_iter().map(|NeighborRow { role, format, has_references }| {
        TurnMessage::new(role, has_references, format == request.target)
    });
    let page_boundary = PageBoundary { neighbors: neighbors.collect(), has_more: false, ..page_boundary };
    Ok(page_boundary.count_extension().unwrap_or_default())
}

/// The messages before and after the end of a page, both in the order of the page.
struct PageBoundary {
    page: Vec<TurnMessage>,
    neighbors: Vec<TurnMessage>,
    newest_first: bool,
    /// `true` if more messages follow the neighbors.
    has_more: bool,
}

impl PageBoundary {
    /// Returns the number of neighbors that belong to the turn of the page's last message. `None` if it depends on messages after
    /// the neighbors.
    fn count_extension(&self) -> Option<usize> {
        let mut messages: Vec<_> = self.page.iter().chain(&self.neighbors).copied().collect();
        if self.newest_first {
            messages.reverse();
        }
        let boundary = if self.newest_first { self.neighbors.len() } else { self.page.len() };
        if self.has_more && !self.ends_turn(&messages, boundary) {
            return None;
        }
        let turns = find_turns(messages.iter().map(|message| message.shape));
        let is_own = |index: usize| messages[index].is_own;
        let contains_boundary = |turn: &ToolTurn| turn.range().start < boundary && boundary < turn.range().end;
        Some(match turns.into_iter().find(contains_boundary).filter(|turn| turn.is_joined(is_own)) {
            Some(turn) if self.newest_first => boundary - turn.range().start,
            Some(turn) => turn.range().end - boundary,
            None => 0,
        })
    }

    /// Returns `true` if no turn contains both the last message of the page and a message after the neighbors: a turn never
    /// contains a message of the user and then one of the assistant.
    fn ends_turn(&self, messages: &[TurnMessage], boundary: usize) -> bool {
        let between = if self.newest_first { &messages[..=boundary] } else { &messages[boundary - 1..] };
        between.windows(2).any(|pair| !pair[0].shape.is_assistant && pair[1].shape.is_assistant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a text with a letter for each message: `c` a call, `r` a result, `u` and `a` other messages of the user and the
    /// assistant. Capital letters are messages in the target format.
    fn messages(letters: &str) -> Vec<TurnMessage> {
        let message = |letter: char| {
            let lowercase = letter.to_ascii_lowercase();
            let role = if matches!(lowercase, 'c' | 'a') { Role::Assistant } else { Role::User };
            TurnMessage::new(role, matches!(lowercase, 'c' | 'r'), letter.is_ascii_uppercase())
        };
        letters.chars().map(message).collect()
    }

    fn count(page: &str, neighbors: &str, newest_first: bool, has_more: bool) -> Option<usize> {
        let (page, neighbors) = (messages(page), messages(neighbors));
        PageBoundary { page, neighbors, newest_first, has_more }.count_extension()
    }

    fn forward(page: &str, neighbors: &str) -> usize {
        count(page, neighbors, false, false).unwrap()
    }

    fn backward(page: &str, neighbors: &str) -> usize {
        let reversed = |text: &str| text.chars().rev().collect::<String>();
        count(&reversed(page), &reversed(neighbors), true, false).unwrap()
    }

    #[test]
    fn a_page_ends_with_its_turn() {
        assert_eq!(forward("uc", "rrau"), 2);
        assert_eq!(forward("ucr", "ra"), 1);
        assert_eq!(forward("uc", "urau"), 2);
        assert_eq!(forward("ucrr", "au"), 0);
        assert_eq!(forward("ua", "ua"), 0);
        assert_eq!(forward("ua", "acra"), 3);
        assert_eq!(backward("ra", "uccr"), 3);
        assert_eq!(backward("au", "ucr"), 0);
    }

    #[test]
    fn a_turn_in_the_target_format_is_not_joined() {
        assert_eq!(forward("UC", "RRA"), 0);
        assert_eq!(forward("UC", "RrA"), 2);
        assert_eq!(backward("RA", "UCR"), 0);
    }

    #[test]
    fn a_turn_that_may_continue_after_the_neighbors_is_undetermined() {
        for (page, neighbors, expected) in [
            ("uc", "r", None),
            ("uc", "rra", Some(2)),
            ("uc", "ur", None),
            ("ua", "aa", None),
            ("ua", "u", None),
            ("ua", "ua", Some(0)),
        ] {
            assert_eq!(count(page, neighbors, false, true), expected, "{page} {neighbors}");
        }
        for (page, neighbors, expected) in [
            ("r", "c", None),
            ("r", "cu", Some(1)),
            ("r", "uc", None),
            ("ar", "c", None),
            ("a", "u", Some(0)),
            ("a", "aa", None),
        ] {
            assert_eq!(count(page, neighbors, true, true), expected, "{page} {neighbors}");
        }
    }
}
