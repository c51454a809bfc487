//! The tools of the distillation as a toolbox, which keeps the first valid report.

use std::num::NonZeroU32;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::Distillation;
use super::lesson::{DistilledLesson, LessonText};
use super::tools;
use crate::learn::secrets;
use crate::lessons::LessonKind;
use crate::llm::Tool;
use crate::llm::agent::{AgentOutcome, NextMessage, ToolReply, Toolbox};
use crate::tasks::TaskStatus;

const REMINDER: &str = "Your last response called no tool. Call exactly one of the tools now, without any other text.";

pub(super) struct DistillationToolbox {
    tools: Vec<Tool>,
    /// The first valid report.
    result: Option<Distillation>,
    was_reminded: bool,
}

impl DistillationToolbox {
    pub(super) fn new(status: TaskStatus) -> Self {
        Self { tools: tools::distillation_tools(status), result: None, was_reminded: false }
    }

    pub(super) fn into_result(self) -> Option<Distillation> {
        self.result
    }

    fn report(&self, name: &str, arguments: Map<String, Value>) -> Result<Distillation, String> {
        let lesson = match name {
            "report_success_analysis" => success_lesson(&self.parse(name, arguments)?),
            "report_factual_content" => facts_lesson(&self.parse(name, arguments)?),
            "report_failure_analysis" => failure_lesson(&self.parse(name, arguments)?),
            _ => {
                let SkipLearning { .. } = self.parse(name, arguments)?;
                return Ok(Distillation::Skipped);
            }
        };
        let lesson = lesson?;
        match secrets::find_secret(&lesson.text) {
            Some(secret) => Err(format!(
                "The report contains what looks like {secret}. Leave it out, and say where such a value is configured."
            )),
            None => Ok(Distillation::Lesson(lesson)),
        }
    }
}

impl Toolbox for DistillationToolbox {
    fn tools(&self) -> &[Tool] {
        &self.tools
    }

    async fn call(&mut self, name: &str, arguments: Map<String, Value>) -> ToolReply {
        if self.result.is_some() {
            return ToolReply::Text("Only one report is possible. The first one was accepted.".into());
        }
        match self.report(name, arguments) {
            Ok(result) => {
                self.result = Some(result);
                ToolReply::Finish
            }
            Err(mistake) => ToolReply::Error(mistake),
        }
    }

    async fn next_message(&mut self, outcome: AgentOutcome) -> Option<NextMessage> {
        let can_be_repaired = outcome == AgentOutcome::NoToolCalls && self.result.is_none() && !self.was_reminded;
        self.was_reminded = true;
        can_be_repaired.then(|| NextMessage { text: REMINDER.into(), extra_iterations: NonZeroU32::MIN })
    }
}

#[derive(Deserialize)]
struct SkipLearning {
    #[serde(rename = "reason")]
    _reason: String,
}

#[derive(Deserialize)]
struct SuccessAnalysis {
    task_goal: String,
    approach: String,
    key_decisions: Entries,
    generalizable_pattern: String,
    applies_when: String,
}

#[derive(Deserialize)]
struct FactualContent {
    /// Required by the schema, but a report without it is accepted as upstream accepts it.
    #[serde(default)]
    task_goal: String,
    facts: Entries,
}

#[derive(Deserialize)]
struct FailureAnalysis {
    task_goal: String,
    failure_point: String,
    flawed_reasoning: String,
    what_should_have_been_done: String,
    prevention_principle: String,
    applies_when: String,
}

/// A list of strings. Some models send a single string instead.
struct Entries(Vec<String>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        match Value::deserialize(input)? {
            Value::String(entry) => Ok(Self(vec![entry])),
            list => serde_json::from_value(list).map(Self).map_err(serde::de::Error::custom),
        }
    }
}

fn success_lesson(report: &SuccessAnalysis) -> Result<DistilledLesson, String> {
    let mut text = LessonText::new("Successful task");
    text.field("task_goal", "Goal", &report.task_goal)?;
    text.field("approach", "Approach", &report.approach)?;
    text.list("key_decisions", "Key decisions", &report.key_decisions.0)?;
    text.field("generalizable_pattern", "Pattern", &report.generalizable_pattern)?;
    text.field("applies_when", "Applies when", &report.applies_when)?;
    Ok(text.finish(LessonKind::Success))
}

fn facts_lesson(report: &FactualContent) -> Result<DistilledLesson, String> {
    let mut text = LessonText::new("Facts");
    if !report.task_goal.trim().is_empty() {
        text.field("task_goal", "Subject", &report.task_goal)?;
    }
    text.list("facts", "Facts", &report.facts.0)?;
    Ok(text.finish(LessonKind::Facts))
}

fn failure_lesson(report: &FailureAnalysis) -> Result<DistilledLesson, String> {
    let mut text = LessonText::new("Failed task");
    text.field("task_goal", "Goal", &report.task_goal)?;
    text.field("failure_point", "Failure", &report.failure_point)?;
    text.field("flawed_reasoning", "Flawed reasoning", &report.flawed_reasoning)?;
    text.field("what_should_have_been_done", "Better way", &report.what_should_have_been_done)?;
    text.field("prevention_principle", "Prevention", &report.prevention_principle)?;
    text.field("applies_when", "Applies when", &report.applies_when)?;
    Ok(text.finish(LessonKind::Failure))
}
