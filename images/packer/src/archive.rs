//! An OCI image layout in one tar file: layers, configuration, manifest, index.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// How processes of an image start.
pub(crate) struct Config {
    pub(crate) env: Vec<String>,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) user: String,
}

/// An image while it is written.
pub(crate) struct Image {
    out: PathBuf,
    draft: PathBuf,
    archive: Builder<BufWriter<File>>,
    layers: Vec<Blob>,
}

#[derive(Clone, Eq, PartialEq)]
struct Blob {
    digest: String,
    bytes: u64,
}

impl Image {
    /// Starts an archive, which is there once it is finished.
    pub(crate) fn create(out: &Path) -> anyhow::Result<Self> {
        let draft = out.with_extension("draft");
        let file =
            File::create(&draft).with_context(|| format!("cannot write {}", draft.display()))?;
        let archive = Builder::new(BufWriter::new(file));
        Ok(Self { out: out.to_owned(), draft, archive, layers: Vec::new() })
    }

    /// Adds what `write` writes as a layer.
    pub(crate) fn add_layer(
        &mut self,
        write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        // Its digest is its name, so it is written aside first.
        let aside = self.out.with_extension("layer");
        let mut hashed = Hashed::new(BufWriter::new(File::create(&aside)?));
        write(&mut hashed)?;
        let blob = hashed.finish()?;
        if !self.layers.contains(&blob) {
            self.append(&blob, &mut File::open(&aside)?)?;
        }
        fs::remove_file(&aside)?;
        self.layers.push(blob);
        Ok(())
    }

    /// Writes what is left and gives the archive its name.
    pub(crate) fn finish(mut self, name: &str, config: &Config) -> anyhow::Result<()> {
        let digests: Vec<&str> = self.layers.iter().map(|layer| layer.digest.as_str()).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Env": config.env, "Entrypoint": config.entrypoint, "User": config.user,
            },
            "rootfs": { "type": "layers", "diff_ids": digests },
        });
        let config = self.append_json(&config)?;
        let layers: Vec<Value> = self.layers.iter().map(|layer| layer.describe(LAYER)).collect();
        let manifest = self.append_json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.describe(CONFIG),
            "layers": layers,
        }))?;
        let mut described = manifest.describe(MANIFEST);
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        described["annotations"] = json!({
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": tag,
        });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [described] });
        self.append_file("index.json", &index)?;
        self.append_file("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))?;
        self.archive.into_inner()?.flush()?;
        fs::rename(&self.draft, &self.out)?;
        writeln!(io::stdout(), "{}", manifest.digest)?;
        Ok(())
    }

    fn append_json(&mut self, value: &Value) -> anyhow::Result<Blob> {
        let bytes = serde_json::to_vec(value)?;
        let mut hashed = Hashed::new(io::sink());
        hashed.write_all(&bytes)?;
        let blob = hashed.finish()?;
        self.append(&blob, &mut bytes.as_slice())?;
        Ok(blob)
    }

    fn append(&mut self, blob: &Blob, content: &mut dyn io::Read) -> anyhow::Result<()> {
        let hash = blob.digest.trim_start_matches("sha256:");
        let mut header = header(blob.bytes);
        self.archive.append_data(&mut header, format!("blobs/sha256/{hash}"), content)?;
        Ok(())
    }

    fn append_file(&mut self, name: &str, value: &Value) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec(value)?;
        let mut header = header(bytes.len() as u64);
        self.archive.append_data(&mut header, name, bytes.as_slice())?;
        Ok(())
    }
}

impl Blob {
    fn describe(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.bytes })
    }
}

fn header(bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(bytes);
    header.set_mtime(0);
    header
}

/// Hashes and counts what goes through.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    fn finish(mut self) -> io::Result<Blob> {
        self.inner.flush()?;
        let digest = self.hash.finalize();
        let digest = digest.iter().fold("sha256:".to_owned(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes any write");
            text
        });
        Ok(Blob { digest, bytes: self.bytes })
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
