//! The text of a lesson.

use crate::learn::prompt::text;
use crate::lessons::LessonKind;

/// The maximum length of a field, in characters.
const MAX_FIELD_CHARS: usize = 2_000;
/// The maximum number of decisions or facts.
const MAX_ENTRIES: usize = 50;

/// A lesson that was distilled from a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DistilledLesson {
    pub kind: LessonKind,
    /// A title, and a line for each field or a list.
    pub text: String,
}

/// Builds the text of a lesson from fields with labels.
pub(super) struct LessonText {
    lines: Vec<String>,
}

impl LessonText {
    pub(super) fn new(title: &str) -> Self {
        Self { lines: vec![title.to_owned()] }
    }

    /// Appends a line with a label.
    ///
    /// # Errors
    /// Returns a text for the model if the value is blank.
    pub(super) fn field(&mut self, name: &str, label: &str, value: &str) -> Result<(), String> {
        let value = clean(value);
        if value.is_empty() {
            return Err(format!("The argument `{name}` must not be empty."));
        }
        self.lines.push(format!("{label}: {value}"));
        Ok(())
    }

    /// Appends a label and a list. Blank entries are omitted.
    ///
    /// # Errors
    /// Returns a text for the model if no entry remains.
    pub(super) fn list(&mut self, name: &str, label: &str, entries: &[String]) -> Result<(), String> {
        let entries = entries.iter().map(|entry| clean(entry)).filter(|entry| !entry.is_empty());
        let lines: Vec<_> = entries.take(MAX_ENTRIES).map(|entry| format!("  - {entry}")).collect();
        if lines.is_empty() {
            return Err(format!("The argument `{name}` must have an entry that is not empty."));
        }
        self.lines.push(format!("{label}:"));
        self.lines.extend(lines);
        Ok(())
    }

    pub(super) fn finish(self, kind: LessonKind) -> DistilledLesson {
        DistilledLesson { kind, text: self.lines.join("\n") }
    }
}

/// Removes invisible characters and the space around a text, and shortens it.
fn clean(value: &str) -> String {
    text::cut(value.trim(), MAX_FIELD_CHARS).text.trim().to_owned()
}
