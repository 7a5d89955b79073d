//! One map from an expression. Each array is laid over axes: the result's, and in their places those
//! that a reduction ends.

use std::collections::BTreeMap;

use ebbtide_core::{AxisRelation, GroupId, Input, Relation};

use super::to_u8;
use crate::program::{Map, Step};
use crate::{Array, DType, Grid, Op};

/// Names an axis while the number of axes is not known. Those of the result have their own numbers.
type Axis = usize;

/// An array, and the axes over which it is laid.
type Laid = (usize, Vec<Axis>);

pub(super) struct Steps<'a> {
    made: &'a BTreeMap<usize, GroupId>,
    /// Axes of the result.
    kept: usize,
    /// Every axis, in the order in which they stand.
    order: Vec<Axis>,
    /// Ends of the chunks along each axis, by its name.
    ends: Vec<Vec<u64>>,
    /// Axes over which the input of a reduction is laid.
    ended: BTreeMap<Laid, Vec<Axis>>,
    drafts: Vec<(Step, Has)>,
    inputs: Vec<Input>,
    registers: BTreeMap<Laid, u32>,
}

/// The axes that a step names: put into it when their order is known.
#[derive(Default)]
struct Has {
    /// Those that an array has, or that a reduction ends.
    own: Vec<Axis>,
    before: Vec<Axis>,
    after: Vec<Axis>,
}

impl<'a> Steps<'a> {
    /// The map that makes an array, and the groups that it reads.
    pub(super) fn of(array: &Array, made: &'a BTreeMap<usize, GroupId>) -> (Map, Vec<Input>) {
        let grid = &array.node().grid;
        let kept = grid.axes();
        let mut steps = Self {
            made,
            kept,
            order: (0..kept).collect(),
            ends: (0..kept).map(|axis| grid.ends(axis).to_vec()).collect(),
            ended: BTreeMap::new(),
            drafts: Vec::new(),
            inputs: Vec::new(),
            registers: BTreeMap::new(),
        };
        let mut path = vec![(array.clone(), (0..kept).collect::<Vec<Axis>>(), false)];
        while let Some((array, axes, is_visited)) = path.pop() {
            if steps.registers.contains_key(&(array.address(), axes.clone())) {
                continue;
            }
            if let Some(group) = steps.made.get(&array.address()) {
                steps.read(&array, &axes, *group);
            } else if is_visited {
                steps.compute(&array, &axes);
            } else {
                let needs = steps.needs(&array, &axes);
                path.push((array, axes, true));
                path.extend(needs.into_iter().rev().map(|(input, axes)| (input, axes, false)));
            }
        }
        steps.finish()
    }

    /// The inputs of an array that are registers, each with the axes over which it is laid.
    fn needs(&mut self, array: &Array, axes: &[Axis]) -> Vec<(Array, Vec<Axis>)> {
        let node = array.node();
        let input = |nth: usize| node.inputs[nth].clone();
        match &node.op {
            Op::Binary(_) | Op::Compare(_) | Op::Cast(_) => {
                let trailing =
                    |input: &Array| axes[axes.len() - input.node().grid.axes()..].to_vec();
                node.inputs.iter().map(|input| (input.clone(), trailing(input))).collect()
            }
            Op::Expand { axis } => {
                let mut rest = axes.to_vec();
                rest.remove(usize::from(*axis));
                vec![(input(0), rest)]
            }
            Op::Take { axis } => {
                let first = usize::from(*axis);
                let count = node.inputs[1].node().grid.axes();
                vec![(input(1), axes[first..first + count].to_vec())]
            }
            Op::Reduce { axes: ended, .. } => {
                let laid = (array.address(), axes.to_vec());
                let over = self.ended_axes(&node.inputs[0], ended, laid);
                vec![(input(0), over)]
            }
            Op::Constant { .. } | Op::Random { .. } => Vec::new(),
            Op::Call(_)
            | Op::Held { .. }
            | Op::Slice { .. }
            | Op::Quantile { .. }
            | Op::TopK { .. } => {
                unreachable!("it is made before it is used")
            }
        }
    }

    /// The axes of a reduction's input: new ones stand behind the axis before them.
    fn ended_axes(&mut self, from: &Array, ended: &[u8], laid: Laid) -> Vec<Axis> {
        if let Some(known) = self.ended.get(&laid) {
            return known.clone();
        }
        let grid = &from.node().grid;
        let mut kept = laid.1.iter();
        let mut axes: Vec<Axis> = Vec::new();
        for axis in 0..grid.axes() {
            if !ended.contains(&to_u8(axis)) {
                axes.extend(kept.next());
                continue;
            }
            let name = self.ends.len();
            self.ends.push(grid.ends(axis).to_vec());
            let before = axes.last().and_then(|last| self.order.iter().position(|it| it == last));
            self.order.insert(before.map_or(0, |at| at + 1), name);
            axes.push(name);
        }
        self.ended.insert(laid, axes.clone());
        axes
    }

    /// The axes that an array has. Along the others it has one element, which is repeated.
    fn had(&self, grid: &Grid, axes: &[Axis]) -> Vec<Axis> {
        let pairs = axes.iter().enumerate();
        let had = pairs.filter(|(nth, axis)| grid.ends(*nth) == self.ends[**axis]);
        had.map(|(_, axis)| *axis).collect()
    }

    fn relate(&mut self, array: &Array, axes: &[Option<Axis>], group: GroupId) -> u32 {
        let grid = &array.node().grid;
        let along = axes.iter().enumerate().map(|(nth, axis)| match axis {
            Some(axis) if *axis < self.kept && grid.ends(nth) == self.ends[*axis] => {
                AxisRelation::Same { axis: to_u8(*axis) }
            }
            // One chunk, whichever part of the result is made.
            _ => AxisRelation::At { index: 0 },
        });
        let relation = Relation(along.collect());
        let input = u32::try_from(self.inputs.len()).expect("inputs are counted in u32");
        self.inputs.push(Input { group, relation });
        input
    }

    fn read(&mut self, array: &Array, axes: &[Axis], group: GroupId) {
        let places: Vec<Option<Axis>> = axes.iter().copied().map(Some).collect();
        let input = self.relate(array, &places, group);
        let own = self.had(&array.node().grid, axes);
        let step = Step::Input { input, dtype: array.dtype(), has_axis: Vec::new() };
        self.push(array, axes, step, Has { own, ..Has::default() });
    }

    fn compute(&mut self, array: &Array, axes: &[Axis]) {
        let node = array.node();
        let needs = self.needs(array, axes);
        let register = |nth: usize| {
            let (input, axes) = &needs[nth];
            self.registers[&(input.address(), axes.clone())]
        };
        let mut has = Has::default();
        let step = match &node.op {
            Op::Constant { dtype, bytes, .. } if node.grid.largest_chunk() == 1 => {
                Step::Scalar { dtype: *dtype, bytes: bytes.clone() }
            }
            Op::Constant { dtype, bytes, .. } => {
                has.own = self.had(&node.grid, axes);
                Step::Constant { dtype: *dtype, bytes: bytes.clone(), has_axis: Vec::new() }
            }
            Op::Random { distribution, seed, stream, .. } => {
                has.own = self.had(&node.grid, axes);
                let (distribution, seed, stream) = (*distribution, *seed, *stream);
                Step::Random { distribution, seed, stream, has_axis: Vec::new() }
            }
            Op::Binary(op) => {
                Step::Binary { op: *op, left: register(0), right: register(1), dtype: node.dtype }
            }
            Op::Compare(op) => {
                let dtype = node.inputs[0].dtype();
                Step::Compare { op: *op, left: register(0), right: register(1), dtype }
            }
            Op::Cast(to) => {
                Step::Cast { from: register(0), from_dtype: node.inputs[0].dtype(), dtype: *to }
            }
            Op::Expand { .. } => {
                // Nothing is done: the register has the axis already, with one element.
                Step::Cast { from: register(0), from_dtype: node.dtype, dtype: node.dtype }
            }
            Op::Take { axis } => {
                let index = register(0);
                let (step, over) = self.take(usize::from(*axis), array, axes, index);
                has = over;
                step
            }
            Op::Reduce { op, axes: ended } => {
                let over = &needs[0].1;
                has.own = ended.iter().map(|axis| over[usize::from(*axis)]).collect();
                Step::Reduce { op: *op, from: register(0), axes: Vec::new(), dtype: node.dtype }
            }
            Op::Call(_)
            | Op::Held { .. }
            | Op::Slice { .. }
            | Op::Quantile { .. }
            | Op::TopK { .. } => {
                unreachable!("it is made before it is used")
            }
        };
        self.push(array, axes, step, has);
    }

    fn take(&mut self, at: usize, array: &Array, axes: &[Axis], index: u32) -> (Step, Has) {
        let node = array.node();
        let (source, grid) = (&node.inputs[0], &node.inputs[0].node().grid);
        let behind = at + node.inputs[1].node().grid.axes();
        let place = |own: usize| match own.cmp(&at) {
            std::cmp::Ordering::Less => Some(axes[own]),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some(axes[behind + own - at - 1]),
        };
        let places: Vec<Option<Axis>> = (0..grid.axes()).map(place).collect();
        let alike = |own: &usize| places[*own].is_some_and(|it| grid.ends(*own) == self.ends[it]);
        let given = (0..at).filter(alike).filter_map(|own| places[own]).collect();
        let behind_it = (at + 1..grid.axes()).filter(alike).filter_map(|own| places[own]).collect();
        let extent = grid.shape()[at];
        let group = self.made[&source.address()];
        let input = self.relate(source, &places, group);
        let (before, after, dtype): (_, _, DType) = (Vec::new(), Vec::new(), source.dtype());
        let has = Has { own: Vec::new(), before: given, after: behind_it };
        (Step::Take { input, dtype, index, extent, before, after }, has)
    }

    fn push(&mut self, array: &Array, axes: &[Axis], step: Step, has: Has) {
        let register = u32::try_from(self.drafts.len()).expect("steps are counted in u32");
        self.drafts.push((step, has));
        self.registers.insert((array.address(), axes.to_vec()), register);
    }

    fn finish(self) -> (Map, Vec<Input>) {
        let Self { order, ends, kept, drafts, inputs, .. } = self;
        let number = |axis: &Axis| {
            to_u8(order.iter().position(|it| it == axis).expect("every axis has its place"))
        };
        let numbers = |axes: &[Axis]| {
            let mut numbers: Vec<u8> = axes.iter().map(number).collect();
            numbers.sort_unstable();
            numbers
        };
        let marks = |axes: &[Axis]| order.iter().map(|it| axes.contains(it)).collect();
        let steps = drafts.into_iter().map(|(mut step, has)| {
            match &mut step {
                Step::Input { has_axis, .. }
                | Step::Constant { has_axis, .. }
                | Step::Random { has_axis, .. } => *has_axis = marks(&has.own),
                Step::Take { before, after, .. } => {
                    (*before, *after) = (numbers(&has.before), numbers(&has.after));
                }
                Step::Reduce { axes, .. } => *axes = numbers(&has.own),
                Step::Scalar { .. }
                | Step::Binary { .. }
                | Step::Compare { .. }
                | Step::Cast { .. } => {}
            }
            step
        });
        let steps = steps.collect();
        let grid = Grid::from_ends(order.iter().map(|axis| ends[*axis].clone()).collect());
        let kept = numbers(&(0..kept).collect::<Vec<Axis>>());
        (Map { grid, kept, steps }, inputs)
    }
}
