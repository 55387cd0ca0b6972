//! Tokens of sessions: signed ones (JWT, RFC 7519 and 9068) or random ones.
//!
//! Owns the keys that sign, and what a token says. A token opens nothing by its signature: its session is found by the MAC
//! of the whole token, and that row is the truth. Signature and claims are checked on top, so that a row and its token must
//! agree. Never accepts another algorithm than the configured one, nor a key that a token brings along.
//!
//! `data_dir/secrets/session-signing` holds one secret a line: the first signs, the others only verify. To change the key,
//! put a new line before the old ones; an old line can go when the last refresh token under it has ended.

use std::fmt;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::secrets::{self, Minted, Pepper};
use crate::clock;
use crate::clock::UnixMillis;
use crate::config::{TokenForm, Tokens as TokensConfig};
use crate::domain::session::{Principal, Session, TokenLook};
use crate::error::Reject;

/// The least a signing secret must have, in bytes.
pub const MIN_KEY_BYTES: usize = 32;
/// Lines of the key file that are read.
const MAX_KEYS: usize = 8;
/// Of an id of a token, in bytes.
const ID_BYTES: usize = 16;
/// RFC 8410: what stands before the 32 bytes of an Ed25519 key in PKCS #8.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenUse {
    Access,
    Refresh,
}

impl TokenUse {
    /// The header's `typ` (RFC 9068 §2.1), so that one kind never passes for the other.
    pub fn typ(self) -> &'static str {
        match self {
            Self::Access => "at+jwt",
            Self::Refresh => "rt+jwt",
        }
    }
}

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    /// The number of the user or the member of the staff.
    sub: String,
    sid: u64,
    iat: u64,
    exp: u64,
    jti: String,
}

/// One public key, as others may read it (RFC 8037).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    pub kid: String,
    /// The 32 bytes in base64url.
    pub x: String,
}

struct VerifyingKey {
    kid: Option<String>,
    key: DecodingKey,
}

/// Where the ids in a session's tokens come from.
#[derive(Clone, Copy)]
pub(super) enum Lineage<'a> {
    /// A new session.
    Fresh,
    /// What follows this refresh token: always the same for the same one.
    After(&'a str),
}

/// Makes and checks tokens.
pub struct TokenMint {
    form: TokenForm,
    algorithm: Algorithm,
    issuer: String,
    audience: String,
    kid: Option<String>,
    signing: EncodingKey,
    verifying: Vec<VerifyingKey>,
    public: Vec<PublicKey>,
}

impl fmt::Debug for TokenMint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenMint").field("form", &self.form).field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl TokenMint {
    /// With the keys of a data directory, which are made there on the first start.
    ///
    /// # Errors
    /// The file cannot be read or made, or holds too much or too little.
    pub fn load_or_create(config: &TokensConfig, data_dir: &Path) -> io::Result<Self> {
        let text = secrets::load_or_create_key(data_dir, "session-signing")?;
        let lines: Vec<&[u8]> =
            text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()).collect();
        let file = data_dir.join("secrets/session-signing");
        Self::eddsa(config, &lines).map_err(|why| io::Error::other(format!("{}: {why}", file.display())))
    }

    /// # Errors
    /// The secret is shorter than [`MIN_KEY_BYTES`].
    pub fn hs256(config: &TokensConfig, secret: &[u8]) -> Result<Self, String> {
        if secret.len() < MIN_KEY_BYTES {
            return Err(format!("{} bytes are too few; at least {MIN_KEY_BYTES}", secret.len()));
        }
        Ok(Self {
            form: config.session,
            algorithm: Algorithm::HS256,
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            kid: None,
            signing: EncodingKey::from_secret(secret),
            verifying: vec![VerifyingKey { kid: None, key: DecodingKey::from_secret(secret) }],
            public: Vec::new(),
        })
    }

    /// # Errors
    /// There is no secret, there are more than eight, or one is shorter than [`MIN_KEY_BYTES`].
    pub fn eddsa(config: &TokensConfig, secrets: &[&[u8]]) -> Result<Self, String> {
        if secrets.is_empty() || secrets.len() > MAX_KEYS {
            return Err(format!("1 to {MAX_KEYS} lines, one secret each; {} are there", secrets.len()));
        }
        if let Some(at) = secrets.iter().position(|secret| secret.len() < MIN_KEY_BYTES) {
            return Err(format!("line {}: {} bytes are too few; at least {MIN_KEY_BYTES}", at + 1, secrets[at].len()));
        }
        let pairs = secrets.iter().map(|secret| ed25519(secret)).collect::<Result<Vec<_>, _>>()?;
        let public: Vec<PublicKey> = pairs.iter().map(|(_, public)| public.clone()).collect();
        let verifying = public
            .iter()
            .map(|public| {
                let key = DecodingKey::from_ed_components(&public.x).map_err(|error| error.to_string())?;
                Ok(VerifyingKey { kid: Some(public.kid.clone()), key })
            })
            .collect::<Result<Vec<_>, String>>()?;
        let (signing, first) = pairs.into_iter().next().ok_or("no key")?;
        Ok(Self {
            form: config.session,
            algorithm: Algorithm::EdDSA,
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            kid: Some(first.kid),
            signing,
            verifying,
            public,
        })
    }

    /// The keys that others may verify with: none when tokens are signed with a shared secret, or not at all.
    pub fn public_keys(&self) -> &[PublicKey] {
        if self.form == TokenForm::Jwt { &self.public } else { &[] }
    }

    /// Session token and refresh token of a session as its row stands.
    pub(super) fn mint(
        &self,
        pepper: &Pepper,
        session: &Session,
        lineage: Lineage<'_>,
    ) -> Result<(Minted, Minted), Reject> {
        let form = if session.style.look.is_some() { TokenForm::Opaque } else { self.form };
        let prefixes = session.style.look.map_or(secrets::TOKEN_PREFIXES, TokenLook::prefixes);
        match (form, lineage) {
            (TokenForm::Opaque, Lineage::After(refresh_token)) => {
                Ok(secrets::successors_of(pepper, refresh_token, prefixes))
            }
            (TokenForm::Opaque, Lineage::Fresh) => {
                secrets::mint_tokens(prefixes).map_err(|error| super::no_randomness(&error))
            }
            (TokenForm::Jwt, Lineage::After(refresh_token)) => {
                let id = |space: &str| {
                    let mac = pepper.mac_in(space, refresh_token.as_bytes());
                    URL_SAFE_NO_PAD.encode(&mac.0[..ID_BYTES])
                };
                let access = self.sign(session, TokenUse::Access, id("next session token"))?;
                Ok((access, self.sign(session, TokenUse::Refresh, id("next refresh token"))?))
            }
            (TokenForm::Jwt, Lineage::Fresh) => {
                let id = || {
                    let mut bytes = [0u8; ID_BYTES];
                    clock::random_bytes(&mut bytes).map_err(|error| super::no_randomness(&error))?;
                    Ok::<_, Reject>(URL_SAFE_NO_PAD.encode(bytes))
                };
                let access = self.sign(session, TokenUse::Access, id()?)?;
                Ok((access, self.sign(session, TokenUse::Refresh, id()?)?))
            }
        }
    }

    /// The same row and id give the same bytes: Ed25519 and HMAC have no randomness of their own.
    fn sign(&self, session: &Session, for_what: TokenUse, jti: String) -> Result<Minted, Reject> {
        let mut header = Header::new(self.algorithm);
        header.typ = Some(for_what.typ().to_owned());
        header.kid.clone_from(&self.kid);
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.audience_of(session.principal),
            sub: subject(session.principal),
            sid: session.id.0,
            iat: issued_at(session),
            exp: ends_at(session, for_what),
            jti,
        };
        match jsonwebtoken::encode(&header, &claims, &self.signing) {
            Ok(token) => Ok(Minted::again(token)),
            Err(error) => {
                tracing::error!(%error, "a token could not be signed");
                Err(Reject::Internal)
            }
        }
    }

    fn audience_of(&self, principal: Principal) -> String {
        match principal {
            Principal::User(_) => self.audience.clone(),
            Principal::Staff(_) => format!("{}-staff", self.audience),
        }
    }

    /// Whether a token is what its session's row says: signed by us, for this use, for this person, until then.
    pub fn agrees(&self, token: &[u8], for_what: TokenUse, session: &Session) -> bool {
        let of_use = |(access, refresh): (&'static str, &'static str)| match for_what {
            TokenUse::Access => access,
            TokenUse::Refresh => refresh,
        };
        // Random ones say nothing that could disagree; there may be some of before a change of the config.
        let own = session.style.look.map(TokenLook::prefixes);
        if [Some(secrets::TOKEN_PREFIXES), own]
            .into_iter()
            .flatten()
            .any(|both| token.starts_with(of_use(both).as_bytes()))
        {
            return true;
        }
        let audience = self.audience_of(session.principal);
        let Some(claims) = self.verify(token, for_what, &[audience]) else { return false };
        claims.sub == subject(session.principal)
            && claims.sid == session.id.0
            && claims.iat == issued_at(session)
            && claims.exp == ends_at(session, for_what)
    }

    /// Whether a token is one of ours by its signature, whatever has become of its session.
    pub fn has_signed(&self, token: &[u8]) -> bool {
        // Most made-up ones end here.
        if !token.starts_with(b"eyJ") {
            return false;
        }
        let audiences = [self.audience.clone(), format!("{}-staff", self.audience)];
        let is = |for_what| self.verify(token, for_what, &audiences).is_some();
        is(TokenUse::Access) || is(TokenUse::Refresh)
    }

    fn verify(&self, token: &[u8], for_what: TokenUse, audiences: &[String]) -> Option<Claims> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        let foreign = header.jku.is_some()
            || header.jwk.is_some()
            || header.x5u.is_some()
            || header.x5c.is_some()
            || header.crit.is_some();
        if foreign || header.typ.as_deref() != Some(for_what.typ()) {
            return None;
        }
        let known = self.verifying.iter().find(|key| key.kid == header.kid)?;
        let mut rules = Validation::new(self.algorithm);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        rules.set_issuer(&[&self.issuer]);
        rules.set_audience(audiences);
        // By the row, under our own clock.
        rules.validate_exp = false;
        jsonwebtoken::decode::<Claims>(token, &known.key, &rules).ok().map(|data| data.claims)
    }
}

/// The key pair of a secret: its hash is the private key.
fn ed25519(secret: &[u8]) -> Result<(EncodingKey, PublicKey), String> {
    let mut hash = Sha256::new();
    hash.update(b"tollgate session signing v1\0");
    hash.update(secret);
    let private = EncodingKey::from_ed_der(&[PKCS8_PREFIX.as_slice(), &hash.finalize()].concat());
    let jwk = Jwk::from_encoding_key(&private, Algorithm::EdDSA).map_err(|error| error.to_string())?;
    let AlgorithmParameters::OctetKeyPair(public) = jwk.algorithm else { return Err("is no Ed25519 key".into()) };
    let kid = URL_SAFE_NO_PAD.encode(&Sha256::digest(public.x.as_bytes())[..6]);
    Ok((private, PublicKey { kid, x: public.x }))
}

fn subject(principal: Principal) -> String {
    match principal {
        Principal::User(id) => id.0.to_string(),
        Principal::Staff(id) => id.0.to_string(),
    }
}

fn issued_at(session: &Session) -> u64 {
    session.refreshed_at.unwrap_or(session.created_at).0 / 1000
}

fn ends_at(session: &Session, for_what: TokenUse) -> u64 {
    let at: UnixMillis = match for_what {
        TokenUse::Access => session.expires_at,
        TokenUse::Refresh => session.refresh_expires_at.unwrap_or(session.expires_at),
    };
    at.0 / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{CredentialId, StaffId, UserId};
    use crate::domain::session::SessionStyle;

    fn session(principal: Principal) -> Session {
        Session {
            id: CredentialId(77),
            principal,
            created_at: UnixMillis(1_700_000_000_123),
            expires_at: UnixMillis(1_700_086_400_123),
            refresh_expires_at: Some(UnixMillis(1_702_592_000_123)),
            refresh_mac: None,
            address: None,
            user_agent: None,
            epoch: 0,
            refreshed_at: None,
            spent: Vec::new(),
            used_at: None,
            style: SessionStyle::default(),
        }
    }

    fn pepper() -> Pepper {
        Pepper::new(&[7; 32]).unwrap()
    }

    const SECRET: &[u8] = &[b'a'; 43];
    const OTHER: &[u8] = &[b'b'; 43];

    fn mint() -> TokenMint {
        TokenMint::eddsa(&TokensConfig::default(), &[SECRET]).unwrap()
    }

    #[test]
    fn a_token_agrees_with_its_own_row_and_use_alone() {
        let (mint, row) = (mint(), session(Principal::User(UserId(5))));
        let (access, refresh) = mint.mint(&pepper(), &row, Lineage::Fresh).unwrap();
        let (access, refresh) = (access.expose().as_bytes(), refresh.expose().as_bytes());
        assert!(mint.agrees(access, TokenUse::Access, &row) && mint.agrees(refresh, TokenUse::Refresh, &row));
        assert!(!mint.agrees(access, TokenUse::Refresh, &row) && !mint.agrees(refresh, TokenUse::Access, &row));
        let later = UnixMillis(row.expires_at.0 + 1000);
        for other in [
            Session { principal: Principal::User(UserId(6)), ..row.clone() },
            Session { principal: Principal::Staff(StaffId(5)), ..row.clone() },
            Session { id: CredentialId(78), ..row.clone() },
            Session { expires_at: later, ..row.clone() },
            Session { refreshed_at: Some(later), ..row.clone() },
        ] {
            assert!(!mint.agrees(access, TokenUse::Access, &other), "{other:?}");
        }
    }

    #[test]
    fn successors_come_out_the_same_to_the_byte() {
        let (mint, row) = (mint(), session(Principal::User(UserId(5))));
        let texts = |after: &str| {
            let (access, refresh) = mint.mint(&pepper(), &row, Lineage::After(after)).unwrap();
            (access.expose().to_owned(), refresh.expose().to_owned())
        };
        assert_eq!(texts("one"), texts("one"));
        assert_ne!(texts("one"), texts("two"));
        assert_ne!(texts("one").0, texts("one").1);
    }

    #[test]
    fn an_old_key_verifies_and_signs_no_more() {
        let row = session(Principal::User(UserId(5)));
        let (old, _) = mint().mint(&pepper(), &row, Lineage::Fresh).unwrap();
        let rotated = TokenMint::eddsa(&TokensConfig::default(), &[OTHER, SECRET]).unwrap();
        assert!(rotated.agrees(old.expose().as_bytes(), TokenUse::Access, &row));
        let (new, _) = rotated.mint(&pepper(), &row, Lineage::Fresh).unwrap();
        assert!(!mint().agrees(new.expose().as_bytes(), TokenUse::Access, &row), "signed with the new one");
        assert_eq!(rotated.public_keys().len(), 2);
        let gone = TokenMint::eddsa(&TokensConfig::default(), &[OTHER]).unwrap();
        assert!(!gone.agrees(old.expose().as_bytes(), TokenUse::Access, &row));
    }

    #[test]
    fn another_issuer_audience_or_algorithm_is_refused_even_with_the_right_key() {
        let row = session(Principal::User(UserId(5)));
        let with = |change: fn(&mut TokensConfig)| {
            let mut config = TokensConfig::default();
            change(&mut config);
            TokenMint::eddsa(&config, &[SECRET]).unwrap()
        };
        for other in [with(|c| c.issuer = "other".into()), with(|c| c.audience = "other".into())] {
            let (token, _) = other.mint(&pepper(), &row, Lineage::Fresh).unwrap();
            assert!(!mint().agrees(token.expose().as_bytes(), TokenUse::Access, &row));
        }
        // HS256 with the public key as its secret: what a careless verifier takes.
        let public = mint().public_keys()[0].clone();
        let forged = TokenMint::hs256(&TokensConfig::default(), public.x.as_bytes()).unwrap();
        let raw = URL_SAFE_NO_PAD.decode(&public.x).unwrap();
        let forged_raw = TokenMint::hs256(&TokensConfig::default(), &raw).unwrap();
        for mut forger in [forged, forged_raw] {
            forger.kid = Some(public.kid.clone());
            let (token, _) = forger.mint(&pepper(), &row, Lineage::Fresh).unwrap();
            assert!(!mint().agrees(token.expose().as_bytes(), TokenUse::Access, &row));
        }
    }

    #[test]
    fn the_longest_token_is_still_a_credential() {
        let config = TokensConfig { issuer: "i".repeat(64), audience: "a".repeat(32), ..TokensConfig::default() };
        let mint = TokenMint::eddsa(&config, &[SECRET]).unwrap();
        let row = Session { id: CredentialId(u64::MAX), ..session(Principal::Staff(StaffId(u64::MAX))) };
        let (access, refresh) = mint.mint(&pepper(), &row, Lineage::Fresh).unwrap();
        assert!(access.expose().len() <= secrets::MAX_CREDENTIAL_BYTES, "{}", access.expose().len());
        assert!(refresh.expose().len() <= secrets::MAX_CREDENTIAL_BYTES);
        let usual = self::mint().mint(&pepper(), &session(Principal::User(UserId(5))), Lineage::Fresh).unwrap();
        assert!(usual.0.expose().len() < 340, "{}", usual.0.expose().len());
    }

    #[test]
    fn short_keys_are_refused_and_nothing_prints_one() {
        assert!(TokenMint::eddsa(&TokensConfig::default(), &[SECRET, b"short"]).unwrap_err().contains("line 2"));
        assert!(TokenMint::eddsa(&TokensConfig::default(), &[]).is_err());
        assert!(TokenMint::hs256(&TokensConfig::default(), b"short").is_err());
        let dir = tempfile::tempdir().unwrap();
        let made = TokenMint::load_or_create(&TokensConfig::default(), dir.path()).unwrap();
        let again = TokenMint::load_or_create(&TokensConfig::default(), dir.path()).unwrap();
        assert_eq!(made.public_keys(), again.public_keys());
        let text = std::fs::read_to_string(dir.path().join("secrets/session-signing")).unwrap();
        assert!(!format!("{made:?}").contains(text.trim()));
    }
}
