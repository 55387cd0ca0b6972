//! Timed work: what must be done now and then, whoever else is busy.
//!
//! Owns when tasks run, by the injected clock, and the record of how they ended. A task never runs twice at once, and one
//! that fails or panics stops no other. Never knows what a task does.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;

/// How often it is looked at what is due.
const TICK: Duration = Duration::from_secs(1);
const DAY_MS: u64 = 86_400_000;

/// What a task has done, in words for the log; or why it could not.
pub type Outcome = Result<String, String>;
type Work = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync>;

/// When a task runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// First after so long, then again each time.
    Every(Duration),
    /// Once a day at this hour, UTC; also at the start, for a day that was missed.
    Daily { hour: u8 },
}

/// How a task's runs ended.
#[derive(Debug)]
pub struct TaskState {
    pub name: &'static str,
    pub when: When,
    pub ok: AtomicU64,
    pub failed: AtomicU64,
    /// Unix milliseconds; 0: never.
    pub last_success: AtomicU64,
    /// The turn of the last start.
    turn: AtomicU64,
    running: AtomicBool,
}

impl TaskState {
    /// Which turn it is at `now`: a task is due when that is another than at its last start.
    fn turn_at(&self, now_ms: u64) -> u64 {
        match self.when {
            When::Every(span) => now_ms / u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1),
            When::Daily { hour } => now_ms.saturating_sub(u64::from(hour) * 3_600_000) / DAY_MS,
        }
    }
}

/// The tasks of a process.
pub struct Scheduler {
    clock: Clock,
    tasks: Vec<(Arc<TaskState>, Work)>,
}

impl Scheduler {
    pub fn new(clock: Clock) -> Self {
        Self { clock, tasks: Vec::new() }
    }

    /// Adds a task. Names are labels of metrics.
    #[must_use]
    pub fn with<F>(mut self, name: &'static str, when: When, work: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let state = TaskState {
            name,
            when,
            ok: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            last_success: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            running: AtomicBool::new(false),
        };
        if matches!(when, When::Every(_)) {
            state.turn.store(state.turn_at(self.clock.now().0), Ordering::Relaxed);
        }
        self.tasks.push((Arc::new(state), Box::new(move || Box::pin(work()))));
        self
    }

    /// How the tasks are doing, in the order in which they were added.
    pub fn states(&self) -> Vec<Arc<TaskState>> {
        self.tasks.iter().map(|(state, _)| state.clone()).collect()
    }

    /// Runs what is due, for as long as it is polled.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.start_due();
        }
    }

    fn start_due(&self) {
        let now = self.clock.now().0;
        for (state, work) in &self.tasks {
            let turn = state.turn_at(now);
            if turn == state.turn.load(Ordering::Relaxed) || state.running.swap(true, Ordering::SeqCst) {
                continue;
            }
            state.turn.store(turn, Ordering::Relaxed);
            let (state, clock, running) = (state.clone(), self.clock.clone(), tokio::spawn(work()));
            tokio::spawn(async move {
                match running.await {
                    Ok(Ok(done)) => {
                        if !done.is_empty() {
                            tracing::info!(task = state.name, "{done}");
                        }
                        state.ok.fetch_add(1, Ordering::Relaxed);
                        state.last_success.store(clock.now().0, Ordering::Relaxed);
                    }
                    Ok(Err(why)) => {
                        tracing::warn!(
                            task = state.name,
                            why,
                            "a timed task failed; it is tried again in its next turn"
                        );
                        state.failed.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        tracing::error!(task = state.name, %error, "a timed task panicked");
                        state.failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
                state.running.store(false, Ordering::SeqCst);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;

    async fn settle(state: &TaskState) {
        while state.running.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn tasks_run_in_their_turns_and_a_broken_one_stops_no_other() {
        let start = UnixMillis::parse_rfc3339("2026-01-15T00:30:00Z").unwrap();
        let (clock, hands) = Clock::manual(start);
        let runs = Arc::new(AtomicU64::new(0));
        let counted = runs.clone();
        let scheduler = Scheduler::new(clock)
            .with("broken", When::Every(Duration::from_secs(60)), || async { panic!("on purpose") })
            .with("refused", When::Every(Duration::from_secs(60)), || async { Err("no".to_owned()) })
            .with("minutely", When::Every(Duration::from_secs(60)), move || {
                counted.fetch_add(1, Ordering::SeqCst);
                async { Ok(String::new()) }
            })
            .with("nightly", When::Daily { hour: 1 }, || async { Ok("done".to_owned()) });
        let [broken, refused, minutely, nightly] = scheduler.states().try_into().unwrap();
        let turn = async || {
            scheduler.start_due();
            for state in scheduler.states() {
                settle(&state).await;
            }
        };
        let count = |n: &AtomicU64| n.load(Ordering::SeqCst);
        turn().await;
        // The night that was missed is made up for; the others wait for their time.
        assert_eq!((count(&runs), count(&nightly.ok)), (0, 1));
        for _ in 0..3 {
            hands.advance(Duration::from_secs(60));
            turn().await;
            turn().await;
        }
        assert_eq!((count(&runs), count(&minutely.ok), count(&broken.failed), count(&refused.failed)), (3, 3, 3, 3));
        assert_eq!((count(&broken.ok), count(&broken.last_success)), (0, 0));
        assert_eq!(count(&minutely.last_success), start.0 + 180_000);
        hands.advance(Duration::from_secs(30 * 60));
        turn().await;
        turn().await;
        assert_eq!(count(&nightly.ok), 2);
    }
}
