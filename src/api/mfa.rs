//! `/v1/users/mfa` and `/v1/admin-panel/mfa`: second factors of users, and of staff.
//!
//! Owns these paths. Switching one off, or making new recovery codes, asks for password and code both: a stolen session must
//! not be able to take the second factor away.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admin::{Side, SideState, act_of};
use super::public::Api;
use super::shapes::Done;
use crate::accounts::Accounts;
use crate::accounts::mfa::{FactorSetup, FactorStatus};
use crate::accounts::own::Proof;
use crate::accounts::secrets::Minted;
use crate::accounts::staff::StaffIdentity;
use crate::actors::audit::{Action, Record};
use crate::domain::ids::StaffId;
use crate::domain::session::{Principal, StaffRole};
use crate::error::Reject;
use crate::handler::acts::own_act;
use crate::handler::extract::Call;
use crate::handler::render::{self, Answer};

pub(super) fn paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
        .routes(routes!(status))
        .routes(routes!(set_up))
        .routes(routes!(enable))
        .routes(routes!(disable))
        .routes(routes!(renew))
}

pub(super) fn side_paths() -> OpenApiRouter<SideState> {
    OpenApiRouter::new()
        .routes(routes!(staff_status))
        .routes(routes!(staff_set_up))
        .routes(routes!(staff_enable))
        .routes(routes!(staff_disable))
        .routes(routes!(staff_renew))
}

#[derive(Serialize, ToSchema)]
struct Status {
    #[schema(example = true)]
    success: bool,
    enabled: bool,
    /// Set up, and no code of it seen yet.
    pending: bool,
    recovery_codes_left: usize,
}

impl From<FactorStatus> for Status {
    fn from(status: FactorStatus) -> Self {
        let FactorStatus { enabled, pending, recovery_codes_left } = status;
        Self { success: true, enabled, pending, recovery_codes_left }
    }
}

/// What an authenticator needs, shown here and never again.
#[derive(Serialize, ToSchema)]
struct SetUp {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    /// Base32, to be typed.
    secret: String,
    #[schema(example = "otpauth://totp/…")]
    uri: String,
    /// The same as a picture.
    #[schema(example = "data:image/svg+xml;base64,…")]
    qr: String,
}

impl From<FactorSetup> for SetUp {
    fn from(made: FactorSetup) -> Self {
        let text = |secret: &Minted| secret.expose().to_owned();
        Self {
            success: true,
            message: "Scan the picture, then send a code to mfa/enable",
            secret: text(&made.secret),
            uri: text(&made.uri),
            qr: text(&made.qr),
        }
    }
}

#[derive(Serialize, ToSchema)]
struct Codes {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    /// Each is good for one login without the authenticator; shown here and never again.
    recovery_codes: Vec<String>,
}

impl Codes {
    fn of(message: &'static str, codes: &[Minted]) -> Self {
        let recovery_codes = codes.iter().map(|code| code.expose().to_owned()).collect();
        Self { success: true, message, recovery_codes }
    }
}

#[derive(ToSchema)]
struct PasswordOnly {
    /// Of accounts that have one.
    #[schema(value_type = Option<String>, format = Password)]
    password: Proof,
}

impl PasswordOnly {
    fn read(call: &Call) -> Result<Self, Reject> {
        let mut fields = call.fields()?;
        let request = Self { password: fields.proof("password", call)? };
        fields.done()?;
        Ok(request)
    }
}

#[derive(ToSchema)]
struct CodeOnly {
    #[schema(example = "123456")]
    code: String,
}

impl CodeOnly {
    fn read(call: &Call) -> Result<Self, Reject> {
        let mut fields = call.fields()?;
        let request = Self { code: fields.text("code") };
        fields.done()?;
        Ok(request)
    }
}

#[derive(ToSchema)]
struct PasswordAndCode {
    /// Of accounts that have one.
    #[schema(value_type = Option<String>, format = Password)]
    password: Proof,
    /// Of the second factor, or a recovery code.
    #[schema(example = "123456")]
    code: String,
}

impl PasswordAndCode {
    fn read(call: &Call) -> Result<Self, Reject> {
        let mut fields = call.fields()?;
        let request = Self { password: fields.proof("password", call)?, code: fields.text("code") };
        fields.done()?;
        Ok(request)
    }
}

/// How it stands with the caller's second factor.
#[utoipa::path(get, path = "/v1/users/mfa", tag = "mfa", security(("session" = [])),
    responses((status = 200, body = Status)))]
async fn status(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    render::ok(Status::from(accounts.factor_status(Principal::User(user.id))?))
}

/// Makes a secret for an authenticator; it is asked for after `mfa/enable`.
#[utoipa::path(post, path = "/v1/users/mfa/setup", tag = "mfa", request_body = PasswordOnly, security(("session" = [])),
    responses((status = 200, body = SetUp)))]
async fn set_up(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let PasswordOnly { password } = PasswordOnly::read(&call)?;
    let (record, address) = (own_act(&call, Action::MfaSetUp, &user), call.address);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.prove_password(user.id, password, address).await?;
        accounts.set_up_factor(Principal::User(user.id), &user.email).await
    };
    render::ok(SetUp::from(accounts.audited(record, act, |_, record| record).await?))
}

/// Switches the second factor on with a code of it.
#[utoipa::path(post, path = "/v1/users/mfa/enable", tag = "mfa", request_body = CodeOnly, security(("session" = [])),
    responses((status = 200, body = Codes)))]
async fn enable(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let CodeOnly { code } = CodeOnly::read(&call)?;
    let (record, address) = (own_act(&call, Action::MfaEnabled, &user), call.address);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.enable_factor(Principal::User(user.id), &code, address).await
    };
    let codes = accounts.audited(record, act, |_, record| record).await?;
    render::ok(Codes::of("Second factor on", &codes))
}

/// Switches the second factor off.
#[utoipa::path(post, path = "/v1/users/mfa/disable", tag = "mfa", request_body = PasswordAndCode,
    security(("session" = [])), responses((status = 200, body = Done)))]
async fn disable(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let PasswordAndCode { password, code } = PasswordAndCode::read(&call)?;
    let (record, address) = (own_act(&call, Action::MfaDisabled, &user), call.address);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.prove_password(user.id, password, address).await?;
        let whose = Principal::User(user.id);
        accounts.prove_factor(whose, &code, address).await?;
        accounts.disable_factor(whose).await
    };
    accounts.audited(record, act, |(), record| record).await?;
    render::ok(Done::new("Second factor off"))
}

/// Makes new recovery codes; the old ones open nothing any more.
#[utoipa::path(post, path = "/v1/users/mfa/recovery-codes", tag = "mfa", request_body = PasswordAndCode,
    security(("session" = [])), responses((status = 200, body = Codes)))]
async fn renew(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let PasswordAndCode { password, code } = PasswordAndCode::read(&call)?;
    let (record, address) = (own_act(&call, Action::RecoveryCodesMade, &user), call.address);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.prove_password(user.id, password, address).await?;
        let whose = Principal::User(user.id);
        accounts.prove_factor(whose, &code, address).await?;
        accounts.renew_recovery_codes(whose).await
    };
    let codes = accounts.audited(record, act, |_, record| record).await?;
    render::ok(Codes::of("New recovery codes", &codes))
}

/// Who calls on the side port, also with a session that is there to set up a second factor. The operator has none.
fn member(side: &SideState, call: &Call) -> Result<(StaffIdentity, StaffId), Reject> {
    let (who, _) = side.accounts.staff_in_setup(call.token()?, StaffRole::New)?;
    let id = who.id.ok_or(Reject::NotFound)?;
    Ok((who, id))
}

fn staff_act(who: &StaffIdentity, call: &Call, action: Action) -> Record {
    act_of(who, call, action)
}

/// How it stands with the caller's second factor.
#[utoipa::path(get, path = "/v1/admin-panel/mfa", tag = "mfa", security(("staff" = ["new"])),
    responses((status = 200, body = Status)))]
async fn staff_status(State(side): Side, call: Call) -> Answer {
    let (_, id) = member(&side, &call)?;
    render::ok(Status::from(side.accounts.factor_status(Principal::Staff(id))?))
}

/// Makes a secret for an authenticator; it is asked for after `mfa/enable`.
#[utoipa::path(post, path = "/v1/admin-panel/mfa/setup", tag = "mfa", request_body = PasswordOnly,
    security(("staff" = ["new"])), responses((status = 200, body = SetUp)))]
async fn staff_set_up(State(side): Side, call: Call) -> Answer {
    let (who, id) = member(&side, &call)?;
    let PasswordOnly { password } = PasswordOnly::read(&call)?;
    let (record, address) = (staff_act(&who, &call, Action::MfaSetUp), call.address);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.prove_staff_password(id, password, address).await?;
        accounts.set_up_factor(Principal::Staff(id), &who.username).await
    };
    render::ok(SetUp::from(side.accounts.audited(record, act, |_, record| record).await?))
}

/// Switches the second factor on with a code of it.
#[utoipa::path(post, path = "/v1/admin-panel/mfa/enable", tag = "mfa", request_body = CodeOnly,
    security(("staff" = ["new"])), responses((status = 200, body = Codes)))]
async fn staff_enable(State(side): Side, call: Call) -> Answer {
    let (who, id) = member(&side, &call)?;
    let CodeOnly { code } = CodeOnly::read(&call)?;
    let (record, address) = (staff_act(&who, &call, Action::MfaEnabled), call.address);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.enable_factor(Principal::Staff(id), &code, address).await
    };
    let codes = side.accounts.audited(record, act, |_, record| record).await?;
    render::ok(Codes::of("Second factor on", &codes))
}

/// Switches the second factor off.
#[utoipa::path(post, path = "/v1/admin-panel/mfa/disable", tag = "mfa", request_body = PasswordAndCode,
    security(("staff" = ["new"])), responses((status = 200, body = Done)))]
async fn staff_disable(State(side): Side, call: Call) -> Answer {
    let (who, id) = member(&side, &call)?;
    let PasswordAndCode { password, code } = PasswordAndCode::read(&call)?;
    let (record, address) = (staff_act(&who, &call, Action::MfaDisabled), call.address);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.prove_staff_password(id, password, address).await?;
        accounts.prove_factor(Principal::Staff(id), &code, address).await?;
        accounts.disable_factor(Principal::Staff(id)).await
    };
    side.accounts.audited(record, act, |(), record| record).await?;
    render::ok(Done::new("Second factor off"))
}

/// Makes new recovery codes; the old ones open nothing any more.
#[utoipa::path(post, path = "/v1/admin-panel/mfa/recovery-codes", tag = "mfa", request_body = PasswordAndCode,
    security(("staff" = ["new"])), responses((status = 200, body = Codes)))]
async fn staff_renew(State(side): Side, call: Call) -> Answer {
    let (who, id) = member(&side, &call)?;
    let PasswordAndCode { password, code } = PasswordAndCode::read(&call)?;
    let (record, address) = (staff_act(&who, &call, Action::RecoveryCodesMade), call.address);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.prove_staff_password(id, password, address).await?;
        accounts.prove_factor(Principal::Staff(id), &code, address).await?;
        accounts.renew_recovery_codes(Principal::Staff(id)).await
    };
    let codes = side.accounts.audited(record, act, |_, record| record).await?;
    render::ok(Codes::of("New recovery codes", &codes))
}
