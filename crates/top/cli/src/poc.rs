//! `firesteel poc`: a real deployment in processes on this machine.
//!
//! One process, the keeper, is the parent of all others: it starts them, and when
//! it is told to, or is gone, they end. Everything lies in one folder.

mod keep;
mod options;
mod place;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command as Program, Stdio};
use std::time::{Duration, Instant};

use clap::Subcommand;
use serde_json::{Value, json};

use crate::talk::Trouble;
use options::{Options, Site};
use place::Place;

/// The variable that names the folder.
const WORKSPACE: &str = "FIRESTEEL_POC_WORKSPACE";
/// How often a state is looked at that another process brings about.
const LOOK: Duration = Duration::from_millis(20);
/// How long all processes may take to end: the keeper ends them by force before.
const STOP: Duration = Duration::from_secs(20);

/// What can be done with a deployment.
#[derive(Debug, Subcommand)]
pub(crate) enum Poc {
    /// Make startup kits for a server, sites and admins.
    Prepare(Prepare),
    /// Start the processes; `prepare` first, if that was not done.
    Start(Start),
    /// Say which processes run.
    Status {
        #[command(flatten)]
        at: At,
    },
    /// End the processes.
    Stop {
        /// Only these, by name.
        #[arg(short = 'p', long = "service")]
        services: Vec<String>,
        /// All but these.
        #[arg(long = "exclude")]
        exclude: Vec<String>,
        #[command(flatten)]
        at: At,
    },
    /// End the processes and remove the folder.
    Clean {
        #[command(flatten)]
        at: At,
    },
    /// Keep the processes of one program, which says what it wants on the input and
    /// ends them by closing it.
    #[command(hide = true)]
    Keep {
        /// The folder of a deployment that stays when the program is gone.
        #[arg(long)]
        detached: Option<PathBuf>,
    },
    /// Become one of the processes.
    #[command(hide = true)]
    Child {
        /// The keeper, without which there is nothing to do.
        #[arg(long)]
        parent: u32,
        /// `server`, `site` or `relay`.
        kind: String,
        /// Its kit.
        kit: PathBuf,
    },
}

/// Where, and how it is told.
#[derive(Debug, clap::Args)]
pub(crate) struct At {
    /// The folder; by default that of the variable `FIRESTEEL_POC_WORKSPACE`, else
    /// one of yours in the system's folder for temporary files.
    #[arg(long)]
    workspace: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is made.
#[derive(Debug, clap::Args)]
pub(crate) struct Prepare {
    /// How many sites, named site-1, site-2 and so on.
    #[arg(short = 'n', long = "number-of-clients", default_value_t = 2)]
    number: u32,
    /// Their names instead.
    #[arg(short = 'c', long = "clients", num_args = 1.., value_delimiter = ',')]
    clients: Vec<String>,
    /// A project.yml to provision instead of one of our own.
    #[arg(short = 'i', long = "project-input")]
    project: Option<PathBuf>,
    /// Relays between the server and the sites, by name.
    #[arg(long, num_args = 1.., value_delimiter = ',')]
    relays: Vec<String>,
    /// How the sites connect: tcp, grpc or http (WebSockets over HTTPS).
    #[arg(long, default_value = "tcp", value_parser = ["tcp", "grpc", "http"])]
    scheme: String,
    /// The interpreter of the sites' environment.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Replace what is there.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    at: At,
}

/// What is started.
#[derive(Debug, clap::Args)]
pub(crate) struct Start {
    /// Only these, by name.
    #[arg(short = 'p', long = "service")]
    services: Vec<String>,
    /// All but these.
    #[arg(long = "exclude")]
    exclude: Vec<String>,
    /// Do not wait until they are up.
    #[arg(long)]
    no_wait: bool,
    /// Seconds to wait for that.
    #[arg(long, default_value_t = 30)]
    timeout: u64,
    /// How many sites, where nothing was prepared.
    #[arg(short = 'n', long = "number-of-clients", default_value_t = 2)]
    number: u32,
    #[command(flatten)]
    at: At,
}

/// Does what was asked for.
pub(crate) fn run(command: Poc) -> Result<(), Trouble> {
    match command {
        Poc::Prepare(asked) => {
            let place = prepare(&asked)?;
            tell(&asked.at, &place.summary(), &place.described());
            Ok(())
        }
        Poc::Start(asked) => start(&asked),
        Poc::Status { at } => status(&at),
        Poc::Stop {
            services,
            exclude,
            at,
        } => stop(&at, &services, &exclude),
        Poc::Clean { at } => clean(&at),
        Poc::Keep { detached: None } => keep::for_program(),
        Poc::Keep {
            detached: Some(workspace),
        } => keep::detached(&Place::open(&workspace)?),
        Poc::Child { parent, kind, kit } => keep::child(parent, &kind, &kit),
    }
}

fn prepare(asked: &Prepare) -> Result<Place, Trouble> {
    let workspace = workspace(&asked.at);
    if Place::is_there(&workspace) {
        if Place::open(&workspace)?.keeper().is_some() {
            return Err(Trouble::new(
                format!("the deployment in `{}` runs", workspace.display()),
                "end it first: firesteel poc stop",
            ));
        }
        if !asked.force {
            return Err(Trouble::new(
                format!("there is a deployment in `{}`", workspace.display()),
                "use it: firesteel poc start; or replace it: firesteel poc prepare --force",
            ));
        }
        place::remove(&workspace)?;
    }
    let names = if asked.clients.is_empty() {
        (1..=asked.number).map(|n| format!("site-{n}")).collect()
    } else {
        asked.clients.clone()
    };
    let sites = names.into_iter().map(Site::named).collect();
    Place::make(
        &workspace,
        &Options {
            project: asked.project.clone(),
            sites,
            relays: asked.relays.clone(),
            scheme: asked.scheme.clone(),
            python: asked.python.clone(),
            // A site hands on nothing of its own environment.
            variables: std::env::var("PYTHONPATH")
                .map(|path| [("PYTHONPATH".to_owned(), path)].into())
                .unwrap_or_default(),
            ..Options::default()
        },
    )
}

fn start(asked: &Start) -> Result<(), Trouble> {
    let workspace = workspace(&asked.at);
    let place = if Place::is_there(&workspace) {
        Place::open(&workspace)?
    } else {
        prepare(&Prepare {
            number: asked.number,
            clients: Vec::new(),
            project: None,
            relays: Vec::new(),
            scheme: "tcp".to_owned(),
            python: "python3".into(),
            force: false,
            at: At {
                workspace: Some(workspace.clone()),
                json: asked.at.json,
            },
        })?
    };
    let mut wanted = place.chosen(&asked.services, &asked.exclude)?;
    let before = place.running();
    if let Some(keeper) = place.keeper() {
        wanted.extend(place.wanted());
        place.want(&wanted)?;
        keep::signal(keeper, rustix::process::Signal::HUP);
    } else {
        place.want(&wanted)?;
        launch(&place)?;
    }
    if !asked.no_wait {
        let patience = Duration::from_secs(asked.timeout);
        await_up(&place, &wanted, &before, patience)?;
    }
    tell(&asked.at, &place.summary(), &place.described());
    Ok(())
}

/// Starts the keeper, which outlives this process.
fn launch(place: &Place) -> Result<(), Trouble> {
    let failed = |error: std::io::Error| {
        Trouble::new(
            format!("the processes could not be started: {error}"),
            "see whether the machine is out of processes or memory",
        )
    };
    let log = File::create(place.log("keeper")).map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let mut keeper = Program::new(program);
    keeper
        .args(["poc", "keep", "--detached"])
        .arg(place.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // Ctrl-C in this terminal is not for it.
        .process_group(0);
    keeper.spawn().map(drop).map_err(failed)
}

/// Waits until all that is wanted is up. What had ended `before` counts when it was
/// started again.
fn await_up(
    place: &Place,
    wanted: &[String],
    before: &Value,
    patience: Duration,
) -> Result<(), Trouble> {
    let deadline = Instant::now() + patience;
    loop {
        let running = place.running();
        let state = |name: &String| {
            let at = running.pointer(&format!("/services/{name}/state"));
            at.and_then(Value::as_str).unwrap_or("").to_owned()
        };
        let starts = |told: &Value, name: &String| {
            let at = told.pointer(&format!("/services/{name}/starts"));
            at.and_then(Value::as_u64).unwrap_or(0)
        };
        let anew = |name: &String| {
            let state = before.pointer(&format!("/services/{name}/state"));
            state.and_then(Value::as_str) != Some("ended")
                || starts(&running, name) > starts(before, name)
        };
        let ended = |name: &&String| state(name) == "ended" && anew(name);
        if let Some(name) = wanted.iter().find(ended) {
            return Err(place.ended(name));
        }
        if wanted.iter().all(|name| state(name) == "up") {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Trouble::new(
                format!("not all processes were up after {} s", patience.as_secs()),
                format!("see `{}`", place.log("").display()),
            ));
        }
        std::thread::sleep(LOOK);
    }
}

fn status(at: &At) -> Result<(), Trouble> {
    let workspace = workspace(at);
    if !Place::is_there(&workspace) {
        tell(
            at,
            &json!({"workspace": workspace, "status": "not prepared"}),
            "nothing is prepared: firesteel poc prepare\n",
        );
        return Ok(());
    }
    let place = Place::open(&workspace)?;
    tell(at, &place.summary(), &place.described());
    Ok(())
}

fn stop(at: &At, services: &[String], exclude: &[String]) -> Result<(), Trouble> {
    let workspace = workspace(at);
    if !Place::is_there(&workspace) {
        return status(at);
    }
    let place = Place::open(&workspace)?;
    if let Some(keeper) = place.keeper() {
        let chosen = place.chosen(services, exclude)?;
        let mut left = place.wanted();
        left.retain(|name| !chosen.contains(name));
        if left.is_empty() {
            end(&place, keeper)?;
        } else {
            place.want(&left)?;
            keep::signal(keeper, rustix::process::Signal::HUP);
            let gone = || {
                let running = place.running();
                let up = |name: &String| {
                    let pid = running.pointer(&format!("/services/{name}/pid"));
                    pid.is_some_and(|pid| !pid.is_null())
                };
                !chosen.iter().any(up)
            };
            wait_for(gone, "the processes did not end")?;
        }
    }
    tell(at, &place.summary(), &place.described());
    Ok(())
}

fn clean(at: &At) -> Result<(), Trouble> {
    let workspace = workspace(at);
    if Place::is_there(&workspace) {
        let place = Place::open(&workspace)?;
        if let Some(keeper) = place.keeper() {
            end(&place, keeper)?;
        }
        place::remove(&workspace)?;
    }
    tell(
        at,
        &json!({"workspace": workspace, "status": "clean"}),
        "nothing is left\n",
    );
    Ok(())
}

fn end(place: &Place, keeper: u32) -> Result<(), Trouble> {
    keep::signal(keeper, rustix::process::Signal::TERM);
    wait_for(|| place.keeper().is_none(), "the processes did not end")
}

fn wait_for(done: impl Fn() -> bool, otherwise: &str) -> Result<(), Trouble> {
    let deadline = Instant::now() + STOP;
    while !done() {
        if Instant::now() >= deadline {
            return Err(Trouble::new(
                format!("{otherwise} within {} s", STOP.as_secs()),
                "see them: firesteel poc status",
            ));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn workspace(at: &At) -> PathBuf {
    let chosen = at
        .workspace
        .clone()
        .or_else(|| std::env::var_os(WORKSPACE).map(PathBuf::from));
    let path = chosen.unwrap_or_else(|| {
        let user = rustix::process::getuid().as_raw();
        std::env::temp_dir().join(format!("firesteel-poc-{user}"))
    });
    std::path::absolute(&path).unwrap_or(path)
}

/// Data on the output for programs, words for people.
fn tell(at: &At, data: &Value, words: &str) {
    let text = if at.json {
        format!("{data:#}\n")
    } else {
        words.to_owned()
    };
    // Whoever reads only the start is no trouble.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
