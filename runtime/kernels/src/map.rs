//! One chunk by steps, portion by portion: registers stay in the second-level cache.
//!
//! A register has the elements of a portion along the axes that it has, row-major, each in a word of
//! 64 bits; a `bool` is 0 or 1.

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use ebbtide_array::program::{Map, Step};
use ebbtide_array::{BinaryOp, CompareOp, DType, ReduceOp};
use ebbtide_buffer::{Buffer, Pool};

use crate::KernelError;
use crate::level::{Kernel, Level};
use crate::{random, reduce};

type Register = Vec<u64>;

/// Extent of one axis of a chunk.
pub(crate) fn extent(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).expect("a chunk fits the memory")
}

pub(crate) fn item(dtype: DType) -> usize {
    usize::try_from(dtype.item_bytes()).expect("an element is small")
}

pub(crate) fn run(
    level: Level,
    map: &Map,
    place: &[u32],
    inputs: &[&Buffer],
    pool: &Pool,
) -> Result<Buffer, KernelError> {
    let chunk = Chunk::new(map, place)?;
    chunk.check(inputs)?;
    let output = pool.take(chunk.result_elements() * item(map.dtype()));
    if output.is_empty() {
        return Ok(output);
    }
    level.run(Portions { chunk, inputs, output })
}

/// A chunk of a map: what the map's axes and registers are there.
struct Chunk<'a> {
    map: &'a Map,
    /// For each register, the axes that it has.
    has: Vec<Vec<bool>>,
    /// What the chunk covers along each axis.
    covers: Vec<Range<u64>>,
    extents: Vec<usize>,
    /// Extents of the whole along each axis.
    whole: Vec<u64>,
    /// The axis along which portions are cut, and how many elements along it make one.
    cut: usize,
    along: usize,
}

/// A part of a chunk: one by one along the axes before the cut, whole along those behind it.
struct Portion {
    /// First element along each axis, counted from the chunk's first.
    start: Vec<usize>,
    extents: Vec<usize>,
}

impl<'a> Chunk<'a> {
    fn new(map: &'a Map, place: &[u32]) -> Result<Self, KernelError> {
        let is_ascending = map.kept.windows(2).all(|pair| pair[0] < pair[1]);
        let kept = |it: &u8| usize::from(*it) < map.grid.axes();
        if !is_ascending || !map.kept.iter().all(kept) || place.len() != map.kept.len() {
            return Err(KernelError::Program("a place with other axes"));
        }
        let place = map.place(place);
        let counts = (0..map.grid.axes()).map(|axis| map.grid.ends(axis).len());
        if counts.zip(&place).any(|(count, at)| count <= *at as usize) {
            return Err(KernelError::Program("a place outside its grid"));
        }
        if map.steps.is_empty() {
            return Err(KernelError::Program("no steps"));
        }
        let has = map.register_axes().ok_or(KernelError::Program("a step before its input"))?;
        let covers = map.grid.chunk(&place);
        let extents: Vec<usize> = covers.iter().map(extent).collect();
        let counted: Vec<u64> = extents.iter().map(|it| *it as u64).collect();
        let (cut, along) = map.portion(&counted, &has);
        let along = usize::try_from(along).unwrap_or(usize::MAX).max(1);
        let whole = map.grid.shape();
        Ok(Self { map, has, covers, extents, whole, cut, along })
    }

    fn result_elements(&self) -> usize {
        self.map.kept.iter().map(|axis| self.extents[usize::from(*axis)]).product()
    }

    /// Refuses what would read outside an input or a register: programs come over the wire.
    fn check(&self, inputs: &[&Buffer]) -> Result<(), KernelError> {
        let own = |has: &[bool]| -> usize {
            self.extents.iter().zip(has).filter(|(_, has)| **has).map(|(it, _)| *it).product()
        };
        for (nth, step) in self.map.steps.iter().enumerate() {
            if !step.dtype().has_kernels() {
                return Err(KernelError::Program("a dtype without kernels"));
            }
            let dtype = |register: &u32| self.map.steps[*register as usize].dtype();
            let (is_typed, read) = match step {
                Step::Input { input, dtype, .. } => {
                    (true, Some((*input, *dtype, own(&self.has[nth]))))
                }
                Step::Take { input, dtype: of, index, extent, before, after } => {
                    let mut has = vec![false; self.extents.len()];
                    before.iter().chain(after).for_each(|axis| has[usize::from(*axis)] = true);
                    let along = usize::try_from(*extent).unwrap_or(usize::MAX);
                    let elements = own(&has).saturating_mul(along);
                    (dtype(index) == DType::Int64, Some((*input, *of, elements)))
                }
                Step::Scalar { dtype, bytes } => (bytes.len() == item(*dtype), None),
                Step::Constant { dtype, bytes, .. } => {
                    (bytes.len() == own(&self.has[nth]) * item(*dtype), None)
                }
                Step::Binary { left, right, dtype: of, .. }
                | Step::Compare { left, right, dtype: of, .. } => {
                    (dtype(left) == *of && dtype(right) == *of, None)
                }
                Step::Cast { from, from_dtype, .. } => (dtype(from) == *from_dtype, None),
                Step::Reduce { from, dtype: of, axes, .. } => {
                    let is_whole = |axis: &u8| self.map.grid.ends(usize::from(*axis)).len() == 1;
                    (dtype(from) == *of && axes.iter().all(is_whole), None)
                }
                Step::Random { .. } => (true, None),
            };
            if !is_typed {
                return Err(KernelError::Program("a step of other elements than its input"));
            }
            let Some((input, dtype, elements)) = read else { continue };
            let input = input as usize;
            let given = inputs.get(input).ok_or(KernelError::Program("a missing input"))?;
            let expected = elements.saturating_mul(item(dtype));
            if given.len() != expected {
                return Err(KernelError::Input { input, bytes: given.len(), expected });
            }
        }
        Ok(())
    }

    /// Where a portion starts in an array of this chunk's extents along the axes that it has. The
    /// portion's elements lie there in one piece.
    fn offset(&self, portion: &Portion, has: impl Fn(usize) -> bool) -> usize {
        let had = (0..self.extents.len()).filter(|axis| has(*axis));
        had.fold(0, |offset, axis| offset * self.extents[axis] + portion.start[axis])
    }

    fn count(portion: &Portion, has: &[bool]) -> usize {
        let had = portion.extents.iter().zip(has).filter(|(_, has)| **has);
        had.map(|(extent, _)| *extent).product()
    }
}

struct Portions<'a> {
    chunk: Chunk<'a>,
    inputs: &'a [&'a Buffer],
    output: Buffer,
}

impl Kernel for Portions<'_> {
    type Output = Result<Buffer, KernelError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self { chunk, inputs, mut output } = self;
        let Chunk { map, extents, cut, along, .. } = &chunk;
        let mut registers: Vec<Register> = vec![Vec::new(); map.steps.len()];
        let mut spare = [Vec::new(), Vec::new()];
        let axes = extents.len();
        let kept: Vec<bool> = (0..axes).map(|axis| is_among(&map.kept, axis)).collect();
        let outer = if axes == 0 { &[] } else { &extents[..*cut] };
        let rounds: usize = outer.iter().product();
        let length = extents.get(*cut).copied().unwrap_or(1);
        let mut portion = Portion { start: vec![0; axes], extents: extents.clone() };
        portion.extents.iter_mut().take(*cut).for_each(|extent| *extent = 1);
        for _ in 0..rounds {
            for start in (0..length).step_by(*along) {
                if axes > 0 {
                    portion.start[*cut] = start;
                    portion.extents[*cut] = (*along).min(length - start);
                }
                for nth in 0..map.steps.len() {
                    let (before, rest) = registers.split_at_mut(nth);
                    let register = &mut rest[0];
                    register.resize(Chunk::count(&portion, &chunk.has[nth]), 0);
                    step((&chunk, &portion, inputs), nth, before, register, &mut spare)?;
                }
                let result = registers.last().map_or(&[][..], Vec::as_slice);
                let has = chunk.has.last().map_or(&[][..], Vec::as_slice);
                let to = chunk.offset(&portion, |axis| kept[axis]);
                let wide = widened(result, has, &kept, &portion.extents, &mut spare[0]);
                store(wide, map.dtype(), to, &mut output);
            }
            advance(&mut portion.start[..*cut.min(&axes)], outer);
        }
        Ok(output)
    }
}

fn is_among(axes: &[u8], axis: usize) -> bool {
    axes.iter().any(|it| usize::from(*it) == axis)
}

#[inline(always)]
fn step(
    (chunk, portion, inputs): (&Chunk<'_>, &Portion, &[&Buffer]),
    nth: usize,
    before: &[Register],
    register: &mut [u64],
    spare: &mut [Register; 2],
) -> Result<(), KernelError> {
    let has = &chunk.has[nth];
    match &chunk.map.steps[nth] {
        Step::Input { input, dtype, .. } => {
            let from = chunk.offset(portion, |axis| has[axis]);
            load(inputs[*input as usize], *dtype, from, register);
        }
        Step::Scalar { dtype, bytes } => load(bytes, *dtype, 0, register),
        Step::Constant { dtype, bytes, .. } => {
            load(bytes, *dtype, chunk.offset(portion, |axis| has[axis]), register);
        }
        Step::Random { distribution, seed, stream, .. } => {
            words(chunk, portion, has, (*seed, *stream), register);
            random::distribute(*distribution, register);
        }
        Step::Binary { op, left, right, dtype } => {
            let [spare_left, spare_right] = spare;
            let operand = |at: &u32, spare| {
                let at = *at as usize;
                Operand::new(&before[at], &chunk.has[at], has, &portion.extents, spare)
            };
            let (left, right) = (operand(left, spare_left), operand(right, spare_right));
            binary(*op, *dtype, left, right, register);
        }
        Step::Compare { op, left, right, dtype } => {
            let [spare_left, spare_right] = spare;
            let operand = |at: &u32, spare| {
                let at = *at as usize;
                Operand::new(&before[at], &chunk.has[at], has, &portion.extents, spare)
            };
            let (left, right) = (operand(left, spare_left), operand(right, spare_right));
            compare(*op, *dtype, left, right, register);
        }
        Step::Cast { from, from_dtype, dtype } => {
            cast(*from_dtype, *dtype, &before[*from as usize], register);
        }
        Step::Take { input, dtype, index, extent, before: outer, after } => {
            let (first, last) = (|axis| is_among(outer, axis), |axis| is_among(after, axis));
            let product = |extents: &[usize], has: &dyn Fn(usize) -> bool| -> usize {
                (0..extents.len()).filter(|axis| has(*axis)).map(|axis| extents[axis]).product()
            };
            let gather = Gather {
                extent: *extent,
                outer: chunk.offset(portion, first)..product(&portion.extents, &first),
                inner: chunk.offset(portion, last)..product(&portion.extents, &last),
                stride: product(&chunk.extents, &last),
            };
            let indices: &[i64] = cast_slice(&before[*index as usize]);
            gather.run(inputs[*input as usize], *dtype, indices, register)?;
        }
        Step::Reduce { op, from, axes, dtype } => {
            let from = *from as usize;
            let extents = (chunk.has[from].as_slice(), portion.extents.clone());
            end_axes((*op, *dtype, axes), extents, &before[from], register, spare)?;
        }
    }
    Ok(())
}

/// Reduces a register over axes, last first.
#[inline(always)]
fn end_axes(
    (op, dtype, axes): (ReduceOp, DType, &[u8]),
    (has, mut extents): (&[bool], Vec<usize>),
    from: &[u64],
    register: &mut [u64],
    [one, other]: &mut [Register; 2],
) -> Result<(), KernelError> {
    if from.is_empty() {
        // Whatever lies between may be large, and has no elements.
        let of_none = [register.len(), 0, 1];
        return reduce::axis(op, dtype, from, of_none, register);
    }
    for (extent, has) in extents.iter_mut().zip(has) {
        *extent = if *has { *extent } else { 1 };
    }
    one.clear();
    one.extend_from_slice(from);
    for axis in axes.iter().rev().map(|axis| usize::from(*axis)) {
        let outer: usize = extents[..axis].iter().product();
        let inner: usize = extents[axis + 1..].iter().product();
        other.clear();
        other.resize(outer * inner, 0);
        reduce::axis(op, dtype, one, [outer, extents[axis], inner], other)?;
        std::mem::swap(one, other);
        extents[axis] = 1;
    }
    register.copy_from_slice(one);
    Ok(())
}

/// Random words of a portion, by their places in their own array.
#[inline(always)]
fn words(
    chunk: &Chunk<'_>,
    portion: &Portion,
    has: &[bool],
    key: (u64, u64),
    register: &mut [u64],
) {
    let own: Vec<usize> = (0..has.len()).filter(|axis| has[*axis]).collect();
    let first = |axis: usize| chunk.covers[axis].start + portion.start[axis] as u64;
    let stride = |nth: usize| -> u64 { own[nth + 1..].iter().map(|it| chunk.whole[*it]).product() };
    // Axes that are whole join the run before them.
    let mut run = own.len().saturating_sub(1);
    while run > 0 && portion.extents[own[run]] as u64 == chunk.whole[own[run]] {
        run -= 1;
    }
    let length: usize =
        own[run.min(own.len())..].iter().map(|axis| portion.extents[*axis]).product();
    let outer: Vec<usize> = own.iter().take(run).map(|axis| portion.extents[*axis]).collect();
    let base: u64 = own.iter().enumerate().map(|(nth, axis)| first(*axis) * stride(nth)).sum();
    let mut place = vec![0; outer.len()];
    for words in register.chunks_mut(length.max(1)) {
        let moved = place.iter().enumerate().map(|(nth, at)| *at as u64 * stride(nth));
        random::fill_words(key, base + moved.sum::<u64>(), words);
        advance(&mut place, &outer);
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

/// What is taken from a chunk that is whole along the axis of the indices.
struct Gather {
    extent: u64,
    /// First row before that axis, and how many.
    outer: Range<usize>,
    /// First element behind that axis, and how many.
    inner: Range<usize>,
    /// Elements behind that axis in the source.
    stride: usize,
}

impl Gather {
    #[inline(always)]
    fn run(
        &self,
        source: &[u8],
        dtype: DType,
        indices: &[i64],
        register: &mut [u64],
    ) -> Result<(), KernelError> {
        let extent = usize::try_from(self.extent).unwrap_or(usize::MAX);
        let count = self.inner.end;
        let mut made = register.chunks_exact_mut(count.max(1));
        for outer in 0..self.outer.end {
            let row = (self.outer.start + outer) * extent;
            for index in indices {
                let at = if *index < 0 { index.wrapping_add_unsigned(self.extent) } else { *index };
                let at = usize::try_from(at).ok().filter(|at| *at < extent);
                let at = at.ok_or(KernelError::Index { index: *index, extent: self.extent })?;
                let Some(made) = made.next() else { return Ok(()) };
                load(source, dtype, (row + at) * self.stride + self.inner.start, made);
            }
        }
        Ok(())
    }
}

/// Fills a register from elements in memory.
#[inline(always)]
fn load(bytes: &[u8], dtype: DType, from: usize, register: &mut [u64]) {
    let item = item(dtype);
    let bytes = &bytes[from * item..(from + register.len()) * item];
    if dtype == DType::Bool {
        for (word, byte) in register.iter_mut().zip(bytes) {
            *word = u64::from(*byte);
        }
    } else {
        cast_slice_mut::<u64, u8>(register).copy_from_slice(bytes);
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

/// A register as an operand: as many elements as the result has, or one for all.
#[derive(Clone, Copy)]
enum Operand<'a> {
    Many(&'a [u64]),
    One(u64),
}

impl<'a> Operand<'a> {
    #[inline(always)]
    fn new(
        register: &'a [u64],
        has: &[bool],
        wanted: &[bool],
        extents: &[usize],
        spare: &'a mut Register,
    ) -> Self {
        if let [one] = register {
            return Self::One(*one);
        }
        Self::Many(widened(register, has, wanted, extents, spare))
    }
}

/// The elements of a register, repeated along the axes that it lacks.
#[inline(always)]
fn widened<'a>(
    register: &'a [u64],
    has: &[bool],
    wanted: &[bool],
    extents: &[usize],
    spare: &'a mut Register,
) -> &'a [u64] {
    let axes: Vec<usize> = (0..extents.len()).filter(|axis| wanted[*axis]).collect();
    let count: usize = axes.iter().map(|axis| extents[*axis]).product();
    if count == register.len() {
        return register;
    }
    if count == 0 {
        return &[];
    }
    // The last axes that are all there, or all missing, go in one piece.
    let last = axes.last().is_none_or(|axis| has[*axis]);
    let run = axes.iter().rposition(|axis| has[*axis] != last && extents[*axis] > 1);
    let run = run.map_or(0, |at| at + 1);
    let length: usize = axes[run..].iter().map(|axis| extents[*axis]).product();
    let outer: Vec<usize> = axes[..run].iter().map(|axis| extents[*axis]).collect();
    let own = |axis: usize| if has[axis] { extents[axis] } else { 1 };
    let strides: Vec<usize> = (0..run)
        .map(|nth| {
            let behind = axes[nth + 1..].iter().map(|axis| own(*axis)).product();
            if has[axes[nth]] { behind } else { 0 }
        })
        .collect();
    spare.clear();
    spare.resize(count, 0);
    let mut place = vec![0; run];
    for made in spare.chunks_exact_mut(length) {
        let from: usize = place.iter().zip(&strides).map(|(at, stride)| at * stride).sum();
        if last {
            made.copy_from_slice(&register[from..from + length]);
        } else {
            made.fill(register[from]);
        }
        advance(&mut place, &outer);
    }
    spare
}

#[inline(always)]
fn binary(op: BinaryOp, dtype: DType, left: Operand<'_>, right: Operand<'_>, result: &mut [u64]) {
    if dtype == DType::Float64 {
        match op {
            BinaryOp::Add => zip(left, right, result, |a, b| on_floats(a, b, |a, b| a + b)),
            BinaryOp::Subtract => zip(left, right, result, |a, b| on_floats(a, b, |a, b| a - b)),
            BinaryOp::Multiply => zip(left, right, result, |a, b| on_floats(a, b, |a, b| a * b)),
            BinaryOp::Divide => zip(left, right, result, |a, b| on_floats(a, b, |a, b| a / b)),
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
fn on_floats(a: u64, b: u64, op: impl Fn(f64, f64) -> f64) -> u64 {
    op(f64::from_bits(a), f64::from_bits(b)).to_bits()
}

#[inline(always)]
fn compare(op: CompareOp, dtype: DType, left: Operand<'_>, right: Operand<'_>, result: &mut [u64]) {
    if dtype == DType::Float64 {
        by(op, left, right, result, f64::from_bits);
    } else {
        by(op, left, right, result, u64::cast_signed);
    }
}

#[inline(always)]
fn by<T: PartialOrd>(
    op: CompareOp,
    left: Operand<'_>,
    right: Operand<'_>,
    result: &mut [u64],
    read: impl Fn(u64) -> T,
) {
    match op {
        CompareOp::Less => zip(left, right, result, |a, b| u64::from(read(a) < read(b))),
        CompareOp::LessEqual => zip(left, right, result, |a, b| u64::from(read(a) <= read(b))),
        CompareOp::Greater => zip(left, right, result, |a, b| u64::from(read(a) > read(b))),
        CompareOp::GreaterEqual => zip(left, right, result, |a, b| u64::from(read(a) >= read(b))),
        CompareOp::Equal => zip(left, right, result, |a, b| u64::from(read(a) == read(b))),
        CompareOp::NotEqual => zip(left, right, result, |a, b| u64::from(read(a) != read(b))),
    }
}

#[inline(always)]
fn zip(left: Operand<'_>, right: Operand<'_>, result: &mut [u64], op: impl Fn(u64, u64) -> u64) {
    match (left, right) {
        (Operand::Many(left), Operand::Many(right)) => {
            for ((result, left), right) in result.iter_mut().zip(left).zip(right) {
                *result = op(*left, *right);
            }
        }
        (Operand::One(left), Operand::Many(right)) => {
            for (result, right) in result.iter_mut().zip(right) {
                *result = op(left, *right);
            }
        }
        (Operand::Many(left), Operand::One(right)) => {
            for (result, left) in result.iter_mut().zip(left) {
                *result = op(*left, right);
            }
        }
        (Operand::One(left), Operand::One(right)) => result.fill(op(left, right)),
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
        (DType::Float64, DType::Float64) => |bits| bits,
        (_, DType::Float64) => |bits| (bits.cast_signed() as f64).to_bits(),
        (_, DType::Bool) => |bits| u64::from(bits != 0),
        (_, _) => |bits| bits,
    };
    for (result, source) in result.iter_mut().zip(source) {
        *result = convert(*source);
    }
}
