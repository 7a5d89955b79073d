//! What a person asks of an environment, in one canonical form, and the key of that form.
//!
//! Order, letter case, white space, duplicates and the many spellings of one requirement do not
//! change the key; everything that could change what is installed does. Nothing is resolved here.

pub mod lock;
pub mod tags;

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::str::FromStr as _;

use pep508_rs::{Requirement, VerbatimUrl};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What the key is a hash of, so that no other hash can be taken for it.
const DOMAIN: &str = "ebbtide environment request v1";

/// What every environment has beside its packages: what a worker needs to run Python functions and
/// to give them arrays.
const RUNTIME: [&str; 2] = ["cloudpickle==3.1.2", "numpy"];

/// A package list in canonical form.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    python: String,
    packages: BTreeSet<String>,
}

/// Names everything that was asked for: 64 hexadecimal digits.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Key(String);

/// A package list that means nothing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// A requirement that cannot be read.
    #[error(
        "package {requirement:?}: {reason}; expected a name with an optional version, like \"numpy\" or \"scipy>=1.14\""
    )]
    Requirement {
        /// As it was written.
        requirement: String,
        /// What is wrong.
        reason: String,
    },
    /// A Python version that is none.
    #[error("python {0:?} is not a version; expected two numbers, like \"3.11\"")]
    Python(String),
}

impl Request {
    /// Reads a package list: requirements as PEP 508 writes them.
    pub fn new<'a>(
        python: &str,
        packages: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, RequestError> {
        let python = python.trim();
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|it| it.is_ascii_digit());
        match python.split_once('.') {
            Some((major, minor)) if is_number(major) && is_number(minor) => {}
            _ => return Err(RequestError::Python(python.to_owned())),
        }
        let packages = packages.into_iter().map(canonical).collect::<Result<_, _>>()?;
        Ok(Self { python: python.to_owned(), packages })
    }

    /// Version of Python, two numbers.
    pub fn python(&self) -> &str {
        &self.python
    }

    /// The minor version of Python 3, if it is one.
    pub fn minor(&self) -> Option<u32> {
        self.python.strip_prefix("3.")?.parse().ok()
    }

    /// The requirements that were asked for, canonical and sorted.
    pub fn packages(&self) -> impl Iterator<Item = &str> {
        self.packages.iter().map(String::as_str)
    }

    /// Everything that is installed: what was asked for, and what workers need.
    pub fn installed(&self) -> impl Iterator<Item = &str> {
        self.packages().chain(RUNTIME)
    }

    /// The hash of everything above.
    pub fn key(&self) -> Key {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        add(DOMAIN);
        add(&self.python);
        for package in self.installed() {
            add(package);
        }
        let digest = hash.finalize();
        Key(digest.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes any write");
            text
        }))
    }
}

/// Name, extras, versions and marker of a requirement, each in one spelling.
fn canonical(text: &str) -> Result<String, RequestError> {
    let requirement = Requirement::<VerbatimUrl>::from_str(text.trim()).map_err(|error| {
        let reason = error.message.to_string();
        RequestError::Requirement { requirement: text.to_owned(), reason }
    })?;
    let mut requirement = requirement;
    requirement.extras.sort();
    requirement.extras.dedup();
    if let Some(pep508_rs::VersionOrUrl::VersionSpecifier(specifiers)) = &requirement.version_or_url
    {
        let mut sorted: Vec<_> = specifiers.iter().cloned().collect();
        sorted.sort_by_key(ToString::to_string);
        sorted.dedup();
        requirement.version_or_url =
            Some(pep508_rs::VersionOrUrl::VersionSpecifier(sorted.into_iter().collect()));
    }
    Ok(requirement.to_string())
}

impl Key {
    /// The whole key.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Enough of it to tell it from others, for names and messages.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Key, Request, RequestError};

    fn key(packages: &[&str]) -> Key {
        Request::new("3.11", packages.iter().copied()).unwrap().key()
    }

    #[test]
    fn spellings_of_one_list_have_one_key() {
        let plain = key(&["numpy", "scikit-learn>=1.2,<2", "dask[array,distributed]"]);
        for same in [
            key(&["scikit-learn>=1.2,<2", "dask[array,distributed]", "numpy"]),
            key(&["NumPy", "Scikit_Learn <2, >=1.2", " dask[distributed,array]"]),
            key(&["numpy", "numpy", "scikit.learn>=1.2,<2", "dask [array, distributed, array]"]),
        ] {
            assert_eq!(same, plain);
        }
    }

    #[test]
    fn what_changes_what_is_installed_changes_the_key() {
        let lists: [&[&str]; 6] = [
            &["numpy"],
            &["numpy>=2"],
            &["numpy[extra]"],
            &["numpy; sys_platform == 'linux'"],
            &["numpy", "scipy"],
            &[],
        ];
        let mut keys: Vec<Key> = lists.iter().map(|list| key(list)).collect();
        keys.push(Request::new("3.13", ["numpy"]).unwrap().key());
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 7);
    }

    #[test]
    fn the_key_of_a_list_never_changes() {
        insta::assert_snapshot!(key(&["numpy", "pandas"]));
    }

    #[test]
    fn a_requirement_that_cannot_be_read_is_named() {
        let refused = Request::new("3.11", ["numpy", "scipy=>1"]).unwrap_err();
        assert!(
            matches!(&refused, RequestError::Requirement { requirement, .. } if requirement == "scipy=>1")
        );
        for python in ["3", "three.11", "3.11.2", ""] {
            let refused = Request::new(python, []).unwrap_err();
            assert_eq!(refused, RequestError::Python(python.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn lists_that_differ_have_keys_that_differ(
            left in prop::collection::btree_set("[a-c]{1,3}", 0..4),
            right in prop::collection::btree_set("[a-c]{1,3}", 0..4),
        ) {
            let of = |list: &std::collections::BTreeSet<String>| {
                Request::new("3.11", list.iter().map(String::as_str)).unwrap().key()
            };
            prop_assert_eq!(left == right, of(&left) == of(&right));
        }
    }
}
