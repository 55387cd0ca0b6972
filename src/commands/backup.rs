//! `backup` and `restore`.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::output::say;
use super::progress::{Progress, bytes};
use super::{Failure, Way, client, load_config, way};
use crate::accounts::operator::OperatorFile;
use crate::app;
use crate::backup::archive::{Manifest, Part, Reader, Totals};
use crate::backup::restore::{Restore, Trouble};
use crate::backup::source::Source;
use crate::clock::Clock;
use crate::config::Config;
use crate::failpoint;
use crate::store::{StoreError, folder};

/// Means standard output or input.
const STREAM: &str = "-";
const BUFFER: usize = 1 << 20;

/// Writes a backup of everything, of a stopped server's files or through a running one, to `to`, or to standard output.
///
/// # Errors
/// There is nothing to back up, or it cannot be written whole; then no file of that name is made.
pub fn backup(file: Option<&Path>, to: &Path, with_secrets: bool) -> Result<(), Failure> {
    let config = load_config(file)?;
    let way = way(&config)?;
    if to == Path::new(STREAM) {
        take(&config, way, with_secrets, &mut Counted::new(io::stdout().lock()))?;
        return Ok(());
    }
    let unfinished = partial(to);
    let made = write_file(&config, way, with_secrets, &unfinished);
    if made.is_err() {
        // What is not whole is no backup; an older one of that name stays.
        let _ = fs::remove_file(&unfinished);
    }
    let (manifest, totals) = made?;
    fs::rename(&unfinished, to)?;
    failpoint::hit("backup.after_rename");
    folder::sync_name(to)?;
    say!("{}: {}, {}", to.display(), describe(&totals), secrets(&manifest))?;
    Ok(())
}

fn write_file(config: &Config, way: Way, with_secrets: bool, to: &Path) -> Result<(Manifest, Totals), Failure> {
    // It holds what opens every account.
    let file = folder::create_anew(to);
    let file = file.map_err(|e| Failure::Failed(format!("cannot write {}: {e}", to.display())))?;
    let mut out = Counted::new(BufWriter::with_capacity(BUFFER, file));
    take(config, way, with_secrets, &mut out)?;
    let file = out.inner.into_inner().map_err(|error| error.into_error())?;
    file.sync_all()?;
    // Read once more: whatever was lost on the way here shows now and not on the day it is needed.
    check(File::open(to)?)
}

fn partial(to: &Path) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Gets a backup to `out`.
fn take(config: &Config, way: Way, with_secrets: bool, out: &mut Counted<impl Write>) -> Result<(), Failure> {
    match way {
        Way::Store(store) => {
            let committer = app::committer_for(store, config)?;
            let source = Source { data_dir: config.data_dir.clone(), committer, clock: Clock::system() };
            let written = source.write(&mut *out, with_secrets);
            source.committer.stop();
            written.map_err(|trouble| Failure::Failed(trouble.to_string()))?;
        }
        Way::Server(server) => take_through(&server, with_secrets, out)?,
    }
    out.flush()?;
    Ok(())
}

fn take_through(server: &OperatorFile, with_secrets: bool, out: &mut impl Write) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let path = format!("/v1/admin-panel/backup?secrets={with_secrets}");
    let answer =
        runtime.block_on(client::download(server.admin_addr, &path, &server.token, |piece| out.write_all(piece)))?;
    if answer.status >= 300 { Err(Failure::Failed(answer.message())) } else { Ok(()) }
}

/// Reads a backup to its end.
fn check(from: impl Read) -> Result<(Manifest, Totals), Failure> {
    let mut reader = Reader::new(BufReader::with_capacity(BUFFER, from))?;
    let (mut manifest, mut totals) = (None, None);
    while let Some(part) = reader.next_part()? {
        match part {
            Part::Manifest(found) => manifest = Some(found),
            Part::End(found) => totals = Some(found),
            _ => {}
        }
    }
    manifest.zip(totals).ok_or_else(|| Failure::Failed("the backup is cut short".into()))
}

fn describe(totals: &Totals) -> String {
    let Totals { rows, changes, files, file_bytes } = totals;
    format!("{rows} rows and {changes} changes to them, {files} files with {}", bytes(*file_bytes))
}

fn secrets(manifest: &Manifest) -> &'static str {
    if manifest.with_secrets { "with secrets: keep it as you keep a password" } else { "without secrets" }
}

/// Puts a backup into the place of what is in `data_dir`, in the backend that the config names.
///
/// # Errors
/// A server is running, the backup is not whole, or there is something already and `force` is not set. The data directory
/// is as it was.
pub fn restore(file: Option<&Path>, from: &Path, force: bool) -> Result<(), Failure> {
    let config = load_config(file)?;
    let Some((backend, open)) = app::embedded(&config) else {
        return Err(Failure::Usage("store.backend: \"memory\" keeps nothing; name another one to restore into".into()));
    };
    let source: Box<dyn Read> = if from == Path::new(STREAM) {
        Box::new(io::stdin().lock())
    } else {
        let open = File::open(from).map_err(|e| Failure::Failed(format!("cannot read {}: {e}", from.display())))?;
        Box::new(open)
    };
    let mut progress = Progress::default();
    let mut done = 0;
    let counted = Tap {
        inner: source,
        seen: |n| {
            done += n as u64;
            progress.show(|| format!("{} read", bytes(done)));
        },
    };
    let now = Clock::system().now().rfc3339();
    let run = Restore { data_dir: &config.data_dir, backend, force, now: &now };
    let restored = run.run(BufReader::with_capacity(BUFFER, counted), open);
    drop(progress);
    let restored = restored.map_err(|trouble| match trouble {
        Trouble::Store(StoreError::Busy(_)) => {
            Failure::Failed("a server is running on this data_dir; stop it first".into())
        }
        Trouble::NotEmpty => Failure::Usage(format!("{}: {trouble}", config.data_dir.display())),
        other => Failure::Failed(format!("nothing was changed: {other}")),
    })?;
    say!(
        "{}: {}, as of {}, {}",
        config.data_dir.display(),
        describe(&restored.totals),
        restored.manifest.written_at,
        if restored.manifest.with_secrets { "with secrets" } else { "without secrets" }
    )?;
    if let Some(aside) = restored.aside {
        say!("what was there is in {}", aside.display())?;
    }
    Ok(())
}

/// Counts what is written.
struct Counted<W> {
    inner: W,
    done: u64,
    progress: Progress,
}

impl<W> Counted<W> {
    fn new(inner: W) -> Self {
        Self { inner, done: 0, progress: Progress::default() }
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(piece)?;
        self.done += n as u64;
        let done = self.done;
        self.progress.show(|| format!("{} written", bytes(done)));
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Tells of what is read.
struct Tap<R, F> {
    inner: R,
    seen: F,
}

impl<R: Read, F: FnMut(usize)> Read for Tap<R, F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        (self.seen)(n);
        Ok(n)
    }
}
