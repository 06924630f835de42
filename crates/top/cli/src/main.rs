//! The `firesteel` binary.
//!
//! Never: holds logic of its own; every command is a few calls into a lower floor.
//! stdout is data, stderr is talk; exit code 0 is success, 1 is failure, 2 is a
//! command line that is not understood.
//!
//! Start at [`Command`].

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use firesteel_launch::SuperviseError;

/// Federated learning: many sites train one model, and no data leaves a site.
#[derive(Debug, Parser)]
#[command(name = "firesteel", version, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

/// What can be asked for.
#[derive(Debug, Subcommand)]
enum Command {
    /// Watch the trainers of one job at one site; started by Firesteel itself.
    #[command(hide = true)]
    Supervise,
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let done = match command_line.command {
        Command::Supervise => firesteel_launch::supervise().map_err(|error| told(&error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(told) => {
            eprint!("{told}");
            ExitCode::FAILURE
        }
    }
}

/// An error as it is shown: what failed, why, and what to do.
fn told(error: &SuperviseError) -> String {
    use firesteel_base::Hint as _;
    use std::error::Error as _;

    let mut text = format!("error: {error}\n");
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  because: {cause}");
        source = cause.source();
    }
    if let Some(hint) = error.hint() {
        let _ = write!(text, "\nhint: {hint}\n");
    }
    text
}
