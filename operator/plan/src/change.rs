//! What a change of a spec does to a cluster that lives, field by field.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ebbtide_api::ClusterSpec;
use ebbtide_api::change::{Class, class};
use serde_json::{Value, json};

/// A field that differs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Difference {
    /// Where it is, like `spec.workers[general].max`.
    pub field: String,
    /// What it was, if it was there.
    pub old: Option<Value>,
    /// What it is to be, if it is to be there.
    pub new: Option<Value>,
    /// What the change does.
    pub class: Class,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<Value>| match value {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => "nothing".to_owned(),
        };
        write!(f, "{}: {} -> {}", self.field, shown(&self.old), shown(&self.new))
    }
}

/// Every field in which two specs differ, in the order of their names, and then every list whose members stand in
/// another order.
pub fn differences(old: &ClusterSpec, new: &ClusterSpec) -> Vec<Difference> {
    let (old, new) = (Said::by(old), Said::by(new));
    let fields: BTreeSet<&String> = old.leaves.keys().chain(new.leaves.keys()).collect();
    let fields = fields.into_iter().map(|field| {
        let (old, new) = (old.leaves.get(field), new.leaves.get(field));
        let path = old.or(new).map_or("", |(path, _)| path);
        let [old, new] = [old, new].map(|it| it.map(|(_, value)| value.clone()));
        Difference { field: field.clone(), old, new, class: class(path) }
    });
    let orders = old.orders.iter().filter_map(|(list, (path, old))| {
        let (_, new) = new.orders.get(list)?;
        let members = |it: &Vec<String>| it.iter().cloned().collect::<BTreeSet<_>>();
        // Which members there are, their own fields tell.
        (members(old) == members(new)).then(|| Difference {
            field: list.clone(),
            old: Some(json!(old)),
            new: Some(json!(new)),
            // Work is for the first group that can take it, and `minWorkers` is the first group's.
            class: if path == "workers" { Class::Live } else { class(path) },
        })
    });
    fields.chain(orders).filter(|it| it.old != it.new).collect()
}

/// What a spec says, by the names that people read, each with the path by which its class is found.
#[derive(Default)]
struct Said {
    leaves: BTreeMap<String, (String, Value)>,
    /// The members of lists of objects, in their order.
    orders: BTreeMap<String, (String, Vec<String>)>,
}

impl Said {
    fn by(spec: &ClusterSpec) -> Self {
        let mut said = Self::default();
        // A spec has no keys but text, so that it always has a form in JSON.
        let value = serde_json::to_value(spec).unwrap_or_default();
        said.collect(&value, "", "spec");
        said
    }

    fn collect(&mut self, value: &Value, path: &str, name: &str) {
        let below =
            |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (key, value) in fields {
                    self.collect(value, &below(key), &format!("{name}.{key}"));
                }
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                let members = members(items);
                for (item, member) in items.iter().zip(&members) {
                    self.collect(item, &below("*"), &format!("{name}[{member}]"));
                }
                self.orders.insert(name.to_owned(), (path.to_owned(), members));
            }
            Value::Null => {}
            Value::Object(_)
            | Value::Array(_)
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_) => {
                self.leaves.insert(name.to_owned(), (path.to_owned(), value.clone()));
            }
        }
    }
}

/// What tells the members of a list apart: their names, and which of several of a name it is.
fn members(items: &[Value]) -> Vec<String> {
    let mut members: Vec<String> = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let name = item["name"].as_str().map_or_else(|| at.to_string(), str::to_owned);
        let again = items[..at].iter().filter(|it| it["name"].as_str() == Some(&*name)).count();
        members.push(if again == 0 { name } else { format!("{name}:{}", again + 1) });
    }
    members
}

#[cfg(test)]
mod tests {
    use ebbtide_api::ClusterSpec;
    use ebbtide_api::change::{CLASSES, Class, class};
    use serde_json::{Value, json};

    use super::differences;
    use crate::pods::made_from;
    use crate::settings::tests::{leaves, required, schema};

    fn spec(change: impl FnOnce(&mut Value)) -> ClusterSpec {
        let mut spec = json!({
            "image": "i",
            "workers": [{ "name": "w", "resources": { "cpu": 2, "memory": "4Gi" }, "max": 4 }],
        });
        change(&mut spec);
        serde_json::from_value(spec).unwrap()
    }

    /// The path of a leaf of the schema, as the table has it.
    fn path_of(leaf: &str) -> String {
        leaf.trim_start_matches('.').replace("[]", ".*").replace(".*.*", ".*")
    }

    #[test]
    fn every_field_has_a_class_and_every_class_a_field() {
        let paths: Vec<String> =
            leaves(&schema(), "spec").iter().map(|(leaf, _)| path_of(leaf)).collect();
        for path in &paths {
            let own = CLASSES
                .iter()
                .filter(|(field, _)| path == field || path.starts_with(&format!("{field}.")));
            assert_eq!(own.count(), 1, "{path}");
        }
        for (field, _) in CLASSES {
            assert!(paths.iter().any(|path| path.starts_with(field)), "{field} is no field");
        }
    }

    #[test]
    fn pods_are_behind_by_what_holds_for_the_next_ones_and_by_nothing_else() {
        let made = |document: &Value| -> Vec<String> {
            let mut document = document.clone();
            document["image"] = json!("i");
            let spec: ClusterSpec = serde_json::from_value(document).unwrap();
            spec.pods().map(|(_, resources, settings)| made_from(resources, settings)).collect()
        };
        let least = made(&Value::Object(required(&schema())));
        for (leaf, document) in leaves(&schema(), "spec") {
            // What the smallest document has as it is says nothing.
            let is_there = document == Value::Object(required(&schema()));
            let is_behind = made(&document) != least;
            assert_eq!(is_behind, !is_there && class(&path_of(&leaf)) == Class::NextPods, "{leaf}");
        }
    }

    #[test]
    fn differences_are_told_with_what_they_do() {
        let old = spec(|_| ());
        assert_eq!(differences(&old, &old), []);
        let new = spec(|spec| {
            spec["image"] = json!("j");
            spec["engine"] = json!("dask");
            spec["lifetime"] = json!({ "idle": { "after": "1h" } });
            spec["workers"][0]["max"] = json!(7);
            spec["workers"][0]["resources"]["nvidia.com/gpu"] = json!(1);
            spec["workers"][0]["pod"] = json!({ "env": [{ "name": "A", "value": "1" }] });
        });
        let told: Vec<String> =
            differences(&old, &new).iter().map(|it| format!("{:?} {it}", it.class)).collect();
        assert_eq!(
            told,
            [
                "Immutable spec.engine: ebbtide -> dask",
                "UntilStarted spec.image: i -> j",
                "Live spec.lifetime.idle.after: 20m -> 1h",
                "Live spec.workers[w].max: 4 -> 7",
                "NextPods spec.workers[w].pod.env[A].name: nothing -> A",
                "NextPods spec.workers[w].pod.env[A].value: nothing -> 1",
                "NextPods spec.workers[w].resources.nvidia.com/gpu: nothing -> 1",
            ]
        );
        let renamed = spec(|spec| spec["workers"][0]["name"] = json!("v"));
        let all = differences(&old, &renamed);
        assert!(all.iter().any(|it| it.class == Class::Recreate), "{all:?}");
    }

    #[test]
    fn an_order_that_differs_and_what_stands_twice_under_a_name_are_told() {
        let two = |first: &str, second: &str| {
            spec(|spec| {
                let group = |name| json!({ "name": name, "resources": { "cpu": 1, "memory": "1Gi" }, "max": 1 });
                spec["workers"] = json!([group(first), group(second)]);
            })
        };
        let told = |old: &ClusterSpec, new: &ClusterSpec| -> Vec<String> {
            differences(old, new).iter().map(|it| format!("{:?} {it}", it.class)).collect()
        };
        let expected = [r#"Live spec.workers: ["a","b"] -> ["b","a"]"#];
        assert_eq!(told(&two("a", "b"), &two("b", "a")), expected);
        let mounted = |paths: &[&str]| {
            spec(|spec| {
                let mount = |path| json!({ "name": "data", "mountPath": path });
                let mounts: Vec<Value> = paths.iter().map(mount).collect();
                spec["workers"][0]["pod"] = json!({ "volumeMounts": mounts });
            })
        };
        let at = "spec.workers[w].pod.volumeMounts";
        let expected = [
            format!("NextPods {at}[data:2].mountPath: /b -> nothing"),
            format!("NextPods {at}[data:2].name: data -> nothing"),
            format!("NextPods {at}[data].mountPath: /a -> /b"),
        ];
        assert_eq!(told(&mounted(&["/a", "/b"]), &mounted(&["/b"])), expected);
    }
}
