//! Mints what processes prove themselves with: certificates by identity, and tokens.
//!
//! One authority signs for one installation. Its key never leaves it; leaves differ by the identity
//! in their subject alternative name and by nothing else.

mod kept;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ebbtide_contract::identity::Identity;
use ebbtide_contract::tls::{Credentials, CredentialsError, LEAF_LIFE, file};
use jiff::{SignedDuration, Timestamp};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use ring::hmac;

pub use crate::kept::{Kept, REPLACED_AFTER};

/// Life of an authority: ten years.
const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);

/// How far clocks may differ, and more: a certificate is valid that much before it was made.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_hours(1);

/// Bytes of an edition's name.
const EDITION_BYTES: usize = 6;

/// A certificate or key that cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate library refuses.
    #[error("a certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// A time outside the calendar.
    #[error("a certificate's time is outside the calendar")]
    Time,
    /// TLS refuses what was minted.
    #[error("minted credentials cannot be used")]
    Credentials(#[from] CredentialsError),
    /// What was kept lacks a part.
    #[error("what is kept of the authority has no {0}")]
    Missing(&'static str),
    /// What was kept cannot be read.
    #[error("what is kept of the authority has an unreadable {0}")]
    Unreadable(&'static str),
}

/// Signs leaves.
pub struct Authority {
    /// The certificates that are believed: its own, and that of the one before or after it.
    believed: String,
    issuer: Issuer<'static, KeyPair>,
    /// From which tokens are derived.
    token_key: hmac::Key,
    edition: String,
}

/// A certificate and its key, both PEM.
#[derive(Clone, Eq, PartialEq)]
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Authority {
    /// A new authority that nobody keeps.
    pub fn create(now: Timestamp) -> Result<Self, AuthorityError> {
        Kept::create(now)?.authority()
    }

    /// Certificates of authorities, PEM: whom its leaves' owners believe.
    pub fn believed(&self) -> &str {
        &self.believed
    }

    /// Names who signs and who is believed: credentials of another edition are to be made anew.
    pub fn edition(&self) -> &str {
        &self.edition
    }

    /// The token of a cluster: 64 hexadecimal digits that nobody else can tell, the same each time, so
    /// that what somebody deleted comes back as it was.
    pub fn token(&self, cluster_uid: &str) -> String {
        let tag = hmac::sign(&self.token_key, format!("ebbtide token {cluster_uid}").as_bytes());
        hexadecimal(tag.as_ref())
    }

    /// What an identity has in its files: the authorities' certificates, a leaf and its key, and the
    /// token of its cluster if it is to know that.
    pub fn credentials(
        &self,
        identity: &Identity,
        has_token: bool,
        now: Timestamp,
    ) -> Result<BTreeMap<String, String>, AuthorityError> {
        let leaf = self.leaf(identity, now)?;
        let mut files = vec![
            (file::AUTHORITY, self.believed.clone()),
            (file::CERTIFICATE, leaf.certificate),
            (file::KEY, leaf.key),
        ];
        if let Identity::Member { cluster_uid, .. } = identity
            && has_token
        {
            files.push((file::TOKEN, self.token(cluster_uid)));
        }
        Ok(files.into_iter().map(|(name, text)| (name.to_owned(), text)).collect())
    }

    /// What a process of one identity proves itself with that lives as long as this program.
    pub fn proof(
        &self,
        identity: &Identity,
        now: Timestamp,
    ) -> Result<Credentials, AuthorityError> {
        let Leaf { certificate, key } = self.leaf(identity, now)?;
        let (believed, certificate) = (self.believed.as_bytes(), certificate.as_bytes());
        Ok(Credentials::from_pem(believed, certificate, key.as_bytes())?)
    }

    /// A leaf for one identity, for both sides of a connection.
    pub fn leaf(&self, identity: &Identity, now: Timestamp) -> Result<Leaf, AuthorityError> {
        let key = KeyPair::generate()?;
        let life = SignedDuration::try_from(LEAF_LIFE).map_err(|_| AuthorityError::Time)?;
        let mut params = params("ebbtide", now, life)?;
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Leaf { certificate, key: key.serialize_pem() })
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes any write");
        text
    })
}

/// A new authority's certificate, which it signed itself, and its key.
fn own(now: Timestamp) -> Result<Leaf, AuthorityError> {
    let key = KeyPair::generate()?;
    let mut params = params("ebbtide authority", now, AUTHORITY_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key)?.pem();
    Ok(Leaf { certificate, key: key.serialize_pem() })
}

fn params(
    name: &str,
    now: Timestamp,
    life: SignedDuration,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = time(now.checked_sub(CLOCK_SKEW).map_err(|_| AuthorityError::Time)?)?;
    params.not_after = time(now.checked_add(life).map_err(|_| AuthorityError::Time)?)?;
    Ok(params)
}

fn time(at: Timestamp) -> Result<time::OffsetDateTime, AuthorityError> {
    time::OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(|_| AuthorityError::Time)
}

#[cfg(test)]
mod tests;
