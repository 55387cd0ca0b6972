//! The store as operators meet it: backends, formats, backups, the check of the books, and disks that fail.

mod backup;
mod earlier;
mod faults;
mod formats;
mod ledger;

use serde_json::{Value, json};

use crate::accounts::process::Site;
use crate::support::{Answer, PASSWORD, chat_body, http};

const BACKENDS: [&str; 2] = ["sled", "redb"];

/// A site on this backend, for calls that `upstream` answers.
fn site_on(backend: &str, upstream: std::net::SocketAddr) -> Site {
    let site = Site::new(upstream);
    use_backend(&site, backend);
    site
}

fn use_backend(site: &Site, backend: &str) {
    let config = std::fs::read_to_string(site.config()).unwrap();
    let without: Vec<&str> =
        config.lines().filter(|line| !line.starts_with("[store]") && !line.starts_with("backend =")).collect();
    site.write(&format!("{}\n[store]\nbackend = \"{backend}\"\n", without.join("\n")));
}

/// A registered user.
struct Person {
    id: u64,
    bearer: String,
}

impl Person {
    fn new(site: &Site, name: &str) -> Self {
        let user = json!({
            "username": name, "name": "Some Body", "email": format!("{name}@example.com"), "password": PASSWORD
        });
        let made = http::call(site.public, "POST", "/v1/users/register", &[], Some(&user));
        assert_eq!(made.status, 200, "{}", made.text());
        let made = made.json();
        Self { id: made["user_id"].as_u64().unwrap(), bearer: format!("Bearer {}", made["api_key"].as_str().unwrap()) }
    }

    fn says(&self, site: &Site, text: &str) -> Answer {
        let body = chat_body(json!({"messages": [{"role": "user", "content": text}]}));
        http::call(site.public, "POST", "/v1/chat/completions", &[("authorization", &self.bearer)], Some(&body))
    }

    /// Conversations left, as his next call is told.
    fn left_after_a_call(&self, site: &Site) -> u64 {
        let answer = self.says(site, "how many are left?");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.header("x-tollgate-remaining-conversations").unwrap().parse().unwrap()
    }
}

fn lines(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
