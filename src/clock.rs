//! Time and randomness, as parameters.
//!
//! Owns every reading of the system's clocks and of its random generator, so that limits, expiries and resets are tested
//! by moving a clock instead of sleeping. Nothing else in the crate calls `Instant::now`, `SystemTime::now` or `getrandom`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01T00:00:00Z, from the wall clock. It may jump in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Whole seconds since the epoch, rounded down.
    pub fn seconds(self) -> i64 {
        (self.0 / 1000) as i64
    }

    /// The instant `after` later; saturates.
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(after.as_millis() as u64))
    }

    /// RFC 3339 in UTC with whole seconds, as every answer of the API prints it.
    pub fn rfc3339(self) -> String {
        jiff::Timestamp::from_second(self.seconds()).map(|t| t.to_string()).unwrap_or_default()
    }

    /// Reads RFC 3339, with any offset.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let stamp: jiff::Timestamp = text.trim().parse().ok()?;
        u64::try_from(stamp.as_millisecond()).ok().map(Self)
    }
}

/// Nanoseconds on a clock that only goes forward, from an arbitrary start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The clock everything reads: the system's, or one that a test moves by hand.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System { start: Instant },
    Manual(Arc<ManualClock>),
}

impl Clock {
    pub fn system() -> Self {
        Self(Source::System { start: Instant::now() })
    }

    /// A clock that stands still until [`ManualClock::advance`] moves it.
    pub fn manual(start: UnixMillis) -> (Self, Arc<ManualClock>) {
        let hands = Arc::new(ManualClock { wall_ms: AtomicU64::new(start.0), monotonic_ns: AtomicU64::new(1) });
        (Self(Source::Manual(hands.clone())), hands)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn now(&self) -> UnixMillis {
        match &self.0 {
            Source::System { .. } => UnixMillis(
                SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_millis() as u64).unwrap_or_default(),
            ),
            Source::Manual(hands) => UnixMillis(hands.wall_ms.load(Ordering::Acquire)),
        }
    }

    pub fn monotonic(&self) -> Monotonic {
        match &self.0 {
            Source::System { start } => Monotonic(start.elapsed().as_nanos() as u64),
            Source::Manual(hands) => Monotonic(hands.monotonic_ns.load(Ordering::Acquire)),
        }
    }
}

/// The hands of a manual clock.
pub struct ManualClock {
    wall_ms: AtomicU64,
    monotonic_ns: AtomicU64,
}

impl ManualClock {
    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        self.wall_ms.fetch_add(by.as_millis() as u64, Ordering::AcqRel);
        self.monotonic_ns.fetch_add(by.as_nanos() as u64, Ordering::AcqRel);
    }

    /// Sets the wall clock alone, also backwards: what an operator's `date` or a bad time server does.
    pub fn set_wall(&self, to: UnixMillis) {
        self.wall_ms.store(to.0, Ordering::Release);
    }
}

/// Fills `out` from the operating system's generator.
///
/// # Errors
/// The system has no generator to offer; nothing secret may be made then.
pub fn random_bytes(out: &mut [u8]) -> std::io::Result<()> {
    getrandom::fill(out).map_err(|e| std::io::Error::other(format!("no random bytes from the system: {e}")))
}

/// `len` characters, each drawn evenly from the 62 letters and digits (5.95 bits each).
///
/// # Errors
/// As [`random_bytes`].
pub fn random_alphanumerics(len: usize) -> std::io::Result<String> {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    // Bytes at or above the largest multiple of 62 are thrown away: a plain remainder would favour the first letters.
    const FAIR: u8 = 248;
    let mut text = String::with_capacity(len);
    let mut raw = [0u8; 64];
    while text.len() < len {
        random_bytes(&mut raw)?;
        for byte in raw.iter().filter(|b| **b < FAIR).take(len - text.len()) {
            text.push(char::from(ALPHABET[usize::from(byte % 62)]));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_round_trips() {
        let at = UnixMillis(1_705_320_000_000);
        assert_eq!(at.rfc3339(), "2024-01-15T12:00:00Z");
        assert_eq!(UnixMillis::parse_rfc3339("2024-01-15T13:00:00+01:00"), Some(at));
        assert_eq!(UnixMillis::parse_rfc3339("yesterday"), None);
    }

    #[test]
    fn alphanumerics_have_the_length_and_differ() {
        let (a, b) = (random_alphanumerics(32).unwrap(), random_alphanumerics(32).unwrap());
        assert!(a.len() == 32 && a.bytes().all(|c| c.is_ascii_alphanumeric()));
        assert_ne!(a, b);
    }

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let (clock, hands) = Clock::manual(UnixMillis(1000));
        let before = clock.monotonic();
        hands.advance(Duration::from_secs(2));
        assert_eq!(clock.now(), UnixMillis(3000));
        assert_eq!(clock.monotonic().since(before), Duration::from_secs(2));
        hands.set_wall(UnixMillis(5));
        assert_eq!(clock.now(), UnixMillis(5));
    }
}
