use super::{Array, ArrayError, BinaryOp, Distribution, ReduceOp};
use crate::DType;

fn normal(shape: &[u64], chunks: &[u64]) -> Array {
    Array::random(Distribution::Normal, (1, 0), shape, Some(chunks)).unwrap()
}

fn ints(values: &[i64]) -> Array {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Array::constant(DType::Int64, vec![values.len() as u64], bytes).unwrap()
}

#[test]
fn a_reduction_loses_its_axes() {
    let array = normal(&[6, 4, 2], &[3, 4, 1]);
    let sum = array.reduce(ReduceOp::Sum, Some(&[-1, 0])).unwrap();
    assert_eq!((sum.shape(), sum.dtype()), (vec![4], DType::Float64));
    assert_eq!(array.mean(None).unwrap().shape(), [] as [u64; 0]);
}

#[test]
fn integers_divide_as_floating_point() {
    let quotient = Array::binary(BinaryOp::Divide, &ints(&[1]), &ints(&[2])).unwrap();
    assert_eq!(quotient.dtype(), DType::Float64);
}

#[test]
fn mistakes_are_named_with_what_was_expected() {
    let (four, five) = (normal(&[4], &[2]), normal(&[5], &[2]));
    let messages = [
        Array::binary(BinaryOp::Add, &four, &five).unwrap_err().to_string(),
        Array::binary(BinaryOp::Add, &four, &ints(&[1])).unwrap_err().to_string(),
        four.reduce(ReduceOp::Sum, Some(&[1])).unwrap_err().to_string(),
        four.reduce(ReduceOp::Sum, Some(&[0, -1])).unwrap_err().to_string(),
        Array::random(Distribution::Normal, (1, 0), &[4], Some(&[0])).unwrap_err().to_string(),
        Array::random(Distribution::Integers { low: 3, high: 3 }, (1, 0), &[4], None)
            .unwrap_err()
            .to_string(),
        Array::constant(DType::Float32, vec![0], vec![]).unwrap_err().to_string(),
        four.take(&ints(&[1]), 0).unwrap_err().to_string(),
        five.rechunk(&[5]).unwrap().take(&four, 0).unwrap_err().to_string(),
        four.slice(&[(2, 3, 1)]).unwrap_err().to_string(),
        four.matmul(&five).unwrap_err().to_string(),
        four.quantile(1.5).unwrap_err().to_string(),
        four.topk(5).unwrap_err().to_string(),
    ];
    insta::assert_yaml_snapshot!(messages);
}

#[test]
fn an_array_too_large_to_count_is_refused() {
    let shape = [u64::MAX, 2];
    let array = Array::random(Distribution::Uniform, (1, 0), &shape, Some(&shape));
    assert_eq!(array.unwrap_err(), ArrayError::TooLarge(shape.to_vec()));
}
