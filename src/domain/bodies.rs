//! How long the bodies of calls may be that are answered here.

/// The most of a usual call's.
pub const MAX_LOCAL_BODY: usize = 256 << 10;
/// The most of any: of conversations that are handed in by callers who were judged before, and of logins that bring what a
/// verifier wants to see.
pub const MAX_LONG_BODY: usize = 16 << 20;

/// Marks a call whose body was let be longer than usual.
#[derive(Clone, Copy, Debug)]
pub struct LongBody;
