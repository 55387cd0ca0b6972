//! `logs export`: conversations as JSON Lines or as Parquet, over all segments, oldest first.
//!
//! Owns what is chosen and where it goes. It reads the journal's files as they are, whether a server is running or not, and
//! holds one record or one row group in memory. A file appears under its name only when it is whole and on the disk.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::columns::RowGroups;
use super::output::say;
use super::progress::Progress;
use super::{Failure, load_config, logs};
use crate::clock::UnixMillis;
use crate::failpoint;
use crate::store::folder;

/// After so many records it is time to look at the clock.
const LOOK_EVERY: u64 = 256;

/// What to export, as the command line says it.
#[derive(Debug)]
pub struct Request {
    pub format: Format,
    /// Number or name.
    pub user: Option<String>,
    /// `2026-01-15` or RFC 3339; what ended then is in.
    pub from: Option<String>,
    /// As `from`; what ended then is out.
    pub to: Option<String>,
    pub model: Option<String>,
    /// Standard output without it, for JSON Lines.
    pub output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    JsonLines,
    Parquet,
}

/// Writes what was asked for.
///
/// # Errors
/// A time or a user that nobody understands, a journal that cannot be read, a file that cannot be written.
pub fn run(file: Option<&Path>, request: Request) -> Result<(), Failure> {
    let time = |name: &str, text: &Option<String>| text.as_deref().map(|text| parse_time(name, text)).transpose();
    let (from, to) = (time("from", &request.from)?, time("to", &request.to)?);
    if request.format == Format::Parquet && request.output.is_none() {
        return Err(Failure::Usage("--format parquet needs --output FILE: it cannot be written to a pipe".into()));
    }
    let config = load_config(file)?;
    let user = request.user.as_deref().map(|user| logs::user_id(&config, user)).transpose()?;
    let reader = logs::open(&config)?;
    let chosen = Chosen { user, from, to, model: request.model };
    let (mut records, mut progress) = (0_u64, Progress::default());
    let mut each = |sink: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
        reader.for_each(|json| {
            if chosen.takes(json)? {
                sink(json)?;
                records += 1;
                if records.is_multiple_of(LOOK_EVERY) {
                    progress.show(|| format!("{records} records"));
                }
            }
            Ok(())
        })
    };
    let Some(output) = request.output else {
        let mut out = BufWriter::new(io::stdout().lock());
        let done = each(&mut |json| write_line(&mut out, json)).and_then(|()| out.flush());
        return match done {
            // Whoever reads has seen enough, as `head` does.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            done => Ok(done?),
        };
    };
    let partial = Partial::create(&output)?;
    match request.format {
        Format::JsonLines => {
            let mut out = BufWriter::new(partial.file()?);
            each(&mut |json| write_line(&mut out, json))?;
            out.flush()?;
        }
        Format::Parquet => {
            let mut groups = RowGroups::new(partial.file()?)?;
            each(&mut |json| groups.add(json))?;
            groups.finish()?;
        }
    }
    partial.finish()?;
    drop(progress);
    say!("{records} records in {}", output.display())?;
    Ok(())
}

fn write_line(out: &mut impl Write, json: &[u8]) -> io::Result<()> {
    out.write_all(json)?;
    out.write_all(b"\n")
}

/// A day alone is its beginning, in UTC.
fn parse_time(name: &str, text: &str) -> Result<u64, Failure> {
    let day = || UnixMillis::parse_rfc3339(&format!("{text}T00:00:00Z"));
    let time = UnixMillis::parse_rfc3339(text).or_else(day);
    let example = "write it as 2026-01-15 or 2026-01-15T12:00:00Z";
    time.map(|time| time.0).ok_or_else(|| Failure::Usage(format!("--{name}: \"{text}\" is not a time; {example}")))
}

/// Which records are wanted.
struct Chosen {
    user: Option<u64>,
    from: Option<u64>,
    to: Option<u64>,
    model: Option<String>,
}

impl Chosen {
    fn takes(&self, json: &[u8]) -> io::Result<bool> {
        #[derive(Deserialize)]
        struct Facts<'a> {
            user_id: u64,
            #[serde(borrow)]
            model: std::borrow::Cow<'a, str>,
            #[serde(borrow)]
            timestamp: std::borrow::Cow<'a, str>,
        }
        if self.user.is_none() && self.from.is_none() && self.to.is_none() && self.model.is_none() {
            return Ok(true);
        }
        let facts: Facts<'_> = serde_json::from_slice(json)?;
        let ended = UnixMillis::parse_rfc3339(&facts.timestamp).map_or(0, |time| time.0);
        Ok(self.user.is_none_or(|user| user == facts.user_id)
            && self.from.is_none_or(|from| ended >= from)
            && self.to.is_none_or(|to| ended < to)
            && self.model.as_deref().is_none_or(|model| model == facts.model))
    }
}

/// A file under another name until it is whole. Only its owner may read it: it holds what people said.
struct Partial {
    path: PathBuf,
    target: PathBuf,
    is_done: bool,
}

impl Partial {
    fn create(target: &Path) -> Result<Self, Failure> {
        let mut path = target.as_os_str().to_owned();
        path.push(".partial");
        let path = PathBuf::from(path);
        let made = folder::create_anew(&path);
        made.map_err(|error| Failure::Failed(format!("cannot write {}: {error}", path.display())))?;
        Ok(Self { path, target: target.to_owned(), is_done: false })
    }

    fn file(&self) -> io::Result<File> {
        File::options().write(true).open(&self.path)
    }

    fn finish(mut self) -> io::Result<()> {
        self.file()?.sync_all()?;
        fs::rename(&self.path, &self.target)?;
        failpoint::hit("export.after_rename");
        self.is_done = true;
        folder::sync_name(&self.target)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_done {
            // Nothing depends on it; the next export begins it anew.
            fs::remove_file(&self.path).ok();
        }
    }
}
