//! Builds pods. Every pod of every cluster is made by [`pod`], which nobody else's text reaches
//! but through the fields of [`Wanted`].

use std::collections::BTreeMap;

use ebbtide_api::pod::{InitContainer, PodSettings};
use ebbtide_api::{Cluster, ClusterJob, Engine, Resources, WorkerGroup, names};
use ebbtide_contract::identity::Role;
use ebbtide_contract::{dask, port, variable};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, DownwardAPIVolumeFile, DownwardAPIVolumeSource,
    EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction, KeyToPath, LocalObjectReference,
    ObjectFieldSelector, Pod, PodSecurityContext, PodSpec, Probe, ProjectedVolumeSource,
    ResourceFieldSelector, ResourceRequirements, SeccompProfile, SecretProjection, SecurityContext,
    Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use kube::core::ObjectMeta;
use serde_json::json;

use crate::children::Children;
use crate::image::NOT_PACKED;
use crate::scaling::Target;
use crate::secrets::credentials;
use crate::trouble::LASTING;
use crate::{Change, Op, Site, metadata, owned_by, scheduler_addresses, settings};

/// Where a pod's credentials are mounted.
pub const CREDENTIALS_PATH: &str = "/etc/ebbtide/credentials";

/// Workers that are made in one reconcile; the next follow when they are seen.
pub(crate) const AT_ONCE_MAX: usize = 64;

/// Volumes that every pod has.
pub const OWN_VOLUMES: [&str; 2] = ["credentials", "tmp"];

/// The volume that a job with a script has beside them.
pub(crate) const SCRIPT_VOLUME: &str = "ebbtide-script";

/// Where a job's script is.
pub(crate) const SCRIPT_PATH: &str = "/etc/ebbtide/job";

/// Its file there.
const SCRIPT_FILE: &str = "main.py";

/// The port with the metrics of a scheduler or worker, by which what reads them finds it.
const METRICS: &str = "metrics";

/// Where a pod may write.
pub(crate) const TMP_PATH: &str = "/tmp";

/// A user that no image gives rights to.
const USER: i64 = 65_532;

/// Only the owner reads keys.
const KEY_MODE: i32 = 0o440;

/// What the pod of a job is, and its container.
pub const JOB: &str = "job";

/// Whether a container of this name is the one that every pod has.
pub fn is_own_container(name: &str) -> bool {
    [Role::Scheduler.as_str(), Role::Worker.as_str(), JOB].contains(&name)
}

/// Has a pod tell which look of the operator made it.
pub(crate) fn trace(pod: &mut Pod, trace: &str) {
    pod.annotations_mut().insert(names::TRACE.to_owned(), trace.to_owned());
}

/// What pods are made from.
pub(crate) struct Context<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) site: &'a Site,
    pub(crate) image: &'a str,
}

/// What one pod is to be.
struct Wanted<'a> {
    /// Name, owner, and our labels and annotations.
    metadata: ObjectMeta,
    /// Its label, and the container's name.
    role: &'static str,
    command: Vec<String>,
    args: Vec<String>,
    resources: &'a Resources,
    settings: &'a PodSettings,
    restart_policy: &'static str,
    env: Vec<EnvVar>,
    /// Secret with the credentials.
    credentials: String,
    /// What it listens on. One that listens nowhere cannot be asked whether it is well.
    ports: &'static [u16],
    /// Whether it reads its program from its annotation.
    has_script: bool,
}

pub(crate) fn scheduler_due(context: &Context<'_>, children: &Children) -> Option<Change> {
    if children.is_scheduler_held {
        return None;
    }
    let op = Op::CreatePod(Box::new(scheduler(context)));
    Some(Change { op, why: "the cluster has no scheduler" })
}

/// Pods with settings that the API server has not judged since they were written. Of a group that nobody
/// needs yet it would else be known when work comes, and of the others when half of a cluster is there.
pub(crate) fn untried(context: &Context<'_>, children: &Children) -> Vec<Change> {
    let cluster = context.cluster;
    let status = cluster.status.as_ref();
    let known = status.and_then(|it| it.observed_generation);
    let mut conditions = status.iter().flat_map(|it| &it.conditions);
    let is_refused =
        conditions.any(|it| LASTING.contains(&it.reason.as_str()) || it.reason == NOT_PACKED);
    if known == cluster.metadata.generation && !is_refused {
        return Vec::new();
    }
    // Those that live say nothing of settings that they were not made from.
    let is_news = |is_there: bool| !is_there || children.behind > 0;
    let may_fail = |resources: &Resources, settings: &PodSettings| {
        !settings.is_empty() || !resources.others().is_empty()
    };
    let of_scheduler = &cluster.spec.scheduler;
    let is_due =
        is_news(children.is_scheduler_held) && may_fail(&of_scheduler.resources, &of_scheduler.pod);
    let groups = cluster.spec.workers.iter().zip(&children.groups);
    let groups = groups.filter(|(group, it)| {
        is_news(!it.living.is_empty()) && may_fail(&group.resources, &group.pod)
    });
    let pods = is_due.then(|| scheduler(context)).into_iter();
    pods.chain(groups.map(|(group, _)| worker(context, group, 0)))
        .map(|pod| Change { op: Op::TryPod(Box::new(pod)), why: "its settings are new" })
        .collect()
}

fn scheduler(context: &Context<'_>) -> Pod {
    let cluster = context.cluster;
    let name = cluster.name_any();
    let (resources, settings) = (&cluster.spec.scheduler.resources, &cluster.spec.scheduler.pod);
    let wanted = Wanted {
        metadata: own(metadata(cluster, names::scheduler(&name)), context, resources, settings),
        role: Role::Scheduler.as_str(),
        command: process(Role::Scheduler),
        args: Vec::new(),
        resources,
        settings,
        restart_policy: "Always",
        env: vec![plain(variable::OPERATOR, context.site.operator.clone())],
        credentials: credentials(cluster, Role::Scheduler),
        ports: &[port::SCHEDULER, port::HTTP],
        has_script: false,
    };
    pod(context, &wanted)
}

pub(crate) fn workers_due(
    context: &Context<'_>,
    children: &Children,
    targets: &[Target],
) -> Vec<Change> {
    let groups = context.cluster.spec.workers.iter().zip(&children.groups).zip(targets);
    let due = groups.flat_map(|((group, workers), target)| {
        let present = workers.living.len() + workers.stillborn;
        let missing = usize::try_from(target.desired).unwrap_or_default().saturating_sub(present);
        let is_free =
            |index: &u32| !workers.living.contains_key(index) && !workers.held.contains(index);
        (0..)
            .filter(is_free)
            .take(missing.min(AT_ONCE_MAX))
            .map(move |index| (group, index))
            .enumerate()
    });
    // In turns: what keeps one group from getting pods keeps no other.
    let mut due: Vec<_> = due.collect();
    due.sort_by_key(|(turn, _)| *turn);
    due.into_iter()
        .map(|(_, it)| it)
        .take(AT_ONCE_MAX)
        .map(|(group, index)| Change {
            op: Op::CreatePod(Box::new(worker(context, group, index))),
            why: "fewer workers than are asked for",
        })
        .collect()
}

fn worker(context: &Context<'_>, group: &WorkerGroup, index: u32) -> Pod {
    let cluster = context.cluster;
    let name = cluster.name_any();
    let (resources, settings) = (&group.resources, &group.pod);
    let pod_name = names::worker(&name, &group.name, index);
    let mut metadata = own(metadata(cluster, pod_name), context, resources, settings);
    metadata.labels.get_or_insert_default().extend([
        (names::WORKER_GROUP.to_owned(), group.name.clone()),
        (names::INDEX.to_owned(), index.to_string()),
    ]);
    let env = vec![
        plain(variable::SCHEDULER, scheduler_addresses(cluster, context.site).join(",")),
        plain(variable::GROUP, group.name.clone()),
        plain(variable::RESOURCES, json!(group.resources.others()).to_string()),
        limit(variable::MEMORY_BYTES, "limits.memory"),
        limit(variable::CORES, "limits.cpu"),
    ];
    let wanted = Wanted {
        metadata,
        role: Role::Worker.as_str(),
        command: process(Role::Worker),
        args: Vec::new(),
        resources,
        settings,
        restart_policy: "Never",
        env,
        credentials: credentials(cluster, Role::Worker),
        ports: &[port::WORKER, port::HTTP],
        has_script: false,
    };
    pod(context, &wanted)
}

/// The pod of a job's attempt: its program with the credentials of a client.
pub(crate) fn attempt(context: &Context<'_>, job: &ClusterJob, nth: u32) -> Pod {
    let (cluster, spec) = (context.cluster, &job.spec);
    let mut metadata = owned_by(job, names::attempt(&job.name_any(), nth));
    // Of the cluster's, so that nobody else connects to it either.
    let mut labels = ebbtide_api::labels(&cluster.uid().unwrap_or_default());
    labels.insert(names::JOB_UID.to_owned(), job.uid().unwrap_or_default());
    labels.insert(names::JOB.to_owned(), names::label(&job.name_any()));
    metadata.labels = Some(labels);
    let script = spec.script.as_ref().map(|it| (names::SCRIPT.to_owned(), it.clone()));
    metadata.annotations = Some(script.into_iter().collect());
    let python = || vec!["python3".to_owned(), format!("{SCRIPT_PATH}/{SCRIPT_FILE}")];
    let addresses = scheduler_addresses(cluster, context.site);
    let of_dask = addresses.first().filter(|_| cluster.spec.engine == Engine::Dask);
    let of_dask = of_dask.map(|it| plain(dask::SCHEDULER_ADDRESS, dask::address(it))).into_iter();
    let wanted = Wanted {
        metadata,
        role: JOB,
        command: if spec.script.is_some() { python() } else { spec.command.clone() },
        args: spec.args.clone(),
        resources: &spec.resources,
        settings: &spec.pod,
        restart_policy: "Never",
        env: of_dask
            .chain([
                plain(variable::SCHEDULER, addresses.join(",")),
                // What it prints is read while it runs.
                plain("PYTHONUNBUFFERED", "1".to_owned()),
            ])
            .collect(),
        credentials: credentials(cluster, Role::Client),
        ports: &[],
        has_script: spec.script.is_some(),
    };
    pod(context, &wanted)
}

/// A text in which Kubernetes finds no reference to a variable, as it would in `$(NAME)` and `$$`.
pub(crate) fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// What [`Pod`]s' commands, arguments and variables say, where nobody but Ebbtide reads them.
pub fn read_literal(text: &str) -> String {
    text.replace("$$", "$")
}

fn process(role: Role) -> Vec<String> {
    vec!["ebbtide".to_owned(), role.as_str().to_owned()]
}

/// Metadata that tell what a pod is made from.
fn own(
    mut metadata: ObjectMeta,
    context: &Context<'_>,
    resources: &Resources,
    settings: &PodSettings,
) -> ObjectMeta {
    let made_from = (names::MADE_FROM.to_owned(), made_from(resources, settings));
    let image = (names::IMAGE.to_owned(), context.image.to_owned());
    metadata.annotations = Some(BTreeMap::from([made_from, image]));
    metadata
}

/// Which settings a pod is made from, told from others. Not from the pod itself: a newer operator
/// may make it differently, and what runs stays.
pub(crate) fn made_from(resources: &Resources, settings: &PodSettings) -> String {
    names::fingerprint(&json!([resources, settings]).to_string())
}

fn pod(context: &Context<'_>, wanted: &Wanted<'_>) -> Pod {
    let settings = wanted.settings;
    let mut metadata = wanted.metadata.clone();
    let own = metadata.labels.take().unwrap_or_default();
    let marks = [
        (names::ROLE.to_owned(), wanted.role.to_owned()),
        (names::CLUSTER.to_owned(), names::label(&context.cluster.name_any())),
    ];
    // Ours come last: they win.
    metadata.labels = Some(settings.labels.clone().into_iter().chain(own).chain(marks).collect());
    let own = metadata.annotations.take().unwrap_or_default();
    metadata.annotations = Some(settings.annotations.clone().into_iter().chain(own).collect());
    let init = settings.init_containers.iter().map(|it| init_container(context, wanted, it));
    Pod {
        metadata,
        spec: Some(PodSpec {
            containers: vec![container(context, wanted)],
            init_containers: settings::some(init),
            volumes: Some(
                settings::volumes(&settings.volumes)
                    .chain(volumes(&wanted.credentials))
                    .chain(wanted.has_script.then(script))
                    .collect(),
            ),
            restart_policy: Some(wanted.restart_policy.to_owned()),
            termination_grace_period_seconds: Some(5),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                fs_group_change_policy: Some("OnRootMismatch".to_owned()),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            node_selector: map(&settings.node_selector),
            affinity: settings.affinity.as_ref().map(settings::affinity),
            tolerations: settings::some(settings.tolerations.iter().cloned()),
            topology_spread_constraints: settings::some(
                settings.topology_spread_constraints.iter().cloned(),
            ),
            priority_class_name: settings.priority_class_name.clone(),
            image_pull_secrets: settings::some(
                settings.image_pull_secrets.iter().map(LocalObjectReference::from),
            ),
            service_account_name: settings.service_account_name.clone(),
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn container(context: &Context<'_>, wanted: &Wanted<'_>) -> Container {
    let cluster = context.cluster;
    let settings = wanted.settings;
    let own = [
        plain(variable::CLUSTER, cluster.name_any()),
        plain(variable::CLUSTER_UID, cluster.uid().unwrap_or_default()),
        plain(variable::ENGINE, cluster.spec.engine.as_str().to_owned()),
        plain(variable::CREDENTIALS, CREDENTIALS_PATH.to_owned()),
        field(variable::POD_NAME, "metadata.name"),
        field(variable::TRACE, &format!("metadata.annotations['{}']", names::TRACE)),
        field(variable::POD_IP, "status.podIP"),
    ];
    // Ours come last: they win.
    let env = settings::env(&settings.env).chain(own).chain(wanted.env.iter().cloned());
    let port = |port: &u16| ContainerPort {
        container_port: i32::from(*port),
        name: (*port == port::HTTP).then(|| METRICS.to_owned()),
        ..ContainerPort::default()
    };
    let [credentials, tmp] = OWN_VOLUMES;
    let script = wanted.has_script.then(|| mount(SCRIPT_VOLUME, SCRIPT_PATH, true));
    let own = [mount(credentials, CREDENTIALS_PATH, true), mount(tmp, TMP_PATH, false)];
    Container {
        name: wanted.role.to_owned(),
        image: Some(context.image.to_owned()),
        command: Some(wanted.command.iter().map(|it| literal(it)).collect()),
        args: settings::some(wanted.args.iter().map(|it| literal(it))),
        env: Some(env.collect()),
        env_from: settings::env_from(&settings.env_from),
        ports: settings::some(wanted.ports.iter().map(port)),
        resources: Some(resources(wanted.resources)),
        security_context: Some(restricted()),
        liveness_probe: wanted.ports.contains(&port::HTTP).then(|| Probe {
            http_get: Some(HTTPGetAction {
                path: Some("/healthz".to_owned()),
                port: IntOrString::Int(i32::from(port::HTTP)),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(10),
            timeout_seconds: Some(5),
            failure_threshold: Some(match cluster.spec.engine {
                Engine::Ebbtide => 6,
                // A large graph, or a function that lets nothing else run, stops its event loop for minutes.
                Engine::Dask => 30,
            }),
            ..Probe::default()
        }),
        volume_mounts: Some(
            settings::mounts(&settings.volume_mounts).chain(own).chain(script).collect(),
        ),
        ..Container::default()
    }
}

/// A container that people wrote, as restricted as ours, without our credentials.
fn init_container(context: &Context<'_>, wanted: &Wanted<'_>, init: &InitContainer) -> Container {
    let mounts =
        settings::mounts(&init.volume_mounts).chain([mount(OWN_VOLUMES[1], TMP_PATH, false)]);
    Container {
        name: init.name.clone(),
        image: Some(init.image.clone().unwrap_or_else(|| context.image.to_owned())),
        command: settings::some(init.command.iter().map(|it| literal(it))),
        args: settings::some(init.args.iter().map(|it| literal(it))),
        env: settings::some(settings::env(&init.env)),
        env_from: settings::env_from(&init.env_from),
        resources: Some(resources(init.resources.as_ref().unwrap_or(wanted.resources))),
        security_context: Some(restricted()),
        volume_mounts: Some(mounts.collect()),
        ..Container::default()
    }
}

fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    }
}

fn map(entries: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    (!entries.is_empty()).then(|| entries.clone())
}

fn volumes(credentials: &str) -> [Volume; 2] {
    let projection = VolumeProjection {
        secret: Some(SecretProjection {
            name: credentials.to_owned(),
            items: None::<Vec<KeyToPath>>,
            optional: None,
        }),
        ..VolumeProjection::default()
    };
    let [credentials_volume, tmp] = OWN_VOLUMES.map(str::to_owned);
    [
        Volume {
            name: credentials_volume,
            projected: Some(ProjectedVolumeSource {
                default_mode: Some(KEY_MODE),
                sources: Some(vec![projection]),
            }),
            ..Volume::default()
        },
        Volume { name: tmp, empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() },
    ]
}

/// A job's program, as its pod's annotation has it.
fn script() -> Volume {
    let field = ObjectFieldSelector {
        field_path: format!("metadata.annotations['{}']", names::SCRIPT),
        api_version: None,
    };
    let file = DownwardAPIVolumeFile {
        path: SCRIPT_FILE.to_owned(),
        field_ref: Some(field),
        ..DownwardAPIVolumeFile::default()
    };
    let source = DownwardAPIVolumeSource { items: Some(vec![file]), default_mode: Some(KEY_MODE) };
    Volume { name: SCRIPT_VOLUME.to_owned(), downward_api: Some(source), ..Volume::default() }
}

fn resources(resources: &Resources) -> ResourceRequirements {
    let amounts: BTreeMap<String, Quantity> = resources
        .iter()
        .map(|(kind, amount)| (kind.to_owned(), Quantity(amount.to_string())))
        .collect();
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
