//! One chunk, element by element: steps over tiles that stay in the first-level cache.

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use ebbtide_array::program::{Map, Step};
use ebbtide_array::{BinaryOp, DType};
use ebbtide_buffer::{Buffer, Pool};

use crate::KernelError;
use crate::level::{Kernel, Level};
use crate::random;

/// Elements of a tile: 8 KiB a register, so that a handful of registers fit 48 KiB.
const TILE: usize = 1024;

type Register = [u64; TILE];

/// Extent of one axis of a chunk.
pub(crate) fn extent(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).expect("a chunk fits the memory")
}

pub(crate) fn run(
    level: Level,
    map: &Map,
    place: &[u32],
    inputs: &[&Buffer],
    pool: &Pool,
) -> Result<Buffer, KernelError> {
    check(map, place, inputs)?;
    let chunk = map.grid.chunk(place);
    let shape: Vec<usize> = chunk.iter().map(extent).collect();
    let elements: usize = shape.iter().product();
    let mut output = pool.take(elements * item(map.dtype()));
    if elements > 0 {
        let walk = Walk::new(map, &chunk, &shape);
        level.run(Rows { map, walk, inputs, output: &mut output });
    }
    Ok(output)
}

/// Refuses what would read outside an input or a register: programs come over the wire.
fn check(map: &Map, place: &[u32], inputs: &[&Buffer]) -> Result<(), KernelError> {
    let counts = (0..map.grid.axes()).map(|axis| map.grid.ends(axis).len());
    if place.len() != map.grid.axes() || counts.zip(place).any(|(count, at)| count <= *at as usize)
    {
        return Err(KernelError::Program("a place outside its grid"));
    }
    let shape: Vec<usize> = map.grid.chunk(place).iter().map(extent).collect();
    for (nth, step) in map.steps.iter().enumerate() {
        if !step.dtype().has_kernels() {
            return Err(KernelError::Program("a dtype without kernels"));
        }
        match step {
            Step::Input { input, dtype, has_axis } => {
                let input = *input as usize;
                let given = inputs.get(input).ok_or(KernelError::Program("a missing input"))?;
                if has_axis.len() != shape.len() {
                    return Err(KernelError::Program("an input with other axes"));
                }
                let axes = shape.iter().zip(has_axis).filter(|(_, has)| **has);
                let elements: usize = axes.map(|(extent, _)| *extent).product();
                let expected = elements * item(*dtype);
                if given.len() != expected {
                    return Err(KernelError::Input { input, bytes: given.len(), expected });
                }
            }
            Step::Scalar { dtype, bytes } if bytes.len() != item(*dtype) => {
                return Err(KernelError::Program("a scalar of another size"));
            }
            Step::Constant { dtype, bytes } => {
                let elements: u64 = map.grid.shape().iter().product();
                if bytes.len() as u64 != elements.saturating_mul(dtype.item_bytes()) {
                    return Err(KernelError::Program("a constant of another size"));
                }
            }
            Step::Binary { left, right, .. } if *left.max(right) as usize >= nth => {
                return Err(KernelError::Program("a step before its input"));
            }
            Step::Cast { from, .. } if *from as usize >= nth => {
                return Err(KernelError::Program("a step before its input"));
            }
            Step::Scalar { .. } | Step::Random { .. } | Step::Binary { .. } | Step::Cast { .. } => {
            }
        }
    }
    if map.steps.is_empty() { Err(KernelError::Program("no steps")) } else { Ok(()) }
}

fn item(dtype: DType) -> usize {
    usize::try_from(dtype.item_bytes()).expect("an element is small")
}

/// How a chunk is walked: row by row, where a row is as many trailing axes as lie in one piece in
/// the whole array and in every input.
struct Walk {
    /// Extents of the axes before the row.
    outer: Vec<usize>,
    row: usize,
    /// Place of the chunk's first element in the whole array, and strides of the outer axes there.
    origin: u64,
    strides: Vec<u64>,
    /// For each step that reads an input: strides of the outer axes, and whether a row has many.
    reads: Vec<Option<(Vec<usize>, bool)>>,
}

impl Walk {
    fn new(map: &Map, chunk: &[Range<u64>], shape: &[usize]) -> Self {
        let whole = map.grid.shape();
        let axes = shape.len();
        let has_axes: Vec<&[bool]> = map
            .steps
            .iter()
            .filter_map(|step| {
                if let Step::Input { has_axis, .. } = step {
                    Some(has_axis.as_slice())
                } else {
                    None
                }
            })
            .collect();
        // An axis joins the row behind it if that row spans the whole array there.
        let mut first = axes.saturating_sub(1);
        while first > 0
            && shape[first] as u64 == whole[first]
            && has_axes.iter().all(|has| has[first - 1] == has[first])
        {
            first -= 1;
        }
        let row = shape[first..].iter().product();
        let strides_of = |extents: &[u64]| -> Vec<u64> {
            (0..extents.len()).map(|axis| extents[axis + 1..].iter().product()).collect()
        };
        let whole_strides = strides_of(&whole);
        let origin = chunk.iter().zip(&whole_strides).map(|(range, it)| range.start * it).sum();
        let reads = map.steps.iter().map(|step| {
            let Step::Input { has_axis, .. } = step else { return None };
            let own = |axis: usize| if has_axis[axis] { shape[axis] } else { 1 };
            let stride = |axis: usize| -> usize {
                let behind: usize = (axis + 1..axes).map(own).product();
                if has_axis[axis] { behind } else { 0 }
            };
            let is_many = has_axis[first..].iter().any(|has| *has);
            Some(((0..first).map(stride).collect(), is_many))
        });
        let reads = reads.collect();
        let strides = whole_strides[..first].to_vec();
        Self { outer: shape[..first].to_vec(), row, origin, strides, reads }
    }
}

struct Rows<'a> {
    map: &'a Map,
    walk: Walk,
    inputs: &'a [&'a Buffer],
    output: &'a mut Buffer,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { map, walk, inputs, output } = self;
        let mut registers: Vec<Register> = vec![[0; TILE]; map.steps.len()];
        let mut place = vec![0_usize; walk.outer.len()];
        let mut bases: Vec<usize> = vec![0; map.steps.len()];
        let rows: usize = walk.outer.iter().product();
        for row in 0..rows {
            let moved = place.iter().zip(&walk.strides).map(|(at, stride)| *at as u64 * stride);
            let origin = walk.origin + moved.sum::<u64>();
            for (base, read) in bases.iter_mut().zip(&walk.reads) {
                let Some((strides, _)) = read else { continue };
                *base = place.iter().zip(strides).map(|(at, stride)| at * stride).sum();
            }
            let mut start = 0;
            while start < walk.row {
                let count = TILE.min(walk.row - start);
                for (nth, step) in map.steps.iter().enumerate() {
                    let (before, rest) = registers.split_at_mut(nth);
                    let register = &mut rest[0][..count];
                    match step {
                        Step::Input { input, dtype, .. } => {
                            let is_many = walk.reads[nth].as_ref().is_some_and(|(_, many)| *many);
                            let from = bases[nth] + if is_many { start } else { 0 };
                            load(inputs[*input as usize], *dtype, from, is_many, register);
                        }
                        Step::Scalar { dtype, bytes } => load(bytes, *dtype, 0, false, register),
                        Step::Constant { dtype, bytes } => {
                            let from = usize::try_from(origin).expect("a constant is in memory");
                            load(bytes, *dtype, from + start, true, register);
                        }
                        Step::Random { distribution, seed, stream } => {
                            let first = origin + start as u64;
                            random::fill_words((*seed, *stream), first, register);
                            random::distribute(*distribution, register);
                        }
                        Step::Binary { op, left, right, dtype } => {
                            let left = &before[*left as usize][..count];
                            let right = &before[*right as usize][..count];
                            binary(*op, *dtype, left, right, register);
                        }
                        Step::Cast { from, from_dtype, dtype } => {
                            cast(*from_dtype, *dtype, &before[*from as usize][..count], register);
                        }
                    }
                }
                let result = &registers[map.steps.len() - 1][..count];
                store(result, map.dtype(), row * walk.row + start, output);
                start += count;
            }
            advance(&mut place, &walk.outer);
        }
    }
}

fn advance(place: &mut [usize], extents: &[usize]) {
    for (at, extent) in place.iter_mut().zip(extents).rev() {
        *at += 1;
        if *at < *extent {
            return;
        }
        *at = 0;
    }
}

/// Fills a register from elements in memory: as many, or one for all. A `bool` fills a word.
#[inline(always)]
fn load(bytes: &[u8], dtype: DType, from: usize, is_many: bool, register: &mut [u64]) {
    let count = if is_many { register.len() } else { 1 };
    let item = item(dtype);
    let bytes = &bytes[from * item..(from + count) * item];
    if dtype == DType::Bool {
        for (word, byte) in register.iter_mut().zip(bytes) {
            *word = u64::from(*byte);
        }
    } else {
        cast_slice_mut::<u64, u8>(&mut register[..count]).copy_from_slice(bytes);
    }
    if !is_many {
        let first = register[0];
        register.fill(first);
    }
}

#[inline(always)]
fn store(register: &[u64], dtype: DType, to: usize, output: &mut [u8]) {
    let item = item(dtype);
    let bytes = &mut output[to * item..(to + register.len()) * item];
    if dtype == DType::Bool {
        for (byte, word) in bytes.iter_mut().zip(register) {
            *byte = u8::from(*word != 0);
        }
    } else {
        bytes.copy_from_slice(cast_slice(register));
    }
}

#[inline(always)]
fn binary(op: BinaryOp, dtype: DType, left: &[u64], right: &[u64], result: &mut [u64]) {
    if dtype == DType::Float64 {
        let (left, right) = (cast_slice::<u64, f64>(left), cast_slice::<u64, f64>(right));
        let result = cast_slice_mut::<u64, f64>(result);
        match op {
            BinaryOp::Add => zip(left, right, result, |a, b| a + b),
            BinaryOp::Subtract => zip(left, right, result, |a, b| a - b),
            BinaryOp::Multiply => zip(left, right, result, |a, b| a * b),
            BinaryOp::Divide => zip(left, right, result, |a, b| a / b),
        }
    } else {
        match op {
            BinaryOp::Add => zip(left, right, result, u64::wrapping_add),
            BinaryOp::Subtract => zip(left, right, result, u64::wrapping_sub),
            BinaryOp::Multiply => zip(left, right, result, u64::wrapping_mul),
            BinaryOp::Divide => unreachable!("integers divide as floating point"),
        }
    }
}

#[inline(always)]
fn zip<T: Copy>(left: &[T], right: &[T], result: &mut [T], op: impl Fn(T, T) -> T) {
    for ((result, left), right) in result.iter_mut().zip(left).zip(right) {
        *result = op(*left, *right);
    }
}

#[inline(always)]
fn cast(from: DType, to: DType, source: &[u64], result: &mut [u64]) {
    let convert: fn(u64) -> u64 = match (from, to) {
        (DType::Float64, DType::Int64) => |bits| {
            #[expect(clippy::cast_possible_truncation, reason = "what lies outside saturates")]
            let integer = f64::from_bits(bits) as i64;
            integer.cast_unsigned()
        },
        (DType::Float64, DType::Bool) => |bits| u64::from(f64::from_bits(bits) != 0.0),
        (_, DType::Float64) => |bits| (bits.cast_signed() as f64).to_bits(),
        (_, DType::Bool) => |bits| u64::from(bits != 0),
        (_, _) => |bits| bits,
    };
    for (result, source) in result.iter_mut().zip(source) {
        *result = convert(*source);
    }
}
