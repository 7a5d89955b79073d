//! Which wheels an interpreter takes, and which of them it takes first.
//!
//! Source: the [platform compatibility tags](https://packaging.python.org/en/latest/specifications/platform-compatibility-tags/)
//! and the order in which `packaging.tags.sys_tags` gives them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The oldest minor versions of glibc that wheels name, by processor, and the first Python with a stable ABI.
const GLIBC_FIRST: u32 = 5;
const GLIBC_FIRST_ON_ARM: u32 = 17;
const ABI3_FIRST: u32 = 2;

/// What wheels called minor versions of glibc before they were named by their numbers.
const OLD_NAMES: [(u32, &str); 3] = [(17, "2014"), (12, "2010"), (5, "1")];

/// A processor.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Processor {
    /// `x86_64`, which OCI images call `amd64`.
    X86,
    /// `aarch64`, which OCI images call `arm64`.
    Arm,
}

/// The C library of a root file system.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Library {
    /// GNU's, 2 and this minor version.
    Glibc(u32),
    /// musl, 1 and this minor version.
    Musl(u32),
}

/// What wheels are chosen for: CPython 3 on Linux.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Target {
    /// The minor version of Python 3.
    pub python: u32,
    /// Its C library.
    pub library: Library,
    /// Its processor.
    pub processor: Processor,
}

/// What the name of a wheel says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WheelName {
    /// The distribution, as written.
    pub name: String,
    /// Its version, as written.
    pub version: String,
    /// The number that decides between wheels of equal tags, and what follows it; none is the least.
    pub build: Option<(u64, String)>,
    /// The Pythons, ABIs and platforms that it is for.
    tags: [Vec<String>; 3],
}

/// A name that no wheel has.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a wheel; expected NAME-VERSION-PYTHON-ABI-PLATFORM.whl, like \
     \"six-1.17.0-py2.py3-none-any.whl\""
)]
pub struct WheelNameError(String);

impl Processor {
    /// As tags of wheels and `uname -m` call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86 => "x86_64",
            Self::Arm => "aarch64",
        }
    }
}

impl Target {
    /// Every tag that its interpreter takes, the best first: Python, ABI, platform.
    pub fn tags(&self) -> Vec<[String; 3]> {
        let (python, platforms) = (self.python, self.platforms());
        let (own, any) = (format!("cp3{python}"), ["any".to_owned()]);
        let mut tags = Vec::new();
        let mut add = |python: &str, abi: &str, platforms: &[String]| {
            tags.extend(platforms.iter().map(|it| [python.to_owned(), abi.to_owned(), it.clone()]));
        };
        for abi in [own.as_str(), "abi3", "none"] {
            add(&own, abi, &platforms);
        }
        for older in (ABI3_FIRST..python).rev() {
            add(&format!("cp3{older}"), "abi3", &platforms);
        }
        let older = (0..python).rev().map(|it| format!("py3{it}"));
        let generic: Vec<String> =
            [format!("py3{python}"), "py3".to_owned()].into_iter().chain(older).collect();
        for version in &generic {
            add(version, "none", &platforms);
        }
        add(&own, "none", &any);
        for version in &generic {
            add(version, "none", &any);
        }
        tags
    }

    fn platforms(&self) -> Vec<String> {
        let processor = self.processor.as_str();
        let mut platforms = Vec::new();
        match self.library {
            Library::Glibc(minor) => {
                let first = match self.processor {
                    Processor::X86 => GLIBC_FIRST,
                    Processor::Arm => GLIBC_FIRST_ON_ARM,
                };
                for version in (first..=minor).rev() {
                    platforms.push(format!("manylinux_2_{version}_{processor}"));
                    let old = OLD_NAMES.iter().find(|(of, _)| *of == version);
                    platforms.extend(old.map(|(_, name)| format!("manylinux{name}_{processor}")));
                }
            }
            Library::Musl(minor) => platforms
                .extend((0..=minor).rev().map(|it| format!("musllinux_1_{it}_{processor}"))),
        }
        platforms.push(format!("linux_{processor}"));
        platforms
    }

    /// The place of each wheel's best tag among those that the interpreter takes, in the order of the wheels.
    pub fn ranks<'a>(&self, wheels: impl IntoIterator<Item = &'a WheelName>) -> Vec<Option<usize>> {
        let tags = self.tags();
        let mut places = BTreeMap::new();
        for (place, tag) in tags.iter().enumerate() {
            places.entry(tag.each_ref().map(String::as_str)).or_insert(place);
        }
        let place = |tag| places.get(&tag).copied();
        wheels.into_iter().map(|it| it.each_tag().filter_map(place).min()).collect()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let library = match self.library {
            Library::Glibc(minor) => format!("glibc 2.{minor}"),
            Library::Musl(minor) => format!("musl 1.{minor}"),
        };
        write!(f, "Python 3.{} with {library} on {}", self.python, self.processor.as_str())
    }
}

impl WheelName {
    /// Each of its tags: a name may stand for several.
    pub fn each_tag(&self) -> impl Iterator<Item = [&str; 3]> {
        let [pythons, abis, platforms] = &self.tags;
        pythons.iter().flat_map(move |python| {
            abis.iter().flat_map(move |abi| {
                platforms.iter().map(move |platform| [python.as_str(), abi, platform])
            })
        })
    }
}

impl FromStr for WheelName {
    type Err = WheelNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || WheelNameError(text.to_owned());
        let stem = text.strip_suffix(".whl").ok_or_else(refused)?;
        let parts: Vec<&str> = stem.split('-').collect();
        let ([name, version], build, tags) = match parts[..] {
            [name, version, python, abi, platform] => {
                ([name, version], None, [python, abi, platform])
            }
            [name, version, build, python, abi, platform] => {
                ([name, version], Some(build), [python, abi, platform])
            }
            _ => return Err(refused()),
        };
        let is_inner = |it: u8| it.is_ascii_alphanumeric() || b"._+!".contains(&it);
        let is_word = |it: &&str| !it.is_empty() && it.bytes().all(is_inner);
        if ![name, version].iter().chain(&tags).all(is_word) {
            return Err(refused());
        }
        let build = match build {
            Some(build) => Some(number(build).ok_or_else(refused)?),
            None => None,
        };
        let tags = tags.map(|set| set.split('.').map(str::to_lowercase).collect());
        Ok(Self { name: name.to_owned(), version: version.to_owned(), build, tags })
    }
}

/// The number that a build begins with, and the rest.
fn number(build: &str) -> Option<(u64, String)> {
    let end = build.find(|it: char| !it.is_ascii_digit()).unwrap_or(build.len());
    let (number, rest) = build.split_at(end);
    Some((number.parse().ok()?, rest.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{Library, Processor, Target, WheelName};

    fn bookworm() -> Target {
        Target { python: 11, library: Library::Glibc(36), processor: Processor::X86 }
    }

    fn name(text: &str) -> WheelName {
        text.parse().unwrap()
    }

    #[test]
    fn the_wheel_that_is_made_for_exactly_this_comes_before_those_for_more() {
        let wheels = [
            "x-1-py3-none-any.whl",
            "x-1-cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            "x-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            "x-1-cp311-cp311-manylinux_2_28_x86_64.whl",
            "x-1-cp311-none-any.whl",
        ]
        .map(name);
        let ranks = bookworm().ranks(&wheels);
        let mut order: Vec<usize> = (0..wheels.len()).collect();
        order.sort_by_key(|&it| ranks[it].unwrap());
        assert_eq!(order, [3, 2, 1, 4, 0]);
    }

    #[test]
    fn a_wheel_for_something_else_is_not_taken() {
        let wheels = [
            "x-1-cp312-cp312-manylinux_2_17_x86_64.whl",
            "x-1-cp311-cp311-manylinux_2_39_x86_64.whl",
            "x-1-cp311-cp311-manylinux_2_17_aarch64.whl",
            "x-1-cp311-cp311-musllinux_1_2_x86_64.whl",
            "x-1-cp311-cp311-win_amd64.whl",
            "x-1-cp311-cp311t-manylinux_2_17_x86_64.whl",
            "x-1-cp312-abi3-manylinux_2_17_x86_64.whl",
            "x-1-py312-none-any.whl",
            "x-1-py2-none-any.whl",
        ]
        .map(name);
        assert_eq!(bookworm().ranks(&wheels), [None; 9]);
    }

    #[test]
    fn other_libraries_and_processors_have_tags_of_their_own() {
        let musl = Target { library: Library::Musl(2), ..bookworm() };
        let arm = Target { processor: Processor::Arm, ..bookworm() };
        let wheels = [
            "x-1-cp311-cp311-musllinux_1_1_x86_64.whl",
            "x-1-cp311-cp311-manylinux2014_aarch64.whl",
            "x-1-cp311-cp311-manylinux1_x86_64.whl",
        ]
        .map(name);
        let taken = |it: Target| it.ranks(&wheels).iter().map(Option::is_some).collect::<Vec<_>>();
        assert_eq!(taken(musl), [true, false, false]);
        assert_eq!(taken(arm), [false, true, false]);
        assert_eq!(taken(bookworm()), [false, false, true]);
    }

    #[test]
    fn a_name_is_read_in_its_parts() {
        let read = name("Foo_bar-1.0+local.1-2b-py2.PY3-none-any.whl");
        assert_eq!((&*read.name, &*read.version), ("Foo_bar", "1.0+local.1"));
        assert_eq!(read.build, Some((2, "b".to_owned())));
        let tags: Vec<_> = read.each_tag().collect();
        assert_eq!(tags, [["py2", "none", "any"], ["py3", "none", "any"]]);
    }

    #[test]
    fn what_is_not_the_name_of_a_wheel_is_refused_in_words() {
        for text in [
            "numpy-2.0.tar.gz",
            "numpy.whl",
            "a-1-py3-none.whl",
            "a-1-x-py3-none-any.whl",
            "../a-1-py3-none-any.whl",
            "-1-py3-none-any.whl",
            "a-1-2-3-py3-none-any.whl",
            "a-1-99999999999999999999-py3-none-any.whl",
        ] {
            let refused = text.parse::<WheelName>().unwrap_err().to_string();
            assert!(refused.contains(text) && refused.contains("expected"), "{refused}");
        }
    }
}
