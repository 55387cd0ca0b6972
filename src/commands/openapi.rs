//! `openapi`: the documents of both ports, without a server.

use std::io::Write;

use super::Failure;
use super::output::stdout;
use crate::app;

/// Prints the document of the side port, or of the public one.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(side: bool) -> Result<(), Failure> {
    let documents = app::documents();
    let document = if side { documents.side } else { documents.public };
    let mut out = std::io::BufWriter::new(stdout());
    writeln!(out, "{document:#}")?;
    Ok(out.flush()?)
}
