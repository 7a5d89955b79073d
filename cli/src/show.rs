//! What there is, as it is by now.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{anyhow, bail};
use ebbtide_plan::change::differences;
use ebbtide_plan::is_told_to_have_begun;
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde::Serialize;

use crate::backend::{Backend, Listed};
use crate::command::{Listing, Place, namespace};
use crate::output::{self, Format};
use crate::{manifest, story};

pub(crate) async fn get(listing: &Listing) -> anyhow::Result<()> {
    let backend = Backend::connect(&listing.place).await?;
    match one(listing, "clusters")? {
        Some(name) => {
            let cluster = backend.get(&backend.namespace(), name).await?;
            show(&cluster, listing.output, output::table)
        }
        None => list(&backend.list(listing.scope).await?, listing.output, output::table),
    }
}

pub(crate) async fn jobs(listing: &Listing) -> anyhow::Result<()> {
    let backend = Backend::connect(&listing.place).await?;
    match one(listing, "jobs")? {
        Some(name) => show(&backend.kept()?.job(name).await?, listing.output, output::jobs),
        None => list(&backend.kept()?.list(listing.scope).await?, listing.output, output::jobs),
    }
}

/// Which one is asked for, if not all.
fn one<'a>(listing: &'a Listing, what: &str) -> anyhow::Result<Option<&'a str>> {
    if listing.name.is_some() && listing.scope.all_namespaces {
        bail!("--all-namespaces lists {what}; one of them has its namespace: --namespace NAME");
    }
    Ok(listing.name.as_deref())
}

fn show<K: Serialize>(
    object: &K,
    format: Option<Format>,
    table: impl FnOnce(&[K]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    match format {
        Some(format) => output::value(object, format),
        None => table(std::slice::from_ref(object)),
    }
}

/// Prints all that can be read, and tells of what cannot.
fn list<K: Serialize>(
    listed: &Listed<K>,
    format: Option<Format>,
    table: impl FnOnce(&[K]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for it in &listed.unreadable {
        output::tell(it);
    }
    match format {
        Some(format) => output::value(&listed.objects, format),
        None => table(&listed.objects),
    }
}

pub(crate) async fn describe(name: &str, place: &Place) -> anyhow::Result<()> {
    let backend = Backend::connect(place).await?;
    let cluster = backend.get(&backend.namespace(), name).await?;
    output::line(&story::describe(&cluster, Timestamp::now()))?;
    let events = story::in_order(backend.events(&cluster).await?);
    if !events.is_empty() {
        output::line("")?;
    }
    events.iter().try_for_each(|line| output::line(line))
}

pub(crate) async fn diff(file: &Path, place: &Place) -> anyhow::Result<()> {
    let mut wanted = manifest::read(file)?;
    ebbtide_plan::check(&wanted.spec).map_err(|error| anyhow!(error))?;
    let backend = Backend::connect(place).await?;
    let namespace = namespace(&wanted, place, &backend);
    let name = wanted.name_any();
    if !backend.has(&namespace, &name).await? {
        return output::line(&format!("{name} is not there; `ebbtide up` makes it"));
    }
    let cluster = backend.get(&namespace, &name).await?;
    wanted.metadata.namespace = Some(namespace);
    let (after, refused) = match backend.rehearse(&wanted).await {
        Ok(after) => (after.spec, None),
        Err(error) => {
            // What a manifest leaves to `kubectl scale` stays as that left it.
            let asked = Some(wanted.spec.min_workers).filter(|it| *it != 0);
            wanted.spec.min_workers = asked.unwrap_or(cluster.spec.min_workers);
            (wanted.spec, Some(error))
        }
    };
    let has_started = is_told_to_have_begun(&cluster);
    let mut differences = differences(&cluster.spec, &after);
    if differences.is_empty() && refused.is_none() {
        return output::line("nothing differs");
    }
    differences.sort_by_key(|it| it.class);
    let mut last = None;
    for difference in differences {
        if last.replace(difference.class) != Some(difference.class) {
            output::line(&format!("{}:", backend.effect(difference.class, has_started)))?;
        }
        output::line(&format!("  {difference}"))?;
    }
    refused.map_or(Ok(()), |why| output::line(&format!("`ebbtide up` would be refused: {why:#}")))
}

pub(crate) async fn logs(name: &str, pod: Option<&str>, place: &Place) -> anyhow::Result<()> {
    let backend = Backend::connect(place).await?;
    let cluster = backend.get(&backend.namespace(), name).await?;
    let mut logs = backend.logs(&cluster).await?;
    if let Some(wanted) = pod {
        let pods: BTreeSet<String> = logs.iter().map(|(pod, _)| pod.clone()).collect();
        let pods: Vec<String> = pods.into_iter().collect();
        logs.retain(|(pod, _)| pod.split('/').next().is_some_and(|it| it.ends_with(wanted)));
        if logs.is_empty() {
            bail!("{name} has no pod whose name ends with {wanted}; it has {}", pods.join(", "));
        }
    }
    let lines = logs.iter().flat_map(|(pod, log)| story::of_log(pod, log)).collect();
    story::in_order(lines).iter().try_for_each(|line| output::line(line))
}
