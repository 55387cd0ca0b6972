//! What must hold after every restart, whatever happened before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate::actors::writer::JournalReader;

use crate::client::{Call, Cost, Fate, GRANTED_USER, Grants, Repeated, Seen, USERS, repeat};
use crate::site::{Gateway, Recovery, Site, User};
use crate::upstream::{Tally, text_for};
use crate::wire::Conn;

/// What broke, in words; `Ok` when nothing did.
pub type Verdict<T = ()> = Result<T, String>;

pub const METERS: [&str; 2] = ["conversations", "credits"];

/// How often, and how far apart, a journal that does not look sound beside a running server is looked at again.
const VERIFY_TRIES: u32 = 40;
/// The same where holes are to be expected.
const VERIFY_TRIES_WITH_HOLES: u32 = 3;
const VERIFY_PAUSE: Duration = Duration::from_millis(50);
/// Calls sent again after one restart.
const MAX_REPEATS: usize = 40;
/// How long holds may stay open once nobody calls.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
/// Longest list of amounts that a set of calls in doubt may have come to.
const MAX_SUMS: usize = 200_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    pub balance: i64,
    pub held: i64,
    pub spent: i64,
    pub granted: i64,
}

/// What is known of one data folder.
pub struct Books {
    pub users: Vec<User>,
    pub token: String,
    /// How each user's meters stood when the last check was done.
    numbers: Vec<[Numbers; 2]>,
    grants: Grants,
    /// Balances of the granted account that a check has seen: never to be less again.
    floors: [i64; 2],
    /// Calls whose charge has not been looked at since.
    open_calls: Vec<Call>,
    /// Every call ever made, and who made it.
    made: HashMap<String, usize>,
    /// Acknowledged conversation records.
    records: BTreeMap<u64, Value>,
    /// Records that must at least be in the journal.
    least_records: u64,
    /// Records in the journal when the process began that runs now.
    counted: u64,
}

/// What one check saw, for the final figures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checked {
    pub calls: u64,
    pub acknowledged: u64,
    pub in_doubt: u64,
    /// Calls that were sent again.
    pub repeated: u64,
    pub records: u64,
    /// The journal has holes where nothing was acknowledged.
    pub holes: bool,
}

impl Books {
    /// Makes the users and the admin's session on a fresh folder.
    pub fn open(gateway: &Gateway) -> Verdict<Self> {
        let token = gateway.login();
        let users: Vec<User> = (0..USERS).map(|n| gateway.register(&format!("user{n}"))).collect();
        let mut books = Self {
            users,
            token,
            numbers: Vec::new(),
            grants: Grants::default(),
            floors: [0; 2],
            open_calls: Vec::new(),
            made: HashMap::new(),
            records: BTreeMap::new(),
            least_records: 0,
            counted: 0,
        };
        books.numbers = books.read_numbers(gateway)?;
        Ok(books)
    }

    pub fn grants(&self) -> Grants {
        self.grants
    }

    /// Takes over what the clients saw.
    pub fn note(&mut self, seen: Seen) -> Verdict {
        for call in &seen.calls {
            self.made.insert(call.id.clone(), call.user);
        }
        self.open_calls.extend(seen.calls);
        self.records.extend(seen.records);
        self.least_records = self.least_records.max(self.counted + seen.written);
        self.grants = seen.grants;
        match seen.complaints.first() {
            Some(first) => Err(format!("{} complaints, the first: {first}", seen.complaints.len())),
            None => Ok(()),
        }
    }

    /// Counts the journal's records while no process runs: its own counter begins at zero.
    pub fn count_records(&mut self, site: &Site) -> Verdict {
        let failed = |e: std::io::Error| format!("the journal cannot be read: {e}");
        self.counted = 0;
        // The next start ends a restore that was cut off; until then the journal may wait there.
        let waiting = site.data.join("restore.ready/journal");
        let dir = if waiting.exists() { waiting } else { site.data.join("journal") };
        let reader = JournalReader::open(dir).map_err(failed)?;
        reader
            .for_each(|_| {
                self.counted += 1;
                Ok(())
            })
            .map_err(failed)
    }

    fn read_numbers(&self, gateway: &Gateway) -> Verdict<Vec<[Numbers; 2]>> {
        self.users.iter().map(|user| self.read_user(gateway, user)).collect()
    }

    fn read_user(&self, gateway: &Gateway, user: &User) -> Verdict<[Numbers; 2]> {
        let answer = gateway.admin(&self.token, "GET", &format!("/v1/admin-panel/users/{}", user.id), None);
        if answer.status != Some(200) {
            return Err(format!("user {} is answered {:?}: {}", user.id, answer.status, answer.text()));
        }
        let meters = &answer.json()["user"]["meters"];
        let read = |meter: &str| -> Verdict<Numbers> {
            let whole = |part: &str| {
                let number = meters[meter][part].as_f64().filter(|n| n.fract() == 0.0);
                number.map(|n| n as i64).ok_or_else(|| format!("user {}: {meter}.{part}: {meters}", user.id))
            };
            Ok(Numbers {
                balance: whole("balance")?,
                held: whole("held")?,
                spent: whole("spent")?,
                granted: whole("granted")?,
            })
        };
        Ok([read(METERS[0])?, read(METERS[1])?])
    }

    /// Sends calls again that have a key: those nobody answered, and some others. Afterwards all that follows is on disk.
    pub fn repeat(&mut self, gateway: &Gateway, random: &mut fastrand::Rng) -> Verdict {
        let mut answered = Vec::new();
        let mut conn = Conn::open(gateway.public).map_err(|e| format!("nobody listens: {e}"))?;
        for (nth, call) in self.open_calls.iter_mut().enumerate() {
            let wanted = call.keyed && (call.fate == Fate::Unknown || random.u8(0..20) == 0);
            if !wanted || answered.len() >= MAX_REPEATS || call.fate == Fate::Failed {
                continue;
            }
            match repeat(&mut conn, call)? {
                Repeated::Answered => answered.push(nth),
                Repeated::Broken => return Err(format!("{}, sent again, had no whole answer", call.id)),
            }
        }
        let due = Instant::now() + SETTLE_PATIENCE;
        while self.read_numbers(gateway)?.iter().flatten().any(|numbers| numbers.held != 0) {
            if Instant::now() > due {
                return Err("holds stay open though nobody calls".into());
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        self.grant_once(gateway)?;
        for nth in answered {
            self.open_calls[nth].settled = true;
        }
        Ok(())
    }

    /// A change that is answered when it is on disk, and everything before it too.
    fn grant_once(&mut self, gateway: &Gateway) -> Verdict {
        self.grants.attempted += 1;
        let amount = self.grants.attempted;
        let body = json!({
            "credits": {"main": amount, "reset": amount},
            "limits": {"conversation_limit": amount, "reset": amount},
        });
        let path = format!("/v1/admin-panel/users/{}", self.users[GRANTED_USER].id);
        let answer = gateway.admin(&self.token, "PUT", &path, Some(&body));
        if answer.status != Some(200) {
            return Err(format!("a grant was answered {:?}: {}", answer.status, answer.text()));
        }
        self.grants.acknowledged = amount;
        Ok(())
    }

    /// Everything, on a gateway that has just started and that nobody uses.
    pub fn check(&mut self, site: &Site, gateway: &Gateway, tally: &Tally) -> Verdict<Checked> {
        let now = self.read_numbers(gateway)?;
        for (at, meters) in now.iter().enumerate() {
            for (nth, numbers) in meters.iter().enumerate() {
                conserves(*numbers).map_err(|why| format!("user{at}, {}: {why}", METERS[nth]))?;
                if at != GRANTED_USER {
                    self.check_spent(site.setting.recovery, at, nth, *numbers)?;
                } else {
                    self.check_grant(nth, *numbers)?;
                }
            }
        }
        self.check_upstream(tally)?;
        let (records, holes) = self.check_journal(site, tally)?;
        let calls = std::mem::take(&mut self.open_calls);
        let acknowledged = calls.iter().filter(|call| call.fate == Fate::Begun).count() as u64;
        let in_doubt = calls.iter().filter(|call| outcomes(call, site.setting.recovery).len() > 1).count() as u64;
        self.numbers = now;
        if self.grants.attempted > 0 {
            // What was set last is known now, even if its answer was not heard.
            self.floors = self.numbers[GRANTED_USER].map(|numbers| numbers.balance.min(self.grants.attempted));
        }
        self.least_records = records;
        let repeated = calls.iter().filter(|call| call.attempts > 1).count() as u64;
        Ok(Checked { calls: calls.len() as u64, acknowledged, in_doubt, repeated, records, holes })
    }

    /// Every acknowledged call is paid once, none twice, and calls in doubt came to one of their possible ends.
    fn check_spent(&self, recovery: Recovery, at: usize, nth: usize, now: Numbers) -> Verdict {
        let before = self.numbers[at][nth];
        let name = METERS[nth];
        if now.granted != before.granted {
            return Err(format!("user{at}, {name}: granted was {}, is {}", before.granted, now.granted));
        }
        let mine = |call: &&Call| call.user == at && meter_of(call.cost) == nth;
        let mut certain = 0;
        let mut sums = BTreeSet::from([0]);
        let mut doubtful = Vec::new();
        for call in self.open_calls.iter().filter(mine) {
            let outcomes = outcomes(call, recovery);
            if let [amount] = outcomes[..] {
                certain += amount;
                continue;
            }
            sums = sums.iter().flat_map(|sum| outcomes.iter().map(move |amount| sum + amount)).collect();
            if sums.len() > MAX_SUMS {
                return Err(format!("user{at}, {name}: too many calls in doubt to say anything"));
            }
            doubtful.push((call.id.as_str(), outcomes));
        }
        let charged = now.spent - before.spent;
        if sums.contains(&(charged - certain)) {
            return Ok(());
        }
        Err(format!(
            "user{at}, {name}: {charged} were charged; {certain} are certain, and of what is in doubt no set comes to {}: \
             {doubtful:?}",
            charged - certain,
        ))
    }

    /// What staff set is in force if it was acknowledged, and at least nothing older is.
    fn check_grant(&self, nth: usize, now: Numbers) -> Verdict {
        let Grants { acknowledged, attempted } = self.grants;
        let least = acknowledged.max(self.floors[nth]);
        let set = (least.max(1)..=attempted).contains(&now.balance) && now.granted == now.balance;
        // As long as nothing was acknowledged, the first attempt may have come to nothing.
        let untouched = acknowledged == 0 && now == self.numbers[GRANTED_USER][nth];
        if set || untouched {
            return Ok(());
        }
        Err(format!("{}: set to {least} for certain, perhaps to {attempted}; is {now:?}", METERS[nth]))
    }

    /// No call reaches the upstream more often than it was sent, and none is answered that it has not had.
    fn check_upstream(&self, tally: &Tally) -> Verdict {
        for call in &self.open_calls {
            let served = tally.served(&call.id);
            let possible = match call.fate {
                Fate::Unknown => 0..=call.attempts,
                Fate::Begun | Fate::Failed => 1..=call.attempts,
            };
            if !possible.contains(&served) {
                return Err(format!("{}: {:?}, and the upstream had it {served} times", call.id, call.fate));
            }
        }
        Ok(())
    }

    /// Every acknowledged record present and equal; no record torn, doubled or foreign. Says how many there are, and
    /// whether there are holes.
    fn check_journal(&self, site: &Site, tally: &Tally) -> Verdict<(u64, bool)> {
        let dir = site.data.join("journal");
        let reader = JournalReader::open(&dir).map_err(|e| format!("the journal cannot be opened: {e}"))?;
        let verify = || reader.verify().map_err(|e| format!("the journal cannot be read: {e}"));
        let mut report = verify()?;
        let tries = if site.setting.journal_may_have_holes { VERIFY_TRIES_WITH_HOLES } else { VERIFY_TRIES };
        for _ in 0..tries {
            if report.problems.is_empty() {
                break;
            }
            // The server may have replaced a segment by its compressed form meanwhile; what is damaged stays so.
            std::thread::park_timeout(VERIFY_PAUSE);
            report = verify()?;
        }
        let holes = !report.problems.is_empty();
        if holes && !site.setting.journal_may_have_holes || report.torn_bytes > 0 {
            return Err(format!("the journal is not sound: {report:?}"));
        }
        let (mut present, mut bytes) = (BTreeMap::new(), 0);
        reader
            .for_each(|json| {
                let record: Value = serde_json::from_slice(json)?;
                bytes += json.len() as u64;
                present.insert(record["id"].as_u64().unwrap_or(0), record);
                Ok(())
            })
            .map_err(|e| format!("the journal cannot be read: {e}"))?;
        let oldest = present.keys().next().copied().unwrap_or(0);
        for (id, record) in &self.records {
            let kept = site.setting.retention_bytes.is_none() || *id >= oldest;
            if kept && present.get(id) != Some(record) {
                return Err(format!("record {id} was acknowledged as {record}, and is {:?}", present.get(id)));
            }
        }
        if site.setting.retention_bytes.is_none() && (present.len() as u64) < self.least_records {
            return Err(format!("{} records were written, {} are there", self.least_records, present.len()));
        }
        if let Some(limit) = site.setting.retention_bytes
            && oldest > 1
            // Files were measured as they lay there, some of them compressed: never more than their records.
            && bytes + (80 << 10) < limit
        {
            return Err(format!("only {bytes} bytes are left of {limit} that are to be kept"));
        }
        let mut told: HashMap<&str, u32> = HashMap::new();
        for (id, record) in &present {
            self.check_record(record, tally).map_err(|why| format!("record {id}: {why}: {record}"))?;
            let call = record["messages"]["request"][0]["content"].as_str().unwrap_or_default();
            let times = told.entry(call).or_default();
            *times += 1;
            if *times > tally.served(call) {
                return Err(format!("record {id}: {call} is in the journal {times} times"));
            }
        }
        Ok((present.len() as u64, holes))
    }

    fn check_record(&self, record: &Value, tally: &Tally) -> Verdict {
        let call = record["messages"]["request"][0]["content"].as_str().unwrap_or_default();
        let Some(user) = self.made.get(call) else { return Err("nobody made this call".into()) };
        if record["user_id"] != self.users[*user].id {
            return Err("it is another user's".into());
        }
        if tally.served(call) == 0 {
            return Err("the upstream never had this call".into());
        }
        let said = record["messages"]["response"]["content"].as_str().unwrap_or_default();
        let whole = text_for(call);
        let fits = match record["status"].as_u64() {
            Some(200) if record["outcome"] == "ok" => said == whole,
            Some(200) => whole.starts_with(said),
            _ => said.is_empty(),
        };
        if fits { Ok(()) } else { Err(format!("the upstream said {whole:?}")) }
    }
}

fn meter_of(cost: Cost) -> usize {
    match cost {
        Cost::Fixed => 0,
        Cost::Metered { .. } => 1,
    }
}

/// `granted = balance + held + spent`, none negative, and after a restart nothing is held.
pub fn conserves(numbers: Numbers) -> Verdict {
    let Numbers { balance, held, spent, granted } = numbers;
    if granted != balance + held + spent || balance < 0 || spent < 0 || held != 0 {
        return Err(format!("does not add up: {numbers:?}"));
    }
    Ok(())
}

/// What a call may have been charged, after a crash and a recovery.
///
/// The debit of an answer that began is on disk as a hold. The settlement follows the answer and is not waited for, so a
/// crash may find the hold open: `charge` then takes all of it, `refund` none. It is certainly on disk once a later call
/// on the same connection was answered, because that call's own debit is in the same row.
pub fn outcomes(call: &Call, recovery: Recovery) -> Vec<i64> {
    let (held, paid) = match call.cost {
        Cost::Fixed => (1, 1),
        Cost::Metered { held, paid } => (held, paid),
    };
    let found_open = if recovery == Recovery::Charge { held } else { 0 };
    // A call that was sent again has paid once: what it costs, or what a crash took of its first attempt. Under `refund` a
    // crash leaves nothing of it, so that the repeat pays.
    let first = if recovery == Recovery::Charge && call.attempts > 1 { held } else { paid };
    let mut outcomes = match (call.fate, call.followed && call.attempts == 1) {
        (Fate::Begun, _) if call.settled => vec![paid, first],
        (Fate::Failed, _) if call.settled => vec![0, found_open],
        (Fate::Begun, true) => vec![paid],
        (Fate::Begun, false) => vec![paid, found_open],
        (Fate::Failed, true) => vec![0],
        (Fate::Failed, false) => vec![0, found_open],
        (Fate::Unknown, _) => vec![0, paid, found_open],
    };
    outcomes.sort_unstable();
    outcomes.dedup();
    outcomes
}
