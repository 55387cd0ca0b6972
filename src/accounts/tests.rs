//! The service as a whole, on the memory store and a clock moved by hand.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::blocks::Port;
use super::credits::Whose;
use super::guesses::Shown;
use super::keys::{CredentialKind, find_credential};
use super::passwords::{Password, Rule};
use super::registration::{Registered, Registration};
use super::secrets::Pepper;
use super::sessions::LoginRequest;
use super::staff::NewStaff;
use super::users::{AdminUpdate, MeterUpdate};
use super::{Accounts, AccountsParts, Settings};
use crate::actors::audit::{Audit, AuditConfig, ChainKey};
use crate::actors::user::actor::Surroundings;
use crate::actors::user::ledger::Recovery;
use crate::actors::user::once::{KeptBytes, OnceLimits};
use crate::actors::user::registry::Registry;
use crate::actors::writer::{ConversationEntry, Filter, Journal, JournalConfig};
use crate::clock::{Clock, ManualClock, UnixMillis};
use crate::config::Config;
use crate::domain::addresses::{RuleKind, Verdict, parse_network};
use crate::domain::ids::UserId;
use crate::domain::key::KeyLook;
use crate::domain::meters::{Micro, ResetHour};
use crate::domain::session::{SessionStyle, StaffRole};
use crate::domain::user::{Profile, Status, UserType};
use crate::error::Reject;
use crate::store::committer::{CommitPace, Committer};
use crate::store::memory::MemoryStore;
use crate::store::{Order, Store};
use crate::telemetry::metrics::Metrics;

pub(crate) const PASSWORD: &str = "SecurePass123";
pub(crate) const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

/// Everything the service needs, and hands on the clock.
pub(crate) struct World {
    pub(crate) accounts: Arc<Accounts>,
    pub(crate) users: Arc<Registry>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) hands: Arc<ManualClock>,
    pub(crate) journal: Journal,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) fn world(toml: &str) -> World {
    let rows = Arc::<MemoryStore>::default();
    world_on(toml, rows.clone(), rows)
}

/// On a store that keeps what it is given in `rows`.
pub(crate) fn world_on(toml: &str, store: Arc<dyn Store>, rows: Arc<MemoryStore>) -> World {
    let config = Config::parse("test.toml", toml, std::iter::empty()).unwrap();
    let metrics = Arc::new(Metrics::new(0));
    let pace = CommitPace { gap: Duration::ZERO, row_gap: Duration::ZERO, max_pending: 1000 };
    let committer = Committer::start(store, pace, metrics.clone()).unwrap();
    let (clock, hands) = Clock::manual(UnixMillis::parse_rfc3339("2026-01-15T12:00:00Z").unwrap());
    let around = Surroundings {
        clock: clock.clone(),
        committer: committer.clone(),
        metrics: metrics.clone(),
        reset_hour: ResetHour::default(),
        recovery: Recovery::Charge,
        once: OnceLimits { window: Duration::from_secs(86_400), answer_bytes: 1 << 16, total_bytes: 1 << 20 },
        kept: KeptBytes::default(),
        holds_open: AtomicI64::new(0),
        generations: AtomicU64::new(0),
        resets: AtomicU64::new(0),
        plans: ArcSwap::from_pointee(config.plans.clone()),
    };
    let users = Arc::new(Registry::new(Arc::new(around), 10_000, 60_000));
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::start(JournalConfig::new(dir.path().join("journal")), Arc::new(|| 0)).unwrap();
    let audit = AuditConfig::new(dir.path().join("audit"));
    let audit = Audit::start(audit, clock.clone(), ChainKey::new([7; 32]), committer.clone()).unwrap();
    let parts = AccountsParts {
        audit,
        committer,
        users: users.clone(),
        journal: journal.clone(),
        metrics,
        clock,
        settings: Settings::from(&config),
        pepper: Pepper::new(&[7; 32]).unwrap(),
        sealer: super::seal::Sealer::new(&[8; 32]).unwrap(),
        tokens: super::jwt::TokenMint::eddsa(&config.accounts.tokens, &[&[9; 32]]).unwrap(),
    };
    World { accounts: Arc::new(Accounts::new(parts).unwrap()), users, store: rows, hands, journal, dir }
}

impl World {
    pub(crate) async fn register(&self, username: &str) -> Registered {
        self.try_register(username, &format!("{username}@example.com")).await.unwrap()
    }

    async fn try_register(&self, username: &str, email: &str) -> Result<Registered, Reject> {
        let new = Registration {
            username: username.to_owned(),
            name: "John Doe".to_owned(),
            email: email.to_owned(),
            password: Password::new(PASSWORD).unwrap(),
            user_type: UserType::Personal,
            about_me: String::new(),
            hobbies: String::new(),
            profile: Profile::default(),
            rule: Rule::Composition,
            key_look: KeyLook::Canonical,
        };
        self.accounts.register(new, None).await
    }

    async fn login(&self, identifier: &str, password: &str) -> Result<String, Reject> {
        Ok(self.accounts.login(login_request(identifier, password)).await?.1.session_token.expose().to_owned())
    }

    fn finds(&self, credential: &str) -> Option<CredentialKind> {
        let mac = self.accounts.pepper().mac(credential.as_bytes());
        let (tokens, now) = (self.accounts.tokens(), self.accounts.clock().now());
        find_credential(&*self.store, tokens, credential.as_bytes(), &mac, now).unwrap().map(|found| found.kind)
    }

    fn standing(&self, id: UserId) -> Status {
        self.users.actor(id).unwrap().unwrap().standing().status
    }

    fn generation(&self, id: UserId) -> u64 {
        self.users.actor(id).unwrap().unwrap().generation()
    }

    /// All bytes of all rows.
    pub(crate) fn dump(&self) -> Vec<u8> {
        let rows = self.store.range(&[], &[0xff; 4], usize::MAX, Order::Ascending).unwrap();
        rows.into_iter().flat_map(|(key, value)| [key, value].concat()).collect()
    }
}

fn login_request(identifier: &str, password: &str) -> LoginRequest {
    LoginRequest {
        identifier: identifier.to_owned(),
        password: Password::new(password).unwrap(),
        code: None,
        unique_code: None,
        factors: Default::default(),
        address: HERE,
        request: None,
        user_agent: Some("test".into()),
        device: None,
        style: SessionStyle::default(),
    }
}

pub(crate) fn holds(bytes: &[u8], secret: &str) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
}

fn shown(text: &str) -> Shown<'_> {
    Shown::new(text, HERE)
}

fn unauthenticated<T>(result: &Result<T, Reject>) -> bool {
    matches!(result, Err(Reject::Unauthenticated))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_registrations_of_one_name_one_wins_and_numbers_have_no_gaps() {
    let world = Arc::new(world("[accounts]\nhash_queue = 100"));
    let race = |n: usize| {
        let world = world.clone();
        // Every other one wants the same name in another case, each with an email of its own.
        let name = if n.is_multiple_of(2) { ["same", "SAME"][n / 2 % 2].to_owned() } else { format!("user-{n}") };
        tokio::spawn(async move { world.try_register(&name, &format!("u{n}@example.com")).await })
    };
    let tasks: Vec<_> = (0..16).map(race).collect();
    let mut made = Vec::new();
    for task in tasks {
        match task.await.unwrap() {
            Ok(registered) => made.push(registered.user.id.0),
            Err(reject) => assert!(matches!(reject, Reject::Conflict(_)), "{reject:?}"),
        }
    }
    made.sort_unstable();
    assert_eq!(made, (1..=9).collect::<Vec<_>>());
    let again = world.try_register("other", "U1@Example.com").await;
    assert!(matches!(again, Err(Reject::Conflict(why)) if why.contains("email")));
}

#[tokio::test]
async fn a_key_and_a_session_are_found_until_they_end() {
    let world = world("");
    let made = world.register("johndoe").await;
    let id = made.user.id;
    assert!(matches!(world.finds(made.api_key.expose()), Some(CredentialKind::ApiKey { .. })));
    assert_eq!(world.finds("pe-00000000000000000000000000000000"), None);
    let session = world.login("JohnDoe", PASSWORD).await.unwrap();
    assert!(matches!(world.finds(&session), Some(CredentialKind::Session { .. })));
    // A session lasts its hours; a key lasts.
    world.hands.advance(Duration::from_secs(24 * 3600));
    assert_eq!(world.finds(&session), None);
    assert!(unauthenticated(&world.accounts.user_of_session(shown(&session))));
    let before = world.generation(id);
    let fresh = world.accounts.regenerate_key(id, super::proof::Word::Owner).await.unwrap();
    assert!(world.finds(made.api_key.expose()).is_none() && world.finds(fresh.expose()).is_some());
    assert_ne!(world.generation(id), before, "workers must read credentials again");
    assert_eq!(world.accounts.keys(id).unwrap().len(), 1);
}

#[tokio::test]
async fn refreshing_rotates_both_tokens_and_does_not_prolong() {
    let world = world("");
    world.register("johndoe").await;
    let (_, first) = world.accounts.login(login_request("johndoe@EXAMPLE.com", PASSWORD)).await.unwrap();
    let old_refresh = first.refresh_token.as_ref().unwrap().expose();
    world.hands.advance(Duration::from_secs(20 * 24 * 3600));
    assert_eq!(world.finds(first.session_token.expose()), None);
    let second = world.accounts.refresh(shown(old_refresh)).await.unwrap();
    assert!(world.finds(second.session_token.expose()).is_some());
    assert_eq!(second.refresh_expires_at, first.refresh_expires_at);
    let again = world.accounts.refresh(shown(old_refresh)).await.unwrap();
    assert_eq!(again.session_token.expose(), second.session_token.expose(), "the answer may not have arrived");
    assert!(
        unauthenticated(&world.accounts.refresh(shown(second.session_token.expose())).await),
        "not a refresh token"
    );
    assert!(unauthenticated(&world.accounts.user_of_session(shown(second.refresh_token.as_ref().unwrap().expose()))));
    world.hands.advance(Duration::from_secs(10 * 24 * 3600));
    assert!(
        unauthenticated(&world.accounts.refresh(shown(second.refresh_token.unwrap().expose())).await),
        "30 days are over"
    );
}

#[tokio::test]
async fn a_logout_ends_token_and_refresh_token() {
    let world = world("");
    let id = world.register("johndoe").await.user.id;
    let (one, other) =
        (world.login("johndoe", PASSWORD).await.unwrap(), world.login("johndoe", PASSWORD).await.unwrap());
    let before = world.generation(id);
    world.accounts.logout(shown(&one)).await.unwrap();
    assert!(world.generation(id) != before && world.finds(&one).is_none() && world.finds(&other).is_some());
    assert!(unauthenticated(&world.accounts.logout(shown(&one)).await));
}

#[tokio::test]
async fn sessions_of_one_user_are_bounded() {
    let world = world("");
    let id = world.register("johndoe").await.user.id;
    // Logins without the hash: its cost is not what this is about.
    let mut tokens = Vec::new();
    for _ in 0..super::sessions::MAX_SESSIONS + 3 {
        tokens.push(world.login("johndoe", PASSWORD).await.unwrap());
        world.hands.advance(Duration::from_secs(1));
    }
    assert_eq!(world.accounts.load_sessions(id).unwrap().len(), super::sessions::MAX_SESSIONS);
    assert!(world.finds(&tokens[2]).is_none() && world.finds(&tokens[3]).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_guesses_cannot_outrun_the_lock() {
    let world = Arc::new(world("[accounts]\nhash_queue = 100\n[access]\nblock_after_failures = 0"));
    world.register("johndoe").await;
    for name in ["johndoe", "nobody"] {
        let guess = |n: usize| {
            let world = world.clone();
            tokio::spawn(async move { world.login(name, &format!("wrong{n}")).await })
        };
        let tasks: Vec<_> = (0..40).map(guess).collect();
        let (mut wrong, mut locked) = (0, 0);
        for task in tasks {
            match task.await.unwrap() {
                Err(Reject::Unauthenticated) => wrong += 1,
                Err(Reject::Locked { .. }) => locked += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((wrong, locked), (5, 35), "{name}");
    }
    // Locked whatever the password, under either name, until the hour is over.
    for name in ["johndoe", "johndoe@example.com"] {
        assert!(matches!(world.login(name, PASSWORD).await, Err(Reject::Locked { .. })), "{name}");
    }
    world.hands.advance(Duration::from_secs(3601));
    let logins: Vec<_> = (0..20)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move { world.login("johndoe", PASSWORD).await })
        })
        .collect();
    for login in logins {
        login.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn failed_logins_block_the_address_too() {
    let world = world("[accounts]\nmax_failed_logins = 0\n[access]\nblock_after_failures = 3");
    let at = |world: &World| {
        world.accounts.blocks().blocked_for(HERE, Port::Public, world.accounts.clock().monotonic()).is_some()
    };
    for n in 0..3 {
        assert!(!at(&world));
        assert!(unauthenticated(&world.login(&format!("nobody{n}"), "x").await));
    }
    assert!(at(&world));
    world.hands.advance(Duration::from_secs(15 * 60));
    world.accounts.sweep().await;
    assert!(!at(&world) && world.accounts.blocks().tracked() == 0);
}

#[tokio::test]
async fn standing_is_in_force_when_the_call_returns() {
    let world = world("");
    let made = world.register("johndoe").await;
    let id = made.user.id;
    let session = world.login("johndoe", PASSWORD).await.unwrap();
    assert_eq!(world.standing(id), Status::Active);
    world.accounts.suspend(id, Some("late".into())).await.unwrap();
    assert_eq!(world.standing(id), Status::Suspended);
    assert!(matches!(world.accounts.user_of_session(shown(&session)), Err(Reject::Forbidden(_))));
    assert!(matches!(world.login("johndoe", PASSWORD).await, Err(Reject::Forbidden(_))));
    world.accounts.activate(id).await.unwrap();
    assert_eq!(world.standing(id), Status::Active);
    world.accounts.user_of_session(shown(&session)).unwrap();
    world.accounts.ban(id, None).await.unwrap();
    assert_eq!(world.standing(id), Status::Banned);
    assert!(matches!(world.accounts.suspend(UserId(99), None).await, Err(Reject::NotFound)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_never_contradicts_the_disk_after_racing_changes() {
    let world = Arc::new(world(""));
    let id = world.register("johndoe").await.user.id;
    for _ in 0..50 {
        let tasks: Vec<_> = (0..4)
            .map(|n| {
                let accounts = world.accounts.clone();
                tokio::spawn(async move {
                    if n % 2 == 0 { accounts.suspend(id, None).await } else { accounts.activate(id).await }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(world.standing(id), world.accounts.user(id).unwrap().status);
    }
}

#[tokio::test]
async fn a_change_goes_on_when_its_caller_leaves() {
    let world = world("");
    let id = world.register("johndoe").await.user.id;
    world.standing(id);
    let mut call = Box::pin(world.accounts.suspend(id, None));
    // One poll sends the commit; then the client is gone.
    assert!(futures_poll(&mut call).await.is_none());
    drop(call);
    for _ in 0..10_000 {
        if world.standing(id) == Status::Suspended {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the suspension is on disk and not in force");
}

/// Polls once.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn a_deleted_user_leaves_nothing_that_opens_and_frees_his_names() {
    let world = world("");
    let made = world.register("johndoe").await;
    let session = world.login("johndoe", PASSWORD).await.unwrap();
    world.accounts.delete_user(made.user.id, Some("asked".into())).await.unwrap();
    assert!(world.finds(made.api_key.expose()).is_none() && world.finds(&session).is_none());
    assert!(unauthenticated(&world.login("johndoe", PASSWORD).await));
    assert!(matches!(
        world.accounts.regenerate_key(made.user.id, super::proof::Word::Owner).await,
        Err(Reject::NotFound)
    ));
    assert!(matches!(world.accounts.activate(made.user.id).await, Err(Reject::NotFound)));
    assert_eq!(world.standing(made.user.id), Status::Deleted);
    let again = world.register("JohnDoe").await;
    assert_ne!(again.user.id, made.user.id);
    let counts = world.accounts.statistics().await.unwrap();
    assert_eq!((counts.total, counts.active, counts.deleted), (2, 1, 1));
}

#[tokio::test]
async fn staff_sets_meters_through_the_actor_and_a_plan_never_takes() {
    let world = world("");
    let id = world.register("johndoe").await.user.id;
    let meter = |name: &str| {
        let meters = world.accounts.meters(id).unwrap();
        let found = meters.into_iter().find(|m| m.name.as_str() == name).unwrap();
        (found.meter.balance.whole_units(), found.meter.reset.whole_units())
    };
    assert_eq!((meter("credits"), meter("conversations")), ((5, 5), (10, 10)));
    let to = |n| MeterUpdate { balance: Micro::units(n), reset: Micro::units(n) };
    let update = AdminUpdate { credits: Some(to(100)), conversations: Some(to(3)), ..AdminUpdate::default() };
    world.accounts.update_user(id, update).await.unwrap();
    assert_eq!((meter("credits"), meter("conversations")), ((100, 100), (3, 3)));
    let update = AdminUpdate { plan: Some("premium".into()), ..AdminUpdate::default() };
    assert_eq!(&*world.accounts.update_user(id, update).await.unwrap().plan, "professional");
    assert_eq!((meter("credits"), meter("conversations")), ((20_000, 20_000), (10, 10)));
    let update = AdminUpdate { plan: Some("free".into()), ..AdminUpdate::default() };
    world.accounts.update_user(id, update).await.unwrap();
    assert_eq!(meter("credits"), (20_000, 5));
    assert_eq!(world.accounts.reset_limits(Whose::One(id), "root").await.unwrap(), 1);
    assert_eq!(meter("credits"), (5, 5));
    assert_eq!(world.accounts.reset_limits(Whose::Everybodys, "root").await.unwrap(), 1);
    let nobody = Whose::One(UserId(9));
    assert!(matches!(world.accounts.reset_limits(nobody, "root").await, Err(Reject::NotFound)));
    let update = AdminUpdate { plan: Some("gold".into()), ..AdminUpdate::default() };
    assert!(matches!(world.accounts.update_user(id, update).await, Err(Reject::Invalid(_))));
}

#[tokio::test]
async fn an_email_moves_with_its_user_and_stays_unique() {
    let world = world("");
    let one = world.register("one").await.user.id;
    world.register("two").await;
    let to = |email: &str| AdminUpdate { email: Some(email.into()), ..AdminUpdate::default() };
    let taken = world.accounts.update_user(one, to("TWO@example.com")).await;
    assert!(matches!(taken, Err(Reject::Conflict(_))));
    world.accounts.update_user(one, to("New@example.com")).await.unwrap();
    assert!(world.login("new@example.com", PASSWORD).await.is_ok());
    assert!(unauthenticated(&world.login("one@example.com", PASSWORD).await));
    world.accounts.update_user(one, to("NEW@example.com")).await.unwrap();
    assert!(world.try_register("three", "one@example.com").await.is_ok(), "the old address is free");
}

#[tokio::test]
async fn what_would_not_fit_a_row_is_refused() {
    let world = world("");
    let id = world.register("johndoe").await.user.id;
    let wide = "𝄞".repeat(1000);
    let profile = super::users::ProfileUpdate { about_me: Some(wide), ..super::users::ProfileUpdate::default() };
    assert!(matches!(world.accounts.update_profile(id, profile).await, Err(Reject::Invalid(_))));
}

#[tokio::test]
async fn the_first_superadmin_is_made_once() {
    let world = world("");
    let accounts = &world.accounts;
    let password = || Password::new(PASSWORD).unwrap();
    assert!(accounts.first_superadmin("root", Password::new("weak").unwrap(), None, Rule::Composition).await.is_err());
    assert!(accounts.first_superadmin("root", password(), None, Rule::Composition).await.unwrap().is_some());
    assert_eq!(accounts.first_superadmin("other", password(), None, Rule::Composition).await.unwrap(), None);
    let (staff, view) = accounts.staff_login("ROOT", password(), None, HERE).await.unwrap();
    assert_eq!(staff.role, StaffRole::Superadmin);
    let token = view.session_token.expose();
    assert_eq!(accounts.staff_of_token(shown(token), StaffRole::Superadmin).unwrap().username, "root");
    assert_eq!(world.finds(token), None, "a session of the staff opens nothing on the public side");
    assert!(unauthenticated(&accounts.user_of_session(shown(token))));
    let new = NewStaff {
        username: "admin".into(),
        name: "A".into(),
        email: "a@b.c".into(),
        password: password(),
        role: StaffRole::Admin,
        rule: Rule::Composition,
    };
    accounts.create_staff(new).await.unwrap();
    let (_, view) = accounts.staff_login("admin", password(), None, HERE).await.unwrap();
    let token = view.session_token.expose();
    assert!(matches!(accounts.staff_of_token(shown(token), StaffRole::Superadmin), Err(Reject::Forbidden(_))));
    world.hands.advance(Duration::from_secs(24 * 3600));
    assert!(unauthenticated(&accounts.staff_of_token(shown(token), StaffRole::New)));
    for _ in 0..5 {
        assert!(unauthenticated(&accounts.staff_login("admin", Password::new("x").unwrap(), None, HERE).await));
    }
    assert!(matches!(accounts.staff_login("admin", password(), None, HERE).await, Err(Reject::AddressBlocked { .. })));
    let elsewhere = "198.51.100.1".parse().unwrap();
    assert!(matches!(accounts.staff_login("admin", password(), None, elsewhere).await, Err(Reject::Locked { .. })));
}

#[tokio::test]
async fn address_rules_are_in_force_when_made_and_out_when_removed_or_expired() {
    let world = world("[access]\ndeny = [\"10.0.0.0/8\"]");
    let (book, now) = (world.accounts.addresses().clone(), world.accounts.clock().now());
    let rule = |network: &str, kind, expires_at| super::addresses::NewRule {
        kind,
        network: parse_network(network).unwrap(),
        description: Some("office".into()),
        expires_at,
        created_by: "root".into(),
    };
    let ip: IpAddr = "10.1.2.3".parse().unwrap();
    assert!(!book.admits(ip, now));
    let made =
        book.add(rule("10.1.0.0/16", RuleKind::Allow, Some(now.plus(Duration::from_secs(60)))), now).await.unwrap();
    assert_eq!(book.verdict(ip, now), Verdict::Allowed);
    let stays = book.add(rule("192.0.2.0/24", RuleKind::Deny, None), now).await.unwrap();
    assert_eq!((made.id, stays.id, book.list(None, 1, 10).1), (1, 2, 2));
    assert!(matches!(book.add(rule("::/0", RuleKind::Deny, Some(now)), now).await, Err(Reject::Invalid(_))));
    // They are still there after a restart.
    let reopened = super::addresses::AddressBook::open(
        world.accounts.committer.clone(),
        world.accounts.metrics.clone(),
        &world.accounts.settings().access,
    )
    .unwrap();
    assert_eq!((reopened.verdict(ip, now), reopened.list(None, 1, 10).1), (Verdict::Allowed, 2));
    world.hands.advance(Duration::from_secs(60));
    let later = world.accounts.clock().now();
    assert_eq!(book.verdict(ip, later), Verdict::Denied);
    world.accounts.sweep().await;
    assert_eq!(book.list(None, 1, 10).1, 1);
    assert!(matches!(book.remove(stays.id, Some(RuleKind::Allow)).await, Err(Reject::NotFound)));
    book.remove(stays.id, None).await.unwrap();
    assert_eq!(book.verdict(HERE, later), Verdict::Unmatched);
    assert!(matches!(book.remove(stays.id, None).await, Err(Reject::NotFound)));
    book.reconfigure(&crate::config::Access { whitelist: true, ..crate::config::Access::default() });
    assert!(!book.admits(ip, later));
}

#[tokio::test]
async fn a_users_conversations_come_newest_first() {
    let world = world("");
    let id = world.register("johndoe").await.user.id;
    for n in 0..3u64 {
        world.journal.emit(&ConversationEntry {
            user_id: id.0,
            username: "johndoe",
            email: "johndoe@example.com",
            model: &format!("model-{n}"),
            request: b"[]",
            request_is_json: false,
            response: b"hi",
            research_enabled: false,
            r_type: None,
            tokens_used: 1,
            input_tokens: 1,
            output_tokens: 0,
            processing_time_ms: 1,
            ip_address: HERE,
            timestamp_ms: n * 1000,
            route: "/v1/*",
            request_id: "req",
            status: 200,
            truncated: false,
            outcome: "ok",
        });
    }
    let page = world.accounts.message_log(id, Filter::default(), 1, 2).await.unwrap();
    assert_eq!((page.total, page.items.len()), (3, 2));
    assert!(page.items[0].contains("model-2"));
}

#[tokio::test]
async fn a_hash_of_an_older_system_is_replaced_at_the_first_login() {
    let world = world("[accounts]\nmax_failed_logins = 0\n[access]\nblock_after_failures = 0\n");
    let id = world.register("johndoe").await.user.id;
    // 72 bytes are all that bcrypt looks at; the password has one more.
    let long = format!("{}b", "a".repeat(72));
    let bcrypted = bcrypt::hash(&long[..72], 4).unwrap();
    let digest: [u8; 32] = sha2::Digest::finalize(sha2::Digest::chain_update(
        <sha2::Sha256 as sha2::Digest>::new(),
        b"saltsecure_password",
    ))
    .into();
    let salted = format!("sha256$salt${}", digest.iter().map(|b| format!("{b:02x}")).collect::<String>());
    for (hash, password, other) in
        [(bcrypted, long.as_str(), format!("{}c", "a".repeat(72))), (salted, "secure_password", "x".into())]
    {
        let set = |user: &mut crate::domain::user::User, _: &mut crate::store::Batch| {
            user.password_hash = Some(hash.clone());
            Ok(())
        };
        world.accounts.change_user(id, super::Forget::Nothing, set).await.unwrap();
        assert!(unauthenticated(&world.login("johndoe", "wrong").await));
        world.login("johndoe", password).await.unwrap();
        let now = world.accounts.user(id).unwrap().password_hash.unwrap();
        assert!(now.starts_with("$argon2id$"), "{now}");
        world.login("johndoe", password).await.unwrap();
        assert!(unauthenticated(&world.login("johndoe", &other).await), "every byte counts now");
    }
}

#[tokio::test]
async fn a_session_that_is_refreshed_meanwhile_is_not_closed_half() {
    let world = world("");
    let id = world.register("johndoe").await.user.id;
    let (_, first) = world.accounts.login(login_request("johndoe", PASSWORD)).await.unwrap();
    // Somebody is about to end it, and has read it as it was.
    let read = world.accounts.load_sessions(id).unwrap();
    let second = world.accounts.refresh(shown(first.refresh_token.as_ref().unwrap().expose())).await.unwrap();
    let mut batch = crate::store::Batch::default();
    for (mac, row) in &read {
        super::sessions::close_session(mac, row, &mut batch);
    }
    let late = world.accounts.commit_for_user(id, batch, super::Forget::Credentials).await;
    assert!(matches!(late, Err(crate::store::StoreError::Conflict { .. })), "{late:?}");
    // Still in the list, so that it can be ended; then nothing of it opens.
    assert_eq!(world.accounts.sessions(id, None).unwrap().len(), 1);
    assert_eq!(world.accounts.revoke_sessions(id, None).await.unwrap(), 1);
    assert_eq!(world.finds(second.session_token.expose()), None);
    assert!(unauthenticated(&world.accounts.refresh(shown(second.refresh_token.unwrap().expose())).await));
}

#[tokio::test]
async fn a_user_who_came_back_is_purged_when_he_goes_again_and_not_before() {
    let day = Duration::from_secs(86_400);
    let world = world("[accounts.deletion]\nkeep_days = 30");
    let id = world.register("johndoe").await.user.id;
    world.accounts.delete_user(id, None).await.unwrap();
    // The operator has another time kept before he is brought back.
    let config = Config::parse("test.toml", "[accounts.deletion]\nkeep_days = 60", std::iter::empty()).unwrap();
    world.accounts.reconfigure(Settings::from(&config));
    world.accounts.restore_user(id).await.unwrap();
    world.hands.advance(20 * day);
    world.accounts.delete_user(id, None).await.unwrap();
    world.hands.advance(20 * day);
    assert_eq!(world.accounts.purge_deleted().await.unwrap(), 0, "not under the time of his first deletion");
    world.accounts.restore_user(id).await.unwrap();
}

#[tokio::test]
async fn a_name_in_other_letters_is_locked_alike_whether_or_not_it_has_an_account() {
    let world = world("[access]\nblock_after_failures = 0");
    world.register("johndoe").await;
    for names in [["johndoe", "JohnDoe", "ｊｏｈｎｄｏｅ"], ["nobody", "NoBody", "ｎｏｂｏｄｙ"]] {
        for n in 0..5 {
            assert!(unauthenticated(&world.login(names[n % 3], "WrongPass1").await));
        }
        for name in names {
            assert!(matches!(world.login(name, "WrongPass1").await, Err(Reject::Locked { .. })), "{name}");
        }
    }
}
