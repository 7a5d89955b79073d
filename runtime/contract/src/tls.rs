//! TLS 1.3 in which both sides prove an identity of ours; host names and addresses prove nothing.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme, version,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::identity::{Identity, Role};

/// File names inside a credentials folder; also the keys of the Secrets that are mounted there.
pub mod file {
    /// Certificate of the authority.
    pub const AUTHORITY: &str = "ca.crt";
    /// Own certificate.
    pub const CERTIFICATE: &str = "tls.crt";
    /// Own private key.
    pub const KEY: &str = "tls.key";
    /// What a client must present and a scheduler compares with.
    pub const TOKEN: &str = "token";
}

/// How long a leaf is valid: thirty days. It is renewed long before.
pub const LEAF_LIFE: Duration = Duration::from_hours(30 * 24);

/// What a process proves itself with, and whose signature it believes.
#[derive(Debug)]
pub struct Credentials {
    /// One, or several while one takes over from another.
    authorities: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Credentials that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file that cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Text that is not what its file should hold.
    #[error("{name} is not what it should be: PEM text, or a token")]
    Text {
        /// Which of the files.
        name: &'static str,
    },
    /// A certificate that TLS cannot use.
    #[error("unusable credentials")]
    Unusable(#[from] Error),
}

impl Credentials {
    /// Reads the three PEM texts. The first may hold several certificates: each is believed.
    pub fn from_pem(
        authority: &[u8],
        certificate: &[u8],
        key: &[u8],
    ) -> Result<Self, CredentialsError> {
        let pem = |name| move |_| CredentialsError::Text { name };
        let authorities: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(authority).collect();
        let authorities = authorities.map_err(pem(file::AUTHORITY))?;
        if authorities.is_empty() {
            return Err(CredentialsError::Text { name: file::AUTHORITY });
        }
        Ok(Self {
            authorities,
            chain: vec![
                CertificateDer::from_pem_slice(certificate).map_err(pem(file::CERTIFICATE))?,
            ],
            key: PrivateKeyDer::from_pem_slice(key).map_err(pem(file::KEY))?,
        })
    }

    /// Reads a credentials folder.
    pub fn from_folder(folder: &Path) -> Result<Self, CredentialsError> {
        let [authority, certificate, key] =
            [file::AUTHORITY, file::CERTIFICATE, file::KEY].map(|name| read(folder, name));
        Self::from_pem(&authority?, &certificate?, &key?)
    }

    /// A configuration that dials only a peer which proves exactly this identity.
    pub fn dial(&self, expected: Identity) -> Result<ClientConfig, CredentialsError> {
        let verifier = Arc::new(PeerVerifier::new(&self.authorities, Expected::Exactly(expected))?);
        Ok(ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?)
    }

    /// A configuration that accepts peers of this cluster in one of these roles.
    pub fn accept(
        &self,
        cluster_uid: &str,
        roles: &[Role],
    ) -> Result<ServerConfig, CredentialsError> {
        let expected =
            Expected::Members { cluster_uid: Some(cluster_uid.to_owned()), roles: roles.to_vec() };
        self.accept_expected(expected)
    }

    /// A configuration that accepts schedulers of any cluster; the caller must read which.
    pub fn accept_schedulers(&self) -> Result<ServerConfig, CredentialsError> {
        self.accept_expected(Expected::Members { cluster_uid: None, roles: vec![Role::Scheduler] })
    }

    fn accept_expected(&self, expected: Expected) -> Result<ServerConfig, CredentialsError> {
        let verifier = Arc::new(PeerVerifier::new(&self.authorities, expected)?);
        Ok(ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?)
    }
}

/// Reads the token in a credentials folder.
pub fn token(folder: &Path) -> Result<String, CredentialsError> {
    let text = String::from_utf8(read(folder, file::TOKEN)?);
    text.map_err(|_| CredentialsError::Text { name: file::TOKEN })
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>, CredentialsError> {
    let path = folder.join(name);
    fs::read(&path).map_err(|source| CredentialsError::Read { path, source })
}

/// Something made of the credentials in a folder, and made again when these change: a process lives longer
/// than its certificate.
pub struct Current<T> {
    folder: PathBuf,
    make: Box<Make<T>>,
    last: Mutex<Last<T>>,
}

struct Last<T> {
    made_of: Stamp,
    made: Arc<T>,
    /// Of which nothing could be made.
    useless: Option<Stamp>,
}

type Make<T> = dyn Fn(&Credentials) -> Result<T, CredentialsError> + Send + Sync;

/// What tells files from those that were there before.
type Stamp = [Option<(u64, SystemTime)>; 3];

impl<T> Current<T> {
    /// Made of what is in the folder now.
    pub fn new(
        folder: &Path,
        make: impl Fn(&Credentials) -> Result<T, CredentialsError> + Send + Sync + 'static,
    ) -> Result<Self, CredentialsError> {
        let made_of = stamp(folder);
        let made = Arc::new(make(&Credentials::from_folder(folder)?)?);
        let last = Mutex::new(Last { made_of, made, useless: None });
        Ok(Self { folder: folder.to_owned(), make: Box::new(make), last })
    }

    /// Made of what is in the folder now; what was made before while that cannot be used, for the files
    /// may be half written.
    pub fn get(&self) -> Arc<T> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.folder);
        if now != last.made_of && Some(now) != last.useless {
            let made = Credentials::from_folder(&self.folder).and_then(|it| (self.make)(&it));
            // Read from one set of files, not from two.
            let is_whole = stamp(&self.folder) == now;
            match made {
                Ok(made) if is_whole => {
                    *last = Last { made_of: now, made: Arc::new(made), useless: None };
                }
                Err(error) if is_whole => {
                    last.useless = Some(now);
                    let folder = self.folder.display();
                    tracing::warn!(%error, %folder, "new credentials are of no use: the old ones stay");
                }
                Ok(_) | Err(_) => {}
            }
        }
        Arc::clone(&last.made)
    }
}

fn stamp(folder: &Path) -> Stamp {
    [file::AUTHORITY, file::CERTIFICATE, file::KEY].map(|name| {
        let about = fs::metadata(folder.join(name)).ok()?;
        Some((about.ino(), about.modified().ok()?))
    })
}

/// The name that rustls wants for a dialled peer. It is not sent to be believed: identities are.
pub fn any_name() -> ServerName<'static> {
    ServerName::try_from("ebbtide").expect("a plain label is a DNS name")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

#[derive(Debug)]
enum Expected {
    Exactly(Identity),
    Members { cluster_uid: Option<String>, roles: Vec<Role> },
}

impl Expected {
    fn allows(&self, identity: &Identity) -> bool {
        match (self, identity) {
            (Self::Exactly(expected), _) => expected == identity,
            (Self::Members { .. }, Identity::Operator) => false,
            (
                Self::Members { cluster_uid: expected, roles },
                Identity::Member { cluster_uid, role },
            ) => {
                expected.as_ref().is_none_or(|expected| expected == cluster_uid)
                    && roles.contains(role)
            }
        }
    }
}

#[derive(Debug)]
struct PeerVerifier {
    anchors: Vec<TrustAnchor<'static>>,
    expected: Expected,
    provider: Arc<CryptoProvider>,
}

impl PeerVerifier {
    fn new(authorities: &[CertificateDer<'_>], expected: Expected) -> Result<Self, Error> {
        let anchor = |authority| {
            let anchor = anchor_from_trusted_cert(authority);
            let anchor = anchor.map(|anchor| anchor.to_owned());
            anchor.map_err(|error| Error::General(format!("{}: {error}", file::AUTHORITY)))
        };
        let anchors = authorities.iter().map(anchor).collect::<Result<_, _>>()?;
        Ok(Self { anchors, expected, provider: provider() })
    }

    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<(), Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        EndEntityCert::try_from(certificate)
            .and_then(|leaf| {
                leaf.verify_for_usage(algorithms, &self.anchors, chain, now, usage, None, None)
                    .map(|_| ())
            })
            .map_err(|error| reject(&error))?;
        let identity = Identity::of_certificate(certificate)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if self.expected.allows(&identity) {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(CertificateError::NotValidForName))
        }
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }
}

fn reject(error: &webpki::Error) -> Error {
    let reason = if matches!(error, webpki::Error::CertExpired { .. }) {
        CertificateError::Expired
    } else if matches!(error, webpki::Error::CertNotValidYet { .. }) {
        CertificateError::NotValidYet
    } else {
        CertificateError::UnknownIssuer
    };
    Error::InvalidCertificate(reason)
}

fn only_tls13() -> Error {
    Error::General("only TLS 1.3 is spoken here".to_owned())
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, KeyUsage::server_auth(), now)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, KeyUsage::client_auth(), now)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
