//! From expressions to task groups. Costs grow with operations, never with chunks.
//!
//! Operations element by element become steps of one program as long as their results have one
//! user; a reduction takes the steps before it along and ends in a tree over its chunks, whose
//! shape depends on the chunks alone.

use std::collections::{BTreeMap, BTreeSet};

use ebbtide_core::{AxisRelation, Cost, Group, GroupId, Input, Relation, Space};

use crate::expression::without;
use crate::program::{Map, Program, Step};
use crate::{Array, ArrayError, Call, DType, Grid, Op, ReduceOp};

/// Chunks that one task of a reduction's tree combines, over all its axes.
const TREE_ARITY: u32 = 16;

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
pub fn lower(targets: &[Array], first: GroupId) -> Result<Lowered, ArrayError> {
    let mut lowering =
        Lowering { users: users(targets), made: BTreeMap::new(), groups: Vec::new(), next: first };
    for array in in_order(targets) {
        if lowering.is_inlined(&array) && !targets.iter().any(|it| it.address() == array.address())
        {
            continue;
        }
        lowering.make(&array)?;
    }
    let targets = targets.iter().map(|target| lowering.made[&target.address()]).collect();
    Ok(Lowered { groups: lowering.groups, targets })
}

struct Lowering {
    users: BTreeMap<usize, u32>,
    made: BTreeMap<usize, GroupId>,
    groups: Vec<Group>,
    next: GroupId,
}

/// A group that has no number yet.
struct Draft<'a> {
    name: &'a str,
    space: Space,
    inputs: Vec<Input>,
    cost: Cost,
    retries: u32,
    program: &'a Program,
}

/// A map under construction: its steps and the groups that it reads.
struct Steps {
    grid: Grid,
    made: Vec<Step>,
    inputs: Vec<Input>,
    registers: BTreeMap<usize, u32>,
}

impl Lowering {
    /// Whether an array is made where it is used: it is cheap, or it has but one user.
    fn is_inlined(&self, array: &Array) -> bool {
        match &array.node().op {
            Op::Constant { .. } => array.node().grid.largest_chunk() == 1,
            Op::Random { .. } | Op::Binary(_) | Op::Cast(_) => {
                self.users.get(&array.address()).is_none_or(|users| *users <= 1)
            }
            Op::Call(_) | Op::Reduce { .. } => false,
        }
    }

    fn make(&mut self, array: &Array) -> Result<(), ArrayError> {
        let group = match &array.node().op {
            Op::Reduce { op, axes } => self.reduce(*op, axes, &array.node().inputs[0])?,
            Op::Call(call) => self.call(call, array)?,
            Op::Constant { .. } | Op::Random { .. } | Op::Binary(_) | Op::Cast(_) => {
                let (map, inputs) = self.map(array);
                let cost = map_cost(&map, map.grid.largest_chunk(), 0);
                let space = map.grid.space()?;
                let (name, program) = (array.node().op.name(), &Program::Map(map));
                self.push(Draft { name, space, inputs, cost, retries: 0, program })
            }
        };
        self.made.insert(array.address(), group);
        Ok(())
    }

    fn reduce(&mut self, op: ReduceOp, axes: &[u8], from: &Array) -> Result<GroupId, ArrayError> {
        let (map, inputs) = self.map(from);
        let (grid, dtype) = (map.grid.clone(), map.dtype());
        let kept = without(&grid, axes).largest_chunk();
        let item = dtype.item_bytes();
        let elements = grid.largest_chunk();
        let cost = map_cost(&map, kept, elements.saturating_mul(item));
        let mut space = grid.space()?;
        let program = Program::Reduce { map, op, axes: axes.to_vec() };
        let (name, retries) = (op.name(), 0);
        let draft = Draft { name, space: space.clone(), inputs, cost, retries, program: &program };
        let mut group = self.push(draft);

        let arity = axis_arity(axes.len());
        let combine = Program::Combine { op, dtype };
        let cost = Cost {
            output_bytes: kept.saturating_mul(item),
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
            group = self.push(Draft { name, space: up.clone(), inputs, cost, retries, program });
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
        Ok(self.push(Draft { name, space, inputs, cost, retries, program }))
    }

    fn call(&mut self, call: &Call, array: &Array) -> Result<GroupId, ArrayError> {
        let mut inputs = Vec::new();
        let mut input_bytes: u64 = 0;
        for input in &array.node().inputs {
            if !self.made.contains_key(&input.address()) {
                self.make(input)?;
            }
            let relation = Relation(vec![AxisRelation::All; input.node().grid.axes()]);
            inputs.push(Input { group: self.made[&input.address()], relation });
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
        let (name, retries, space) = (&call.name, call.retries, array.node().grid.space()?);
        Ok(self.push(Draft { name, space, inputs, cost, retries, program }))
    }

    /// The map that makes an array, with everything inlined that can be.
    fn map(&self, array: &Array) -> (Map, Vec<Input>) {
        let grid = array.node().grid.clone();
        let mut steps =
            Steps { grid, made: Vec::new(), inputs: Vec::new(), registers: BTreeMap::new() };
        let mut path = vec![(array.clone(), false)];
        while let Some((array, is_visited)) = path.pop() {
            if steps.registers.contains_key(&array.address()) {
                continue;
            }
            // What is made already is read; what lies otherwise is read too, and repeated.
            if let Some(group) = self.made.get(&array.address()) {
                steps.read(&array, *group);
            } else if is_visited {
                steps.compute(&array);
            } else {
                path.push((array.clone(), true));
                path.extend(array.node().inputs.iter().rev().map(|input| (input.clone(), false)));
            }
        }
        (Map { grid: steps.grid, steps: steps.made }, steps.inputs)
    }

    fn push(&mut self, draft: Draft<'_>) -> GroupId {
        let Draft { name, space, inputs, cost, retries, program } = draft;
        let (id, name, program) = (self.next, name.to_owned(), program.encode().into());
        self.next = GroupId(id.0 + 1);
        self.groups.push(Group { id, name, space, inputs, cost, retries, program });
        id
    }
}

impl Steps {
    fn read(&mut self, array: &Array, group: GroupId) {
        let own = &array.node().grid;
        let skipped = self.grid.axes() - own.axes();
        let has_axis: Vec<bool> = (0..self.grid.axes())
            .map(|axis| axis >= skipped && own.ends(axis - skipped) == self.grid.ends(axis))
            .collect();
        let relation = (0..own.axes()).map(|axis| {
            if has_axis[axis + skipped] {
                AxisRelation::Same { axis: to_u8(axis + skipped) }
            } else {
                AxisRelation::At { index: 0 }
            }
        });
        let relation = Relation(relation.collect());
        let input = u32::try_from(self.inputs.len()).expect("inputs are counted in u32");
        self.inputs.push(Input { group, relation });
        self.push(array, Step::Input { input, dtype: array.dtype(), has_axis });
    }

    fn compute(&mut self, array: &Array) {
        let node = array.node();
        let register = |nth: usize| self.registers[&node.inputs[nth].address()];
        let step = match &node.op {
            Op::Constant { dtype, bytes, .. } if node.grid.largest_chunk() == 1 => {
                Step::Scalar { dtype: *dtype, bytes: bytes.clone() }
            }
            Op::Constant { dtype, bytes, .. } => {
                Step::Constant { dtype: *dtype, bytes: bytes.clone() }
            }
            Op::Random { distribution, seed, stream, .. } => {
                Step::Random { distribution: *distribution, seed: *seed, stream: *stream }
            }
            Op::Binary(op) => {
                Step::Binary { op: *op, left: register(0), right: register(1), dtype: node.dtype }
            }
            Op::Cast(to) => {
                Step::Cast { from: register(0), from_dtype: node.inputs[0].dtype(), dtype: *to }
            }
            Op::Call(_) | Op::Reduce { .. } => unreachable!("it is made before it is used"),
        };
        self.push(array, step);
    }

    fn push(&mut self, array: &Array, step: Step) {
        let register = u32::try_from(self.made.len()).expect("steps are counted in u32");
        self.made.push(step);
        self.registers.insert(array.address(), register);
    }
}

fn map_cost(map: &Map, output_elements: u64, scratch_bytes: u64) -> Cost {
    let elements = map.grid.largest_chunk();
    let picoseconds: u64 = map.steps.iter().map(Step::picoseconds).sum();
    Cost {
        output_bytes: output_elements.saturating_mul(map.dtype().item_bytes()),
        scratch_bytes,
        nanoseconds: elements.saturating_mul(picoseconds) / 1000 + 100,
    }
}

/// The arity along each of so many axes that gives at most [`TREE_ARITY`] over all of them.
fn axis_arity(axes: usize) -> u32 {
    let axes = u32::try_from(axes.max(1)).unwrap_or(u32::MAX);
    (2..=TREE_ARITY)
        .rev()
        .find(|arity| arity.checked_pow(axes).is_some_and(|all| all <= TREE_ARITY))
        .unwrap_or(2)
}

/// How many operations use each array, a target's client included.
fn users(targets: &[Array]) -> BTreeMap<usize, u32> {
    let mut users: BTreeMap<usize, u32> = BTreeMap::new();
    for array in in_order(targets) {
        for input in &array.node().inputs {
            // An input that is repeated along an axis is made once and read often.
            let is_repeated = input.node().grid != array.node().grid
                && !matches!(array.node().op, Op::Reduce { .. });
            *users.entry(input.address()).or_default() += if is_repeated { 2 } else { 1 };
        }
    }
    for target in targets {
        *users.entry(target.address()).or_default() += 2;
    }
    users
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
mod tests {
    use ebbtide_core::GroupId;

    use super::{axis_arity, lower};
    use crate::program::{Program, Step};
    use crate::{Array, BinaryOp, Distribution};

    fn normal(shape: &[u64], chunks: &[u64]) -> Array {
        Array::random(Distribution::Normal, (1, 0), shape, Some(chunks)).unwrap()
    }

    #[test]
    fn a_mean_is_one_group_of_leaves_a_tree_and_a_division() {
        let lowered = lower(&[normal(&[1000], &[1]).mean(None).unwrap()], GroupId(7)).unwrap();
        let tasks: Vec<u32> = lowered.groups.iter().map(|it| it.space.tasks()).collect();
        assert_eq!(tasks, [1000, 63, 4, 1, 1]);
        assert_eq!(lowered.targets, [GroupId(11)]);
    }

    #[test]
    fn what_has_one_user_is_made_where_it_is_used() {
        let (a, b) = (normal(&[4], &[2]), normal(&[4], &[2]));
        let sum = Array::binary(BinaryOp::Add, &a, &b).unwrap();
        let lowered = lower(&[sum], GroupId(0)).unwrap();
        assert_eq!(lowered.groups.len(), 1);
    }

    #[test]
    fn what_has_two_users_is_made_once() {
        let array = normal(&[4], &[2]);
        let square = Array::binary(BinaryOp::Multiply, &array, &array).unwrap();
        let lowered = lower(&[square], GroupId(0)).unwrap();
        assert_eq!(lowered.groups.len(), 2);
    }

    #[test]
    fn a_row_is_read_by_every_chunk_that_it_is_repeated_for() {
        let row = normal(&[4], &[2]);
        let sum = Array::binary(BinaryOp::Add, &normal(&[6, 4], &[3, 2]), &row).unwrap();
        let lowered = lower(&[sum], GroupId(0)).unwrap();
        let Ok(Program::Map(map)) = Program::decode(&lowered.groups[1].program) else {
            panic!("the sum is a map")
        };
        let has_axis = map.steps.iter().find_map(|step| match step {
            Step::Input { has_axis, .. } => Some(has_axis.clone()),
            Step::Scalar { .. }
            | Step::Constant { .. }
            | Step::Random { .. }
            | Step::Binary { .. }
            | Step::Cast { .. } => None,
        });
        assert_eq!(has_axis, Some(vec![false, true]));
    }

    #[test]
    fn an_empty_selection_of_axes_is_no_reduction() {
        let same = normal(&[4], &[2]).reduce(crate::ReduceOp::Sum, Some(&[])).unwrap();
        assert_eq!(lower(&[same], GroupId(0)).unwrap().groups[1].space.tasks(), 2);
    }

    #[test]
    fn the_arity_is_shared_among_the_axes() {
        assert_eq!((axis_arity(1), axis_arity(2), axis_arity(3), axis_arity(9)), (16, 4, 2, 2));
    }
}
