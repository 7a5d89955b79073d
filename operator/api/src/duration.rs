//! Lengths of time as people write them.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A length of time, written like `90s`, `20m` or `1h30m`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Length(Duration);

/// A length of time that is none.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{0:?} is not a length of time; expected hours, minutes and seconds, like 90s, 20m or 1h30m"
)]
pub struct DurationError(String);

const PATTERN: &str = "^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,7}s)?$";

impl Length {
    /// So many seconds.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// For arithmetic.
    pub fn as_duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Length {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let wrong = || DurationError(text.to_owned());
        let (mut rest, mut seconds) = (text, 0_u64);
        for (unit, factor) in [('h', 3600), ('m', 60), ('s', 1)] {
            let Some((digits, behind)) = rest.split_once(unit) else { continue };
            if digits.is_empty() || !digits.bytes().all(|it| it.is_ascii_digit()) {
                return Err(wrong());
            }
            let number: u64 = digits.parse().map_err(|_| wrong())?;
            let length = number.checked_mul(factor).ok_or_else(wrong)?;
            seconds = seconds.checked_add(length).ok_or_else(wrong)?;
            rest = behind;
        }
        if text.is_empty() || !rest.is_empty() {
            Err(wrong())
        } else {
            Ok(Self::from_seconds(seconds))
        }
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        if seconds == 0 {
            return f.write_str("0s");
        }
        for (unit, count) in [('h', seconds / 3600), ('m', seconds / 60 % 60), ('s', seconds % 60)]
        {
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Length {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Length {
    fn schema_name() -> Cow<'static, str> {
        "Length".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 2, "maxLength": 20, "pattern": PATTERN })
    }
}
