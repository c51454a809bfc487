//! Prompts: their texts, and the functions that put data into them.
//!
//! Texts of users, agents, tools and models are data. They may contain text that looks like instructions, like the end of the
//! data, or like another message. A prompt therefore contains them only as the text of an [`Element`](element::Element): `<`, `>`
//! and `&` are escaped, so that no text can end its element or begin another one, and characters that are not visible are removed
//! ([`text`]). Each text has a maximum length, and all texts together have a maximum number of tokens ([`budget`]), which they
//! share fairly. The system prompt is constant: no data is ever part of it.
//!
//! All functions are pure, and none fails: a message whose parts are malformed is rendered as far as possible.

pub mod budget;
pub mod element;
pub mod messages;
mod part;
pub mod text;

/// The system prompt of the task agent.
pub const TASK_AGENT_SYSTEM: &str = include_str!("task_agent.md");
/// The system prompt of the distillation of a successful task.
pub const DISTILL_SUCCESS_SYSTEM: &str = include_str!("distill_success.md");
/// The system prompt of the distillation of a failed task.
pub const DISTILL_FAILURE_SYSTEM: &str = include_str!("distill_failure.md");
/// The system prompt of the skill agent.
pub const SKILL_AGENT_SYSTEM: &str = include_str!("skill_agent.md");
