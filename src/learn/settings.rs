//! The project's settings for observation.

use serde::Deserialize;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::config::Learning;
use crate::ids::ProjectId;

/// The settings of a project for observation: the object `project_config` in its `configs`.
///
/// A project can store values of any type. A value of another type counts as missing. An integer above the maximum of its setting
/// counts as the maximum. A number of iterations below 1 counts as missing, because the agent could do nothing; any other integer
/// below the minimum of its setting counts as the minimum.
#[derive(Debug, PartialEq, Eq)]
pub struct ObservationSettings {
    /// Number of pending messages at which a session is observed immediately. `None` stands for the server's default.
    pub max_turns: Option<i64>,
    /// Maximum number of additional messages in a batch. `None` stands for the server's default.
    pub max_overflow: Option<i64>,
    /// Number of messages before the batch that the model receives as context.
    pub previous_message_count: usize,
    /// Maximum number of model calls for a batch.
    pub max_iterations: u32,
    /// Number of existing progress entries that the model receives, in total.
    pub previous_progress_count: usize,
    /// The criteria for the success of a task.
    pub success_criteria: Option<String>,
    /// The criteria for the failure of a task.
    pub failure_criteria: Option<String>,
}

const DEFAULT_PREVIOUS_MESSAGES: i64 = 3;
const DEFAULT_ITERATIONS: i64 = 6;
const DEFAULT_PREVIOUS_PROGRESS: i64 = 6;

/// The maximum number of messages in a batch. Their tags alone have about a quarter of the tokens that a batch may have in a
/// prompt.
const MAX_BATCH_MESSAGES: i64 = 256;
/// The maximum number of previous messages and progress entries. Prompts have no room for more.
const MAX_CONTEXT_ENTRIES: i64 = 100;
/// The maximum number of model calls, so that a wrong value cannot cause unlimited costs.
const MAX_ITERATIONS: i64 = 50;

/// The stored settings. All values are optional and may have any type.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ProjectConfig {
    project_session_message_buffer_max_turns: Value,
    project_session_message_buffer_max_overflow: Value,
    project_session_message_use_previous_messages_turns: Value,
    default_task_agent_max_iterations: Value,
    default_task_agent_previous_progress_num: Value,
    task_success_criteria: Value,
    task_failure_criteria: Value,
}

/// Loads the settings of a project. All settings have their defaults if the project does not exist.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn load(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<ObservationSettings> {
    let config = sqlx::query_scalar!(
        r#"select case when jsonb_typeof(configs -> 'project_config') = 'object'
                       then configs -> 'project_config' end as "config: Json<ProjectConfig>"
           from projects where id = $1"#,
        project as _
    );
    let config = config.fetch_optional(conn).await?.flatten().map(|config| config.0).unwrap_or_default();
    Ok(ObservationSettings::from(config))
}

impl ObservationSettings {
    /// Returns the maximum number of messages in a batch. `defaults` are the settings of the server.
    pub fn batch_size(&self, defaults: &Learning) -> i64 {
        let turns = self.max_turns.unwrap_or_else(|| i64::try_from(defaults.buffer_turns).unwrap_or(i64::MAX)).max(1);
        let overflow = self.max_overflow.unwrap_or(defaults.buffer_overflow.into()).max(0);
        turns.saturating_add(overflow).min(MAX_BATCH_MESSAGES)
    }
}

impl From<ProjectConfig> for ObservationSettings {
    fn from(config: ProjectConfig) -> Self {
        let count = |value: Value, default: i64| {
            value.as_i64().unwrap_or(default).clamp(0, MAX_CONTEXT_ENTRIES).try_into().unwrap_or_default()
        };
        let iterations = config.default_task_agent_max_iterations.as_i64().filter(|iterations| *iterations > 0);
        let iterations = iterations.unwrap_or(DEFAULT_ITERATIONS).min(MAX_ITERATIONS);
        let text = |value| match value {
            Value::String(text) if !text.trim().is_empty() => Some(text),
            _ => None,
        };
        Self {
            max_turns: config.project_session_message_buffer_max_turns.as_i64(),
            max_overflow: config.project_session_message_buffer_max_overflow.as_i64(),
            previous_message_count: count(
                config.project_session_message_use_previous_messages_turns,
                DEFAULT_PREVIOUS_MESSAGES,
            ),
            max_iterations: iterations.try_into().unwrap_or(1),
            previous_progress_count: count(config.default_task_agent_previous_progress_num, DEFAULT_PREVIOUS_PROGRESS),
            success_criteria: text(config.task_success_criteria),
            failure_criteria: text(config.task_failure_criteria),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::*;
    use crate::config::Config;

    fn settings(config: Value) -> ObservationSettings {
        serde_json::from_value::<ProjectConfig>(config).unwrap().into()
    }

    #[test]
    fn values_of_another_type_count_as_missing() {
        let defaults = settings(json!({}));
        assert_eq!(
            defaults,
            ObservationSettings {
                max_turns: None,
                max_overflow: None,
                previous_message_count: 3,
                max_iterations: 6,
                previous_progress_count: 6,
                success_criteria: None,
                failure_criteria: None,
            }
        );
        for value in [json!(null), json!("5"), json!([5]), json!({"a": 5}), json!(true), json!(2.5), json!(1e30)] {
            let config = json!({
                "project_session_message_buffer_max_turns": value,
                "project_session_message_buffer_max_overflow": value,
                "project_session_message_use_previous_messages_turns": value,
                "default_task_agent_max_iterations": value,
                "default_task_agent_previous_progress_num": value,
                "unknown": value,
            });
            assert_eq!(settings(config), defaults, "{value}");
        }
        for value in [json!(null), json!(5), json!(["x"]), json!(" \n")] {
            assert_eq!(settings(json!({"task_success_criteria": value, "task_failure_criteria": value})), defaults);
        }
    }

    #[test]
    fn values_outside_of_their_range_are_replaced() {
        let config = |value: i64| {
            settings(json!({
                "project_session_message_use_previous_messages_turns": value,
                "default_task_agent_max_iterations": value,
                "default_task_agent_previous_progress_num": value,
                "task_success_criteria": "ok",
                "task_failure_criteria": "not ok",
            }))
        };
        let counts = |value| {
            let settings = config(value);
            (settings.previous_message_count, settings.max_iterations, settings.previous_progress_count)
        };
        assert_eq!(counts(4), (4, 4, 4));
        assert_eq!(counts(0), (0, 6, 0));
        assert_eq!(counts(-1), (0, 6, 0));
        assert_eq!(counts(i64::MAX), (100, 50, 100));
        assert_eq!(config(1).success_criteria.as_deref(), Some("ok"));
        assert_eq!(config(1).failure_criteria.as_deref(), Some("not ok"));
    }

    #[test]
    fn batches_have_a_minimum_and_a_maximum() {
        let Ok(Config { learning: defaults, .. }) = Config::from_args_and_env(["acontextd"], &HashMap::new()) else {
            panic!("the default settings are valid")
        };
        let batch_size = |turns: i64, overflow: i64| {
            settings(json!({
                "project_session_message_buffer_max_turns": turns,
                "project_session_message_buffer_max_overflow": overflow,
            }))
            .batch_size(&defaults)
        };
        assert_eq!(settings(json!({})).batch_size(&defaults), 32);
        assert_eq!(batch_size(3, 2), 5);
        assert_eq!(batch_size(0, -5), 1);
        assert_eq!(batch_size(-7, 2), 3);
        assert_eq!(batch_size(i64::MAX, i64::MAX), 256);
    }
}
