//! The tools of the skill agent. Their names and arguments are those of upstream.

use crate::llm::{Tool, schema};

const SKILL_NAME: (&str, &str) =
    ("skill_name", "Name of the skill, as in the list of skills. Example: travel-planning.");
const FILE_PATH: (&str, &str) =
    ("file_path", "Path of the file, relative to the directory of the skill. Example: notes/2026-03-14.md.");

/// Returns the tools, always in the same order: they are a part of the prompt, which providers cache.
pub(super) fn skill_tools() -> Vec<Tool> {
    vec![
        tool("get_skill", "Returns the name, the description and the files of a skill.", &[SKILL_NAME]),
        tool(
            "get_skill_file",
            "Returns the text of a file. The middle of a very long file is left out. Read a file before you change it.",
            &[SKILL_NAME, FILE_PATH],
        ),
        str_replace_skill_file(),
        create_skill_file(),
        create_skill(),
        tool(
            "delete_skill_file",
            "Deletes a file. A SKILL.md cannot be deleted. Requires `report_thinking`.",
            &[SKILL_NAME, FILE_PATH],
        ),
        mv_skill_file(),
        tool(
            "finish",
            "Ends the work on the current lesson. Call it when the skills contain what is worth keeping of it.",
            &[],
        ),
        tool(
            "report_thinking",
            "Takes notes of your reasoning. The tools that change skills work only after it was called. It changes nothing \
             itself.",
            &[("thinking", "Your reasoning, in a few sentences: what is worth keeping, where it belongs, and why.")],
        ),
    ]
}

fn str_replace_skill_file() -> Tool {
    let old = "The text to replace: exactly as in the file, and long enough to occur only once.";
    let new = "The text to put in its place. An empty text deletes `old_string`. To insert text, repeat `old_string` and add \
        the new lines.";
    tool(
        "str_replace_skill_file",
        "Replaces a text in a file. Nothing is changed if `old_string` does not occur exactly once. The front matter of a \
         SKILL.md must remain valid and keep its name. Requires `report_thinking`.",
        &[SKILL_NAME, FILE_PATH, ("old_string", old), ("new_string", new)],
    )
}

fn create_skill_file() -> Tool {
    tool(
        "create_skill_file",
        "Creates a text file in a skill. The path must not exist, and must not be that of a SKILL.md. Requires \
         `report_thinking`.",
        &[SKILL_NAME, FILE_PATH, ("content", "The whole text of the file.")],
    )
}

fn create_skill() -> Tool {
    let content = "The whole SKILL.md. It begins with YAML between two lines of three dashes, with `name` (a category in lower \
        case with dashes, such as travel-planning) and `description` (what the skill contains and when to read it).";
    tool(
        "create_skill",
        "Creates a skill with a SKILL.md. No skill of this name may exist. Requires `report_thinking`.",
        &[("skill_md_content", content)],
    )
}

fn mv_skill_file() -> Tool {
    tool(
        "mv_skill_file",
        "Moves or renames a file within a skill. The destination must not exist. A SKILL.md cannot be moved. Requires \
         `report_thinking`.",
        &[
            SKILL_NAME,
            ("source_path", "Current path of the file. Example: notes.md."),
            ("destination_path", "New path of the file. Example: archive/notes-2025.md."),
        ],
    )
}

/// Returns a tool whose parameters are strings and required.
fn tool(name: &'static str, description: &'static str, parameters: &[(&str, &str)]) -> Tool {
    Tool { name, description, parameters: schema::strings(parameters) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;

    #[test]
    fn tools_have_the_names_and_arguments_of_upstream() {
        let expected: [(&str, &[&str]); 9] = [
            ("get_skill", &["skill_name"]),
            ("get_skill_file", &["skill_name", "file_path"]),
            ("str_replace_skill_file", &["skill_name", "file_path", "old_string", "new_string"]),
            ("create_skill_file", &["skill_name", "file_path", "content"]),
            ("create_skill", &["skill_md_content"]),
            ("delete_skill_file", &["skill_name", "file_path"]),
            ("mv_skill_file", &["skill_name", "source_path", "destination_path"]),
            ("finish", &[]),
            ("report_thinking", &["thinking"]),
        ];
        let tools = skill_tools();
        assert_eq!(tools.iter().map(|tool| tool.name).collect::<Vec<_>>(), expected.map(|(name, _)| name));
        for (tool, (name, arguments)) in tools.iter().zip(expected) {
            let mut parameters = tool.parameters.clone();
            for (argument, parameter) in parameters["properties"].as_object_mut().unwrap() {
                let description = parameter.as_object_mut().unwrap().remove("description").unwrap();
                assert!(description.as_str().is_some_and(|text| !text.is_empty()), "{argument}");
            }
            let properties: Map<String, Value> =
                arguments.iter().map(|argument| ((*argument).to_owned(), json!({"type": "string"}))).collect();
            let expected = json!({"type": "object", "properties": properties, "required": arguments});
            assert_eq!(parameters, expected, "{name}");
            assert!(!tool.description.is_empty());
        }
    }
}
