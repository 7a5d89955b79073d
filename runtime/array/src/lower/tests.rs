use std::collections::BTreeMap;

use ebbtide_core::GroupId;

use super::{ENDED_MAX, axis_arity, lower};
use crate::program::{Program, Step};
use crate::{Array, BinaryOp, Call, DType, Distribution, Op, ReduceOp};

fn normal(shape: &[u64], chunks: &[u64]) -> Array {
    Array::random(Distribution::Normal, (1, 0), shape, Some(chunks)).unwrap()
}

#[test]
fn a_mean_is_one_group_of_leaves_a_tree_and_a_division() {
    let lowered =
        lower(&[normal(&[1000], &[1]).mean(None).unwrap()], GroupId(7), &|_, _, _, _| None)
            .unwrap();
    let tasks: Vec<u32> = lowered.groups.iter().map(|it| it.space.tasks()).collect();
    assert_eq!(tasks, [1000, 63, 4, 1, 1]);
    assert_eq!(lowered.targets, [GroupId(11)]);
}

#[test]
fn what_has_one_user_is_made_where_it_is_used() {
    let (a, b) = (normal(&[4], &[2]), normal(&[4], &[2]));
    let sum = Array::binary(BinaryOp::Add, &a, &b).unwrap();
    let lowered = lower(&[sum], GroupId(0), &|_, _, _, _| None).unwrap();
    assert_eq!(lowered.groups.len(), 1);
}

#[test]
fn what_has_two_users_is_made_once() {
    let array = normal(&[4], &[2]);
    let square = Array::binary(BinaryOp::Multiply, &array, &array).unwrap();
    let lowered = lower(&[square], GroupId(0), &|_, _, _, _| None).unwrap();
    assert_eq!(lowered.groups.len(), 2);
}

#[test]
fn a_row_is_read_by_every_chunk_that_it_is_repeated_for() {
    let row = normal(&[4], &[2]);
    let sum = Array::binary(BinaryOp::Add, &normal(&[6, 4], &[3, 2]), &row).unwrap();
    let lowered = lower(&[sum], GroupId(0), &|_, _, _, _| None).unwrap();
    let Ok(Program::Map(map)) = Program::decode(&lowered.groups[1].program) else {
        panic!("the sum is a map")
    };
    let has_axis = map.steps.iter().find_map(|step| {
        if let Step::Input { has_axis, .. } = step { Some(has_axis.clone()) } else { None }
    });
    assert_eq!(has_axis, Some(vec![false, true]));
}

#[test]
fn calls_of_one_function_are_of_one_kind_and_those_of_another_are_not() {
    let calls = [(1, "f"), (2, "f"), (3, "g")].map(|(number, function)| {
        let call = Call {
            name: "named alike".to_owned(),
            number,
            function: function.into(),
            arguments: number.to_le_bytes().to_vec(),
            python: (3, 11),
            dtype: DType::Object,
            shape: vec![],
            memory_bytes: 0,
            resources: BTreeMap::new(),
            retries: 0,
        };
        Array::new(Op::Call(call), vec![]).unwrap()
    });
    let lowered = lower(&calls, GroupId(0), &|_, _, _, _| None).unwrap();
    let kinds: Vec<Option<u64>> = lowered.groups.iter().map(|group| group.kind).collect();
    assert!(kinds[0].is_some() && kinds[0] == kinds[1] && kinds[1] != kinds[2], "{kinds:?}");
    let sum = lower(&[normal(&[4], &[4])], GroupId(0), &|_, _, _, _| None).unwrap();
    assert_eq!(sum.groups[0].kind, None);
}

#[test]
fn an_empty_selection_of_axes_is_no_reduction() {
    let same = normal(&[4], &[2]).reduce(ReduceOp::Sum, Some(&[])).unwrap();
    assert_eq!(lower(&[same], GroupId(0), &|_, _, _, _| None).unwrap().groups[0].space.tasks(), 2);
}

#[test]
fn the_arity_is_shared_among_the_axes() {
    let of = |axes| axis_arity(axes, 8);
    assert_eq!((of(1), of(2), of(3), of(9)), (16, 4, 2, 2));
}

#[test]
fn a_tree_of_large_chunks_is_narrow() {
    let of = |megabytes: u64| axis_arity(1, megabytes << 20);
    assert_eq!((of(8), of(9), of(64), of(1000)), (16, 14, 2, 2));
    assert_eq!(axis_arity(2, 20 << 20), 2);
}

#[test]
fn what_a_task_holds_beside_its_output_is_counted() {
    let of = |array: Array| lower(&[array], GroupId(0), &|_, _, _, _| None).unwrap().groups[0].cost;
    // 500 numbers of 8 bytes, in one portion: a register for its one step, and two more.
    let random = of(normal(&[1000], &[500]));
    assert_eq!((random.output_bytes, random.scratch_bytes), (4000, 3 * 4000));
    // Its elements and what tells them apart, 16 bytes each, of which the three largest are left.
    let largest = of(normal(&[1000], &[500]).topk(3).unwrap());
    assert_eq!((largest.output_bytes, largest.scratch_bytes), (24, 3 * 4000 + 500 * 16));
}

#[test]
fn reductions_beside_one_another_hold_a_few_rows_each() {
    let sum = |seed| {
        let shape = [1000, 1000];
        let rows = Array::random(Distribution::Normal, (seed, 0), &shape, Some(&[500, 1000]));
        rows.unwrap().reduce(ReduceOp::Sum, Some(&[1])).unwrap()
    };
    let two = Array::binary(BinaryOp::Add, &sum(1), &sum(2)).unwrap();
    let three = Array::binary(BinaryOp::Add, &two, &sum(3)).unwrap();
    let lowered = lower(&[three], GroupId(0), &|_, _, _, _| None).unwrap();
    assert_eq!(lowered.groups.len(), 1);
    // Four rows of each array, and room for four more twice; and of each row three sums and two sums of those.
    assert_eq!(lowered.groups[0].cost.scratch_bytes, 8 * (5 * 4000 + 5 * 4));
}

#[test]
fn a_map_ends_a_few_axes_and_the_next_one_goes_on() {
    let column = |seed| {
        let rows = Array::random(Distribution::Normal, (seed, 0), &[4, 3], Some(&[2, 3])).unwrap();
        rows.reduce(ReduceOp::Sum, Some(&[1])).unwrap()
    };
    let all = (1..300)
        .fold(column(0), |sum, seed| Array::binary(BinaryOp::Add, &sum, &column(seed)).unwrap());
    let lowered = lower(&[all], GroupId(0), &|_, _, _, _| None).unwrap();
    assert_eq!(lowered.groups.len(), 300_usize.div_ceil(ENDED_MAX + 1));
    for group in &lowered.groups {
        let Ok(Program::Map(map)) = Program::decode(&group.program) else { panic!("it is a map") };
        assert!(map.grid.axes() <= ENDED_MAX + 2, "{}", map.grid.axes());
    }
}
