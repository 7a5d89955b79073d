//! `ebbtide`: clusters from the command line, and the scheduler and worker programs themselves.

mod backend;
mod command;
mod dashboard;
mod endpoint;
mod job;
mod manifest;
mod node;
mod output;
mod show;
mod story;
mod top;

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use crate::command::{Command, Ebbtide};

fn main() -> ExitCode {
    let ebbtide = Ebbtide::parse();
    let quiet = if ebbtide.command.is_process() { "info" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(quiet));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    if matches!(ebbtide.command, Command::Scheduler) {
        node::scheduler()
    } else if matches!(ebbtide.command, Command::Worker) {
        node::worker()
    } else {
        command::run(ebbtide.command)
    }
}
