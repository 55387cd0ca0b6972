//! Meters: named balances of a user, what a call costs in them, and when they are set back.
//!
//! Owns the arithmetic of credits in integer micro-units and the calendar of resets. Never holds a user's state (that is
//! the actor's) and never rounds money in the user's or the house's favour without saying which.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;

/// An amount on a meter in millionths of its unit: one conversation is 1,000,000.
///
/// The range is ±9.2 × 10¹² units; all arithmetic that could leave it is checked or saturates, as the name says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micro(pub i64);

impl Micro {
    pub const ZERO: Self = Self(0);
    pub const UNIT: i64 = 1_000_000;
    /// What a meter without a limit is given: more than can be spent.
    pub const UNLIMITED: Self = Self(1_000_000_000_000 * Self::UNIT);
    /// What clients are told is left of it: the most that a signed 32-bit number holds, as the older systems do.
    pub const UNLIMITED_SHOWN: Self = Self(2_147_483_647 * Self::UNIT);

    /// Whether a meter that is set to this has no limit.
    pub fn is_unlimited(self) -> bool {
        self >= Self::UNLIMITED
    }

    pub fn units(units: i64) -> Option<Self> {
        units.checked_mul(Self::UNIT).map(Self)
    }

    /// From a decimal in a config file or request. `None` when it is not finite, negative, or out of range; what is finer
    /// than a millionth is rounded up, so that a price is never free by rounding.
    pub fn from_decimal(value: f64) -> Option<Self> {
        if !value.is_finite() || value < 0.0 {
            return None;
        }
        let scaled = value * Self::UNIT as f64;
        // A decimal such as 0.1 is not exact in binary; what lies within a billionth of a whole micro-unit is that one.
        let nearest = scaled.round();
        let is_nearest = (scaled - nearest).abs() < 1e-3 && (nearest > 0.0 || scaled == 0.0);
        let micros = if is_nearest { nearest } else { scaled.ceil() };
        (micros < i64::MAX as f64).then_some(Self(micros as i64))
    }

    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// `self` times a count reported by somebody we do not trust.
    pub fn saturating_times(self, count: u64) -> Self {
        Self(self.0.saturating_mul(i64::try_from(count).unwrap_or(i64::MAX)))
    }

    /// Whole units, rounded down: what a client that knows only integers may still spend.
    pub fn whole_units(self) -> i64 {
        self.0.div_euclid(Self::UNIT)
    }

    /// As JSON shows it: an integer when it is one.
    pub fn to_json(self) -> serde_json::Value {
        if self.0 % Self::UNIT == 0 {
            serde_json::Value::from(self.0 / Self::UNIT)
        } else {
            serde_json::Value::from(self.0 as f64 / Self::UNIT as f64)
        }
    }
}

impl fmt::Display for Micro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0.unsigned_abs() / Self::UNIT as u64, self.0.unsigned_abs() % Self::UNIT as u64);
        let sign = if self.0 < 0 { "-" } else { "" };
        if part == 0 {
            return write!(f, "{sign}{whole}");
        }
        let digits = format!("{part:06}");
        write!(f, "{sign}{whole}.{}", digits.trim_end_matches('0'))
    }
}

/// A meter's name, as in the config: `conversations`, `credits`, `images`, …
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MeterName(Arc<str>);

impl MeterName {
    pub const MAX_LEN: usize = 32;

    /// Lower-case letters, digits and `_`, starting with a letter, at most [`Self::MAX_LEN`] long: it becomes a header's
    /// name and a metric's label.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = text.len() <= Self::MAX_LEN
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        fits.then(|| Self(Arc::from(text)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MeterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How often a meter is set back to its reset amount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResetPeriod {
    /// The balance is only ever changed by calls and by staff.
    #[default]
    Never,
    Daily,
    /// On Mondays.
    Weekly,
    /// On the first of the month.
    Monthly,
}

/// The UTC hour, 0 to 23, at which periods begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct ResetHour(u8);

impl TryFrom<u8> for ResetHour {
    type Error = String;

    fn try_from(hour: u8) -> Result<Self, String> {
        if hour < 24 { Ok(Self(hour)) } else { Err(format!("{hour} is not an hour of the day: use 0 to 23")) }
    }
}

impl From<ResetHour> for u8 {
    fn from(hour: ResetHour) -> u8 {
        hour.0
    }
}

const DAY: i64 = 86_400;

impl ResetPeriod {
    /// The Unix second at which the period that holds `now` began; `None` for [`ResetPeriod::Never`].
    pub fn began(self, now: UnixMillis, hour: ResetHour) -> Option<i64> {
        let offset = i64::from(hour.0) * 3600;
        let day = (now.seconds() - offset).div_euclid(DAY);
        let first_day = match self {
            Self::Never => return None,
            Self::Daily => day,
            // 1970-01-01 was a Thursday, three days after a Monday.
            Self::Weekly => day - (day + 3).rem_euclid(7),
            Self::Monthly => first_of_month(day),
        };
        Some(first_day * DAY + offset)
    }

    /// The Unix second at which the next period begins.
    pub fn next(self, now: UnixMillis, hour: ResetHour) -> Option<i64> {
        let began = self.began(now, hour)?;
        Some(match self {
            Self::Never => return None,
            Self::Daily => began + DAY,
            Self::Weekly => began + 7 * DAY,
            // 31 days after the first of a month lies in the next month, whichever it is.
            Self::Monthly => {
                let offset = i64::from(hour.0) * 3600;
                first_of_month((began - offset).div_euclid(DAY) + 31) * DAY + offset
            }
        })
    }
}

/// The day (counted from 1970-01-01) on which the month that holds `day` began.
fn first_of_month(day: i64) -> i64 {
    let date = jiff::Timestamp::from_second(day * DAY).map(|t| t.to_zoned(jiff::tz::TimeZone::UTC).date());
    date.map_or(day, |d| day - i64::from(d.day()) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> UnixMillis {
        UnixMillis::parse_rfc3339(text).unwrap()
    }

    fn stamp(second: Option<i64>) -> String {
        UnixMillis(second.unwrap() as u64 * 1000).rfc3339()
    }

    #[test]
    fn decimals_become_micro_units_and_never_less() {
        assert_eq!(Micro::from_decimal(0.1), Some(Micro(100_000)));
        assert_eq!(Micro::from_decimal(2.0), Some(Micro(2_000_000)));
        assert_eq!(Micro::from_decimal(0.000_000_25), Some(Micro(1)));
        assert_eq!(Micro::from_decimal(4e-10), Some(Micro(1)), "not free by rounding");
        assert_eq!(Micro::from_decimal(0.0), Some(Micro(0)));
        assert_eq!(Micro::from_decimal(-1.0), None);
        assert_eq!(Micro::from_decimal(f64::NAN), None);
        assert_eq!(Micro::from_decimal(1e30), None);
        assert_eq!(Micro(1_500_000).to_string(), "1.5");
        assert_eq!(Micro(-250_000).to_string(), "-0.25");
    }

    #[test]
    fn periods_begin_at_the_hour() {
        let six = ResetHour::try_from(6).unwrap();
        assert_eq!(stamp(ResetPeriod::Daily.began(at("2026-01-15T05:59:59Z"), six)), "2026-01-14T06:00:00Z");
        assert_eq!(stamp(ResetPeriod::Daily.began(at("2026-01-15T06:00:00Z"), six)), "2026-01-15T06:00:00Z");
        assert_eq!(stamp(ResetPeriod::Weekly.began(at("2026-01-15T12:00:00Z"), six)), "2026-01-12T06:00:00Z");
        assert_eq!(stamp(ResetPeriod::Monthly.began(at("2026-03-01T05:00:00Z"), six)), "2026-02-01T06:00:00Z");
        assert_eq!(stamp(ResetPeriod::Monthly.next(at("2026-01-31T12:00:00Z"), six)), "2026-02-01T06:00:00Z");
        assert_eq!(stamp(ResetPeriod::Monthly.next(at("2026-02-10T12:00:00Z"), six)), "2026-03-01T06:00:00Z");
        assert_eq!(
            stamp(ResetPeriod::Daily.next(at("2026-01-15T12:00:00Z"), ResetHour::default())),
            "2026-01-16T00:00:00Z"
        );
        assert_eq!(ResetPeriod::Never.began(at("2026-01-15T12:00:00Z"), six), None);
    }
}
