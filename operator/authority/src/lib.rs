//! Mints what processes prove themselves with: certificates by identity, and tokens.
//!
//! One authority signs for one installation. Its key never leaves it; leaves differ by the identity
//! in their subject alternative name and by nothing else.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ebbtide_contract::identity::Identity;
use ebbtide_contract::tls::file;
use jiff::{SignedDuration, Timestamp};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use ring::hmac;

/// Life of an authority: ten years.
const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);

/// Life of a leaf: thirty days. Clusters are ephemeral.
pub const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How far clocks may differ: a certificate is valid that much before it was made.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(10);

/// A certificate or key that cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate library refuses.
    #[error("a certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// A time outside the calendar.
    #[error("a certificate's time is outside the calendar")]
    Time,
}

/// Signs leaves.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    /// From which tokens are derived.
    token_key: hmac::Key,
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
        let token_key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
        Ok(Self { certificate, issuer, token_key })
    }

    /// Its certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The token of a cluster: 64 hexadecimal digits that nobody else can tell, the same each time, so
    /// that what somebody deleted comes back as it was.
    pub fn token(&self, cluster_uid: &str) -> String {
        let tag = hmac::sign(&self.token_key, format!("ebbtide token {cluster_uid}").as_bytes());
        tag.as_ref().iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes any write");
            text
        })
    }

    /// What an identity has in its files: the authority's certificate, a leaf and its key, and the
    /// token of its cluster if it is to know that.
    pub fn credentials(
        &self,
        identity: &Identity,
        has_token: bool,
        now: Timestamp,
    ) -> Result<BTreeMap<String, String>, AuthorityError> {
        let leaf = self.leaf(identity, now)?;
        let mut files = vec![
            (file::AUTHORITY, self.certificate.clone()),
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
mod tests {
    use jiff::Timestamp;

    use super::Authority;

    #[test]
    fn a_token_is_its_cluster_s_alone_and_comes_again_with_the_same_key() {
        let (authority, key) = Authority::create(Timestamp::now()).unwrap();
        let token = authority.token("u-1");
        assert!(token.len() == 64 && token.bytes().all(|it| it.is_ascii_hexdigit()));
        let again = Authority::load(authority.certificate().to_owned(), &key).unwrap();
        assert_eq!(again.token("u-1"), token);
        assert_ne!(authority.token("u-2"), token);
        let (other, _) = Authority::create(Timestamp::now()).unwrap();
        assert_ne!(other.token("u-1"), token);
    }
}
