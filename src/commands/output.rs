//! Where output goes: to standard output, as long as somebody reads it, or to a file that appears when it is whole; and how
//! far an export has come.

use std::fmt;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::Failure;
use super::progress::Progress;
use crate::failpoint;
use crate::store::folder;

/// Prints a line. A reader who has gone ends the printing and nothing else: how the command ends is said by its exit code.
macro_rules! say {
    ($($text:tt)*) => { $crate::commands::output::line(format_args!($($text)*)) };
}
pub(super) use say;

/// # Errors
/// Standard output cannot be written, but for a reader who has gone.
pub(super) fn line(text: fmt::Arguments<'_>) -> Result<(), Failure> {
    let mut out = stdout();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if !is_end_of_reading(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Standard output. That its reader has gone is told from every other broken pipe.
pub(super) fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

pub(super) struct Stdout(io::StdoutLock<'static>);

/// Nobody reads standard output any more.
#[derive(Debug)]
struct ReaderLeft;

impl fmt::Display for ReaderLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output any more")
    }
}

impl std::error::Error for ReaderLeft {}

pub(super) fn is_end_of_reading(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|cause| cause.is::<ReaderLeft>())
}

fn marked(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::BrokenPipe { io::Error::other(ReaderLeft) } else { error }
}

impl Write for Stdout {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.0.write(piece).map_err(marked)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(marked)
    }
}

/// Runs `write` into `to`, or into standard output. `what` is counted, a line each.
///
/// # Errors
/// `write`'s, or the disk's; then there is no file.
pub(super) fn to_file(
    to: Option<&Path>,
    what: &'static str,
    write: impl FnOnce(&mut Counting<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let Some(to) = to else {
        let mut out = BufWriter::new(stdout());
        write(&mut Counting::new(&mut out, what))?;
        return Ok(out.flush()?);
    };
    let mut name = to.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    // Whoever reads it may be able to use what is in it.
    let file = folder::create_anew(&partial);
    let file = file.map_err(|e| Failure::Failed(format!("cannot write {}: {e}", partial.display())))?;
    let mut out = BufWriter::new(file);
    let written = write(&mut Counting::new(&mut out, what));
    let done = written.and_then(|()| {
        out.flush()?;
        Ok(out.get_ref().sync_all()?)
    });
    if done.is_err() {
        let _ = fs::remove_file(&partial);
    }
    done?;
    fs::rename(&partial, to)?;
    failpoint::hit("output.after_rename");
    Ok(folder::sync_name(to)?)
}

/// Counts lines as they are written.
pub(super) struct Counting<'a> {
    out: &'a mut dyn Write,
    what: &'static str,
    done: u64,
    progress: Progress,
}

impl<'a> Counting<'a> {
    fn new(out: &'a mut dyn Write, what: &'static str) -> Self {
        Self { out, what, done: 0, progress: Progress::default() }
    }
}

impl Write for Counting<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let written = self.out.write(piece)?;
        self.done += memchr::memchr_iter(b'\n', &piece[..written]).count() as u64;
        let (done, what) = (self.done, self.what);
        self.progress.show(|| format!("{done} {what} written"));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
