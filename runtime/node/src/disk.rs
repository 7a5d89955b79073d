//! Chunks on disk: one nameless file, which goes with the process, and a thread that writes to it.
//!
//! Chunks lie one after the other; the space of one that is let go is given back as a hole.

use std::env;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;

use ebbtide_buffer::{Buffer, Pool};
use ebbtide_core::TaskId;
use ebbtide_core::worker::SpillId;
use rustix::fs::{FallocateFlags, fallocate, fstatfs, fstatvfs, statfs};
use xxhash_rust::xxh3::xxh3_64;

use crate::store::{Held, Store};

/// What stays free below a kubelet: half as much again as what it wants to see free before it evicts
/// pods (`nodefs.available<10%`).
const BELOW_A_KUBELET: Reserve = Reserve { part: 0.15, bytes_max: u64::MAX };

/// What stays free for the other programs of a machine.
const ON_A_MACHINE: Reserve = Reserve { part: 0.05, bytes_max: 8 << 30 };

/// What every container of a pod has among its variables.
const KUBERNETES: &str = "KUBERNETES_SERVICE_HOST";

/// Holes are whole pages of the file system.
const PAGE_BYTES: u64 = 4096;

/// Where a new file begins: far below what any file system bears.
const FILE_BYTES_MAX: u64 = 1 << 40;

/// File systems that are memory (`linux/magic.h`).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Bytes of a chunk on disk. Their space is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Extent {
    file: Arc<File>,
    offset: u64,
    length: usize,
    checksum: u64,
}

impl Extent {
    /// Reads it, and makes sure that it is what was written.
    pub(crate) fn read(&self, pool: &Pool) -> io::Result<Buffer> {
        let mut buffer = pool.take(self.length);
        self.file.read_exact_at(&mut buffer, self.offset)?;
        if xxh3_64(&buffer) != self.checksum {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk on disk has changed"));
        }
        Ok(buffer)
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        let length = (self.length as u64).next_multiple_of(PAGE_BYTES);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if length > 0
            && let Err(error) = fallocate(&*self.file, flags, self.offset, length)
        {
            tracing::debug!(%error, "the space of a chunk is given back with the whole file");
        }
    }
}

/// How much of a file system stays free.
#[derive(Clone, Copy, Debug)]
struct Reserve {
    part: f64,
    bytes_max: u64,
}

impl Reserve {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of a whole is not negative and not larger than the whole"
    )]
    fn bytes(self, of: u64) -> u64 {
        ((of as f64 * self.part) as u64).min(self.bytes_max)
    }
}

/// Where the next chunk goes.
#[derive(Debug)]
struct Disk {
    folders: Vec<PathBuf>,
    reserve: Reserve,
    file: Option<Arc<File>>,
    end: u64,
}

impl Disk {
    /// In the first of these folders that can be written to and is not memory.
    fn new(folders: Vec<PathBuf>, reserve: Reserve) -> Self {
        Self { folders, reserve, file: None, end: 0 }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<Extent> {
        let file = self.file()?;
        let length = (bytes.len() as u64).next_multiple_of(PAGE_BYTES);
        let space = fstatvfs(&*file)?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let reserved = self.reserve.bytes(space.f_blocks.saturating_mul(space.f_frsize));
        if free.saturating_sub(reserved) < length {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let offset = self.end;
        let checksum = xxh3_64(bytes);
        // Made first, so that what a failed write leaves is given back.
        let extent = Extent { file, offset, length: bytes.len(), checksum };
        extent.file.write_all_at(bytes, offset)?;
        self.end += length;
        Ok(extent)
    }

    fn file(&mut self) -> io::Result<Arc<File>> {
        if let Some(file) = &self.file
            && self.end < FILE_BYTES_MAX
        {
            return Ok(Arc::clone(file));
        }
        let folder = self.folders.iter().find(|it| is_on_disk(it));
        let folder = folder.ok_or_else(|| {
            io::Error::other("no folder for temporary files is on a disk; set TMPDIR to one")
        })?;
        let file = Arc::new(tempfile::tempfile_in(folder)?);
        // A file system below another one says what it is only through the file.
        if IN_MEMORY.contains(&fstatfs(&*file)?.f_type) {
            return Err(io::Error::other("the folder for temporary files is in memory"));
        }
        self.end = 0;
        self.file = Some(Arc::clone(&file));
        Ok(file)
    }
}

fn is_on_disk(folder: &Path) -> bool {
    statfs(folder).is_ok_and(|it| !IN_MEMORY.contains(&it.f_type))
        && rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok()
}

/// What the thread is to do.
pub(crate) enum Order {
    /// Write a chunk.
    Spill(SpillId, TaskId, Arc<Buffer>),
    /// Read a chunk that a client waits for.
    Read(TaskId, Held),
}

/// What it did.
pub(crate) enum Done {
    /// A chunk is on disk in its store, or it is not.
    Spilled { spill: SpillId, is_on_disk: bool },
    /// The bytes of a chunk.
    Read(TaskId, io::Result<Arc<Buffer>>),
}

/// Starts the thread, which ends when nobody can order anything any more.
pub(crate) fn start(
    store: Store,
    pool: Pool,
    report: impl Fn(Done) + Send + 'static,
) -> io::Result<mpsc::Sender<Order>> {
    let (orders, ordered) = mpsc::channel();
    let reserve = if env::var_os(KUBERNETES).is_some() { BELOW_A_KUBELET } else { ON_A_MACHINE };
    let mut disk = Disk::new(vec![env::temp_dir(), PathBuf::from("/var/tmp")], reserve);
    thread::Builder::new().name("disk".to_owned()).spawn(move || {
        for order in ordered {
            report(match order {
                Order::Spill(spill, chunk, buffer) => {
                    let written = disk.write(&buffer);
                    if let Err(error) = &written {
                        tracing::warn!(%error, bytes = buffer.len(), "a chunk stays in memory");
                    }
                    let is_on_disk = written.is_ok();
                    if let Ok(extent) = written {
                        store.spilled(chunk, &buffer, extent);
                    }
                    drop(buffer);
                    Done::Spilled { spill, is_on_disk }
                }
                Order::Read(chunk, held) => Done::Read(chunk, held.read(&pool)),
            });
        }
    })?;
    Ok(orders)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use ebbtide_buffer::Pool;

    use super::{BELOW_A_KUBELET, Disk, ON_A_MACHINE, Reserve};

    fn disk_less(part: f64) -> Disk {
        let reserve = Reserve { part, bytes_max: u64::MAX };
        Disk::new(vec![std::env::temp_dir(), "/var/tmp".into()], reserve)
    }

    fn disk() -> Disk {
        disk_less(0.0)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (mut disk, pool) = (disk(), Pool::new(0));
        let chunks = [vec![1; 5000], vec![], vec![2; 4096], vec![3; 1]];
        let extents = chunks.each_ref().map(|chunk| disk.write(chunk).unwrap());
        for (chunk, extent) in chunks.iter().zip(&extents) {
            assert_eq!(&extent.read(&pool).unwrap()[..], chunk);
        }
    }

    #[test]
    fn a_changed_byte_is_an_error() {
        let mut disk = disk();
        let extent = disk.write(&[7; 5000]).unwrap();
        extent.file.write_all_at(&[8], extent.offset + 4999).unwrap();
        let error = extent.read(&Pool::new(0)).unwrap_err();
        assert_eq!(error.to_string(), "a chunk on disk has changed");
    }

    #[test]
    fn the_space_of_a_chunk_that_is_let_go_is_free_again() {
        let mut disk = disk();
        let (first, second) =
            (disk.write(&vec![1; 1 << 20]).unwrap(), disk.write(&[2; 10]).unwrap());
        let blocks = || second.file.metadata().unwrap().blocks();
        second.file.sync_all().unwrap();
        let before = blocks();
        drop(first);
        second.file.sync_all().unwrap();
        assert!(before * 512 >= 1 << 20 && blocks() * 512 < 1 << 17, "{before} {}", blocks());
        assert_eq!(&second.read(&Pool::new(0)).unwrap()[..], [2; 10]);
    }

    #[test]
    fn a_folder_in_memory_is_not_a_disk() {
        let error = Disk::new(vec!["/dev/shm".into()], ON_A_MACHINE).write(&[1]).unwrap_err();
        assert!(error.to_string().contains("set TMPDIR"), "{error}");
    }

    #[test]
    fn what_is_reserved_stays_free() {
        let error = disk_less(1.0).write(&[1]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_large_disk_is_filled_further_where_no_kubelet_evicts() {
        let [small, large] = [20 << 30, 1 << 40];
        assert_eq!([small, large].map(|it| ON_A_MACHINE.bytes(it)), [1 << 30, 8 << 30]);
        assert!(BELOW_A_KUBELET.bytes(large) > large / 10);
    }
}
