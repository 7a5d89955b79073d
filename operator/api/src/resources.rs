//! What one process may use.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::Amount;

const CPU: &str = "cpu";
const MEMORY: &str = "memory";

/// Most kinds of resources that one process may ask for.
const KINDS_MAX: usize = 16;

/// Longest name of a kind: those of all groups of a cluster fit one line of the contract.
const KIND_MAX: usize = 128;

/// What one process may use, by the kind of resource: at least `cpu` and `memory`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Resources(BTreeMap<String, Amount>);

impl Resources {
    /// Cores and bytes, and nothing else.
    pub fn new(cpu: Amount, memory: Amount) -> Self {
        Self(BTreeMap::from([(CPU.to_owned(), cpu), (MEMORY.to_owned(), memory)]))
    }

    /// Cores.
    pub fn cpu(&self) -> &Amount {
        &self.0[CPU]
    }

    /// Memory.
    pub fn memory(&self) -> &Amount {
        &self.0[MEMORY]
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> u64 {
        whole(self.memory())
    }

    /// What there is beside cores and memory, in whole numbers.
    pub fn others(&self) -> BTreeMap<String, u64> {
        let others = self.0.iter().filter(|(kind, _)| ![CPU, MEMORY].contains(&kind.as_str()));
        others.map(|(kind, amount)| (kind.clone(), whole(amount))).collect()
    }

    /// Every kind and how much of it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Amount)> {
        self.0.iter().map(|(kind, amount)| (kind.as_str(), amount))
    }
}

fn whole(amount: &Amount) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an amount is above zero, and one beyond u64 is as good as the largest"
    )]
    let whole = amount.value().unwrap_or_default() as u64;
    whole
}

/// Whether Kubernetes could know this kind: its own, or one with a domain like `nvidia.com/gpu`.
fn is_kind(kind: &str) -> bool {
    let is_known = [CPU, MEMORY, "ephemeral-storage"].contains(&kind);
    is_known || (kind.starts_with("hugepages-") || kind.contains('/')) && kind.len() <= KIND_MAX
}

impl<'de> Deserialize<'de> for Resources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let amounts = BTreeMap::<String, Amount>::deserialize(deserializer)?;
        if let Some(missing) = [CPU, MEMORY].into_iter().find(|kind| !amounts.contains_key(*kind)) {
            return Err(D::Error::missing_field(missing));
        }
        if let Some(unknown) = amounts.keys().find(|kind| !is_kind(kind)) {
            return Err(D::Error::custom(format!(
                "unknown resource {unknown:?}; expected cpu, memory, ephemeral-storage, or a kind \
                 with its domain, like nvidia.com/gpu"
            )));
        }
        Ok(Self(amounts))
    }
}

impl JsonSchema for Resources {
    fn schema_name() -> Cow<'static, str> {
        "Resources".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "What one process may use, request and limit alike: `cpu` in cores, like \
                `2` or `500m` (kernels run on as many threads, rounded up); `memory` in bytes, like \
                `8Gi` (chunks take at most three quarters of it); and any other kind that the nodes \
                have, like `ephemeral-storage` or `nvidia.com/gpu`.",
            "additionalProperties": Amount::json_schema(generator),
            "maxProperties": KINDS_MAX,
            "x-kubernetes-validations": [
                {
                    "rule": "'cpu' in self && 'memory' in self",
                    "message": "give at least cpu and memory",
                },
                {
                    "rule": "self.all(it, it in ['cpu', 'memory', 'ephemeral-storage'] || \
                        ((it.startsWith('hugepages-') || it.contains('/')) && it.size() <= 128))",
                    "message": "expected cpu, memory, ephemeral-storage, or a kind with its domain, \
                        like nvidia.com/gpu",
                },
            ],
        })
    }
}
