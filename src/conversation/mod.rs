//! A message as a value: no I/O, no clock.
//!
//! [`parts`] is the model that all formats are converted to and from, [`mod@format`] has the four formats of providers, [`tokens`]
//! counts tokens, and [`edit`] shortens a conversation.

pub mod edit;
pub mod format;
pub mod parts;
pub mod tokens;
