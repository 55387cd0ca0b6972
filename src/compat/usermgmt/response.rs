//! What the user management backend's clients read.

use serde::Serialize;
use utoipa::ToSchema;

use crate::accounts::checks::Checked;
use crate::accounts::keys::KeyView;
use crate::accounts::registration;
use crate::accounts::secrets::Minted;
use crate::accounts::sessions::SessionView;
use crate::accounts::users::MeterView;
use crate::clock::UnixMillis;
use crate::domain::meters::Micro;
use crate::domain::session::Staff;
use crate::domain::user::{Status, User};
use crate::handler::values::{Amount, Time};

#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::Registered)]
pub(super) struct Registered {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    /// Shown this once; `GET api-key` answers it sealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "pe-…")]
    api_key: Option<String>,
    verification_required: bool,
    /// What speaks against the password, which was taken all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl Registered {
    pub(super) fn new(made: &registration::Registered, warnings: Vec<String>) -> Self {
        Self {
            success: true,
            message: "User registered successfully",
            user_id: Some(made.user.id.0),
            username: Some(made.user.username.to_string()),
            email: Some(made.user.email.to_string()),
            api_key: Some(made.api_key.expose().to_owned()),
            verification_required: made.verification_required,
            warnings,
        }
    }

    /// What a strict service says to everybody.
    pub(super) fn unsaid(warnings: Vec<String>) -> Self {
        Self {
            success: true,
            message: "Thank you. Please look into your mail",
            user_id: None,
            username: None,
            email: None,
            api_key: None,
            verification_required: true,
            warnings,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::Token)]
pub(super) struct Token {
    #[schema(example = "eyJ…")]
    access_token: String,
    #[schema(example = "bearer")]
    token_type: &'static str,
    /// Seconds.
    expires_in: u64,
    /// For `POST /v1/users/refresh`.
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
}

impl Token {
    pub(super) fn new(session: &SessionView, now: UnixMillis) -> Self {
        Self {
            access_token: session.session_token.expose().to_owned(),
            token_type: "bearer",
            expires_in: session.expires_at.0.saturating_sub(now.0) / 1000,
            refresh_token: session.refresh_token.as_ref().map(|token| token.expose().to_owned()),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::Credits)]
struct Credits {
    main: Amount,
    reset: Amount,
}

#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::Limits)]
struct Limits {
    conversation_limit: Amount,
    reset: Amount,
}

/// A user, as this system's table has him.
#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::Person)]
pub(super) struct Person {
    id: u64,
    #[schema(example = "testuser")]
    username: String,
    name: String,
    #[schema(example = "test@example.com")]
    email: String,
    about_me: String,
    hobbies: String,
    /// `Personal` or `Business`.
    r#type: &'static str,
    time_created: Time,
    #[schema(example = "free")]
    subscription_plan: String,
    credits: Credits,
    limits: Limits,
    access_rtype: Vec<String>,
    level: String,
    is_active: bool,
    last_limit_reset: Option<Time>,
    /// Staff's own; not shown to the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    additional_notes: Option<String>,
}

impl Person {
    pub(super) fn new(user: &User, meters: &[MeterView]) -> Self {
        let of = |name: &str| meters.iter().find(|view| view.name.as_str() == name);
        let both = |view: Option<&MeterView>| {
            let amount = |of: fn(&MeterView) -> Micro| Amount(view.map_or(Micro::ZERO, of));
            (amount(MeterView::shown_balance), amount(MeterView::shown_reset))
        };
        let conversations = of("conversations");
        let ((main, credits_reset), (conversation_limit, reset)) = (both(of("credits")), both(conversations));
        Self {
            id: user.id.0,
            username: user.username.to_string(),
            name: user.name.clone(),
            email: user.email.to_string(),
            about_me: user.about_me.clone(),
            hobbies: user.hobbies.clone(),
            r#type: user.user_type.as_str(),
            time_created: user.created_at.into(),
            subscription_plan: user.plan.to_string(),
            credits: Credits { main, reset: credits_reset },
            limits: Limits { conversation_limit, reset },
            access_rtype: user.access_rtype.clone(),
            level: user.level.clone(),
            is_active: matches!(user.status, Status::Active | Status::Pending),
            last_limit_reset: conversations.and_then(|view| view.reset_at).map(|at| at.max(user.created_at).into()),
            additional_notes: None,
        }
    }

    pub(super) fn for_staff(user: &User, meters: &[MeterView]) -> Self {
        Self { additional_notes: Some(user.additional_notes.clone()), ..Self::new(user, meters) }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::Updated)]
pub(super) struct Updated {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    user: Person,
}

impl Updated {
    pub(super) fn new(message: &'static str, user: Person) -> Self {
        Self { success: true, message, user }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::OwnKey)]
pub(super) struct OwnKey {
    /// Sealed; masked where only a hash of it is kept.
    #[schema(example = "enc:v1:…")]
    key: String,
    created_at: Time,
}

impl From<KeyView> for OwnKey {
    fn from(key: KeyView) -> Self {
        Self { key: key.sealed.unwrap_or(key.masked), created_at: key.created_at.into() }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::NewKey)]
pub(super) struct NewKey {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    /// Shown this once.
    #[schema(example = "pe-…")]
    api_key: String,
}

impl NewKey {
    pub(super) fn new(key: &Minted) -> Self {
        Self { success: true, message: "API key regenerated successfully", api_key: key.expose().to_owned() }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::ValidKey)]
pub(super) struct ValidKey {
    #[schema(example = true)]
    valid: bool,
    #[schema(example = "testuser")]
    username: String,
    #[schema(value_type = f64, example = 9)]
    remaining_conversations: Amount,
}

impl ValidKey {
    pub(super) fn new(checked: &Checked, meters: &[MeterView]) -> Self {
        let charged = checked.left.iter().find(|(meter, _)| meter.as_str() == "conversations").map(|(_, left)| *left);
        let known = meters.iter().find(|view| view.name.as_str() == "conversations");
        let unlimited = known.filter(|view| view.meter.reset.is_unlimited()).map(MeterView::shown_balance);
        let left = unlimited.or(charged).or(known.map(MeterView::shown_balance)).unwrap_or(Micro::ZERO);
        Self { valid: true, username: checked.standing.username.to_string(), remaining_conversations: Amount(left) }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::Logged)]
pub(super) struct Logged {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
}

impl Logged {
    pub(super) fn new(kept: bool) -> Self {
        let message = if kept { "Message logged successfully" } else { "Messages of this user are not kept" };
        Self { success: true, message }
    }
}

/// Users from `offset` on.
#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::People)]
pub(super) struct People {
    pub(super) users: Vec<Person>,
    pub(super) total: u64,
    pub(super) limit: usize,
    pub(super) offset: usize,
}

#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::StaffMade)]
pub(super) struct StaffMade {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    id: u64,
    username: String,
    name: String,
    email: String,
    /// `new`, `support` or `advanced`.
    staff_level: &'static str,
}

impl From<&Staff> for StaffMade {
    fn from(staff: &Staff) -> Self {
        Self {
            success: true,
            message: "Staff member created successfully",
            id: staff.id.0,
            username: staff.username.clone(),
            name: staff.name.clone(),
            email: staff.email.clone(),
            staff_level: staff.role.as_str(),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::LimitsReset)]
pub(super) struct LimitsReset {
    #[schema(example = true)]
    pub(super) success: bool,
    pub(super) message: &'static str,
    pub(super) users: u64,
}
