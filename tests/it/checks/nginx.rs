//! A real nginx with the configuration that `deploy/` gives its users: `auth_request` against a running gateway.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::TRUSTED;
use crate::support::{Answer, TestApp, http, wait_until};

/// Stops when dropped.
struct Nginx {
    process: Child,
    addr: SocketAddr,
    _dir: tempfile::TempDir,
}

fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders.map(|folder| folder.join("nginx")).find(|program| program.is_file());
    found.expect("nginx is not installed; `make test` installs it, or: apt-get install nginx-light")
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Nginx {
    fn start(app: &TestApp) -> Self {
        let (dir, addr) = (tempfile::tempdir().unwrap(), free_address());
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nginx-auth-request.conf");
        let server = std::fs::read_to_string(shipped).unwrap();
        for address in ["127.0.0.1:8080", "127.0.0.1:9000", "127.0.0.1:80;"] {
            assert!(server.contains(address), "{address}");
        }
        let server = server
            .replace("127.0.0.1:8080", &app.public.to_string())
            .replace("127.0.0.1:9000", &app.upstream.addr().to_string())
            .replace("127.0.0.1:80;", &format!("{addr};"));
        let temp = |what: &str| format!("{what}_temp_path {}/{what};\n", dir.path().display());
        let temps: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(temp).concat();
        let pid = dir.path().join("nginx.pid");
        let text = format!(
            "daemon off;\nworker_processes 1;\npid {};\nevents {{}}\nhttp {{\naccess_log off;\n{temps}{server}}}\n",
            pid.display()
        );
        std::fs::write(dir.path().join("nginx.conf"), text).unwrap();
        let prefix = dir.path().to_string_lossy().into_owned();
        let process = Command::new(program())
            .args(["-p", &prefix, "-c", "nginx.conf", "-e", "stderr"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let nginx = Self { process, addr, _dir: dir };
        wait_until("nginx listens", || std::net::TcpStream::connect(addr).is_ok());
        nginx
    }

    fn call(&self, method: &str, path: &str, key: &str, headers: &[(&str, &str)]) -> Answer {
        let bearer = format!("Bearer {key}");
        let mut all = vec![("authorization", bearer.as_str())];
        all.extend_from_slice(headers);
        http::call(self.addr, method, path, &all, Some(&json!({"messages": []})))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Asked, and not killed: it would leave its worker behind.
        let pid = self.process.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.process.wait();
    }
}

#[test]
fn an_app_behind_nginx_is_told_who_calls() {
    let toml = format!(
        "{TRUSTED}\n[[forward]]\npath = \"/paid/*\"\ncost = {{ conversations = 5 }}\n[[forward]]\npath = \"/app/*\"\n"
    );
    let app = TestApp::start(&toml);
    let (user, admin) = (app.register("alice"), app.admin_token());
    let nginx = Nginx::start(&app);

    let forged = [("x-tollgate-user", "1"), ("x-forwarded-uri", "/app/free"), ("x-original-uri", "/app/free")];
    assert_eq!(nginx.call("POST", "/paid/chat?q=1", &user.key, &forged).status, 200);
    let seen = app.upstream.last_request().unwrap();
    let header = |name: &str| seen.header(name).map(|value| String::from_utf8_lossy(value).into_owned());
    assert_eq!(header("x-tollgate-user"), Some(user.id.to_string()));
    assert_eq!(header("x-tollgate-username").as_deref(), Some("alice"));
    assert_eq!(header("authorization"), None);
    assert_eq!(app.balance(&admin, user.id, "conversations"), 5.0);
    let before = app.upstream.stats().total;

    // The question is the request's own, whatever the client says it is.
    assert_eq!(nginx.call("POST", "/elsewhere", &user.key, &forged).status, 403);
    let unknown = nginx.call("POST", "/app/x", "pe-wrong", &[]);
    assert_eq!((unknown.status, unknown.header("www-authenticate").is_some()), (401, true));
    assert_eq!(nginx.call("GET", "/_tollgate", &user.key, &[]).status, 404);

    // nginx alone would make 500 of a 429.
    assert_eq!(nginx.call("POST", "/paid/chat", &user.key, &[]).status, 200);
    let short = nginx.call("POST", "/paid/chat", &user.key, &[]);
    assert_eq!((short.status, short.header("x-tollgate-reason")), (429, Some("CREDITS_EXHAUSTED")), "{}", short.text());
    let suspend = format!("/v1/admin-panel/users/{}/suspend", user.id);
    assert_eq!(app.admin_call(&admin, "POST", &suspend, Some(&json!({}))).status, 200);
    assert_eq!(nginx.call("POST", "/app/x", &user.key, &[]).status, 403);
    assert_eq!(app.upstream.stats().total, before + 1);
}
