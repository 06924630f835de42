//! The keeper: the parent of a deployment's processes.
//!
//! It starts them in order, and ends them when it is told to. Whatever they leave
//! behind comes to it and is ended as well. Should it be killed, they are told by
//! the kernel.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal as signals};
use tokio::sync::mpsc;

use super::options::Options;
use super::place::{self, Place, Service};
use crate::talk::Trouble;

/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);
/// How often a port is tried, and the rest is looked at while processes end.
const LOOK: Duration = Duration::from_millis(10);

/// What the keeper is told.
enum Told {
    /// Look at what is wanted.
    Look,
    /// Some process has ended.
    Ended,
    /// End all of them.
    Stop,
}

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting(Pid),
    Up(Pid),
    Stopping(Pid),
    /// As it was asked to.
    Stopped,
    /// By itself.
    Ended,
}

impl State {
    fn pid(self) -> Option<Pid> {
        match self {
            Self::Starting(pid) | Self::Up(pid) | Self::Stopping(pid) => Some(pid),
            Self::Stopped | Self::Ended => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Starting(_) => "starting",
            Self::Up(_) => "up",
            Self::Stopping(_) => "stopping",
            Self::Stopped => "stopped",
            Self::Ended => "ended",
        }
    }
}

/// Keeps the processes of one program: it writes a line of options to our input,
/// and ends everything by closing it, or by being gone.
pub(super) fn for_program() -> Result<(), Trouble> {
    let mut line = String::new();
    io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| no_input(&error))?;
    let made = Options::parse(&line).and_then(|options| {
        let (folder, ours) = match &options.workspace {
            Some(folder) => (folder.clone(), None),
            None => {
                let folder = temporary()?;
                (folder.clone(), Some(Temporary(folder)))
            }
        };
        if Place::is_there(&folder) {
            if Place::open(&folder)?.keeper().is_some() {
                return Err(Trouble::new(
                    format!("the deployment in `{}` runs", folder.display()),
                    "end it first: firesteel poc stop; or name another `workspace=`",
                ));
            }
            place::remove(&folder)?;
        }
        Place::make(&folder, &options).map(|place| (place, ours))
    });
    let (place, _ours) = match made {
        Ok(made) => made,
        Err(trouble) => {
            say(&trouble.as_json("failed"));
            return Ok(());
        }
    };
    place.want(&place.chosen(&[], &[])?)?;
    let ready = |keeper: &Keeper| match keeper.missing() {
        None => say(&json!({
            "event": "ready",
            "workspace": place.folder(),
            "admin": place.admin(),
            "server": format!("localhost:{}", place.port()),
        })),
        Some(name) => say(&place.ended(name).as_json("failed")),
    };
    run(&place, Input::Life, ready)
}

/// Keeps the processes until it is told to end.
pub(super) fn detached(place: &Place) -> Result<(), Trouble> {
    run(place, Input::None, |_| ())
}

/// Becomes one of the processes. Its end is told to the kernel first: with the
/// keeper gone nobody would end it.
pub(super) fn child(parent: u32, kind: &str, kit: &Path) -> Result<(), Trouble> {
    let failed = |error: io::Error| Trouble::new(format!("could not start: {error}"), "");
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| failed(error.into()))?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if now != i32::try_from(parent).ok() {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(failed)?;
    let error = Command::new(program).arg(kind).arg("--kit").arg(kit).exec();
    Err(failed(error))
}

/// Tells the keeper something.
pub(super) fn signal(keeper: u32, signal: Signal) {
    let pid = i32::try_from(keeper).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Gone already: what was wanted of it is so.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// What the standard input is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    /// Its end is the end of who started us.
    Life,
    /// Nothing.
    None,
}

fn run(place: &Place, input: Input, ready: impl FnOnce(&Keeper)) -> Result<(), Trouble> {
    let _lock = place.keep()?;
    // What a process of ours leaves behind when it ends becomes our child.
    rustix::process::set_child_subreaper(rustix::process::getpid().into())
        .map_err(|error| Trouble::new(format!("could not keep processes: {error}"), ""))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Trouble::new(format!("could not start: {error}"), ""))?;
    let kept = runtime.block_on(async {
        let mut told = listen(input)?;
        let mut keeper = Keeper {
            place,
            states: BTreeMap::new(),
            starts: BTreeMap::new(),
        };
        let mut ready = Some(ready);
        let mut stop = keeper.settle(&mut told).await?;
        if let Some(ready) = ready.take() {
            ready(&keeper);
        }
        while !stop {
            match told.recv().await {
                None | Some(Told::Stop) => stop = true,
                Some(Told::Ended) => keeper.reap()?,
                Some(Told::Look) => stop = keeper.settle(&mut told).await?,
            }
        }
        keeper.end().await
    });
    // A thread waits for the input still, which is no reason to stay.
    runtime.shutdown_background();
    kept
}

/// What may wait for the keeper; who has more to tell waits as well.
const QUEUE: usize = 16;

/// All that tells the keeper something, in one queue.
fn listen(input: Input) -> Result<mpsc::Receiver<Told>, Trouble> {
    let failed = |error: io::Error| Trouble::new(format!("could not take signals: {error}"), "");
    let (tell, told) = mpsc::channel(QUEUE);
    let kinds = [
        (SignalKind::terminate(), 0),
        (SignalKind::interrupt(), 0),
        (SignalKind::hangup(), 1),
        (SignalKind::child(), 2),
    ];
    for (kind, means) in kinds {
        let mut stream = signals(kind).map_err(failed)?;
        let tell = tell.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                let what = match means {
                    0 => Told::Stop,
                    1 => Told::Look,
                    _ => Told::Ended,
                };
                if tell.send(what).await.is_err() {
                    break;
                }
            }
        });
    }
    if input == Input::Life {
        // A thread of its own: a read of the input cannot be given up.
        std::thread::spawn(move || {
            let mut rest = [0; 64];
            let mut input = io::stdin().lock();
            while !matches!(input.read(&mut rest), Ok(0) | Err(_)) {}
            let _ = tell.blocking_send(Told::Stop);
        });
    }
    Ok(told)
}

struct Keeper<'a> {
    place: &'a Place,
    states: BTreeMap<String, State>,
    /// How often each was started.
    starts: BTreeMap<String, u64>,
}

impl Keeper<'_> {
    /// A process that should run and does not.
    fn missing(&self) -> Option<&str> {
        let wanted = self.place.wanted();
        self.place
            .services()
            .iter()
            .filter(|one| wanted.contains(&one.name))
            .find(|one| !matches!(self.states.get(&one.name), Some(State::Up(_))))
            .map(|one| one.name.as_str())
    }

    /// Brings about what is wanted; whether all of it is to end instead.
    async fn settle(&mut self, told: &mut mpsc::Receiver<Told>) -> Result<bool, Trouble> {
        let wanted = self.place.wanted();
        for service in self.place.services() {
            let state = self.states.get(&service.name).copied();
            let pid = state.and_then(State::pid);
            match (wanted.contains(&service.name), pid) {
                (true, None) => {
                    let pid = start(self.place, service)?;
                    *self.starts.entry(service.name.clone()).or_default() += 1;
                    let listens = service.port.is_some();
                    let state = if listens {
                        State::Starting(pid)
                    } else {
                        State::Up(pid)
                    };
                    self.set(&service.name, state)?;
                    if let Some(port) = service.port
                        && self.await_port(&service.name, port, told).await?
                    {
                        return Ok(true);
                    }
                }
                (false, Some(pid)) if !matches!(state, Some(State::Stopping(_))) => {
                    let _ = rustix::process::kill_process(pid, Signal::TERM);
                    self.set(&service.name, State::Stopping(pid))?;
                }
                _ => {}
            }
        }
        Ok(false)
    }

    /// Waits until a process listens, or has ended; whether all is to end.
    async fn await_port(
        &mut self,
        name: &str,
        port: u16,
        told: &mut mpsc::Receiver<Told>,
    ) -> Result<bool, Trouble> {
        while let Some(State::Starting(pid)) = self.states.get(name).copied() {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                self.set(name, State::Up(pid))?;
                break;
            }
            match tokio::time::timeout(LOOK, told.recv()).await {
                Ok(None | Some(Told::Stop)) => return Ok(true),
                Ok(Some(Told::Ended)) => self.reap()?,
                // What is wanted now is looked at when this is settled.
                Ok(Some(Told::Look)) | Err(_) => {}
            }
        }
        Ok(false)
    }

    /// Takes note of processes that have ended, those among them that we do not know.
    fn reap(&mut self) -> Result<(), Trouble> {
        while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::NOHANG) {
            let known = self
                .states
                .iter()
                .find(|(_, state)| state.pid() == Some(pid))
                .map(|(name, _)| name.clone());
            let Some(name) = known else {
                continue;
            };
            let asked = matches!(self.states.get(&name), Some(State::Stopping(_)));
            self.set(&name, if asked { State::Stopped } else { State::Ended })?;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, state: State) -> Result<(), Trouble> {
        self.states.insert(name.to_owned(), state);
        let services: serde_json::Map<String, Value> = self
            .states
            .iter()
            .map(|(name, state)| {
                let pid = state.pid().map(|pid| pid.as_raw_nonzero().get());
                let starts = self.starts.get(name);
                let told = json!({"state": state.word(), "pid": pid, "starts": starts});
                (name.clone(), told)
            })
            .collect();
        self.place.put(
            "running.json",
            &json!({"keeper": std::process::id(), "services": services}),
        )
    }

    /// Ends all processes, sites first, and what they have left behind.
    async fn end(&mut self) -> Result<(), Trouble> {
        for service in self.place.services().iter().rev() {
            if let Some(pid) = self.states.get(&service.name).and_then(|state| state.pid()) {
                let _ = rustix::process::kill_process(pid, Signal::TERM);
                self.set(&service.name, State::Stopping(pid))?;
            }
        }
        let patience = Instant::now() + GRACE;
        while self.states.values().any(|state| state.pid().is_some()) && Instant::now() < patience {
            self.reap()?;
            tokio::time::sleep(LOOK).await;
        }
        // Nobody is left who would end these in order.
        let patience = Instant::now() + GRACE;
        while Instant::now() < patience {
            let left = children();
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            self.reap()?;
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

fn start(place: &Place, service: &Service) -> Result<Pid, Trouble> {
    let failed = |error: io::Error| {
        Trouble::new(
            format!("{} could not be started: {error}", service.name),
            "see whether the machine is out of processes or memory",
        )
    };
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(place.log(&service.name))
        .map_err(failed)?;
    let child = Command::new(std::env::current_exe().map_err(failed)?)
        .args(["poc", "child", "--parent"])
        .arg(std::process::id().to_string())
        .arg(&service.kind)
        .arg(&service.kit)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log)
        .spawn()
        .map_err(failed)?;
    // It is waited for with all others.
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| failed(io::Error::other("its process has no number")))
}

/// Our children, as the system knows them.
fn children() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task");
    let lists = tasks
        .into_iter()
        .flatten()
        .flatten()
        .map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    lists
        .flat_map(|list| {
            let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
            pids.filter_map(Pid::from_raw).collect::<Vec<_>>()
        })
        .collect()
}

/// A folder that goes when this is dropped.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn temporary() -> Result<PathBuf, Trouble> {
    let root = std::env::temp_dir();
    for number in 0..1000_u32 {
        let folder = root.join(format!("firesteel-poc-{}-{number}", std::process::id()));
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(Trouble::new(
                    format!("no folder could be made in `{}`: {error}", root.display()),
                    "set TMPDIR to a folder with room",
                ));
            }
        }
    }
    Err(Trouble::new(
        format!(
            "`{}` is full of folders of earlier deployments",
            root.display()
        ),
        "remove those named firesteel-poc-…",
    ))
}

fn no_input(error: &io::Error) -> Trouble {
    Trouble::new(
        format!("the options could not be read: {error}"),
        "this command is for PocEnv; people use `firesteel poc start`",
    )
}

/// A line for the program. One that is gone is told by the input as well.
fn say(line: &Value) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
