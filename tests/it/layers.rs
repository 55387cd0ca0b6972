//! The rules of the house, read off the sources: who imports whom, what the map names, what the config files say.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tollgate::config::Config;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `folder` with this ending.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|own| own == ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// What is compiled into the program, and what is for tests only: a file's tests are its last part.
fn split(path: &Path) -> (String, String) {
    let text = std::fs::read_to_string(path).unwrap();
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    if matches!(name.as_str(), "tests" | "conformance") {
        return (String::new(), text);
    }
    let tests = text.match_indices("#[cfg(test)]").find(|(at, _)| {
        let next = text[*at..].lines().skip(1).find(|line| !line.trim_start().starts_with("#["));
        next.is_some_and(|line| line.trim_start().starts_with("mod ") && line.ends_with('{'))
    });
    let (program, tests) = text.split_at(tests.map_or(text.len(), |(at, _)| at));
    (program.to_owned(), tests.to_owned())
}

/// The lines of the program itself, without comments.
fn program(path: &Path) -> String {
    let code = split(path).0;
    let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    code.join("\n")
}

/// The part of the crate a file belongs to.
fn part_of(path: &Path) -> String {
    let within = path.strip_prefix(root().join("src")).unwrap();
    let first = within.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The parts of the crate that `code` names: `crate::a::…`, `crate::{a::…, b}`, and for the program's own file `tollgate::a`.
fn named_parts(code: &str) -> BTreeSet<String> {
    let mut parts = BTreeSet::new();
    for prefix in ["crate::", "tollgate::"] {
        for (at, _) in code.match_indices(prefix) {
            if code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
                continue;
            }
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(list) => parts.extend(heads_of_list(list)),
                None => {
                    parts.insert(first_name(rest));
                }
            }
        }
    }
    parts
}

fn first_name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// `a::{b, c}, d}` names `a` and `d`.
fn heads_of_list(list: &str) -> Vec<String> {
    let (mut depth, mut heads, mut item) = (0, Vec::new(), String::new());
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(first_name(std::mem::take(&mut item).trim())),
            _ if depth == 0 => item.push(c),
            _ => {}
        }
    }
    heads.push(first_name(item.trim()));
    heads.retain(|head| !head.is_empty());
    heads
}

/// Rows from the bottom up; each may import from those below, and the ones in brackets from each other.
const ROWS: [&[&str]; 9] = [
    &["domain", "clock", "failpoint"],
    &["error", "telemetry", "config"],
    &["store"],
    &["actors"],
    &["accounts", "backup"],
    &["handler"],
    &["gateway", "api", "compat"],
    &["app"],
    &["commands", "main", "lib"],
];

fn may_import(from: &str, to: &str) -> bool {
    let row = |part: &str| ROWS.iter().position(|row| row.contains(&part));
    match (from, to) {
        _ if from == to => true,
        ("mock_upstream", _) => false,
        (_, "mock_upstream") => from == "commands",
        _ => match (row(from), row(to)) {
            (Some(own), Some(other)) => other < own || (other == own && own != 6),
            _ => false,
        },
    }
}

#[test]
fn each_layer_imports_only_from_those_below() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for path in files("src", "rs") {
        let from = part_of(&path);
        for to in named_parts(&program(&path)) {
            if !may_import(&from, &to) {
                wrong.push(format!("{} names crate::{to}", shown(&path)));
            }
            seen.insert((from.clone(), to));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The reading itself works: these are known to be there.
    for (from, to) in [("gateway", "accounts"), ("app", "gateway"), ("commands", "mock_upstream"), ("main", "commands")]
    {
        assert!(seen.contains(&(from.to_owned(), to.to_owned())), "{from} → {to} was not seen");
    }
}

#[test]
fn the_layer_rules_say_what_the_design_says() {
    for (from, to) in
        [("gateway", "api"), ("api", "gateway"), ("compat", "api"), ("domain", "error"), ("store", "actors")]
    {
        assert!(!may_import(from, to), "{from} → {to}");
    }
    for (from, to) in
        [("mock_upstream", "clock"), ("app", "mock_upstream"), ("accounts", "app"), ("gateway", "new_thing")]
    {
        assert!(!may_import(from, to), "{from} → {to}");
    }
    assert!(may_import("gateway", "domain") && may_import("domain", "clock") && may_import("main", "commands"));
    assert_eq!(heads_of_list("a::{b, c::{d}}, e, f::g} rest, h"), ["a", "e", "f"]);
}

#[test]
fn only_the_composition_root_names_a_storage_backend() {
    let backends: Vec<(String, PathBuf)> = files("src/store", "rs")
        .into_iter()
        .filter(|path| program(path).contains("Store for "))
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), path))
        .collect();
    assert!(backends.iter().any(|(name, _)| name == "sled") && backends.iter().any(|(name, _)| name == "memory"));
    let mut wrong = Vec::new();
    for path in files("src", "rs") {
        let inside = path.starts_with(root().join("src/store"));
        if inside || shown(&path) == "src/app/state.rs" {
            continue;
        }
        let code = program(&path);
        for (name, _) in &backends {
            let type_name = format!("{}{}Store", name[..1].to_uppercase(), &name[1..]);
            for text in [format!("store::{name}"), type_name] {
                if code.contains(&text) {
                    wrong.push(format!("{} names {text}", shown(&path)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Words of the text between backticks that look like paths of this repository.
fn paths_in(text: &str) -> BTreeSet<String> {
    let is_path = |word: &str| {
        let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
        let ends = [".rs", ".toml", ".md"].iter().any(|ending| word.ends_with(ending));
        let starts = ["src/", "benches/", "tests/", "config/", "deploy/"].iter().any(|start| word.starts_with(start));
        plain && (ends || starts)
    };
    text.split('`').skip(1).step_by(2).filter(|word| is_path(word)).map(str::to_owned).collect()
}

#[test]
fn every_path_the_architecture_page_names_exists() {
    let text = std::fs::read_to_string(root().join("src/README.md")).unwrap();
    let paths = paths_in(&text);
    assert!(paths.len() > 15, "the map names its parts: {paths:?}");
    let sources: Vec<PathBuf> = ["src", "benches", "tests"].iter().flat_map(|folder| files(folder, "rs")).collect();
    let exists = |path: &str| {
        let named_short = || sources.iter().any(|source| source.ends_with(path));
        root().join(path).exists() || (!path.contains("src/") && named_short())
    };
    let missing: Vec<&String> = paths.iter().filter(|path| !exists(path)).collect();
    assert!(missing.is_empty(), "src/README.md names what is not there: {missing:?}");
}

#[test]
fn the_map_leaves_no_part_out() {
    let text = std::fs::read_to_string(root().join("src/README.md")).unwrap();
    let paths = paths_in(&text);
    for path in files("src", "rs") {
        let part = part_of(&path);
        if matches!(part.as_str(), "main" | "lib") {
            continue;
        }
        let named = paths.iter().any(|named| named.trim_start_matches("src/").starts_with(&part));
        assert!(named, "src/README.md says nothing of {part}");
    }
}

#[test]
fn every_config_file_is_a_good_config() {
    let found = files("config", "toml");
    assert!(found.iter().any(|path| path.ends_with("default.toml")));
    for path in found {
        let text = std::fs::read_to_string(&path).unwrap();
        if let Err(error) = Config::parse(&shown(&path), &text, std::iter::empty()) {
            panic!("{error}");
        }
    }
}

#[test]
fn the_embedded_defaults_are_the_defaults() {
    let from_file = Config::parse("default.toml", tollgate::config::DEFAULT_TOML, std::iter::empty()).unwrap();
    let from_nothing = Config::parse("nothing", "", std::iter::empty()).unwrap();
    assert_eq!(
        format!("{from_file:#?}"),
        format!("{from_nothing:#?}"),
        "default.toml says something else than the code"
    );
}

/// Tests that sleep are slow or flaky, mostly both; tests that are switched off say nothing.
#[test]
fn no_test_sleeps_and_none_is_switched_off() {
    // Put together here, so that this file does not find itself.
    let forbidden = [concat!("sle", "ep("), concat!("#[ign", "ore")];
    let mut wrong = Vec::new();
    let whole = |path: PathBuf| (std::fs::read_to_string(&path).unwrap(), path);
    let python = files("tests", "py").into_iter().chain(files("clients", "py"));
    let tests = files("tests", "rs").into_iter().chain(python).map(whole);
    // Of the program's own files, only their tests.
    let inner = files("src", "rs").into_iter().map(|path| (split(&path).1, path));
    for (text, path) in tests.chain(inner) {
        for (nth, line) in text.lines().enumerate() {
            if !line.trim_start().starts_with("//") && forbidden.iter().any(|word| line.contains(word)) {
                wrong.push(format!("{}, line {} of its tests: {}", shown(&path), nth + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_program_asks_only_the_clock_what_time_it_is() {
    let mut wrong = Vec::new();
    for path in files("src", "rs") {
        let exempt = ["src/clock.rs", "src/mock_upstream/"].iter().any(|place| shown(&path).starts_with(place));
        if !exempt && program(&path).contains("SystemTime::now") {
            wrong.push(shown(&path));
        }
    }
    assert!(wrong.is_empty(), "these read the system's clock: {wrong:?}");
}

/// The table of the older systems' variables in the README is the program's own.
#[test]
fn the_readme_lists_every_foreign_variable() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let listed: Vec<&str> =
        readme.lines().filter(|line| line.starts_with("| `") && line.matches('`').count() == 4).collect();
    let known: Vec<String> =
        tollgate::config::foreign_names().map(|(name, key)| format!("| `{name}` | `{key}` |")).collect();
    assert_eq!(listed, known);
}
