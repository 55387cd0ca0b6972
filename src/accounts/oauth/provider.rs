//! Identity providers: OpenID Connect by discovery, and GitHub.
//!
//! Owns what is asked of a provider and what of its answers is believed: an ID token only with the right signature, issuer,
//! audience, time and nonce; an address only as verified as the provider says. Never decides whose account it is.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use oauth2::basic::BasicClient;
use openidconnect::core::{CoreAuthenticationFlow, CoreClient, CoreProviderMetadata};
use openidconnect::{
    AuthUrl, AuthorizationCode, ClaimsVerificationError, ClientId, ClientSecret, CsrfToken, IssuerUrl, Nonce,
    PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope, TokenResponse, TokenUrl,
};
use parking_lot::Mutex;
use serde::Deserialize;

use super::http::{HttpClient, HttpError};
use crate::clock::{Clock, Monotonic};
use crate::config::{OauthKind, OauthProvider};

/// How long what a provider publishes is used without asking again.
const METADATA_LASTS: Duration = Duration::from_secs(3600);
/// An unknown key has it asked again, but no more often than this.
const METADATA_PAUSE: Duration = Duration::from_secs(30);

/// What a provider says of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Unique at this provider, and never given to somebody else.
    pub subject: String,
    pub email: Option<String>,
    pub email_verified: bool,
    pub name: Option<String>,
    pub username: Option<String>,
}

/// Why somebody could not be identified. Neither goes to the client in words.
#[derive(Debug)]
pub enum Failure {
    /// The provider was not reached, or makes no sense.
    Provider(String),
    /// It was, and what it says is not to be believed, or it refuses the code.
    Refused(String),
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        Self::Provider(error.to_string())
    }
}

/// What is kept between the way out and the way back.
#[derive(Clone)]
pub struct Secrets {
    pub state: String,
    pub nonce: String,
    pub verifier: String,
}

type Sending = Pin<Box<dyn Future<Output = Result<http::Response<Vec<u8>>, HttpError>> + Send>>;

pub struct Provider {
    pub config: OauthProvider,
    http: HttpClient,
    clock: Clock,
    /// With the time it was read.
    metadata: Mutex<Option<(Monotonic, Arc<CoreProviderMetadata>)>>,
}

impl Provider {
    /// # Errors
    /// As [`HttpClient::new`].
    pub fn new(config: OauthProvider, clock: Clock) -> Result<Self, HttpError> {
        Ok(Self { http: HttpClient::new(config.private_network)?, config, clock, metadata: Mutex::new(None) })
    }

    /// Whether the answer names its issuer as it must, if it names one (RFC 9207).
    pub async fn accepts_issuer(&self, iss: Option<&str>) -> Result<bool, Failure> {
        match (self.config.kind, iss) {
            (OauthKind::Oidc, Some(iss)) => Ok(iss == self.config.issuer.as_str()),
            (OauthKind::Github, Some(_)) => Ok(false),
            (_, None) => Ok(true),
        }
    }

    /// Where the browser is to go.
    ///
    /// # Errors
    /// [`Failure::Provider`].
    pub async fn authorize(&self, callback: &str, secrets: &Secrets) -> Result<String, Failure> {
        let verifier = PkceCodeVerifier::new(secrets.verifier.clone());
        let challenge = PkceCodeChallenge::from_code_verifier_sha256(&verifier);
        let redirect = RedirectUrl::new(callback.to_owned()).map_err(broken)?;
        let (state, nonce) = (secrets.state.clone(), secrets.nonce.clone());
        let scopes = self.config.scopes.iter().map(|scope| Scope::new(scope.clone()));
        let url = match self.config.kind {
            OauthKind::Oidc => {
                let metadata = self.metadata(METADATA_LASTS).await?;
                let client =
                    CoreClient::from_provider_metadata((*metadata).clone(), self.client_id(), Some(self.secret()));
                let client = client.set_redirect_uri(redirect);
                let request = client.authorize_url(
                    CoreAuthenticationFlow::AuthorizationCode,
                    move || CsrfToken::new(state.clone()),
                    move || Nonce::new(nonce.clone()),
                );
                request
                    .add_scopes(scopes.filter(|scope| scope.as_str() != "openid"))
                    .set_pkce_challenge(challenge)
                    .url()
                    .0
            }
            OauthKind::Github => {
                let auth = oauth2::AuthUrl::new(self.config.authorize_url.clone()).map_err(broken)?;
                let client = BasicClient::new(self.client_id()).set_auth_uri(auth).set_redirect_uri(redirect);
                let request = client.authorize_url(move || CsrfToken::new(state.clone()));
                request.add_scopes(scopes).set_pkce_challenge(challenge).url().0
            }
        };
        Ok(url.to_string())
    }

    /// Exchanges the code that came back for what the provider says of its owner.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn identify(&self, code: &str, callback: &str, secrets: &Secrets) -> Result<Claims, Failure> {
        match self.config.kind {
            OauthKind::Oidc => self.identify_by_token(code, callback, secrets).await,
            OauthKind::Github => self.identify_at_github(code, callback, secrets).await,
        }
    }

    /// The HTTP client as the libraries take it.
    fn sender(&self) -> impl Fn(http::Request<Vec<u8>>) -> Sending + Send + Sync + use<> {
        let client = self.http.clone();
        move |request| {
            let client = client.clone();
            Box::pin(async move { client.send(request).await })
        }
    }

    fn client_id(&self) -> ClientId {
        ClientId::new(self.config.client_id.clone())
    }

    fn secret(&self) -> ClientSecret {
        ClientSecret::new(self.config.client_secret.clone())
    }

    /// What the provider publishes, asked anew when it is older than `lasts`.
    async fn metadata(&self, lasts: Duration) -> Result<Arc<CoreProviderMetadata>, Failure> {
        let now = self.clock.monotonic();
        if let Some((at, known)) = &*self.metadata.lock()
            && now.since(*at) < lasts
        {
            return Ok(known.clone());
        }
        let issuer = IssuerUrl::new(self.config.issuer.clone()).map_err(broken)?;
        let http = self.sender();
        // Refuses metadata of another issuer.
        let read = CoreProviderMetadata::discover_async(issuer, &http).await;
        let read = Arc::new(read.map_err(|error| Failure::Provider(chain(&error)))?);
        *self.metadata.lock() = Some((now, read.clone()));
        Ok(read)
    }

    async fn identify_by_token(&self, code: &str, callback: &str, secrets: &Secrets) -> Result<Claims, Failure> {
        let metadata = self.metadata(METADATA_LASTS).await?;
        let client = CoreClient::from_provider_metadata((*metadata).clone(), self.client_id(), Some(self.secret()))
            .set_redirect_uri(RedirectUrl::new(callback.to_owned()).map_err(broken)?);
        let request = client.exchange_code(AuthorizationCode::new(code.to_owned())).map_err(broken)?;
        let request = request.set_pkce_verifier(PkceCodeVerifier::new(secrets.verifier.clone()));
        let http = self.sender();
        let answer = request.request_async(&http).await.map_err(|error| refused_or_broken(&error))?;
        let token = answer.id_token().ok_or_else(|| Failure::Refused("there is no ID token".into()))?;
        let nonce = Nonce::new(secrets.nonce.clone());
        let now = chrono_of(&self.clock);
        let verify = |metadata: &CoreProviderMetadata| {
            let client = CoreClient::from_provider_metadata(metadata.clone(), self.client_id(), Some(self.secret()));
            let verifier = client.id_token_verifier().set_time_fn(move || now);
            token.claims(&verifier, &nonce).cloned()
        };
        let claims = match verify(&metadata) {
            // Its keys may have changed since they were read.
            Err(ClaimsVerificationError::SignatureVerification(_)) => verify(&*self.metadata(METADATA_PAUSE).await?),
            other => other,
        };
        let claims = claims.map_err(|error| Failure::Refused(chain(&error)))?;
        let text = |name: Option<&openidconnect::LocalizedClaim<openidconnect::EndUserName>>| {
            name.and_then(|names| names.get(None)).map(|name| name.to_string())
        };
        Ok(Claims {
            subject: claims.subject().to_string(),
            email: claims.email().map(|email| email.to_string()),
            email_verified: claims.email_verified().unwrap_or(false),
            name: text(claims.name()),
            username: claims.preferred_username().map(|name| name.to_string()),
        })
    }

    async fn identify_at_github(&self, code: &str, callback: &str, secrets: &Secrets) -> Result<Claims, Failure> {
        let client = BasicClient::new(self.client_id())
            .set_client_secret(self.secret())
            .set_auth_uri(AuthUrl::new(self.config.authorize_url.clone()).map_err(broken)?)
            .set_token_uri(TokenUrl::new(self.config.token_url.clone()).map_err(broken)?)
            .set_redirect_uri(RedirectUrl::new(callback.to_owned()).map_err(broken)?);
        let request = client.exchange_code(AuthorizationCode::new(code.to_owned()));
        let request = request.set_pkce_verifier(PkceCodeVerifier::new(secrets.verifier.clone()));
        let http = self.sender();
        let answer = request.request_async(&http).await.map_err(|error| refused_or_broken(&error))?;
        let token = oauth2::TokenResponse::access_token(&answer).secret().clone();
        let user: GithubUser = self.ask_github("/user", &token).await?;
        let emails: Vec<GithubEmail> = self.ask_github("/user/emails", &token).await?;
        let primary = emails.into_iter().find(|email| email.primary);
        Ok(Claims {
            subject: user.id.to_string(),
            email_verified: primary.as_ref().is_some_and(|email| email.verified),
            email: primary.map(|email| email.email),
            name: user.name,
            username: Some(user.login),
        })
    }

    async fn ask_github<T: serde::de::DeserializeOwned>(&self, path: &str, token: &str) -> Result<T, Failure> {
        let request = http::Request::get(format!("{}{path}", self.config.api_url.trim_end_matches('/')))
            .header("authorization", format!("Bearer {token}"))
            .header("accept", "application/vnd.github+json")
            .body(Vec::new())
            .map_err(broken)?;
        let answer = self.http.send(request).await?;
        if !answer.status().is_success() {
            return Err(Failure::Refused(format!("{path} answers {}", answer.status())));
        }
        serde_json::from_slice(answer.body()).map_err(|error| Failure::Provider(format!("{path}: {error}")))
    }
}

#[derive(Deserialize)]
struct GithubUser {
    id: u64,
    login: String,
    name: Option<String>,
}

#[derive(Deserialize)]
struct GithubEmail {
    email: String,
    primary: bool,
    verified: bool,
}

fn broken(error: impl std::error::Error) -> Failure {
    Failure::Provider(chain(&error))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

fn refused_or_broken<E, T>(error: &oauth2::RequestTokenError<E, T>) -> Failure
where
    E: std::error::Error + 'static,
    T: oauth2::ErrorResponse + 'static,
{
    match error {
        // A code that is expired, used or another client's.
        oauth2::RequestTokenError::ServerResponse(_) => Failure::Refused(chain(error)),
        _ => Failure::Provider(chain(error)),
    }
}

fn chrono_of(clock: &Clock) -> chrono::DateTime<chrono::Utc> {
    chrono::DateTime::from_timestamp_millis(clock.now().0 as i64).unwrap_or_default()
}
