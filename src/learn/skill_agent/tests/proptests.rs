//! Random tool calls, compared with a reference model of the rules.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Map;

use super::super::toolbox::SkillToolbox;
use super::*;
use crate::llm::agent::{ToolReply, Toolbox};
use crate::skills::front_matter::FrontMatter;

/// A call with its arguments, which may be invalid.
#[derive(Clone, Debug)]
enum Call {
    Think,
    /// Ends the lesson: its edits are stored, and the next lesson begins.
    Finish,
    Read(&'static str, &'static str),
    Create(&'static str, &'static str, &'static str),
    Replace(&'static str, &'static str, &'static str, &'static str),
    CreateSkill(&'static str),
    Delete(&'static str, &'static str),
    Move(&'static str, &'static str, &'static str),
}

const SKILLS: &[&str] = &["a", "a", "a", "b", "b", "new-one", " a ", "nope", "A", ""];
const PATHS: &[&str] = &[
    "1.md",
    "1.md",
    "2.md",
    "2.md",
    "dir/1.md",
    "dir/2.md",
    "3.md",
    "dir",
    "dir/1.md/x",
    "1.MD",
    "DIR/3.md",
    "./1.md",
    "dir//2.md",
    " 2.md\n",
    "a..b",
    "SKILL.md",
    "SKILL.md",
    "skill.md",
    "dir/Skill.md",
    "../1.md",
    "dir/../1.md",
    "/1.md",
    "dir/",
    "",
    "a\0",
    "a\\b",
    "a\tb",
    "a\u{200b}",
];
const TEXTS: &[&str] = &[
    "x",
    "xx",
    "y",
    "xyx",
    "",
    "name: ",
    "name: a",
    "About",
    "---\n",
    "---\nname",
    "a\u{202e}b",
    "AKIAIOSFODNN7EXAMPLE",
];
const SKILL_MDS: &[&str] = &[
    "---\nname: new one\ndescription: New\n---\nxyx\n",
    "---\nname: a\ndescription: Another\n---\n",
    "---\nname: new-one\n---\n",
    "---\nname: [x\n---\n",
    "name: b2\ndescription: B\n",
    "text",
    "",
];

fn any_call() -> impl Strategy<Value = Call> {
    let file = || (select(SKILLS), select(PATHS));
    prop_oneof![
        1 => Just(Call::Think),
        1 => Just(Call::Finish),
        3 => file().prop_map(|(skill, path)| Call::Read(skill, path)),
        5 => (file(), select(TEXTS)).prop_map(|((skill, path), text)| Call::Create(skill, path, text)),
        6 => (file(), select(TEXTS), select(TEXTS)).prop_map(|((skill, path), old, new)| Call::Replace(skill, path, old, new)),
        1 => select(SKILL_MDS).prop_map(Call::CreateSkill),
        3 => file().prop_map(|(skill, path)| Call::Delete(skill, path)),
        6 => (file(), select(PATHS)).prop_map(|((skill, from), to)| Call::Move(skill, from, to)),
    ]
}

fn to_tool_call(call: &Call) -> (&'static str, Value) {
    match *call {
        Call::Think => think(),
        Call::Finish => finish(),
        Call::Read(skill, path) => get(skill, path),
        Call::Create(skill, path, text) => create(skill, path, text),
        Call::Replace(skill, path, old, new) => replace(skill, path, old, new),
        Call::CreateSkill(skill_md) => create_skill(skill_md),
        Call::Delete(skill, path) => delete(skill, path),
        Call::Move(skill, from, to) => mv(skill, from, to),
    }
}

/// The reference model: the rules of the specification, written as directly as possible.
#[derive(Clone, Debug, Default)]
struct Reference {
    skills: BTreeMap<String, BTreeMap<String, String>>,
    /// The path at the start of the lesson for each file that existed then, by skill and current path.
    origins: BTreeMap<(String, String), String>,
    has_thought: bool,
}

impl Reference {
    fn begin_lesson(&mut self) {
        let paths = self.skills.iter().flat_map(|(skill, files)| files.keys().map(move |path| (skill, path)));
        self.origins = paths.map(|(skill, path)| ((skill.clone(), path.clone()), path.clone())).collect();
    }

    /// Applies a call, and returns the text of a read. Returns `None` if the call is a mistake, which has no effect.
    fn apply(&mut self, call: &Call) -> Option<String> {
        match *call {
            Call::Think => self.has_thought = true,
            Call::Finish => self.begin_lesson(),
            Call::Read(skill, path) => return Some(self.skills.get(skill.trim())?.get(&normalize(path)?)?.clone()),
            _ if !self.has_thought => return None,
            Call::Create(skill, path, text) => {
                let (skill, path) = (skill.trim(), normalize(path)?);
                (!is_skill_md(&path) && is_allowed(text) && is_free(self.skills.get(skill)?, &path)).then_some(())?;
                self.skills.get_mut(skill)?.insert(path, text.into());
            }
            Call::Replace(skill, path, old, new) => {
                let (skill, path) = (skill.trim(), normalize(path)?);
                let text = self.skills.get(skill)?.get(&path)?;
                (!old.is_empty() && old != new && is_allowed(new) && text.matches(old).count() == 1).then_some(())?;
                let text = text.replace(old, new);
                (path != "SKILL.md" || name_of(&text).as_deref() == Some(skill)).then_some(())?;
                self.skills.get_mut(skill)?.insert(path, text);
            }
            Call::CreateSkill(skill_md) => {
                let name = name_of(skill_md).filter(|name| !self.skills.contains_key(name))?;
                self.skills.insert(name, BTreeMap::from([("SKILL.md".into(), skill_md.into())]));
            }
            Call::Delete(skill, path) => {
                let (skill, path) = (skill.trim(), normalize(path)?);
                (!is_skill_md(&path)).then_some(())?;
                self.skills.get_mut(skill)?.remove(&path)?;
                self.origins.remove(&(skill.into(), path));
            }
            Call::Move(skill, from, to) => self.move_file(skill.trim(), normalize(from)?, normalize(to)?)?,
        }
        Some(String::new())
    }

    fn move_file(&mut self, skill: &str, from: String, to: String) -> Option<()> {
        (!is_skill_md(&from) && !is_skill_md(&to)).then_some(())?;
        let files = self.skills.get_mut(skill)?;
        let text = files.get(&from)?.clone();
        let mut others = files.clone();
        others.remove(&from);
        (from != to && is_free(&others, &to)).then_some(())?;
        let mut origins = self.origins.clone();
        if let Some(origin) = origins.remove(&(skill.into(), from)) {
            origins.insert((skill.into(), to.clone()), origin);
        }
        (!has_exchange(&origins)).then_some(())?;
        others.insert(to, text);
        *files = others;
        self.origins = origins;
        Some(())
    }
}

/// Returns the normalized path of a call.
fn normalize(path: &str) -> Option<String> {
    let path = path.trim();
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty() && *segment != ".").collect();
    let is_valid = !path.starts_with('/') && !path.ends_with('/') && !segments.is_empty() && !segments.contains(&"..");
    (is_valid && !path.contains('\0')).then(|| segments.join("/"))
}

fn is_skill_md(path: &str) -> bool {
    path.to_lowercase().split('/').next_back() == Some("skill.md")
}

fn is_allowed(text: &str) -> bool {
    !text.contains('\u{202e}') && !text.contains("AKIA")
}

/// Returns `true` if a file can be created: no file has the path, and no file is a directory, also if the case is ignored.
fn is_free(files: &BTreeMap<String, String>, path: &str) -> bool {
    let new = path.to_lowercase();
    let collides = |existing: &String| {
        let existing = existing.to_lowercase();
        existing == new || existing.starts_with(&format!("{new}/")) || new.starts_with(&format!("{existing}/"))
    };
    !path.contains(['\\', '\t', '\u{200b}']) && !files.keys().any(collides)
}

/// Returns `true` if files have exchanged their paths.
fn has_exchange(origins: &BTreeMap<(String, String), String>) -> bool {
    let moved: BTreeMap<(&str, &str), &str> = origins
        .iter()
        .filter(|((_, path), origin)| path != *origin)
        .map(|((skill, path), origin)| ((skill.as_str(), origin.as_str()), path.as_str()))
        .collect();
    moved.iter().any(|((skill, start), first)| {
        let mut path = *first;
        for _ in 0..moved.len() {
            if path == *start {
                return true;
            }
            match moved.get(&(*skill, path)) {
                Some(next) => path = next,
                None => return false,
            }
        }
        false
    })
}

/// Returns the name in a SKILL.md that begins with two lines of dashes and what is between them.
fn name_of(skill_md: &str) -> Option<String> {
    if skill_md.lines().position(|line| line == "---") != Some(0)
        || skill_md.lines().filter(|line| *line == "---").count() < 2
    {
        return None;
    }
    let front_matter = FrontMatter::parse(skill_md.as_bytes()).ok()?;
    Some(front_matter.name.as_str().into())
}

/// Returns the texts of all files of a space.
fn texts(space: &TestSpace) -> BTreeMap<String, BTreeMap<String, String>> {
    let files = |skill: &TestSkill| {
        let text = |text: &FileText| if let FileText::Text(text) = text { text.clone() } else { panic!("{text:?}") };
        skill.files.iter().map(|(path, file)| (path.relative(), text(file))).collect()
    };
    space.skills.iter().map(|skill| (skill.name.clone(), files(skill))).collect()
}

/// Executes the calls, and returns the replies and the space after its last lesson is stored.
async fn execute(mut space: TestSpace, script: &[Call]) -> (Vec<ToolReply>, TestSpace) {
    space.lessons = script.iter().map(|_| lesson("next")).collect();
    let input = SkillAgentInput {
        lesson: lesson("first"),
        skills: space.stored_skills(),
        limits: LIMITS,
        max_iterations: 6,
        extra_iterations: NonZeroU32::MIN,
    };
    let mut toolbox = SkillToolbox::new(&input, &mut space);
    let mut replies = Vec::new();
    for call in script {
        let (name, Value::Object(arguments)) = to_tool_call(call) else { panic!("arguments are an object") };
        replies.push(toolbox.call(name, Map::clone(&arguments)).await);
        if matches!(call, Call::Finish) {
            toolbox.next_message(AgentOutcome::Finished).await.expect("there is a next lesson");
        }
    }
    toolbox.next_message(AgentOutcome::Finished).await;
    assert!(toolbox.into_error().is_none());
    (replies, space)
}

proptest! {
    #[test]
    fn random_calls_have_the_effects_of_the_reference_model(script in prop::collection::vec(any_call(), 0..40)) {
        let files = [("1.md", "xyx"), ("2.md", "yy"), ("dir/1.md", "x")];
        let space = space(&[skill("a", &files), skill("b", &files[..1])]);
        let mut reference = Reference { skills: texts(&space), ..Reference::default() };
        reference.begin_lesson();
        // Most edits need it.
        let script = [&[Call::Read("a", "1.md"), Call::Create("a", "early.md", "x"), Call::Think][..], &script].concat();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (replies, space) = runtime.block_on(execute(space, &script));
        for (call, reply) in script.iter().zip(replies) {
            let expected = reference.apply(call);
            prop_assert_eq!(!matches!(reply, ToolReply::Error(_)), expected.is_some(), "{:?}: {:?}", call, reply);
            if let (Call::Read(..), Some(text)) = (call, expected) {
                let text = if text.is_empty() { "[The file is empty.]".into() } else { text };
                prop_assert_eq!(reply, ToolReply::Text(text));
            }
        }
        prop_assert_eq!(texts(&space), reference.skills);
        for skill in &space.skills {
            let FileText::Text(skill_md) = &skill.files[&path("SKILL.md")] else { panic!("a text") };
            let front_matter = FrontMatter::parse(skill_md.as_bytes()).expect("a SKILL.md is always valid");
            prop_assert_eq!((front_matter.name.as_str(), &front_matter.description), (skill.name.as_str(), &skill.description));
        }
    }
}
