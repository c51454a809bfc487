//! The skill agent's tools, as reads and edits of a [`SpaceDraft`].

use std::num::NonZeroU32;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::draft::{Reply, SpaceDraft};
use super::edits::{self, SkillEdit};
use super::{LessonSource, SkillAgentInput, excerpt, first_message, names, tools};
use crate::disks::path::FilePath;
use crate::learn::report_thinking::{self, ReportThinking};
use crate::llm::Tool;
use crate::llm::agent::{AgentOutcome, NextMessage, ToolReply, Toolbox};

const THINK_FIRST: &str = "Nothing was changed, because `report_thinking` was not called in this run. Call it first, and \
     then repeat this call.";

const REMINDER: &str = "Your last response called no tool, and nothing was changed for this lesson. Call the tools that write \
     it, or call `finish` if there is nothing to change.";

/// The tools of the skill agent, with the draft and the edits of the current lesson.
pub(super) struct SkillToolbox<'a, S> {
    tools: Vec<Tool>,
    draft: SpaceDraft,
    /// The edits of the current lesson that have been applied to the draft.
    edits: Vec<SkillEdit>,
    /// `true` once `report_thinking` was called in this run.
    has_reported_thinking: bool,
    /// `true` once the model was reminded to call a tool for the current lesson.
    was_reminded: bool,
    extra_iterations: NonZeroU32,
    source: &'a mut S,
    /// The error that has ended the run.
    error: Option<anyhow::Error>,
}

impl<'a, S: LessonSource> SkillToolbox<'a, S> {
    pub(super) fn new(input: &SkillAgentInput, source: &'a mut S) -> Self {
        Self {
            tools: tools::skill_tools(),
            draft: SpaceDraft::new(input.skills.clone(), input.limits),
            edits: Vec::new(),
            has_reported_thinking: false,
            was_reminded: false,
            extra_iterations: input.extra_iterations,
            source,
            error: None,
        }
    }

    /// Returns the error that has ended the run.
    pub(super) fn into_error(self) -> Option<anyhow::Error> {
        self.error
    }

    async fn execute(&mut self, name: &str, arguments: Map<String, Value>) -> anyhow::Result<Reply> {
        match name {
            "get_skill" => Ok(self.get_skill(name, arguments)),
            "get_skill_file" => self.get_skill_file(name, arguments).await,
            "report_thinking" => Ok(self.parse(name, arguments).map(|ReportThinking { .. }| {
                self.has_reported_thinking = true;
                report_thinking::REPLY.into()
            })),
            _ if !self.has_reported_thinking => Ok(Err(THINK_FIRST.into())),
            _ => match self.to_edit(name, arguments) {
                Ok(edit) => self.apply(edit).await,
                Err(mistake) => Ok(Err(mistake)),
            },
        }
    }

    fn get_skill(&self, name: &str, arguments: Map<String, Value>) -> Reply {
        let GetSkill { skill_name } = self.parse(name, arguments)?;
        self.draft.skill(&clean_label(&skill_name)?).map(first_message::render_skill)
    }

    async fn get_skill_file(&mut self, name: &str, arguments: Map<String, Value>) -> anyhow::Result<Reply> {
        let call = self.parse(name, arguments);
        let (label, path) = match call.and_then(|call: FileCall| parse_file(&call.skill_name, &call.file_path)) {
            Ok(file) => file,
            Err(mistake) => return Ok(Err(mistake)),
        };
        if let Err(mistake) = self.draft.load_text(&label, &path, &*self.source).await? {
            return Ok(Err(mistake));
        }
        let file = self.draft.skill(&label).and_then(|skill| skill.file(&path));
        Ok(file.map(|file| excerpt::render(file.text().unwrap_or_default())))
    }

    /// Converts a call of a tool that edits skills.
    fn to_edit(&self, name: &str, arguments: Map<String, Value>) -> Result<SkillEdit, String> {
        Ok(match name {
            "str_replace_skill_file" => {
                let StrReplaceSkillFile { skill_name, file_path, old_string, new_string } =
                    self.parse(name, arguments)?;
                let (skill, path) = parse_file(&skill_name, &file_path)?;
                SkillEdit::Replace { skill, path, old: old_string, new: new_string }
            }
            "create_skill_file" => {
                let CreateSkillFile { skill_name, file_path, content } = self.parse(name, arguments)?;
                let (skill, path) = parse_file(&skill_name, &file_path)?;
                SkillEdit::CreateFile { skill, path, content }
            }
            "create_skill" => {
                let CreateSkill { skill_md_content } = self.parse(name, arguments)?;
                SkillEdit::CreateSkill { skill_md: skill_md_content }
            }
            "delete_skill_file" => {
                let FileCall { skill_name, file_path } = self.parse(name, arguments)?;
                let (skill, path) = parse_file(&skill_name, &file_path)?;
                SkillEdit::DeleteFile { skill, path }
            }
            // Any other tool is `mv_skill_file`.
            _ => {
                let MvSkillFile { skill_name, source_path, destination_path } = self.parse(name, arguments)?;
                let skill = clean_label(&skill_name)?;
                let from = names::parse_path("source_path", &source_path)?;
                let to = names::parse_path("destination_path", &destination_path)?;
                SkillEdit::MoveFile { skill, from, to }
            }
        })
    }

    async fn apply(&mut self, edit: SkillEdit) -> anyhow::Result<Reply> {
        let reply = edits::apply_edit(&mut self.draft, &edit, &*self.source).await?;
        if reply.is_ok() {
            self.edits.push(edit);
        }
        Ok(reply)
    }

    /// Stores the edits of the current lesson. Returns the message for the next lesson, whose draft begins with its skills.
    async fn store_lesson(&mut self, outcome: AgentOutcome) -> anyhow::Result<Option<NextMessage>> {
        let edits = std::mem::take(&mut self.edits);
        self.was_reminded = false;
        let Some(next) = self.source.finish_lesson(outcome, &edits).await? else { return Ok(None) };
        self.draft = SpaceDraft::new(next.skills, self.draft.limits);
        let text = first_message::render_next(&next.lesson, &self.draft);
        Ok(Some(NextMessage { text, extra_iterations: self.extra_iterations }))
    }
}

impl<S: LessonSource> Toolbox for SkillToolbox<'_, S> {
    fn tools(&self) -> &[Tool] {
        &self.tools
    }

    async fn call(&mut self, name: &str, arguments: Map<String, Value>) -> ToolReply {
        if name == "finish" {
            return ToolReply::Finish;
        }
        match self.execute(name, arguments).await {
            Ok(Ok(text)) => ToolReply::Text(text),
            Ok(Err(mistake)) => ToolReply::Error(mistake),
            Err(err) => {
                self.error.get_or_insert(err);
                ToolReply::Finish
            }
        }
    }

    async fn next_message(&mut self, outcome: AgentOutcome) -> Option<NextMessage> {
        if self.error.is_some() {
            return None;
        }
        if outcome == AgentOutcome::NoToolCalls && self.edits.is_empty() && !self.was_reminded {
            self.was_reminded = true;
            return Some(NextMessage { text: REMINDER.into(), extra_iterations: NonZeroU32::MIN });
        }
        match self.store_lesson(outcome).await {
            Ok(next) => next.filter(|_| outcome != AgentOutcome::MaxIterations),
            Err(err) => {
                self.error = Some(err);
                None
            }
        }
    }
}

fn clean_label(name: &str) -> Result<String, String> {
    match name.trim() {
        "" => Err("`skill_name` is empty. It must be the name of a skill.".into()),
        name => Ok(name.into()),
    }
}

/// Returns the label of a skill and the path of a file.
fn parse_file(skill_name: &str, file_path: &str) -> Result<(String, FilePath), String> {
    Ok((clean_label(skill_name)?, names::parse_path("file_path", file_path)?))
}

#[derive(Deserialize)]
struct GetSkill {
    skill_name: String,
}

/// The arguments that name a file.
#[derive(Deserialize)]
struct FileCall {
    skill_name: String,
    file_path: String,
}

#[derive(Deserialize)]
struct StrReplaceSkillFile {
    skill_name: String,
    file_path: String,
    old_string: String,
    new_string: String,
}

#[derive(Deserialize)]
struct CreateSkillFile {
    skill_name: String,
    file_path: String,
    content: String,
}

#[derive(Deserialize)]
struct CreateSkill {
    skill_md_content: String,
}

#[derive(Deserialize)]
struct MvSkillFile {
    skill_name: String,
    source_path: String,
    destination_path: String,
}
