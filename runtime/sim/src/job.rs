//! Jobs of random shape, and what each of their chunks should be.

use std::collections::BTreeMap;
use std::sync::Arc;

use ebbtide_core::{AxisRelation, Cost, Group, GroupId, Input, Relation, Resources, Space, TaskId};

use crate::random::Random;

/// What some tasks take and some workers have, two each.
pub(crate) const GPU: &str = "gpu";

/// A job whose chunks are numbers that tell how they were made.
#[derive(Debug)]
pub struct SimJob {
    /// Its groups, each after its inputs.
    pub groups: Vec<Group>,
    /// What the client wants.
    pub targets: Vec<GroupId>,
    /// Groups of an earlier job, and which of them it keeps, if there was one.
    pub kept: Option<(Vec<Group>, Vec<GroupId>)>,
}

impl SimJob {
    pub(crate) fn random(random: &mut Random) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        let count = 2 + random.roll(5);
        for id in 0..count {
            let group = Self::group(random, GroupId(u64::from(id)), &groups);
            groups.push(group);
        }
        let last = GroupId(u64::from(count - 1));
        let mut targets = vec![last];
        if random.once_in(3) {
            targets.push(GroupId(u64::from(random.roll(count - 1))));
        }
        let mut job = Self { groups, targets, kept: None };
        if random.once_in(2) {
            job.split(1 + random.roll(count - 1));
        }
        job
    }

    /// Makes the first `count` groups a job of their own, which keeps all of them.
    fn split(&mut self, count: u32) {
        let own = self.groups.split_off(count as usize);
        let kept = std::mem::replace(&mut self.groups, own);
        let names: Vec<GroupId> = kept.iter().map(|group| group.id).collect();
        // What is kept is not sent to the client.
        self.targets.retain(|target| !names.contains(target));
        self.kept = Some((kept, names));
    }

    fn all(&self) -> Vec<Group> {
        let kept = self.kept.iter().flat_map(|(groups, _)| groups);
        kept.chain(&self.groups).cloned().collect()
    }

    fn group(random: &mut Random, id: GroupId, before: &[Group]) -> Group {
        let mut extents: Vec<u32> = (0..random.roll(3)).map(|_| 1 + random.roll(6)).collect();
        let mut inputs = Vec::new();
        let wanted = if before.is_empty() { 0 } else { random.roll(3) };
        for _ in 0..wanted {
            let at = random.roll(u32::try_from(before.len()).expect("a handful of groups"));
            let producer = &before[at as usize];
            let relation = Self::relation(random, &producer.space, &mut extents);
            inputs.push(Input { group: producer.id, relation });
        }
        let space = Space::new(extents).expect("a few small axes");
        // An axis that a later input added may have changed what an earlier one refers to.
        inputs.retain(|input| {
            let producer = before.iter().find(|it| it.id == input.group).expect("it is before");
            input.relation.check(&producer.space, &space).is_ok()
        });
        let cost = Cost { output_bytes: 10, scratch_bytes: 5, nanoseconds: 1_000_000 };
        let (name, program) = (format!("group {}", id.0), Arc::from([]));
        let resources = if random.once_in(4) {
            Resources::from([(GPU.to_owned(), u64::from(1 + random.roll(2)))])
        } else {
            Resources::new()
        };
        let kind = random.once_in(3).then_some(1);
        let retries = random.roll(3);
        Group { id, name, space, inputs, cost, resources, retries, kind, program }
    }

    fn relation(random: &mut Random, producer: &Space, extents: &mut Vec<u32>) -> Relation {
        let axes = producer.extents().iter().map(|extent| {
            let arity = 1 + random.roll(3);
            let up = extent.div_ceil(arity);
            let find = |wanted: u32, extents: &[u32]| extents.iter().position(|it| *it == wanted);
            match random.roll(4) {
                0 => AxisRelation::All,
                1 => AxisRelation::At { index: random.roll(*extent) },
                2 => {
                    let axis = find(*extent, extents).unwrap_or_else(|| {
                        extents.push(*extent);
                        extents.len() - 1
                    });
                    AxisRelation::Same { axis: u8::try_from(axis).expect("a few axes") }
                }
                _ => {
                    let axis = find(up, extents).unwrap_or_else(|| {
                        extents.push(up);
                        extents.len() - 1
                    });
                    AxisRelation::Level { axis: u8::try_from(axis).expect("a few axes"), arity }
                }
            }
        });
        Relation(axes.collect())
    }

    /// What each chunk should be.
    pub(crate) fn answers(&self) -> BTreeMap<TaskId, u64> {
        let mut answers = BTreeMap::new();
        let all = self.all();
        for group in &all {
            for index in 0..group.space.tasks() {
                let mut inputs = Vec::new();
                for input in &group.inputs {
                    let producer = all.iter().find(|it| it.id == input.group);
                    let producer = producer.expect("a checked job");
                    let needed = input.relation.producers(&producer.space, &group.space, index);
                    inputs.extend(needed.into_iter().map(|it| answers[&producer.task(it)]));
                }
                let task = group.task(index);
                answers.insert(task, make(task, &inputs));
            }
        }
        answers
    }

    /// How often tasks of each group are tried again.
    pub(crate) fn retries(&self) -> BTreeMap<GroupId, u32> {
        self.all().iter().map(|group| (group.id, group.retries)).collect()
    }

    /// What one task of each group takes of its worker.
    pub(crate) fn resources(&self) -> BTreeMap<GroupId, u64> {
        let gpus = |group: &Group| group.resources.get(GPU).copied().unwrap_or_default();
        self.all().iter().map(|group| (group.id, gpus(group))).collect()
    }

    /// Bytes that its largest task needs at once.
    pub(crate) fn needed_bytes(&self) -> u64 {
        let all = self.all();
        all.iter().map(|group| group.needed_bytes(&all)).max().unwrap_or_default()
    }

    /// Every chunk that the client wants.
    pub(crate) fn wanted(&self) -> Vec<TaskId> {
        let is_wanted = |group: &&Group| self.targets.contains(&group.id);
        self.groups
            .iter()
            .filter(is_wanted)
            .flat_map(|group| (0..group.space.tasks()).map(|index| group.task(index)))
            .collect()
    }
}

/// The chunk that a task makes of its inputs: order and identity matter.
pub(crate) fn make(task: TaskId, inputs: &[u64]) -> u64 {
    let seed = task.group.0.wrapping_mul(31).wrapping_add(u64::from(task.index)) + 1;
    inputs.iter().fold(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15), |hash, input| {
        (hash.rotate_left(7) ^ input).wrapping_mul(0xBF58_476D_1CE4_E5B9)
    })
}
