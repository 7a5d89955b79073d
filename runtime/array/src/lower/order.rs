//! What depends on the order of elements: quantiles and the largest.
//!
//! A quantile is found digit by digit of the elements' order, in a fixed number of rounds: each
//! counts, among the elements that agree so far, how many have which next digit. Memory does not
//! grow with the array, and the result is exact.

use ebbtide_core::{AxisRelation, Cost, GroupId, Input, Relation, Space};

use super::{Draft, Lowering, TREE_ARITY, axis_arity, map_cost, to_u8};
use crate::program::{HISTOGRAM_BYTES, Program, ROUNDS, STATE_BYTES};
use crate::{Array, ArrayError, DType, ReduceOp};

impl Lowering<'_> {
    pub(super) fn quantile(&mut self, q: u64, from: &Array) -> Result<GroupId, ArrayError> {
        let space = from.node().grid.space()?;
        let name = "quantile";
        let small =
            |output_bytes: u64| Cost { output_bytes, scratch_bytes: 0, nanoseconds: 10_000 };
        let mut state: Option<GroupId> = None;
        for round in 0..ROUNDS {
            let before = || state.map(|group| Input { group, relation: Relation(Vec::new()) });
            let (map, mut inputs) = self.map(from);
            inputs.extend(before());
            let mut cost = map_cost(&map, from.node().grid.largest_chunk());
            cost.scratch_bytes = cost.scratch_bytes.saturating_add(cost.output_bytes);
            cost.output_bytes = HISTOGRAM_BYTES;
            let program = &Program::Histogram { map, round };
            let draft = Draft { name, space: space.clone(), inputs, cost, call: None, program };
            let leaves = self.push(draft)?;
            let combine = Program::Combine { op: ReduceOp::Sum, dtype: DType::Int64 };
            let (top, shape) =
                self.climb((leaves, &space), &combine, small(HISTOGRAM_BYTES), name)?;
            let all = Relation(vec![AxisRelation::All; shape.extents().len()]);
            let mut inputs = vec![Input { group: top, relation: all }];
            inputs.extend(before());
            let program = &Program::Narrow { q, round };
            let (space, cost) = (Space::new(Vec::new())?, small(STATE_BYTES));
            state = Some(self.push(Draft { name, space, inputs, cost, call: None, program })?);
        }
        let inputs = state.map(|group| Input { group, relation: Relation(Vec::new()) });
        let (space, program) = (Space::new(Vec::new())?, &Program::Interpolate { q });
        let inputs = inputs.into_iter().collect();
        self.push(Draft { name, space, inputs, cost: small(8), call: None, program })
    }

    pub(super) fn topk(&mut self, k: u64, from: &Array) -> Result<GroupId, ArrayError> {
        let (map, inputs) = self.map(from);
        let (space, name) = (from.node().grid.space()?, "topk");
        let largest = from.node().grid.largest_chunk();
        let mut cost = map_cost(&map, largest);
        cost.scratch_bytes = cost.scratch_bytes.saturating_add(largest.saturating_mul(16));
        cost.output_bytes = largest.min(k).saturating_mul(8);
        let program = &Program::TopK { map, k };
        let draft = Draft { name, space: space.clone(), inputs, cost, call: None, program };
        let leaves = self.push(draft)?;
        let merge = Program::MergeTopK { dtype: from.dtype(), k };
        let bytes = k.saturating_mul(8);
        let cost = Cost {
            output_bytes: bytes,
            scratch_bytes: bytes.saturating_mul(u64::from(TREE_ARITY) + 1),
            nanoseconds: k.saturating_mul(100) + 100,
        };
        let (top, shape) = self.climb((leaves, &space), &merge, cost, name)?;
        let all = Relation(vec![AxisRelation::All; shape.extents().len()]);
        let inputs = vec![Input { group: top, relation: all }];
        // One chunk of the result's one axis.
        let space = Space::new(vec![1])?;
        self.push(Draft { name, space, inputs, cost, call: None, program: &merge })
    }

    /// Levels of a tree over all axes, up to one that a single task can take together.
    fn climb(
        &mut self,
        (mut group, space): (GroupId, &Space),
        program: &Program,
        cost: Cost,
        name: &str,
    ) -> Result<(GroupId, Space), ArrayError> {
        let mut space = space.clone();
        let arity = axis_arity(space.extents().len(), cost.output_bytes);
        while space.extents().iter().any(|extent| *extent > arity) {
            let up = space.extents().iter().map(|extent| extent.div_ceil(arity)).collect();
            let level = |axis| AxisRelation::Level { axis: to_u8(axis), arity };
            let relation = Relation((0..space.extents().len()).map(level).collect());
            let inputs = vec![Input { group, relation }];
            space = Space::new(up)?;
            let draft = Draft { name, space: space.clone(), inputs, cost, call: None, program };
            group = self.push(draft)?;
        }
        Ok((group, space))
    }
}
