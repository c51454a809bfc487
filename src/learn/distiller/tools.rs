//! The tools of the distillation. Their names and arguments are those of upstream.

use serde_json::{Value, json};

use crate::llm::{Tool, schema};
use crate::tasks::TaskStatus;

/// Returns the tools for a task that has ended with this status, always in the same order. A failure cannot be skipped.
pub(super) fn distillation_tools(status: TaskStatus) -> Vec<Tool> {
    if status == TaskStatus::Failed {
        return vec![report_failure_analysis()];
    }
    vec![
        Tool {
            name: "skip_learning",
            description: "Reports that nothing useful can be learned from the task.",
            parameters: schema::strings(&[(
                "reason",
                "Why nothing remains useful, in one sentence. Example: Small talk.",
            )]),
        },
        report_success_analysis(),
        report_factual_content(),
    ]
}

fn report_success_analysis() -> Tool {
    let mut parameters = schema::strings(&[
        ("task_goal", "What was to be achieved, in one sentence."),
        ("approach", "What worked, in two or three sentences."),
        ("generalizable_pattern", "The reusable procedure, in two or three sentences."),
        ("applies_when", "The conditions under which it applies, in one or two sentences."),
    ]);
    let decisions = "The decisions that mattered, with their reasons. One sentence each, at most 20.";
    parameters["properties"]["key_decisions"] = string_list(decisions);
    parameters["required"] = json!(["task_goal", "approach", "key_decisions", "generalizable_pattern", "applies_when"]);
    Tool {
        name: "report_success_analysis",
        description: "Reports how the task was done, as a lesson for similar tasks.",
        parameters,
    }
}

fn report_factual_content() -> Tool {
    let mut parameters = schema::strings(&[("task_goal", "The subject of the conversation, in one sentence.")]);
    parameters["properties"]["facts"] =
        string_list("Facts that remain useful. One complete sentence in the third person each, at most 50.");
    parameters["required"] = json!(["task_goal", "facts"]);
    Tool {
        name: "report_factual_content",
        description: "Reports facts from the task, about people, preferences, dates, projects and the like.",
        parameters,
    }
}

fn report_failure_analysis() -> Tool {
    Tool {
        name: "report_failure_analysis",
        description: "Reports why the task has failed, as a lesson that prevents the same failure.",
        parameters: schema::strings(&[
            ("task_goal", "What was to be achieved, in one sentence."),
            ("failure_point", "The action or moment at which it went wrong, in two or three sentences."),
            (
                "flawed_reasoning",
                "The assumption that led there, in two or three sentences, or `Not visible.` if the messages do not show it.",
            ),
            ("what_should_have_been_done", "The better way, in two or three sentences."),
            ("prevention_principle", "The rule that prevents the failure, in one or two sentences."),
            ("applies_when", "The conditions under which the rule applies, in one or two sentences."),
        ]),
    }
}

fn string_list(description: &str) -> Value {
    json!({"type": "array", "items": {"type": "string"}, "description": description})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_have_the_names_and_arguments_of_upstream() {
        let string = || json!({"type": "string"});
        let list = json!({"type": "array", "items": {"type": "string"}});
        let success = [
            ("skip_learning", json!({"reason": string()}), json!(["reason"])),
            (
                "report_success_analysis",
                json!({"task_goal": string(), "approach": string(), "key_decisions": list,
                       "generalizable_pattern": string(), "applies_when": string()}),
                json!(["task_goal", "approach", "key_decisions", "generalizable_pattern", "applies_when"]),
            ),
            ("report_factual_content", json!({"task_goal": string(), "facts": list}), json!(["task_goal", "facts"])),
        ];
        let names = [
            "task_goal",
            "failure_point",
            "flawed_reasoning",
            "what_should_have_been_done",
            "prevention_principle",
            "applies_when",
        ];
        let properties: serde_json::Map<_, _> = names.iter().map(|name| ((*name).to_owned(), string())).collect();
        let failure = [("report_failure_analysis", json!(properties), json!(names))];
        for (status, expected) in [(TaskStatus::Success, &success[..]), (TaskStatus::Failed, &failure[..])] {
            let tools = distillation_tools(status);
            assert_eq!(tools.len(), expected.len());
            for (tool, (name, properties, required)) in tools.into_iter().zip(expected) {
                let mut parameters = tool.parameters;
                for (_, parameter) in parameters["properties"].as_object_mut().unwrap() {
                    assert!(parameter.as_object_mut().unwrap().remove("description").is_some());
                }
                let expected = json!({"type": "object", "properties": properties, "required": required});
                assert_eq!((tool.name, parameters), (*name, expected));
                assert!(!tool.description.is_empty());
            }
        }
    }
}
