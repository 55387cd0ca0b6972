//! The package for apps in Python (clients/python): its own tests against a gateway, and its types.

use std::process::Command;

use crate::openai_client::{ROOT, python};
use crate::support::TestApp;

fn python_says(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let done = Command::new(python())
        .arg("-m")
        .args(arguments)
        .current_dir(format!("{ROOT}/clients/python"))
        .envs(variables.iter().copied())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}{err}");
    out.into_owned()
}

#[test]
fn the_package_s_own_tests() {
    let app = TestApp::start("[access]\ntrusted_proxies = [\"127.0.0.1/32\"]\ndeny = [\"203.0.113.0/24\"]\n");
    let (public, admin) = (format!("http://{}", app.public), format!("http://{}", app.admin));
    let out = python_says(
        &["pytest", "--quiet"],
        &[
            ("TOLLGATE_URL", &public),
            ("TOLLGATE_TEST_ADMIN_URL", &admin),
            ("TOLLGATE_TEST_ADMIN_TOKEN", &app.admin_token()),
        ],
    );
    let passed = out.lines().last().unwrap_or_default();
    assert!(passed.contains(" passed") && !passed.contains("skipped"), "{out}");
    assert_eq!(app.metric("tollgate_holds_open"), 0.0);
    assert_eq!(app.upstream.stats().total, 0, "these questions are answered here");
}

#[test]
fn its_types_hold() {
    let cache = concat!(env!("CARGO_TARGET_TMPDIR"), "/mypy");
    python_says(&["mypy", "--strict", "--cache-dir", cache, "src", "tests"], &[]);
}
