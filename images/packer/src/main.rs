//! `ebbtide-packer`: packs folders into an OCI image archive. The same folders give the same bytes.

mod archive;
mod layer;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;

use crate::archive::{Config, Image};

/// Packs folders into an OCI image archive.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Name and tag that the archive gives to the image.
    #[arg(long)]
    name: String,
    /// A tar file to use as a layer, as it is. May be given several times.
    #[arg(long)]
    tar: Vec<PathBuf>,
    /// A file or folder and where it goes, each a layer: SOURCE=/PATH. May be given several times.
    #[arg(long, value_parser = copy)]
    copy: Vec<(PathBuf, PathBuf)>,
    /// A variable that processes of the image have: NAME=VALUE. May be given several times.
    #[arg(long)]
    env: Vec<String>,
    /// What the image runs. May be given several times, a word each.
    #[arg(long)]
    entrypoint: Vec<String>,
    /// User and group that it runs as.
    #[arg(long, default_value = "65532:65532")]
    user: String,
    /// The archive.
    #[arg(long)]
    out: PathBuf,
}

fn copy(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let (from, to) = text.split_once('=').ok_or("expected SOURCE=/PATH")?;
    let paths = to.starts_with('/').then(|| (from.into(), to.into()));
    paths.ok_or_else(|| format!("{to:?} must be an absolute path in the image"))
}

fn main() -> anyhow::Result<()> {
    let Arguments { name, tar, copy, env, entrypoint, user, out } = Arguments::parse();
    let mut image = Image::create(&out)?;
    for path in &tar {
        image.add_layer(|writer| layer::copy_tar(path, writer))?;
    }
    for (from, to) in &copy {
        image
            .add_layer(|writer| layer::pack(from, to, writer))
            .with_context(|| format!("cannot pack {}", from.display()))?;
    }
    image.finish(&name, &Config { env, entrypoint, user })
}
