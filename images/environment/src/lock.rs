//! What a package list was resolved to: a lock as [PEP 751](https://peps.python.org/pep-0751/) writes it, and the
//! wheels that a root file system takes of it.

use std::collections::BTreeMap;
use std::str::FromStr as _;

use pep508_rs::{MarkerEnvironment, MarkerEnvironmentBuilder, MarkerTree, PackageName};
use serde::Deserialize;

use crate::tags::{Target, WheelName};

/// The versions of the format that can be read: a minor one may only add.
const FORMAT: &str = "1.";

/// What was chosen, in full.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lock {
    packages: Vec<Package>,
}

/// A wheel that an environment has.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Wheel {
    /// The distribution, as PEP 503 writes it.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The file's name.
    pub file: String,
    /// Where it is.
    pub url: String,
    /// The hash of its content: 64 hexadecimal digits.
    pub sha256: String,
    /// Its length in bytes, where the index told.
    pub bytes: Option<u64>,
}

/// Why a lock is of no use.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LockError {
    /// It is no lock.
    #[error("the lock cannot be read: {0}")]
    Format(String),
    /// It is in a format of another time.
    #[error(
        "the lock has the format {0:?}; expected 1.0 or a later 1.x, as `uv export --format pylock.toml` writes"
    )]
    Version(String),
    /// A package has no wheel that could be installed.
    #[error(
        "{name} {version} has no wheel for {target}; it has {has}. Ask for a version that has one"
    )]
    NoWheelForPlatform {
        /// The distribution.
        name: String,
        /// Its version.
        version: String,
        /// What was looked for.
        target: String,
        /// What there is.
        has: String,
    },
    /// Nobody could tell whether a download is what was meant.
    #[error("the lock has no sha256 for {file}; make it anew with hashes")]
    NoHash {
        /// The file of a wheel.
        file: String,
    },
    /// A package that is not on an index.
    #[error(
        "{name} comes from {from}; expected a wheel of an index: build one of it, and name that"
    )]
    NotFromIndex {
        /// The distribution.
        name: String,
        /// A folder, an archive or a repository.
        from: &'static str,
    },
    /// Two of one name.
    #[error(
        "the lock has {name} twice for {target}, as {first} and {second}; expected one version of each package"
    )]
    Twice {
        /// The distribution.
        name: String,
        /// What was looked for.
        target: String,
        /// A version.
        first: String,
        /// Another.
        second: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    lock_version: String,
    #[serde(default)]
    packages: Vec<Package>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
struct Package {
    name: String,
    #[serde(default)]
    version: String,
    marker: Option<String>,
    #[serde(default)]
    wheels: Vec<Source>,
    vcs: Option<Elsewhere>,
    directory: Option<Elsewhere>,
    archive: Option<Elsewhere>,
}

/// A source that is not taken, of which nothing more is asked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
struct Elsewhere {}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
struct Source {
    name: Option<String>,
    #[serde(default)]
    url: String,
    size: Option<u64>,
    #[serde(default)]
    hashes: BTreeMap<String, String>,
}

impl Lock {
    /// Reads a lock.
    ///
    /// # Errors
    ///
    /// It is none, or one of a later format.
    pub fn read(text: &str) -> Result<Self, LockError> {
        let format = |error: toml::de::Error| LockError::Format(error.message().to_owned());
        let File { lock_version, packages } = toml::from_str(text).map_err(format)?;
        if !lock_version.starts_with(FORMAT) {
            return Err(LockError::Version(lock_version));
        }
        Ok(Self { packages })
    }

    /// The wheel of each package that a target takes, by name.
    ///
    /// # Errors
    ///
    /// A package has none, or none whose content is known.
    pub fn wheels(&self, target: &Target) -> Result<Vec<Wheel>, LockError> {
        let environment = environment(target);
        let mut wheels: BTreeMap<String, Wheel> = BTreeMap::new();
        for package in &self.packages {
            if !package.is_for(&environment)? {
                continue;
            }
            let wheel = package.wheel(target)?;
            if let Some(first) = wheels.get(&wheel.name) {
                return Err(LockError::Twice {
                    name: wheel.name,
                    target: target.to_string(),
                    first: first.version.clone(),
                    second: wheel.version,
                });
            }
            wheels.insert(wheel.name.clone(), wheel);
        }
        Ok(wheels.into_values().collect())
    }
}

/// What markers ask about. Versions of kernels are those of no kernel: a lock that depends on them is for one machine.
fn environment(target: &Target) -> MarkerEnvironment {
    let version = format!("3.{}", target.python);
    let full = format!("{version}.0");
    let builder = MarkerEnvironmentBuilder {
        implementation_name: "cpython",
        implementation_version: &full,
        os_name: "posix",
        platform_machine: target.processor.as_str(),
        platform_python_implementation: "CPython",
        platform_release: "",
        platform_system: "Linux",
        platform_version: "",
        python_full_version: &full,
        python_version: &version,
        sys_platform: "linux",
    };
    builder.try_into().expect("numbers with points between them are versions")
}

impl Package {
    fn is_for(&self, environment: &MarkerEnvironment) -> Result<bool, LockError> {
        let Some(marker) = &self.marker else { return Ok(true) };
        let tree = MarkerTree::from_str(marker).map_err(|error| {
            LockError::Format(format!("{}: marker {marker:?}: {}", self.name, error.message))
        })?;
        Ok(tree.evaluate(environment, &[]))
    }

    fn wheel(&self, target: &Target) -> Result<Wheel, LockError> {
        let elsewhere = [
            ("a repository", &self.vcs),
            ("a folder", &self.directory),
            ("an archive", &self.archive),
        ];
        if let Some((from, _)) = elsewhere.into_iter().find(|(_, it)| it.is_some()) {
            return Err(LockError::NotFromIndex { name: self.name.clone(), from });
        }
        let named: Vec<(WheelName, &Source)> =
            self.wheels.iter().filter_map(|it| Some((it.file()?.parse().ok()?, it))).collect();
        let ranks = target.ranks(named.iter().map(|(name, _)| name));
        let best = ranks
            .into_iter()
            .zip(&named)
            .filter_map(|(rank, (name, source))| Some((rank?, name, *source)))
            .min_by(|(left, a, _), (right, b, _)| (left, &b.build).cmp(&(right, &a.build)));
        let Some((_, _, source)) = best else { return Err(self.no_wheel(target)) };
        let file = source.file().unwrap_or_default().to_owned();
        let Some(sha256) = source.hashes.get("sha256").filter(|it| is_sha256(it)) else {
            return Err(LockError::NoHash { file });
        };
        Ok(Wheel {
            name: self.canonical_name()?,
            version: self.version.clone(),
            url: source.url.clone(),
            sha256: sha256.clone(),
            bytes: source.size,
            file,
        })
    }

    fn canonical_name(&self) -> Result<String, LockError> {
        let name = PackageName::new(self.name.clone());
        name.map(|it| it.to_string()).map_err(|error| LockError::Format(error.to_string()))
    }

    fn no_wheel(&self, target: &Target) -> LockError {
        let has: Vec<&str> = self.wheels.iter().filter_map(Source::file).collect();
        LockError::NoWheelForPlatform {
            name: self.name.clone(),
            version: self.version.clone(),
            target: target.to_string(),
            has: match &has[..] {
                [] => "none at all".to_owned(),
                [one] => (*one).to_owned(),
                [one, others @ ..] => format!("{one} and {} others", others.len()),
            },
        }
    }
}

impl Source {
    fn file(&self) -> Option<&str> {
        let path = self.url.split(['?', '#']).next()?;
        self.name.as_deref().or_else(|| path.rsplit('/').next())
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::{Lock, LockError};
    use crate::tags::{Library, Processor, Target};

    fn target() -> Target {
        Target { python: 11, library: Library::Glibc(36), processor: Processor::X86 }
    }

    /// A lock with packages, each a few lines of TOML.
    fn lock(packages: &[&str]) -> Lock {
        let packages: Vec<String> =
            packages.iter().map(|it| format!("[[packages]]\n{it}\n")).collect();
        Lock::read(&format!("lock-version = \"1.0\"\n{}", packages.join("\n"))).unwrap()
    }

    fn wheel(file: &str) -> String {
        let hash = "0".repeat(64);
        format!(
            "{{ url = \"https://index/{file}#x\", size = 7, hashes = {{ sha256 = \"{hash}\" }} }}"
        )
    }

    fn package(name: &str, files: &[&str]) -> String {
        let wheels: Vec<String> = files.iter().map(|it| wheel(it)).collect();
        format!("name = \"{name}\"\nversion = \"1\"\nwheels = [{}]", wheels.join(", "))
    }

    #[test]
    fn of_each_package_the_best_wheel_is_taken_and_of_equal_ones_that_of_the_last_build() {
        let numpy = package(
            "NumPy",
            &[
                "numpy-1-cp311-cp311-manylinux_2_17_x86_64.whl",
                "numpy-1-3-cp311-cp311-manylinux_2_28_x86_64.whl",
                "numpy-1-10-cp311-cp311-manylinux_2_28_x86_64.whl",
                "numpy-1-cp311-cp311-win_amd64.whl",
            ],
        );
        let six = package("six", &["six-1-py2.py3-none-any.whl"]);
        let wheels = lock(&[&six, &numpy]).wheels(&target()).unwrap();
        let files: Vec<_> = wheels.iter().map(|it| (&*it.name, &*it.file, it.bytes)).collect();
        assert_eq!(
            files,
            [
                ("numpy", "numpy-1-10-cp311-cp311-manylinux_2_28_x86_64.whl", Some(7)),
                ("six", "six-1-py2.py3-none-any.whl", Some(7)),
            ]
        );
    }

    #[test]
    fn a_package_for_something_else_is_left_out() {
        let only = |marker: &str| {
            let six = package("six", &["six-1-py3-none-any.whl"]);
            lock(&[&format!("{six}\nmarker = \"{marker}\"")]).wheels(&target()).map(|it| it.len())
        };
        assert_eq!(only("sys_platform == 'win32'"), Ok(0));
        assert_eq!(only("sys_platform == 'linux' and python_version >= '3.11'"), Ok(1));
        assert_eq!(only("platform_machine == 'aarch64' or python_full_version < '3.10'"), Ok(0));
        let refused = only("shoe_size > 40").unwrap_err().to_string();
        assert!(refused.contains("six: marker \"shoe_size > 40\""), "{refused}");
    }

    #[test]
    fn what_cannot_be_installed_as_it_is_meant_is_refused_by_name() {
        let refused = |package: &str| lock(&[package]).wheels(&target()).unwrap_err().to_string();
        assert_eq!(
            refused(&package("x", &["x-1-cp312-cp312-win_amd64.whl", "x-1-cp39-cp39-win32.whl"])),
            "x 1 has no wheel for Python 3.11 with glibc 2.36 on x86_64; it has \
             x-1-cp312-cp312-win_amd64.whl and 1 others. Ask for a version that has one"
        );
        assert!(refused(&package("x", &[])).contains("none at all"));
        for from in [
            "vcs = { type = \"git\" }",
            "directory = { path = \".\" }",
            "archive = { url = \"u\" }",
        ] {
            let told = refused(&format!("name = \"x\"\n{from}"));
            assert!(told.starts_with("x comes from "), "{told}");
        }
        for hash in ["md5 = \"0\"", "sha256 = \"0\"", "sha256 = \"../../etc\""] {
            let wheels = format!("{{ url = \"u/x-1-py3-none-any.whl\", hashes = {{ {hash} }} }}");
            let told = refused(&format!("name = \"x\"\nwheels = [{wheels}]"));
            assert_eq!(
                told,
                "the lock has no sha256 for x-1-py3-none-any.whl; make it anew with hashes"
            );
        }
        let twice = package("x", &["x-1-py3-none-any.whl"]);
        let told = lock(&[&twice, &twice.replace("\"x\"", "\"X\"")]).wheels(&target()).unwrap_err();
        assert!(matches!(told, LockError::Twice { .. }), "{told}");
    }

    #[test]
    fn what_is_no_lock_or_of_another_time_is_refused() {
        assert!(matches!(Lock::read("numpy\n"), Err(LockError::Format(_))));
        assert!(matches!(Lock::read("lock-version = \"2.0\""), Err(LockError::Version(_))));
        assert_eq!(Lock::read("lock-version = \"1.1\"").unwrap().wheels(&target()), Ok(vec![]));
    }
}
