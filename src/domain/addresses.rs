//! Address rules: which network may come in, which may not, and until when.
//!
//! Owns the match of an address against any number of CIDR rules: the longest unexpired prefix wins, and of two rules for
//! the same network the denying one. Never reads a clock, never knows where the rules came from. Addresses are expected
//! unmapped (`::ffff:10.0.0.1` as `10.0.0.1`); rules for mapped networks are unmapped here.
//!
//! Networks are nested or disjoint, so all rules together cut the number line into intervals, each with one innermost
//! rule. A lookup finds the interval: an index over 16 bits of the address leads to a handful of neighbours. A rule that
//! never expires is the answer itself; one that may expire leads to the chain of the networks around it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;

/// The address of the client of a call, after trusted proxies were taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddress(pub IpAddr);

/// What a rule says of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleKind {
    Allow,
    Deny,
}

impl RuleKind {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "allow" => Some(Self::Allow),
            "deny" => Some(Self::Deny),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRule {
    pub network: IpNet,
    pub kind: RuleKind,
    /// From this moment on the rule does not count.
    pub expires_at: Option<UnixMillis>,
}

/// What the rules say of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    Denied,
    /// No unexpired rule covers it.
    Unmatched,
}

/// Reads `10.0.0.0/8` or a single address; the bits behind the prefix are cleared.
pub fn parse_network(text: &str) -> Option<IpNet> {
    let text = text.trim();
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    Some(unmapped(network.trunc()))
}

/// `::ffff:10.0.0.0/104` is `10.0.0.0/8`.
fn unmapped(network: IpNet) -> IpNet {
    if let IpNet::V6(v6) = network
        && let Some(v4) = v6.network().to_ipv4_mapped()
        && let Some(prefix) = v6.prefix_len().checked_sub(96)
        && let Ok(v4) = Ipv4Net::new(v4, prefix)
    {
        return IpNet::V4(v4);
    }
    network
}

/// Rules made ready for lookups.
#[derive(Clone, Debug, Default)]
pub struct AddressSet {
    v4: Table<u32>,
    v6: Table<u64>,
    /// For the upper halves of IPv6 addresses within which the answer changes, the points of their lower halves, one run
    /// after the other; every run begins with 0, so the next 0 ends it. Runs are short: one cache line, mostly.
    v6_runs: Vec<(u64, Slot)>,
    /// The same for those with many points.
    v6_low: Vec<Table<u64>>,
    expiring: Vec<Expiring>,
    rules: usize,
}

/// What holds from a point of the number line on, in four bytes: an answer, a number into [`AddressSet::expiring`], or
/// (in the table of upper halves) one into [`AddressSet::v6_runs`] or [`AddressSet::v6_low`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot(u32);

impl Slot {
    const UNMATCHED: Self = Self(0);
    const ALLOWED: Self = Self(1);
    const DENIED: Self = Self(2);
    const FIRST_EXPIRING: u32 = 3;
    const RUN: u32 = 1 << 31;
    const LOW: u32 = 1 << 30;
    const NUMBER: u32 = Self::LOW - 1;
}

/// The longest run of points that is scanned.
const MAX_RUN: usize = 16;

/// A network with a rule that may expire.
#[derive(Clone, Copy, Debug)]
struct Expiring {
    /// Denied before this moment, else allowed before that one, else whatever holds outside. Zero: there is no such rule.
    deny_until: u64,
    allow_until: u64,
    outside: Slot,
}

impl AddressSet {
    pub fn build(rules: impl IntoIterator<Item = AddressRule>) -> Self {
        let mut networks: BTreeMap<(bool, u128, u8), (u64, u64)> = BTreeMap::new();
        let mut set = Self::default();
        for rule in rules {
            set.rules += 1;
            let until = rule.expires_at.map_or(u64::MAX, |at| at.0);
            let (v6, start, prefix) = match unmapped(rule.network.trunc()) {
                IpNet::V4(net) => (false, u128::from(u32::from(net.network())), net.prefix_len()),
                IpNet::V6(net) => (true, u128::from(net.network()), net.prefix_len()),
            };
            let (deny, allow) = networks.entry((v6, start, prefix)).or_default();
            let side = if rule.kind == RuleKind::Deny { deny } else { allow };
            *side = until.max(*side);
        }
        let mut v4 = Vec::new();
        let mut v6 = Vec::new();
        for ((is_v6, start, prefix), until) in networks {
            let list = if is_v6 { &mut v6 } else { &mut v4 };
            let host_bits = if is_v6 { 128 } else { 32 } - u32::from(prefix);
            let span = 1u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
            list.push((start, start + span, until));
        }
        let steps = set.flatten(&v4, u128::from(u32::MAX));
        set.v4 = Table::new(steps.iter().map(|(start, slot)| (*start as u32, *slot)).collect());
        let steps = set.flatten(&v6, u128::MAX);
        set.split_v6(&steps);
        set
    }

    /// Turns nested networks, sorted from outer to inner, into the points where the answer changes.
    fn flatten(&mut self, networks: &[(u128, u128, (u64, u64))], last: u128) -> Vec<(u128, Slot)> {
        let mut steps: Vec<(u128, Slot)> = Vec::with_capacity(2 * networks.len());
        let mut around: Vec<(u128, Slot)> = Vec::new();
        let leave = |steps: &mut Vec<(u128, Slot)>, around: &mut Vec<(u128, Slot)>| {
            let Some((end, _)) = around.pop() else { return };
            if end < last {
                step(steps, end + 1, around.last().map_or(Slot::UNMATCHED, |(_, slot)| *slot));
            }
        };
        for &(start, end, (deny_until, allow_until)) in networks {
            while around.last().is_some_and(|(outer_end, _)| *outer_end < start) {
                leave(&mut steps, &mut around);
            }
            let slot = match (deny_until, allow_until) {
                (u64::MAX, _) => Slot::DENIED,
                (0, u64::MAX) => Slot::ALLOWED,
                _ => {
                    let outside = around.last().map_or(Slot::UNMATCHED, |(_, slot)| *slot);
                    self.expiring.push(Expiring { deny_until, allow_until, outside });
                    Slot(Slot::FIRST_EXPIRING + (self.expiring.len() - 1) as u32)
                }
            };
            step(&mut steps, start, slot);
            around.push((end, slot));
        }
        while !around.is_empty() {
            leave(&mut steps, &mut around);
        }
        steps
    }

    /// Makes one table of upper halves, with tables of lower halves where networks are longer than 64 bits.
    fn split_v6(&mut self, steps: &[(u128, Slot)]) {
        let mut upper: Vec<(u64, Slot)> = Vec::new();
        let mut before = Slot::UNMATCHED;
        for group in steps.chunk_by(|a, b| a.0 >> 64 == b.0 >> 64) {
            let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
            let half = (first.0 >> 64) as u64;
            let mut lower: Vec<(u64, Slot)> = group.iter().map(|(at, slot)| (*at as u64, *slot)).collect();
            if lower.len() == 1 && first.0 as u64 == 0 {
                step(&mut upper, half, first.1);
            } else {
                if first.0 as u64 != 0 {
                    lower.insert(0, (0, before));
                }
                if lower.len() <= MAX_RUN {
                    step(&mut upper, half, Slot(Slot::RUN | self.v6_runs.len() as u32));
                    self.v6_runs.append(&mut lower);
                } else {
                    step(&mut upper, half, Slot(Slot::LOW | self.v6_low.len() as u32));
                    self.v6_low.push(Table::new(lower));
                }
                if let Some(next) = half.checked_add(1) {
                    step(&mut upper, next, last.1);
                }
            }
            before = last.1;
        }
        self.v6 = Table::new(upper);
    }

    pub fn verdict(&self, addr: IpAddr, now: UnixMillis) -> Verdict {
        let mut slot = match addr {
            IpAddr::V4(v4) => self.v4.find(u32::from(v4)),
            IpAddr::V6(v6) => {
                let bits = u128::from(v6);
                let slot = self.v6.find((bits >> 64) as u64);
                let (low, number) = (bits as u64, (slot.0 & Slot::NUMBER) as usize);
                if slot.0 & Slot::RUN != 0 {
                    self.in_run(number, low)
                } else if slot.0 & Slot::LOW != 0 {
                    self.v6_low.get(number).map_or(Slot::UNMATCHED, |table| table.find(low))
                } else {
                    slot
                }
            }
        };
        loop {
            match slot {
                Slot::UNMATCHED => return Verdict::Unmatched,
                Slot::ALLOWED => return Verdict::Allowed,
                Slot::DENIED => return Verdict::Denied,
                Slot(number) => {
                    let Some(rule) = self.expiring.get((number - Slot::FIRST_EXPIRING) as usize) else {
                        return Verdict::Unmatched;
                    };
                    if now.0 < rule.deny_until {
                        return Verdict::Denied;
                    }
                    if now.0 < rule.allow_until {
                        return Verdict::Allowed;
                    }
                    slot = rule.outside;
                }
            }
        }
    }

    fn in_run(&self, start: usize, low: u64) -> Slot {
        let Some(((_, first), rest)) = self.v6_runs.get(start..).and_then(<[_]>::split_first) else {
            return Slot::UNMATCHED;
        };
        let reached = rest.iter().take_while(|(at, _)| *at != 0 && *at <= low);
        reached.last().map_or(*first, |(_, slot)| *slot)
    }

    /// Rules the set was built from, expired ones included.
    pub fn len(&self) -> usize {
        self.rules
    }

    pub fn is_empty(&self) -> bool {
        self.rules == 0
    }
}

/// Says that `slot` holds from `at` on, unless that is known. Points come in ascending order; a later word on the same
/// point replaces the earlier one.
fn step<K: Copy + PartialEq>(steps: &mut Vec<(K, Slot)>, at: K, slot: Slot) {
    if steps.last().is_some_and(|(last, _)| *last == at) {
        steps.pop();
    }
    if steps.last().map_or(Slot::UNMATCHED, |(_, held)| *held) != slot {
        steps.push((at, slot));
    }
}

/// Points in ascending order, and an index to them once they are many.
#[derive(Clone, Debug, Default)]
struct Table<K> {
    points: Vec<(K, Slot)>,
    index: Option<Index>,
}

/// Fewer points than this are searched without an index.
const INDEX_FROM: usize = 48;
const INDEX_BITS: u32 = 16;

/// For every value of 16 bits below the prefix that nearly all points share: how many points lie before it. Rules
/// cluster (all of IPv6 in use begins with 001), so the first bits alone would not spread them.
#[derive(Clone, Debug)]
struct Index {
    /// The first key with the shared prefix.
    base: u64,
    shift: u32,
    /// One more than there are values, so that a value's successor is its end.
    starts: Vec<u32>,
}

impl<K: Copy + Ord + Into<u64>> Table<K> {
    const BITS: u32 = 8 * size_of::<K>() as u32;

    fn new(points: Vec<(K, Slot)>) -> Self {
        let index = (points.len() >= INDEX_FROM).then(|| Self::index(&points));
        Self { points, index }
    }

    fn index(points: &[(K, Slot)]) -> Index {
        // A few points far off must not spoil the index for all others: a hundredth on each side is left out.
        let margin = points.len() / 100;
        let key = |at: usize| points.get(at).map_or(0, |(key, _)| (*key).into());
        let (low, high) = (key(margin), key(points.len() - 1 - margin));
        let differing = u64::BITS - (low ^ high).leading_zeros();
        let shift = differing.max(INDEX_BITS).min(Self::BITS) - INDEX_BITS;
        let base = low.checked_shr(shift + INDEX_BITS).and_then(|p| p.checked_shl(shift + INDEX_BITS)).unwrap_or(0);
        let mut starts = Vec::with_capacity((1 << INDEX_BITS) + 1);
        let mut at = 0;
        for value in 0..1u64 << INDEX_BITS {
            let first = base + (value << shift);
            while at < points.len() && key(at) < first {
                at += 1;
            }
            starts.push(at as u32);
        }
        while at < points.len() && (key(at) - base) >> shift <= u64::from(u16::MAX) {
            at += 1;
        }
        starts.push(at as u32);
        Index { base, shift, starts }
    }

    /// What holds at `key`.
    fn find(&self, key: K) -> Slot {
        let (from, to) = match &self.index {
            None => (0, self.points.len()),
            Some(index) => {
                let wide: u64 = key.into();
                let value = wide.wrapping_sub(index.base) >> index.shift;
                if wide < index.base {
                    (0, index.starts.first().map_or(0, |n| *n as usize))
                } else if value < 1 << INDEX_BITS {
                    let value = value as usize;
                    let start = index.starts.get(value).map_or(0, |n| *n as usize);
                    (start, index.starts.get(value + 1).map_or(start, |n| *n as usize))
                } else {
                    (index.starts.last().map_or(0, |n| *n as usize), self.points.len())
                }
            }
        };
        let within = self.points.get(from..to).unwrap_or_default();
        // Buckets mostly hold two or three points, where a scan beats a search.
        let after = if within.len() <= 8 {
            within.iter().take_while(|(start, _)| *start <= key).count()
        } else {
            within.partition_point(|(start, _)| *start <= key)
        };
        match (from + after).checked_sub(1) {
            Some(at) => self.points.get(at).map_or(Slot::UNMATCHED, |(_, slot)| *slot),
            None => Slot::UNMATCHED,
        }
    }
}

/// The network an address counts under where a single one is too narrow: all of an IPv6 /64 belongs to one customer.
pub fn customer_network(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(_) => addr,
        IpAddr::V6(v6) => match Ipv6Net::new(v6, 64) {
            Ok(net) => IpAddr::V6(net.network()),
            Err(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        },
    }
}

/// `::ffff:10.0.0.1` as `10.0.0.1`.
pub fn unmap(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(addr, |v4: Ipv4Addr| IpAddr::V4(v4)),
        IpAddr::V4(_) => addr,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1000);

    fn rule(network: &str, kind: RuleKind, expires_at: Option<u64>) -> AddressRule {
        AddressRule { network: parse_network(network).unwrap(), kind, expires_at: expires_at.map(UnixMillis) }
    }

    fn naive(rules: &[AddressRule], addr: IpAddr, now: UnixMillis) -> Verdict {
        let live = rules.iter().filter(|r| r.network.contains(&addr) && r.expires_at.is_none_or(|at| now < at));
        let best = live.max_by_key(|r| (r.network.prefix_len(), r.kind == RuleKind::Deny));
        match best.map(|r| r.kind) {
            None => Verdict::Unmatched,
            Some(RuleKind::Allow) => Verdict::Allowed,
            Some(RuleKind::Deny) => Verdict::Denied,
        }
    }

    #[test]
    fn the_longest_unexpired_prefix_wins_and_deny_wins_a_tie() {
        let set = AddressSet::build([
            rule("10.0.0.0/8", RuleKind::Allow, None),
            rule("10.1.0.0/16", RuleKind::Deny, Some(2000)),
            rule("10.1.2.0/24", RuleKind::Allow, Some(500)),
            rule("10.9.9.9", RuleKind::Allow, None),
            rule("10.9.9.9", RuleKind::Deny, Some(2000)),
            rule("2001:db8::/32", RuleKind::Deny, None),
            rule("2001:db8::7", RuleKind::Allow, None),
            rule("::ffff:192.0.2.0/120", RuleKind::Deny, None),
        ]);
        let at = |addr: &str, now| set.verdict(addr.parse().unwrap(), UnixMillis(now));
        assert_eq!(at("10.200.0.1", 1000), Verdict::Allowed);
        assert_eq!(at("10.1.2.3", 400), Verdict::Allowed);
        assert_eq!(at("10.1.2.3", 1000), Verdict::Denied);
        assert_eq!(at("10.1.2.3", 2000), Verdict::Allowed);
        assert_eq!(at("10.9.9.9", 1000), Verdict::Denied);
        assert_eq!(at("10.9.9.9", 2000), Verdict::Allowed);
        assert_eq!(at("11.0.0.0", 1000), Verdict::Unmatched);
        assert_eq!(at("2001:db8::8", 1000), Verdict::Denied);
        assert_eq!(at("2001:db8::7", 1000), Verdict::Allowed);
        assert_eq!(at("2001:db9::", 1000), Verdict::Unmatched);
        assert_eq!(at("192.0.2.77", 1000), Verdict::Denied);
    }

    #[test]
    fn the_ends_of_the_number_line_hold() {
        let all = AddressSet::build([
            rule("0.0.0.0/0", RuleKind::Deny, None),
            rule("255.255.255.255", RuleKind::Allow, None),
            rule("::/0", RuleKind::Allow, Some(2000)),
            rule("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", RuleKind::Deny, None),
        ]);
        let at = |addr: &str| all.verdict(addr.parse().unwrap(), NOW);
        assert_eq!((at("0.0.0.0"), at("255.255.255.254")), (Verdict::Denied, Verdict::Denied));
        assert_eq!(at("255.255.255.255"), Verdict::Allowed);
        assert_eq!((at("::"), at("ffff::")), (Verdict::Allowed, Verdict::Allowed));
        assert_eq!(at("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), Verdict::Denied);
        assert_eq!(AddressSet::default().verdict("1.2.3.4".parse().unwrap(), NOW), Verdict::Unmatched);
    }

    #[test]
    fn networks_are_read_leniently_and_cut() {
        assert_eq!(parse_network(" 10.1.2.3/8 ").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(parse_network("::ffff:10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        assert!(parse_network("10.0.0.0/33").is_none() && parse_network("localhost").is_none());
        assert_eq!(customer_network("2001:db8::1:2:3:4".parse().unwrap()).to_string(), "2001:db8::");
    }

    /// Few distinct high bits, so that networks nest and touch; some lie far off, outside the index.
    fn networks() -> impl Strategy<Value = IpNet> + Clone {
        prop_oneof![
            (any::<u32>(), 0..=32u8, any::<bool>()).prop_map(|(bits, prefix, near)| {
                let bits = if near { bits & 0x00ff_ffff | 0x0a00_0000 } else { bits };
                IpNet::V4(Ipv4Net::new(bits.into(), prefix).unwrap()).trunc()
            }),
            (any::<u128>(), 0..=128u8, 0..3u8).prop_map(|(bits, prefix, near)| {
                let bits = match near {
                    0 => bits,
                    1 => bits & (u128::MAX >> 32) | (0x2001_0db8 << 96),
                    _ => bits & 0xffff | (0x2001_0db8 << 96),
                };
                IpNet::V6(Ipv6Net::new(bits.into(), prefix).unwrap()).trunc()
            }),
        ]
    }

    fn rules() -> impl Strategy<Value = Vec<AddressRule>> {
        let one = (networks(), any::<bool>(), prop_oneof![Just(None), (0..2000u64).prop_map(Some)]);
        let one = one.prop_map(|(network, deny, until)| AddressRule {
            network: unmapped(network),
            kind: if deny { RuleKind::Deny } else { RuleKind::Allow },
            expires_at: until.map(UnixMillis),
        });
        prop_oneof![proptest::collection::vec(one.clone(), 0..12), proptest::collection::vec(one, 60..300),]
    }

    /// The first and last address of a network and their neighbours: where a mistake by one would show.
    fn edges(network: &IpNet) -> Vec<IpAddr> {
        match network {
            IpNet::V4(n) => {
                let (a, b) = (u32::from(n.network()), u32::from(n.broadcast()));
                [a, b, a.wrapping_sub(1), b.wrapping_add(1)].map(|x| IpAddr::V4(x.into())).to_vec()
            }
            IpNet::V6(n) => {
                let (a, b) = (u128::from(n.network()), u128::from(n.broadcast()));
                [a, b, a.wrapping_sub(1), b.wrapping_add(1)].map(|x| unmap(IpAddr::V6(x.into()))).to_vec()
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn agrees_with_a_linear_scan(rules in rules(), v4 in any::<[u32; 8]>(), v6 in any::<[u128; 8]>(), now in 0..2200u64) {
            let set = AddressSet::build(rules.iter().copied());
            let random = v4.iter().map(|a| IpAddr::V4((*a).into())).chain(v6.iter().map(|a| unmap(IpAddr::V6((*a).into()))));
            for addr in rules.iter().flat_map(|r| edges(&r.network)).chain(random) {
                prop_assert_eq!(set.verdict(addr, UnixMillis(now)), naive(&rules, addr, UnixMillis(now)), "{}", addr);
            }
        }
    }
}
