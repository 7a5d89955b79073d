//! What a change of a spec does to a cluster that lives, field by field: for the API server, which refuses some,
//! for the descriptions of fields, and for whoever tells what a change would do.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, ValidationRule,
};
use kube::CustomResourceExt as _;

use crate::Cluster;

/// What a change of a field does.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Class {
    /// It holds at once.
    Live,
    /// It holds for pods that are made from then on, and those that have not started are made again.
    NextPods,
    /// Pods go and others come.
    Recreate,
    /// It holds as long as nothing ran. From then on the API server refuses it.
    UntilStarted,
    /// The API server refuses it.
    Immutable,
}

/// The class of each field, and of what is below it. `*` is any member of a list.
pub const CLASSES: [(&str, Class); 14] = [
    ("access", Class::Live),
    ("engine", Class::Immutable),
    ("environment", Class::UntilStarted),
    ("image", Class::UntilStarted),
    ("lifetime", Class::Live),
    ("minWorkers", Class::Live),
    ("scaling", Class::Live),
    ("scheduler.pod", Class::NextPods),
    ("scheduler.resources", Class::NextPods),
    ("workers.*.max", Class::Live),
    ("workers.*.min", Class::Live),
    ("workers.*.name", Class::Recreate),
    ("workers.*.pod", Class::NextPods),
    ("workers.*.resources", Class::NextPods),
];

impl Class {
    /// What happens, in words, to a cluster whose scheduler has answered or not.
    pub fn effect(self, has_started: bool) -> &'static str {
        match self {
            Self::Live => "holds at once",
            Self::NextPods => {
                "holds for pods that are made from then on; what runs stays, what has not started \
                 is made again"
            }
            Self::Recreate => "a group that is new comes, one that is gone goes with its workers",
            Self::UntilStarted if !has_started => {
                "holds, as the scheduler has not answered yet: pods are made again"
            }
            Self::UntilStarted | Self::Immutable => {
                "is refused while the cluster lives; delete the cluster and create it again"
            }
        }
    }

    /// The same, in a sentence of the field's description.
    fn sentence(self) -> &'static str {
        match self {
            Self::Live => "A change holds at once.",
            Self::NextPods => {
                "A change holds for pods that are made from then on; what runs stays."
            }
            Self::Recreate => "Another name is another group: this one's workers go.",
            Self::UntilStarted => {
                "It can be corrected until the scheduler has answered for the first time."
            }
            Self::Immutable => "It cannot change while the cluster lives.",
        }
    }

    /// When the API server refuses a change, as a condition in CEL, and in words; if it ever does.
    fn refused(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Live | Self::NextPods | Self::Recreate => None,
            Self::UntilStarted => Some((
                "has(self.status) && has(self.status.startedAt)",
                "once the scheduler has answered",
            )),
            Self::Immutable => Some(("true", "while the cluster lives")),
        }
    }
}

/// The class of the field at this path. A group is known by its name: another name, another group.
pub fn class(path: &str) -> Class {
    let is_within = |field: &str| {
        path.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let known = CLASSES.iter().find(|(field, _)| is_within(field));
    known.map_or(Class::Recreate, |(_, class)| *class)
}

/// The definition of a Cluster: each field of [`CLASSES`] tells what a change does, and those changes are refused
/// that can only be made by another cluster.
pub fn definition() -> CustomResourceDefinition {
    let mut definition = Cluster::crd();
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut().and_then(|it| it.open_api_v3_schema.as_mut());
        let Some(schema) = schema else { continue };
        schema.x_kubernetes_validations.get_or_insert_default().extend(rules());
        let Some(spec) = schema.properties.as_mut().and_then(|it| it.get_mut("spec")) else {
            continue;
        };
        for (path, class) in CLASSES {
            if let Some(field) = at(spec, path) {
                let described = field.description.get_or_insert_default();
                *described = format!("{described} {}", class.sentence());
            }
        }
    }
    definition
}

/// What the API server is to check when a cluster changes.
fn rules() -> impl Iterator<Item = ValidationRule> {
    let refused = CLASSES.iter().filter_map(|(field, class)| Some((field, class.refused()?)));
    refused.map(|(field, (when, in_words))| {
        let (new, old) = (format!("self.spec.{field}"), format!("oldSelf.spec.{field}"));
        let is_same = format!("has({new}) == has({old}) && (!has({new}) || {new} == {old})");
        ValidationRule {
            rule: if when == "true" { is_same } else { format!("!({when}) || {is_same}") },
            message: Some(format!(
                "{field} cannot change {in_words}: workers would differ; delete the cluster and \
                 create it again"
            )),
            field_path: Some(format!(".spec.{field}")),
            ..ValidationRule::default()
        }
    })
}

/// What describes the field at a path of [`CLASSES`].
fn at<'a>(schema: &'a mut JSONSchemaProps, path: &str) -> Option<&'a mut JSONSchemaProps> {
    path.split('.').try_fold(schema, |schema, part| match (part, &mut schema.items) {
        ("*", Some(JSONSchemaPropsOrArray::Schema(item))) => Some(&mut **item),
        _ => schema.properties.as_mut()?.get_mut(part),
    })
}
