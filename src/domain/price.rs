//! Prices: what a call costs on a meter, by what it used.
//!
//! Owns the arithmetic from tokens and images to micro-units. Sums exactly and rounds once, up, so that no price is free by
//! rounding. Never decides which price a call has and never trusts a count: whatever is reported, the result stays in range.

use super::meters::Micro;

/// What a call used, as its upstream counts. Numbers the upstream did not give are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// The part of `input_tokens` that came from the upstream's cache.
    pub cached_tokens: u64,
    /// Images in the answer, counted here, not told by the upstream.
    pub images: u64,
}

/// The price of one token in millionths of a micro-unit, 10⁻¹² units: prices are quoted per million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenRate(i64);

impl TokenRate {
    const PER_MICRO: i128 = 1_000_000;

    /// From units per token, as a config has it. `None` when it is not finite, negative, or over a million units; what is
    /// finer than 10⁻¹² is rounded up.
    pub fn from_decimal(units: f64) -> Option<Self> {
        if !(0.0..=1e6).contains(&units) {
            return None;
        }
        let scaled = units * 1e12;
        // A decimal such as 2.5e-6 is not exact in binary.
        let nearest = scaled.round();
        let close = (scaled - nearest).abs() <= 1e-6 * nearest.max(1.0);
        Some(Self(if close { nearest } else { scaled.ceil() } as i64))
    }

    fn times(self, tokens: u64) -> i128 {
        i128::from(self.0) * i128::from(tokens)
    }
}

/// What tokens cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub input: TokenRate,
    /// Of input that the upstream had in its cache.
    pub cached: TokenRate,
    pub output: TokenRate,
}

impl Rates {
    fn cost(&self, usage: &Usage) -> i128 {
        let cached = usage.cached_tokens.min(usage.input_tokens);
        // Each product is below 2^63 × 2^64, so three of them fit.
        self.input.times(usage.input_tokens - cached)
            + self.cached.times(cached)
            + self.output.times(usage.output_tokens)
    }

    fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// Rates of calls whose input is longer than `above` tokens; they hold for all tokens of such a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    pub above: u64,
    pub rates: Rates,
}

/// What one call costs on one meter. Every part is at least zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Price {
    pub per_call: Micro,
    pub per_image: Micro,
    pub rates: Rates,
    /// By `above`, ascending.
    pub tiers: Vec<Tier>,
}

impl Price {
    pub fn fixed(per_call: Micro) -> Self {
        Self { per_call, ..Self::default() }
    }

    /// Whether the amount depends on what was used.
    pub fn is_metered(&self) -> bool {
        self.per_image != Micro::ZERO || !self.rates.is_zero() || self.tiers.iter().any(|tier| !tier.rates.is_zero())
    }

    /// What a call that used `usage` costs.
    pub fn amount(&self, usage: &Usage) -> Micro {
        let tier = self.tiers.iter().rev().find(|tier| usage.input_tokens > tier.above);
        self.sum(tier.map_or(&self.rates, |tier| &tier.rates), usage)
    }

    /// The most that a call can cost which uses no more than `usage`.
    pub fn at_most(&self, usage: &Usage) -> Micro {
        let reached = self.tiers.iter().filter(|tier| usage.input_tokens > tier.above).map(|tier| &tier.rates);
        let dearest = |rates: &Rates| {
            let input = rates.input.max(rates.cached);
            self.sum(&Rates { input, ..*rates }, &Usage { cached_tokens: 0, ..*usage })
        };
        std::iter::once(&self.rates).chain(reached).map(dearest).max().unwrap_or_default()
    }

    fn sum(&self, rates: &Rates, usage: &Usage) -> Micro {
        let cost = rates.cost(usage);
        let tokens = (cost + TokenRate::PER_MICRO - 1) / TokenRate::PER_MICRO;
        let tokens = Micro(i64::try_from(tokens).unwrap_or(i64::MAX));
        self.per_call.saturating_add(tokens).saturating_add(self.per_image.saturating_times(usage.images))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(units: f64) -> TokenRate {
        TokenRate::from_decimal(units).unwrap()
    }

    fn used(input_tokens: u64, cached_tokens: u64, output_tokens: u64) -> Usage {
        Usage { input_tokens, output_tokens, cached_tokens, images: 0 }
    }

    #[test]
    fn a_million_tokens_cost_what_the_price_list_says() {
        let rates = Rates { input: rate(2.5e-6), cached: rate(1.25e-6), output: rate(1e-5) };
        let price = Price { rates, ..Price::default() };
        assert_eq!(price.amount(&used(1_000_000, 0, 0)), Micro(2_500_000));
        assert_eq!(price.amount(&used(1_000_000, 400_000, 100_000)), Micro(1_500_000 + 500_000 + 1_000_000));
        // 2.5 micro-units: rounded up once, not per token.
        assert_eq!(price.amount(&used(1, 0, 0)), Micro(3));
        assert_eq!(price.amount(&used(2, 0, 0)), Micro(5));
        assert_eq!(price.amount(&Usage::default()), Micro(0));
    }

    #[test]
    fn more_cached_tokens_than_input_are_not_believed() {
        let rates = Rates { input: rate(1e-6), cached: rate(0.0), output: rate(0.0) };
        let price = Price { rates, ..Price::default() };
        assert_eq!(price.amount(&used(10, u64::MAX, 0)), Micro(0));
        assert_eq!(price.amount(&used(10, 4, 0)), Micro(6));
    }

    #[test]
    fn a_long_context_has_its_own_rates_for_all_its_tokens() {
        let flat = |units| Rates { input: rate(units), cached: rate(units), output: rate(units) };
        let tiers = vec![Tier { above: 100, rates: flat(2e-6) }, Tier { above: 200, rates: flat(3e-6) }];
        let price = Price { rates: flat(1e-6), tiers, ..Price::default() };
        assert_eq!(price.amount(&used(100, 0, 10)), Micro(110));
        assert_eq!(price.amount(&used(101, 0, 10)), Micro(222));
        assert_eq!(price.amount(&used(201, 0, 0)), Micro(603));
        assert_eq!(price.at_most(&used(150, 0, 10)), Micro(320));
    }

    #[test]
    fn the_most_covers_odd_price_lists() {
        // A cache that costs more, and a long context that costs less.
        let dear = Rates { input: rate(1e-6), cached: rate(5e-6), output: rate(1e-6) };
        let tiers = vec![Tier { above: 10, rates: Rates { input: rate(1e-7), ..Rates::default() } }];
        let price = Price { rates: dear, tiers, per_call: Micro(7), ..Price::default() };
        for usage in [used(5, 5, 1), used(20, 0, 1), used(20, 20, 1)] {
            assert!(price.amount(&usage) <= price.at_most(&usage), "{usage:?}");
        }
        assert_eq!(price.at_most(&used(20, 0, 1)), Micro(108));
    }

    #[test]
    fn an_absurd_count_saturates() {
        let rates = Rates { output: rate(1e6), input: rate(1e6), cached: rate(1e6) };
        let price = Price { per_call: Micro(1), per_image: Micro(1), rates, tiers: Vec::new() };
        let all = Usage { input_tokens: u64::MAX, output_tokens: u64::MAX, cached_tokens: 7, images: u64::MAX };
        assert_eq!(price.amount(&all), Micro(i64::MAX));
        assert_eq!(TokenRate::from_decimal(-1e-9), None);
        assert_eq!(TokenRate::from_decimal(f64::NAN), None);
        assert_eq!(TokenRate::from_decimal(1e7), None);
    }
}
