//! Where an export goes: a file that appears when it is whole, or standard output; and how far it has come.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::Failure;
use super::progress::Progress;
use crate::failpoint;
use crate::store::folder;

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
        let mut out = BufWriter::new(io::stdout().lock());
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
