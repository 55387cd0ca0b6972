//! Values that every API writes in the same form.

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::clock::UnixMillis;
use crate::domain::meters::Micro;

/// An amount on a meter: a number with up to six decimals.
#[derive(Clone, Copy, Debug, ToSchema)]
#[schema(value_type = f64, example = 10)]
pub struct Amount(pub Micro);

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.to_json().serialize(serializer)
    }
}

/// A moment, in RFC 3339 and UTC.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(value_type = String, format = DateTime, example = "2026-01-15T12:00:00Z")]
pub struct Time(String);

impl From<UnixMillis> for Time {
    fn from(at: UnixMillis) -> Self {
        Self(at.rfc3339())
    }
}
