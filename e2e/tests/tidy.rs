//! Rules about the repository itself. What can be checked is not argued about in review.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Every arrow that may stand between our crates. Add one here and say why in ARCHITECTURE.md.
const ARROWS: &[(&str, &str)] = &[
    ("ebbtide", "ebbtide-api"),
    ("ebbtide", "ebbtide-contract"),
    ("ebbtide", "ebbtide-environment"),
    ("ebbtide", "ebbtide-local"),
    ("ebbtide", "ebbtide-node"),
    ("ebbtide", "ebbtide-packer"),
    ("ebbtide", "ebbtide-plan"),
    ("ebbtide-array", "ebbtide-core"),
    ("ebbtide-authority", "ebbtide-contract"),
    ("ebbtide-controller", "ebbtide-api"),
    ("ebbtide-controller", "ebbtide-authority"),
    ("ebbtide-controller", "ebbtide-contract"),
    ("ebbtide-controller", "ebbtide-listener"),
    ("ebbtide-controller", "ebbtide-plan"),
    ("ebbtide-kernels", "ebbtide-array"),
    ("ebbtide-kernels", "ebbtide-buffer"),
    ("ebbtide-listener", "ebbtide-contract"),
    ("ebbtide-local", "ebbtide-api"),
    ("ebbtide-local", "ebbtide-authority"),
    ("ebbtide-local", "ebbtide-contract"),
    ("ebbtide-local", "ebbtide-environment"),
    ("ebbtide-local", "ebbtide-listener"),
    ("ebbtide-local", "ebbtide-packer"),
    ("ebbtide-local", "ebbtide-plan"),
    ("ebbtide-node", "ebbtide-array"),
    ("ebbtide-node", "ebbtide-buffer"),
    ("ebbtide-node", "ebbtide-contract"),
    ("ebbtide-node", "ebbtide-core"),
    ("ebbtide-node", "ebbtide-kernels"),
    ("ebbtide-operator-sim", "ebbtide-api"),
    ("ebbtide-operator-sim", "ebbtide-authority"),
    ("ebbtide-operator-sim", "ebbtide-contract"),
    ("ebbtide-operator-sim", "ebbtide-controller"),
    ("ebbtide-operator-sim", "ebbtide-listener"),
    ("ebbtide-operator-sim", "ebbtide-plan"),
    ("ebbtide-packer", "ebbtide-environment"),
    ("ebbtide-plan", "ebbtide-api"),
    ("ebbtide-plan", "ebbtide-contract"),
    ("ebbtide-plan", "ebbtide-environment"),
    ("ebbtide-python", "ebbtide-array"),
    ("ebbtide-python", "ebbtide-core"),
    ("ebbtide-python", "ebbtide-node"),
    ("ebbtide-schedulers", "ebbtide-api"),
    ("ebbtide-schedulers", "ebbtide-contract"),
    ("ebbtide-sim", "ebbtide-core"),
];

/// What the pure crates may never depend on, directly or not.
const SHELL: &[&str] = &["tokio", "kube-client", "rcgen", "axum", "rustix"];

const PURE: &[&str] = &[
    "ebbtide-api",
    "ebbtide-array",
    "ebbtide-buffer",
    "ebbtide-contract",
    "ebbtide-core",
    "ebbtide-environment",
    "ebbtide-kernels",
    "ebbtide-plan",
    "ebbtide-sim",
];

const LINES_MAX: usize = 600;

/// A main says how a program is started, and no more.
const MAIN_LINES_MAX: usize = 60;

#[test]
fn crates_depend_only_along_the_arrows() {
    let allowed: BTreeSet<(String, String)> =
        ARROWS.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
    let found = workspace_arrows();
    let stray: Vec<_> = found.difference(&allowed).collect();
    let unused: Vec<_> = allowed.difference(&found).collect();
    assert!(stray.is_empty() && unused.is_empty(), "not allowed: {stray:?}; not used: {unused:?}");
}

#[test]
fn pure_crates_cannot_do_io() {
    for package in PURE {
        let tree = cargo(&[
            "tree",
            "--offline",
            "--locked",
            "--edges=normal",
            "--prefix=none",
            "-p",
            package,
        ]);
        for line in tree.lines() {
            let name = line.split(' ').next().unwrap_or_default();
            assert!(!SHELL.contains(&name), "{package} depends on {name}");
        }
    }
}

#[test]
fn the_extension_is_made_of_what_the_programs_are_made_of() {
    let features = |packages: &[&str]| -> BTreeSet<String> {
        let mut arguments = vec!["tree", "--offline", "--locked", "--edges=normal,build"];
        arguments.extend(["--prefix=none", "--no-dedupe", "--format={p} [{f}]"]);
        arguments.extend(packages.iter().flat_map(|package| ["-p", package]));
        cargo(&arguments).lines().map(str::to_owned).collect()
    };
    // Those that scripts/wheel builds before maturin does.
    let programs = features(&["ebbtide", "ebbtide-controller", "ebbtide-packer"]);
    let is_its_own = |it: &&String| {
        ["ebbtide-python ", "pyo3", "target-lexicon "].iter().any(|own| it.starts_with(own))
    };
    let extension = features(&["ebbtide-python"]);
    let twice: Vec<_> = extension.difference(&programs).filter(|it| !is_its_own(it)).collect();
    assert!(twice.is_empty(), "built once more for other features: {twice:#?}");
}

#[test]
fn files_stay_short() {
    let long: Vec<String> = rust_files(&root())
        .into_iter()
        .filter_map(|path| {
            let lines = fs::read_to_string(&path).ok()?.lines().count();
            let most = if path.ends_with("main.rs") { MAIN_LINES_MAX } else { LINES_MAX };
            (most < lines).then(|| format!("{} has {lines} lines", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "split these by what they know, not by size:\n{}", long.join("\n"));
}

#[test]
fn every_file_says_what_it_knows() {
    for path in rust_files(&root()) {
        let text = fs::read_to_string(&path).expect("a listed file can be read");
        let is_tests = path.ends_with("tests.rs");
        assert!(is_tests || text.starts_with("//!"), "{} has no first line", path.display());
    }
}

fn workspace_arrows() -> BTreeSet<(String, String)> {
    let metadata = cargo(&["metadata", "--format-version=1", "--no-deps", "--offline", "--locked"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("a workspace has packages");
    let ours: BTreeSet<&str> = packages.iter().filter_map(|it| it["name"].as_str()).collect();

    let mut arrows = BTreeSet::new();
    for package in packages {
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let (from, to) = (&package["name"], &dependency["name"]);
            let (Some(from), Some(to)) = (from.as_str(), to.as_str()) else { continue };
            if ours.contains(to) && dependency["kind"].is_null() {
                arrows.insert((from.to_owned(), to.to_owned()));
            }
        }
    }
    arrows
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints text")
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("the repository can be read").flatten() {
        let path = entry.path();
        let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
        if path.is_dir() && !path.ends_with("target") && !is_hidden {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
