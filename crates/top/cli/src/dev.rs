//! `firesteel dev`: one job over real connections on this machine, for developers.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use firesteel_base::{Durations, SiteName};
use firesteel_net::{Congestion, IdentityFiles, Options, dev::Authority};
use firesteel_node::parts::{Trainers, cores};
use firesteel_node::server::{self, ServerOptions};
use firesteel_node::site::{self, SiteOptions};
use firesteel_node::stub::{self, StubOptions};
use firesteel_observe::ConsoleStyle;
use firesteel_store::{InMemory, SpoolBudget};
use firesteel_wire::spec::{Filters, JobSpec};
use serde_json::json;
use tokio::sync::watch;

use crate::talk::Trouble;

/// One job over real connections.
#[derive(Debug, Subcommand)]
pub(crate) enum Dev {
    /// Make keys and certificates for a server and some sites.
    Identities {
        /// Where they go, each in a folder of its own.
        dir: PathBuf,
        /// How many sites.
        #[arg(long, default_value_t = 2)]
        sites: usize,
    },
    /// Drive a job, and end with it.
    Server(ServerArgs),
    /// Act for a site until its job has ended.
    Site(SiteArgs),
    /// Act for sites that answer every task with one file, and train nothing.
    StubSite(StubArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The job, as JSON.
    #[arg(long)]
    job: PathBuf,
    /// Where sites connect; port 0 for any that is free.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The folder of the server's key and certificates.
    #[arg(long)]
    identity: PathBuf,
    /// Where runs are kept.
    #[arg(long)]
    root: PathBuf,
    /// Go on with the job's latest run.
    #[arg(long)]
    resume: bool,
    /// Bytes of updates that may lie on the disk; by default half of what is free.
    #[arg(long)]
    spool: Option<u64>,
    /// Let updates lie in memory, when that is where the root is.
    #[arg(long)]
    spool_in_memory: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct SiteArgs {
    /// The site's name.
    #[arg(long)]
    name: SiteNameArg,
    /// The folder of the site's key and certificates.
    #[arg(long)]
    identity: PathBuf,
    /// The site's own directory.
    #[arg(long)]
    root: PathBuf,
    /// The site's own filters, as JSON.
    #[arg(long)]
    filters: Option<PathBuf>,
    /// The interpreter that trainers run in.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct StubArgs {
    /// The sites' names.
    #[arg(long, value_delimiter = ',', required = true)]
    names: Vec<SiteNameArg>,
    /// The folder of the folders of their keys and certificates.
    #[arg(long)]
    identities: PathBuf,
    /// The model file that each of them answers with.
    #[arg(long)]
    file: PathBuf,
    /// A directory of theirs, on the disk of the file.
    #[arg(long)]
    root: PathBuf,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    common: Common,
}

/// Where the server is.
#[derive(Debug, Args)]
struct Server {
    /// The server: host:port.
    #[arg(long)]
    connect: String,
    /// The name in the server's certificate, where it is not the host's.
    #[arg(long)]
    server_name: Option<String>,
}

impl Server {
    fn name(&self) -> String {
        let host = self
            .connect
            .rsplit_once(':')
            .map_or(&*self.connect, |(host, _)| host);
        self.server_name.clone().unwrap_or_else(|| host.to_owned())
    }
}

/// What all of them understand.
#[derive(Debug, Args)]
struct Common {
    /// What the console shows: a mode, a level or a file.
    #[arg(long)]
    log: Option<String>,
    /// `auto`, `plain` or `off`.
    #[arg(long, default_value = "auto")]
    console: String,
    /// Connections for models, beside the one for messages.
    #[arg(long)]
    bulk_connections: Option<u8>,
    /// The congestion control of connections, by name.
    #[arg(long)]
    congestion: Option<String>,
    /// A time limit that differs from the default, as in `lease=30`; in seconds.
    #[arg(long = "duration", value_parser = duration)]
    durations: Vec<(String, Duration)>,
}

impl Common {
    fn durations(&self) -> Result<Durations, Trouble> {
        let mut all = Durations::default();
        for (name, value) in &self.durations {
            match name.as_str() {
                "connect" => all.connect = *value,
                "idle" => all.idle = *value,
                "drain" => all.drain = *value,
                "lease" => all.lease = *value,
                "round" => all.round = Some(*value),
                "task" => all.task = Some(*value),
                "trainer-start" => all.trainer_start = *value,
                "stop-grace" => all.stop_grace = *value,
                other => {
                    return Err(Trouble::new(
                        format!("there is no duration `{other}`"),
                        "it is one of connect, idle, drain, lease, round, task, trainer-start, stop-grace",
                    ));
                }
            }
        }
        Ok(all)
    }

    fn net(&self) -> Result<Options, Trouble> {
        let mut options = Options::default();
        options.durations = self.durations()?;
        if let Some(count) = self.bulk_connections {
            options.bulk_connections = count;
        }
        if let Some(name) = &self.congestion {
            options.congestion = Congestion::Named(name.as_str().into());
        }
        Ok(options)
    }

    fn console(&self) -> Result<ConsoleStyle, Trouble> {
        ConsoleStyle::parse(&self.console).ok_or_else(|| {
            Trouble::new(
                format!("--console is `{}`", self.console),
                "it is one of auto, plain, off",
            )
        })
    }
}

/// A site's name on a command line.
#[derive(Debug, Clone)]
struct SiteNameArg(SiteName);

impl std::str::FromStr for SiteNameArg {
    type Err = firesteel_base::IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        SiteName::new(text).map(Self)
    }
}

fn duration(text: &str) -> Result<(String, Duration), String> {
    let (name, seconds) = text.split_once('=').ok_or("expected name=seconds")?;
    let seconds: f64 = seconds.parse().map_err(|_| "expected seconds".to_owned())?;
    let value = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    Ok((name.to_owned(), value))
}

/// The files that `firesteel dev identities` makes.
fn identity_in(dir: &Path) -> IdentityFiles {
    IdentityFiles {
        certificates: dir.join("certificate.pem"),
        key: dir.join("key.pem"),
        authority: dir.join("authority.pem"),
    }
}

/// Does what was asked for.
pub(crate) fn run(command: Dev) -> Result<(), Trouble> {
    match command {
        Dev::Identities { dir, sites } => identities(&dir, sites),
        Dev::Server(args) => serve(args),
        Dev::Site(args) => act(args),
        Dev::StubSite(args) => stub(args),
    }
}

fn identities(dir: &Path, sites: usize) -> Result<(), Trouble> {
    let trouble = |error: &dyn std::error::Error| {
        Trouble::new(
            format!("identities cannot be made: {error}"),
            "choose an empty folder that you may write to",
        )
    };
    let authority = Authority::new("firesteel dev").map_err(|error| trouble(&error))?;
    let server = authority.server("server", &["localhost", "127.0.0.1", "::1"]);
    let server = server.map_err(|error| trouble(&error))?;
    server
        .save(&dir.join("server"))
        .map_err(|error| trouble(&error))?;
    for number in 1..=sites {
        let name = format!("site-{number}");
        let issued = authority.site(&name).map_err(|error| trouble(&error))?;
        issued
            .save(&dir.join(name))
            .map_err(|error| trouble(&error))?;
    }
    Ok(())
}

fn serve(args: ServerArgs) -> Result<(), Trouble> {
    let text = read(&args.job, "name the job's JSON file with --job")?;
    let options = ServerOptions {
        spec: JobSpec::parse(&text).map_err(|error| Trouble::of(&error))?,
        root: args.root,
        listen: args.listen,
        identity: identity_in(&args.identity),
        resume: args.resume,
        spool: args
            .spool
            .map_or(SpoolBudget::HalfOfFree, SpoolBudget::Bytes),
        in_memory: if args.spool_in_memory {
            InMemory::Allow
        } else {
            InMemory::Refuse
        },
        net: args.common.net()?,
        console: args.common.console()?,
        durations: args.common.durations()?,
        log: args.common.log,
        threads: None,
    };
    let report = on_runtime(|abort| async move {
        let listening = |address| line(&json!({"event": "listening", "address": address}));
        server::serve(options, listening, abort).await
    })?
    .map_err(|error| Trouble::of(&error))?;
    let failures: Vec<_> = report
        .failures
        .iter()
        .map(|one| json!({"site": one.site, "code": one.failure.code.as_str(), "message": one.failure.message}))
        .collect();
    line(&json!({
        "event": "ended",
        "status": report.status(),
        "run_dir": report.run_dir,
        "outcome": report.outcome.to_string(),
        "failures": failures,
    }));
    if report.status().starts_with("completed") {
        return Ok(());
    }
    Err(Trouble::new(
        report.outcome.to_string(),
        format!("its files are in `{}`", report.run_dir.display()),
    ))
}

fn act(args: SiteArgs) -> Result<(), Trouble> {
    let durations = args.common.durations()?;
    let binary = std::env::current_exe().map_err(|error| {
        Trouble::new(
            format!("the path of this program is not known: {error}"),
            "call it by its path",
        )
    })?;
    let filters = match &args.filters {
        None => Filters::default(),
        Some(path) => {
            let text = read(path, "name the site's filters with --filters")?;
            Filters::parse(&text).map_err(|error| Trouble::of(&error))?
        }
    };
    let options = SiteOptions {
        filters,
        site: args.name.0,
        server_name: args.server.name(),
        connect: args.server.connect,
        identity: identity_in(&args.identity),
        root: args.root,
        trainers: Trainers {
            binary,
            python: args.python,
            workers: 1,
            env: Default::default(),
            stop_grace: durations.stop_grace,
            reuse: false,
        },
        gpus: Vec::new(),
        net: args.common.net()?,
        console: args.common.console()?,
        durations,
        log: args.common.log,
    };
    on_runtime(|stop| site::act(options, stop))?.map_err(|error| Trouble::of(&error))
}

fn stub(args: StubArgs) -> Result<(), Trouble> {
    let sites = args.names.into_iter().map(|SiteNameArg(name)| {
        let files = identity_in(&args.identities.join(name.as_str()));
        (name, files)
    });
    let options = StubOptions {
        sites: sites.collect(),
        server_name: args.server.name(),
        connect: args.server.connect,
        file: args.file,
        root: args.root,
        net: args.common.net()?,
        durations: args.common.durations()?,
    };
    on_runtime(|_| stub::act(options))?.map_err(|error| Trouble::of(&error))
}

fn read(path: &Path, hint: &str) -> Result<Vec<u8>, Trouble> {
    std::fs::read(path).map_err(|error| {
        Trouble::new(
            format!("`{}` cannot be read: {error}", path.display()),
            hint,
        )
    })
}

/// Runs it on threads of its own, with a way to end it: a signal.
fn on_runtime<T, F: Future<Output = T>>(
    work: impl FnOnce(watch::Receiver<Option<String>>) -> F,
) -> Result<T, Trouble> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores().clamp(1, 8))
        // A live update holds one while it is folded; they are made as needed.
        .max_blocking_threads(4096)
        .enable_all()
        .thread_name("firesteel-work")
        .build()
        .map_err(|error| {
            Trouble::new(
                format!("the system refused what an event loop needs: {error}"),
                "see whether it is out of threads or descriptors",
            )
        })?;
    let (stop, stopped) = watch::channel(None);
    let result = runtime.block_on(async {
        tokio::spawn(async move {
            let mut terminate =
                tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
            let terminated = async {
                match &mut terminate {
                    Some(terminate) => terminate.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated => {}
            }
            stop.send_replace(Some("it was interrupted".to_owned()));
        });
        work(stopped).await
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(result)
}

/// Tells a program that reads along. Nobody needs to.
fn line(value: &serde_json::Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}
