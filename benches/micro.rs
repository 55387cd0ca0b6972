//! What each step of the request path costs, one by one. Figures and what was learned are in `benches/README.md`.

#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up should stop")]

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion};
use ipnet::IpNet;
use tollgate::accounts::blocks::{AddressBlocks, Guess, Port};
use tollgate::accounts::secrets::{Pepper, mint_api_key};
use tollgate::actors::user::ledger::{self, Account, Command, Recovery};
use tollgate::clock::{Monotonic, UnixMillis};
use tollgate::config::Access;
use tollgate::domain::addresses::{AddressRule, AddressSet, RuleKind};
use tollgate::domain::key::KeyLook;
use tollgate::domain::meters::{MeterName, Micro, ResetHour, ResetPeriod};
use tollgate::gateway::client_ip::ClientIp;
use tollgate::gateway::http1::head::RequestHead;
use tollgate::gateway::rate::{self, Quota, RateQuotas, RateStates, Taken};
use tollgate::gateway::spelling;
use tollgate::gateway::usage::{AnswerFormat, AnswerScan, scan_request};

fn main() {
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    head(&mut criterion);
    key(&mut criterion);
    addresses(&mut criterion);
    rates(&mut criterion);
    ledger_step(&mut criterion);
    usage(&mut criterion);
    criterion.final_summary();
}

fn head(c: &mut Criterion) {
    let text = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAccept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 3.52.0\r\nAuthorization: Bearer pe-rqrFLve5ZM63ZL1XtREaiLrlrNreu20Y\r\nContent-Length: 1024\r\n\r\n";
    c.bench_function("head: parse a request's", |b| b.iter(|| RequestHead::parse(black_box(text.to_vec())).is_ok()));
    c.bench_function("path: normalize", |b| b.iter(|| spelling::normalize(black_box(b"/v1/chat/completions")).is_ok()));
}

fn key(c: &mut Criterion) {
    let pepper = Pepper::new(&[7; 43]).expect("long enough");
    let key = mint_api_key(KeyLook::Canonical).expect("randomness");
    c.bench_function("key: MAC", |b| b.iter(|| pepper.mac(black_box(key.expose().as_bytes()))));
    let cache = moka::sync::Cache::builder().max_capacity(200_000).build();
    for n in 0..100_000u64 {
        cache.insert(pepper.mac(&n.to_le_bytes()), Arc::new(n));
    }
    let macs: Vec<_> = (0..1024u64).map(|n| pepper.mac(&(n * 97).to_le_bytes())).collect();
    let mut at = 0;
    c.bench_function("key: look up among 100,000", |b| {
        b.iter(|| {
            at = (at + 1) % macs.len();
            cache.get(black_box(&macs[at]))
        });
    });
}

fn addresses(c: &mut Criterion) {
    let mut random = fastrand::Rng::with_seed(7);
    let mut group = c.benchmark_group("address: match");
    for v6 in [false, true] {
        for count in [10usize, 100_000] {
            let mut any = || match v6 {
                false => IpAddr::V4(random.u32(..).into()),
                true => IpAddr::V6((random.u128(..) >> 3 | 1 << 125).into()),
            };
            let rules = (0..count).map(|at| AddressRule {
                network: IpNet::new(any(), if v6 { 32 + (at % 97) as u8 } else { 12 + (at % 21) as u8 })
                    .expect("a length"),
                kind: if at % 3 == 0 { RuleKind::Allow } else { RuleKind::Deny },
                expires_at: (at % 4 == 0).then_some(UnixMillis(500)),
            });
            let set = AddressSet::build(rules.collect::<Vec<_>>());
            let probes: Vec<IpAddr> = (0..4096).map(|_| any()).collect();
            let mut at = 0;
            group.bench_function(BenchmarkId::new(if v6 { "IPv6" } else { "IPv4" }, count), |b| {
                b.iter(|| {
                    at = (at + 1) % probes.len();
                    set.verdict(black_box(probes[at]), UnixMillis(1000))
                });
            });
        }
    }
    group.finish();
    let blocks = AddressBlocks::new(&Access { block_after_failures: 1, ..Access::default() });
    for n in 0..10_000u32 {
        blocks.failed(IpAddr::V4(n.into()), Port::Public, Guess::Credential, Monotonic(0));
    }
    c.bench_function("address: blocked among 10,000", |b| {
        b.iter(|| blocks.blocked_for(black_box([9, 9, 9, 9].into()), Port::Public, Monotonic(1)))
    });
}

fn rates(c: &mut Criterion) {
    let states = RateStates::new(262_144);
    let quotas = RateQuotas { address: Quota::per_minute(1_000_000_000), ..RateQuotas::default() };
    for n in 0..100_000u32 {
        let client = ClientIp(IpAddr::V4(n.into()));
        rate::check_address(&states, &quotas, client, Monotonic(1), &mut Taken::default()).expect("a first request");
    }
    let mut now = 1;
    c.bench_function("rate: check an address among 100,000", |b| {
        b.iter(|| {
            now += 1000;
            let client = ClientIp(IpAddr::V4((now as u32 % 100_000).into()));
            rate::check_address(&states, &quotas, black_box(client), Monotonic(now), &mut Taken::default()).is_ok()
        });
    });
}

fn ledger_step(c: &mut Criterion) {
    let meter = MeterName::parse("conversations").expect("a name");
    let (now, hour) = (UnixMillis(1_700_000_000_000), ResetHour::default());
    let mut account = Account::default();
    let much = Micro::units(1_000_000_000);
    let set = Command::Set { meter: &meter, balance: much, reset: much, period: Some(ResetPeriod::Daily) };
    ledger::step(&mut account, now, hour, Recovery::Charge, set);
    let (meters, amounts) = ([meter], [Micro(Micro::UNIT)]);
    c.bench_function("ledger: reserve and settle", |b| {
        b.iter(|| {
            let reserve = Command::Reserve { meters: &meters, amounts: &amounts, max_open: 100 };
            let settle = Command::Settle { meters: &meters, held: &amounts, paid: &amounts };
            black_box(ledger::step(&mut account, now, hour, Recovery::Charge, reserve));
            black_box(ledger::step(&mut account, now, hour, Recovery::Charge, settle));
        });
    });
}

fn usage(c: &mut Criterion) {
    let answer = br#"{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"gpt-4o","choices":[{"index":0,"message":{"role":"assistant","content":"Hello! How can I help you today?"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}}"#;
    c.bench_function("usage: scan a plain answer of 300 B", |b| {
        b.iter(|| {
            let mut scan = AnswerScan::new(AnswerFormat::Json, 1 << 16);
            scan.feed(black_box(answer));
            scan.finish()
        });
    });
    let event = b"data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"gpt-4o\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
    let mut scan = AnswerScan::new(AnswerFormat::Sse, 1 << 10);
    c.bench_function("usage: scan one SSE event", |b| b.iter(|| scan.feed(black_box(event))));
    let request = format!(
        r#"{{"model":"gpt-4o","messages":[{{"role":"user","content":"{}"}}],"max_tokens":100}}"#,
        "hello world ".repeat(80)
    );
    c.bench_function("usage: scan a request of 1 KB", |b| {
        b.iter(|| scan_request(black_box(request.as_bytes())).stream)
    });
}
