//! What two configs differ in, by the names of their keys: for the audit trail, which must not hold their values.

use serde::Serialize;

use super::{Config, UpstreamConfig};

/// Keys that are named at most.
const MAX_KEYS: usize = 64;

impl Config {
    /// The keys whose values differ, such as `limits.per_ip_per_minute`; lists (`routes`, `upstreams`, `plans`) as a whole.
    pub fn changed_keys(&self, other: &Self) -> Vec<String> {
        // Taken apart, so that a new part of the config cannot be forgotten here.
        let Self {
            // The others, in another form.
            effective: _,
            data_dir,
            data_dir_group,
            public_base_url,
            listen,
            upstreams,
            routes,
            verify_key_cost,
            forward,
            access,
            limits,
            cors,
            plans,
            prices,
            accounts,
            mail,
            oauth,
            ledger,
            journal,
            audit,
            store,
            telemetry,
            compat,
        } = self;
        let mut keys = Vec::new();
        section("listen", listen, &other.listen, &mut keys);
        section("access", access, &other.access, &mut keys);
        section("limits", limits, &other.limits, &mut keys);
        section("cors", cors, &other.cors, &mut keys);
        section("accounts", accounts, &other.accounts, &mut keys);
        section("mail", mail, &other.mail, &mut keys);
        section("ledger", ledger, &other.ledger, &mut keys);
        section("journal", journal, &other.journal, &mut keys);
        section("audit", audit, &other.audit, &mut keys);
        section("store", store, &other.store, &mut keys);
        section("telemetry", telemetry, &other.telemetry, &mut keys);
        section("compat", compat, &other.compat, &mut keys);
        let lists = [
            ("data_dir", *data_dir != other.data_dir),
            ("data_dir_group", *data_dir_group != other.data_dir_group),
            ("public_base_url", *public_base_url != other.public_base_url),
            ("plans", format!("{plans:?}") != format!("{:?}", other.plans)),
            ("prices", format!("{prices:?}") != format!("{:?}", other.prices)),
            ("routes", format!("{routes:?}") != format!("{:?}", other.routes)),
            ("verify_key", format!("{verify_key_cost:?}") != format!("{:?}", other.verify_key_cost)),
            ("forward", format!("{forward:?}") != format!("{:?}", other.forward)),
            ("oauth", *oauth != other.oauth),
            ("upstreams", whole(upstreams) != whole(&other.upstreams)),
        ];
        keys.extend(lists.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key.to_owned()));
        keys.truncate(MAX_KEYS);
        keys
    }
}

fn section<T: Serialize>(name: &str, old: &T, new: &T, keys: &mut Vec<String>) {
    let (Ok(old), Ok(new)) = (toml::Table::try_from(old), toml::Table::try_from(new)) else {
        return keys.push(name.to_owned());
    };
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let changed = names.into_iter().filter(|key| old.get(*key) != new.get(*key));
    keys.extend(changed.map(|key| format!("{name}.{key}")));
}

/// All of the upstreams, credentials too, which their `Debug` leaves out: to be compared and never shown.
fn whole(upstreams: &[UpstreamConfig]) -> Vec<String> {
    let one = |u: &UpstreamConfig| {
        let times = [u.connect_timeout, u.first_byte_timeout, u.idle_timeout, u.total_timeout];
        let pool = (u.max_in_flight, u.pool_idle, u.pool_idle_timeout, u.retries, u.eject_after, u.eject_time);
        let speech = (u.paths, u.via);
        format!("{u:?} {:?} {times:?} {pool:?} {:?} {:?} {speech:?}", u.credential, u.health_path, u.health_interval)
    };
    upstreams.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_and_values_are_not() {
        let parse = |text: &str| Config::parse("test", text, std::iter::empty()).unwrap();
        let upstream = "[[upstreams]]\nname = \"ai\"\nendpoints = [\"http://127.0.0.1:1\"]\n";
        let old = parse(upstream);
        assert!(old.changed_keys(&old.clone()).is_empty());
        let credential = "credential = { header = \"authorization\", value = \"Bearer sk-secret\" }\n";
        let new = format!("{upstream}{credential}[limits]\nper_ip_per_minute = 7\n[journal]\nretention_bytes = 5\n");
        let keys = old.changed_keys(&parse(&new));
        assert_eq!(keys, ["limits.per_ip_per_minute", "journal.retention_bytes", "upstreams"]);
    }
}
