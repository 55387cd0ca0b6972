//! What the README tells newcomers to type, typed: every shell block, from the first to the last, in one shell, against the
//! real program. A comment `# → …` under a command is a promise about its output.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use tollgate::clock::Clock;

use super::{PROGRAM, ROOT, stand_in};

/// Printed before each block, so that its output can be told from the others'.
const MARK: &str = "=== block ";

struct Block {
    /// Of its first line in the README.
    line: usize,
    text: String,
}

fn readme() -> String {
    std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap()
}

fn shell_blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (at, line) in readme().lines().enumerate() {
        match &mut open {
            None if line == "```sh" => open = Some(Block { line: at + 2, text: String::new() }),
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some(block) => block.text.extend([line, "\n"]),
            None => {}
        }
    }
    blocks
}

/// What a block promises: the pieces between the dots must be in its output, in this order.
fn promises(block: &Block) -> Vec<Vec<String>> {
    let lines = block.text.lines().filter_map(|line| line.strip_prefix("# → "));
    lines.map(|line| line.split('…').map(squeezed).filter(|piece| !piece.is_empty()).collect()).collect()
}

/// Without spaces and line ends, which JSON has or has not.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect()
}

/// An address of the loopback network that no other test of any process uses: the README's ports are free there.
fn own_loopback() -> String {
    let id = std::process::id();
    format!("127.{}.{}.{}", 101 + (id >> 16) % 100, (id >> 8) & 255, (id & 255).clamp(1, 254))
}

/// Ends the processes of a group, if there are any left.
fn end_group(id: u32) {
    let _ = Command::new("kill").args(["-KILL", "--", &format!("-{id}")]).stderr(Stdio::null()).status();
}

/// Programs in front of the real ones: what builds is not run, but what it is asked for must be there.
fn stand_ins(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    stand_in(folder, "make", &format!("exec /usr/bin/env -i PATH=/usr/bin:/bin make --dry-run -C '{ROOT}' \"$@\""));
    let build = "[ \"$1 $2\" = 'build --profile' ]";
    stand_in(folder, "cargo", &format!("{build} && grep -qxF \"[profile.$3]\" '{ROOT}/Cargo.toml'"));
}

#[test]
fn every_shell_block_does_what_it_promises() {
    let dir = tempfile::tempdir().unwrap();
    let host = own_loopback();
    let here = |text: &str| text.replace("127.0.0.1", &host);
    std::fs::create_dir(dir.path().join("config")).unwrap();
    let config = std::fs::read_to_string(Path::new(ROOT).join("config/minimal.toml")).unwrap();
    std::fs::write(dir.path().join("config/minimal.toml"), here(&config)).unwrap();
    // What the build would make, where it would make it.
    let built = dir.path().join("target/try");
    std::fs::create_dir_all(&built).unwrap();
    std::os::unix::fs::symlink(PROGRAM, built.join("tollgate")).unwrap();
    let in_front = dir.path().join("stand-ins");
    stand_ins(&in_front);

    let blocks = shell_blocks();
    let mut script = format!("set -euo pipefail\nPATH={}:$PATH\n", in_front.display());
    for block in &blocks {
        let simulated = format!("tollgate mock-upstream --listen {host}:9100");
        let text = here(&block.text).replace("tollgate mock-upstream", &simulated);
        script.push_str(&format!("echo; echo '{MARK}{}'\n{text}", block.line));
    }
    let file = dir.path().join("readme.sh");
    std::fs::write(&file, &script).unwrap();

    // Twelve hours from now, so that no balance is set back while it runs.
    let hour = (Clock::system().now().0 / 3_600_000 + 12) % 24;
    let out = std::fs::File::create(dir.path().join("out")).unwrap();
    let mut command = Command::new("bash");
    command.arg(&file).current_dir(dir.path()).process_group(0);
    command.env("TOLLGATE__LEDGER__RESET_HOUR", hour.to_string()).env("NO_PROXY", "*");
    command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
    let mut shell = command.spawn().unwrap();
    let status = shell.wait().unwrap();
    end_group(shell.id());

    let said = std::fs::read_to_string(dir.path().join("out")).unwrap();
    assert!(status.success(), "{status}: {said}");
    for block in &blocks {
        let (_, after) = said.split_once(&format!("{MARK}{}\n", block.line)).unwrap_or_else(|| panic!("{said}"));
        let own = squeezed(after.split(MARK).next().unwrap());
        for promise in promises(block) {
            let mut rest = own.as_str();
            for piece in &promise {
                let at = rest.find(piece.as_str());
                let at = at.unwrap_or_else(|| panic!("README.md:{}: no {piece} in {after}", block.line));
                rest = &rest[at + piece.len()..];
            }
        }
    }
    assert!(blocks.iter().map(|block| promises(block).len()).sum::<usize>() >= 8, "the promises are read");
}
