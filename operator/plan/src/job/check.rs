//! Whether anything can be made of a job.

use ebbtide_api::job::{SCHEDULED_NAME_MAX, SCRIPT_MAX};
use ebbtide_api::{ClusterJob, names};
use kube::ResourceExt as _;

use crate::check::check_any;
use crate::job::schedule;
use crate::settings;

/// Longest command with its arguments, in bytes.
const WORDS_MAX: usize = 64 << 10;

/// Whether anything can be made of a job, wherever: if not, which field is wrong, and how.
///
/// # Errors
///
/// What is wrong.
pub fn check(job: &ClusterJob) -> Result<(), String> {
    let spec = &job.spec;
    if spec.cluster.is_some() == spec.cluster_ref.is_some() {
        return Err("spec: give either cluster or clusterRef".to_owned());
    }
    if spec.command.is_empty() == spec.script.is_none() {
        return Err("spec: give either command or script".to_owned());
    }
    let bytes = spec.script.as_ref().map_or(0, String::len);
    if bytes > SCRIPT_MAX {
        return Err(format!(
            "spec.script: it is {bytes} bytes long; expected at most {SCRIPT_MAX}: put what is longer \
             into a package or a volume"
        ));
    }
    if let Some(reference) = &spec.cluster_ref {
        let checked = names::check_cluster(&reference.name);
        checked.map_err(|it| format!("spec.clusterRef.name: {it}"))?;
    }
    if let Some(cluster) = &spec.cluster {
        check_any(cluster).map_err(|it| it.replacen("spec", "spec.cluster", 1))?;
    }
    settings::check_one("spec", &spec.resources, &spec.pod)?;
    let words = spec.command.iter().chain(&spec.args).map(String::len).sum::<usize>();
    if words > WORDS_MAX {
        return Err(format!(
            "spec.args: command and arguments are {words} bytes long; expected at most {WORDS_MAX}: put \
             what is longer into a ConfigMap or a volume"
        ));
    }
    if spec.cluster_ref.is_some()
        && let Some(lent) = settings::lent(&spec.pod)
    {
        return Err(format!(
            "spec.pod.{lent}: with clusterRef the program runs the image of a cluster that others may make \
             again; give cluster, or use it without"
        ));
    }
    let name = job.name_any();
    match &spec.schedule {
        Some(_) if name.len() > SCHEDULED_NAME_MAX => Err(format!(
            "metadata.name: a job with a schedule has a name of at most {SCHEDULED_NAME_MAX} characters"
        )),
        Some(schedule) => schedule::check(schedule),
        None => Ok(()),
    }
}
