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
struct TurnMessage {
    shape: MessageShape,
    format: Format,
}

impl TurnMessage {
    fn new(role: Role, format: Format, has_references: bool) -> Self {
        // The references of an assistant's message are calls, and those of a user's message are results.
        let is_assistant = role == Role::Assistant;
        let shape = MessageShape {
            is_assistant,
            has_calls: is_assistant && has_references,
            has_results: !is_assistant && has_references,
        };
        Self { shape, format }
    }
}

/// Returns the number of messages after the page's limit that belong to the tool turn of its last message, in the order of the
/// page. `rows` is the page, and at least one message more.
///
/// It is 0 if the turn is not joined, see [`ToolTurn::is_joined`].
pub(super) async fn find_extension(
    conn: &mut PgConnection,
    session: SessionId,
    request: &MessagePageRequest,
    rows: &[MessageRow],
) -> sqlx::Result<usize> {
    let (page, following) = rows.split_at(request.limit.min(rows.len()));
    let (Some(last), Some(next)) = (page.last(), following.first()) else { return Ok(0) };
    // Without tools and consecutive messages of the assistant, the last message belongs to no turn.
    let is_assistant = |row: &MessageRow| row.role == Role::Assistant;
    let may_have_turn =
        page.iter().any(|row| row.call_references.is_some()) || is_assistant(last) && is_assistant(next);
    if !may_have_turn || request.target == Format::Acontext {
        return Ok(0);
    }
    let limit = i64::try_from(MAX_EXTENSION).unwrap_or(i64::MAX);
    let neighbors = page::list_neighbors(conn, session, last.cursor(), request.newest_first, limit).await?;
    let page = page.iter().map(|row| TurnMessage::new(row.role, row.format, row.call_references.is_some()));
    let neighbors = neighbors
        .into_iter()
        .map(|NeighborRow { role, format, has_references }| TurnMessage::new(role, format, has_references));
    Ok(count_extension(page.collect(), neighbors.collect(), request.newest_first, request.target))
}

/// Returns the number of `neighbors` that belong to the turn of the last message of `page`. Both are in the order of the page.
fn count_extension(page: Vec<TurnMessage>, neighbors: Vec<TurnMessage>, newest_first: bool, target: Format) -> usize {
    let page_len = page.len();
    let mut messages: Vec<_> = page.into_iter().chain(neighbors).collect();
    if newest_first {
        messages.reverse();
    }
    let boundary = if newest_first { messages.len() - page_len } else { page_len };
    let turns = find_turns(messages.iter().map(|message| message.shape));
    let is_own = |index: usize| messages[index].format == target;
    let contains_boundary = |turn: &ToolTurn| turn.range().start < boundary && boundary < turn.range().end;
    match turns.into_iter().find(contains_boundary).filter(|turn| turn.is_joined(is_own)) {
        Some(turn) if newest_first => boundary - turn.range().start,
        Some(turn) => turn.range().end - boundary,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a text with a character for each message: `c` a call, `r` a result, `u` and `a` other messages of the user and the
    /// assistant. Capital letters are messages in the target format.
    fn messages(text: &str) -> Vec<TurnMessage> {
        let message = |c: char| {
            let role = if matches!(c.to_ascii_lowercase(), 'c' | 'a') { Role::Assistant } else { Role::User };
            let format = if c.is_ascii_uppercase() { Format::Gemini } else { Format::OpenAi };
            TurnMessage::new(role, format, matches!(c.to_ascii_lowercase(), 'c' | 'r'))
        };
        text.chars().map(message).collect()
    }

    fn forward(page: &str, neighbors: &str) -> usize {
        count_extension(messages(page), messages(neighbors), false, Format::Gemini)
    }

    fn backward(page: &str, neighbors: &str) -> usize {
        let reversed = |text: &str| text.chars().rev().collect::<String>();
        count_extension(messages(&reversed(page)), messages(&reversed(neighbors)), true, Format::Gemini)
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
}
