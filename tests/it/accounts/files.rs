//! Who can read what the program keeps: its modes, with the real program and whatever mask it is started with.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::server_process::Site;
use crate::support::{chat_body, http, wait_until};

/// Every file and folder at and below `folder`, with its mode.
fn modes(folder: &Path) -> Vec<(PathBuf, bool, u32)> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path, meta.is_dir(), meta.mode() & 0o777));
    }
    found
}

#[track_caller]
fn are(folder: &Path, (dirs, files): (u32, u32)) {
    let found = modes(folder);
    assert!(found.len() > 8, "{found:?}");
    for (path, is_dir, mode) in found {
        let own = path.components().any(|part| part.as_os_str() == "run");
        let wanted = match (is_dir, own) {
            (true, true) => 0o700,
            (false, true) => 0o600,
            (true, false) => dirs,
            (false, false) => files,
        };
        assert_eq!(mode, wanted, "{} has {mode:o}", path.display());
    }
}

const CONFIG: &str = "[listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nworkers = 1\n\
    [telemetry]\naccess_log = \"off\"\nlog = \"info\"\n\
    [journal]\nflush_interval = \"10ms\"\n\
    [mail]\ntransport = \"file\"\nfrom = \"noreply@example.com\"\nfolder = \"FOLDER/letters\"\n\
    [[upstreams]]\nname = \"ai\"\nendpoints = [\"http://127.0.0.1:1\"]\n[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\n";

/// A site whose program is started by a shell with this mask.
fn site(backend: &str, more: &str) -> Site {
    let site = Site::new("");
    let config = CONFIG.replace("FOLDER", &site.dir.path().display().to_string());
    site.write_config(&format!(
        "public_base_url = \"https://ai.example.com\"\n{more}[store]\nbackend = \"{backend}\"\n{config}"
    ));
    site
}

fn under_mask(mask: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    shell.arg("-c").arg(format!("umask {mask}; exec {}", quoted.join(" ")));
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

#[test]
fn what_is_kept_is_nobody_else_s_whatever_the_mask() {
    for (mask, backend) in [("000", "sled"), ("022", "redb")] {
        let site = site(backend, "");
        let server = site.serve_as(under_mask(mask, &site.command(&["serve"])));
        let user = server.register("alice");
        http::call(
            server.public,
            "POST",
            "/v1/chat/completions",
            &[("x-api-key", &user.key)],
            Some(&chat_body(json!({}))),
        );
        wait_until("a letter", || {
            fs::read_dir(site.dir.path().join("letters")).is_ok_and(|mut dir| dir.next().is_some())
        });
        are(&site.data_dir(), (0o700, 0o600));
        for (path, is_dir, mode) in modes(&site.dir.path().join("letters")) {
            assert_eq!(mode, if is_dir { 0o700 } else { 0o600 }, "{}", path.display());
        }
        // What commands write, also over a file that was open to all.
        for (words, name) in [
            (vec!["backup"], "all.backup"),
            (vec!["users", "export", "--output"], "users.jsonl"),
            (vec!["codes", "export", "alice", "--output"], "codes.csv"),
            (vec!["logs", "export", "--output"], "logs.jsonl"),
        ] {
            let file = site.dir.path().join(name);
            fs::write(&file, "old").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
            let mut words = words;
            words.push(file.to_str().unwrap());
            let done = under_mask(mask, &site.command(&words)).output().unwrap();
            assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
            assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600, "{name}");
        }
    }
}

#[test]
fn an_older_folder_is_tightened_and_the_log_says_so() {
    let site = site("sled", "");
    drop(site.serve());
    for (path, is_dir, _) in modes(&site.data_dir()) {
        let open = if is_dir { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
    }
    let server = site.serve();
    assert!(server.log().contains("were open to other users of this machine"), "{}", server.log());
    are(&site.data_dir(), (0o700, 0o600));
    drop(server);
    let server = site.serve();
    assert!(!server.log().contains("open to other users"), "{}", server.log());
}

#[test]
fn one_group_may_read_where_the_operator_says_so() {
    let group = fs::metadata("/proc/self").unwrap().gid();
    let site = site("redb", &format!("data_dir_group = \"{group}\"\n"));
    let server = site.serve_as(under_mask("000", &site.command(&["serve"])));
    server.register("alice");
    are(&site.data_dir(), (0o750, 0o640));
    for (path, ..) in modes(&site.data_dir()) {
        assert_eq!(fs::symlink_metadata(&path).unwrap().gid(), group, "{}", path.display());
    }
    drop(server);
    // And not any more.
    let config = fs::read_to_string(site.config_file()).unwrap();
    fs::write(site.config_file(), config.replace(&format!("data_dir_group = \"{group}\"\n"), "")).unwrap();
    let _server = site.serve();
    are(&site.data_dir(), (0o700, 0o600));
}
