//! What people and programs read: tables, JSON and YAML on standard output, progress beside it.

use std::io::{self, Write as _};

use clap::ValueEnum;
use ebbtide_api::{Cluster, ClusterJob};
use kube::ResourceExt as _;
use serde::Serialize;

/// How things are printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// For programs.
    Json,
    /// For people who edit it.
    Yaml,
}

/// Prints one line on standard output.
///
/// # Errors
///
/// Nobody reads it any more, or there is no room for it.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{text}")?)
}

/// Whether an error is only that nobody reads the output any more, as after `| head`.
pub(crate) fn is_unread(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|it| it.downcast_ref::<io::Error>());
    causes.any(|it| it.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints what somebody else printed, as it is.
pub(crate) fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout();
    out.write_all(bytes)?;
    Ok(out.flush()?)
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

/// Prints clusters, one a line.
pub(crate) fn table(clusters: &[Cluster]) -> anyhow::Result<()> {
    let mut rows =
        vec![["NAMESPACE", "NAME", "PHASE", "WORKERS", "WANTED", "MESSAGE"].map(str::to_owned)];
    rows.extend(clusters.iter().map(|cluster| {
        let status = cluster.status.clone().unwrap_or_default();
        [
            cluster.namespace().unwrap_or_default(),
            cluster.name_any(),
            format!("{:?}", status.phase),
            status.workers.ready.to_string(),
            status.workers.desired.to_string(),
            status.message.unwrap_or_default().replace('\n', " "),
        ]
    }));
    columns(&rows).iter().try_for_each(|row| line(row))
}

/// Prints jobs, one a line.
pub(crate) fn jobs(jobs: &[ClusterJob]) -> anyhow::Result<()> {
    let mut rows =
        vec![["NAMESPACE", "NAME", "PHASE", "CLUSTER", "FAILURES", "MESSAGE"].map(str::to_owned)];
    rows.extend(jobs.iter().map(|job| {
        let status = job.status.clone().unwrap_or_default();
        [
            job.namespace().unwrap_or_default(),
            job.name_any(),
            format!("{:?}", status.phase),
            job.cluster_name().unwrap_or_default().to_owned(),
            status.failures.total.to_string(),
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
