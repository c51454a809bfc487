mod prompts;
mod proptests;
mod rules;
mod runs;
mod tool_calls;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use chrono::NaiveDate;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::diff::{DraftChange, SpaceDiff};
use super::draft::{FileText, StoredFile};
use super::*;
use crate::disks::path::FilePath;
use crate::ids::{ProjectId, SkillId};
use crate::lessons::LessonKind;
use crate::llm::scripted::{self, RecordedRequest, ScriptedLlm};
use crate::llm::{CallOrigin, ChatResponse, Purpose};

const LIMITS: SkillLimits = SkillLimits { max_files: 20, max_skill_md_bytes: 4_000 };

/// A learning space in memory, with lessons.
#[derive(Default)]
struct TestSpace {
    skills: Vec<TestSkill>,
    /// The lessons after the first one.
    lessons: VecDeque<AgentLesson>,
    /// The arguments of the calls of `finish_lesson`.
    stored: Vec<(AgentOutcome, Vec<SkillEdit>)>,
    /// `true` if edits cannot be stored.
    is_broken: bool,
}

#[derive(Clone, Debug)]
struct TestSkill {
    id: SkillId,
    name: String,
    description: String,
    files: BTreeMap<FilePath, FileText>,
}

fn path(path: &str) -> FilePath {
    FilePath::from_segments(&path.split('/').collect::<Vec<_>>()).unwrap()
}

/// Returns a SKILL.md whose description is "About" and the name.
fn skill_md(name: &str) -> String {
    format!("---\nname: {name}\ndescription: About {name}\n---\n# Rules\n")
}

/// Returns a skill with a SKILL.md and other files.
fn skill(name: &str, files: &[(&str, &str)]) -> TestSkill {
    let files = files.iter().map(|(name, text)| (path(name), FileText::Text((*text).into())));
    let files = files.chain([(path("SKILL.md"), FileText::Text(skill_md(name)))]).collect();
    TestSkill { id: SkillId::new(), name: name.into(), description: format!("About {name}"), files }
}

fn space(skills: &[TestSkill]) -> TestSpace {
    TestSpace { skills: skills.to_vec(), ..TestSpace::default() }
}

fn lesson(text: &str) -> AgentLesson {
    let date = NaiveDate::from_ymd_opt(2026, 3, 14).unwrap();
    AgentLesson { kind: LessonKind::Success, text: text.into(), task_description: Some("the task".into()), date }
}

impl TestSpace {
    fn stored_skills(&self) -> Vec<StoredSkill> {
        let to_stored = |skill: &TestSkill| {
            let files = skill.files.iter().map(|(path, text)| {
                let size = if let FileText::Text(text) = text { text.len() } else { 7 };
                StoredFile { path: path.clone(), mime: "text/x-test".into(), size: size as u64 }
            });
            StoredSkill {
                id: skill.id,
                name: skill.name.clone(),
                description: skill.description.clone(),
                files: files.collect(),
            }
        };
        self.skills.iter().map(to_stored).collect()
    }

    fn draft(&self) -> SpaceDraft {
        SpaceDraft::new(self.stored_skills(), LIMITS)
    }

    fn skill(&self, name: &str) -> &TestSkill {
        self.skills.iter().find(|skill| skill.name == name).unwrap()
    }

    fn text(&self, skill: &str, file: &str) -> Option<&str> {
        match self.skill(skill).files.get(&path(file))? {
            FileText::Text(text) => Some(text),
            other => panic!("{other:?}"),
        }
    }

    /// Applies changes one after another, and panics if one of them does not fit.
    fn apply(&mut self, diff: SpaceDiff) {
        for new in diff.new_skills {
            let files = new.files.into_iter().map(|(path, text)| (path, FileText::Text(text))).collect();
            self.skills.push(TestSkill { id: SkillId::new(), name: new.name, description: new.description, files });
        }
        for changed in diff.changed_skills {
            let skill = self.skills.iter_mut().find(|skill| skill.id == changed.id).unwrap();
            skill.description = changed.description.unwrap_or(skill.description.clone());
            for change in changed.files {
                let (path, text, exists) = match change {
                    DraftChange::Delete { path } => {
                        skill.files.remove(&path).expect("a file that is deleted exists");
                        continue;
                    }
                    DraftChange::Move { from, to } => {
                        (to, skill.files.remove(&from).expect("a file that is moved exists"), false)
                    }
                    DraftChange::Replace { path, text } => (path, FileText::Text(text), true),
                    DraftChange::Create { path, text } => (path, FileText::Text(text), false),
                };
                assert_eq!(skill.files.insert(path, text).is_some(), exists);
            }
        }
    }
}

#[async_trait]
impl SkillFiles for TestSpace {
    async fn read_text(&self, skill: SkillId, path: &FilePath) -> anyhow::Result<FileText> {
        if path.filename() == "unreadable" {
            anyhow::bail!("the object store does not respond");
        }
        let skill = self.skills.iter().find(|stored| stored.id == skill);
        Ok(skill.and_then(|skill| skill.files.get(path)).cloned().unwrap_or(FileText::Missing))
    }
}

#[async_trait]
impl LessonSource for TestSpace {
    async fn finish_lesson(
        &mut self,
        outcome: AgentOutcome,
        edits: &[SkillEdit],
    ) -> anyhow::Result<Option<NextLesson>> {
        if self.is_broken {
            anyhow::bail!("the database does not respond");
        }
        self.stored.push((outcome, edits.to_vec()));
        let mut draft = self.draft();
        super::edits::apply_edits(&mut draft, edits, &*self).await?.expect("the edits of a run fit");
        self.apply(draft.diff());
        let skills = self.stored_skills();
        Ok(self.lessons.pop_front().map(|lesson| NextLesson { lesson, skills }))
    }
}

/// Runs the agent, and returns the result and the requests.
async fn run(
    space: &mut TestSpace,
    responses: Vec<Result<ChatResponse, LlmError>>,
) -> (Result<SkillAgentResult, SkillAgentError>, Vec<RecordedRequest>) {
    let llm = ScriptedLlm::new(responses);
    let input = SkillAgentInput {
        lesson: lesson("the first lesson"),
        skills: space.stored_skills(),
        limits: LIMITS,
        max_iterations: 6,
        extra_iterations: NonZeroU32::new(2).unwrap(),
    };
    let parameters = CallParameters {
        max_tokens: 100,
        deadline: Instant::now() + Duration::from_mins(1),
        origin: CallOrigin { project: ProjectId::new(), purpose: Purpose::SkillAgent, learning_space: None },
    };
    let result = run_skill_agent(&llm, &input, parameters, space).await;
    let requests = llm.requests().clone();
    (result, requests)
}

/// Returns a response with tool calls.
fn calls(calls: &[(&str, Value)]) -> Result<ChatResponse, LlmError> {
    let texts: Vec<_> = calls.iter().map(|(name, arguments)| (*name, arguments.to_string())).collect();
    scripted::calls(&texts.iter().map(|(name, arguments)| (*name, arguments.as_str())).collect::<Vec<_>>())
}

fn think() -> (&'static str, Value) {
    ("report_thinking", json!({"thinking": "..."}))
}

fn finish() -> (&'static str, Value) {
    ("finish", json!({}))
}

fn create(skill: &str, path: &str, content: &str) -> (&'static str, Value) {
    ("create_skill_file", json!({"skill_name": skill, "file_path": path, "content": content}))
}

fn replace(skill: &str, path: &str, old: &str, new: &str) -> (&'static str, Value) {
    let arguments = json!({"skill_name": skill, "file_path": path, "old_string": old, "new_string": new});
    ("str_replace_skill_file", arguments)
}

fn delete(skill: &str, path: &str) -> (&'static str, Value) {
    ("delete_skill_file", json!({"skill_name": skill, "file_path": path}))
}

fn mv(skill: &str, from: &str, to: &str) -> (&'static str, Value) {
    ("mv_skill_file", json!({"skill_name": skill, "source_path": from, "destination_path": to}))
}

fn create_skill(skill_md: &str) -> (&'static str, Value) {
    ("create_skill", json!({"skill_md_content": skill_md}))
}

fn get(skill: &str, path: &str) -> (&'static str, Value) {
    ("get_skill_file", json!({"skill_name": skill, "file_path": path}))
}
