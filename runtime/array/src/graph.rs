//! Expressions as they travel: a list of operations, each after its inputs, none twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Array, ArrayError, Op};

/// Operations that a graph may have.
const NODES_MAX: usize = 1 << 20;

/// Several arrays and everything that they are made of.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Graph {
    nodes: Vec<(Op, Vec<u32>)>,
    targets: Vec<u32>,
}

/// A graph that came over the wire and means nothing.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// The bytes are not a graph.
    #[error("not a graph of array operations: {0}")]
    Encoding(#[from] postcard::Error),
    /// An input that does not stand before its user.
    #[error("operation {0} takes an input that does not stand before it")]
    Order(usize),
    /// Too many operations.
    #[error("a graph of {0} operations; at most {NODES_MAX} are taken")]
    TooLong(usize),
    /// An operation that means nothing.
    #[error(transparent)]
    Array(#[from] ArrayError),
}

impl Graph {
    /// The graph of these arrays. What is written twice alike stands there once.
    pub fn of(targets: &[Array]) -> Self {
        let mut collector = Collector::default();
        let targets = targets.iter().map(|target| collector.place(target)).collect();
        Self { nodes: collector.nodes, targets }
    }

    /// For each target, which operation makes it: equal targets are made by one.
    pub fn targets(&self) -> &[u32] {
        &self.targets
    }

    /// The jobs that keep what it takes.
    pub fn held_jobs(&self) -> impl Iterator<Item = u64> {
        let job = |op: &Op| if let Op::Held { job, .. } = op { Some(*job) } else { None };
        self.nodes.iter().filter_map(move |(op, _)| job(op))
    }

    /// Whether everything that it takes as kept is of this session.
    pub fn is_of_session(&self, own: u64) -> bool {
        let is_own = |(op, _): &(Op, _)| !matches!(op, Op::Held { session, .. } if *session != own);
        self.nodes.iter().all(is_own)
    }

    /// Bytes for the wire.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a graph is plain data")
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, GraphError> {
        let graph: Self = postcard::from_bytes(bytes)?;
        if graph.nodes.len() > NODES_MAX {
            return Err(GraphError::TooLong(graph.nodes.len()));
        }
        Ok(graph)
    }

    /// The arrays again, every operation checked anew.
    pub fn arrays(&self) -> Result<Vec<Array>, GraphError> {
        let mut arrays: Vec<Array> = Vec::new();
        let find = |arrays: &[Array], at: u32| arrays.get(at as usize).cloned();
        for (nth, (op, inputs)) in self.nodes.iter().enumerate() {
            let inputs: Option<Vec<Array>> =
                inputs.iter().map(|input| find(&arrays, *input)).collect();
            let inputs = inputs.ok_or(GraphError::Order(nth))?;
            arrays.push(Array::new(op.clone(), inputs)?);
        }
        let targets: Option<Vec<Array>> =
            self.targets.iter().map(|target| find(&arrays, *target)).collect();
        targets.ok_or(GraphError::Order(self.nodes.len()))
    }
}

#[derive(Default)]
struct Collector {
    nodes: Vec<(Op, Vec<u32>)>,
    places: BTreeMap<(Op, Vec<u32>), u32>,
    seen: BTreeMap<usize, u32>,
}

impl Collector {
    /// Depth first without recursion: expressions may be thousands of operations deep.
    fn place(&mut self, target: &Array) -> u32 {
        let mut path = vec![target.clone()];
        while let Some(array) = path.last().cloned() {
            let inputs = &array.node().inputs;
            let unseen =
                inputs.iter().find(|input| !self.seen.contains_key(&input.address())).cloned();
            if let Some(input) = unseen {
                path.push(input);
                continue;
            }
            let inputs = inputs.iter().map(|input| self.seen[&input.address()]).collect();
            let at = self.intern(array.node().op.clone(), inputs);
            self.seen.insert(array.address(), at);
            path.pop();
        }
        self.seen[&target.address()]
    }

    fn intern(&mut self, op: Op, inputs: Vec<u32>) -> u32 {
        let next = u32::try_from(self.nodes.len()).expect("an expression fits the memory");
        let node = (op, inputs);
        let at = *self.places.entry(node.clone()).or_insert(next);
        if at == next {
            self.nodes.push(node);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::Graph;
    use crate::{Array, BinaryOp, Distribution};

    fn normal(seed: u64) -> Array {
        Array::random(Distribution::Normal, (seed, 0), &[4], None).unwrap()
    }

    #[test]
    fn what_is_written_twice_alike_stands_once() {
        let sum = Array::binary(BinaryOp::Add, &normal(1), &normal(1)).unwrap();
        assert_eq!(Graph::of(&[sum]).nodes.len(), 2);
    }

    #[test]
    fn a_graph_survives_the_wire() {
        let sum = Array::binary(BinaryOp::Add, &normal(1), &normal(2)).unwrap();
        let graph = Graph::of(&[sum]);
        let read = Graph::decode(&graph.encode()).unwrap();
        assert_eq!(read, graph);
        assert_eq!(Graph::of(&read.arrays().unwrap()), graph);
    }

    #[test]
    fn a_deep_expression_needs_no_deep_stack() {
        let mut sum = normal(1);
        for _ in 0..100_000 {
            sum = Array::binary(BinaryOp::Add, &sum, &sum).unwrap();
        }
        assert_eq!(Graph::of(std::slice::from_ref(&sum)).nodes.len(), 100_001);
    }

    #[test]
    fn an_input_that_comes_later_is_refused() {
        let mut graph = Graph::of(&[normal(1)]);
        graph.nodes[0].1 = vec![0];
        assert!(graph.arrays().is_err());
    }
}
