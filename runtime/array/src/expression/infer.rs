//! What type and chunks an operation's result has, or why it means nothing.

use crate::expression::BinaryOp;
use crate::expression::{Array, ArrayError, Call, Distribution, Op};
use crate::{DType, Grid, Kind, broadcast};

/// Type and chunks of what `op` makes of `inputs`. Trusts nothing: expressions come over the wire.
pub(super) fn infer(op: &Op, inputs: &[Array]) -> Result<(DType, Grid), ArrayError> {
    match (op, inputs) {
        (Op::Constant { dtype, shape, bytes }, []) => {
            supported("asarray", *dtype)?;
            let elements =
                shape.iter().try_fold(dtype.item_bytes(), |all, it| all.checked_mul(*it));
            if elements != Some(bytes.len() as u64) {
                let (bytes, shape) = (bytes.len(), shape.clone());
                return Err(ArrayError::Constant { bytes, shape, dtype: *dtype });
            }
            Ok((*dtype, Grid::whole(shape)?))
        }
        (Op::Random { distribution, grid, .. }, []) => {
            grid.space()?;
            match *distribution {
                Distribution::Integers { low, high } if low >= high => {
                    Err(ArrayError::Bounds { low, high })
                }
                Distribution::Integers { .. } => Ok((DType::Int64, grid.clone())),
                Distribution::Uniform | Distribution::Normal => Ok((DType::Float64, grid.clone())),
            }
        }
        (Op::Binary(op), [left, right]) => {
            let (name, dtype) = (op.name(), left.dtype());
            supported(name, dtype)?;
            if dtype != right.dtype() || dtype == DType::Bool {
                let (left, right) = (dtype, right.dtype());
                return Err(ArrayError::Promote { op: name, left, right });
            }
            if *op == BinaryOp::Divide && dtype.kind() != Kind::Float {
                return Err(ArrayError::DType { op: name, dtype, expected: "float64" });
            }
            Ok((dtype, broadcast_grids(name, left, right)?))
        }
        (Op::Call(call), inputs) => returned(call, inputs),
        (Op::Cast(to), [from]) => {
            supported("astype", *to)?;
            supported("astype", from.dtype())?;
            Ok((*to, from.node().grid.clone()))
        }
        (Op::Reduce { op, axes }, [from]) => {
            let dtype = from.dtype();
            if !matches!(dtype, DType::Int64 | DType::Float64) {
                return Err(ArrayError::DType { op: op.name(), dtype, expected: "float64" });
            }
            let grid = &from.node().grid;
            let ascending = axes.windows(2).all(|pair| pair[0] < pair[1]);
            match axes.last() {
                Some(last) if !ascending || usize::from(*last) >= grid.axes() => {
                    let (op, axis) = (op.name(), i64::from(*last));
                    Err(ArrayError::Axis { op, axis, axes: grid.axes() })
                }
                _ => Ok((dtype, without(grid, axes))),
            }
        }
        (
            Op::Constant { .. }
            | Op::Random { .. }
            | Op::Binary(_)
            | Op::Cast(_)
            | Op::Reduce { .. },
            _,
        ) => Err(ArrayError::Inputs(inputs.len())),
    }
}

fn returned(call: &Call, inputs: &[Array]) -> Result<(DType, Grid), ArrayError> {
    if inputs.iter().any(|input| input.dtype() == DType::Object) {
        supported("a function", DType::Object)?;
    }
    if call.dtype == DType::Object {
        return Ok((DType::Object, Grid::regular(&[], &[])?));
    }
    supported("from_delayed", call.dtype)?;
    Ok((call.dtype, Grid::whole(&call.shape)?))
}

fn supported(op: &'static str, dtype: DType) -> Result<(), ArrayError> {
    if dtype.has_kernels() {
        return Ok(());
    }
    Err(ArrayError::DType { op, dtype, expected: "float64, int64 or bool" })
}

/// The grid without these axes.
pub(crate) fn without(grid: &Grid, axes: &[u8]) -> Grid {
    let kept = (0..grid.axes()).filter(|axis| !axes.iter().any(|it| usize::from(*it) == *axis));
    Grid::from_ends(kept.map(|axis| grid.ends(axis).to_vec()).collect())
}

fn broadcast_grids(op: &'static str, left: &Array, right: &Array) -> Result<Grid, ArrayError> {
    let (left_shape, right_shape) = (left.shape(), right.shape());
    let Some(shape) = broadcast(&left_shape, &right_shape) else {
        return Err(ArrayError::Broadcast { op, left: left_shape, right: right_shape });
    };
    let ends = |array: &Array, axis: usize| -> Option<Vec<u64>> {
        let grid = &array.node().grid;
        let axis = (axis + grid.axes()).checked_sub(shape.len())?;
        let ends = grid.ends(axis).to_vec();
        (ends != [1]).then_some(ends)
    };
    let axes = (0..shape.len()).map(|axis| match (ends(left, axis), ends(right, axis)) {
        (Some(a), Some(b)) if a != b => Err(ArrayError::ChunksDiffer { op }),
        (Some(ends), _) | (None, Some(ends)) => Ok(ends),
        (None, None) => Ok(vec![1]),
    });
    Ok(Grid::from_ends(axes.collect::<Result<_, _>>()?))
}
