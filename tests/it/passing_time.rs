//! Moving the manual clock so that the gateway has seen it.

use std::time::{Duration, Instant};

use crate::support::{TestApp, wait_until};

/// Moves the clock and waits until the ticker, which looks at it ten times a second, has surely done so.
pub fn advance(app: &TestApp, by: Duration) {
    app.hands.as_ref().unwrap().advance(by);
    let began = Instant::now();
    wait_until("the ticker has looked at the clock", || began.elapsed() > Duration::from_millis(300));
}
