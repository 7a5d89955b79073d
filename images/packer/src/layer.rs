//! One layer from a folder: sorted, owned by root, without times, so that it depends on nothing
//! but names, modes and contents.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tar::{Builder, EntryType, Header};

/// Writes a tar file as a layer, byte by byte.
pub(crate) fn copy_tar(path: &Path, writer: &mut dyn Write) -> anyhow::Result<()> {
    let mut tar = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    io::copy(&mut tar, writer)?;
    Ok(())
}

/// Packs a file or folder so that it lies at `to`.
pub(crate) fn pack(from: &Path, to: &Path, writer: &mut dyn Write) -> anyhow::Result<()> {
    let mut layer = Builder::new(writer);
    let to = to.strip_prefix("/")?;
    for folder in parents(to) {
        append_folder(&mut layer, &folder, 0o755)?;
    }
    add(&mut layer, from, to)?;
    layer.finish()?;
    Ok(())
}

fn parents(path: &Path) -> Vec<PathBuf> {
    let mut parents: Vec<PathBuf> = path.ancestors().skip(1).map(Path::to_owned).collect();
    parents.pop();
    parents.reverse();
    parents
}

fn add<W: Write>(layer: &mut Builder<W>, from: &Path, to: &Path) -> anyhow::Result<()> {
    let meta = fs::symlink_metadata(from)?;
    let mode = meta.permissions().mode() & 0o7777;
    if meta.is_symlink() {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        layer.append_link(&mut header, to, fs::read_link(from)?)?;
    } else if meta.is_dir() {
        append_folder(layer, to, mode)?;
        let mut names: Vec<_> =
            fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
        names.sort();
        for name in names {
            add(layer, &from.join(&name), &to.join(&name))?;
        }
    } else {
        let mut header = header(EntryType::Regular, mode, meta.len());
        layer.append_data(&mut header, to, File::open(from)?)?;
    }
    Ok(())
}

fn append_folder<W: Write>(layer: &mut Builder<W>, path: &Path, mode: u32) -> io::Result<()> {
    layer.append_data(&mut header(EntryType::Directory, mode, 0), path, io::empty())
}

fn header(kind: EntryType, mode: u32, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::pack;

    #[test]
    fn the_same_folder_gives_the_same_layer_whenever_it_was_written() {
        let folder = std::env::temp_dir().join(format!("ebbtide-layer-{}", std::process::id()));
        let layer = |names: [&str; 2]| {
            fs::create_dir_all(&folder).unwrap();
            for name in names {
                fs::write(folder.join(name), name).unwrap();
            }
            let mut bytes = Vec::new();
            pack(&folder, Path::new("/opt/x"), &mut bytes).unwrap();
            fs::remove_dir_all(&folder).unwrap();
            bytes
        };
        assert_eq!(layer(["a", "b"]), layer(["b", "a"]));
    }
}
