//! The rules of edits that need no model.

use super::super::diff::{ChangedSkill, NewSkill};
use super::super::edits::{MAX_SKILLS, apply_edit, apply_edits};
use super::*;

fn create_file(skill: &str, file: &str, content: &str) -> SkillEdit {
    SkillEdit::CreateFile { skill: skill.into(), path: path(file), content: content.into() }
}

fn replace_text(skill: &str, file: &str, old: &str, new: &str) -> SkillEdit {
    SkillEdit::Replace { skill: skill.into(), path: path(file), old: old.into(), new: new.into() }
}

fn delete_file(skill: &str, file: &str) -> SkillEdit {
    SkillEdit::DeleteFile { skill: skill.into(), path: path(file) }
}

fn move_file(skill: &str, from: &str, to: &str) -> SkillEdit {
    SkillEdit::MoveFile { skill: skill.into(), from: path(from), to: path(to) }
}

fn create_skill(skill_md: String) -> SkillEdit {
    SkillEdit::CreateSkill { skill_md }
}

/// Applies edits that all fit, and returns what they change.
async fn changes(space: &TestSpace, edits: &[SkillEdit]) -> SpaceDiff {
    let mut draft = space.draft();
    apply_edits(&mut draft, edits, space).await.unwrap().unwrap();
    draft.diff()
}

/// Applies edits that all fit, and returns the changes of the files of the only changed skill.
async fn file_changes(space: &TestSpace, edits: &[SkillEdit]) -> Vec<DraftChange> {
    let mut changes = changes(space, edits).await;
    assert!(changes.new_skills.is_empty() && changes.changed_skills.len() == 1, "{changes:?}");
    changes.changed_skills.remove(0).files
}

/// Applies edits of which only the last one is a mistake, and returns the reply to it.
async fn mistake(space: &TestSpace, edits: &[SkillEdit]) -> String {
    let mut draft = space.draft();
    let (last, first) = edits.split_last().unwrap();
    apply_edits(&mut draft, first, space).await.unwrap().unwrap();
    let before = draft.diff();
    let reply = apply_edit(&mut draft, last, space).await.unwrap().unwrap_err();
    assert_eq!(draft.diff(), before, "a mistake has no effect");
    reply
}

#[tokio::test]
async fn only_differences_are_changes() {
    let space = space(&[skill("a", &[("n.md", "one"), ("m.md", "two")]), skill("b", &[])]);
    assert!(changes(&space, &[]).await.is_empty());
    let undone = [
        replace_text("a", "n.md", "one", "two"),
        replace_text("a", "n.md", "two", "one"),
        move_file("a", "m.md", "x/m.md"),
        move_file("a", "x/m.md", "m.md"),
        create_file("b", "new.md", "x"),
        delete_file("b", "new.md"),
        replace_text("b", "SKILL.md", "About b", "New"),
        replace_text("b", "SKILL.md", "New", "About b"),
    ];
    assert!(changes(&space, &undone).await.is_empty());
    let edits = [
        replace_text("a", "n.md", "one", "1"),
        create_skill(skill_md("c")),
        create_file("c", "x.md", "x"),
        move_file("c", "x.md", "y.md"),
        replace_text("c", "y.md", "x", "y"),
        replace_text("c", "SKILL.md", "About c", "All about c"),
        replace_text("b", "SKILL.md", "About b", "All about b"),
    ];
    let md = |name: &str| skill_md(name).replace("About", "All about");
    let expected = SpaceDiff {
        new_skills: vec![NewSkill {
            name: "c".into(),
            description: "All about c".into(),
            files: vec![(path("SKILL.md"), md("c")), (path("y.md"), "y".into())],
        }],
        changed_skills: vec![
            ChangedSkill {
                id: space.skill("a").id,
                description: None,
                files: vec![DraftChange::Replace { path: path("n.md"), text: "1".into() }],
            },
            ChangedSkill {
                id: space.skill("b").id,
                description: Some("All about b".into()),
                files: vec![DraftChange::Replace { path: path("SKILL.md"), text: md("b") }],
            },
        ],
    };
    assert_eq!(changes(&space, &edits).await, expected);
}

#[tokio::test]
async fn changes_can_be_applied_one_after_another() {
    let space = space(&[skill("a", &[("1.md", "1"), ("2.md", "2"), ("3.md", "3")])]);
    let mv = |from: &str, to: &str| DraftChange::Move { from: path(from), to: path(to) };
    let delete = |file: &str| DraftChange::Delete { path: path(file) };
    // A chain: each destination is the source of the next move.
    let edits = [move_file("a", "3.md", "4.md"), move_file("a", "2.md", "3.md"), move_file("a", "1.md", "2.md")];
    assert_eq!(file_changes(&space, &edits).await, [mv("3.md", "4.md"), mv("2.md", "3.md"), mv("1.md", "2.md")]);
    // A file that is replaced by another one.
    let edits = [delete_file("a", "2.md"), move_file("a", "1.md", "2.md"), replace_text("a", "2.md", "1", "x")];
    let replaced = DraftChange::Replace { path: path("2.md"), text: "x".into() };
    assert_eq!(file_changes(&space, &edits).await, [delete("2.md"), mv("1.md", "2.md"), replaced]);
    // A file that is deleted and created again has a new content; one that has moved makes room for another one.
    let edits = [
        delete_file("a", "2.md"),
        create_file("a", "2.md", "new"),
        move_file("a", "1.md", "old/1.md"),
        create_file("a", "1.md", "new"),
    ];
    let created = DraftChange::Create { path: path("1.md"), text: "new".into() };
    let replaced = DraftChange::Replace { path: path("2.md"), text: "new".into() };
    assert_eq!(file_changes(&space, &edits).await, [mv("1.md", "old/1.md"), created, replaced]);
}

#[tokio::test]
async fn files_cannot_exchange_their_paths() {
    let space = space(&[skill("a", &[("1.md", "1"), ("2.md", "2"), ("3.md", "3")])]);
    let two = [move_file("a", "1.md", "t.md"), move_file("a", "2.md", "1.md"), move_file("a", "t.md", "2.md")];
    assert!(mistake(&space, &two).await.contains("cannot exchange their paths"));
    let three = [
        move_file("a", "1.md", "t.md"),
        move_file("a", "2.md", "1.md"),
        move_file("a", "3.md", "2.md"),
        move_file("a", "t.md", "3.md"),
    ];
    assert!(mistake(&space, &three).await.contains("cannot exchange their paths"));
    // A new file can take any free path, and a file can change the case of its name.
    let edits = [delete_file("a", "1.md"), create_file("a", "t.md", "t"), move_file("a", "t.md", "1.md")];
    let replaced = DraftChange::Replace { path: path("1.md"), text: "t".into() };
    assert_eq!(file_changes(&space, &edits).await, [replaced]);
    let edits = [move_file("a", "1.md", "1.MD")];
    assert_eq!(file_changes(&space, &edits).await, [DraftChange::Move { from: path("1.md"), to: path("1.MD") }]);
}

#[tokio::test]
async fn texts_and_numbers_are_limited() {
    let mut full = space(&[skill("a", &[("n.md", "x-")])]);
    let huge = "x".repeat(1024 * 1024);
    for text in ["a\0b", "a\u{200b}b", "a\u{1b}[1m", &(huge.clone() + "x")] {
        let reply = mistake(&full, &[create_file("a", "new.md", text)]).await;
        assert!(reply.starts_with("`content` ") && reply.contains("nothing was changed"), "{reply}");
        let reply = mistake(&full, &[replace_text("a", "n.md", "x", text)]).await;
        assert!(reply.starts_with("`new_string` "), "{reply}");
    }
    let edits = [create_file("a", "huge.md", &huge), replace_text("a", "n.md", "x", "xx")];
    assert_eq!(file_changes(&full, &edits).await.len(), 2);
    let reply = mistake(&full, &[replace_text("a", "n.md", "x", &huge)]).await;
    assert!(reply.contains("would have 1048577 bytes"), "{reply}");
    let reply = mistake(&full, &[create_skill(skill_md("b") + &"x".repeat(4_000))]).await;
    assert!(reply.contains("maximum is 4000"), "{reply}");
    let text = FileText::Text("x".into());
    full.skills[0].files.extend((0..18).map(|n| (path(&format!("{n}.md")), text.clone())));
    let reply = mistake(&full, &[create_file("a", "new.md", "x")]).await;
    assert!(reply.contains("has 20 files") && reply.contains("maximum is 20"), "{reply}");
    full.skills = (0..MAX_SKILLS).map(|n| skill(&format!("s{n}"), &[])).collect();
    let reply = mistake(&full, &[create_skill(skill_md("new"))]).await;
    assert!(reply.contains("has 200 skills"), "{reply}");
}

#[tokio::test]
async fn huge_stored_files_are_not_read() {
    let space = space(&[skill("a", &[("n.md", &"x".repeat(1024 * 1024 + 1))])]);
    let reply = mistake(&space, &[replace_text("a", "n.md", "x", "y")]).await;
    assert!(reply.contains("`n.md` has 1048577 bytes"), "{reply}");
    // It can be moved and deleted.
    let edits = [move_file("a", "n.md", "m.md"), delete_file("a", "m.md")];
    assert_eq!(file_changes(&space, &edits).await, [DraftChange::Delete { path: path("n.md") }]);
}

#[tokio::test]
async fn skills_of_the_same_name_have_distinct_labels() {
    let space = space(&[skill("a", &[("1.md", "")]), skill("a", &[("2.md", "")]), skill("b", &[])]);
    let draft = space.draft();
    let labels: Vec<_> = draft.skills.iter().map(|skill| skill.label.clone()).collect();
    assert!(labels[0].starts_with("a (id ") && labels[1].starts_with("a (id ") && labels[0] != labels[1]);
    assert_eq!(labels[2], "b");
    assert!(mistake(&space, &[create_file("a", "x.md", "")]).await.contains("There is no skill `a`"));
    assert!(mistake(&space, &[create_skill(skill_md("a"))]).await.contains("exists already"));
    let edits = [create_file(&labels[1], "x.md", "x"), replace_text(&labels[1], "SKILL.md", "About a", "B")];
    let changes = changes(&space, &edits).await;
    assert_eq!(changes.changed_skills.len(), 1);
    assert_eq!(changes.changed_skills[0].id, space.skills[1].id);
}

#[tokio::test]
async fn the_skill_md_is_the_one_nearest_to_the_root() {
    let mut nested = space(&[skill("a", &[("docs/SKILL.md", "no front matter")])]);
    let edits = [replace_text("a", "docs/SKILL.md", "no front matter", "still none")];
    assert_eq!(file_changes(&nested, &edits).await.len(), 1);
    // An uploaded skill may have it in another case.
    let files = &mut nested.skills[0].files;
    let text = files.remove(&path("SKILL.md")).unwrap();
    files.insert(path("skill.md"), text);
    assert!(mistake(&nested, &[replace_text("a", "skill.md", "name: a", "name: b")]).await.contains("must remain `a`"));
    for edit in [delete_file("a", "skill.md"), move_file("a", "skill.md", "x.md"), delete_file("a", "docs/SKILL.md")] {
        mistake(&nested, &[edit]).await;
    }
}

/// An invalid SKILL.md, which a client may have uploaded to the disk of the skill, can be corrected.
#[tokio::test]
async fn an_invalid_skill_md_can_be_corrected() {
    let mut space = space(&[skill("a", &[])]);
    space.skills[0].files.insert(path("SKILL.md"), FileText::Text("name: b\n".into()));
    assert!(
        mistake(&space, &[replace_text("a", "SKILL.md", "name: b", "name: a")])
            .await
            .contains("description is required")
    );
    let edits = [replace_text("a", "SKILL.md", "name: b", "name: a\ndescription: d")];
    let changes = changes(&space, &edits).await;
    assert_eq!(changes.changed_skills[0].description.as_deref(), Some("d"));
}

#[tokio::test]
async fn front_matter_is_between_two_lines_of_dashes() {
    let space = space(&[]);
    for (skill_md, name, description) in [
        ("---\nname: a\ndescription: b\n---\n# Body", "a", "b"),
        // The API accepts these forms, but other programs do not.
        ("---\nname: a\ndescription: b\n", "", ""),
        ("name: a\ndescription: b\n", "", ""),
        ("# Title\n\n---\nname: a\ndescription: b\n---\n", "", ""),
        ("---\r\nname: a\r\ndescription: b\r\n---\r\n", "a", "b"),
        ("---\nname: 123\ndescription: [x]\n---\n", "", ""),
        ("---\nname: 123\ndescription: 4.5\n---\n", "123", "4.5"),
        ("---\nname: ''\ndescription: b\n---\n", "", ""),
        ("---\nname: a\n---\n", "", ""),
        ("---\nname: \"a\\tb\"\ndescription: b\n---\n", "", ""),
    ] {
        let edit = create_skill(skill_md.into());
        if name.is_empty() {
            let reply = mistake(&space, &[edit]).await;
            assert!(reply.contains("would not be valid") && reply.contains("ust begin with"), "{reply}");
            continue;
        }
        let new = &changes(&space, &[edit]).await.new_skills[0];
        assert_eq!((new.name.as_str(), new.description.as_str()), (name, description), "{skill_md}");
        assert_eq!(new.files, [(path("SKILL.md"), skill_md.to_owned())]);
    }
}

#[tokio::test]
async fn the_lines_of_dashes_cannot_be_removed() {
    let fenced = space(&[skill("a", &[])]);
    let remove = replace_text("a", "SKILL.md", "---\nname: a", "name: a");
    assert!(mistake(&fenced, std::slice::from_ref(&remove)).await.contains("must begin with a line `---`"));
    // A skill that was uploaded without them can be edited.
    let mut plain = space(&[skill("a", &[])]);
    plain.skills[0].files.insert(path("SKILL.md"), FileText::Text("name: a\ndescription: b\n".into()));
    let changes = changes(&plain, &[replace_text("a", "SKILL.md", "description: b", "description: c")]).await;
    assert_eq!(changes.changed_skills[0].description.as_deref(), Some("c"));
}

#[tokio::test]
async fn a_replacement_must_change_something() {
    let space = space(&[skill("a", &[("f.md", "text")])]);
    let reply = mistake(&space, &[replace_text("a", "f.md", "text", "text")]).await;
    assert_eq!(reply, "`old_string` and `new_string` are equal, so nothing was changed.");
}
