//! Whether a cluster can be made of a spec.

use std::collections::BTreeSet;

use ebbtide_api::{ClusterSpec, GROUPS_MAX, SECONDS_MAX, Scaling, WORKERS_MAX, WorkerGroup, names};

use crate::{image, settings};

/// Whether a cluster can be made of a spec, wherever: if not, why.
pub fn check(spec: &ClusterSpec) -> Result<(), String> {
    check_any(spec)?;
    if spec.lifetime.idle.after.as_duration().is_zero() {
        return Err(
            "spec.lifetime.idle.after: 0s would take the cluster away before it has work; give it \
                    as long as work may take to come"
                .to_owned(),
        );
    }
    Ok(())
}

/// The same of a cluster that is there, or that goes with a job and not by itself.
pub(crate) fn check_any(spec: &ClusterSpec) -> Result<(), String> {
    check_size(spec)?;
    check_access(spec)?;
    settings::check(spec)?;
    image::check(spec)
}

/// Whether it can be told how many workers a cluster should have, and for how long.
pub(crate) fn check_size(spec: &ClusterSpec) -> Result<(), String> {
    check_workers(&spec.workers)?;
    check_least(spec)?;
    check_scaling(&spec.scaling)?;
    check_age(spec)
}

/// What the API server checks too; manifests for this machine have only this.
fn check_workers(workers: &[WorkerGroup]) -> Result<(), String> {
    if !(1..=GROUPS_MAX).contains(&workers.len()) {
        let count = workers.len();
        return Err(format!("spec.workers: expected 1 to {GROUPS_MAX} groups, not {count}"));
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = workers.iter().find(|group| !names.insert(&group.name)) {
        return Err(format!("spec.workers: two groups have the name {:?}", twice.name));
    }
    workers.iter().try_for_each(check_group)
}

fn check_group(group: &WorkerGroup) -> Result<(), String> {
    let WorkerGroup { name, min, max, .. } = group;
    names::check_group(name).map_err(|error| format!("spec.workers: name: {error}"))?;
    if *min < 0 || !(1..=WORKERS_MAX).contains(max) {
        return Err(format!(
            "spec.workers[{name}]: min {min} must be at least 0 and max {max} from 1 to {WORKERS_MAX}"
        ));
    }
    if min > max {
        return Err(format!("spec.workers[{name}]: min {min} is greater than max {max}"));
    }
    Ok(())
}

fn check_least(spec: &ClusterSpec) -> Result<(), String> {
    let (least, max) = (spec.min_workers, spec.workers[0].max);
    if (0..=max).contains(&least) {
        return Ok(());
    }
    Err(format!(
        "spec.minWorkers: {least} must be at least 0 and at most max of the first group, {max}"
    ))
}

fn check_scaling(scaling: &Scaling) -> Result<(), String> {
    let of_retiring = scaling.down.retire_seconds;
    for (field, seconds) in
        [("targetSeconds", scaling.target_seconds), ("down.retireSeconds", of_retiring)]
    {
        if !(1..=SECONDS_MAX).contains(&seconds) {
            return Err(format!(
                "spec.scaling.{field}: {seconds} must be from 1 to {SECONDS_MAX} seconds"
            ));
        }
    }
    Ok(())
}

fn check_age(spec: &ClusterSpec) -> Result<(), String> {
    match &spec.lifetime.max {
        Some(max) if max.after.as_duration().is_zero() => {
            Err("spec.lifetime.max.after: 0s would take the cluster away at once; leave max out"
                .to_owned())
        }
        Some(_) | None => Ok(()),
    }
}

fn check_access(spec: &ClusterSpec) -> Result<(), String> {
    let Some(access) = &spec.access else { return Ok(()) };
    let labels = &access.namespaces.match_labels;
    let checked = if labels.is_empty() {
        Err("give a label that the namespaces have".to_owned())
    } else {
        labels.iter().try_for_each(|(key, value)| settings::check_label(key, value))
    };
    checked.map_err(|error| format!("spec.access.namespaces.matchLabels: {error}"))
}
