//! What the tests stand on: a gateway in this process, a simulated upstream behind it, and clients that speak over sockets.

pub mod http;
pub mod idp;
pub mod smtp;
pub mod stores;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate::accounts::passwords::Rule;
use tollgate::actors::writer::{Disk, LocalDisk};
use tollgate::app::{App, Core, FirstAdmin};
use tollgate::clock::{Clock, ManualClock, UnixMillis};
use tollgate::config::Config;
use tollgate::mock_upstream::MockUpstream;
use tollgate::store::Store;
use tollgate::store::memory::MemoryStore;

pub use http::{Answer, Conn};

pub const ADMIN: &str = "root-admin";
pub const PASSWORD: &str = "SecurePass123";

/// Longest that a test waits for a condition or an answer. Nobody waits so long but a test that fails, or a machine that does
/// much besides.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How often [`wait_briefly`] looks.
const LOOKS: usize = 300;

/// A running gateway with a simulated upstream. Stops when dropped.
pub struct TestApp {
    pub app: Option<App>,
    pub upstream: MockUpstream,
    pub public: SocketAddr,
    pub admin: SocketAddr,
    pub hands: Option<Arc<ManualClock>>,
    pub dir: Arc<tempfile::TempDir>,
    /// Where the upstream runs.
    _runtime: tokio::runtime::Runtime,
}

pub struct TestUser {
    pub id: u64,
    pub username: String,
    pub email: String,
    pub key: String,
}

/// What a test changes of the usual.
pub struct Options {
    /// Added to, or replacing sections of, the config.
    pub toml: String,
    /// A clock that stands still, from this moment.
    pub manual_clock: Option<&'static str>,
    pub dir: Option<Arc<tempfile::TempDir>>,
    pub backend: &'static str,
    pub workers: usize,
    /// Instead of the backend's own.
    pub store: Option<Arc<dyn Store>>,
    /// Instead of the real one, for the conversation journal; the spill's stays real.
    pub journal_disk: Option<Box<dyn Disk>>,
    /// The only route, unless empty.
    pub route: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            toml: String::new(),
            manual_clock: None,
            dir: None,
            backend: "memory",
            workers: 2,
            store: None,
            journal_disk: None,
            route: "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = { conversations = 1 }\n",
        }
    }
}

impl TestApp {
    /// With `toml` added to a config whose limits are out of the way.
    pub fn start(toml: &str) -> Self {
        Self::with(Options { toml: toml.to_owned(), ..Options::default() })
    }

    pub fn with(options: Options) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let upstream = runtime.block_on(MockUpstream::bind("127.0.0.1:0".parse().unwrap())).unwrap();
        upstream.record(true);
        let dir = options.dir.clone().unwrap_or_else(|| Arc::new(tempfile::tempdir().unwrap()));
        let config = config(&options, upstream.addr(), dir.path());
        let (clock, hands) = match options.manual_clock {
            Some(start) => {
                let (clock, hands) = Clock::manual(UnixMillis::parse_rfc3339(start).unwrap());
                (clock, Some(hands))
            }
            None => (Clock::system(), None),
        };
        let admin =
            FirstAdmin { username: ADMIN.into(), password: PASSWORD.into(), email: None, rule: Rule::Composition };
        let core = match (options.store, options.journal_disk) {
            (store, Some(disk)) => {
                let store = store.unwrap_or_else(|| Arc::new(MemoryStore::default()));
                Core::on_disks(store, (disk, Box::new(LocalDisk)), &config, clock, options.workers)
            }
            (Some(store), None) => Core::on(store, &config, clock, options.workers),
            (None, None) => Core::open(&config, clock, options.workers),
        };
        let app = App::start_on(core.unwrap(), config, Some(admin)).unwrap();
        let (public, admin) = (app.public_addr(), app.admin_addr());
        Self { app: Some(app), upstream, public, admin, hands, dir, _runtime: runtime }
    }

    pub fn app(&self) -> &App {
        self.app.as_ref().unwrap()
    }

    /// The config with which this app would start again, for `reload`.
    pub fn config_with(&self, toml: &str) -> Config {
        let manual_clock = self.hands.is_some().then_some("");
        let options = Options { toml: toml.to_owned(), manual_clock, ..Options::default() };
        config(&options, self.upstream.addr(), self.dir.path())
    }

    pub fn reload(&mut self, toml: &str) {
        let config = self.config_with(toml);
        self.app.as_mut().unwrap().reload(config);
    }

    /// Drains and stops the gateway; the upstream stays.
    pub fn stop(&mut self) {
        if let Some(app) = self.app.take() {
            app.stop();
        }
    }

    pub fn register(&self, name: &str) -> TestUser {
        let email = format!("{name}@example.com");
        let body = json!({"username": name, "name": "Test User", "email": email, "password": PASSWORD});
        let answer = http::call(self.public, "POST", "/v1/users/register", &[], Some(&body));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let value = answer.json();
        let text = |key: &str| value[key].as_str().unwrap().to_owned();
        TestUser { id: value["user_id"].as_u64().unwrap(), username: text("username"), email, key: text("api_key") }
    }

    /// A call on the public listener; `key` as bearer.
    pub fn call(&self, method: &str, path: &str, key: &str, body: Option<&Value>) -> Answer {
        http::call(self.public, method, path, &[("authorization", &format!("Bearer {key}"))], body)
    }

    /// A chat completion; `more` is merged into the usual body.
    pub fn chat(&self, key: &str, more: Value) -> Answer {
        self.call("POST", "/v1/chat/completions", key, Some(&chat_body(more)))
    }

    /// A superadmin's session token.
    pub fn admin_token(&self) -> String {
        let body = json!({"username": ADMIN, "password": PASSWORD});
        let answer = http::call(self.admin, "POST", "/v1/admin-panel/login", &[], Some(&body));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["session"]["session_token"].as_str().unwrap().to_owned()
    }

    /// A call on the side port.
    pub fn admin_call(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        http::call(self.admin, method, path, &[("authorization", &format!("Bearer {token}"))], body)
    }

    pub fn metrics(&self) -> String {
        http::call(self.admin, "GET", "/metrics", &[], None).text()
    }

    /// One sample of the metrics, by its name with labels as printed.
    pub fn metric(&self, sample: &str) -> f64 {
        let metrics = self.metrics();
        let line = metrics.lines().find(|line| line.strip_prefix(sample).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0.0)
    }

    /// The balance of a user's meter, as the admin sees it.
    pub fn balance(&self, token: &str, user: u64, meter: &str) -> f64 {
        let answer = self.admin_call(token, "GET", &format!("/v1/admin-panel/users/{user}"), None);
        answer.json()["user"]["meters"][meter]["balance"].as_f64().unwrap_or_else(|| panic!("{}", answer.text()))
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn chat_body(more: Value) -> Value {
    let mut body = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    body
}

fn config(options: &Options, upstream: SocketAddr, dir: &std::path::Path) -> Config {
    let base = format!(
        r#"
        data_dir = {dir:?}
        [listen]
        public = "127.0.0.1:0"
        admin = "127.0.0.1:0"
        workers = {workers}
        drain_grace = "10s"
        [store]
        backend = "{backend}"
        [[upstreams]]
        name = "ai"
        endpoints = ["http://{upstream}"]
        {route}
        "#,
        workers = options.workers,
        backend = options.backend,
        route = options.route,
    );
    let mut table: toml::Table = toml::from_str(&base).unwrap();
    let defaults = "[limits]\nper_ip_per_minute = 0\n[access]\nblock_after_failures = 0\n[accounts]\nstaff_sessions = 1000\n\
        staff_idle_minutes = 525600\n[telemetry]\naccess_log = \"off\"\nlog = \"error\"\n";
    merge(&mut table, toml::from_str(defaults).unwrap());
    merge(&mut table, toml::from_str(&options.toml).unwrap_or_else(|e| panic!("{e}")));
    if options.manual_clock.is_some() {
        stand_still(&mut table);
    }
    let text = toml::to_string(&table).unwrap();
    Config::parse("test", &text, std::iter::empty()).unwrap_or_else(|e| panic!("{e}"))
}

/// Takes the time limits of connections and calls out of the way, but for those that the test sets: moving the clock by a
/// day is to end a day, not whatever is just being read or sent.
fn stand_still(table: &mut toml::Table) {
    let long = || toml::Value::from("1000days");
    let limits = table.get_mut("limits").and_then(toml::Value::as_table_mut).unwrap();
    for limit in ["header_timeout", "body_timeout", "idle_timeout", "write_timeout"] {
        limits.entry(limit).or_insert_with(long);
    }
    for upstream in table.get_mut("upstreams").and_then(toml::Value::as_array_mut).unwrap() {
        let upstream = upstream.as_table_mut().unwrap();
        for limit in ["connect_timeout", "first_byte_timeout", "idle_timeout", "total_timeout"] {
            upstream.entry(limit).or_insert_with(long);
        }
    }
}

/// Tables are merged key by key; everything else is replaced.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(more)) => merge(inner, more),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// As [`wait_until`], for what is to be there within about a second of an idle machine. It is counted in looks, each of which
/// asks the gateway, so that a busy machine gets the same number of turns for it.
pub fn wait_briefly(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..LOOKS {
        if holds() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
    panic!("not there after {LOOKS} looks: {what}");
}

/// Waits until `holds` says so.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}
