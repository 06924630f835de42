//! The supervisor with trainers that are shell scripts.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::time::Duration;

use common::{GRACE, Setup, alive, config, follow, gone, kill, started, until, within};
use firesteel_base::{FailureCode, Phase};
use firesteel_launch::{
    End, ExternalSpec, LaunchError, Stream, Supervisor, SupervisorConfig, TrainerEvent, TrainerSpec,
};

#[tokio::test]
async fn a_trainers_lines_and_exit_code_are_reported() {
    let setup = Setup::new(config()).await;
    let mut handle = setup
        .start_shell("echo out; echo err >&2; printf tail; exit 7")
        .await;
    let story = follow(&mut handle).await;
    assert!(story.pid.is_some());
    let report = story.report();
    assert_eq!((&report.end, report.sent_signal), (&End::Code(7), None));
    assert!(report.max_rss > 0);
    let mut lines: Vec<_> = story
        .lines
        .iter()
        .map(|line| (line.stream, line.text.as_str()))
        .collect();
    lines.sort_by_key(|(stream, _)| *stream == Stream::Stderr);
    assert_eq!(
        lines,
        [
            (Stream::Stdout, "out"),
            (Stream::Stdout, "tail"),
            (Stream::Stderr, "err")
        ]
    );
    assert_eq!(report.log_tail.len(), 3);
    assert!(handle.event().await.is_none());
    let failure = report.failure(Phase::Train);
    assert_eq!(failure.code, FailureCode::Exited);
    assert_eq!(failure.message, "the trainer exited with code 7");
    setup.supervisor.shutdown(GRACE).await;
    assert!(!alive(setup.supervisor.pid()));
}

#[tokio::test]
async fn a_signal_that_ends_a_trainer_is_reported() {
    let setup = Setup::new(config()).await;
    let story = follow(&mut setup.start_shell("kill -SEGV $$").await).await;
    assert_eq!(story.report().end, End::Signal(libc::SIGSEGV));
    let failure = story.report().failure(Phase::Train);
    assert!(
        failure.message.contains("SIGSEGV (a segmentation fault)"),
        "{failure}"
    );
    let story = follow(&mut setup.start_shell("kill -KILL $$").await).await;
    assert_eq!(story.report().end, End::Signal(libc::SIGKILL));
    assert_eq!(story.report().sent_signal, None);
}

#[tokio::test]
async fn a_trainer_gets_its_directory_environment_and_no_input() {
    let setup = Setup::new(config()).await;
    let mut spec =
        setup.shell("pwd; echo $COLOR; read x || echo no input; ls /proc/self/fd | wc -l");
    spec.env.insert("COLOR".into(), "green".into());
    let story = follow(&mut setup.start(TrainerSpec::External(spec)).await).await;
    let cwd = setup.path().canonicalize().unwrap();
    // The three standard descriptors and the one of the listing itself.
    assert_eq!(
        story.texts(),
        [cwd.to_str().unwrap(), "green", "no input", "4"]
    );
}

#[tokio::test]
async fn stop_asks_first_and_then_insists() {
    let setup = Setup::new(config()).await;
    let mut polite = setup
        .start_shell("trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.01; done")
        .await;
    wait_for_line(&mut polite, "up").await;
    polite.stop(common::PATIENCE).await;
    let story = follow(&mut polite).await;
    assert_eq!(story.report().end, End::Code(5));
    assert_eq!(story.report().sent_signal, Some(libc::SIGTERM));
    assert!(story.texts().contains(&"bye"));

    let mut stubborn = setup
        .start_shell("trap '' TERM; echo up; while :; do sleep 0.01; done")
        .await;
    wait_for_line(&mut stubborn, "up").await;
    stubborn.stop_gently().await;
    let story = follow(&mut stubborn).await;
    assert_eq!(story.report().end, End::Signal(libc::SIGKILL));
    assert_eq!(story.report().describe(), "was stopped with SIGKILL");
}

#[tokio::test]
async fn descendants_that_fled_into_their_own_session_are_ended_with_the_trainer() {
    let setup = Setup::new(config()).await;
    // One that lives below the trainer, and one whose parent is gone.
    let script = "setsid sh -c 'echo $$ > below; exec sleep 1000' & \
                  (setsid sh -c 'echo $$ > orphan; exec sleep 1000' &) ; sleep 1000";
    let mut spec = setup.shell(script);
    spec.env.insert("FIRESTEEL_TOKEN".into(), "1.secret".into());
    let mut handle = setup.start(TrainerSpec::External(spec)).await;
    let pid = started(&mut handle).await;
    let below = setup.number_in("below").await;
    let orphan = setup.number_in("orphan").await;
    assert!(alive(pid) && alive(below) && alive(orphan));
    handle.kill().await;
    follow(&mut handle).await;
    gone(below).await;
    gone(orphan).await;
}

#[tokio::test]
async fn what_a_trainer_leaves_running_at_its_own_end_is_ended() {
    let setup = Setup::new(config()).await;
    let script = "sh -c 'trap \"\" TERM; echo $$ > left; while :; do sleep 0.01; done' & \
                  while [ ! -s left ]; do sleep 0.01; done; exit 0";
    let story = follow(&mut setup.start_shell(script).await).await;
    assert!(story.report().success());
    gone(setup.number_in("left").await).await;
}

#[tokio::test]
async fn everything_ends_when_the_agent_vanishes() {
    let setup = Setup::new(config()).await;
    let script = "trap '' TERM; setsid sh -c 'echo $$ > child; exec sleep 1000' & \
                  while :; do sleep 0.01; done";
    let mut handle = setup.start_shell(script).await;
    let pid = started(&mut handle).await;
    let child = setup.number_in("child").await;
    let supervisor = setup.supervisor.pid();
    let Setup {
        supervisor: last,
        folder,
        ..
    } = setup;
    drop(handle);
    drop(last);
    gone(pid).await;
    gone(child).await;
    gone(supervisor).await;
    drop(folder);
}

#[tokio::test]
async fn a_dropped_handle_ends_its_trainer() {
    let setup = Setup::new(config()).await;
    let mut handle = setup.start_shell("exec sleep 1000").await;
    let pid = started(&mut handle).await;
    drop(handle);
    gone(pid).await;
    assert!(alive(setup.supervisor.pid()));
}

#[tokio::test]
async fn trainers_die_with_a_killed_supervisor_and_their_readers_are_told() {
    let setup = Setup::new(config()).await;
    let mut handle = setup.start_shell("exec sleep 1000").await;
    let pid = started(&mut handle).await;
    kill(setup.supervisor.pid(), libc::SIGKILL);
    gone(pid).await;
    let story = follow(&mut handle).await;
    assert_eq!(story.report().end, End::Lost);
    within(setup.supervisor.closed()).await;
    let late = setup
        .supervisor
        .spawn(TrainerSpec::External(setup.shell("true")))
        .await;
    assert!(matches!(late, Err(LaunchError::Gone)));
}

#[tokio::test]
async fn a_supervisor_that_is_asked_to_end_ends_its_trainers_first() {
    let setup = Setup::new(config()).await;
    let mut handle = setup.start_shell("exec sleep 1000").await;
    let pid = started(&mut handle).await;
    kill(setup.supervisor.pid(), libc::SIGTERM);
    let story = follow(&mut handle).await;
    assert_eq!(story.report().end, End::Signal(libc::SIGTERM));
    within(setup.supervisor.closed()).await;
    assert!(!alive(pid));
}

#[test]
fn without_an_agent_trainers_may_come_to_their_end() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let (agent, watcher) = (runtime(), runtime());
    let (setup, handle, pid) = agent.block_on(async {
        let setup = Setup::new(SupervisorConfig {
            die_with_agent: false,
            ..config()
        })
        .await;
        let script = "while [ ! -e go ]; do sleep 0.01; done; echo $$ > done";
        let mut handle = setup.start_shell(script).await;
        let pid = started(&mut handle).await;
        (setup, handle, pid)
    });
    let supervisor = setup.supervisor.pid();
    let socket = format!("/proc/{supervisor}/fd");
    let sockets = || {
        let links = std::fs::read_dir(&socket)
            .unwrap()
            .filter_map(|entry| entry.ok()?.path().read_link().ok());
        links
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .count()
    };
    // The agent goes without a word, as in a crash: only its socket closes.
    agent.shutdown_timeout(common::PATIENCE);
    watcher.block_on(async {
        until(|| (sockets() == 0).then_some(())).await;
        assert!(alive(pid) && alive(supervisor));
        std::fs::write(setup.path().join("go"), "").unwrap();
        assert_eq!(setup.number_in("done").await, pid);
        gone(supervisor).await;
        assert!(!alive(pid));
        drop(handle);
    });
}

#[tokio::test]
async fn what_cannot_be_started_is_a_failure_that_says_why() {
    let setup = Setup::new(config()).await;
    let plain = setup.path().join("plain");
    std::fs::write(&plain, "hello").unwrap();
    let command = |argv: &[&str]| ExternalSpec {
        argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        ..setup.shell("")
    };
    let cases = [
        (
            command(&["no-such-command-here", "x"]),
            "the command `no-such-command-here` was not found",
        ),
        (command(&[plain.to_str().unwrap()]), "may not be executed"),
        (command(&[]), "the trainer's command is empty"),
        (
            ExternalSpec {
                cwd: "/no/such/folder".into(),
                ..setup.shell("true")
            },
            "the trainer's working directory `/no/such/folder` does not exist",
        ),
        (
            ExternalSpec {
                terminal: Some("/no/such/tty".into()),
                ..setup.shell("true")
            },
            "the terminal `/no/such/tty` could not be opened",
        ),
        (
            ExternalSpec {
                argv: vec!["/bin/echo".into(), "x".repeat(900_000)],
                ..setup.shell("")
            },
            "are too long",
        ),
        (
            ExternalSpec {
                argv: vec!["/bin/echo".into(), "x".repeat(2 << 20)],
                ..setup.shell("")
            },
            "do not fit a message",
        ),
    ];
    for (spec, words) in cases {
        let story = follow(&mut setup.start(TrainerSpec::External(spec)).await).await;
        let failure = story.end.unwrap_err();
        assert_eq!(failure.code, FailureCode::SpawnFailed);
        assert!(failure.message.contains(words), "{failure}");
        assert!(!failure.hint.is_empty());
    }
    let warm = TrainerSpec::Warm(firesteel_launch::WarmSpec {
        script: "x.py".into(),
        args: Vec::new(),
        cwd: setup.path().to_owned(),
        env: BTreeMap::new(),
        seed: None,
    });
    let failure = follow(&mut setup.start(warm).await).await.end.unwrap_err();
    assert!(
        failure
            .message
            .contains("no interpreter to fork trainers from"),
        "{failure}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trainer_on_a_terminal_talks_to_a_person() {
    let setup = Setup::new(config()).await;
    let (person, terminal) = terminal();
    let (mut ear, mut mouth) = (person, person);
    let mut spec =
        setup.shell("test -t 0 && test -t 1 && printf 'name? '; read name; echo hello $name");
    spec.terminal = Some(terminal);
    let mut handle = setup.start(TrainerSpec::External(spec)).await;
    let mut said = String::new();
    let mut hear = |wanted: &str| {
        let mut buffer = [0; 256];
        while !said.contains(wanted) {
            let count = ear.read(&mut buffer).unwrap();
            said.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
    };
    hear("name? ");
    mouth.write_all(b"world\n").unwrap();
    hear("hello world");
    let story = follow(&mut handle).await;
    assert!(story.report().success());
    assert!(story.lines.is_empty());
}

/// The person's end of a new terminal, and the path of the other.
fn terminal() -> (&'static std::fs::File, PathBuf) {
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    // SAFETY: a system call without pointers.
    let descriptor = unsafe { libc::posix_openpt(flags) };
    assert!(descriptor >= 0);
    let mut name = [0; 128];
    // SAFETY: the descriptor is open, and the buffer as long as is said.
    let made = unsafe {
        libc::grantpt(descriptor) == 0
            && libc::unlockpt(descriptor) == 0
            && libc::ptsname_r(descriptor, name.as_mut_ptr(), name.len()) == 0
    };
    assert!(made);
    // SAFETY: the name was just written, with a zero at its end.
    let name = unsafe { std::ffi::CStr::from_ptr(name.as_ptr()) }
        .to_str()
        .unwrap()
        .to_owned();
    // SAFETY: the descriptor is open and nobody else's.
    let person = unsafe { std::fs::File::from_raw_fd(descriptor) };
    // Open to the end of the test: without a person the terminal hangs up.
    (Box::leak(Box::new(person)), name.into())
}

#[tokio::test]
async fn a_binary_that_is_no_supervisor_is_named() {
    for (binary, words) in [
        ("/no/such/firesteel", "could not be started"),
        ("/bin/true", "does not work as a supervisor"),
    ] {
        let config = SupervisorConfig {
            binary: binary.into(),
            ..config()
        };
        let error = Supervisor::start(config, |_| ()).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.to_string().contains(binary), "{error}");
    }
}

#[tokio::test]
async fn a_flood_of_output_is_cut_short_for_a_slow_reader_but_not_its_end() {
    let setup = Setup::new(config()).await;
    let mut handle = setup
        .start_shell("i=0; while [ $i -lt 200000 ]; do echo line $i; i=$((i+1)); done")
        .await;
    // Nothing is read until the trainer is gone.
    let pid = started(&mut handle).await;
    gone(pid).await;
    let story = follow(&mut handle).await;
    let report = story.report();
    assert!(report.success());
    assert_eq!(
        report.log_tail.len(),
        firesteel_base::limits::LOG_TAIL_LINES
    );
    assert_eq!(report.log_tail.last().unwrap().text, "line 199999");
    assert!(story.lines.len() < 200_000, "all lines were held in memory");
}

#[tokio::test]
async fn many_short_trainers_leave_nothing_behind() {
    let setup = Setup::new(config()).await;
    let supervisor = setup.supervisor.pid();
    let descriptors = || {
        std::fs::read_dir(format!("/proc/{supervisor}/fd"))
            .unwrap()
            .count()
    };
    follow(&mut setup.start_shell("exit 0").await).await;
    let before = descriptors();
    for _ in 0..10 {
        let mut handles = Vec::new();
        for _ in 0..20 {
            handles.push(setup.start_shell("echo hello; exit 3").await);
        }
        for handle in &mut handles {
            let story = follow(handle).await;
            assert_eq!(story.report().end, End::Code(3));
            assert_eq!(story.texts(), ["hello"]);
        }
    }
    until(|| (descriptors() == before).then_some(())).await;
    let children = format!("/proc/{supervisor}/task/{supervisor}/children");
    until(|| {
        std::fs::read_to_string(&children)
            .map_or(true, |all| all.is_empty())
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn shutdown_ends_stubborn_trainers_and_waits_for_them() {
    let setup = Setup::new(config()).await;
    let mut pids = Vec::new();
    let mut handles = Vec::new();
    for _ in 0..3 {
        let mut handle = setup
            .start_shell("trap '' TERM; echo up; while :; do sleep 0.01; done")
            .await;
        pids.push(started(&mut handle).await);
        wait_for_line(&mut handle, "up").await;
        handles.push(handle);
    }
    let before = std::time::Instant::now();
    within(setup.supervisor.shutdown(Duration::from_millis(100))).await;
    assert!(
        before.elapsed() < Duration::from_secs(3),
        "{:?}",
        before.elapsed()
    );
    for (pid, handle) in pids.into_iter().zip(&mut handles) {
        assert!(!alive(pid));
        assert_eq!(
            follow(handle).await.report().end,
            End::Signal(libc::SIGKILL)
        );
    }
}

async fn wait_for_line(handle: &mut firesteel_launch::TrainerHandle, wanted: &str) {
    loop {
        match within(handle.event()).await {
            Some(TrainerEvent::Output(lines)) if lines.iter().any(|line| line.text == wanted) => {
                return;
            }
            Some(TrainerEvent::Started { .. } | TrainerEvent::Output(_)) => {}
            other => panic!("{other:?} instead of `{wanted}`"),
        }
    }
}
