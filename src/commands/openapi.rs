//! `openapi`: the documents of both ports, without a server.

use std::io::Write;

use super::Failure;
use crate::api::{public_document, side_document};

/// Prints the document of the side port, or of the public one.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(side: bool) -> Result<(), Failure> {
    let document = if side { side_document() } else { public_document() };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{document:#}")?;
    Ok(())
}
