//! Attack 9: tokens that look right and are not.
//!
//! Nearly all of them are refused already because no row has their MAC. So each is tried twice: as it is, and with a row
//! planted for it, as somebody could who can write the store, but does not have the key that signs.

use std::fs;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde_json::{Value, json};
use tollgate::accounts::secrets::Pepper;
use tollgate::store::memory::MemoryStore;
use tollgate::store::{Store, tables};

use super::common::{login, on_store, opens, put, refresh, token};
use crate::support::{PASSWORD, TestApp, http};

const FREE: &str = "[access]\nblock_after_failures = 0\n";

fn part(token: &str, at: usize) -> Value {
    serde_json::from_slice(&B64.decode(token.split('.').nth(at).unwrap()).unwrap()).unwrap()
}

fn joined(header: &Value, claims: &Value, signature: &str) -> String {
    format!("{}.{}.{signature}", B64.encode(header.to_string()), B64.encode(claims.to_string()))
}

/// Copies the row of one session token to where another's would be.
fn plant(app: &TestApp, store: &MemoryStore, real: &str, forged: &str) {
    let pepper = Pepper::new(fs::read_to_string(app.dir.path().join("secrets/pepper")).unwrap().trim().as_bytes());
    let pepper = pepper.unwrap();
    let row = store.get(&tables::session(&pepper.mac(real.as_bytes()))).unwrap().unwrap();
    put(store, tables::session(&pepper.mac(forged.as_bytes())), row);
}

/// The key that signs, as the server derives it from its file.
fn signing_key(app: &TestApp) -> EncodingKey {
    use sha2::{Digest, Sha256};
    let secret = fs::read_to_string(app.dir.path().join("secrets/session-signing")).unwrap();
    let mut hash = Sha256::new();
    hash.update(b"tollgate session signing v1\0");
    hash.update(secret.trim());
    let prefix = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    EncodingKey::from_ed_der(&[prefix.as_slice(), &hash.finalize()].concat())
}

fn jwks(app: &TestApp) -> Value {
    let answer = http::call(app.public, "GET", "/.well-known/jwks.json", &[], None);
    assert_eq!(answer.status, 200);
    answer.json()
}

#[test]
fn whoever_has_the_public_key_can_read_a_token() {
    let (app, _) = on_store(FREE);
    let alice = app.register("alice");
    let session = login(&app, &alice.email, PASSWORD);
    let keys = jwks(&app);
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
    let key = &keys["keys"][0];
    assert_eq!((&key["kty"], &key["crv"], &key["alg"]), (&json!("OKP"), &json!("Ed25519"), &json!("EdDSA")));
    assert!(key.get("d").is_none());
    let verifying = DecodingKey::from_ed_components(key["x"].as_str().unwrap()).unwrap();
    let mut rules = Validation::new(Algorithm::EdDSA);
    rules.validate_exp = false;
    rules.set_audience(&["tollgate"]);
    rules.set_issuer(&["tollgate"]);
    let read = decode::<Value>(token(&session), &verifying, &rules).unwrap();
    assert_eq!(read.header.kid.as_deref(), key["kid"].as_str());
    let now = 1_768_478_400;
    assert_eq!(
        (&read.claims["sub"], &read.claims["iat"], &read.claims["exp"]),
        (&json!("1"), &json!(now), &json!(now + 86_400))
    );
    let refresh = part(session["refresh_token"].as_str().unwrap(), 0);
    assert_eq!((read.header.typ.as_deref(), &refresh["typ"]), (Some("at+jwt"), &json!("rt+jwt")));
    assert_eq!(app.chat(token(&session), json!({})).status, 200);
}

#[test]
fn a_forged_token_opens_nothing_even_with_a_row_of_its_own() {
    let (app, store) = on_store(FREE);
    let (alice, bobby) = (app.register("alice"), app.register("bobby"));
    let session = login(&app, &alice.email, PASSWORD);
    let real = token(&session);
    let (header, claims) = (part(real, 0), part(real, 1));
    let signature = real.split('.').nth(2).unwrap();
    let public = jwks(&app)["keys"][0]["x"].as_str().unwrap().to_owned();
    let ours = signing_key(&app);
    let with = |base: &Value, changes: Value| {
        let mut changed = base.clone();
        for (name, value) in changes.as_object().unwrap() {
            changed[name] = value.clone();
        }
        changed
    };
    let signed = |header: &Value, claims: &Value, key: &EncodingKey| {
        let parsed: Header = serde_json::from_value(header.clone()).unwrap();
        encode(&parsed, claims, key).unwrap()
    };
    let hs = with(&header, json!({"alg": "HS256"}));
    let raw = B64.decode(&public).unwrap();
    let stranger = EncodingKey::from_ed_der(
        &[&[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20][..], &[7; 32]].concat(),
    );
    let forgeries = [
        ("alg none, unsigned", joined(&with(&header, json!({"alg": "none"})), &claims, "")),
        ("alg None, with the signature", joined(&with(&header, json!({"alg": "None"})), &claims, signature)),
        ("HS256 under the public key", signed(&hs, &claims, &EncodingKey::from_secret(&raw))),
        ("HS256 under its text", signed(&hs, &claims, &EncodingKey::from_secret(public.as_bytes()))),
        ("another key", signed(&header, &claims, &stranger)),
        ("a kid that is a path", signed(&with(&header, json!({"kid": "../../dev/null"})), &claims, &ours)),
        ("no kid", signed(&json!({"typ": "at+jwt", "alg": "EdDSA"}), &claims, &ours)),
        ("a jku", signed(&with(&header, json!({"jku": "https://evil.example/jwks"})), &claims, &ours)),
        ("tampered claims", joined(&header, &with(&claims, json!({"sub": bobby.id.to_string()})), signature)),
        ("no signature", joined(&header, &claims, "")),
        ("typ JWT", signed(&with(&header, json!({"typ": "JWT"})), &claims, &ours)),
        ("typ of a refresh token", signed(&with(&header, json!({"typ": "rt+jwt"})), &claims, &ours)),
        ("wrong aud", signed(&header, &with(&claims, json!({"aud": "other"})), &ours)),
        ("the staff's aud", signed(&header, &with(&claims, json!({"aud": "tollgate-staff"})), &ours)),
        ("wrong iss", signed(&header, &with(&claims, json!({"iss": "https://evil.example"})), &ours)),
        ("another sub", signed(&header, &with(&claims, json!({"sub": bobby.id.to_string()})), &ours)),
        ("another sid", signed(&header, &with(&claims, json!({"sid": 7})), &ours)),
        ("a longer life", signed(&header, &with(&claims, json!({"exp": 2_000_000_000})), &ours)),
        ("expired", signed(&header, &with(&claims, json!({"exp": 1})), &ours)),
    ];
    for (what, forged) in &forgeries {
        assert_ne!(forged, real, "{what}");
        assert_eq!(opens(&app, forged), 401, "{what}");
        // To an upstream only with the row: what the workers have seen fail, they remember as unknown for a while.
        plant(&app, &store, real, forged);
        assert_eq!(opens(&app, forged), 401, "{what}, planted");
        assert_eq!(app.chat(forged, json!({})).status, 401, "{what}, planted, to an upstream");
    }
    // The same in order, and signed: so it is the forgery that is refused, and not the planting.
    let twin = signed(&header, &with(&claims, json!({"jti": "twin"})), &ours);
    plant(&app, &store, real, &twin);
    assert_eq!((opens(&app, &twin), app.chat(&twin, json!({})).status), (200, 200));
    assert_eq!(opens(&app, real), 200);
}

#[test]
fn each_token_opens_its_own_door_alone() {
    let (app, store) = on_store(FREE);
    let alice = app.register("alice");
    let session = login(&app, &alice.email, PASSWORD);
    let staff = app.admin_token();
    let (access, renewal) = (token(&session), session["refresh_token"].as_str().unwrap());
    assert_eq!((opens(&app, renewal), app.chat(renewal, json!({})).status), (401, 401), "refresh as access");
    assert_eq!(refresh(&app, &json!(access)).0, 401, "access as refresh");
    plant(&app, &store, access, renewal);
    assert_eq!(opens(&app, renewal), 401, "not even with a session's row");
    for path in ["/v1/admin-panel/users", "/v1/support/users"] {
        assert_eq!(app.admin_call(access, "GET", path, None).status, 401, "a user on the side port");
    }
    assert_eq!((opens(&app, &staff), app.chat(&staff, json!({})).status), (401, 401), "staff on the public one");
    let (_, support) = {
        let body = json!({"username": "helper", "name": "Staff", "email": "h@example.com", "password": PASSWORD, "staff_level": "new"});
        assert_eq!(app.admin_call(&staff, "POST", "/v1/support/create", Some(&body)).status, 200);
        let body = json!({"username": "helper", "password": PASSWORD});
        let answer = http::call(app.admin, "POST", "/v1/support/login", &[], Some(&body));
        (answer.status, answer.json()["session"]["session_token"].as_str().unwrap().to_owned())
    };
    assert_eq!(app.admin_call(&support, "GET", "/v1/admin-panel/users", None).status, 403, "a role below");
    // Revoked, and expired: both by the row.
    assert_eq!(app.call("POST", "/v1/users/logout", access, None).status, 200);
    assert_eq!(opens(&app, access), 401);
    let again = login(&app, &alice.email, PASSWORD);
    crate::passing_time::advance(&app, Duration::from_secs(24 * 3600));
    assert_eq!((opens(&app, token(&again)), app.chat(token(&again), json!({})).status), (401, 401));
    assert_eq!(refresh(&app, &again["refresh_token"]).0, 200);
}

#[test]
fn hs256_and_opaque_tokens_work_where_they_are_configured() {
    let key = "0123456789abcdef0123456789abcdef";
    let (app, _) = on_store(&format!(
        "{FREE}[accounts.tokens]\nalgorithm = \"HS256\"\nhs256_key = \"{key}\"\nissuer = \"https://id.example\"\naudience = \"api\"\n"
    ));
    let alice = app.register("alice");
    let session = login(&app, &alice.email, PASSWORD);
    let mut rules = Validation::new(Algorithm::HS256);
    rules.validate_exp = false;
    rules.set_audience(&["api"]);
    rules.set_issuer(&["https://id.example"]);
    decode::<Value>(token(&session), &DecodingKey::from_secret(key.as_bytes()), &rules).unwrap();
    assert_eq!(jwks(&app)["keys"], json!([]), "a shared secret is nobody's to read");
    assert_eq!((opens(&app, token(&session)), app.chat(token(&session), json!({})).status), (200, 200));
    assert_eq!(refresh(&app, &session["refresh_token"]).0, 200);
    let (app, _) = on_store(&format!("{FREE}[accounts.tokens]\nsession = \"opaque\"\n"));
    let alice = app.register("alice");
    let session = login(&app, &alice.email, PASSWORD);
    assert!(token(&session).starts_with("ts-") && session["refresh_token"].as_str().unwrap().starts_with("tr-"));
    assert_eq!((opens(&app, token(&session)), app.chat(token(&session), json!({})).status), (200, 200));
}
