//! Groups of tasks and the relations between their index spaces. Pure arithmetic.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{GroupId, TaskId};

/// Extents of an index space, slowest axis first. A space without axes has one index.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Space(Vec<u32>);

/// What the tasks of one group need of the tasks of another.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Relation(
    /// One entry for each axis of the producer's space.
    pub Vec<AxisRelation>,
);

/// Which producers along one of their axes a consumer needs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum AxisRelation {
    /// The one at the consumer's place on this axis of the consumer.
    Same {
        /// Axis of the consumer.
        axis: u8,
    },
    /// Always this one.
    At {
        /// Place on the producer's axis.
        index: u32,
    },
    /// Every one.
    All,
    /// A level up a tree: `arity` neighbours, fewer at the end.
    Level {
        /// Axis of the consumer.
        axis: u8,
        /// Producers of one consumer, at least 1.
        arity: u32,
    },
}

/// An input of a group.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Input {
    /// The group that makes it.
    pub group: GroupId,
    /// Which of its chunks each task needs.
    pub relation: Relation,
}

/// What one task takes, as an upper bound over the group.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Cost {
    /// Bytes of its output.
    pub output_bytes: u64,
    /// Bytes that it needs beside inputs and output while it runs.
    pub scratch_bytes: u64,
    /// Expected time on one core, in nanoseconds, until it has been measured.
    pub nanoseconds: u64,
}

/// An operation times an index space.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Group {
    /// Its name.
    pub id: GroupId,
    /// Its tasks.
    pub space: Space,
    /// What they need, in the order in which the program takes it.
    pub inputs: Vec<Input>,
    /// What each takes.
    pub cost: Cost,
    /// What each does: a text for the worker's kernels that nobody here reads.
    pub program: Arc<[u8]>,
}

/// A group that cannot be scheduled.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum GroupError {
    /// More tasks than a group may have.
    #[error("{0:?} has more than {max} tasks; use larger chunks", max = u32::MAX)]
    TooManyTasks(Vec<u32>),
    /// An axis without tasks.
    #[error("an index space needs at least one task on each axis, not {0:?}")]
    Empty(Vec<u32>),
    /// An input that is not a group of the same job.
    #[error("group {0:?} is not among the groups before its consumer")]
    UnknownInput(GroupId),
    /// A relation that does not fit the spaces that it relates.
    #[error("a relation of {relation} axes does not fit a space of {space} axes")]
    Relation {
        /// Axes that the relation speaks of.
        relation: usize,
        /// Axes that there are.
        space: usize,
    },
}

impl Space {
    /// A space with these extents, each at least 1, at most 2³² − 1 tasks in all.
    pub fn new(extents: Vec<u32>) -> Result<Self, GroupError> {
        if extents.contains(&0) {
            return Err(GroupError::Empty(extents));
        }
        let tasks = extents.iter().try_fold(1_u32, |tasks, extent| tasks.checked_mul(*extent));
        if tasks.is_none() { Err(GroupError::TooManyTasks(extents)) } else { Ok(Self(extents)) }
    }

    /// Number of tasks.
    pub fn tasks(&self) -> u32 {
        self.0.iter().product()
    }

    /// Extent of each axis.
    pub fn extents(&self) -> &[u32] {
        &self.0
    }

    /// The place on each axis of the task that is `index`th in row-major order.
    pub fn unravel(&self, mut index: u32) -> Vec<u32> {
        let mut place = vec![0; self.0.len()];
        for (axis, extent) in self.0.iter().enumerate().rev() {
            place[axis] = index % extent;
            index /= extent;
        }
        place
    }

    /// All indices in the box spanned by `ranges`, in row-major order.
    fn walk<'a>(&'a self, ranges: &'a [Range<u32>]) -> impl Iterator<Item = u32> + 'a {
        let count: u32 = ranges.iter().map(ExactSizeIterator::len).map(to_u32).product();
        (0..count).map(move |mut nth| {
            let (mut index, mut stride) = (0, 1);
            for (range, extent) in ranges.iter().zip(&self.0).rev() {
                let length = to_u32(range.len());
                index += (range.start + nth % length) * stride;
                nth /= length;
                stride *= extent;
            }
            index
        })
    }
}

impl Relation {
    /// Whether the relation fits its producer's and consumer's spaces.
    pub fn check(&self, producer: &Space, consumer: &Space) -> Result<(), GroupError> {
        let (relation, space) = (self.0.len(), producer.0.len());
        if relation != space {
            return Err(GroupError::Relation { relation, space });
        }
        let fits = self.0.iter().zip(&producer.0).all(|(axis, extent)| match *axis {
            AxisRelation::All => true,
            AxisRelation::At { index } => index < *extent,
            AxisRelation::Same { axis } => consumer.0.get(usize::from(axis)) == Some(extent),
            AxisRelation::Level { axis, arity } => {
                arity > 0 && consumer.0.get(usize::from(axis)) == Some(&extent.div_ceil(arity))
            }
        });
        if fits { Ok(()) } else { Err(GroupError::Relation { relation, space: consumer.0.len() }) }
    }

    /// The producers' indices that the consumer at `index` needs, in row-major order.
    pub fn producers(&self, producer: &Space, consumer: &Space, index: u32) -> Vec<u32> {
        let place = consumer.unravel(index);
        let ranges: Vec<Range<u32>> = self
            .0
            .iter()
            .zip(&producer.0)
            .map(|(axis, extent)| match *axis {
                AxisRelation::Same { axis } => one(place[usize::from(axis)]),
                AxisRelation::At { index } => one(index),
                AxisRelation::All => 0..*extent,
                AxisRelation::Level { axis, arity } => {
                    let start = place[usize::from(axis)] * arity;
                    start..extent.min(&start.saturating_add(arity)).to_owned()
                }
            })
            .collect();
        producer.walk(&ranges).collect()
    }

    /// The consumers' indices that need the producer at `index`, in row-major order.
    pub fn consumers(&self, producer: &Space, consumer: &Space, index: u32) -> Vec<u32> {
        let place = producer.unravel(index);
        let mut ranges: Vec<Range<u32>> = consumer.0.iter().map(|extent| 0..*extent).collect();
        for (relation, at) in self.0.iter().zip(place) {
            match *relation {
                AxisRelation::All => (),
                AxisRelation::At { index } if index == at => (),
                AxisRelation::At { .. } => return Vec::new(),
                AxisRelation::Same { axis } => meet(&mut ranges[usize::from(axis)], at),
                AxisRelation::Level { axis, arity } => {
                    meet(&mut ranges[usize::from(axis)], at / arity);
                }
            }
        }
        if ranges.iter().any(Range::is_empty) {
            return Vec::new();
        }
        consumer.walk(&ranges).collect()
    }
}

impl Group {
    /// One of its tasks.
    pub fn task(&self, index: u32) -> TaskId {
        TaskId { group: self.id, index }
    }
}

fn one(at: u32) -> Range<u32> {
    at..at + 1
}

fn meet(range: &mut Range<u32>, at: u32) {
    *range = if range.contains(&at) { one(at) } else { 0..0 };
}

fn to_u32(length: usize) -> u32 {
    u32::try_from(length).expect("the range of an axis is a range of u32")
}

#[cfg(test)]
mod tests;
