use proptest::prelude::*;

use super::{AxisRelation, GroupError, Overlap, Relation, Space};

#[test]
fn a_space_without_axes_has_one_task() {
    let space = Space::new(vec![]).unwrap();
    assert_eq!((space.tasks(), space.unravel(0)), (1, vec![]));
}

#[test]
fn a_space_that_is_empty_or_too_large_is_refused() {
    assert_eq!(Space::new(vec![3, 0]), Err(GroupError::Empty(vec![3, 0])));
    let large = vec![1 << 16, 1 << 16];
    assert_eq!(Space::new(large.clone()), Err(GroupError::TooManyTasks(large)));
}

#[test]
fn a_level_of_a_tree_takes_neighbours_and_fewer_at_the_end() {
    let (leaves, parents) = (Space::new(vec![7]).unwrap(), Space::new(vec![3]).unwrap());
    let level = Relation(vec![AxisRelation::Level { axis: 0, arity: 3 }]);
    level.check(&leaves, &parents).unwrap();
    assert_eq!(level.producers(&leaves, &parents, 0), [0, 1, 2]);
    assert_eq!(level.producers(&leaves, &parents, 2), [6]);
}

#[test]
fn a_relation_that_does_not_fit_is_refused() {
    let (three, four) = (Space::new(vec![3]).unwrap(), Space::new(vec![4]).unwrap());
    for relation in [
        Relation(vec![]),
        Relation(vec![AxisRelation::Same { axis: 0 }]),
        Relation(vec![AxisRelation::Same { axis: 1 }]),
        Relation(vec![AxisRelation::At { index: 3 }]),
        Relation(vec![AxisRelation::Level { axis: 0, arity: 0 }]),
    ] {
        assert!(relation.check(&three, &four).is_err(), "{relation:?}");
    }
}

/// Chunks of the consumer of 1, 2, 3, 1, … elements, every `step`th of a producer whose chunks are
/// as even as they can be.
fn overlap(axis: u8, consumers: u32, producers: u32, step: u32) -> Overlap {
    let (start, step) = (u64::from(producers % 3), u64::from(step));
    let consumer_ends = (0..u64::from(consumers)).scan(0, |end, nth| {
        *end += 1 + nth % 3;
        Some(*end)
    });
    let consumer_ends: Vec<u64> = consumer_ends.collect();
    let elements = start + consumer_ends.last().unwrap() * step + u64::from(producers);
    let ends = (1..=u64::from(producers)).map(|nth| elements * nth / u64::from(producers));
    Overlap {
        axis,
        producer_ends: ends.collect(),
        consumer_ends: consumer_ends.into(),
        start,
        step,
    }
}

/// Two spaces and a relation that fits them.
fn related() -> impl Strategy<Value = (Relation, Space, Space)> {
    let consumer = prop::collection::vec(1_u32..5, 1..4);
    (consumer, prop::collection::vec((0_u8..5, 0_u8..8, 1_u32..4, 1_u32..6), 0..4)).prop_map(
        |(consumer, axes)| {
            let mut producer = Vec::new();
            let relation = axes
                .into_iter()
                .map(|(kind, axis, arity, extent)| {
                    let axis = axis % u8::try_from(consumer.len()).unwrap();
                    let along = consumer[usize::from(axis)];
                    let (extent, relation) = match kind {
                        0 => (along, AxisRelation::Same { axis }),
                        1 => (extent, AxisRelation::At { index: extent / 2 }),
                        2 => (extent, AxisRelation::All),
                        3 => (along * arity, AxisRelation::Level { axis, arity }),
                        _ => (extent, AxisRelation::Overlap(overlap(axis, along, extent, arity))),
                    };
                    producer.push(extent);
                    relation
                })
                .collect();
            (Relation(relation), Space::new(producer).unwrap(), Space::new(consumer).unwrap())
        },
    )
}

proptest! {
    #[test]
    fn consumers_is_the_inverse_of_producers((relation, producer, consumer) in related()) {
        relation.check(&producer, &consumer).unwrap();
        for from in 0..producer.tasks() {
            let forward: Vec<u32> = (0..consumer.tasks())
                .filter(|to| relation.producers(&producer, &consumer, *to).contains(&from))
                .collect();
            prop_assert_eq!(relation.consumers(&producer, &consumer, from), forward);
        }
        let most = (0..consumer.tasks())
            .map(|to| relation.producers(&producer, &consumer, to).len() as u64)
            .max();
        prop_assert_eq!(most, Some(relation.producers_max(&producer)));
    }
}
