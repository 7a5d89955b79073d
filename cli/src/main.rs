//! `ebbtide`: clusters from the command line, and the scheduler and worker programs themselves.

mod backend;
mod command;
mod dashboard;
mod endpoint;
mod job;
mod log;
mod manifest;
mod node;
mod output;
mod show;
mod story;
mod top;
mod up;

use std::process::ExitCode;

use clap::Parser as _;

use crate::command::{Command, Ebbtide};

fn main() -> ExitCode {
    let ebbtide = Ebbtide::parse();
    log::begin(ebbtide.command.is_process());
    if matches!(ebbtide.command, Command::Scheduler) {
        node::scheduler()
    } else if matches!(ebbtide.command, Command::Worker) {
        node::worker()
    } else {
        command::run(ebbtide.command)
    }
}
