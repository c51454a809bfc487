//! The tools of the task agent. Their names and arguments are those of upstream.

use serde_json::{Value, json};

use crate::llm::{Tool, schema};

/// Returns the tools, always in the same order: they are a part of the prompt, which providers cache.
pub(super) fn task_tools() -> Vec<Tool> {
    vec![
        insert_task(),
        update_task(),
        append_messages_to_planning_section(),
        append_messages_to_task(),
        append_task_progress(),
        submit_user_preference(),
        Tool {
            name: "finish",
            description: "Ends the run. Call it when the tasks cover all messages.",
            parameters: schema::strings(&[]),
        },
        Tool {
            name: "report_thinking",
            description: "Takes notes of your reasoning before you change anything. It changes nothing.",
            parameters: schema::strings(&[(
                "thinking",
                "Your reasoning about the messages and the tasks, in a few sentences.",
            )]),
        },
    ]
}

fn insert_task() -> Tool {
    let after = "Number of the task after which the new task is inserted. 0 inserts it before all tasks; a number \
        above the number of tasks appends it. Example: 3.";
    let description = "The user's request, in words close to the user's own. At most 2000 characters. Example: Write a \
        summary of the report for the board.";
    Tool {
        name: "insert_task",
        description: "Creates a task with the status `pending`. The numbers of the tasks after it increase by one.",
        parameters: schema::object(
            &json!({"after_task_order": integer(after), "task_description": schema::string(description)}),
            &["after_task_order", "task_description"],
        ),
    }
}

fn update_task() -> Tool {
    let status = json!({
        "type": "string",
        "enum": ["pending", "running", "success", "failed"],
        "description": "The new status. Leave it out to keep the status.",
    });
    let description = "The new description, which replaces the current one. At most 2000 characters. Leave it out to \
        keep the description.";
    Tool {
        name: "update_task",
        description: "Changes the status or the description of a task, or both. A finished task (`success` or \
            `failed`) that continues must be set to `running` before messages or progress are added to it.",
        parameters: schema::object(
            &json!({"task_order": task_order(), "task_status": status, "task_description": schema::string(description)}),
            &["task_order"],
        ),
    }
}

fn append_messages_to_planning_section() -> Tool {
    let ids = json!({
        "type": "array",
        "items": {"type": "integer"},
        "description": "Ids of the messages, from 0. Example: [0, 1].",
    });
    Tool {
        name: "append_messages_to_planning_section",
        description: "Links messages to the planning section instead of a task: messages in which the user and the \
            agent discuss what to do and how, before it is done.",
        parameters: schema::object(&json!({"message_ids": ids}), &["message_ids"]),
    }
}

fn append_messages_to_task() -> Tool {
    let range = json!({
        "type": "array",
        "items": {"type": "integer"},
        "minItems": 2,
        "maxItems": 2,
        "description": "Ids of the first and the last message, both included. Example: [2, 5].",
    });
    Tool {
        name: "append_messages_to_task",
        description: "Links consecutive messages to a task that is not finished. A `pending` task becomes `running`. A \
            message is linked to one task only: linking it again moves it.",
        parameters: schema::object(
            &json!({"task_order": task_order(), "message_id_range": range}),
            &["task_order", "message_id_range"],
        ),
    }
}

fn append_task_progress() -> Tool {
    let progress = "One milestone with concrete values, in about 150 characters and at most 1000. Begin information \
        that the user supplied with `User:`. Example: Created the table `orders` with 5 columns.";
    Tool {
        name: "append_task_progress",
        description: "Adds a progress entry to a task that is not finished.",
        parameters: schema::object(
            &json!({"task_order": task_order(), "progress": schema::string(progress)}),
            &["task_order", "progress"],
        ),
    }
}

fn submit_user_preference() -> Tool {
    let preference = "One complete sentence in the third person, at most 1000 characters. Example: The user writes \
        TypeScript and prefers pnpm to npm.";
    Tool {
        name: "submit_user_preference",
        description: "Records one preference, habit or fact of the user that is useful beyond the current tasks.",
        parameters: schema::strings(&[("preference", preference)]),
    }
}

fn task_order() -> Value {
    integer("Number of the task, from 1 to the number of tasks. Example: 1.")
}

fn integer(description: &str) -> Value {
    json!({"type": "integer", "description": description})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::task_agent::editor::{MAX_DESCRIPTION_CHARS, MAX_PREFERENCE_CHARS, MAX_PROGRESS_CHARS};

    /// Removes the descriptions of a tool's parameters, which are not those of upstream.
    fn without_descriptions(mut parameters: Value) -> Value {
        for (name, parameter) in parameters["properties"].as_object_mut().unwrap() {
            let description = parameter.as_object_mut().unwrap().remove("description");
            assert!(description.is_some_and(|description| description.is_string()), "{name}");
        }
        parameters
    }

    #[test]
    fn descriptions_of_parameters_contain_the_limits_of_the_editor() {
        let tools = task_tools();
        for (name, parameter, limit) in [
            ("insert_task", "task_description", MAX_DESCRIPTION_CHARS),
            ("update_task", "task_description", MAX_DESCRIPTION_CHARS),
            ("append_task_progress", "progress", MAX_PROGRESS_CHARS),
            ("submit_user_preference", "preference", MAX_PREFERENCE_CHARS),
        ] {
            let tool = tools.iter().find(|tool| tool.name == name).unwrap();
            let description = tool.parameters["properties"][parameter]["description"].as_str().unwrap();
            let numbers = description.split(|c: char| !c.is_ascii_digit());
            assert!(numbers.filter_map(|number| number.parse().ok()).any(|number: usize| number == limit), "{name}");
        }
    }

    #[test]
    fn tools_have_the_names_and_arguments_of_upstream() {
        let string = json!({"type": "string"});
        let integer = json!({"type": "integer"});
        let integers = json!({"type": "array", "items": {"type": "integer"}});
        let range = json!({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2});
        let status = json!({"type": "string", "enum": ["pending", "running", "success", "failed"]});
        let update = json!({"task_order": integer, "task_status": status, "task_description": string});
        let expected = [
            (
                "insert_task",
                json!({"after_task_order": integer, "task_description": string}),
                json!(["after_task_order", "task_description"]),
            ),
            ("update_task", update, json!(["task_order"])),
            ("append_messages_to_planning_section", json!({"message_ids": integers}), json!(["message_ids"])),
            (
                "append_messages_to_task",
                json!({"task_order": integer, "message_id_range": range}),
                json!(["task_order", "message_id_range"]),
            ),
            (
                "append_task_progress",
                json!({"task_order": integer, "progress": string}),
                json!(["task_order", "progress"]),
            ),
            ("submit_user_preference", json!({"preference": string}), json!(["preference"])),
            ("finish", json!({}), json!([])),
            ("report_thinking", json!({"thinking": string}), json!(["thinking"])),
        ];
        let tools = task_tools();
        let names: Vec<_> = tools.iter().map(|tool| tool.name).collect();
        assert_eq!(names, expected.clone().map(|(name, ..)| name));
        for (tool, (name, properties, required)) in tools.into_iter().zip(expected) {
            let expected = json!({"type": "object", "properties": properties, "required": required});
            assert_eq!(without_descriptions(tool.parameters), expected, "{name}");
            assert!(!tool.description.is_empty());
        }
    }
}
