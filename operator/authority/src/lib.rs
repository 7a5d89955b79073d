//! Mints what processes prove themselves with: certificates by identity, and tokens.
//!
//! One authority signs for one installation. Its key never leaves it; leaves differ by the identity
//! in their subject alternative name and by nothing else.

use std::fmt::Write as _;

use ebbtide_contract::identity::Identity;
use jiff::{SignedDuration, Timestamp};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// Life of an authority: ten years.
const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);

/// Life of a leaf: thirty days. Clusters are ephemeral.
pub const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How far clocks may differ: a certificate is valid that much before it was made.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(10);

/// Bytes of a token: 256 bits cannot be guessed.
const TOKEN_BYTES: usize = 32;

/// A certificate or key that cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate library refuses.
    #[error("a certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// The system has no randomness.
    #[error("no randomness: {0}")]
    Randomness(getrandom::Error),
    /// A time outside the calendar.
    #[error("a certificate's time is outside the calendar")]
    Time,
}

/// Signs leaves.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Authority {
    /// A new authority, and the PEM text of its key, which only its keeper may have.
    pub fn create(now: Timestamp) -> Result<(Self, String), AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = params("ebbtide authority", now, AUTHORITY_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key)?.pem();
        let key = key.serialize_pem();
        Ok((Self::load(certificate, &key)?, key))
    }

    /// The authority with this certificate and key, both PEM.
    pub fn load(certificate: String, key: &str) -> Result<Self, AuthorityError> {
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(key)?)?;
        Ok(Self { certificate, issuer })
    }

    /// Its certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A leaf for one identity, for both sides of a connection.
    pub fn leaf(&self, identity: &Identity, now: Timestamp) -> Result<Leaf, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = params("ebbtide", now, LEAF_LIFE)?;
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Leaf { certificate, key: key.serialize_pem() })
    }
}

/// A new token: 64 hexadecimal digits.
pub fn token() -> Result<String, AuthorityError> {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes).map_err(AuthorityError::Randomness)?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes any write");
        text
    }))
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
