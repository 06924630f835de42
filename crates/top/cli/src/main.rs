//! The `firesteel` binary.
//!
//! Never: holds logic of its own; every command is a few calls into a lower floor.
//! stdout is data, stderr is talk; the exit code is 0 for success, 1 for failure,
//! 64 for a command line that is not understood, and what `docs/reference/cli.md`
//! says beside.
//!
//! Start at [`Command`].

#![forbid(unsafe_code)]

mod dev;
mod job;
mod poc;
mod provision;
mod remote;
mod runs;
mod serve;
mod site;
mod talk;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use talk::Trouble;

/// Chosen for what a server and a site hold over hundreds of rounds: with few
/// arenas (`.cargo/config.toml`) it stays flat, where glibc's grew by a third.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// `EX_USAGE`. Not clap's 2, which says that there was no connection.
const NOT_UNDERSTOOD: u8 = 64;

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
    /// Look at the runs on this machine.
    #[command(subcommand)]
    Runs(Runs),
    /// Run a whole deployment in processes on this machine.
    #[command(subcommand)]
    Poc(poc::Poc),
    /// Submit jobs to a server, watch them, fetch what they left.
    Job(Box<job::Job>),
    /// Run a server, until it is told to end.
    Server(serve::Serve),
    /// Run a relay, until it is told to end.
    Relay(serve::Serve),
    /// Run a site, or look at those of a server.
    Site(Box<site::Site>),
    /// Make a startup kit for everybody who takes part.
    Provision(provision::Provision),
    /// Run one job over real connections, for developers.
    #[command(subcommand, hide = true)]
    Dev(Box<dev::Dev>),
    /// Watch the trainers of one job at one site; started by Firesteel itself.
    #[command(hide = true)]
    Supervise,
}

/// What can be asked about runs.
#[derive(Debug, Subcommand)]
enum Runs {
    /// List the runs, by job and time.
    List {
        /// The folder the runs lie in.
        #[arg(long, default_value = "firesteel-runs")]
        root: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show how one run went.
    Show {
        /// The job's name, for its latest run, or `job/run`.
        run: String,
        /// The folder the runs lie in.
        #[arg(long, default_value = "firesteel-runs")]
        root: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    // First of all: a supervisor takes over the whole process.
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => return unread(&error),
    };
    let done = match line.command {
        Command::Supervise => firesteel_launch::supervise().map_err(|error| Trouble::of(&error)),
        Command::Server(command) => serve::server(command),
        Command::Relay(command) => serve::relay(command),
        Command::Poc(command) => poc::run(command),
        Command::Job(command) => return job::run(*command),
        Command::Site(command) => return site::run(*command),
        Command::Dev(command) => dev::run(*command),
        Command::Provision(command) => provision::run(&command),
        Command::Runs(Runs::List { root, json }) => runs::list(&root, json),
        Command::Runs(Runs::Show { run, root, json }) => runs::show(&run, &root, json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprint!("{trouble}");
            ExitCode::FAILURE
        }
    }
}

/// What is said of a command line that asks for help, or is none.
fn unread(error: &clap::Error) -> ExitCode {
    // Where it cannot be said, the code still is.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(NOT_UNDERSTOOD)
    } else {
        ExitCode::SUCCESS
    }
}
