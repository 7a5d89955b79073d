//! What is kept of an authority, and how the next one takes over while everybody works.
//!
//! Nobody may meet a certificate of an authority that he does not believe in yet. So the next one is announced
//! first, then it signs, and at last the one before it is forgotten, with a pause after each step in which what
//! was written reaches everybody.

use std::collections::BTreeMap;
use std::fmt::{self, Formatter};

use ebbtide_contract::tls::file;
use jiff::{SignedDuration, Timestamp};
use rcgen::{Issuer, KeyPair};
use ring::digest::{SHA256, digest};
use ring::hmac;

use crate::{Authority, AuthorityError, EDITION_BYTES, Leaf, hexadecimal, own};

/// The age at which an authority is replaced without being asked: half its life.
pub const REPLACED_AFTER: SignedDuration = SignedDuration::from_hours(5 * 365 * 24);

const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const PREVIOUS: &str = "previous.crt";
const TOKEN_KEY: &str = "token.key";
const SINCE: &str = "since";

/// Everything that an installation keeps of its authority. Holds keys.
#[derive(Clone, Eq, PartialEq)]
pub struct Kept {
    /// Signs.
    current: Leaf,
    /// Will sign, and is believed already.
    next: Option<Leaf>,
    /// Certificate of the one that signed before and is still believed.
    previous: Option<String>,
    /// From which tokens are derived; without one, the key that signs.
    token_key: Option<String>,
    /// When the last step was made.
    since: Option<Timestamp>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { next, previous, since, .. } = self;
        let (has_next, has_previous) = (next.is_some(), previous.is_some());
        write!(f, "Kept {{ next: {has_next}, previous: {has_previous}, since: {since:?} }}")
    }
}

impl Kept {
    /// A new authority.
    pub fn create(now: Timestamp) -> Result<Self, AuthorityError> {
        let current = own(now)?;
        Ok(Self { current, next: None, previous: None, token_key: None, since: Some(now) })
    }

    /// Reads what [`Kept::files`] gave.
    pub fn read(files: &BTreeMap<String, Vec<u8>>) -> Result<Self, AuthorityError> {
        let text = |name: &'static str| {
            let bytes = files.get(name);
            let text = bytes.map(|bytes| String::from_utf8(bytes.clone()));
            text.transpose().map_err(|_| AuthorityError::Unreadable(name))
        };
        let leaf = |(certificate, key)| -> Result<Option<Leaf>, AuthorityError> {
            let (Some(certificate), Some(key)) = (text(certificate)?, text(key)?) else {
                return Ok(None);
            };
            Ok(Some(Leaf { certificate, key }))
        };
        let current = leaf((file::AUTHORITY, file::KEY))?;
        let missing = if files.contains_key(file::KEY) { file::AUTHORITY } else { file::KEY };
        let since = text(SINCE)?.map(|since| since.parse());
        let kept = Self {
            current: current.ok_or(AuthorityError::Missing(missing))?,
            next: leaf((NEXT_CERTIFICATE, NEXT_KEY))?,
            previous: text(PREVIOUS)?,
            token_key: text(TOKEN_KEY)?,
            since: since.transpose().map_err(|_| AuthorityError::Unreadable(SINCE))?,
        };
        kept.authority()?;
        Ok(kept)
    }

    /// What to keep, by name.
    pub fn files(&self) -> BTreeMap<String, String> {
        let Self { current, next, previous, token_key, since } = self;
        let next = next.as_ref();
        let files = [
            (file::AUTHORITY, Some(current.certificate.clone())),
            (file::KEY, Some(current.key.clone())),
            (NEXT_CERTIFICATE, next.map(|it| it.certificate.clone())),
            (NEXT_KEY, next.map(|it| it.key.clone())),
            (PREVIOUS, previous.clone()),
            (TOKEN_KEY, token_key.clone()),
            (SINCE, since.map(|since| since.to_string())),
        ];
        files.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?))).collect()
    }

    /// Who signs now.
    pub fn authority(&self) -> Result<Authority, AuthorityError> {
        let Leaf { certificate, key } = &self.current;
        let next = self.next.as_ref().map(|next| next.certificate.as_str());
        let others = [next, self.previous.as_deref()].into_iter().flatten();
        let believed = [certificate.as_str()].into_iter().chain(others);
        let believed: String = believed.flat_map(|it| [it.trim_end(), "\n"]).collect();
        let edition = digest(&SHA256, believed.as_bytes());
        let token_key = self.token_key.as_ref().unwrap_or(key);
        Ok(Authority {
            issuer: Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?,
            token_key: hmac::Key::new(hmac::HMAC_SHA256, token_key.as_bytes()),
            edition: hexadecimal(&edition.as_ref()[..EDITION_BYTES]),
            believed,
        })
    }

    /// What to keep from now on, if that differs: the next step of a replacement that is under way, or the
    /// first of one that is `asked` for or due. Each step waits for `pause` after the one before.
    pub fn step(
        &self,
        is_asked: bool,
        pause: SignedDuration,
        now: Timestamp,
    ) -> Result<Option<Self>, AuthorityError> {
        let Some(since) = self.since else {
            // Kept before there were steps.
            return Ok(Some(Self { since: Some(now), ..self.clone() }));
        };
        let age = now.duration_since(since);
        if -age > pause {
            // Made by a clock that was far ahead.
            return Ok(Some(Self { since: Some(now), ..self.clone() }));
        }
        let step = Self { since: Some(now), ..self.clone() };
        let step = match (&self.next, &self.previous) {
            (Some(next), _) if age >= pause => Some(Self {
                current: next.clone(),
                next: None,
                previous: Some(self.current.certificate.clone()),
                ..step
            }),
            (None, Some(_)) if age >= pause => Some(Self { previous: None, ..step }),
            (None, None) if is_asked || age >= REPLACED_AFTER => Some(Self {
                next: Some(own(now)?),
                // Tokens stay as they are: who has one may not hear of another in time.
                token_key: Some(self.token_key.as_ref().unwrap_or(&self.current.key).clone()),
                ..step
            }),
            (Some(_) | None, _) => None,
        };
        Ok(step)
    }

    /// Whether a replacement is under way.
    pub fn is_being_replaced(&self) -> bool {
        self.next.is_some() || self.previous.is_some()
    }
}
