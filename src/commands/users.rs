//! `users import` and `users export`: on the files of a stopped server, or through a running one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokio::runtime::Runtime;

use super::output::{Counting, say, to_file};
use super::progress::Progress;
use super::{Failure, client, load_config, on_either, refused};
use crate::accounts::Accounts;
use crate::accounts::operator::OperatorFile;
use crate::accounts::transfer::line::MAX_LINE_BYTES;
use crate::accounts::transfer::{ImportHow, ImportReport, LINES_AT_ONCE, UsersFormat};
use crate::actors::audit::{Action, Actor, Record};

/// What is sent to a running server at once; its bodies are bounded.
const BYTES_AT_ONCE: usize = 200 << 10;
/// Lines that are told of; the rest is counted.
const MAX_TOLD: usize = 100;

/// Imports users from a file, or from standard input ("-"), a JSON object a line.
///
/// # Errors
/// The file cannot be read, nobody could be asked, or lines did not fit: the others are imported.
pub fn import(file: Option<&Path>, from: &Path, how: ImportHow) -> Result<(), Failure> {
    let config = load_config(file)?;
    let source: Box<dyn io::Read> = if from == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let open = File::open(from).map_err(|e| Failure::Usage(format!("cannot read {}: {e}", from.display())))?;
        Box::new(open)
    };
    let source = std::cell::RefCell::new(Lines { source: BufReader::with_capacity(1 << 20, source), number: 0 });
    let through = |runtime: &Runtime, server: &OperatorFile| {
        let path = format!("/v1/admin-panel/users/import?dry_run={}&update={}", how.dry_run, how.update);
        import_all(&mut source.borrow_mut(), |lines| {
            let text: Vec<&str> = lines.iter().map(|(_, line)| line.as_str()).collect();
            let sent = client::send_text(server.admin_addr, &path, &server.token, text.join("\n"));
            let answer = runtime.block_on(sent)?;
            if answer.status >= 300 {
                return Err(Failure::Failed(answer.message()));
            }
            Ok(report_of(&answer.json(), lines.first().map_or(1, |(number, _)| *number)))
        })
    };
    let on_files = |runtime: &Runtime, accounts: &Arc<Accounts>| {
        import_all(&mut source.borrow_mut(), |lines| {
            let record = Record::of(Action::UsersImported).by(Actor::operator()).with("dry_run", how.dry_run);
            let act = move |accounts: Arc<Accounts>| async move { accounts.import_users(&lines, how).await };
            let tell = |report: &ImportReport, record: Record| {
                record.with("imported", report.imported).with("updated", report.updated).with("failed", report.failed)
            };
            runtime.block_on(accounts.audited(record, act, tell)).map_err(refused)
        })
    };
    let report = on_either(&config, on_files, through)?;
    tell(&report, how)
}

fn tell(report: &ImportReport, how: ImportHow) -> Result<(), Failure> {
    for (line, note) in &report.notes {
        eprintln!("line {line}: note: {note}");
    }
    for (line, faults) in &report.errors {
        eprintln!("line {line}: {}", faults.join("; "));
    }
    let hidden = report.failed.saturating_sub(report.errors.len() as u64);
    if hidden > 0 {
        eprintln!("… and {hidden} more");
    }
    let ImportReport { imported, updated, skipped, failed, .. } = report;
    let would = if how.dry_run { "would be " } else { "" };
    say!("{would}imported: {imported}\n{would}updated: {updated}\nthere already: {skipped}\nfailed: {failed}")?;
    match failed {
        0 => Ok(()),
        n => Err(Failure::Failed(format!("{n} lines did not fit; correct them and import the file again"))),
    }
}

/// The lines of a file, some at once, with their numbers.
struct Lines<R> {
    source: R,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    fn next_some(&mut self) -> Result<Vec<(u64, String)>, Failure> {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while lines.len() < LINES_AT_ONCE && bytes < BYTES_AT_ONCE - MAX_LINE_BYTES {
            let mut line = Vec::new();
            let most = MAX_LINE_BYTES as u64 + 2;
            if io::Read::take(&mut self.source, most).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            self.number += 1;
            if line.len() as u64 == most && !line.ends_with(b"\n") {
                return Err(Failure::Failed(format!(
                    "line {} is longer than {MAX_LINE_BYTES} bytes; is it a JSON object a line?",
                    self.number
                )));
            }
            let text = String::from_utf8(line)
                .map_err(|_| Failure::Failed(format!("line {} is not valid UTF-8", self.number)))?;
            bytes += text.len();
            lines.push((self.number, text.trim_end().to_owned()));
        }
        Ok(lines)
    }
}

fn import_all(
    source: &mut Lines<impl BufRead>,
    mut import: impl FnMut(Vec<(u64, String)>) -> Result<ImportReport, Failure>,
) -> Result<ImportReport, Failure> {
    let (mut all, mut progress) = (ImportReport::default(), Progress::default());
    loop {
        let lines = source.next_some()?;
        if lines.is_empty() {
            return Ok(all);
        }
        let some = import(lines)?;
        all.imported += some.imported;
        all.updated += some.updated;
        all.skipped += some.skipped;
        all.failed += some.failed;
        all.errors.extend(some.errors);
        all.errors.truncate(MAX_TOLD);
        all.notes.extend(some.notes);
        all.notes.truncate(MAX_TOLD);
        progress.show(|| format!("{} lines read, {} users imported", source.number, all.imported));
    }
}

/// A running server counts lines from 1 in each piece.
fn report_of(answer: &Value, first: u64) -> ImportReport {
    let count = |name: &str| answer[name].as_u64().unwrap_or(0);
    let listed = |name: &str| answer[name].as_array().cloned().unwrap_or_default();
    let line = |item: &Value| item["line"].as_u64().unwrap_or(1) + first - 1;
    let texts = |item: &Value| {
        let all = item["errors"].as_array().into_iter().flatten();
        all.filter_map(|text| text.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    ImportReport {
        imported: count("imported"),
        updated: count("updated"),
        skipped: count("skipped"),
        failed: count("failed"),
        errors: listed("errors").iter().map(|item| (line(item), texts(item))).collect(),
        notes: listed("notes")
            .iter()
            .map(|item| (line(item), item["note"].as_str().unwrap_or_default().to_owned()))
            .collect(),
    }
}

/// Writes all users to a file, or to standard output.
///
/// # Errors
/// It cannot be written whole; then there is no file.
pub fn export(file: Option<&Path>, format: UsersFormat, hashes: bool, to: Option<&Path>) -> Result<(), Failure> {
    let config = load_config(file)?;
    to_file(to, "users", |out: &mut Counting<'_>| {
        // Two ways, of which one is gone.
        let out = std::cell::RefCell::new(out);
        let on_files = |runtime: &Runtime, accounts: &Arc<Accounts>| {
            let record = Record::of(Action::UsersExported).by(Actor::operator()).with("with_hashes", hashes);
            runtime.block_on(accounts.audited(record, |_| async { Ok(()) }, |(), record| record)).map_err(refused)?;
            Ok(accounts.export_users(format, hashes, &mut *out.borrow_mut()).map(drop)?)
        };
        let through = |runtime: &Runtime, server: &OperatorFile| {
            let form = if format == UsersFormat::Csv { "csv" } else { "jsonl" };
            let path = format!("/v1/admin-panel/users/export?format={form}&hashes={hashes}");
            let sink = |piece: &[u8]| out.borrow_mut().write_all(piece);
            let answer = runtime.block_on(client::download(server.admin_addr, &path, &server.token, sink))?;
            if answer.status >= 300 { Err(Failure::Failed(answer.message())) } else { Ok(()) }
        };
        on_either(&config, on_files, through)
    })
}
