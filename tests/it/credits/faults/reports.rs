//! What upstreams say that a call used: missing, nonsense, too much, too often, in the wrong place, in pieces.

use super::{Charge, Cost, Form, HELD, Lab, chunk, tokens};
use crate::fake_upstream::FakeUpstream;
use crate::support::Conn;

/// A value of `usage`, and what is charged for it: what it says, within what was held; without a number that can be read,
/// all that was held.
const REPORTS: &[(&str, Charge)] = &[
    // As it should be.
    (r#"{"prompt_tokens":5,"completion_tokens":10,"total_tokens":15}"#, tokens(10)),
    (r#"{"completion_tokens":1}"#, tokens(1)),
    (r#"{"completion_tokens":100}"#, HELD),
    // Missing.
    ("null", HELD),
    ("{}", HELD),
    (r#"{"total_tokens":15}"#, HELD),
    (r#"{"prompt_tokens":0,"completion_tokens":0}"#, HELD),
    // Negative.
    (r#"{"completion_tokens":-1}"#, HELD),
    (r#"{"completion_tokens":-9223372036854775808}"#, HELD),
    (r#"{"completion_tokens":-1e308}"#, HELD),
    (r#"{"completion_tokens":-0.5}"#, HELD),
    (r#"{"completion_tokens":-0}"#, HELD),
    // Huge.
    (r#"{"completion_tokens":101}"#, HELD),
    (r#"{"completion_tokens":9223372036854775808}"#, HELD),
    (r#"{"completion_tokens":18446744073709551615}"#, HELD),
    (r#"{"completion_tokens":18446744073709551616}"#, HELD),
    (r#"{"completion_tokens":1e308}"#, HELD),
    (r#"{"completion_tokens":1e999999999}"#, HELD),
    (r#"{"prompt_tokens":18446744073709551615,"completion_tokens":7}"#, tokens(7)),
    // Fractional: what was begun counts.
    (r#"{"completion_tokens":7.0}"#, tokens(7)),
    (r#"{"completion_tokens":7.2}"#, tokens(8)),
    (r#"{"completion_tokens":1e-9}"#, tokens(1)),
    (r#"{"completion_tokens":25e-1}"#, tokens(3)),
    // Of another kind.
    (r#"{"completion_tokens":"7"}"#, HELD),
    (r#"{"completion_tokens":null}"#, HELD),
    (r#"{"completion_tokens":true}"#, HELD),
    (r#"{"completion_tokens":[7]}"#, HELD),
    (r#"{"completion_tokens":{"completion_tokens":7}}"#, HELD),
    (r#"[{"completion_tokens":7}]"#, HELD),
    (r#""seven""#, HELD),
    ("7", HELD),
    // No JSON.
    (r#"{"completion_tokens":NaN}"#, HELD),
    (r#"{"completion_tokens":Infinity}"#, HELD),
    (r#"{"completion_tokens":"#, HELD),
    (r#"{"completion_tokens":07}"#, HELD),
    // Twice within: the later one counts, unless it is none.
    (r#"{"completion_tokens":20,"completion_tokens":10}"#, tokens(10)),
    (r#"{"completion_tokens":10,"completion_tokens":-1}"#, tokens(10)),
    (r#"{"completion_tokens":10},"usage":{"completion_tokens":20}"#, tokens(20)),
    (r#"{"completion_tokens":10},"usage":null"#, tokens(10)),
    // In part: what is said is charged, and at least what passed where a number was none. "Hello" is two tokens.
    (r#"{"prompt_tokens":5,"completion_tokens":"7"}"#, tokens(2)),
    (r#"{"prompt_tokens":5}"#, tokens(0)),
];

fn plain(usage: &str) -> String {
    let body = format!("{{\"choices\":[{{\"index\":0,\"message\":{{\"content\":\"Hello\"}}}}],\"usage\":{usage}}}");
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A stream of these events' data.
fn stream(events: &[&str]) -> Vec<u8> {
    let mut answer = Form::Sse.head().as_bytes().to_vec();
    for event in events {
        answer.extend(chunk(&format!("data: {event}\n\n")));
    }
    answer.extend_from_slice(b"0\r\n\r\n");
    answer
}

const DELTA: &str = r#"{"choices":[{"index":0,"delta":{"content":"ab"}}]}"#;

fn event(usage: &str) -> String {
    format!("{{\"choices\":[],\"usage\":{usage}}}")
}

/// How an answer's bytes are cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Whole,
    /// Each byte in a segment of its own.
    Bytes,
}

/// Serves these answers, each under its number.
fn lab(answers: Vec<Vec<u8>>, cut: Cut) -> Lab {
    Lab::open(move |wire| {
        while let Some(request) = wire.read_request() {
            let number: usize = super::case_of(&request).0.parse().unwrap();
            match cut {
                Cut::Whole => wire.send(&answers[number]),
                Cut::Bytes => answers[number].iter().for_each(|byte| wire.send([*byte])),
            }
        }
    })
}

fn check(lab: &Lab, number: usize, form: Form, what: &str, expected: Charge) {
    lab.charges(what, Cost::Metered, expected, |lab| {
        let answer = lab.post(Cost::Metered, &number.to_string(), form).read_answer();
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    });
}

#[test]
fn a_plain_answer_s_report_is_charged_by_the_rule() {
    let lab = lab(REPORTS.iter().map(|(usage, _)| plain(usage).into_bytes()).collect(), Cut::Whole);
    for (number, (usage, expected)) in REPORTS.iter().enumerate() {
        check(&lab, number, Form::Plain, usage, *expected);
    }
    assert_eq!(lab.fake.requests(), REPORTS.len(), "each call was sent once");
}

#[test]
fn a_stream_s_report_is_charged_by_the_rule() {
    let answers = REPORTS.iter().map(|(usage, _)| stream(&[DELTA, DELTA, &event(usage), "[DONE]"]));
    let lab = lab(answers.collect(), Cut::Whole);
    for (number, (usage, expected)) in REPORTS.iter().enumerate() {
        check(&lab, number, Form::Sse, usage, *expected);
    }
}

/// Reports of a stream that are not where, or not as often, as they should be.
fn odd_streams() -> Vec<(&'static str, Vec<u8>, Charge)> {
    let ten = event(r#"{"completion_tokens":10}"#);
    let twenty = event(r#"{"completion_tokens":20}"#);
    let minus = event(r#"{"completion_tokens":-4}"#);
    let prompt = event(r#"{"prompt_tokens":5}"#);
    let broken = event(r#"{"completion_tokens":NaN}"#);
    let halves = (r#"{"choices":[],"usage":{"prompt_tokens":5,"#, r#""completion_tokens":10}}"#);
    let lines = format!("{}\ndata: {}", halves.0, halves.1);
    vec![
        ("none at all", stream(&[DELTA, DELTA, "[DONE]"]), HELD),
        ("none, and no events", stream(&[]), HELD),
        ("in the first event", stream(&[&ten, DELTA, DELTA, "[DONE]"]), tokens(10)),
        ("after the end", stream(&[DELTA, "[DONE]", &ten]), tokens(10)),
        ("in each event, growing", stream(&[&ten, &ten, &twenty, "[DONE]"]), tokens(20)),
        ("in each event, shrinking", stream(&[&twenty, &ten, "[DONE]"]), tokens(10)),
        ("a good one and a negative one", stream(&[&ten, &minus, "[DONE]"]), tokens(10)),
        ("a negative one and a good one", stream(&[&minus, &ten, "[DONE]"]), tokens(10)),
        ("a broken one and a good one", stream(&[&broken, &ten, "[DONE]"]), tokens(10)),
        ("one number here and one there", stream(&[&prompt, DELTA, &ten, "[DONE]"]), tokens(10)),
        ("over two lines of an event", stream(&[DELTA, &lines, "[DONE]"]), tokens(10)),
        ("torn over two events", stream(&[DELTA, halves.0, halves.1, "[DONE]"]), tokens(0)),
        ("without an end", stream(&[DELTA, &ten]), tokens(10)),
    ]
}

#[test]
fn a_report_counts_wherever_it_stands_in_a_stream() {
    let cases = odd_streams();
    let lab = lab(cases.iter().map(|(_, answer, _)| answer.clone()).collect(), Cut::Whole);
    for (number, (what, _, expected)) in cases.iter().enumerate() {
        check(&lab, number, Form::Sse, what, *expected);
    }
}

#[test]
fn how_an_answer_is_cut_into_segments_changes_no_charge() {
    let mut cases: Vec<(Form, String, Vec<u8>, Charge)> = Vec::new();
    for (usage, expected) in REPORTS.iter().step_by(4) {
        cases.push((Form::Plain, format!("plain {usage}"), plain(usage).into_bytes(), *expected));
    }
    for (what, answer, expected) in odd_streams() {
        cases.push((Form::Sse, what.to_owned(), answer, expected));
    }
    let lab = lab(cases.iter().map(|(_, _, answer, _)| answer.clone()).collect(), Cut::Bytes);
    for (number, (form, what, _, expected)) in cases.iter().enumerate() {
        check(&lab, number, *form, what, *expected);
    }
}

#[test]
fn an_estimate_where_the_operator_wants_one_is_what_passed() {
    for (outgrown, beyond) in [("finish", [HELD, HELD]), ("extend", [tokens(101), tokens(300)])] {
        estimated(outgrown, beyond);
    }
}

fn estimated(outgrown: &str, beyond: [Charge; 2]) {
    let events = vec![DELTA; 300];
    let fake = FakeUpstream::start(move |wire| {
        while let Some(request) = wire.read_request() {
            let count: usize = super::case_of(&request).0.parse().unwrap();
            wire.send(stream(&events[..count]));
        }
    });
    let ledger = format!("[ledger]\nmissing_usage = \"estimate\"\noutgrown_hold = \"{outgrown}\"\n");
    let toml = format!("{}\n{}\n{ledger}", super::ROUTES, fake.config(""));
    let bank = super::Bank::open(crate::support::Options { toml, ..Default::default() });
    bank.set_credits(1000);
    let lab = Lab { bank, fake };
    for (count, expected) in [(0, tokens(0)), (7, tokens(7)), (100, HELD), (101, beyond[0]), (300, beyond[1])] {
        check(&lab, count, Form::Sse, &format!("{count} events"), expected);
    }
}

/// A thousand answers that claim to have given something back, at once: no balance rises, at any moment.
#[test]
fn no_report_ever_raises_a_balance() {
    let lies = [r#"{"completion_tokens":-1000000}"#, r#"{"completion_tokens":-1e300}"#, r#"{"prompt_tokens":-9e18}"#];
    let lab = lab(lies.iter().map(|usage| plain(usage).into_bytes()).collect(), Cut::Whole);
    let start = lab.books(Cost::Metered);
    let highest = std::sync::Mutex::new(0);
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let lab = &lab;
            scope.spawn(move || {
                let mut conn = Conn::open(lab.bank.app.public);
                for turn in 0..25 {
                    let case = ((worker + turn) % lies.len()).to_string();
                    conn.send(lab.request("POST", Cost::Metered, &case, Form::Plain));
                    assert_eq!(conn.read_answer().status, 200);
                }
            });
        }
        for _ in 0..40 {
            let books = lab.books(Cost::Metered);
            let mut highest = highest.lock().unwrap();
            *highest = books.balance.max(*highest);
            assert_eq!(books.granted, books.balance + books.held + books.spent);
        }
    });
    lab.wait_until_over("all of them");
    let end = lab.books(Cost::Metered);
    assert!(highest.into_inner().unwrap() <= start.balance);
    assert_eq!(end.spent - start.spent, 200 * HELD.0);
    assert_eq!((end.balance, end.granted), (start.balance - 200 * HELD.0, start.granted));
}
