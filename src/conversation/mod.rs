//! Pure functions on messages and conversations. They do no I/O and read no clock.
//!
//! [`parts`] is the common model that every format is converted to and from, [`mod@format`] implements the four message formats,
//! [`history`] converts messages that belong together, [`tokens`] counts tokens, and [`edit`] shortens a conversation with edit
//! strategies.

pub mod edit;
pub mod format;
pub mod history;
pub mod parts;
pub mod tokens;
