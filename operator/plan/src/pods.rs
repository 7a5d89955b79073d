//! Builds pods. Every pod of every cluster is made by [`pod`], which nobody else's text reaches
//! but through the fields of [`Wanted`].

use std::collections::BTreeMap;

use ebbtide_api::{Cluster, Resources, names};
use ebbtide_contract::identity::Role;
use ebbtide_contract::{port, variable};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource,
    HTTPGetAction, KeyToPath, ObjectFieldSelector, Pod, PodSecurityContext, PodSpec, Probe,
    ProjectedVolumeSource, ResourceFieldSelector, ResourceRequirements, SeccompProfile,
    SecretProjection, SecurityContext, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use crate::children::Children;
use crate::scaling::Target;
use crate::secrets::{leaf_secret, token_secret};
use crate::{Change, Op, Site, metadata, scheduler_addresses};

/// Where a pod's credentials are mounted.
pub const CREDENTIALS_PATH: &str = "/etc/ebbtide/credentials";

/// A user that no image gives rights to.
const USER: i64 = 65_532;

/// Only the owner reads keys.
const KEY_MODE: i32 = 0o440;

/// What pods are made from.
pub(crate) struct Context<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) site: &'a Site,
    pub(crate) image: &'a str,
}

/// What one pod is to be.
struct Wanted<'a> {
    name: String,
    role: Role,
    labels: BTreeMap<String, String>,
    resources: &'a Resources,
    restart_policy: &'static str,
    env: Vec<EnvVar>,
    /// Secrets whose keys make up the credentials.
    credentials: Vec<String>,
    ports: &'static [u16],
}

pub(crate) fn scheduler_due(context: &Context<'_>, children: &Children) -> Option<Change> {
    if children.is_scheduler_held {
        return None;
    }
    let cluster = context.cluster;
    let name = cluster.name_any();
    let wanted = Wanted {
        name: names::scheduler(&name),
        role: Role::Scheduler,
        labels: BTreeMap::new(),
        resources: &cluster.spec.scheduler.resources,
        restart_policy: "Always",
        env: vec![plain(variable::OPERATOR, context.site.operator.clone())],
        credentials: vec![leaf_secret(cluster, Role::Scheduler), token_secret(cluster)],
        ports: &[port::SCHEDULER, port::HTTP],
    };
    let op = Op::CreatePod(Box::new(pod(context, &wanted)));
    Some(Change { op, why: "the cluster has no scheduler" })
}

pub(crate) fn workers_due(
    context: &Context<'_>,
    children: &Children,
    target: &Target,
) -> Vec<Change> {
    let present = children.workers.len();
    let missing = usize::try_from(target.desired).unwrap_or_default().saturating_sub(present);
    (0..)
        .filter(|index| !children.workers.contains_key(index) && !children.held.contains(index))
        .take(missing)
        .map(|index| Change {
            op: Op::CreatePod(Box::new(worker(context, index))),
            why: "fewer workers than the queue asks for",
        })
        .collect()
}

fn worker(context: &Context<'_>, index: u32) -> Pod {
    let cluster = context.cluster;
    let (name, group) = (cluster.name_any(), &cluster.spec.workers[0]);
    let labels = BTreeMap::from([
        (names::WORKER_GROUP.to_owned(), group.name.clone()),
        (names::INDEX.to_owned(), index.to_string()),
    ]);
    let env = vec![
        plain(variable::SCHEDULER, scheduler_addresses(cluster, context.site).join(",")),
        plain(variable::GROUP, group.name.clone()),
        limit(variable::MEMORY_BYTES, "limits.memory"),
        limit(variable::CORES, "limits.cpu"),
    ];
    let wanted = Wanted {
        name: names::worker(&name, &group.name, index),
        role: Role::Worker,
        labels,
        resources: &group.resources,
        restart_policy: "Never",
        env,
        credentials: vec![leaf_secret(cluster, Role::Worker)],
        ports: &[port::WORKER, port::HTTP],
    };
    pod(context, &wanted)
}

fn pod(context: &Context<'_>, wanted: &Wanted<'_>) -> Pod {
    let mut metadata = metadata(context.cluster, wanted.name.clone());
    let labels = metadata.labels.get_or_insert_default();
    labels.extend(wanted.labels.clone());
    labels.insert(names::ROLE.to_owned(), wanted.role.as_str().to_owned());
    Pod {
        metadata,
        spec: Some(PodSpec {
            containers: vec![container(context, wanted)],
            volumes: Some(volumes(&wanted.credentials)),
            restart_policy: Some(wanted.restart_policy.to_owned()),
            termination_grace_period_seconds: Some(5),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn container(context: &Context<'_>, wanted: &Wanted<'_>) -> Container {
    let cluster = context.cluster;
    let mut env = vec![
        plain(variable::CLUSTER, cluster.name_any()),
        plain(variable::CLUSTER_UID, cluster.uid().unwrap_or_default()),
        plain(variable::CREDENTIALS, CREDENTIALS_PATH.to_owned()),
        field(variable::POD_NAME, "metadata.name"),
        field(variable::POD_IP, "status.podIP"),
    ];
    env.extend(wanted.env.iter().cloned());
    let port =
        |port: &u16| ContainerPort { container_port: i32::from(*port), ..ContainerPort::default() };
    let mount = |name: &str, path: &str, read_only| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    };
    Container {
        name: wanted.role.as_str().to_owned(),
        image: Some(context.image.to_owned()),
        command: Some(vec!["ebbtide".to_owned(), wanted.role.as_str().to_owned()]),
        env: Some(env),
        ports: Some(wanted.ports.iter().map(port).collect()),
        resources: Some(resources(wanted.resources)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        liveness_probe: Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some("/healthz".to_owned()),
                port: IntOrString::Int(i32::from(port::HTTP)),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(10),
            failure_threshold: Some(6),
            ..Probe::default()
        }),
        volume_mounts: Some(vec![
            mount("credentials", CREDENTIALS_PATH, true),
            mount("tmp", "/tmp", false),
        ]),
        ..Container::default()
    }
}

fn volumes(credentials: &[String]) -> Vec<Volume> {
    let projection = |name: &String| VolumeProjection {
        secret: Some(SecretProjection {
            name: name.clone(),
            items: None::<Vec<KeyToPath>>,
            optional: None,
        }),
        ..VolumeProjection::default()
    };
    vec![
        Volume {
            name: "credentials".to_owned(),
            projected: Some(ProjectedVolumeSource {
                default_mode: Some(KEY_MODE),
                sources: Some(credentials.iter().map(projection).collect()),
            }),
            ..Volume::default()
        },
        Volume {
            name: "tmp".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        },
    ]
}

fn resources(resources: &Resources) -> ResourceRequirements {
    let amounts = BTreeMap::from([
        ("cpu".to_owned(), Quantity(resources.cpu.to_string())),
        ("memory".to_owned(), Quantity(resources.memory.to_string())),
    ]);
    ResourceRequirements {
        requests: Some(amounts.clone()),
        limits: Some(amounts),
        ..ResourceRequirements::default()
    }
}

fn plain(name: &str, value: String) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value), value_from: None }
}

fn field(name: &str, path: &str) -> EnvVar {
    let field_ref = ObjectFieldSelector { field_path: path.to_owned(), api_version: None };
    from(name, EnvVarSource { field_ref: Some(field_ref), ..EnvVarSource::default() })
}

fn limit(name: &str, resource: &str) -> EnvVar {
    let resource_field_ref = ResourceFieldSelector {
        resource: resource.to_owned(),
        container_name: None,
        divisor: None,
    };
    let source =
        EnvVarSource { resource_field_ref: Some(resource_field_ref), ..EnvVarSource::default() };
    from(name, source)
}

fn from(name: &str, source: EnvVarSource) -> EnvVar {
    EnvVar { name: name.to_owned(), value: None, value_from: Some(source) }
}
