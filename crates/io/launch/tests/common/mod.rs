//! What the tests of the supervisor and of the warm parent share.

#![allow(dead_code, unused_imports, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use firesteel_rig::wait::{PATIENCE, alive, gone, until, within};

use firesteel_base::Failure;
use firesteel_launch::{
    ExitReport, ExternalSpec, OutputLine, Supervisor, SupervisorConfig, SupervisorNotice,
    TrainerEvent, TrainerHandle, TrainerSpec,
};

pub const GRACE: Duration = Duration::from_millis(300);

pub fn config() -> SupervisorConfig {
    SupervisorConfig {
        binary: env!("CARGO_BIN_EXE_firesteel-supervise-for-tests").into(),
        python: None,
        preload: Vec::new(),
        env: BTreeMap::new(),
        reuse: false,
        die_with_agent: true,
        stop_grace: GRACE,
    }
}

/// A supervisor, and what it reports beside its trainers' events.
pub struct Setup {
    pub supervisor: Supervisor,
    pub notices: Arc<Mutex<Vec<SupervisorNotice>>>,
    pub folder: tempfile::TempDir,
}

impl Setup {
    pub async fn new(config: SupervisorConfig) -> Self {
        let notices = Arc::new(Mutex::new(Vec::new()));
        let seen = notices.clone();
        let supervisor = Supervisor::start(config, move |notice| seen.lock().unwrap().push(notice))
            .await
            .unwrap();
        Self {
            supervisor,
            notices,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn shell(&self, script: &str) -> ExternalSpec {
        ExternalSpec {
            argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            cwd: self.path().to_owned(),
            env: BTreeMap::new(),
            terminal: None,
        }
    }

    pub async fn start_shell(&self, script: &str) -> TrainerHandle {
        self.start(TrainerSpec::External(self.shell(script))).await
    }

    pub async fn start(&self, spec: TrainerSpec) -> TrainerHandle {
        self.supervisor.spawn(spec).await.unwrap()
    }

    /// Waits until a file has a line, and gives it as a number.
    pub async fn number_in(&self, file: &str) -> u32 {
        let path = self.path().join(file);
        until(|| {
            std::fs::read_to_string(&path)
                .ok()?
                .strip_suffix('\n')?
                .parse()
                .ok()
        })
        .await
    }
}

/// How a trainer went.
pub struct Story {
    pub pid: Option<u32>,
    pub lines: Vec<OutputLine>,
    pub end: Result<ExitReport, Failure>,
}

impl Story {
    pub fn report(&self) -> &ExitReport {
        self.end.as_ref().unwrap()
    }

    pub fn texts(&self) -> Vec<&str> {
        self.lines.iter().map(|line| line.text.as_str()).collect()
    }
}

pub async fn follow(handle: &mut TrainerHandle) -> Story {
    let mut story = Story {
        pid: None,
        lines: Vec::new(),
        end: Err(nothing()),
    };
    while let Some(event) = within(handle.event()).await {
        match event {
            TrainerEvent::Started { pid } => story.pid = Some(pid),
            TrainerEvent::Output(lines) => story.lines.extend(lines),
            TrainerEvent::Exited(report) => story.end = Ok(report),
            TrainerEvent::SpawnFailed(failure) => story.end = Err(failure),
            _ => {}
        }
    }
    story
}

fn nothing() -> Failure {
    Failure::new(
        firesteel_base::FailureCode::Internal,
        firesteel_base::Phase::Start,
        "no last event came",
    )
}

/// Waits for `Started`.
pub async fn started(handle: &mut TrainerHandle) -> u32 {
    loop {
        match within(handle.event()).await {
            Some(TrainerEvent::Started { pid }) => return pid,
            Some(TrainerEvent::Output(_)) => {}
            other => panic!("{other:?} instead of a start"),
        }
    }
}

pub fn kill(pid: u32, signal: i32) {
    let pid = libc::pid_t::try_from(pid).unwrap();
    // SAFETY: a system call without pointers.
    let sent = unsafe { libc::kill(pid, signal) };
    assert_eq!(sent, 0, "process {pid} is gone already");
}

/// The folder of the Python package.
pub fn python_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(3)
        .unwrap()
        .join("python")
}
