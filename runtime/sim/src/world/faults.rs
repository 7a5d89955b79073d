//! What goes wrong in a world: workers die, fall silent, come back and are taken away.

use std::time::Duration;

use ebbtide_core::scheduler::Offer;
use ebbtide_core::{Resources, WorkerId, scheduler, worker};

use super::{Happening, LOSSES_MAX, World};
use crate::job::GPU;

impl World {
    /// The operator wants to do without a worker.
    fn retire(&mut self) {
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        let count = u32::try_from(ids.len()).expect("a handful of workers");
        if count > 0 {
            let worker = ids[self.random.roll(count) as usize];
            let deadline = self.now.after(Duration::from_secs(u64::from(self.random.roll(20))));
            self.log(&format!("{worker:?} is to retire"));
            self.tell_scheduler(scheduler::Event::Retire(worker, deadline));
        }
    }

    /// Which kinds of workers may come: not each can take every task, but each task one of them.
    pub(super) fn offer(&mut self, needed_bytes: u64) {
        let small = needed_bytes / 2 + u64::from(self.random.roll(20));
        let large = needed_bytes + u64::from(self.random.roll(100));
        let kind = |name: &str, memory_bytes, gpus: &[u64]| Offer {
            name: name.to_owned(),
            memory_bytes,
            resources: gpus.iter().map(|it| (GPU.to_owned(), *it)).collect::<Resources>(),
            target: Duration::from_secs(10),
        };
        self.kinds = vec![
            kind("small", small, &[]),
            kind("large", large, &[]),
            kind("with gpus", large, &[2]),
        ];
        self.tell_scheduler(scheduler::Event::Offered(self.kinds.clone()));
    }

    /// The operator sees that tasks wait for workers of which there is none.
    fn bring_missing(&mut self) {
        let is_there = |kind: &String| {
            let offer = self.kinds.iter().find(|it| it.name == *kind);
            let alike = |it: &Offer, (bytes, resources): (u64, &Resources)| {
                it.memory_bytes == bytes && it.resources == *resources
            };
            let there = self.workers.values().map(|it| &it.joining);
            let mut there = there.map(|it| (it.memory_bytes, &it.resources));
            offer.is_some_and(|offer| there.any(|it| alike(offer, it)))
        };
        let demand = self.scheduler.demand(self.now);
        let is_missing = demand.iter().any(|it| !it.fits.iter().any(is_there));
        if is_missing {
            self.join();
        }
    }

    /// Now and then a worker dies, joins, or falls silent.
    pub(super) fn disturb(&mut self) {
        if self.random.once_in(20) {
            self.bring_missing();
        }
        if self.random.once_in(20) {
            self.retire();
        }
        if self.lost < LOSSES_MAX && self.random.once_in(40) {
            let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
            let Some(count) = u32::try_from(ids.len()).ok().filter(|count| *count > 0) else {
                return;
            };
            let victim = ids[self.random.roll(count) as usize];
            self.lost += 1;
            if self.random.once_in(3) {
                self.reconnect(victim);
                return;
            }
            if self.random.once_in(2) {
                self.log(&format!("{victim:?} dies"));
                self.workers.remove(&victim);
                self.tell_scheduler(scheduler::Event::WorkerLost(victim));
            } else if let Some(worker) = self.workers.get_mut(&victim) {
                // It works on, but nobody hears of it until the scheduler gives it up.
                worker.is_silent = true;
                self.log(&format!("{victim:?} falls silent"));
            }
            self.join();
        }
    }

    /// A worker loses its connection and comes back: the same process, under a new name.
    fn reconnect(&mut self, old: WorkerId) {
        let Some(mut worker) = self.workers.remove(&old) else { return };
        let new = WorkerId(self.next_worker);
        self.next_worker += 1;
        self.log(&format!("{old:?} comes back as {new:?}"));
        // The old connection's end may be noticed later, or never.
        if self.random.once_in(2) {
            self.tell_scheduler(scheduler::Event::WorkerLost(old));
        }
        worker.core.handle_event(worker::Event::Reconnected);
        while let Some(effect) = worker.core.poll_effect() {
            if let worker::Effect::Drop(chunk) = effect {
                worker.values.remove(&chunk);
                worker.spilled.remove(&chunk);
            }
            if let worker::Effect::Interrupt(run) = effect {
                worker.running.remove(&run);
            }
        }
        let joining = worker.joining.clone();
        self.workers.insert(new, worker);
        self.renamed.insert(old, new);
        self.schedule(Duration::from_secs(2), Happening::Heartbeat(new));
        self.tell_scheduler(scheduler::Event::WorkerJoined(new, joining));
    }

    /// The operator takes a worker away that was released.
    pub(super) fn take(&mut self, worker: WorkerId) -> Result<(), String> {
        if let Some(taken) = self.workers.remove(&worker)
            && let Some(chunk) = taken.values.keys().find(|it| self.is_needed(**it))
        {
            return Err(format!("{worker:?} was released with {chunk}"));
        }
        self.tell_scheduler(scheduler::Event::WorkerLost(worker));
        Ok(())
    }
}
