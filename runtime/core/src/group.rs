//! Groups of tasks and the relations between their index spaces. Pure arithmetic.

use std::collections::BTreeMap;
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
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
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
    /// Those that hold an element of the consumer, where both are cut differently.
    Overlap(Overlap),
}

/// Two ways to cut an axis, and where the elements of one lie in the other: element `i` of the
/// consumer is element `start + i * step` of the producer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Overlap {
    /// Axis of the consumer.
    pub axis: u8,
    /// Ends of the producer's chunks, ascending.
    pub producer_ends: Arc<[u64]>,
    /// Ends of the consumer's chunks, ascending.
    pub consumer_ends: Arc<[u64]>,
    /// Where the consumer's first element lies.
    pub start: u64,
    /// Distance of the consumer's elements, at least 1.
    pub step: u64,
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

/// Amounts of kinds of resources beside cores and memory, like `nvidia.com/gpu`.
pub type Resources = BTreeMap<String, u64>;

/// An operation times an index space.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Group {
    /// Tells it from others.
    pub id: GroupId,
    /// What it does, for people.
    pub name: String,
    /// Its tasks.
    pub space: Space,
    /// What they need, in the order in which the program takes it.
    pub inputs: Vec<Input>,
    /// What each takes.
    pub cost: Cost,
    /// What each takes of its worker for as long as it runs, beside cores and memory.
    pub resources: Resources,
    /// How often a task whose program fails is tried again.
    pub retries: u32,
    /// Tells groups whose tasks take about as long as each other's: they are measured together.
    pub kind: Option<u64>,
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
        let fits = self.0.iter().zip(&producer.0).all(|(axis, extent)| match axis {
            AxisRelation::All => true,
            AxisRelation::At { index } => index < extent,
            AxisRelation::Same { axis } => consumer.0.get(usize::from(*axis)) == Some(extent),
            AxisRelation::Level { axis, arity } => {
                *arity > 0 && consumer.0.get(usize::from(*axis)) == Some(&extent.div_ceil(*arity))
            }
            AxisRelation::Overlap(overlap) => {
                overlap.fits(*extent, consumer.0.get(usize::from(overlap.axis)).copied())
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
            .map(|(axis, extent)| match axis {
                AxisRelation::Same { axis } => one(place[usize::from(*axis)]),
                AxisRelation::At { index } => one(*index),
                AxisRelation::All => 0..*extent,
                AxisRelation::Level { axis, arity } => {
                    let start = place[usize::from(*axis)] * arity;
                    start..extent.min(&start.saturating_add(*arity)).to_owned()
                }
                AxisRelation::Overlap(overlap) => {
                    overlap.producers(place[usize::from(overlap.axis)])
                }
            })
            .collect();
        producer.walk(&ranges).collect()
    }

    /// How many producers a consumer needs at most.
    pub fn producers_max(&self, producer: &Space) -> u64 {
        let along = |(axis, extent): (&AxisRelation, &u32)| match axis {
            AxisRelation::Same { .. } | AxisRelation::At { .. } => 1,
            AxisRelation::All => u64::from(*extent),
            AxisRelation::Level { arity, .. } => u64::from(*extent.min(arity)),
            AxisRelation::Overlap(overlap) => overlap.producers_max(),
        };
        self.0.iter().zip(&producer.0).map(along).product()
    }

    /// The consumers' indices that need the producer at `index`, in row-major order.
    pub fn consumers(&self, producer: &Space, consumer: &Space, index: u32) -> Vec<u32> {
        let place = producer.unravel(index);
        let mut ranges: Vec<Range<u32>> = consumer.0.iter().map(|extent| 0..*extent).collect();
        for (relation, at) in self.0.iter().zip(place) {
            match relation {
                AxisRelation::All => (),
                AxisRelation::At { index } if *index == at => (),
                AxisRelation::At { .. } => return Vec::new(),
                AxisRelation::Same { axis } => meet(&mut ranges[usize::from(*axis)], &one(at)),
                AxisRelation::Level { axis, arity } => {
                    meet(&mut ranges[usize::from(*axis)], &one(at / arity));
                }
                AxisRelation::Overlap(overlap) => {
                    meet(&mut ranges[usize::from(overlap.axis)], &overlap.consumers(at));
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
    /// Bytes that one task needs at once: its inputs, its output and its scratch.
    ///
    /// `others` has every group that it takes as an input; others in it do not matter.
    pub fn needed_bytes(&self, others: &[Self]) -> u64 {
        let inputs = self.inputs.iter().map(|input| {
            let Some(producer) = others.iter().find(|it| it.id == input.group) else { return 0 };
            let chunks = input.relation.producers_max(&producer.space);
            chunks.saturating_mul(producer.cost.output_bytes)
        });
        let inputs = inputs.fold(0, u64::saturating_add);
        inputs.saturating_add(self.cost.output_bytes).saturating_add(self.cost.scratch_bytes)
    }

    /// One of its tasks.
    pub fn task(&self, index: u32) -> TaskId {
        TaskId { group: self.id, index }
    }
}

fn one(at: u32) -> Range<u32> {
    at..at + 1
}

fn meet(range: &mut Range<u32>, other: &Range<u32>) {
    *range = range.start.max(other.start)..range.end.min(other.end);
}

impl Overlap {
    fn fits(&self, producers: u32, consumers: Option<u32>) -> bool {
        let ascending = |ends: &[u64]| ends.windows(2).all(|pair| pair[0] < pair[1]);
        let last = |ends: &[u64]| ends.last().copied().unwrap_or_default();
        let counts = |ends: &[u64], count: u32| ends.len() as u64 == u64::from(count);
        let reach = match last(&self.consumer_ends).checked_sub(1) {
            None => Some(0),
            Some(nth) => nth
                .checked_mul(self.step)
                .and_then(|it| it.checked_add(self.start))
                .and_then(|it| it.checked_add(1)),
        };
        self.step > 0
            && counts(&self.producer_ends, producers)
            && consumers.is_some_and(|count| counts(&self.consumer_ends, count))
            && ascending(&self.producer_ends)
            && ascending(&self.consumer_ends)
            && reach.is_some_and(|reach| reach <= last(&self.producer_ends))
    }

    /// The producer that holds the producer's element `at`.
    fn producer_of(&self, at: u64) -> u32 {
        to_u32(self.producer_ends.partition_point(|end| *end <= at))
    }

    /// The producers of the first and the last element of a consumer; none if it is empty.
    fn span(&self, consumer: usize) -> Option<(u32, u32)> {
        let start = if consumer == 0 { 0 } else { self.consumer_ends[consumer - 1] };
        let last = self.consumer_ends[consumer].checked_sub(1).filter(|last| *last >= start)?;
        let of = |nth: u64| self.producer_of(self.start + nth * self.step);
        Some((of(start), of(last)))
    }

    fn producers(&self, consumer: u32) -> Range<u32> {
        self.span(consumer as usize).map_or(0..0, |(first, last)| first..last + 1)
    }

    fn producers_max(&self) -> u64 {
        let spans = (0..self.consumer_ends.len()).filter_map(|consumer| self.span(consumer));
        spans.map(|(first, last)| u64::from(last - first) + 1).max().unwrap_or_default()
    }

    /// The consumers that need this producer: spans only move forward, so they lie side by side.
    fn consumers(&self, producer: u32) -> Range<u32> {
        let first = |is_before: &dyn Fn((u32, u32)) -> bool| {
            let (mut from, mut to) = (0, self.consumer_ends.len());
            while from < to {
                let middle = usize::midpoint(from, to);
                if self.span(middle).is_none_or(is_before) {
                    from = middle + 1;
                } else {
                    to = middle;
                }
            }
            from
        };
        let start = first(&|(_, last)| last < producer);
        let end = first(&|(first, _)| first <= producer);
        to_u32(start)..to_u32(end.max(start))
    }
}

fn to_u32(length: usize) -> u32 {
    u32::try_from(length).expect("the range of an axis is a range of u32")
}

#[cfg(test)]
mod tests;
