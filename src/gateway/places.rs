//! Places: how many users may be on a route at once.
//!
//! Owns who has a place, and how long he keeps it after his last call. A user needs one place, however many calls he makes:
//! their number is the ledger's matter (`limits.in_flight_per_user`). A place is given back by the drop of what the call
//! carries, so that no way of ending can forget it. Never waits, never throws anybody out, and remembers nobody beyond those
//! who have a place.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::{Clock, Monotonic};
use crate::config::{PlacesConfig, RouteConfig};
use crate::domain::ids::UserId;
use crate::error::Reject;

/// Sets of places that are told apart in the metrics; later ones are summed up as `other`.
const MAX_LABELS: usize = 128;

/// The places of one route, or of the routes that share them.
pub struct Places {
    /// The route's path, or the name that routes share.
    name: Arc<str>,
    config: PlacesConfig,
    /// Goes on from one config to the next.
    seats: Arc<Mutex<Seats>>,
}

/// Who has a place. Never more than the most there have been.
#[derive(Default)]
struct Seats {
    taken: HashMap<UserId, Seat>,
    /// Users without a call, by when their places are given up.
    kept: BTreeSet<(Monotonic, UserId)>,
}

struct Seat {
    calls: usize,
    /// Until when it is his, also without a call.
    until: Monotonic,
}

/// A call's share in its user's place; given back when dropped.
#[must_use = "a place that is dropped at once is given back at once"]
pub struct Place<'a> {
    places: &'a Places,
    clock: &'a Clock,
    user: UserId,
    used: bool,
}

impl Places {
    /// Lets a call in whose user has a place, or gets one.
    ///
    /// # Errors
    /// [`Reject::NoPlace`].
    pub fn enter<'a>(&'a self, user: UserId, clock: &'a Clock) -> Result<Place<'a>, Reject> {
        let now = clock.monotonic();
        let mut seats = self.seats.lock();
        seats.give_up(now);
        let Seats { taken, kept } = &mut *seats;
        let inside = taken.len();
        match taken.entry(user) {
            Entry::Occupied(mut entry) => {
                let seat = entry.get_mut();
                if seat.calls == 0 {
                    kept.remove(&(seat.until, user));
                }
                seat.calls += 1;
            }
            Entry::Vacant(entry) if inside < self.config.max_users as usize => {
                entry.insert(Seat { calls: 1, until: Monotonic::default() });
            }
            Entry::Vacant(_) => {
                // The earliest that one can be free: the next that is given up, or one whose last call ends now.
                let retry_after = kept.first().map_or(self.config.kept, |(until, _)| until.since(now));
                return Err(Reject::NoPlace { name: self.name.clone(), limit: self.config.max_users, retry_after });
            }
        }
        Ok(Place { places: self, clock, user, used: false })
    }

    /// Users who have a place.
    pub fn users(&self, now: Monotonic) -> usize {
        let mut seats = self.seats.lock();
        seats.give_up(now);
        seats.taken.len()
    }
}

impl Seats {
    /// Takes back what nobody has come back for.
    fn give_up(&mut self, now: Monotonic) {
        while let Some((until, user)) = self.kept.first().copied().filter(|(until, _)| *until <= now) {
            self.kept.remove(&(until, user));
            self.taken.remove(&user);
        }
    }

    /// A call of this user has ended.
    fn leave(&mut self, user: UserId, now: Monotonic, until: Monotonic) {
        let Some(seat) = self.taken.get_mut(&user) else { return };
        seat.calls = seat.calls.saturating_sub(1);
        seat.until = seat.until.max(until);
        if seat.calls > 0 {
            return;
        }
        if seat.until > now {
            self.kept.insert((seat.until, user));
        } else {
            self.taken.remove(&user);
        }
    }
}

impl Place<'_> {
    /// The call goes to its upstream: from now on it counts for `place_kept`. One that is refused before that keeps
    /// nobody's place, so that calls which cost nothing cannot hold one.
    pub fn is_used(&mut self) {
        self.used = true;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let now = self.clock.monotonic();
        let until = if self.used { now.plus(self.places.config.kept) } else { Monotonic::default() };
        self.places.seats.lock().leave(self.user, now, until);
    }
}

/// All places of a policy.
#[derive(Default)]
pub struct PlaceBook {
    sets: BTreeMap<String, Arc<Places>>,
}

impl PlaceBook {
    /// The places of a route that has a limit. `before`: of the policy before, whose users keep their places.
    pub fn places_of(&mut self, route: &RouteConfig, before: Option<&Self>) -> Option<Arc<Places>> {
        let config = route.places.clone()?;
        // A shared name has no slash and a path begins with one, so neither can stand for the other.
        let key = match &config.shared {
            Some(name) => name.to_string(),
            None => format!("{} {}", route.pattern, route.methods.join(",")),
        };
        let places = self.sets.entry(key).or_insert_with_key(|key| {
            let seats = before.and_then(|before| before.sets.get(key)).map(|places| places.seats.clone());
            let name = config.shared.clone().unwrap_or_else(|| route.pattern.clone());
            Arc::new(Places { name, config, seats: seats.unwrap_or_default() })
        });
        Some(places.clone())
    }

    /// How many users have a place, by the label of the metric.
    pub fn users(&self, now: Monotonic) -> BTreeMap<String, usize> {
        let mut users = BTreeMap::new();
        for places in self.sets.values() {
            let known = users.len() < MAX_LABELS || users.contains_key(&*places.name);
            let label = if known { &*places.name } else { "other" };
            *users.entry(label.to_owned()).or_default() += places.users(now);
        }
        users
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::{ManualClock, UnixMillis};
    use crate::config::{Config, RawConfig};

    const KEPT: Duration = Duration::from_secs(120);

    fn config(route: &str) -> Vec<RouteConfig> {
        let upstream = "[[upstreams]]\nname = \"a\"\nendpoints = [\"http://127.0.0.1:1\"]\n";
        let raw: RawConfig = toml::from_str(&format!("{upstream}{route}")).unwrap();
        Config::from_raw(raw).unwrap().routes
    }

    fn chat(more: &str) -> String {
        format!("[[routes]]\npath = \"/chat\"\nupstream = \"a\"\n{more}\n")
    }

    fn places(more: &str) -> (Arc<Places>, Clock, Arc<ManualClock>) {
        let (clock, hands) = Clock::manual(UnixMillis(1000));
        let routes = config(&chat(more));
        (PlaceBook::default().places_of(&routes[0], None).unwrap(), clock, hands)
    }

    fn refused(places: &Places, user: u64, clock: &Clock) -> Option<u64> {
        match places.enter(UserId(user), clock) {
            Ok(_) => None,
            Err(reject) => Some(reject.retry_after().unwrap()),
        }
    }

    #[test]
    fn a_user_has_one_place_and_leaves_it_with_his_last_call() {
        let (places, clock, _) = places("max_users = 2");
        let first = [places.enter(UserId(1), &clock).unwrap(), places.enter(UserId(1), &clock).unwrap()];
        let second = places.enter(UserId(2), &clock).unwrap();
        assert_eq!(refused(&places, 3, &clock), Some(1));
        let [one, other] = first;
        drop(one);
        assert_eq!((places.users(clock.monotonic()), refused(&places, 3, &clock)), (2, Some(1)));
        drop(other);
        assert_eq!(refused(&places, 3, &clock), None);
        drop(second);
        let seats = places.seats.lock();
        assert!(seats.taken.is_empty() && seats.kept.is_empty());
    }

    #[test]
    fn a_place_is_kept_after_the_last_call_that_was_made_and_no_longer() {
        let (places, clock, hands) = places("max_users = 1\nplace_kept = \"2m\"");
        let call = |user: u64| {
            let mut place = places.enter(UserId(user), &clock).unwrap();
            place.is_used();
            place
        };
        let running = call(1);
        assert_eq!(refused(&places, 2, &clock), Some(120), "at the earliest, when that call ends now");
        drop(running);
        hands.advance(Duration::from_secs(100));
        assert_eq!(refused(&places, 2, &clock), Some(20));
        // A call that comes to nothing prolongs nothing.
        drop(places.enter(UserId(1), &clock).unwrap());
        hands.advance(Duration::from_secs(19));
        assert_eq!(refused(&places, 2, &clock), Some(1));
        drop(call(1));
        hands.advance(Duration::from_secs(119));
        assert_eq!(refused(&places, 2, &clock), Some(1), "his further call began the time anew");
        let running = call(1);
        hands.advance(KEPT * 3);
        assert_eq!(places.users(clock.monotonic()), 1, "no time ends a call");
        drop(running);
        hands.advance(KEPT);
        assert_eq!(refused(&places, 2, &clock), None);
        assert_eq!(places.users(clock.monotonic()), 0, "who was let in and did nothing keeps no place");
    }

    #[test]
    fn what_is_remembered_is_bounded_by_the_places() {
        let (places, clock, hands) = places("max_users = 10\nplace_kept = \"2m\"");
        for round in 0..1000 {
            if let Ok(mut place) = places.enter(UserId(round % 50), &clock) {
                place.is_used();
            }
            hands.advance(Duration::from_millis(700));
            let seats = places.seats.lock();
            assert!(seats.taken.len() <= 10 && seats.kept.len() <= 10);
        }
    }

    #[test]
    fn places_are_a_route_s_own_or_shared_by_name_and_go_on_over_a_reload() {
        let shared = "max_users = 2\nplaces = \"chat\"";
        let routes = config(&format!(
            "{}{}{}{}",
            chat(shared),
            chat(shared).replace("/chat", "/ws"),
            chat("max_users = 5").replace("/chat", "/a"),
            chat("max_users = 6\nmethods = [\"GET\"]").replace("/chat", "/a"),
        ));
        let mut book = PlaceBook::default();
        let sets: Vec<_> = routes.iter().map(|route| book.places_of(route, None).unwrap()).collect();
        assert!(Arc::ptr_eq(&sets[0], &sets[1]) && !Arc::ptr_eq(&sets[2], &sets[3]));
        assert!(book.places_of(&config(&chat(""))[0], None).is_none());
        let (clock, _) = Clock::manual(UnixMillis(1000));
        let inside = sets[0].enter(UserId(1), &clock).unwrap();
        let _also = (sets[2].enter(UserId(1), &clock).unwrap(), sets[3].enter(UserId(2), &clock).unwrap());
        let users = book.users(clock.monotonic());
        assert_eq!(users, BTreeMap::from([("chat".to_owned(), 1), ("/a".to_owned(), 2)]));

        let smaller = shared.replace("= 2", "= 1");
        let after = PlaceBook::default().places_of(&config(&chat(&smaller))[0], Some(&book)).unwrap();
        assert!(matches!(after.enter(UserId(2), &clock), Err(Reject::NoPlace { limit: 1, .. })));
        drop(inside);
        assert!(after.enter(UserId(2), &clock).is_ok(), "a call of the old config gives its place to the new one");
    }
}
