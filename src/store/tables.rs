//! The rows: their keys and their codec.
//!
//! One tree with prefixed keys, because only one batch on one tree is atomic in every backend. Each value carries its
//! format version and a checksum. Owns the layout; never interprets what the rows mean.
//!
//! | key | value |
//! |---|---|
//! | `u/` id (8 bytes, big endian) | [`User`](crate::domain::user::User) |
//! | `un/` username, folded | user id |
//! | `ue/` email, folded | user id |
//! | `k/` MAC of the key | [`ApiKey`](crate::domain::key::ApiKey) |
//! | `uk/` user id, key id | MAC of the key |
//! | `ku/` user id, key id | when the key was last used |
//! | `s/` MAC of the session token | [`Session`](crate::domain::session::Session) |
//! | `sr/` MAC of the refresh token | MAC of the session token |
//! | `sp/` MAC of a refresh token that was used | [`Spent`](crate::domain::session::Spent) |
//! | `rt/` slot | MAC of a credential, code or link that was good once; a newer one takes its slot |
//! | `us/` user id, session id | MAC of the session token |
//! | `ss/` staff id, session id | MAC of the session token |
//! | `mf/` `u` or `s`, id | the second factor of a user or a member of the staff |
//! | `oi/` MAC of provider and subject | a login at an identity provider |
//! | `uo/` user id, provider | its MAC |
//! | `ot/` user id, kind | a one-time token that was mailed |
//! | `ob/` due time, id | a sealed letter that waits to be sent |
//! | `bk/` user id, count | a sealed piece of a deleted user's data |
//! | `dp/` time, user id | when a deleted user's data is to be removed |
//! | `cb/` user id, list id | a list of one-time codes: which numbers are the user's |
//! | `cu/` user id, list id, page | which of them have been used: a bit each |
//! | `ud/` user id, day | what a user spent that day |
//! | `du/` day | what all users spent that day |
//! | `m/` user id | the user's meters, written by his actor alone |
//! | `st/` id · `sn/` username, folded | staff · staff id |
//! | `ip/` id | an address rule made by an admin |
//! | `o/` user id, hash of an idempotency key | what was paid under the key, and how its call ended |
//! | `oa/` user id, hash, count | a piece of the kept answer |
//! | `oe/` time of first use, user id, hash | bytes of the kept answer; in the order in which keys expire |
//! | `qa/` MAC of an address | what is left of its meters, after its account has gone |
//! | `a/head` | how far the audit trail has come: its newest record's number and MAC |
//! | `c/` name | counters: the last user id, the last reset of all users' meters, … |
//! | [`OWN`] … | what the store keeps about itself; in no backup |

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Store, StoreError};
use crate::clock::UnixMillis;
use crate::domain::ids::{CredentialId, SecretMac, StaffId, UserId};
use crate::domain::session::Principal;

/// The only row format there is so far.
const ROW_FORMAT: u8 = 1;

pub const USERS: &[u8] = b"u/";
pub const METERS: &[u8] = b"m/";
pub const STAFF: &[u8] = b"st/";
pub const SESSIONS: &[u8] = b"s/";
pub const API_KEYS: &[u8] = b"k/";
pub const PURGES: &[u8] = b"dp/";
pub const ONE_TIME: &[u8] = b"ot/";
pub const LETTERS: &[u8] = b"ob/";
pub const ADDRESS_QUOTAS: &[u8] = b"qa/";
pub const ADDRESS_RULES: &[u8] = b"ip/";
pub const ONCE_EXPIRIES: &[u8] = b"oe/";
/// Before all other keys.
pub const OWN: &[u8] = b"\0";
/// How much of the log the backend has.
pub const CHECKPOINT: &[u8] = b"\0checkpoint";
/// How far a change of format has come.
pub const MIGRATION: &[u8] = b"\0migration";

fn key(prefix: &[u8], rest: &[u8]) -> Vec<u8> {
    [prefix, rest].concat()
}

pub fn user(id: UserId) -> Vec<u8> {
    key(USERS, &id.0.to_be_bytes())
}

/// Names and addresses are compared without case.
pub fn user_by_name(name: &str) -> Vec<u8> {
    key(b"un/", name.trim().to_lowercase().as_bytes())
}

pub fn user_by_email(email: &str) -> Vec<u8> {
    key(b"ue/", email.trim().to_lowercase().as_bytes())
}

pub fn api_key(mac: &SecretMac) -> Vec<u8> {
    key(API_KEYS, &mac.0)
}

pub fn keys_of_user(user: UserId) -> Vec<u8> {
    key(b"uk/", &user.0.to_be_bytes())
}

pub fn key_of_user(user: UserId, id: CredentialId) -> Vec<u8> {
    [keys_of_user(user), id.0.to_be_bytes().to_vec()].concat()
}

pub fn key_uses_of_user(user: UserId) -> Vec<u8> {
    key(b"ku/", &user.0.to_be_bytes())
}

pub fn key_use(user: UserId, id: CredentialId) -> Vec<u8> {
    [key_uses_of_user(user), id.0.to_be_bytes().to_vec()].concat()
}

pub fn quota_of_address(mac: &SecretMac) -> Vec<u8> {
    [ADDRESS_QUOTAS, &mac.0].concat()
}

pub fn session(mac: &SecretMac) -> Vec<u8> {
    key(b"s/", &mac.0)
}

pub fn session_by_refresh(mac: &SecretMac) -> Vec<u8> {
    key(b"sr/", &mac.0)
}

pub fn spent_refresh(mac: &SecretMac) -> Vec<u8> {
    key(b"sp/", &mac.0)
}

/// How many credentials that were good once are remembered at most.
pub const RETIRED_SLOTS: u32 = 1 << 18;

/// Where it is kept that what has this MAC was good once. MACs are evenly spread, so two rarely meet.
pub fn retired(mac: &SecretMac) -> Vec<u8> {
    let first = mac.0.first_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    key(b"rt/", &(first % RETIRED_SLOTS).to_be_bytes()[1..])
}

/// The MAC in a key that [`api_key`] made.
pub fn parse_api_key(key: &[u8]) -> Option<SecretMac> {
    Some(SecretMac(key.strip_prefix(API_KEYS)?.try_into().ok()?))
}

pub fn sessions_of_user(user: UserId) -> Vec<u8> {
    key(b"us/", &user.0.to_be_bytes())
}

pub fn session_of_user(user: UserId, id: CredentialId) -> Vec<u8> {
    [sessions_of_user(user), id.0.to_be_bytes().to_vec()].concat()
}

pub fn sessions_of_staff(staff: StaffId) -> Vec<u8> {
    key(b"ss/", &staff.0.to_be_bytes())
}

pub fn session_of_staff(staff: StaffId, id: CredentialId) -> Vec<u8> {
    [sessions_of_staff(staff), id.0.to_be_bytes().to_vec()].concat()
}

pub fn meters(user: UserId) -> Vec<u8> {
    key(METERS, &user.0.to_be_bytes())
}

pub fn factor(whose: Principal) -> Vec<u8> {
    match whose {
        Principal::User(id) => key(b"mf/u", &id.0.to_be_bytes()),
        Principal::Staff(id) => key(b"mf/s", &id.0.to_be_bytes()),
    }
}

pub const CODE_LISTS: &[u8] = b"cb/";

pub fn code_lists(user: UserId) -> Vec<u8> {
    key(CODE_LISTS, &user.0.to_be_bytes())
}

pub fn code_list(user: UserId, list: u64) -> Vec<u8> {
    [code_lists(user).as_slice(), &list.to_be_bytes()].concat()
}

/// Whose list a key is of that [`code_list`] made.
pub fn parse_code_list(key: &[u8]) -> Option<UserId> {
    let (user, _) = key.strip_prefix(CODE_LISTS)?.split_first_chunk::<8>()?;
    Some(UserId(u64::from_be_bytes(*user)))
}

pub fn used_codes(user: UserId) -> Vec<u8> {
    key(b"cu/", &user.0.to_be_bytes())
}

pub fn used_codes_of(user: UserId, list: u64) -> Vec<u8> {
    [used_codes(user).as_slice(), &list.to_be_bytes()].concat()
}

pub fn used_page(user: UserId, list: u64, page: u32) -> Vec<u8> {
    [used_codes_of(user, list).as_slice(), &page.to_be_bytes()].concat()
}

pub const DAY_TOTALS: &[u8] = b"du/";

pub fn usage_of_user(user: UserId) -> Vec<u8> {
    key(b"ud/", &user.0.to_be_bytes())
}

pub fn usage_day(user: UserId, day: u32) -> Vec<u8> {
    [usage_of_user(user).as_slice(), &day.to_be_bytes()].concat()
}

/// The day in a key that [`usage_day`] made.
pub fn parse_usage_day(key: &[u8]) -> u32 {
    key.last_chunk::<4>().map_or(0, |day| u32::from_be_bytes(*day))
}

pub fn day_totals(day: u32) -> Vec<u8> {
    key(DAY_TOTALS, &day.to_be_bytes())
}

/// The day in a key that [`day_totals`] made.
pub fn parse_day_totals(key: &[u8]) -> u32 {
    parse_usage_day(key)
}

/// Whose a key is that [`meters`] made.
pub fn parse_meters(key: &[u8]) -> Option<UserId> {
    Some(UserId(u64::from_be_bytes(key.strip_prefix(METERS)?.try_into().ok()?)))
}

pub fn kept_users(user: UserId) -> Vec<u8> {
    key(b"bk/", &user.0.to_be_bytes())
}

pub fn kept_user(user: UserId, piece: u8) -> Vec<u8> {
    [kept_users(user), vec![piece]].concat()
}

pub fn purge_due(at: UnixMillis, user: UserId) -> Vec<u8> {
    [PURGES, at.0.to_be_bytes().as_slice(), &user.0.to_be_bytes()].concat()
}

/// The end of the range of all purges that are due at `now`.
pub fn purges_until(now: UnixMillis) -> Vec<u8> {
    key(PURGES, &now.0.saturating_add(1).to_be_bytes())
}

/// Whose purge a key is that [`purge_due`] made.
pub fn parse_purge(key: &[u8]) -> Option<UserId> {
    let (_, user) = key.strip_prefix(PURGES)?.split_first_chunk::<8>()?;
    Some(UserId(u64::from_be_bytes(user.try_into().ok()?)))
}

/// The MAC in a key that [`session`] made.
pub fn parse_session(key: &[u8]) -> Option<SecretMac> {
    Some(SecretMac(key.strip_prefix(SESSIONS)?.try_into().ok()?))
}

pub fn identity(mac: &SecretMac) -> Vec<u8> {
    key(b"oi/", &mac.0)
}

pub fn identities_of_user(user: UserId) -> Vec<u8> {
    key(b"uo/", &user.0.to_be_bytes())
}

pub fn identity_of_user(user: UserId, provider: &str) -> Vec<u8> {
    [identities_of_user(user), provider.as_bytes().to_vec()].concat()
}

pub fn one_time(user: UserId, kind: u8) -> Vec<u8> {
    [ONE_TIME, user.0.to_be_bytes().as_slice(), &[kind]].concat()
}

pub fn letter(due: UnixMillis, id: &[u8; 16]) -> Vec<u8> {
    [LETTERS, due.0.to_be_bytes().as_slice(), id].concat()
}

/// The end of the range of all letters that are due at `now`.
pub fn letters_until(now: UnixMillis) -> Vec<u8> {
    key(LETTERS, &now.0.saturating_add(1).to_be_bytes())
}

/// The parts of a key that [`letter`] made.
pub fn parse_letter(key: &[u8]) -> Option<(UnixMillis, [u8; 16])> {
    let (due, id) = key.strip_prefix(LETTERS)?.split_first_chunk::<8>()?;
    Some((UnixMillis(u64::from_be_bytes(*due)), id.try_into().ok()?))
}

pub fn staff(id: StaffId) -> Vec<u8> {
    key(STAFF, &id.0.to_be_bytes())
}

pub fn staff_by_name(name: &str) -> Vec<u8> {
    key(b"sn/", name.trim().to_lowercase().as_bytes())
}

pub fn address_rule(id: u64) -> Vec<u8> {
    key(ADDRESS_RULES, &id.to_be_bytes())
}

pub fn once_of_user(user: UserId) -> Vec<u8> {
    key(b"o/", &user.0.to_be_bytes())
}

pub fn once(user: UserId, hash: &[u8; 16]) -> Vec<u8> {
    [&once_of_user(user), hash.as_slice()].concat()
}

pub fn once_answer(user: UserId, hash: &[u8; 16], count: u32) -> Vec<u8> {
    [b"oa/", user.0.to_be_bytes().as_slice(), hash, &count.to_be_bytes()].concat()
}

pub fn once_expiry(at: UnixMillis, user: UserId, hash: &[u8; 16]) -> Vec<u8> {
    [&once_expiries_until(at), user.0.to_be_bytes().as_slice(), hash].concat()
}

/// The end of the range of all expiries before `at`.
pub fn once_expiries_until(at: UnixMillis) -> Vec<u8> {
    key(ONCE_EXPIRIES, &at.0.to_be_bytes())
}

/// The parts of a key that [`once_expiry`] made.
pub fn parse_once_expiry(key: &[u8]) -> Option<(UnixMillis, UserId, [u8; 16])> {
    let (at, rest) = key.strip_prefix(ONCE_EXPIRIES)?.split_first_chunk::<8>()?;
    let (user, hash) = rest.split_first_chunk::<8>()?;
    let hash = hash.try_into().ok()?;
    Some((UnixMillis(u64::from_be_bytes(*at)), UserId(u64::from_be_bytes(*user)), hash))
}

pub fn audit_head() -> Vec<u8> {
    b"a/head".to_vec()
}

pub fn counter(name: &str) -> Vec<u8> {
    key(b"c/", name.as_bytes())
}

/// The id at the end of a key such as `u/` id.
pub fn trailing_id(key: &[u8]) -> Option<u64> {
    key.last_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes))
}

/// As [`encode`], for bytes that stand for themselves.
pub fn encode_bytes(bytes: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(5 + bytes.len());
    row.push(ROW_FORMAT);
    row.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    row.extend_from_slice(bytes);
    row
}

/// Format version, CRC-32 of the rest, JSON.
///
/// # Errors
/// [`StoreError::Failed`] when the value has no JSON form, which none of ours lacks.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    let mut row = vec![ROW_FORMAT, 0, 0, 0, 0];
    serde_json::to_writer(&mut row, value).map_err(|e| StoreError::Failed(format!("cannot encode a row: {e}")))?;
    let sum = crc32fast::hash(&row[5..]);
    row[1..5].copy_from_slice(&sum.to_le_bytes());
    Ok(row)
}

/// # Errors
/// [`StoreError::Corrupt`] for a damaged row or one of a newer format.
pub fn decode<T: DeserializeOwned>(row: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(decode_bytes(row)?).map_err(|e| StoreError::Corrupt(e.to_string()))
}

/// What [`encode_bytes`] was given.
///
/// # Errors
/// As [`decode`].
pub fn decode_bytes(row: &[u8]) -> Result<&[u8], StoreError> {
    let Some((&[format, a, b, c, d], rest)) = row.split_first_chunk::<5>() else {
        return Err(StoreError::Corrupt("a row is shorter than its header".into()));
    };
    if format != ROW_FORMAT {
        return Err(StoreError::Corrupt(format!("row format {format} is not one of this version")));
    }
    if crc32fast::hash(rest) != u32::from_le_bytes([a, b, c, d]) {
        return Err(StoreError::Corrupt("a row's checksum does not match".into()));
    }
    Ok(rest)
}

/// Reads and decodes one row.
///
/// # Errors
/// As [`Store::get`] and [`decode`].
pub fn read<T: DeserializeOwned>(store: &dyn Store, key: &[u8]) -> Result<Option<T>, StoreError> {
    store.get(key)?.map(|row| decode(&row)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip_and_damage_is_noticed() {
        let row = encode(&vec![1, 2, 3]).unwrap();
        assert_eq!(decode::<Vec<u8>>(&row).unwrap(), [1, 2, 3]);
        for at in 0..row.len() {
            let mut damaged = row.clone();
            damaged[at] ^= 1;
            assert!(matches!(decode::<Vec<u8>>(&damaged), Err(StoreError::Corrupt(_))), "byte {at}");
        }
        assert!(decode::<Vec<u8>>(&row[..4]).is_err());
    }

    #[test]
    fn names_fold() {
        assert_eq!(user_by_name(" JohnDoe"), user_by_name("johndoe"));
        assert_eq!(trailing_id(&user(UserId(77))), Some(77));
    }
}
