//! What each level of support staff may do with users: one table, which handlers ask and `permissions` shows.
//!
//! Owns the table. Admins may do all of it. Whatever concerns staff itself is not in it: that is for admins and superadmins
//! alone, whatever level somebody has.

use super::session::StaffRole;

/// One thing that may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    ViewUsers,
    /// The whole email, and how to reach the user; others see it masked.
    ViewContact,
    UpdateEmail,
    ResetPassword,
    UpdateCredits,
    UpdatePlan,
    /// Name, type, texts and profile.
    UpdateProfile,
    /// Level, kinds of answers, notes: what staff keeps about a user.
    UpdateNotes,
    ViewMessages,
    /// See which keys there are, replace and remove them; not see one.
    ManageKeys,
    /// Let an account go on that waits for its owner's proof.
    LiftProofWait,
    /// See a key that was just made, once.
    SeeNewKeys,
    /// Suspend, ban, activate; role and verification.
    UpdateStatus,
    DeleteUsers,
}

impl Permission {
    pub const ALL: [Self; 14] = [
        Self::ViewUsers,
        Self::ViewContact,
        Self::UpdateEmail,
        Self::ResetPassword,
        Self::UpdateCredits,
        Self::UpdatePlan,
        Self::UpdateProfile,
        Self::UpdateNotes,
        Self::ViewMessages,
        Self::ManageKeys,
        Self::LiftProofWait,
        Self::SeeNewKeys,
        Self::UpdateStatus,
        Self::DeleteUsers,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ViewUsers => "view_users",
            Self::ViewContact => "view_contact",
            Self::UpdateEmail => "update_email",
            Self::ResetPassword => "reset_password",
            Self::UpdateCredits => "update_credits",
            Self::UpdatePlan => "update_plan",
            Self::UpdateProfile => "update_profile",
            Self::UpdateNotes => "update_notes",
            Self::ViewMessages => "view_messages",
            Self::ManageKeys => "manage_api_keys",
            Self::LiftProofWait => "lift_proof_wait",
            Self::SeeNewKeys => "see_new_api_keys",
            Self::UpdateStatus => "update_status",
            Self::DeleteUsers => "delete_users",
        }
    }

    /// The lowest role that has it.
    pub fn least(self) -> StaffRole {
        match self {
            Self::ViewUsers => StaffRole::New,
            Self::ViewContact | Self::UpdateEmail | Self::ResetPassword | Self::UpdateCredits | Self::UpdatePlan => {
                StaffRole::Support
            }
            Self::UpdateProfile | Self::UpdateNotes | Self::ViewMessages | Self::ManageKeys | Self::LiftProofWait => {
                StaffRole::Advanced
            }
            Self::UpdateStatus | Self::SeeNewKeys => StaffRole::Admin,
            Self::DeleteUsers => StaffRole::Superadmin,
        }
    }
}

impl StaffRole {
    pub fn may(self, permission: Permission) -> bool {
        self >= permission.least()
    }

    /// A level of support staff.
    pub fn parse_level(text: &str) -> Option<Self> {
        match text {
            "new" => Some(Self::New),
            "support" => Some(Self::Support),
            "advanced" => Some(Self::Advanced),
            _ => None,
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "admin" => Some(Self::Admin),
            "superadmin" => Some(Self::Superadmin),
            level => Self::parse_level(level),
        }
    }

    /// Whether somebody of this role may make, change or remove staff of `other`: superadmins all, admins those below them.
    pub fn may_manage(self, other: Self) -> bool {
        self == Self::Superadmin || (self == Self::Admin && other < Self::Admin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_levels_are_those_that_are_documented() {
        use Permission::*;
        let of = |role: StaffRole| Permission::ALL.into_iter().filter(|p| role.may(*p)).collect::<Vec<_>>();
        assert_eq!(of(StaffRole::New), [ViewUsers]);
        let support = [ViewUsers, ViewContact, UpdateEmail, ResetPassword, UpdateCredits, UpdatePlan];
        assert_eq!(of(StaffRole::Support), support);
        let advanced: Vec<_> =
            support.into_iter().chain([UpdateProfile, UpdateNotes, ViewMessages, ManageKeys, LiftProofWait]).collect();
        assert_eq!(of(StaffRole::Advanced), advanced);
        // No level of support staff sees a key of a user's.
        assert!(!StaffRole::Advanced.may(SeeNewKeys) && StaffRole::Admin.may(SeeNewKeys));
        assert!(!StaffRole::Admin.may(DeleteUsers) && StaffRole::Superadmin.may(DeleteUsers));
    }

    #[test]
    fn admins_manage_those_below_them() {
        use StaffRole::{Admin, Advanced, New, Superadmin};
        assert!(Superadmin.may_manage(Superadmin) && Superadmin.may_manage(New));
        assert!(Admin.may_manage(Advanced) && !Admin.may_manage(Admin) && !Admin.may_manage(Superadmin));
        assert!(!Advanced.may_manage(New));
        for role in [New, Advanced, Admin, Superadmin] {
            assert_eq!(StaffRole::parse(role.as_str()), Some(role));
        }
        assert_eq!(StaffRole::parse_level("admin"), None);
    }
}
