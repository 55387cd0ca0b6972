//! An identity provider for the tests, over real HTTP: OpenID Connect with discovery, signed ID tokens and PKCE, and the few
//! calls of GitHub's that a login needs. It can be told to misbehave.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const KEY: &str = include_str!("idp_key.pem");
/// Of the public key, in base64url.
const MODULUS: &str = include_str!("idp_modulus.txt");
pub const CLIENT: &str = "client-1";
pub const SECRET: &str = "provider-client-secret";

/// What it does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    WrongNonce,
    WrongIssuer,
    WrongAudience,
    Expired,
    BadSignature,
    UnsignedToken,
    TokenRedirects,
    TokenIsHuge,
    ForeignMetadata,
}

#[derive(Clone)]
pub struct Person {
    pub subject: String,
    pub email: String,
    pub verified: bool,
}

struct Code {
    person: Person,
    nonce: String,
    challenge: String,
    redirect_uri: String,
}

#[derive(Default)]
struct State {
    codes: Mutex<HashMap<String, Code>>,
    tokens: Mutex<HashMap<String, Person>>,
    fault: Mutex<Fault>,
    /// Paths that were asked for.
    seen: Mutex<Vec<String>>,
    made: Mutex<u64>,
    /// Seconds since 1970, instead of the real time.
    now: Mutex<Option<u64>>,
}

pub struct IdentityProvider {
    pub addr: SocketAddr,
    state: Arc<State>,
}

/// What a browser was sent with.
pub struct Sent {
    pub url: String,
    pub query: HashMap<String, String>,
}

impl Sent {
    pub fn parse(url: &str) -> Self {
        let (_, query) = url.split_once('?').unwrap_or((url, ""));
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let query = pairs.map(|(name, value)| (name.to_owned(), unescaped(value))).collect();
        Self { url: url.to_owned(), query }
    }

    pub fn get(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }
}

fn unescaped(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let hex: Vec<u8> = bytes.by_ref().take(2).collect();
                out.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
            }
            b'+' => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).unwrap()
}

impl IdentityProvider {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, state) = (listener.local_addr().unwrap(), Arc::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(&stream, addr, &shared).ok());
            }
        });
        Self { addr, state }
    }

    /// The config of a gateway that trusts it: as `company` by OpenID Connect, and as `github`.
    pub fn config(&self) -> String {
        let at = self.addr;
        format!(
            "public_base_url = \"http://localhost:8080\"\n[oauth.company]\nissuer = \"http://{at}\"\nclient_id = \"{CLIENT}\"\n\
             client_secret = \"{SECRET}\"\nprivate_network = true\n[oauth.github]\nclient_id = \"{CLIENT}\"\nclient_secret = \
             \"{SECRET}\"\nprivate_network = true\nauthorize_url = \"http://{at}/login/oauth/authorize\"\ntoken_url = \
             \"http://{at}/login/oauth/access_token\"\napi_url = \"http://{at}\"\n"
        )
    }

    /// Has its clock stand still.
    pub fn at(&self, moment: &str) {
        let moment = tollgate::clock::UnixMillis::parse_rfc3339(moment).unwrap();
        *self.state.now.lock() = Some(moment.0 / 1000);
    }

    pub fn misbehave(&self, fault: Fault) {
        *self.state.fault.lock() = fault;
    }

    pub fn seen(&self) -> Vec<String> {
        self.state.seen.lock().clone()
    }

    /// What the provider does once somebody has signed in there: it gives the browser a code.
    pub fn consent(&self, sent: &Sent, person: &Person) -> String {
        assert_eq!((sent.get("client_id"), sent.get("response_type")), (CLIENT, "code"), "{}", sent.url);
        assert_eq!(sent.get("code_challenge_method"), "S256", "{}", sent.url);
        let mut made = self.state.made.lock();
        *made += 1;
        let code = format!("code-{made}");
        let kept = Code {
            person: person.clone(),
            nonce: sent.get("nonce").to_owned(),
            challenge: sent.get("code_challenge").to_owned(),
            redirect_uri: sent.get("redirect_uri").to_owned(),
        };
        self.state.codes.lock().insert(code.clone(), kept);
        code
    }

    /// As if a code had expired.
    pub fn forget_codes(&self) {
        self.state.codes.lock().clear();
    }
}

fn serve(stream: &TcpStream, addr: SocketAddr, state: &State) -> std::io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    input.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut length, mut authorization) = (0, String::new());
    loop {
        let mut header = String::new();
        input.read_line(&mut header)?;
        let header = header.trim();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').unwrap_or_default();
        match name.to_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap_or(0),
            "authorization" => value.trim().clone_into(&mut authorization),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body)?;
    state.seen.lock().push(path.clone());
    let fault = *state.fault.lock();
    let (status, more, answer) = match path.as_str() {
        "/.well-known/openid-configuration" => (200, "", metadata(addr, fault).to_string()),
        "/jwks" => (200, "", keys().to_string()),
        "/token" if fault == Fault::TokenRedirects => (302, "location: /elsewhere\r\n", String::new()),
        "/token" if fault == Fault::TokenIsHuge => (200, "", "x".repeat(1 << 20)),
        "/token" | "/login/oauth/access_token" => token(addr, state, fault, &authorization, &body),
        "/user" | "/user/emails" => github(state, &path, &authorization),
        _ => (404, "", "{}".to_owned()),
    };
    let mut output = stream;
    write!(
        output,
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n{more}\r\n{answer}",
        answer.len()
    )
}

fn metadata(addr: SocketAddr, fault: Fault) -> Value {
    let issuer =
        if fault == Fault::ForeignMetadata { "http://evil.example".to_owned() } else { format!("http://{addr}") };
    json!({
        "issuer": issuer,
        "authorization_endpoint": format!("http://{addr}/authorize"),
        "token_endpoint": format!("http://{addr}/token"),
        "jwks_uri": format!("http://{addr}/jwks"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    })
}

fn keys() -> Value {
    json!({"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "k1", "n": MODULUS.trim(), "e": "AQAB"}]})
}

fn token(
    addr: SocketAddr,
    state: &State,
    fault: Fault,
    authorization: &str,
    body: &[u8],
) -> (u16, &'static str, String) {
    let fields = Sent::parse(&format!("x?{}", String::from_utf8_lossy(body)));
    let expected = format!("Basic {}", STANDARD.encode(format!("{CLIENT}:{SECRET}")));
    let knows_us = authorization == expected || fields.get("client_secret") == SECRET;
    // A code is good once.
    let code = state.codes.lock().remove(fields.get("code"));
    let proved = |code: &Code| {
        let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(fields.get("code_verifier").as_bytes()));
        hash == code.challenge && code.redirect_uri == fields.get("redirect_uri")
    };
    let Some(code) = code.filter(|code| knows_us && proved(code)) else {
        return (400, "", json!({"error": "invalid_grant"}).to_string());
    };
    let access = format!("at-{}", code.nonce.len() + state.tokens.lock().len());
    state.tokens.lock().insert(access.clone(), code.person.clone());
    let id_token = id_token(addr, fault, &code, *state.now.lock());
    (
        200,
        "",
        json!({"access_token": access, "token_type": "bearer", "expires_in": 60, "id_token": id_token}).to_string(),
    )
}

fn id_token(addr: SocketAddr, fault: Fault, code: &Code, now: Option<u64>) -> String {
    let real = tollgate::clock::Clock::system().now().0 / 1000;
    let now = now.unwrap_or(real);
    let claims = json!({
        "iss": if fault == Fault::WrongIssuer { "http://evil.example".to_owned() } else { format!("http://{addr}") },
        "aud": if fault == Fault::WrongAudience { "somebody-else" } else { CLIENT },
        "sub": code.person.subject,
        "email": code.person.email,
        "email_verified": code.person.verified,
        "name": "Ann Example",
        "nonce": if fault == Fault::WrongNonce { "another" } else { code.nonce.as_str() },
        "iat": now - 10,
        "exp": if fault == Fault::Expired { now - 5 } else { now + 300 },
    });
    if fault == Fault::UnsignedToken {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        return format!("{}.{}.", part(&json!({"alg": "none", "typ": "JWT"})), part(&claims));
    }
    let header =
        jsonwebtoken::Header { kid: Some("k1".into()), ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::RS256) };
    let base64: String = KEY.lines().filter(|line| !line.starts_with("-----")).collect();
    let key = jsonwebtoken::EncodingKey::from_rsa_der(&STANDARD.decode(base64).unwrap());
    let mut token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
    if fault == Fault::BadSignature {
        let last = if token.ends_with('A') { "B" } else { "A" };
        let at = token.len() - 10;
        token.replace_range(at..=at, last);
    }
    token
}

fn github(state: &State, path: &str, authorization: &str) -> (u16, &'static str, String) {
    let token = authorization.strip_prefix("Bearer ").unwrap_or_default();
    let Some(person) = state.tokens.lock().get(token).cloned() else { return (401, "", "{}".to_owned()) };
    let id: u64 = person.subject.parse().unwrap();
    let answer = if path == "/user" {
        json!({"id": id, "login": "ann-gh", "name": "Ann"})
    } else {
        json!([{"email": "other@example.com", "primary": false, "verified": true},
            {"email": person.email, "primary": true, "verified": person.verified}])
    };
    (200, "", answer.to_string())
}
