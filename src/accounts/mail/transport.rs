//! The way out: SMTP, files, or the log.
//!
//! Owns what a letter looks like on the wire (RFC 5322, multipart/alternative) and which failures are for ever. Never retries.

use std::io::Write;
use std::time::Duration;

use lettre::message::{Mailbox, MultiPart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};

use super::templates::Rendered;
use crate::config::{Mail, MailTls, MailTransport};
use crate::failpoint;
use crate::store::folder;

/// Why a letter did not go.
#[derive(Debug)]
pub enum Failure {
    /// It may go later.
    Later(String),
    /// It never will.
    Never(String),
}

/// Connections idle for longer are closed.
const POOL_IDLE: Duration = Duration::from_secs(30);
const POOL_SIZE: u32 = 4;

/// The transport that a config asks for.
pub enum Transport {
    None,
    Log,
    File(std::path::PathBuf),
    Smtp(Box<AsyncSmtpTransport<Tokio1Executor>>),
}

impl Transport {
    /// # Errors
    /// A sentence that begins with the key it is about.
    pub fn new(config: &Mail) -> Result<Self, String> {
        match config.transport {
            MailTransport::None => Ok(Self::None),
            MailTransport::Log => Ok(Self::Log),
            MailTransport::File => {
                let folder = config.folder.clone().ok_or("mail.folder: is needed with transport = \"file\"")?;
                std::fs::create_dir_all(&folder).map_err(|e| format!("mail.folder: {}: {e}", folder.display()))?;
                Ok(Self::File(folder))
            }
            MailTransport::Smtp => smtp(config).map(|transport| Self::Smtp(Box::new(transport))),
        }
    }

    /// Hands one letter over.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn send(&self, id: &str, message: &Message, letter: &Rendered) -> Result<(), Failure> {
        match self {
            Self::None => Ok(()),
            Self::Log => {
                let to: Vec<String> = message.envelope().to().iter().map(ToString::to_string).collect();
                tracing::info!(
                    to = to.join(", "),
                    subject = letter.subject,
                    text = letter.text,
                    "mail (mail.transport = \"log\")"
                );
                Ok(())
            }
            Self::File(folder) => {
                let (bytes, file) = (message.formatted(), folder.join(format!("{id}.eml")));
                let wrote = tokio::task::spawn_blocking(move || {
                    // Whole or not there at all, for whoever watches the folder.
                    let unfinished = file.with_extension("tmp");
                    // It carries tokens: its owner's alone to read.
                    let mut out = folder::create_anew(&unfinished)?;
                    out.write_all(&bytes)?;
                    // On disk before the outbox forgets it.
                    out.sync_all()?;
                    std::fs::rename(&unfinished, &file)?;
                    failpoint::hit("mail.after_rename");
                    folder::sync_name(&file)
                });
                let wrote = wrote.await.map_err(|error| Failure::Later(error.to_string()))?;
                wrote.map_err(|error| Failure::Later(error.to_string()))
            }
            Self::Smtp(transport) => match transport.send(message.clone()).await {
                Ok(_) => Ok(()),
                Err(error) if error.is_permanent() && !is_about_us(&error) => Err(Failure::Never(error.to_string())),
                Err(error) => Err(Failure::Later(error.to_string())),
            },
        }
    }
}

/// A relay that does not believe who we are (RFC 4954, section 6) has nothing against the letter: it waits until the operator
/// has set that right.
fn is_about_us(error: &lettre::transport::smtp::Error) -> bool {
    let code = error.status().map(u16::from);
    matches!(code, Some(530 | 534 | 535 | 538))
}

fn smtp(config: &Mail) -> Result<AsyncSmtpTransport<Tokio1Executor>, String> {
    let sendgrid = config.sendgrid_api_key.is_some();
    let host = match (&config.host, sendgrid) {
        (Some(host), _) => host.as_str(),
        (None, true) => "smtp.sendgrid.net",
        (None, false) => return Err("mail.host: is needed with transport = \"smtp\"".into()),
    };
    let tls = || TlsParameters::new(host.to_owned()).map_err(|e| format!("mail.host: {e}"));
    let tls = match config.tls {
        MailTls::Starttls => Tls::Required(tls()?),
        MailTls::Tls => Tls::Wrapper(tls()?),
        MailTls::None => Tls::None,
    };
    let pool = lettre::transport::smtp::PoolConfig::new().max_size(POOL_SIZE).idle_timeout(POOL_IDLE);
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
        .port(config.port)
        .tls(tls)
        .timeout(Some(config.timeout.0))
        .pool_config(pool);
    let credentials = match (&config.sendgrid_api_key, &config.username, &config.password) {
        (Some(key), _, _) => {
            Some(("apikey".to_owned(), key.read().map_err(|why| format!("mail.sendgrid_api_key: {why}"))?))
        }
        (None, Some(user), Some(password)) => {
            Some((user.clone(), password.read().map_err(|why| format!("mail.password: {why}"))?))
        }
        (None, Some(_), None) => return Err("mail.password: is needed with mail.username".into()),
        (None, None, _) => None,
    };
    if let Some((user, password)) = credentials {
        builder = builder.credentials(Credentials::new(user, password));
    }
    Ok(builder.build())
}

/// A letter as a message. `id` stays the same over all tries, so that a second copy can be told.
///
/// # Errors
/// A sentence: an address that no mail can have, for instance.
pub fn message(config: &Mail, to: &str, id: &str, letter: &Rendered) -> Result<Message, String> {
    let from = sender(config)?;
    let domain = from.email.domain().to_owned();
    let to: Address = to.parse().map_err(|_| "the address is none".to_owned())?;
    Message::builder()
        .message_id(Some(format!("<{id}@{domain}>")))
        .from(from)
        .to(Mailbox::new(None, to))
        .subject(letter.subject.clone())
        .multipart(MultiPart::alternative_plain_html(letter.text.clone(), letter.html.clone()))
        .map_err(|error| error.to_string())
}

/// Whom letters come from.
///
/// # Errors
/// A sentence that begins with the key it is about.
pub fn sender(config: &Mail) -> Result<Mailbox, String> {
    let from = config.from.as_deref().ok_or("mail.from: is needed to send mail, such as \"noreply@example.com\"")?;
    let address: Address = from.parse().map_err(|_| format!("mail.from: \"{from}\" is not an email address"))?;
    Ok(Mailbox::new(config.from_name.clone(), address))
}
