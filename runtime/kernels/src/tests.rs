use std::collections::BTreeMap;

use ebbtide_array::lower::lower;
use ebbtide_array::program::Program;
use ebbtide_array::{Array, BinaryOp, CompareOp, DType, Distribution, ReduceOp};
use ebbtide_buffer::{Buffer, Pool};
use ebbtide_core::{GroupId, TaskId};
use proptest::prelude::*;

use crate::level::Level;
use crate::random::{normal_quantile, philox};
use crate::{assemble, execute};

/// Runs every task of an array's groups in order and puts the result together.
fn compute(level: Level, array: &Array) -> Vec<u8> {
    let pool = Pool::new(0);
    let lowered = lower(std::slice::from_ref(array), GroupId(0), &|_, _, _, _| None).unwrap();
    let mut chunks: BTreeMap<TaskId, Buffer> = BTreeMap::new();
    for group in &lowered.groups {
        let program = Program::decode(&group.program).unwrap();
        for index in 0..group.space.tasks() {
            let mut inputs = Vec::new();
            for input in &group.inputs {
                let producer = lowered.groups.iter().find(|it| it.id == input.group).unwrap();
                let needed = input.relation.producers(&producer.space, &group.space, index);
                inputs.extend(needed.into_iter().map(|it| &chunks[&producer.task(it)]));
            }
            let place = group.space.unravel(index);
            let chunk = execute(level, &program, &place, &inputs, &pool).unwrap();
            assert!(chunk.len() as u64 <= group.cost.output_bytes, "{program:?}");
            chunks.insert(group.task(index), chunk);
        }
    }
    let (grid, item) = (&array.node().grid, array.dtype().item_bytes());
    let mut whole = vec![0; usize::try_from(array.shape().iter().product::<u64>() * item).unwrap()];
    let space = grid.space().unwrap();
    for index in 0..space.tasks() {
        let chunk = &chunks[&TaskId { group: lowered.targets[0], index }];
        let at = grid.chunk(&space.unravel(index));
        assemble::place(&mut whole, &array.shape(), chunk, &at, usize::try_from(item).unwrap());
    }
    whole
}

fn floats(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(8).map(|it| f64::from_le_bytes(it.try_into().unwrap())).collect()
}

fn level() -> Level {
    Level::detect().unwrap()
}

fn random(distribution: Distribution, shape: &[u64], chunks: &[u64]) -> Array {
    Array::random(distribution, (7, 3), shape, Some(chunks)).unwrap()
}

/// Known answers of the authors' Random123 library, `kat_vectors`, philox4x64 10.
#[test]
fn philox_gives_the_published_answers() {
    let ones = u64::MAX;
    for (counter, key, answer) in [
        (
            [0; 4],
            [0; 2],
            [
                0x1655_4d9e_ca36_314c,
                0xdb20_fe9d_672d_0fdc,
                0xd7e7_72ce_e186_176b,
                0x7e68_b68a_ec7b_a23b,
            ],
        ),
        (
            [ones; 4],
            [ones; 2],
            [
                0x87b0_92c3_013f_e90b,
                0x438c_3c67_be8d_0224,
                0x9cc7_d7c6_9cd7_77b6,
                0xa09c_aebf_594f_0ba0,
            ],
        ),
        (
            [
                0x243f_6a88_85a3_08d3,
                0x1319_8a2e_0370_7344,
                0xa409_3822_299f_31d0,
                0x082e_fa98_ec4e_6c89,
            ],
            [0x4528_21e6_38d0_1377, 0xbe54_66cf_34e9_0c6c],
            [
                0xa528_f454_03e6_1d95,
                0x38c7_2dbd_566e_9788,
                0xa5a1_610e_72fd_18b5,
                0x57bd_43b5_e52b_7fe6,
            ],
        ),
    ] {
        assert_eq!(philox(counter, key), answer);
    }
}

/// Values of the normal quantile to 17 digits, from tables of the distribution.
#[test]
fn the_normal_quantile_is_right_in_all_three_regions() {
    for (p, quantile) in [
        (0.5, 0.0),
        (0.975, 1.959_963_984_540_054),
        (0.001, -3.090_232_306_167_813_5),
        (1e-20, -9.262_340_089_798_408),
    ] {
        let ours = normal_quantile(p);
        assert!((ours - quantile).abs() <= 4e-16 * quantile.abs(), "{p}: {ours}");
    }
}

#[test]
fn random_elements_do_not_depend_on_the_chunks() {
    for distribution in [
        Distribution::Uniform,
        Distribution::Normal,
        Distribution::Integers { low: -3, high: 1000 },
    ] {
        let whole = compute(level(), &random(distribution, &[37, 53], &[37, 53]));
        for chunks in [[1, 53], [37, 1], [5, 7], [36, 52]] {
            assert_eq!(compute(level(), &random(distribution, &[37, 53], &chunks)), whole);
        }
    }
}

#[test]
fn a_normal_sample_has_the_moments_of_the_distribution() {
    let sample = floats(&compute(level(), &random(Distribution::Normal, &[200_000], &[50_000])));
    let n = sample.len() as f64;
    let mean = sample.iter().sum::<f64>() / n;
    let variance = sample.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    // Five standard errors of each.
    assert!(mean.abs() < 5.0 / n.sqrt(), "{mean}");
    assert!((variance - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "{variance}");
}

#[test]
fn integers_stay_within_their_bounds_even_the_widest() {
    let bytes = compute(
        level(),
        &random(Distribution::Integers { low: i64::MIN, high: i64::MAX }, &[1000], &[1000]),
    );
    let values: Vec<i64> =
        bytes.chunks_exact(8).map(|it| i64::from_le_bytes(it.try_into().unwrap())).collect();
    assert!(
        values.iter().any(|it| *it < i64::MIN / 2) && values.iter().any(|it| *it > i64::MAX / 2)
    );
    assert!(values.iter().all(|it| *it < i64::MAX));
}

#[test]
fn a_program_that_reads_outside_its_input_is_refused() {
    let one = Array::constant(DType::Int64, vec![3], vec![0; 24]).unwrap();
    let both = Array::binary(BinaryOp::Add, &one, &one).unwrap();
    let lowered = lower(&[both], GroupId(0), &|_, _, _, _| None).unwrap();
    let program = Program::decode(&lowered.groups[1].program).unwrap();
    let pool = Pool::new(0);
    let short = pool.take(16);
    assert!(execute(level(), &program, &[0], &[&short], &pool).is_err());
    assert!(execute(level(), &program, &[0], &[], &pool).is_err());
    assert!(execute(level(), &program, &[1], &[&pool.take(24)], &pool).is_err());
    assert!(execute(level(), &program, &[], &[&pool.take(24)], &pool).is_err());
}

#[test]
fn a_sum_of_nothing_is_zero_and_a_product_is_one() {
    let nothing = random(Distribution::Uniform, &[0], &[1]);
    let sum = nothing.reduce(ReduceOp::Sum, None).unwrap();
    let product = nothing.reduce(ReduceOp::Prod, None).unwrap();
    assert_eq!(compute(level(), &sum), 0.0_f64.to_le_bytes(), "and not the negative one");
    assert_eq!(floats(&compute(level(), &product)), [1.0]);
}

/// An expression over three axes with every kind of step, reduced over some of the axes.
fn expressions() -> impl Strategy<Value = Array> {
    let extents = prop::collection::vec((0_u64..40, 1_u64..40), 3);
    let axes = prop::sample::subsequence(vec![0_i64, 1, 2], 0..=3);
    (extents, axes, any::<bool>()).prop_map(|(extents, axes, is_product)| {
        let shape: Vec<u64> = extents.iter().map(|(extent, _)| *extent).collect();
        let chunks: Vec<u64> = extents.iter().map(|(_, chunk)| *chunk).collect();
        let normal = random(Distribution::Normal, &shape, &chunks);
        let row = random(Distribution::Integers { low: 1, high: 9 }, &shape[2..], &chunks[2..]);
        let row = row.cast(DType::Float64).unwrap();
        let scaled = Array::binary(BinaryOp::Divide, &normal, &row).unwrap();
        let sum = Array::binary(BinaryOp::Add, &scaled, &normal).unwrap();
        let column = random(Distribution::Uniform, &[shape[1], 1], &[chunks[1], 1]);
        let sum = Array::binary(BinaryOp::Subtract, &sum, &column).unwrap();
        let op = if is_product { ReduceOp::Prod } else { ReduceOp::Sum };
        sum.reduce(op, Some(&axes)).unwrap()
    })
}

/// One of every other operation, and sums of more than one block.
fn operations() -> Vec<Array> {
    let normal = random(Distribution::Normal, &[3000], &[1700]);
    let places = random(Distribution::Integers { low: -100, high: 100 }, &[40, 30], &[20, 30]);
    let source = random(Distribution::Uniform, &[100, 7], &[100, 7]);
    let matrix = random(Distribution::Normal, &[70, 300], &[30, 300]);
    let small = random(Distribution::Uniform, &[300, 5], &[300, 5]);
    let half = Array::constant(DType::Float64, vec![], 0.5_f64.to_le_bytes().to_vec()).unwrap();
    let large = Array::compare(CompareOp::Less, &half, &normal).unwrap();
    let part = normal.slice(&[(3, 900, 3)]).unwrap();
    vec![
        normal.reduce(ReduceOp::Sum, None).unwrap(),
        normal.mean(None).unwrap(),
        matrix.reduce(ReduceOp::Sum, Some(&[0])).unwrap(),
        matrix.matmul(&small).unwrap(),
        source.take(&places, 0).unwrap(),
        large.cast(DType::Float64).unwrap(),
        large.cast(DType::Int64).unwrap().reduce(ReduceOp::Sum, None).unwrap(),
        part.rechunk(&[77]).unwrap(),
        normal.quantile(0.99).unwrap(),
        normal.topk(10).unwrap(),
        random(Distribution::Integers { low: 3, high: 77 }, &[1000], &[300]),
    ]
}

#[test]
fn what_meets_along_an_empty_axis_and_is_reduced_over_it_is_the_sum_of_nothing() {
    for (left, right) in [([3, 0], [3, 1]), ([3, 1], [3, 0]), ([3, 0], [1, 1]), ([3, 0], [3, 0])] {
        let of = |shape: [u64; 2]| random(Distribution::Uniform, &shape, &[2, 1]);
        let sum = Array::binary(BinaryOp::Add, &of(left), &of(right)).unwrap();
        let nothing = sum.reduce(ReduceOp::Sum, Some(&[1])).unwrap();
        assert_eq!(floats(&compute(level(), &nothing)), [0.0; 3]);
    }
}

#[test]
fn every_operation_gives_the_same_bits_at_every_level() {
    let levels = Level::all().unwrap();
    for array in operations() {
        let bits: Vec<Vec<u8>> = levels.iter().map(|level| compute(*level, &array)).collect();
        assert!(bits.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", array.node().op);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_level_gives_the_same_bits(array in expressions()) {
        let levels = Level::all().unwrap();
        let first = compute(levels[0], &array);
        for level in &levels[1..] {
            prop_assert_eq!(&compute(*level, &array), &first);
        }
    }

    #[test]
    fn a_sum_agrees_with_a_plain_one(
        extents in prop::collection::vec((1_u64..60, 1_u64..60), 1..4),
        axis in 0_usize..3,
    ) {
        let shape: Vec<u64> = extents.iter().map(|(extent, _)| *extent).collect();
        let chunks: Vec<u64> = extents.iter().map(|(_, chunk)| *chunk).collect();
        let axis = axis % shape.len();
        let array = random(Distribution::Uniform, &shape, &chunks);
        let elements = floats(&compute(level(), &array));
        let sum = array.reduce(ReduceOp::Sum, Some(&[i64::try_from(axis).unwrap()])).unwrap();
        let ours = floats(&compute(level(), &sum));
        let inner: u64 = shape[axis + 1..].iter().product();
        let mut plain = vec![0.0; ours.len()];
        for (nth, element) in elements.iter().enumerate() {
            let nth = nth as u64;
            let at = nth / (inner * shape[axis]) * inner + nth % inner;
            plain[usize::try_from(at).unwrap()] += element;
        }
        for (ours, plain) in ours.iter().zip(&plain) {
            prop_assert!((ours - plain).abs() <= 1e-12 * plain.abs(), "{ours} {plain}");
        }
    }
}
