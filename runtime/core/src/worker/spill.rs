//! Chunks that go to disk: when nothing could run otherwise, and then some more at once, so that
//! several tasks fit again. A chunk on disk stays there; each execution that needs it reads it.

use crate::TaskId;
use crate::message::FromWorker;
use crate::worker::{Chunk, Effect, Place, SpillId, Worker};

/// What is left in memory when chunks go to disk, as a part of all: three quarters, so that a
/// quarter is there for tasks.
const LEFT: (u64, u64) = (3, 4);

impl Worker {
    /// Bytes of inputs that an execution must first read.
    pub(super) fn bytes_to_read(&self, inputs: &[TaskId]) -> u64 {
        let away = inputs.iter().filter_map(|input| self.chunks.get(input));
        away.filter(|chunk| chunk.place != Place::Memory).map(|chunk| chunk.bytes).sum()
    }

    /// Sends chunks to disk so that a task fits. True while that may help it.
    pub(super) fn make_room(&mut self, needed: u64, inputs: &[TaskId]) -> bool {
        if !self.leaving.is_empty() {
            return true;
        }
        if self.is_disk_full {
            return false;
        }
        let wanted = (self.memory_bytes / LEFT.1 * LEFT.0).saturating_sub(needed);
        let mut left = self.taken_bytes;
        let mut victims: Vec<(bool, TaskId, u64)> = self
            .chunks
            .iter()
            .filter(|(id, it)| it.can_leave() && !inputs.contains(id))
            .map(|(id, it)| (it.users > 0, *id, it.bytes))
            .collect();
        // First what no task here needs.
        victims.sort_unstable();
        for (_, chunk, bytes) in victims {
            if left <= wanted {
                break;
            }
            left -= bytes;
            self.spill(chunk);
        }
        !self.leaving.is_empty()
    }

    fn spill(&mut self, chunk: TaskId) {
        let spill = SpillId(self.next_spill);
        self.next_spill += 1;
        if let Some(leaving) = self.chunks.get_mut(&chunk) {
            leaving.place = Place::Leaving(spill);
        }
        self.leaving.insert(spill, chunk);
        self.effects.push_back(Effect::Spill { spill, chunk });
    }

    pub(super) fn spilled(&mut self, spill: SpillId, is_on_disk: bool) {
        // Not there: it was let go in the meantime.
        let Some(chunk) = self.leaving.remove(&spill) else { return };
        let left = self.chunks.get_mut(&chunk).expect("what is leaving is here");
        if is_on_disk {
            left.place = Place::Disk;
            self.taken_bytes -= left.bytes;
            self.disk_bytes += left.bytes;
        } else {
            left.place = Place::Memory;
            self.is_disk_full = true;
        }
    }

    /// A chunk was let go.
    pub(super) fn vacate(&mut self, dropped: &Chunk) {
        match dropped.place {
            Place::Memory => self.taken_bytes -= dropped.bytes,
            Place::Leaving(spill) => {
                self.taken_bytes -= dropped.bytes;
                self.leaving.remove(&spill);
            }
            Place::Disk => {
                self.disk_bytes -= dropped.bytes;
                self.is_disk_full = false;
            }
        }
    }

    /// A chunk cannot be read any more. Whoever needs it must wait for another one.
    pub(super) fn lose(&mut self, chunk: TaskId) {
        if !self.chunks.contains_key(&chunk) {
            return;
        }
        let users = self.tasks.iter().filter_map(|(id, task)| {
            let (_, holder) = task.inputs.iter().find(|(input, _)| *input == chunk)?;
            Some((*id, *holder))
        });
        let users: Vec<_> = users.collect();
        for (task, holder) in users {
            let Some(taken) = self.take_task(task) else { continue };
            let attempt = taken.attempt;
            self.say(FromWorker::InputMissing { task, attempt, input: chunk, holder });
        }
        self.drop_chunk(chunk);
        self.say(FromWorker::NotHere(chunk));
    }

    pub(super) fn tell_disk_bytes(&mut self) {
        if self.disk_bytes != self.told_disk_bytes {
            self.told_disk_bytes = self.disk_bytes;
            self.say(FromWorker::OnDisk { bytes: self.disk_bytes });
        }
    }
}

impl Chunk {
    /// Copies of other workers' chunks are here because they are needed now.
    fn can_leave(&self) -> bool {
        self.place == Place::Memory && self.made_by.is_some()
    }
}
