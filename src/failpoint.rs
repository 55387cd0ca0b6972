//! Points in the code at which a test can make the process die or the disk fail.
//!
//! Owns nothing but the names' meaning. Without the cargo feature `failpoints` every function here is empty and inlined
//! away; a binary that is shipped never has it. With the feature, the variable `FAILPOINTS` says what happens where, in
//! the notation of the `fail` crate: `wal.before_sync=3*off->return(kill)` dies at the fourth passage. The arguments of
//! `return` that are understood here: `kill` (at once, nothing flushed, nothing unwound), `eio`, `enospc`, a number for
//! [`number`], and nothing at all for [`is_on`]. The points and what they are good for are listed in the crash tests.

/// A place at which the process may die.
#[inline(always)]
pub fn hit(name: &str) {
    // An error has no way out here; only death counts.
    let _ = io(name);
}

/// A place at which the process may die, or the disk refuse.
///
/// # Errors
/// What the test asked for; never without the feature.
#[inline(always)]
pub fn io(name: &str) -> std::io::Result<()> {
    #[cfg(feature = "failpoints")]
    return on::io(name);
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = name;
        Ok(())
    }
}

/// Whether a test switched this on: a safety left out on purpose.
#[inline(always)]
pub fn is_on(name: &str) -> bool {
    #[cfg(feature = "failpoints")]
    return on::eval(name).is_some();
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = name;
        false
    }
}

/// A size that a test wants instead of the usual one.
#[inline(always)]
pub fn number(name: &str) -> Option<u64> {
    #[cfg(feature = "failpoints")]
    return on::eval(name)?.parse().ok();
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = name;
        None
    }
}

/// Reads `FAILPOINTS`. Keep the result until the process ends.
#[cfg(feature = "failpoints")]
pub fn arm() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}

#[cfg(feature = "failpoints")]
mod on {
    use std::io;

    /// The argument of `return`, empty when it has none; `None` when the point is not armed or not due.
    pub(super) fn eval(name: &str) -> Option<String> {
        fail::fail_point!(name, |argument| Some(argument.unwrap_or_default()));
        None
    }

    pub(super) fn io(name: &str) -> io::Result<()> {
        match eval(name).as_deref() {
            // EIO and ENOSPC, as every Unix numbers them.
            Some("eio") => Err(io::Error::from_raw_os_error(5)),
            Some("enospc") => Err(io::Error::from_raw_os_error(28)),
            Some(_) => std::process::abort(),
            None => Ok(()),
        }
    }
}
