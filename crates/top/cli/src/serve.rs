//! `firesteel server`, `site` and `relay`: processes that stay until they are told
//! to end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use firesteel_base::Durations;
use firesteel_daemon::relay::{self, RelayRun};
use firesteel_daemon::server::{self, ServerRun};
use firesteel_daemon::site::{self, SiteRun};
use firesteel_net::Options;
use firesteel_node::parts::cores;
use firesteel_observe::ConsoleStyle;
use firesteel_pki::Kit;
use tokio::sync::watch;

use crate::talk::Trouble;

/// A process that stays.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The folder of its startup kit.
    #[arg(long)]
    pub(crate) kit: PathBuf,
    #[command(flatten)]
    pub(crate) shown: Shown,
}

/// What it shows.
#[derive(Debug, Args)]
pub(crate) struct Shown {
    /// What the console shows: a mode, a level, or the path of a log configuration.
    #[arg(long)]
    pub(crate) log: Option<String>,
    /// How it shows it: auto, plain or off.
    #[arg(long, default_value = "plain")]
    pub(crate) console: String,
}

impl Shown {
    fn style(&self) -> Result<ConsoleStyle, Trouble> {
        ConsoleStyle::parse(&self.console).ok_or_else(|| {
            Trouble::new(
                format!("there is no console `{}`", self.console),
                "use auto, plain or off",
            )
        })
    }
}

/// Runs a server.
pub(crate) fn server(serve: Serve) -> Result<(), Trouble> {
    let run = ServerRun {
        console: serve.shown.style()?,
        kit: open(&serve)?,
        log: serve.shown.log,
        durations: Durations::default(),
        net: Options::default(),
    };
    on_runtime(|stop| server::run(run, told, stop))?.map_err(|error| Trouble::of(&error))
}

/// Runs a site.
pub(crate) fn site(serve: Serve) -> Result<(), Trouble> {
    let binary = std::env::current_exe().map_err(|error| {
        Trouble::new(
            format!("the path of this program cannot be found: {error}"),
            "start it by its full path",
        )
    })?;
    let run = SiteRun {
        console: serve.shown.style()?,
        kit: open(&serve)?,
        binary,
        log: serve.shown.log,
        durations: Durations::default(),
        net: Options::default(),
    };
    on_runtime(|stop| site::run(run, stop))?.map_err(|error| Trouble::of(&error))
}

/// Runs a relay.
pub(crate) fn relay(serve: Serve) -> Result<(), Trouble> {
    let run = RelayRun {
        console: serve.shown.style()?,
        kit: open(&serve)?,
        log: serve.shown.log,
        durations: Durations::default(),
        net: Options::default(),
    };
    on_runtime(|stop| relay::run(run, told, stop))?.map_err(|error| Trouble::of(&error))
}

fn open(serve: &Serve) -> Result<Kit, Trouble> {
    Kit::open(&serve.kit).map_err(|error| Trouble::of(&error))
}

/// Where it listens is in its log already.
fn told(_: &[SocketAddr]) {}

/// Runs it on threads of its own, until a signal ends it.
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
        use tokio::signal::unix::{SignalKind, signal};
        let terminate = signal(SignalKind::terminate());
        tokio::spawn(async move {
            let terminated = async {
                match terminate {
                    Ok(mut terminate) => terminate.recv().await,
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated => {}
            }
            stop.send_replace(Some("it was told to end".to_owned()));
        });
        work(stopped).await
    });
    // What still runs is of no use to anybody; sites and people were told.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(result)
}
