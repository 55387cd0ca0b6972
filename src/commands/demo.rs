//! `demo`: a simulated AI service, the gateway in front of it and a user, in one process, with two calls shown.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use serde_json::json;

use super::Failure;
use super::client::{self, Answer};
use crate::app::App;
use crate::clock::{Clock, random_alphanumerics};
use crate::config::Config;
use crate::mock_upstream::MockUpstream;

/// Runs the demo; without `once` it serves until Ctrl-C.
///
/// # Errors
/// Something does not start, or a call fails.
pub fn run(once: bool) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let folder = DemoFolder::new()?;
    let mock = runtime.block_on(MockUpstream::bind(free_address(9100)))?;
    println!("simulated AI service   http://{}", mock.addr());
    let config = demo_config(&folder.0, mock.addr())?;
    let app = App::start(config, Clock::system(), None)?;
    println!("gateway                http://{}", app.public_addr());
    println!("side port              http://{}/metrics", app.admin_addr());
    runtime.block_on(show(&app))?;
    if !once {
        println!("\nServing until Ctrl-C.");
        runtime.block_on(tokio::signal::ctrl_c())?;
    }
    app.stop();
    say_how_to_stay();
    Ok(())
}

/// What the demo made is gone with it; these are the commands for a gateway that stays.
fn say_how_to_stay() {
    let program = std::env::args_os().next().unwrap_or_else(|| "tollgate".into());
    let program = Path::new(&program).display();
    println!("\nThe demo is over, and its users and conversations are gone. A gateway that stays:\n");
    println!("  {program} mock-upstream &          # or set your own service under [[upstreams]]");
    println!("  TOLLGATE_ADMIN_USERNAME=root-admin TOLLGATE_ADMIN_PASSWORD=ChangeMe-123 \\");
    println!("    {program} serve --config config/minimal.toml\n");
    println!("README.md goes on from there: \"A first call of your own\".");
}

/// A folder of its own, gone with the demo.
struct DemoFolder(std::path::PathBuf);

impl DemoFolder {
    fn new() -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("tollgate-demo-{}", random_alphanumerics(8)?));
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for DemoFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The usual port, or any free one if that is taken.
fn free_address(port: u16) -> SocketAddr {
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match TcpListener::bind(usual) {
        Ok(_) => usual,
        Err(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    }
}

fn demo_config(folder: &Path, upstream: SocketAddr) -> Result<Config, Failure> {
    let (public, admin) = (free_address(8080), free_address(9090));
    let text = format!(
        r#"
        data_dir = {folder:?}
        [listen]
        public = "{public}"
        admin = "{admin}"
        [[upstreams]]
        name = "simulated"
        endpoints = ["http://{upstream}"]
        [[routes]]
        path = "/v1/*"
        upstream = "simulated"
        cost = {{ conversations = 1 }}
        [telemetry]
        access_log = "off"
        log = "warn"
        "#
    );
    let config = Config::parse("demo", &text, std::iter::empty())?;
    crate::telemetry::tracing::install(&config.telemetry);
    Ok(config)
}

fn must_be_ok(what: &str, answer: &Answer) -> Result<(), Failure> {
    if answer.status >= 300 {
        return Err(Failure::Failed(format!("{what}: {}", answer.message())));
    }
    Ok(())
}

async fn show(app: &App) -> Result<(), Failure> {
    let gateway = app.public_addr();
    let password = format!("Demo-{}7a", random_alphanumerics(16)?);
    let user = json!({"username": "demo", "name": "Demo User", "email": "demo@example.com", "password": password});
    let registered = client::call(gateway, "POST", "/v1/users/register", None, Some(user)).await?;
    must_be_ok("register", &registered)?;
    let registered = registered.json();
    let key = registered["api_key"].as_str().unwrap_or_default().to_owned();
    println!("user                   demo, key {key}");

    let ask = |stream: bool| json!({"model": "gpt-4o", "stream": stream, "messages": [{"role": "user", "content": "Hello from the demo"}]});
    let path = "/v1/chat/completions";
    let plain = client::call(gateway, "POST", path, Some(&key), Some(ask(false))).await?;
    must_be_ok("plain call", &plain)?;
    println!("\nplain answer           {}", plain.json()["choices"][0]["message"]["content"].as_str().unwrap_or("?"));
    println!("conversations left     {}", left(&plain));

    let stream = client::call(gateway, "POST", path, Some(&key), Some(ask(true))).await?;
    must_be_ok("streaming call", &stream)?;
    println!("\nstreaming answer");
    for line in String::from_utf8_lossy(&stream.body).lines().filter(|line| line.starts_with("data:")) {
        println!("  {line}");
    }
    println!("conversations left     {}", left(&stream));
    println!("\nTry it:\n");
    println!("  curl http://{gateway}{path} -H 'Authorization: Bearer {key}' \\");
    println!("    -H 'Content-Type: application/json' \\");
    println!("    -d '{{\"model\":\"gpt-4o\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'");
    Ok(())
}

fn left(answer: &Answer) -> &str {
    answer.headers.get("x-tollgate-remaining-conversations").and_then(|v| v.to_str().ok()).unwrap_or("?")
}
