//! What type and chunks an operation's result has, or why it means nothing.

use crate::expression::{
    Array, BinaryOp, CALL_INPUTS_MAX, Call, CompareOp, Distribution, Op, ReduceOp,
};
use crate::{ArrayError, DType, Grid, Kind, broadcast};

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
        (Op::Binary(op), [left, right]) => binary(*op, left, right),
        (Op::Compare(op), [left, right]) => compared(*op, left, right),
        (Op::Call(call), inputs) => returned(call, inputs),
        (Op::Held { dtype, grid, .. }, []) => {
            supported("persist", *dtype)?;
            grid.space()?;
            Ok((*dtype, grid.clone()))
        }
        (Op::Expand { axis }, [from]) => expanded(*axis, from),
        (Op::Take { axis }, [from, indices]) => taken(*axis, from, indices),
        (Op::Slice { along, grid }, [from]) => sliced(along, grid, from),
        (Op::Quantile { q }, [from]) => quantile(f64::from_bits(*q), from),
        (Op::TopK { k }, [from]) => largest(*k, from),
        (Op::Cast(to), [from]) => {
            supported("astype", *to)?;
            supported("astype", from.dtype())?;
            Ok((*to, from.node().grid.clone()))
        }
        (Op::Reduce { op, axes }, [from]) => reduced(*op, axes, from),
        (
            Op::Constant { .. }
            | Op::Random { .. }
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Cast(_)
            | Op::Held { .. }
            | Op::Expand { .. }
            | Op::Take { .. }
            | Op::Slice { .. }
            | Op::Quantile { .. }
            | Op::TopK { .. }
            | Op::Reduce { .. },
            _,
        ) => Err(ArrayError::Inputs(inputs.len())),
    }
}

fn binary(op: BinaryOp, left: &Array, right: &Array) -> Result<(DType, Grid), ArrayError> {
    let (name, dtype) = (op.name(), left.dtype());
    supported(name, dtype)?;
    if dtype != right.dtype() {
        let (left, right) = (dtype, right.dtype());
        return Err(ArrayError::Promote { op: name, left, right });
    }
    if dtype == DType::Bool {
        return Err(ArrayError::DType { op: name, dtype, expected: "int64 or float64" });
    }
    if op == BinaryOp::Divide && dtype.kind() != Kind::Float {
        return Err(ArrayError::DType { op: name, dtype, expected: "float64" });
    }
    Ok((dtype, broadcast_grids(name, left, right)?))
}

fn compared(op: CompareOp, left: &Array, right: &Array) -> Result<(DType, Grid), ArrayError> {
    let (name, dtype) = (op.name(), left.dtype());
    supported(name, dtype)?;
    if dtype != right.dtype() {
        let (left, right) = (dtype, right.dtype());
        return Err(ArrayError::Promote { op: name, left, right });
    }
    Ok((DType::Bool, broadcast_grids(name, left, right)?))
}

fn reduced(op: ReduceOp, axes: &[u8], from: &Array) -> Result<(DType, Grid), ArrayError> {
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

fn expanded(axis: u8, from: &Array) -> Result<(DType, Grid), ArrayError> {
    supported("expand_dims", from.dtype())?;
    let grid = &from.node().grid;
    let mut ends: Vec<Vec<u64>> = (0..grid.axes()).map(|it| grid.ends(it).to_vec()).collect();
    if usize::from(axis) > ends.len() {
        let (op, axis, axes) = ("expand_dims", i64::from(axis), ends.len());
        return Err(ArrayError::Axis { op, axis, axes });
    }
    ends.insert(usize::from(axis), vec![1]);
    Ok((from.dtype(), Grid::from_ends(ends)))
}

fn taken(axis: u8, from: &Array, indices: &Array) -> Result<(DType, Grid), ArrayError> {
    supported("take", from.dtype())?;
    if indices.dtype() != DType::Int64 {
        let (op, dtype, expected) = ("take", indices.dtype(), "int64");
        return Err(ArrayError::DType { op, dtype, expected });
    }
    let (grid, places, at) = (&from.node().grid, &indices.node().grid, usize::from(axis));
    if at >= grid.axes() {
        let (op, axis, axes) = ("take", i64::from(axis), grid.axes());
        return Err(ArrayError::Axis { op, axis, axes });
    }
    let chunks = grid.ends(at).len();
    if chunks > 1 {
        return Err(ArrayError::TakeChunks { axis, chunks });
    }
    let before = (0..at).map(|it| grid.ends(it));
    let between = (0..places.axes()).map(|it| places.ends(it));
    let after = (at + 1..grid.axes()).map(|it| grid.ends(it));
    let ends = before.chain(between).chain(after).map(<[u64]>::to_vec).collect();
    Ok((from.dtype(), Grid::from_ends(ends)))
}

fn sliced(along: &[(u64, u64)], grid: &Grid, from: &Array) -> Result<(DType, Grid), ArrayError> {
    supported("slice", from.dtype())?;
    let (shape, target) = (from.shape(), grid.shape());
    if along.len() != shape.len() || target.len() != shape.len() || !grid.is_ordered() {
        return Err(ArrayError::Chunks { shape, chunks: target });
    }
    for (axis, ((start, step), count)) in along.iter().zip(&target).enumerate() {
        let Some(steps) = count.checked_sub(1) else { continue };
        let last = steps.checked_mul(*step).and_then(|it| it.checked_add(*start));
        if *step == 0 || last.is_none_or(|last| last >= shape[axis]) {
            let (first, last, extent) = (*start, last.unwrap_or(u64::MAX), shape[axis]);
            return Err(ArrayError::Range { axis, first, last, extent });
        }
    }
    grid.space()?;
    Ok((from.dtype(), grid.clone()))
}

fn quantile(q: f64, from: &Array) -> Result<(DType, Grid), ArrayError> {
    let op = "quantile";
    if from.dtype() != DType::Float64 {
        return Err(ArrayError::DType { op, dtype: from.dtype(), expected: "float64" });
    }
    if !(0.0..=1.0).contains(&q) {
        return Err(ArrayError::Argument { op, what: format!("q is {q}; expected 0 to 1") });
    }
    if from.shape().contains(&0) {
        return Err(ArrayError::Argument { op, what: "an empty array has none".to_owned() });
    }
    Ok((DType::Float64, Grid::whole(&[])?))
}

fn largest(k: u64, from: &Array) -> Result<(DType, Grid), ArrayError> {
    let (op, dtype, shape) = ("topk", from.dtype(), from.shape());
    if !matches!(dtype, DType::Int64 | DType::Float64) {
        return Err(ArrayError::DType { op, dtype, expected: "float64" });
    }
    match shape[..] {
        [extent] if (1..=extent).contains(&k) => Ok((dtype, Grid::whole(&[k])?)),
        [extent] => {
            let what = format!("k is {k}; expected 1 to {extent}");
            Err(ArrayError::Argument { op, what })
        }
        _ => {
            let what = format!("shape {shape:?}; expected one axis");
            Err(ArrayError::Argument { op, what })
        }
    }
}

fn returned(call: &Call, inputs: &[Array]) -> Result<(DType, Grid), ArrayError> {
    if inputs.len() > CALL_INPUTS_MAX {
        let (name, count) = (&call.name, inputs.len());
        return Err(ArrayError::Argument {
            op: "a function",
            what: format!(
                "{name} is given {count} arrays; at most {CALL_INPUTS_MAX} are taken: join some of them, or call it \
                 several times"
            ),
        });
    }
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
