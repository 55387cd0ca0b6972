//! The first ten minutes of somebody new: the README, the demo, and what `make` says when something is missing.

mod machine;
mod readme;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tollgate");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Puts a shell script where a program would be.
fn stand_in(folder: &Path, name: &str, script: &str) {
    let file = folder.join(name);
    std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn printed(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

#[test]
fn the_demo_ends_with_how_to_stay() {
    let output = Command::new(PROGRAM).args(["demo", "--once"]).output().unwrap();
    let said = printed(&output);
    assert!(output.status.success(), "{said}");
    for piece in
        ["plain answer", "streaming answer", "data: [DONE]", "conversations left     8", "curl http://127.0.0.1:"]
    {
        assert!(said.contains(piece), "no {piece:?} in {said}");
    }
    let (_, end) = said.split_once("The demo is over").unwrap();
    for command in [format!("{PROGRAM} mock-upstream &"), format!("{PROGRAM} serve --config config/minimal.toml")] {
        assert!(end.contains(&command), "no {command:?} in {end}");
    }
    assert!(Path::new(ROOT).join("config/minimal.toml").exists());
    let readme = std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    assert!(end.contains("\"A first call of your own\"") && readme.contains("\n## A first call of your own\n"));
}
