//! Objects as they come from an API server: one that was stored under another definition keeps no list from being
//! read.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::MESSAGE_MAX;

/// An object, or what is known of one that cannot be read.
#[derive(Clone, Debug)]
pub struct Guarded<K>(pub Result<K, Unread>);

/// What is known of an object that cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct Unread {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Which field is wrong, and what was expected of it. At most [`MESSAGE_MAX`] characters.
    pub error: String,
    /// Its status as it is stored.
    pub status: Value,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut raw = Value::deserialize(deserializer)?;
        let error = match serde_path_to_error::deserialize(&raw) {
            Ok(object) => return Ok(Self(Ok(object))),
            Err(error) => error.to_string(),
        };
        let metadata = ObjectMeta::deserialize(&raw["metadata"]).map_err(D::Error::custom)?;
        let error = error.chars().take(MESSAGE_MAX).collect();
        Ok(Self(Err(Unread { metadata, error, status: raw["status"].take() })))
    }
}

impl<K: Resource> Resource for Guarded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &K::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &K::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &K::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &K::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(object) => object.meta(),
            Err(unread) => &unread.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(object) => object.meta_mut(),
            Err(unread) => &mut unread.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt as _;
    use serde_json::{Value, json};

    use super::Guarded;
    use crate::{Cluster, MESSAGE_MAX};

    fn read(max: &Value) -> Guarded<Cluster> {
        let group =
            json!({ "name": "w", "resources": { "cpu": "1", "memory": "1Gi" }, "max": max });
        let spec = json!({ "image": "image@sha256:1", "workers": [group] });
        let object = json!({
            "apiVersion": "ebbtide.dev/v1alpha1", "kind": "Cluster", "metadata": { "name": "risk" },
            "spec": spec, "status": { "phase": "Ready", "replicas": 3 },
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn what_cannot_be_read_tells_which_field_is_wrong_and_keeps_its_name_and_status() {
        let well = read(&json!(2)).0.unwrap();
        assert_eq!((well.name_any(), well.spec.workers[0].max), ("risk".to_owned(), 2));
        let odd = read(&json!("two"));
        assert_eq!(odd.name_any(), "risk");
        let unread = odd.0.unwrap_err();
        let expected = "spec.workers[0].max: invalid type: string \"two\", expected i32";
        assert_eq!(unread.to_string(), expected);
        assert_eq!(unread.status, json!({ "phase": "Ready", "replicas": 3 }));
        let long = read(&json!("two".repeat(10_000))).0.unwrap_err();
        assert_eq!(long.to_string().chars().count(), MESSAGE_MAX);
    }
}
