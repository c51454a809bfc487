//! The direction of dependencies in `src`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use acontextd::features::{self, ROUTE_OWNERS};

use crate::support::run;

/// The layers from the bottom to the top. A file may use only its own entry and the entries before it. The entry of a
/// file is the longest one that is a prefix of its path, so a single file can have its own layer.
const LAYERS: &[&str] = &[
    // Pure: no I/O and no clock.
    "percent",
    "json",
    "mime",
    "crypto",
    "text_enum",
    "ids",
    "time",
    "config",
    "conversation",
    // The platform, which uses no feature.
    "error",
    "telemetry",
    "process",
    "db",
    "encryption",
    "jobs",
    "blob",
    "http",
    "llm",
    "embedded",
    "platform",
    // Authentication.
    "auth",
    // The subcommand that the local sandbox provider starts.
    "confine",
    // The features.
    "material",
    "usage_metrics",
    "users",
    // Only the payloads of jobs, for the features that enqueue them.
    "learn/jobs",
    "sessions",
    "messages",
    "tasks",
    // Copies a session with the rows of the features above.
    "sessions/copy",
    "sandboxes",
    "disks",
    "skills",
    "lessons",
    "learning_spaces",
    "learn",
    "job_control",
    "projects",
    "status",
    // The program.
    "features",
    "startup",
    "lib",
    "main",
];

/// Files that may write tables of other directories in one statement, and those tables.
const WRITE_EXCEPTIONS: &[(&str, &[&str])] = &[
    // Copies a session with its contents.
    ("sessions/copy", &["jobs", "message_files", "messages", "tasks"]),
    // Stores a message, updates its session and enqueues its observation. This is one statement, because it holds the
    // lock of the session for which all writers wait.
    ("messages/store", &["jobs", "sessions"]),
];

/// The directory of `src` that may write each table.
const TABLE_OWNERS: &[(&str, &str)] = &[
    ("agent_skills", "skills"),
    ("artifact_versions", "disks"),
    ("artifacts", "disks"),
    ("blobs", "blob"),
    ("change_files", "disks"),
    ("changes", "disks"),
    ("encryption_conversions", "projects"),
    ("disks", "disks"),
    ("jobs", "jobs"),
    ("idempotency_records", "http"),
    ("learning_space_sessions", "learning_spaces"),
    ("learning_space_skills", "learning_spaces"),
    ("learning_spaces", "learning_spaces"),
    ("lessons", "lessons"),
    ("message_files", "messages"),
    ("message_slices", "messages"),
    ("messages", "messages"),
    ("metrics", "usage_metrics"),
    ("model_calls", "llm"),
    ("projects", "projects"),
    ("blob_releases", "blob"),
    ("rotated_keys", "projects"),
    ("server_state", "db"),
    ("sandbox_commands", "sandboxes"),
    ("sandboxes", "sandboxes"),
    ("session_events", "sessions"),
    ("sessions", "sessions"),
    ("tasks", "tasks"),
    ("users", "users"),
];

/// The code of one file, without comments and tests.
struct Source {
    /// The path below `src` without its extension, or the path of the directory for a `mod.rs`.
    module: String,
    code: String,
}

fn read_sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut dirs, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let module = path.strip_prefix(&root).unwrap().with_extension("");
                let module = module.to_str().unwrap();
                let module = module.strip_suffix("/mod").unwrap_or(module).to_owned();
                if !module.split('/').any(|name| matches!(name, "tests" | "proptests")) {
                    sources.push(Source {
                        module,
                        code: strip_comments_and_tests(&std::fs::read_to_string(path).unwrap()),
                    });
                }
            }
        }
    }
    sources.sort_by(|one, other| one.module.cmp(&other.module));
    sources
}

/// Returns the text of a file without its test module and comments.
fn strip_comments_and_tests(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the paths of a use tree that follows `crate::` or `super::`, such as `a/b` and `a/c` for `a::{b, c}`.
fn parse_use_paths(tree: &str) -> Vec<String> {
    let end = tree.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(tree.len());
    let prefix = tree[..end].trim_end_matches(':').replace("::", "/");
    let Some(group) = tree[end..].strip_prefix('{') else { return vec![prefix] };
    let (mut depth, mut start, mut paths) = (0, 0, Vec::new());
    for (offset, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                let inner = parse_use_paths(group[start..offset].trim());
                paths.extend(inner.into_iter().map(|path| format!("{prefix}/{path}").trim_matches('/').to_owned()));
                start = offset + 1;
                if character == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    paths
}

/// Returns every path of this crate that a file names, from the root of the crate.
fn referenced_paths(source: &Source) -> BTreeSet<String> {
    let mut paths = referenced_children(source);
    for (offset, prefix) in source.code.match_indices("crate::") {
        paths.extend(parse_use_paths(&source.code[offset + prefix.len()..]));
    }
    for (offset, _) in source.code.match_indices("super::") {
        if source.code[..offset].ends_with("super::") {
            continue;
        }
        let mut rest = &source.code[offset..];
        let mut parent: Vec<&str> = source.module.split('/').collect();
        while let Some(tail) = rest.strip_prefix("super::") {
            parent.pop();
            rest = tail;
        }
        let parent = parent.join("/");
        paths.extend(
            parse_use_paths(rest).into_iter().map(|path| format!("{parent}/{path}").trim_matches('/').to_owned()),
        );
    }
    paths
}

/// Returns the child modules whose items a file names by a relative path, such as `store::insert`.
fn referenced_children(source: &Source) -> BTreeSet<String> {
    let declared = source.code.lines().filter_map(|line| {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        line.strip_prefix("mod ")?.strip_suffix(';')
    });
    let is_used = |child: &str| {
        let path = format!("{child}::");
        source.code.match_indices(&path).any(|(offset, _)| {
            let before = source.code[..offset].chars().next_back();
            before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '_' | ':'))
        })
    };
    declared.filter(|child| is_used(child)).map(|child| format!("{}/{child}", source.module)).collect()
}

/// Returns the files that each file uses.
fn dependencies(sources: &[Source]) -> BTreeMap<&str, BTreeSet<String>> {
    let modules: BTreeSet<&str> = sources.iter().map(|source| source.module.as_str()).collect();
    let find_file = |path: &str| {
        let mut path = path;
        loop {
            if modules.contains(path) {
                return Some(path.to_owned());
            }
            path = path.rsplit_once('/')?.0;
        }
    };
    let uses = |source: &Source| -> BTreeSet<String> {
        let files = referenced_paths(source).iter().filter_map(|path| find_file(path)).collect::<BTreeSet<_>>();
        files.into_iter().filter(|file| *file != source.module).collect()
    };
    sources.iter().map(|source| (source.module.as_str(), uses(source))).collect()
}

fn is_below(module: &str, dir: &str) -> bool {
    module.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn layer_index(module: &str) -> usize {
    let entries = LAYERS.iter().enumerate().filter(|(_, entry)| is_below(module, entry));
    let layer = entries.max_by_key(|(_, entry)| entry.len()).map(|(layer, _)| layer);
    layer.unwrap_or_else(|| panic!("src/{module} has no entry in LAYERS"))
}

#[test]
fn files_use_lower_layers_only() {
    let sources = read_sources();
    let mut violations = BTreeSet::new();
    for (module, used) in dependencies(&sources) {
        for file in used.iter().filter(|file| layer_index(file) > layer_index(module)) {
            violations.insert((module.to_owned(), LAYERS[layer_index(file)].to_owned()));
        }
    }
    assert!(violations.is_empty(), "these files use a higher layer: {violations:#?}");
}

/// The `mod.rs` of a directory and the files in the directory may use each other.
#[test]
fn files_have_no_cycles() {
    let sources = read_sources();
    let dependencies = dependencies(&sources);
    let is_related = |one: &str, other: &str| is_below(one, other) || is_below(other, one);
    // A cycle through several layers violates their order already.
    let is_edge = |module: &str, file: &str| !is_related(module, file) && layer_index(module) == layer_index(file);
    let next = |module: &str| -> Vec<String> {
        dependencies[module].iter().filter(|file| is_edge(module, file)).cloned().collect()
    };
    let mut violations = BTreeSet::new();
    for module in dependencies.keys() {
        for used in next(module) {
            let (mut queue, mut seen) = (vec![used.clone()], BTreeSet::new());
            while let Some(file) = queue.pop() {
                if seen.insert(file.clone()) {
                    queue.extend(next(&file));
                }
            }
            if seen.contains(*module) {
                violations.insert(((*module).to_owned(), used));
            }
        }
    }
    assert!(violations.is_empty(), "these uses are part of a cycle of files: {violations:#?}");
}

#[test]
fn stores_use_no_http() {
    let is_store =
        |module: &str| module.rsplit('/').next().is_some_and(|file| file == "store" || file.ends_with("_store"));
    let sources = read_sources();
    let stores = sources.iter().filter(|source| is_store(&source.module));
    let violations = stores.filter(|store| store.code.contains("crate::http") || store.code.contains("axum"));
    let violations: Vec<_> = violations.map(|store| &store.module).collect();
    assert!(violations.is_empty(), "these stores use HTTP types: {violations:?}");
}

#[test]
fn each_table_is_written_by_one_directory() {
    let owners: BTreeMap<&str, &str> = TABLE_OWNERS.iter().copied().collect();
    let mut violations = BTreeSet::new();
    for source in read_sources() {
        for table in written_tables(&source.code) {
            let owner = owners.get(table.as_str()).unwrap_or_else(|| panic!("TABLE_OWNERS has no entry for {table}"));
            if !is_below(&source.module, owner) {
                violations.insert((source.module.clone(), table));
            }
        }
    }
    let exceptions = WRITE_EXCEPTIONS.iter().flat_map(|(file, tables)| tables.iter().map(move |table| (file, table)));
    let exceptions = exceptions.map(|(file, table)| ((*file).to_owned(), (*table).to_owned())).collect();
    assert_eq!(
        violations, exceptions,
        "a table is written outside of the directory that owns it, or an exception is not needed"
    );
}

/// Returns the tables that the SQL in a file inserts into, updates or deletes from.
fn written_tables(code: &str) -> BTreeSet<String> {
    let name_after = |offset: usize| {
        let rest = code[offset..].trim_start();
        let end =
            rest.find(|c: char| !(c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())).unwrap_or(rest.len());
        (!rest[..end].is_empty()).then(|| (rest[..end].to_owned(), rest[end..].trim_start().to_owned()))
    };
    let mut tables = BTreeSet::new();
    for verb in ["insert into ", "update ", "delete from "] {
        for (offset, _) in code.match_indices(verb) {
            let Some((table, rest)) = name_after(offset + verb.len()) else { continue };
            // Excludes `for update of t`, `on conflict … do update set` and prose.
            let is_statement =
                verb != "update " || rest.starts_with("set ") || rest.split_whitespace().nth(1) == Some("set");
            if is_statement && !matches!(table.as_str(), "set" | "of") {
                tables.insert(table);
            }
        }
    }
    tables
}

#[tokio::test]
async fn routes_are_in_the_directory_that_owns_them() {
    run(async |app| {
        let mut unused: BTreeSet<&str> = ROUTE_OWNERS.iter().map(|(prefix, _)| *prefix).collect();
        for (dir, paths) in features::paths(&app.app) {
            for path in paths {
                let owners = ROUTE_OWNERS.iter().filter(|(prefix, _)| is_below(&path, prefix));
                let owner = owners.max_by_key(|(prefix, _)| prefix.len());
                let (prefix, owner) = owner.unwrap_or_else(|| panic!("ROUTE_OWNERS has no entry for {path}"));
                assert_eq!(*owner, dir, "{path}");
                unused.remove(prefix);
            }
        }
        assert!(unused.is_empty(), "no route begins with {unused:?}");
    })
    .await;
}
