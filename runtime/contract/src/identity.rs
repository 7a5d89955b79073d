//! Who a process is: the URI in its certificate. Knows no keys and no sockets.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

const SCHEME: &str = "ebbtide://";

/// What a process of a cluster does.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The one scheduler.
    Scheduler,
    /// Any worker.
    Worker,
    /// A person's program, or a tool that acts for one.
    Client,
}

/// The subject alternative name of a leaf certificate. Addresses never identify anybody.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Identity {
    /// The operator itself.
    Operator,
    /// A process of one cluster.
    Member {
        /// `metadata.uid` of the cluster.
        cluster_uid: String,
        /// What it does there.
        role: Role,
    },
}

/// A certificate or URI that names nobody we know.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are not a certificate.
    #[error("not an X.509 certificate: {0}")]
    Certificate(String),
    /// No URI of ours among the subject alternative names.
    #[error(
        "the certificate names no ebbtide identity; expected a subject alternative name ebbtide://…"
    )]
    Nameless,
    /// A URI of ours that cannot be read.
    #[error("unknown identity {0:?}; expected ebbtide://operator or ebbtide://cluster/UID/ROLE")]
    Unknown(String),
}

impl Identity {
    /// A process of the cluster with this uid.
    pub fn member(cluster_uid: &str, role: Role) -> Self {
        Self::Member { cluster_uid: cluster_uid.to_owned(), role }
    }

    /// Reads the identity from a DER certificate. Does not verify the certificate.
    pub fn of_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| IdentityError::Certificate(error.to_string()))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| IdentityError::Certificate(error.to_string()))?
            .ok_or(IdentityError::Nameless)?;
        let mut uris =
            names.value.general_names.iter().filter_map(|name| {
                if let GeneralName::URI(uri) = name { Some(*uri) } else { None }
            });
        uris.find(|uri| uri.starts_with(SCHEME)).ok_or(IdentityError::Nameless)?.parse()
    }
}

impl Role {
    /// The last part of the URI.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::Worker => "worker",
            Self::Client => "client",
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => write!(f, "{SCHEME}operator"),
            Self::Member { cluster_uid, role } => {
                write!(f, "{SCHEME}cluster/{cluster_uid}/{}", role.as_str())
            }
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let unknown = || IdentityError::Unknown(uri.to_owned());
        let path = uri.strip_prefix(SCHEME).ok_or_else(unknown)?;
        if path == "operator" {
            return Ok(Self::Operator);
        }
        let (cluster_uid, role) = path
            .strip_prefix("cluster/")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(unknown)?;
        let role = [Role::Scheduler, Role::Worker, Role::Client]
            .into_iter()
            .find(|known| known.as_str() == role)
            .ok_or_else(unknown)?;
        if cluster_uid.is_empty() { Err(unknown()) } else { Ok(Self::member(cluster_uid, role)) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Identity, Role};

    #[test]
    fn an_identity_reads_back_what_it_prints() {
        for identity in [
            Identity::Operator,
            Identity::member("u-1", Role::Scheduler),
            Identity::member("u-1", Role::Worker),
            Identity::member("u-1", Role::Client),
        ] {
            assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
        }
    }

    #[test]
    fn a_uri_that_is_not_exactly_ours_names_nobody() {
        for uri in [
            "",
            "ebbtide://",
            "ebbtide://operator/",
            "ebbtide://cluster/u/admin",
            "ebbtide://cluster//worker",
            "ebbtide://cluster/u/worker/x",
            "https://operator",
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri}");
        }
    }
}
