//! What people and programs read: tables, JSON and YAML on standard output, progress beside it.

use std::io::{self, Write as _};

use clap::ValueEnum;
use ebbtide_api::{Cluster, ClusterJob};
use jiff::Timestamp;
use kube::{Resource, ResourceExt as _};
use serde::Serialize;

use crate::story;

/// How things are printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// For programs.
    Json,
    /// For people who edit it.
    Yaml,
}

/// What was to be printed could not be: nobody reads it any more, or there is no room for it.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
struct Unprinted(#[source] io::Error);

/// Whether an error is only that nobody reads the output any more, as after `| head`.
pub(crate) fn is_unread(error: &anyhow::Error) -> bool {
    let unprinted = error.downcast_ref::<Unprinted>();
    unprinted.is_some_and(|Unprinted(why)| why.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints one line on standard output.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{text}").map_err(Unprinted)?)
}

/// Prints what somebody else printed, as it is.
pub(crate) fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Unprinted)?;
    Ok(())
}

/// Tells a person what is going on, beside the output.
pub(crate) fn tell(text: &str) {
    // Without standard error there is nobody to tell.
    let _: io::Result<()> = writeln!(io::stderr(), "{text}");
}

/// Prints a value for a program.
pub(crate) fn value(value: &impl Serialize, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => line(&serde_json::to_string_pretty(value)?),
        Format::Yaml => line(serde_saphyr::to_string(value)?.trim_end()),
    }
}

/// How long ago something was made.
fn age(object: &impl Resource) -> String {
    let made_at = object.meta().creation_timestamp.as_ref();
    made_at.map(|it| story::age(it.0, Timestamp::now())).unwrap_or_default()
}

/// Prints clusters, one a line.
pub(crate) fn table(clusters: &[Cluster]) -> anyhow::Result<()> {
    let mut rows = vec![
        ["NAMESPACE", "NAME", "PHASE", "WORKERS", "WANTED", "AGE", "MESSAGE"].map(str::to_owned),
    ];
    rows.extend(clusters.iter().map(|cluster| {
        let status = cluster.status.clone().unwrap_or_default();
        [
            cluster.namespace().unwrap_or_default(),
            cluster.name_any(),
            format!("{:?}", status.phase),
            status.workers.ready.to_string(),
            status.workers.desired.to_string(),
            age(cluster),
            status.message.unwrap_or_default().replace('\n', " "),
        ]
    }));
    columns(&rows).iter().try_for_each(|row| line(row))
}

/// Prints jobs, one a line.
pub(crate) fn jobs(jobs: &[ClusterJob]) -> anyhow::Result<()> {
    let mut rows = vec![
        ["NAMESPACE", "NAME", "PHASE", "CLUSTER", "FAILURES", "AGE", "MESSAGE"].map(str::to_owned),
    ];
    rows.extend(jobs.iter().map(|job| {
        let status = job.status.clone().unwrap_or_default();
        [
            job.namespace().unwrap_or_default(),
            job.name_any(),
            format!("{:?}", status.phase),
            job.cluster_name().unwrap_or_default().to_owned(),
            status.failures.total.to_string(),
            age(job),
            status.message.unwrap_or_default().replace('\n', " "),
        ]
    }));
    columns(&rows).iter().try_for_each(|row| line(row))
}

/// Rows whose cells stand below each other.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |at: usize| rows.iter().map(|row| row[at].len()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..N).map(width).collect();
    let shown = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::{Context as _, anyhow};

    use super::{Unprinted, is_unread};

    #[test]
    fn only_output_that_nobody_reads_is_no_error() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_unread(&Unprinted(broken()).into()));
        let full = Unprinted(io::Error::from(io::ErrorKind::StorageFull));
        let to_server = Err::<(), _>(broken()).context("apply").unwrap_err();
        for error in [anyhow!(full), anyhow!(broken()), to_server] {
            assert!(!is_unread(&error), "{error:#}");
        }
    }
}
