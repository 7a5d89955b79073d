//! The strict reading of what a person wrote. What a server has stored is read with whatever another version added.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt as _;
use serde_json::Value;

use crate::Cluster;

/// Refuses fields of a cluster's spec that its definition does not have, by name, as an API server does
/// that is asked to be strict.
pub fn check_fields(spec: &Value) -> Result<(), String> {
    let versions = Cluster::crd().spec.versions;
    let mut schemas = versions.into_iter().filter_map(|it| it.schema?.open_api_v3_schema);
    let schema = schemas.find_map(|it| it.properties?.remove("spec"));
    schema.map_or(Ok(()), |schema| check_below("spec", spec, &schema))
}

fn check_below(path: &str, value: &Value, schema: &JSONSchemaProps) -> Result<(), String> {
    match value {
        Value::Object(fields) => {
            fields.iter().try_for_each(|(name, it)| check_field(path, (name, it), schema))
        }
        Value::Array(items) => {
            let Some(JSONSchemaPropsOrArray::Schema(schema)) = &schema.items else { return Ok(()) };
            let mut items = items.iter().enumerate();
            items.try_for_each(|(nth, it)| check_below(&format!("{path}[{nth}]"), it, schema))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

fn check_field(
    path: &str,
    (name, value): (&str, &Value),
    schema: &JSONSchemaProps,
) -> Result<(), String> {
    let any = match &schema.additional_properties {
        Some(JSONSchemaPropsOrBool::Schema(any)) => Some(&**any),
        Some(JSONSchemaPropsOrBool::Bool(_)) | None => None,
    };
    let path = format!("{path}.{name}");
    // Without any field it is what Kubernetes alone knows.
    let Some(fields) = &schema.properties else {
        return any.map_or(Ok(()), |any| check_below(&path, value, any));
    };
    let Some(schema) = fields.get(name).or(any) else {
        let known: Vec<String> = fields.keys().map(|it| format!("`{it}`")).collect();
        return Err(format!("unknown field `{path}`, expected one of {}", known.join(", ")));
    };
    check_below(&path, value, schema)
}
