//! How the operator's program is started.

use std::process::ExitCode;

use clap::Parser as _;
use ebbtide_controller::run;
use ebbtide_controller::settings::Settings;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let settings = Settings::parse();
    // What kube_runtime warns of, the operator tells in its own words.
    let filter = EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info,kube_runtime=error"));
    let log = tracing_subscriber::fmt().json().flatten_event(true).with_span_list(false);
    log.with_env_filter(filter).with_writer(std::io::stderr).init();
    match run::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
