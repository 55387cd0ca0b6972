//! What `make` finds on the machine: what the tests need, and what a release is made with.

use std::path::Path;
use std::process::{Command, Output};

use super::{PROGRAM, ROOT, printed, stand_in};

/// A script of `tests/`, on a machine that has no programs but these.
fn run(script: &str, words: &[&str], programs: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in programs {
        stand_in(dir.path(), name, text);
    }
    let mut command = Command::new("/bin/bash");
    command.arg(Path::new(ROOT).join("tests").join(script)).args(words);
    command.env_clear().env("PATH", dir.path()).current_dir(dir.path()).output().unwrap()
}

const NEEDED: [&str; 3] = ["no-such-server=server-light", "sh=never", "no-such-client=client"];

#[test]
fn what_is_missing_is_told_at_once_and_with_what_to_do() {
    // A program that is here already.
    let here = ("sh", "exit 0");
    let cases = [
        (vec![here], "There is no apt-get"),
        (vec![here, ("apt-get", "exit 0"), ("id", "echo 1000")], "Only root can install them"),
        (vec![here, ("apt-get", "exit 100"), ("id", "echo 0")], "is there a network?"),
        (vec![here, ("apt-get", "[ $1 = update ]"), ("id", "echo 0")], "apt-get install failed"),
    ];
    for (programs, why) in cases {
        let output = run("install-packages.sh", &NEEDED, &programs);
        let said = printed(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why) && said.contains("server-light client") && !said.contains("never"), "{said}");
    }
}

#[test]
fn what_is_here_is_not_installed() {
    let programs = [("sh", "exit 0"), ("apt-get", "echo called"), ("id", "echo 0")];
    let output = run("install-packages.sh", &["sh=never"], &programs);
    assert_eq!((output.status.code(), printed(&output)), (Some(0), String::new()));
}

#[test]
fn clients_that_cannot_be_fetched_are_named() {
    let mkdir = ("mkdir", "exec /bin/mkdir \"$@\"");
    // `python3 -m venv DIR` makes a pip that finds nothing.
    let python = (
        "python3",
        "[ \"$1\" = -m ] || { echo Python 3.11; exit 0; }\n/bin/mkdir -p $3/bin\n\
         printf '#!/bin/sh\\nexit 1\\n' > $3/bin/pip\n/bin/chmod +x $3/bin/pip",
    );
    let output = run("install-clients.sh", &["here/venv", "openai==1"], &[mkdir, python, ("dirname", "echo here")]);
    let said = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("openai==1") && said.contains("PyPI") && said.contains("this is Python 3.11"), "{said}");
}

/// `make dist`, with the tests' own program instead of the release.
#[test]
fn a_release_is_stripped_and_its_symbols_are_kept_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let dist = dir.path().join("dist");
    let mut make = Command::new("make");
    make.args(["dist", "CARGO=true", &format!("RELEASE={PROGRAM}"), &format!("DIST={}", dist.display())]);
    // Nothing of a make that runs these tests.
    make.current_dir(ROOT).env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    let output = make.output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    let sections = |path: &Path| printed(&Command::new("readelf").args(["-S", "-W"]).arg(path).output().unwrap());
    let (program, symbols) = (dist.join("tollgate"), dist.join("tollgate.debug"));
    assert!(size(&program) < size(Path::new(PROGRAM)), "{} of {}", size(&program), size(Path::new(PROGRAM)));
    let (kept, moved) = (sections(&program), sections(&symbols));
    assert!(kept.contains(".gnu_debuglink") && !kept.contains(".debug_line") && !kept.contains(".symtab"), "{kept}");
    assert!(moved.contains(".debug_line") && moved.contains(".symtab"), "{moved}");
    let version = Command::new(program).arg("--version").output().unwrap();
    assert!(version.status.success() && printed(&version).starts_with("tollgate "), "{}", printed(&version));
}
