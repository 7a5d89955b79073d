//! Elements by their order: histograms of digits for quantiles, and the largest.
//!
//! Every `f64` has a key of 64 bits whose order is the order of the numbers. A quantile's two
//! elements are found digit by digit of their keys, most significant first.

use ebbtide_array::DType;
use ebbtide_array::program::{DIGIT_BITS, HISTOGRAM_BYTES, ROUNDS, STATE_BYTES};
use ebbtide_buffer::{Buffer, Pool};

use crate::KernelError;

/// Counts of one rank's histogram.
const DIGITS: usize = 1 << DIGIT_BITS;

/// What is known of the two elements around a quantile.
#[derive(Clone, Copy)]
struct State {
    elements: u64,
    nans: u64,
    ranks: [Rank; 2],
}

/// An element that is looked for: the digits found so far, and how many elements with the same
/// digits come before it.
#[derive(Clone, Copy, Default)]
struct Rank {
    digits: u64,
    before: u64,
}

impl State {
    fn read(state: &Buffer) -> Result<Self, KernelError> {
        match *state.elements::<u64>() {
            [elements, nans, low, low_before, high, high_before] => Ok(Self {
                elements,
                nans,
                ranks: [
                    Rank { digits: low, before: low_before },
                    Rank { digits: high, before: high_before },
                ],
            }),
            _ => Err(wrong(state, STATE_BYTES)),
        }
    }

    fn write(self, pool: &Pool) -> Buffer {
        let mut state = pool.take(6 * 8);
        let [low, high] = self.ranks;

        let words = [self.elements, self.nans, low.digits, low.before, high.digits, high.before];
        state.elements_mut::<u64>().copy_from_slice(&words);
        state
    }
}

fn wrong(given: &Buffer, expected: u64) -> KernelError {
    let expected = usize::try_from(expected).unwrap_or(usize::MAX);
    KernelError::Input { input: 0, bytes: given.len(), expected }
}

/// Orders as the number does. Of NaN there is one, after everything.
fn key(number: f64) -> u64 {
    let bits = number.to_bits();
    match (number.is_nan(), number.is_sign_negative()) {
        (true, _) => u64::MAX,
        (false, true) => !bits,
        (false, false) => bits | (1 << 63),
    }
}

fn number(key: u64) -> f64 {
    f64::from_bits(if key >> 63 == 1 { key & !(1 << 63) } else { !key })
}

/// Bits behind a round's digit.
fn shift(round: u8) -> u32 {
    64_u32.saturating_sub(DIGIT_BITS * (u32::from(round) + 1))
}

/// Bits of a round's digit.
fn width(round: u8) -> u32 {
    DIGIT_BITS.min(64 - DIGIT_BITS * u32::from(round).min(5))
}

/// For both ranks, how many elements that have the digits found so far have which next one.
pub(crate) fn histogram(
    elements: &Buffer,
    state: Option<&Buffer>,
    round: u8,
    pool: &Pool,
) -> Result<Buffer, KernelError> {
    check(round)?;
    let found =
        state.map(State::read).transpose()?.map_or([0, 0], |it| it.ranks.map(|it| it.digits));
    let mut output = pool.take((2 * DIGITS + 1) * 8);
    let counts = output.elements_mut::<u64>();
    counts.fill(0);
    let (low, rest) = counts.split_at_mut(DIGITS);
    let (high, nans) = rest.split_at_mut(DIGITS);
    let (shift, width) = (shift(round), width(round));
    let mask = (1_u64 << width) - 1;
    let above = |key: u64| key.checked_shr(shift + width).unwrap_or(0);
    for element in elements.elements::<f64>() {
        if element.is_nan() {
            nans[0] += 1;
            continue;
        }
        let key = key(*element);
        #[expect(clippy::cast_possible_truncation, reason = "a digit of a few bits")]
        let digit = (key >> shift & mask) as usize;
        low[digit] += u64::from(above(key) == found[0]);
        high[digit] += u64::from(above(key) == found[1]);
    }
    Ok(output)
}

/// The next digit of both ranks. Inputs: histograms of all chunks, and the state before, if any.
pub(crate) fn narrow(
    inputs: &[&Buffer],
    q: f64,
    round: u8,
    pool: &Pool,
) -> Result<Buffer, KernelError> {
    check(round)?;
    let (histograms, state) = match inputs.split_last() {
        Some((state, histograms)) if round > 0 => (histograms, Some(*state)),
        _ => (inputs, None),
    };
    let mut counts = vec![0_u64; 2 * DIGITS + 1];
    for histogram in histograms {
        if histogram.len() as u64 != HISTOGRAM_BYTES {
            return Err(wrong(histogram, HISTOGRAM_BYTES));
        }
        for (count, more) in counts.iter_mut().zip(histogram.elements::<u64>()) {
            *count += more;
        }
    }
    let mut state = match state {
        Some(state) => State::read(state)?,
        None => first(&counts, q),
    };
    for (rank, counts) in state.ranks.iter_mut().zip(counts.chunks_exact(DIGITS)) {
        let mut digit = 0;
        // The last digit that has elements takes what rounding leaves.
        while digit + 1 < DIGITS && rank.before >= counts[digit] {
            rank.before -= counts[digit];
            digit += 1;
        }
        rank.digits = rank.digits << width(round) | digit as u64;
    }
    Ok(state.write(pool))
}

/// The ranks of the elements on both sides of a quantile.
fn first(counts: &[u64], q: f64) -> State {
    let elements: u64 = counts[..DIGITS].iter().sum();
    let nans = counts[2 * DIGITS];
    let last = elements.saturating_sub(1);
    let (low, _) = position(elements, q);
    let rank = |before: u64| Rank { digits: 0, before: before.min(last) };
    State { elements, nans, ranks: [rank(low), rank(low + 1)] }
}

/// Where a quantile lies among so many elements: after how many, and how far towards the next.
fn position(elements: u64, q: f64) -> (u64, f64) {
    let at = elements.saturating_sub(1) as f64 * q;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the number of elements"
    )]
    let low = at.floor() as u64;
    (low, at - at.floor())
}

/// The quantile between the two elements that the last round found. Rounded as NumPy rounds it.
pub(crate) fn interpolate(inputs: &[&Buffer], q: f64, pool: &Pool) -> Result<Buffer, KernelError> {
    let state = inputs.first().ok_or(KernelError::Program("a missing input"))?;
    let state = State::read(state)?;
    let [low, high] = state.ranks.map(|rank| number(rank.digits));
    let (_, part) = position(state.elements, q);
    let between = high - low;
    let value = match (state.nans, part) {
        (1.., _) => f64::NAN,
        // Not by arithmetic: nothing times infinity is no number.
        _ if part == 0.0 || low.to_bits() == high.to_bits() => low,
        (0, 0.5..) => high - between * (1.0 - part),
        (0, _) => low + between * part,
    };
    Ok(pool.copy(&value.to_le_bytes()))
}

fn check(round: u8) -> Result<(), KernelError> {
    if round < ROUNDS { Ok(()) } else { Err(KernelError::Program("a round that is not there")) }
}

/// The largest `k` elements of several chunks, in descending order, or all where there are fewer. Of NaN there
/// is one: which of several stay would hang on the chunks.
pub(crate) fn largest(
    inputs: &[&Buffer],
    dtype: DType,
    k: u64,
    pool: &Pool,
) -> Result<Buffer, KernelError> {
    let is_float = dtype == DType::Float64;
    let order = |word: u64| {
        if is_float { key(f64::from_bits(word)) } else { word ^ (1 << 63) }
    };
    if inputs.iter().any(|input| input.len() % 8 != 0) {
        return Err(KernelError::Program("chunks of other elements"));
    }
    let one = |word: u64| {
        if is_float && f64::from_bits(word).is_nan() { f64::NAN.to_bits() } else { word }
    };
    let words = inputs.iter().flat_map(|input| input.elements::<u64>());
    let mut words: Vec<u64> = words.map(|word| one(*word)).collect();
    let k = usize::try_from(k).unwrap_or(usize::MAX).min(words.len());
    if k > 0 && k < words.len() {
        words.select_nth_unstable_by_key(k - 1, |word| std::cmp::Reverse(order(*word)));
        words.truncate(k);
    }
    words.sort_unstable_by_key(|word| std::cmp::Reverse(order(*word)));
    Ok(pool.copy(bytemuck::cast_slice(&words)))
}
