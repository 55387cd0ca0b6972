//! `max_users`, `place_kept` and `places` of `[[routes]]`: how many users may be on a route at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::raw::RawRoute;
use super::{PlacesConfig, RouteConfig};

/// Each place takes some hundred bytes while somebody has it.
const MAX_USERS: u32 = 1_000_000;
const MAX_KEPT: Duration = Duration::from_secs(24 * 3600);

/// # Errors
/// The key, and why its value does not fit.
pub(super) fn check(raw: &RawRoute) -> Result<Option<PlacesConfig>, (&'static str, String)> {
    let Some(max_users) = raw.max_users else {
        let alone = "has no effect without max_users; set that too, or leave this out";
        return match (&raw.places, raw.place_kept.0.is_zero()) {
            (Some(_), _) => Err(("places", alone.into())),
            (None, false) => Err(("place_kept", alone.into())),
            (None, true) => Ok(None),
        };
    };
    match max_users {
        0 => return Err(("max_users", "0 lets nobody in; leave it out for no limit".into())),
        1..=MAX_USERS => {}
        more => return Err(("max_users", format!("{more} is over {MAX_USERS}; leave it out for no limit"))),
    }
    if raw.place_kept.0 > MAX_KEPT {
        return Err(("place_kept", "is over a day; so long a place would stand empty".into()));
    }
    let fits = |name: &str| {
        (1..=32).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if let Some(name) = raw.places.as_deref().filter(|name| !fits(name)) {
        return Err(("places", format!("\"{name}\" is no name: 1 to 32 letters, digits, - and _")));
    }
    Ok(Some(PlacesConfig { max_users, kept: raw.place_kept.0, shared: raw.places.as_deref().map(Arc::from) }))
}

/// Routes with the same places must say the same of them.
pub(super) fn check_shared(routes: &[RouteConfig]) -> Result<(), String> {
    let mut known: BTreeMap<&str, &PlacesConfig> = BTreeMap::new();
    for places in routes.iter().filter_map(|route| route.places.as_ref()) {
        let Some(name) = &places.shared else { continue };
        if *known.entry(name).or_insert(places) != places {
            return Err(format!(
                "routes.places: the routes that share \"{name}\" differ in max_users or place_kept; give them the same"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn parse(first: &str, second: &str) -> Result<Config, String> {
        let text = format!(
            "[[upstreams]]\nname = \"ai\"\nendpoints = [\"http://127.0.0.1:1\"]\n\
             [[routes]]\npath = \"/chat\"\nupstream = \"ai\"\n{first}\n[[routes]]\npath = \"/ws\"\nupstream = \"ai\"\n{second}\n"
        );
        Config::parse("test", &text, std::iter::empty()).map_err(|error| error.reason)
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_key() {
        for (bad, key) in [
            ("max_users = 0", "routes.max_users: 0 lets nobody in"),
            ("max_users = 1000001", "routes.max_users: 1000001 is over"),
            ("place_kept = \"2m\"", "routes.place_kept: has no effect without max_users"),
            ("places = \"chat\"", "routes.places: has no effect without max_users"),
            ("max_users = 1\nplace_kept = \"25h\"", "routes.place_kept: is over a day"),
            ("max_users = 1\nplaces = \"/ws\"", "routes.places: \"/ws\" is no name"),
            ("max_users = 1\nplaces = \"\"", "routes.places: \"\" is no name"),
        ] {
            let reason = parse(bad, "").unwrap_err();
            assert!(reason.starts_with(key) && reason.contains("/chat"), "{bad}: {reason}");
        }
        let shared = "places = \"chat\"\nmax_users = 23";
        let differs = parse(shared, "places = \"chat\"\nmax_users = 24").unwrap_err();
        assert!(differs.starts_with("routes.places: the routes that share \"chat\" differ"), "{differs}");
        let both = parse(shared, shared).unwrap();
        assert_eq!(both.routes[0].places, both.routes[1].places);
        assert!(parse("", "max_users = 23").unwrap().routes[0].places.is_none());
    }
}
