//! The tool turns of a conversation: the messages that providers require to stand together.
//!
//! A tool turn consists of consecutive messages of the assistant that contain tool calls, because some clients store each content
//! block as a message, and then of the messages of the user up to the last one with a result.

use std::ops::Range;

/// The properties of a message that determine the tool turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageShape {
    pub is_assistant: bool,
    /// `true` if this is a message of an assistant with tool calls.
    pub has_calls: bool,
    /// `true` if this is a message of a user with tool results.
    pub has_results: bool,
}

/// The messages of a tool turn, by their indices. The messages of the assistant precede those of the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolTurn {
    pub assistant: Range<usize>,
    /// Empty if no result follows the calls.
    pub user: Range<usize>,
}

impl ToolTurn {
    pub fn range(&self) -> Range<usize> {
        self.assistant.start..self.user.end
    }

    /// Returns `true` if the messages of the turn must be joined. `is_own` returns `true` for a message that is stored in the
    /// target format.
    pub fn is_joined(&self, is_own: impl Fn(usize) -> bool) -> bool {
        if self.user.is_empty() {
            // Without results, calls in several formats need not stand together.
            !self.assistant.clone().any(is_own)
        } else {
            !self.range().all(is_own)
        }
    }
}

/// Finds the tool turns of consecutive messages while they are added one by one.
#[derive(Debug, Default)]
pub struct TurnFinder {
    /// The number of messages added so far.
    count: usize,
    /// The turn that has begun and may still grow.
    open: Option<OpenTurn>,
}

/// Consecutive messages of the assistant and the messages of the user after them. It is a tool turn if there is a call.
#[derive(Debug)]
struct OpenTurn {
    start: usize,
    /// The end of the messages up to the last one with a call; `None` if there is no call yet.
    calls_end: Option<usize>,
    /// The end of the messages of the assistant.
    assistant_end: usize,
    /// The end of the messages up to the last one with a result; `None` if there is no result yet.
    results_end: Option<usize>,
}

impl OpenTurn {
    fn close(&self) -> Option<ToolTurn> {
        let calls_end = self.calls_end?;
        Some(match self.results_end {
            Some(end) => ToolTurn { assistant: self.start..self.assistant_end, user: self.assistant_end..end },
            // Without results, nothing has to follow the last call directly.
            None => ToolTurn { assistant: self.start..calls_end, user: calls_end..calls_end },
        })
    }
}

impl TurnFinder {
    /// Adds the next message. Returns the turn that ends before it.
    pub fn push(&mut self, shape: MessageShape) -> Option<ToolTurn> {
        let index = self.count;
        self.count += 1;
        match &mut self.open {
            // Messages of the assistant belong to the turn until a message of the user follows.
            Some(open) if shape.is_assistant && open.assistant_end == index => {
                open.assistant_end = index + 1;
                if shape.has_calls {
                    open.calls_end = Some(index + 1);
                }
                None
            }
            Some(open) if !shape.is_assistant && open.calls_end.is_some() => {
                if shape.has_results {
                    open.results_end = Some(index + 1);
                }
                None
            }
            _ => {
                let ended = self.finish();
                if shape.is_assistant {
                    let calls_end = shape.has_calls.then_some(index + 1);
                    let open = OpenTurn { start: index, calls_end, assistant_end: index + 1, results_end: None };
                    self.open = Some(open);
                }
                ended
            }
        }
    }

    /// Returns the turn that has begun, which ends with the messages added so far.
    pub fn finish(&mut self) -> Option<ToolTurn> {
        self.open.take()?.close()
    }

    /// Returns the index of the first message that may belong to a turn with a later message; the number of messages if there is
    /// none.
    pub fn first_open(&self) -> usize {
        self.open.as_ref().map_or(self.count, |open| open.start)
    }
}

/// Returns the tool turns of consecutive messages, in their order.
pub fn find_turns(shapes: impl IntoIterator<Item = MessageShape>) -> Vec<ToolTurn> {
    let mut finder = TurnFinder::default();
    let mut turns: Vec<_> = shapes.into_iter().filter_map(|shape| finder.push(shape)).collect();
    turns.extend(finder.finish());
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a text with a character for each message: `c` a call, `a` another message of the assistant, `r` a result, `u`
    /// another message of the user.
    fn turns(history: &str) -> Vec<(Range<usize>, Range<usize>)> {
        let shape =
            |c| MessageShape { is_assistant: matches!(c, 'c' | 'a'), has_calls: c == 'c', has_results: c == 'r' };
        find_turns(history.chars().map(shape)).into_iter().map(|turn| (turn.assistant, turn.user)).collect()
    }

    #[test]
    fn texts_belong_to_no_turn() {
        assert_eq!(turns("uaauu"), []);
    }

    #[test]
    fn a_turn_ends_with_the_last_result() {
        assert_eq!(turns("ucrrua"), [(1..2, 2..4)]);
        assert_eq!(turns("ucurua"), [(1..2, 2..4)]);
    }

    #[test]
    fn a_turn_that_is_stored_block_by_block_is_one_turn() {
        assert_eq!(turns("uaccrr"), [(1..4, 4..6)]);
        assert_eq!(turns("ucacarr"), [(1..5, 5..7)]);
    }

    #[test]
    fn a_turn_without_results_ends_with_the_last_call() {
        assert_eq!(turns("ucaca"), [(1..4, 4..4)]);
        assert_eq!(turns("ucauua"), [(1..2, 2..2)]);
    }

    #[test]
    fn each_round_of_calls_is_a_turn() {
        assert_eq!(turns("ucrcrra"), [(1..2, 2..3), (3..4, 4..6)]);
    }

    #[test]
    fn results_without_calls_begin_no_turn() {
        assert_eq!(turns("urrar"), []);
    }
}
