//! One-time login codes: upper-case hex, each the image of a number under a secret permutation.
//!
//! A code is not drawn but computed: a Feistel network over the code's bits (ten rounds, keyed by a PRF that the caller
//! brings) turns number 1, 2, 3, … into codes that nobody can foresee without the key. So no two numbers have the same
//! code, whoever they belong to, and a list of a million codes is kept as two numbers. Owns the form of codes and the
//! permutation; never a key.

use std::fmt;

use serde::{Deserialize, Serialize};

/// More than enough: four rounds are proven for a perfect PRF, ten also where the halves are as small as ours.
const ROUNDS: u8 = 10;

/// How long a code is, in hexadecimal digits. Each length has its own numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum CodeLength {
    /// 48 bits: the least; with a million codes of one user, one guess in 2²⁸ is one.
    Twelve,
    #[default]
    Sixteen,
    Twenty,
}

impl CodeLength {
    pub const ALL: [Self; 3] = [Self::Twelve, Self::Sixteen, Self::Twenty];

    pub fn digits(self) -> u8 {
        match self {
            Self::Twelve => 12,
            Self::Sixteen => 16,
            Self::Twenty => 20,
        }
    }

    /// Bits of half a code.
    fn half(self) -> u32 {
        u32::from(self.digits()) * 2
    }

    fn mask(self) -> u64 {
        (1 << self.half()) - 1
    }
}

impl TryFrom<u8> for CodeLength {
    type Error = String;

    fn try_from(digits: u8) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|length| length.digits() == digits);
        found.ok_or_else(|| format!("{digits} is no length of a code: 12, 16 or 20"))
    }
}

impl From<CodeLength> for u8 {
    fn from(length: CodeLength) -> Self {
        length.digits()
    }
}

/// A code, as its bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueCode {
    length: CodeLength,
    left: u64,
    right: u64,
}

/// Never the code itself: it opens something.
impl fmt::Debug for UniqueCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UniqueCode(…)")
    }
}

impl UniqueCode {
    /// Reads what somebody has typed: in any case, with spaces or hyphens between groups.
    pub fn parse(text: &str) -> Option<Self> {
        let mut digits = [0u8; 20];
        let mut count = 0;
        for byte in text.trim().bytes().filter(|byte| !matches!(byte, b' ' | b'-')) {
            *digits.get_mut(count)? = char::from(byte).to_digit(16)? as u8;
            count += 1;
        }
        let length = CodeLength::try_from(count as u8).ok()?;
        let (left, right) = digits[..count].split_at(count / 2);
        let bits = |half: &[u8]| half.iter().fold(0u64, |bits, digit| bits << 4 | u64::from(*digit));
        Some(Self { length, left: bits(left), right: bits(right) })
    }

    pub fn length(self) -> CodeLength {
        self.length
    }

    /// The code of a number; `prf` is asked with the round and half of the bits.
    pub fn of_number(number: u64, length: CodeLength, prf: impl Fn(u8, u64) -> u64) -> Self {
        let (mut left, mut right) =
            (number.checked_shr(length.half()).unwrap_or(0) & length.mask(), number & length.mask());
        for round in 0..ROUNDS {
            (left, right) = (right, (left ^ prf(round, right)) & length.mask());
        }
        Self { length, left, right }
    }

    /// The number whose code this is; none that was ever given out, for nearly all codes.
    pub fn number(self, prf: impl Fn(u8, u64) -> u64) -> u128 {
        let (mut left, mut right) = (self.left, self.right);
        for round in (0..ROUNDS).rev() {
            (left, right) = ((right ^ prf(round, left)) & self.length.mask(), left);
        }
        u128::from(left) << self.length.half() | u128::from(right)
    }

    /// As its owner is given it.
    pub fn text(self) -> String {
        let width = usize::from(self.length.digits()) / 2;
        format!("{:0width$X}{:0width$X}", self.left, self.right)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Not secret, but as scattered as one that is.
    fn prf(round: u8, half: u64) -> u64 {
        let mut x = half.wrapping_add(u64::from(round) << 56).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x ^= x >> 29;
        x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x ^ (x >> 32)
    }

    #[test]
    fn a_code_leads_back_to_its_number_and_no_two_are_the_same() {
        for length in CodeLength::ALL {
            let mut seen = HashSet::new();
            let top = 1u64 << 47;
            for number in (1..20_000).chain([top, top - 1]) {
                let code = UniqueCode::of_number(number, length, prf);
                assert_eq!(code.text().len(), usize::from(length.digits()));
                assert_eq!(UniqueCode::parse(&code.text()), Some(code));
                assert_eq!(code.number(prf), u128::from(number));
                assert!(seen.insert(code.text()), "{number} twice");
            }
        }
    }

    #[test]
    fn what_people_type_is_read() {
        let code = UniqueCode::of_number(7, CodeLength::Sixteen, prf);
        let text = code.text();
        let typed = format!(" {}-{} ", text[..8].to_lowercase(), &text[8..]);
        assert_eq!(UniqueCode::parse(&typed), Some(code));
        for bad in ["", "A7F3", "A7F3B2E9D4C1F6AG", "A7F3B2E9D4C1F6A80", &"A".repeat(21), "é7F3B2E9D4C1F6A8"] {
            assert_eq!(UniqueCode::parse(bad), None, "{bad}");
        }
        assert!(!format!("{code:?}").contains(&text));
    }
}
