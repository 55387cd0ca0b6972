//! Costs: what calls of a route cost, by their model, ready for the request path.
//!
//! Owns the choice of a price and the sum over meters. Never charges.

use std::collections::HashMap;
use std::sync::Arc;

use crate::actors::user::ledger::Amounts;
use crate::config::{PriceList, UnknownModel};
use crate::domain::meters::{MeterName, Micro};
use crate::domain::model;
use crate::domain::price::{Price, Usage};
use crate::error::Reject;
use crate::telemetry::metrics::{Label, Metrics};

/// What a call costs, in the order of its meters.
pub struct Cost {
    pub meters: Arc<[MeterName]>,
    /// Of each meter; a route's own and its model's add up.
    prices: Vec<Vec<Price>>,
    pub labels: Vec<Label>,
    /// `x-tollgate-remaining-<meter>: `, ready to be written.
    pub headers: Vec<Vec<u8>>,
    /// Whether what was used matters.
    pub is_metered: bool,
}

impl Cost {
    pub(super) fn new<'a>(parts: impl Iterator<Item = &'a (MeterName, Price)>, metrics: &Metrics) -> Arc<Self> {
        let mut meters: Vec<MeterName> = Vec::new();
        let mut prices: Vec<Vec<Price>> = Vec::new();
        for (name, price) in parts {
            let at = meters.iter().position(|known| known == name).unwrap_or_else(|| {
                meters.push(name.clone());
                prices.push(Vec::new());
                meters.len() - 1
            });
            prices[at].push(price.clone());
        }
        Arc::new(Self {
            labels: meters.iter().map(|name| metrics.meter(name.as_str())).collect(),
            headers: meters.iter().map(|name| format!("x-tollgate-remaining-{name}: ").into_bytes()).collect(),
            is_metered: prices.iter().flatten().any(Price::is_metered),
            meters: meters.into(),
            prices,
        })
    }

    /// What a call that used `usage` costs.
    pub fn amounts(&self, usage: &Usage) -> Amounts {
        self.sum(|price| price.amount(usage))
    }

    /// The most that a call can cost which uses no more than `usage`.
    pub fn at_most(&self, usage: &Usage) -> Amounts {
        self.sum(|price| price.at_most(usage))
    }

    fn sum(&self, amount: impl Fn(&Price) -> Micro) -> Amounts {
        let total = |prices: &Vec<Price>| prices.iter().map(&amount).fold(Micro::ZERO, Micro::saturating_add);
        self.prices.iter().map(total).collect()
    }
}

/// What every call of a route costs at the least if it has a body, whatever stands in it.
pub struct Least {
    pub meters: Arc<[MeterName]>,
    pub amounts: Amounts,
}

impl Least {
    /// Of each meter, what the cheapest of `costs` takes of it.
    fn of<'a>(costs: impl Iterator<Item = &'a Arc<Cost>> + Clone) -> Self {
        // Less than this, nobody uses.
        let usage = Usage { input_tokens: 1, output_tokens: 1, cached_tokens: 0, images: 1 };
        let of_meter = |cost: &Cost, name: &MeterName| {
            let at = cost.meters.iter().position(|known| known == name);
            at.and_then(|at| cost.at_most(&usage).get(at).copied()).unwrap_or_default()
        };
        let names = costs.clone().next().map(|first| first.meters.clone()).unwrap_or_default();
        let due = |name: &MeterName| costs.clone().map(|cost| of_meter(cost, name)).min().unwrap_or_default();
        // A meter that one of them leaves out is not due for certain, so those of the first are all there can be.
        let all = names.iter().map(|name| (name.clone(), due(name))).filter(|(_, amount)| *amount > Micro::ZERO);
        let (meters, amounts): (Vec<MeterName>, Amounts) = all.unzip();
        Self { meters: meters.into(), amounts }
    }
}

/// What the calls of one route cost.
pub struct RouteCosts {
    /// Of a call that no model's price concerns.
    base: Arc<Cost>,
    least: Least,
    by_model: Option<ByModel>,
}

struct ByModel {
    exact: HashMap<String, Arc<Cost>>,
    /// Longest first.
    prefixes: Vec<(String, Arc<Cost>)>,
    /// `None`: refused.
    unknown: Option<Arc<Cost>>,
}

impl RouteCosts {
    /// `own`: the route's cost; `list`: what models cost besides, if that counts here.
    pub fn new(own: &[(MeterName, Price)], list: Option<&PriceList>, metrics: &Metrics) -> Self {
        let base = Cost::new(own.iter(), metrics);
        let by_model = list.filter(|list| list.is_in_force()).map(|list| {
            let mut by_model = ByModel {
                exact: HashMap::new(),
                prefixes: Vec::new(),
                unknown: match list.unknown_model {
                    UnknownModel::Refuse => None,
                    UnknownModel::Free => Some(base.clone()),
                    UnknownModel::Default => Some(Cost::new(own.iter().chain(&list.default), metrics)),
                },
            };
            for (model, prices) in &list.models {
                let cost = Cost::new(own.iter().chain(prices), metrics);
                match model.trim().strip_suffix('*') {
                    Some(prefix) => by_model.prefixes.push((model::fold(prefix).into_owned(), cost)),
                    None => {
                        by_model.exact.insert(model::fold(model).into_owned(), cost);
                    }
                }
            }
            by_model.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
            by_model
        });
        let least = match &by_model {
            None => Least::of(std::iter::once(&base)),
            Some(by_model) => {
                let prefixes = by_model.prefixes.iter().map(|(_, cost)| cost);
                Least::of(by_model.exact.values().chain(prefixes).chain(&by_model.unknown))
            }
        };
        Self { base, least, by_model }
    }

    pub fn least(&self) -> &Least {
        &self.least
    }

    /// Whether models have prices here.
    pub fn are_by_model(&self) -> bool {
        self.by_model.is_some()
    }

    /// Whether the request must be read to know what it may cost.
    pub fn need_body(&self) -> bool {
        self.base.is_metered || self.by_model.is_some()
    }

    /// The cost of a call. `model` as the request names it; a call without a body, such as a look at a list, needs none.
    ///
    /// # Errors
    /// [`Reject::Forbidden`] for a model that has no price, where the config says so.
    pub fn of(&self, model: Option<&str>, has_body: bool) -> Result<&Arc<Cost>, Reject> {
        let Some(by_model) = self.by_model.as_ref().filter(|_| has_body) else { return Ok(&self.base) };
        let known = model.and_then(|model| {
            let name = model::fold(model);
            let prefix = || by_model.prefixes.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, cost)| cost);
            by_model.exact.get(&*name).or_else(prefix)
        });
        known.or(by_model.unknown.as_ref()).ok_or(match model {
            Some(_) => Reject::Forbidden("This model has no price"),
            None => Reject::Forbidden("This call names no model, so it has no price"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(meter: &str, units: i64) -> (MeterName, Price) {
        (MeterName::parse(meter).unwrap(), Price::fixed(Micro(units)))
    }

    fn costs(unknown_model: UnknownModel) -> RouteCosts {
        let list = PriceList {
            unknown_model,
            default: vec![price("credits", 50)],
            models: vec![
                ("gpt-*".into(), vec![price("credits", 1)]),
                ("GPT-4o*".into(), vec![price("credits", 2)]),
                ("gpt-4o".into(), vec![price("credits", 3), price("images", 1)]),
            ],
        };
        RouteCosts::new(&[price("credits", 10), price("conversations", 1)], Some(&list), &Metrics::new(0))
    }

    #[test]
    fn the_longest_match_wins_and_adds_to_the_route_s_own_cost() {
        let costs = costs(UnknownModel::Refuse);
        let paid = |model| costs.of(Some(model), true).unwrap().amounts(&Usage::default()).to_vec();
        assert_eq!(paid("gpt-4o"), [Micro(13), Micro(1), Micro(1)]);
        assert_eq!(paid("gpt-4o-mini"), [Micro(12), Micro(1)]);
        assert_eq!(paid("gpt-5"), [Micro(11), Micro(1)]);
        assert_eq!((paid(" GPT-4o "), paid("gpt-4O-Mini")), (paid("gpt-4o"), paid("gpt-4o-mini")));
        assert!(matches!(costs.of(Some("claude"), true), Err(Reject::Forbidden(_))));
        assert!(matches!(costs.of(None, true), Err(Reject::Forbidden(_))));
        assert_eq!(costs.of(None, false).unwrap().amounts(&Usage::default()).to_vec(), [Micro(10), Micro(1)]);
    }

    #[test]
    fn the_least_of_a_call_is_what_its_cheapest_model_takes_of_each_meter() {
        let least = |costs: &RouteCosts| {
            let Least { meters, amounts } = costs.least();
            meters.iter().zip(amounts).map(|(name, amount)| (name.as_str().to_owned(), amount.0)).collect::<Vec<_>>()
        };
        let known = |unknown| least(&costs(unknown));
        let both = |credits| vec![("credits".to_owned(), credits), ("conversations".to_owned(), 1)];
        assert_eq!(known(UnknownModel::Refuse), both(11));
        assert_eq!(known(UnknownModel::Default), both(11));
        assert_eq!(known(UnknownModel::Free), both(10));
        let token = |rate| Price {
            rates: crate::domain::price::Rates {
                input: crate::domain::price::TokenRate::from_decimal(rate).unwrap(),
                ..Default::default()
            },
            ..Price::default()
        };
        let meter = MeterName::parse("credits").unwrap();
        let list = PriceList {
            unknown_model: UnknownModel::Refuse,
            default: Vec::new(),
            models: vec![
                ("dear".into(), vec![(meter.clone(), token(0.002))]),
                ("cheap".into(), vec![(meter.clone(), token(0.001))]),
            ],
        };
        let metered = RouteCosts::new(&[], Some(&list), &Metrics::new(0));
        assert_eq!(least(&metered), [("credits".to_owned(), 1000)], "a token at the least");
        let free = RouteCosts::new(&[], None, &Metrics::new(0));
        assert!(least(&free).is_empty());
    }

    #[test]
    fn a_model_without_a_price_is_free_or_has_the_default() {
        let paid = |unknown| costs(unknown).of(Some("claude"), true).unwrap().amounts(&Usage::default()).to_vec();
        assert_eq!(paid(UnknownModel::Free), [Micro(10), Micro(1)]);
        assert_eq!(paid(UnknownModel::Default), [Micro(60), Micro(1)]);
    }

    #[test]
    fn an_empty_list_changes_nothing() {
        let none = RouteCosts::new(&[price("credits", 1)], Some(&PriceList::default()), &Metrics::new(0));
        assert!(!none.need_body() && none.of(Some("anything"), true).is_ok());
    }
}
