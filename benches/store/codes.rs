//! One-time login codes: what a million for one user take, and what a login with one costs among ten users who have a
//! million each.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::site::{Site, mib, row, seconds};
use crate::{Choice, Fallible};

const USERS: u64 = 10;
const PASSWORD: &str = "Quiet-Harbour-7-Lanterns";

/// Status and body of a call, on a connection of its own.
fn post(to: SocketAddr, path: &str, body: &Value) -> Fallible<(u16, String)> {
    let mut stream = TcpStream::connect(to)?;
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).ok_or("no status")?.parse()?;
    Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

fn name_of(user: u64) -> String {
    format!("keeper{user}")
}

fn login(site: &Site, user: u64, code: Option<&str>) -> Fallible<Duration> {
    let email = format!("{}@example.com", name_of(user));
    let began = Instant::now();
    let body = json!({"email": email, "password": PASSWORD, "unique_code": code});
    let (status, body) = post(site.public, "/v1/users/login", &body)?;
    let took = began.elapsed();
    if status == 200 { Ok(took) } else { Err(format!("a login answered {status}: {body}").into()) }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

pub fn run(choice: &Choice) -> Fallible<()> {
    println!("\n## One-time login codes: {USERS} users, {} codes each\n\n| | |\n|---|--:|", choice.count);
    let folder = tempfile::Builder::new().prefix("tollgate-codes-").tempdir_in(&choice.dir)?;
    let site = Site::new(folder.path().join("site"), "sled")?;
    let mut config = fs::OpenOptions::new().append(true).open(site.config())?;
    write!(config, "[limits]\nper_ip_per_minute = 0\n[accounts]\ncodes.max_per_user = {}\n", choice.count)?;
    let (server, _) = site.serve()?;
    for user in 0..USERS {
        let name = name_of(user);
        let body = json!({
            "username": name, "email": format!("{name}@example.com"), "password": PASSWORD, "name": "Some Keeper",
        });
        let (status, answer) = post(site.public, "/v1/users/register", &body)?;
        if status >= 300 {
            return Err(format!("registering answered {status}: {answer}").into());
        }
    }
    server.stop()?;

    let count = choice.count.to_string();
    // A backup is the store's rows and nothing else; the files themselves grow in steps of a log file.
    let rows = |name: &str| -> Fallible<u64> {
        let file = folder.path().join(name);
        site.run(&["backup", &file.to_string_lossy()])?;
        Ok(fs::metadata(file)?.len())
    };
    let before = rows("before")?;
    let made = site.run(&["codes", "generate", &name_of(0), &count])?;
    row("generate, server stopped", seconds(made.took));
    row("memory of that, at most", format!("{:.0} MiB", made.peak));
    row("a backup grows by", format!("{} bytes", rows("after")?.saturating_sub(before)));
    let (server, _) = site.serve()?;
    let resident = server.resident_mib()?;
    for user in 1..USERS {
        let made = site.run(&["codes", "generate", &name_of(user), &count])?;
        if user == 1 {
            row("generate, server running", seconds(made.took));
        }
    }
    let list = folder.path().join("codes.csv");
    let exported = site.run(&["codes", "export", &name_of(0), "csv", "--output", &list.to_string_lossy()])?;
    row("export as CSV, server running", seconds(exported.took));
    row("memory of that, at most", format!("{:.0} MiB", exported.peak));
    row("the file", mib(fs::metadata(&list)?.len()));
    row("the server's memory, before and after", format!("{resident:.0} → {:.0} MiB", server.resident_mib()?));
    logins(choice, &site, &fs::read_to_string(&list)?)?;
    server.stop()
}

/// In turns, so that both kinds meet the same noise.
fn logins(choice: &Choice, site: &Site, list: &str) -> Fallible<()> {
    let rounds = if choice.quick { 20 } else { 200 };
    let codes: Vec<&str> = list.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
    let step = codes.len() / rounds;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let mut one = |code: Option<&str>| -> Fallible<()> {
            let times = if code.is_some() { &mut with } else { &mut without };
            times.push(login(site, 0, code)?);
            Ok(())
        };
        let code = Some(codes[round * step]);
        let order = if round % 2 == 0 { [None, code] } else { [code, None] };
        order.into_iter().try_for_each(&mut one)?;
    }
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let (without, with) = (millis(median(without)), millis(median(with)));
    row("login without a code, median", format!("{without:.2} ms"));
    row("login with one, median", format!("{with:.2} ms"));
    row("what a code adds", format!("{:+.2} ms", with - without));
    Ok(())
}
