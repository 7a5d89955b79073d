//! Random numbers by counter: element `i` is a function of seed, stream and `i` alone.
//!
//! Philox4x64-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
//! (SC 2011): block `i / 4` is encrypted with the key (seed, stream); element `i` is its word
//! `i % 4`. NumPy's `Philox(key=[seed, stream], counter=2**256 - 1)` gives the same words.

use ebbtide_array::Distribution;

const ROUNDS: usize = 10;
const MULTIPLIERS: [u64; 2] = [0xD2E7_470E_E14C_6C93, 0xCA5A_8263_9512_1157];
const WEYL: [u64; 2] = [0x9E37_79B9_7F4A_7C15, 0xBB67_AE85_84CA_A73B];

/// One block of Philox4x64-10.
#[inline(always)]
pub fn philox(counter: [u64; 4], key: [u64; 2]) -> [u64; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for round in 0..ROUNDS {
        if round > 0 {
            k0 = k0.wrapping_add(WEYL[0]);
            k1 = k1.wrapping_add(WEYL[1]);
        }
        let (high0, low0) = multiply(MULTIPLIERS[0], c0);
        let (high1, low1) = multiply(MULTIPLIERS[1], c2);
        (c0, c1, c2, c3) = (high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0);
    }
    [c0, c1, c2, c3]
}

#[inline(always)]
fn multiply(a: u64, b: u64) -> (u64, u64) {
    let product = u128::from(a) * u128::from(b);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of a product")]
    let halves = ((product >> 64) as u64, product as u64);
    halves
}

/// Fills `words` with the words from element `first` on.
#[inline(always)]
pub(crate) fn fill_words((seed, stream): (u64, u64), first: u64, words: &mut [u64]) {
    let mut element = first;
    let mut rest = words;
    while !rest.is_empty() {
        let block = philox([element / 4, 0, 0, 0], [seed, stream]);
        let within = (element % 4) as usize;
        let count = (4 - within).min(rest.len());
        let (now, later) = rest.split_at_mut(count);
        now.copy_from_slice(&block[within..within + count]);
        rest = later;
        element += count as u64;
    }
}

/// Turns words into elements of a distribution, in place: bits of `f64`, or integers.
#[inline(always)]
pub(crate) fn distribute(distribution: Distribution, words: &mut [u64]) {
    match distribution {
        Distribution::Uniform => {
            for word in words {
                *word = ((*word >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)).to_bits();
            }
        }
        Distribution::Normal => {
            for word in words {
                // The middle of one of 2⁵² equal parts of (0, 1): never 0 and never 1.
                let uniform = ((*word >> 12) as f64 + 0.5) * (1.0 / (1_u64 << 52) as f64);
                *word = normal_quantile(uniform).to_bits();
            }
        }
        Distribution::Integers { low, high } => {
            let range = high.wrapping_sub(low).cast_unsigned();
            for word in words {
                // Lemire's multiply-shift. Its bias is below range / 2⁶⁴.
                *word = multiply(*word, range).0.wrapping_add(low.cast_unsigned());
            }
        }
    }
}

/// The normal distribution's quantile at `p` in (0, 1), to about 1 part in 10¹⁶: algorithm AS 241,
/// PPND16 (Wichura, Applied Statistics 37, 1988).
#[inline(always)]
pub fn normal_quantile(p: f64) -> f64 {
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        let r = 0.180_625 - q * q;
        return q * polynomial(r, CENTRAL.0) / polynomial(r, CENTRAL.1);
    }
    tail(p, q)
}

#[inline(never)]
fn tail(p: f64, q: f64) -> f64 {
    let r = libm::sqrt(-libm::log(if q < 0.0 { p } else { 1.0 - p }));
    let (r, (above, below)) = if r <= 5.0 { (r - 1.6, MIDDLE) } else { (r - 5.0, FAR) };
    let quantile = polynomial(r, above) / polynomial(r, below);
    if q < 0.0 { -quantile } else { quantile }
}

/// Horner's scheme, highest coefficient first, without contraction.
#[inline(always)]
fn polynomial(x: f64, coefficients: [f64; 8]) -> f64 {
    let mut sum = coefficients[0];
    for coefficient in &coefficients[1..] {
        sum = sum * x + coefficient;
    }
    sum
}

/// Numerator and denominator.
const CENTRAL: ([f64; 8], [f64; 8]) = (
    [
        2_509.080_928_730_122_7,
        33_430.575_583_588_13,
        67_265.770_927_008_7,
        45_921.953_931_549_87,
        13_731.693_765_509_46,
        1_971.590_950_306_551_3,
        133.141_667_891_784_38,
        3.387_132_872_796_366_5,
    ],
    [
        5_226.495_278_852_854,
        28_729.085_735_721_943,
        39_307.895_800_092_71,
        21_213.794_301_586_597,
        5_394.196_021_424_751,
        687.187_007_492_057_9,
        42.313_330_701_600_91,
        1.0,
    ],
);

/// Numerator and denominator.
const MIDDLE: ([f64; 8], [f64; 8]) = (
    [
        0.000_774_545_014_278_341_4,
        0.022_723_844_989_269_184,
        0.241_780_725_177_450_6,
        1.270_458_252_452_368_4,
        3.647_848_324_763_204_5,
        5.769_497_221_460_691,
        4.630_337_846_156_546,
        1.423_437_110_749_683_5,
    ],
    [
        1.050_750_071_644_416_9e-9,
        0.000_547_593_808_499_534_5,
        0.015_198_666_563_616_457,
        0.148_103_976_427_480_08,
        0.689_767_334_985_1,
        1.676_384_830_183_803_8,
        2.053_191_626_637_759,
        1.0,
    ],
);

/// Numerator and denominator.
const FAR: ([f64; 8], [f64; 8]) = (
    [
        2.010_334_399_292_288_1e-7,
        2.711_555_568_743_487_6e-5,
        0.001_242_660_947_388_078_4,
        0.026_532_189_526_576_124,
        0.296_560_571_828_504_87,
        1.784_826_539_917_291_3,
        5.463_784_911_164_114,
        6.657_904_643_501_103,
    ],
    [
        2.044_263_103_389_939_7e-15,
        1.421_511_758_316_446e-7,
        1.846_318_317_510_054_8e-5,
        0.000_786_869_131_145_613_3,
        0.014_875_361_290_850_615,
        0.136_929_880_922_735_8,
        0.599_832_206_555_888,
        1.0,
    ],
);
