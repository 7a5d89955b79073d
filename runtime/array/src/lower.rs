//! From expressions to task groups. Costs grow with operations, never with chunks.
//!
//! Operations element by element become steps of one program as long as their results have one
//! user; a reduction takes the steps before it along and ends in a tree over its chunks, whose
//! shape depends on the chunks alone.

mod order;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use ebbtide_core::{AxisRelation, Cost, Group, GroupId, Input, Relation, Space};

use crate::expression::without;
use crate::lower::steps::Steps;
use crate::program::{Map, Program, Slice, elements};
use crate::{Array, ArrayError, Call, DType, Op, ReduceOp};

/// Chunks that one task of a reduction's tree combines, over all its axes.
const TREE_ARITY: u32 = 16;

/// Bytes that such a task reads, unless two chunks are more already: trees of large chunks are
/// narrow, so that a worker needs memory for a few of them only.
const TREE_BYTES: u64 = 128 << 20;

/// Largest chunk that travels, in bytes.
pub const CHUNK_BYTES_MAX: u64 = 4 << 30;

/// Axes that reductions of one map may end and take another one along: a map that ends more is made by itself.
/// An operation on two of them that ends 64 more still names its axes in a `u8`.
const ENDED_MAX: usize = 16;

/// What a Python object is taken to need until it is there, in bytes.
const OBJECT_BYTES: u64 = 1 << 20;

/// What a Python function is taken to need until one was measured: a second.
const CALL_NANOSECONDS: u64 = 1_000_000_000;

/// What a job is made of.
#[derive(Debug)]
pub struct Lowered {
    /// The groups, each after its inputs.
    pub groups: Vec<Group>,
    /// The group of each target, in order.
    pub targets: Vec<GroupId>,
}

/// Lowers arrays that are wanted together. Groups are numbered from `first` on.
///
/// `held` finds the group of what an earlier job keeps, if it keeps it and it is like this array.
pub fn lower(
    targets: &[Array],
    first: GroupId,
    held: &dyn Fn(u64, u64, u32, &Array) -> Option<GroupId>,
) -> Result<Lowered, ArrayError> {
    let mut lowering = Lowering {
        users: users(targets),
        made: BTreeMap::new(),
        ended: BTreeMap::new(),
        groups: Vec::new(),
        next: first,
        held,
    };
    for array in in_order(targets) {
        if let Op::Take { .. } | Op::Slice { .. } | Op::Quantile { .. } = &array.node().op {
            lowering.ensure(&array.node().inputs[0])?;
        }
        let is_target = targets.iter().any(|it| it.address() == array.address());
        let ended = lowering.ended(&array);
        if is_target || ended > ENDED_MAX || !lowering.is_inlined(&array) {
            lowering.ensure(&array)?;
        } else {
            lowering.ended.insert(array.address(), ended);
        }
    }
    let targets = targets.iter().map(|target| lowering.own(target)).collect::<Result<_, _>>()?;
    Ok(Lowered { groups: lowering.groups, targets })
}

struct Lowering<'a> {
    held: &'a dyn Fn(u64, u64, u32, &Array) -> Option<GroupId>,
    users: BTreeMap<usize, u32>,
    made: BTreeMap<usize, GroupId>,
    /// Of what is made where it is used, how many axes reductions end in it.
    ended: BTreeMap<usize, usize>,
    groups: Vec<Group>,
    next: GroupId,
}

/// A group that has no number yet.
struct Draft<'a> {
    name: &'a str,
    space: Space,
    inputs: Vec<Input>,
    cost: Cost,
    /// The Python function, if it is one.
    call: Option<&'a Call>,
    program: &'a Program,
}

impl Lowering<'_> {
    /// Whether an array is made where it is used: it is cheap, or it has but one user.
    fn is_inlined(&self, array: &Array) -> bool {
        let has_one_user = || self.users.get(&array.address()).is_none_or(|users| *users <= 1);
        match &array.node().op {
            Op::Constant { .. } => array.node().grid.largest_chunk() == 1,
            Op::Random { .. }
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Cast(_)
            | Op::Expand { .. }
            | Op::Take { .. } => has_one_user(),
            Op::Reduce { axes, .. } => has_one_user() && is_local(axes, array),
            Op::Call(_)
            | Op::Held { .. }
            | Op::Slice { .. }
            | Op::Quantile { .. }
            | Op::TopK { .. } => false,
        }
    }

    /// How many axes reductions end in the map that makes an array.
    fn ended(&self, array: &Array) -> usize {
        let node = array.node();
        let of_inputs = node.inputs.iter().filter_map(|it| self.ended.get(&it.address()));
        let own = if let Op::Reduce { axes, .. } = &node.op { axes.len() } else { 0 };
        of_inputs.sum::<usize>() + own
    }

    /// Makes an array a group of its own, if it is none yet.
    fn ensure(&mut self, array: &Array) -> Result<GroupId, ArrayError> {
        if let Some(made) = self.made.get(&array.address()) {
            return Ok(*made);
        }
        let node = array.node();
        let group = match &node.op {
            Op::Reduce { op, axes } if !is_local(axes, array) => {
                self.reduce(*op, axes, &node.inputs[0])?
            }
            Op::Call(call) => self.call(call, array)?,
            Op::Held { session, job, target, .. } => {
                let found = (self.held)(*session, *job, *target, array);
                found.ok_or(ArrayError::NotHeld)?
            }
            Op::Slice { along, .. } => self.slice(along, array)?,
            Op::Quantile { q } => self.quantile(*q, &node.inputs[0])?,
            Op::TopK { k } => self.topk(*k, &node.inputs[0])?,
            Op::Constant { .. }
            | Op::Random { .. }
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Cast(_)
            | Op::Expand { .. }
            | Op::Take { .. }
            | Op::Reduce { .. } => {
                let (map, inputs) = self.map(array);
                let cost = map_cost(&map, node.grid.largest_chunk());
                let (name, program, space) =
                    (node.op.name(), &Program::Map(map), node.grid.space()?);
                self.push(Draft { name, space, inputs, cost, call: None, program })?
            }
        };
        self.made.insert(array.address(), group);
        Ok(group)
    }

    /// A group of this job: what another one keeps is copied.
    fn own(&mut self, array: &Array) -> Result<GroupId, ArrayError> {
        let group = self.ensure(array)?;
        if !matches!(array.node().op, Op::Held { .. }) {
            return Ok(group);
        }
        let (map, inputs) = self.map(array);
        let cost = map_cost(&map, array.node().grid.largest_chunk());
        let (space, program) = (array.node().grid.space()?, &Program::Map(map));
        self.push(Draft { name: "copy", space, inputs, cost, call: None, program })
    }

    /// The map that makes an array, with everything inlined that can be.
    fn map(&self, array: &Array) -> (Map, Vec<Input>) {
        Steps::of(array, &self.made)
    }

    fn reduce(&mut self, op: ReduceOp, axes: &[u8], from: &Array) -> Result<GroupId, ArrayError> {
        let (map, inputs) = self.map(from);
        let (grid, dtype) = (from.node().grid.clone(), map.dtype());
        let kept = without(&grid, axes).largest_chunk();
        let item = dtype.item_bytes();
        let mut cost = map_cost(&map, kept);
        let elements = grid.largest_chunk().saturating_mul(item);
        cost.scratch_bytes = cost.scratch_bytes.saturating_add(elements);
        let mut space = grid.space()?;
        let program = Program::Reduce { map, op, axes: axes.to_vec() };
        let (name, call) = (op.name(), None);
        let draft = Draft { name, space: space.clone(), inputs, cost, call, program: &program };
        let mut group = self.push(draft)?;

        let chunk_bytes = kept.saturating_mul(item);
        let arity = axis_arity(axes.len(), chunk_bytes);
        let combine = Program::Combine { op, dtype };
        let cost = Cost {
            output_bytes: chunk_bytes,
            scratch_bytes: 0,
            nanoseconds: kept.saturating_mul(u64::from(TREE_ARITY)) / 2 + 100,
        };
        let is_reduced = |axis: usize| axes.iter().any(|it| usize::from(*it) == axis);
        while axes.iter().any(|axis| space.extents()[usize::from(*axis)] > arity) {
            let level = |(axis, extent): (usize, &u32)| {
                if is_reduced(axis) { extent.div_ceil(arity) } else { *extent }
            };
            let up = Space::new(space.extents().iter().enumerate().map(level).collect())?;
            let relation = (0..space.extents().len()).map(|axis| {
                if is_reduced(axis) {
                    AxisRelation::Level { axis: to_u8(axis), arity }
                } else {
                    AxisRelation::Same { axis: to_u8(axis) }
                }
            });
            let inputs = vec![Input { group, relation: Relation(relation.collect()) }];
            let program = &combine;
            group = self.push(Draft { name, space: up.clone(), inputs, cost, call, program })?;
            space = up;
        }
        let mut kept_axes = 0;
        let relation = (0..space.extents().len()).map(|axis| {
            if is_reduced(axis) {
                return AxisRelation::All;
            }
            kept_axes += 1;
            AxisRelation::Same { axis: kept_axes - 1 }
        });
        let inputs = vec![Input { group, relation: Relation(relation.collect()) }];
        let (space, program) = (without(&grid, axes).space()?, &combine);
        self.push(Draft { name, space, inputs, cost, call, program })
    }

    fn call(&mut self, call: &Call, array: &Array) -> Result<GroupId, ArrayError> {
        let mut inputs = Vec::new();
        let mut input_bytes: u64 = 0;
        for input in &array.node().inputs {
            let relation = Relation(vec![AxisRelation::All; input.node().grid.axes()]);
            inputs.push(Input { group: self.ensure(input)?, relation });
            input_bytes = input_bytes.saturating_add(input.bytes());
        }
        let output_bytes = if call.dtype == DType::Object { OBJECT_BYTES } else { array.bytes() };
        let cost = Cost {
            output_bytes,
            // Inputs and output stand in memory that is shared with the process, too.
            scratch_bytes: call
                .memory_bytes
                .saturating_add(input_bytes)
                .saturating_add(output_bytes),
            nanoseconds: CALL_NANOSECONDS,
        };
        let grids = array.node().inputs.iter().map(|it| (it.dtype(), it.node().grid.clone()));
        let program = &Program::Call { call: call.clone(), inputs: grids.collect() };
        let (name, call, space) = (&call.name, Some(call), array.node().grid.space()?);
        self.push(Draft { name, space, inputs, cost, call, program })
    }

    fn slice(&mut self, along: &[(u64, u64)], array: &Array) -> Result<GroupId, ArrayError> {
        let from = &array.node().inputs[0];
        let (source, target) = (from.node().grid.clone(), array.node().grid.clone());
        let slice = Slice { dtype: array.dtype(), source, target, along: along.to_vec() };
        let inputs = vec![Input { group: self.ensure(from)?, relation: slice.relation() }];
        let elements = array.node().grid.largest_chunk();
        let cost = Cost {
            output_bytes: elements.saturating_mul(array.dtype().item_bytes()),
            scratch_bytes: 0,
            nanoseconds: elements + 100,
        };
        let (space, program) = (array.node().grid.space()?, &Program::Slice(slice));
        self.push(Draft { name: "slice", space, inputs, cost, call: None, program })
    }

    fn push(&mut self, draft: Draft<'_>) -> Result<GroupId, ArrayError> {
        let Draft { name, space, inputs, cost, call, program } = draft;
        if cost.output_bytes > CHUNK_BYTES_MAX {
            return Err(ArrayError::ChunkTooLarge {
                op: name.to_owned(),
                bytes: cost.output_bytes,
            });
        }
        let (id, name, program) = (self.next, name.to_owned(), program.encode().into());
        self.next = GroupId(id.0 + 1);
        let retries = call.map_or(0, |call| call.retries);
        let resources = call.map(|call| call.resources.clone()).unwrap_or_default();
        let kind = call.map(|call| kind_of(&call.function));
        self.groups.push(Group {
            id,
            name,
            space,
            inputs,
            cost,
            resources,
            retries,
            kind,
            program,
        });
        Ok(id)
    }
}

/// Whether a reduction ends within each chunk, and not on its first axis: a map can do it then,
/// portion by portion.
fn is_local(axes: &[u8], array: &Array) -> bool {
    let grid = &array.node().inputs[0].node().grid;
    axes.iter().all(|axis| *axis > 0 && grid.ends(usize::from(*axis)).len() == 1)
}

/// Tells calls of one function from those of others, well enough to expect how long they take.
fn kind_of(function: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    function.hash(&mut hasher);
    hasher.finish()
}

fn map_cost(map: &Map, output_elements: u64) -> Cost {
    let extents = map.grid.largest_extents();
    let registers = map.register_axes().expect("a lowered map is whole");
    let picoseconds =
        map.steps.iter().zip(&registers).map(|(step, has_axis)| {
            elements(&extents, has_axis).saturating_mul(step.picoseconds())
        });
    Cost {
        output_bytes: output_elements.saturating_mul(map.dtype().item_bytes()),
        scratch_bytes: map.register_bytes(&extents, &registers),
        nanoseconds: picoseconds.fold(0, u64::saturating_add) / 1000 + 100,
    }
}

/// The arity along each of so many axes that gives at most [`TREE_ARITY`] chunks and
/// [`TREE_BYTES`] over all of them.
fn axis_arity(axes: usize, chunk_bytes: u64) -> u32 {
    let axes = u32::try_from(axes.max(1)).unwrap_or(u32::MAX);
    let most = (TREE_BYTES / chunk_bytes.max(1)).clamp(2, u64::from(TREE_ARITY));
    (2..=TREE_ARITY)
        .rev()
        .find(|arity| u64::from(*arity).checked_pow(axes).is_some_and(|all| all <= most))
        .unwrap_or(2)
}

/// How many operations use each array, a target's client included.
fn users(targets: &[Array]) -> BTreeMap<usize, u32> {
    let mut users: BTreeMap<usize, u32> = BTreeMap::new();
    for array in in_order(targets) {
        for (nth, input) in array.node().inputs.iter().enumerate() {
            // What several chunks need is made once and read often.
            let uses = if is_repeated(&array, nth) { 2 } else { 1 };
            *users.entry(input.address()).or_default() += uses;
        }
    }
    for target in targets {
        *users.entry(target.address()).or_default() += 2;
    }
    users
}

/// Whether several chunks of an array need the same elements of its `nth` input.
fn is_repeated(array: &Array, nth: usize) -> bool {
    let node = array.node();
    let (own, grid) = (&node.inputs[nth].node().grid, &node.grid);
    // Of the array's axes, the one at which an axis of the input stands.
    let first = match &node.op {
        Op::Binary(_) | Op::Compare(_) => grid.axes() - own.axes(),
        Op::Take { axis } if nth == 1 => usize::from(*axis),
        Op::Take { .. } => return true,
        Op::Constant { .. }
        | Op::Random { .. }
        | Op::Cast(_)
        | Op::Expand { .. }
        | Op::Call(_)
        | Op::Held { .. }
        | Op::Slice { .. }
        | Op::Quantile { .. }
        | Op::TopK { .. }
        | Op::Reduce { .. } => return false,
    };
    let lies_alike = |axis: usize| {
        let at = axis.checked_sub(first).filter(|at| *at < own.axes());
        at.is_some_and(|at| own.ends(at) == grid.ends(axis))
    };
    (0..grid.axes()).any(|axis| grid.ends(axis).len() > 1 && !lies_alike(axis))
}

/// Every array once, each after its inputs.
fn in_order(targets: &[Array]) -> Vec<Array> {
    let mut seen = BTreeSet::new();
    let mut order = Vec::new();
    let mut path: Vec<(Array, bool)> =
        targets.iter().rev().map(|target| (target.clone(), false)).collect();
    while let Some((array, is_visited)) = path.pop() {
        if is_visited {
            order.push(array);
        } else if seen.insert(array.address()) {
            path.push((array.clone(), true));
            path.extend(array.node().inputs.iter().rev().map(|input| (input.clone(), false)));
        }
    }
    order
}

fn to_u8(axis: usize) -> u8 {
    u8::try_from(axis).expect("an array has at most 255 axes")
}

#[cfg(test)]
mod tests;
