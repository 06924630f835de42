//! The warm parent, with a real interpreter: `$FIRESTEEL_TEST_PYTHON`, or `python3`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{Setup, alive, config, follow, gone, kill, python_path, started, until, within};
use firesteel_base::{FailureCode, Phase};
use firesteel_launch::{
    End, SupervisorConfig, SupervisorNotice, TrainerEvent, TrainerHandle, TrainerSpec, WarmSpec,
    thread_env,
};

fn python() -> PathBuf {
    std::env::var_os("FIRESTEEL_TEST_PYTHON")
        .unwrap_or_else(|| "python3".into())
        .into()
}

fn warm_config() -> SupervisorConfig {
    let mut env: BTreeMap<_, _> = thread_env(1).into_iter().collect();
    env.insert("PYTHONPATH".into(), python_path().to_str().unwrap().into());
    SupervisorConfig {
        python: Some(python()),
        env,
        ..config()
    }
}

async fn warm() -> Setup {
    let setup = Setup::new(warm_config()).await;
    ready(&setup).await;
    setup
}

/// Waits until the warm parent is ready and gives its process id.
async fn ready(setup: &Setup) -> u32 {
    until(|| {
        let notices = setup.notices.lock().unwrap();
        if let Some(lost) =
            notices.iter().find(|notice| matches!(notice, SupervisorNotice::WarmLost { .. }))
        {
            panic!(
                "these tests need {} (3.11 or newer), or another in FIRESTEEL_TEST_PYTHON: {lost:?} {notices:?}",
                python().display()
            );
        }
        notices.iter().find_map(|notice| match notice {
            SupervisorNotice::WarmReady { pid, .. } => Some(*pid),
            _ => None,
        })
    })
    .await
}

impl Setup {
    fn script(&self, text: &str) -> WarmSpec {
        let script = self.path().join("client.py");
        std::fs::write(&script, text).unwrap();
        WarmSpec {
            script,
            args: Vec::new(),
            cwd: self.path().to_owned(),
            env: BTreeMap::new(),
            seed: None,
        }
    }

    async fn start_script(&self, text: &str) -> TrainerHandle {
        self.start(TrainerSpec::Warm(self.script(text))).await
    }

    async fn run_script(&self, text: &str) -> common::Story {
        follow(&mut self.start_script(text).await).await
    }
}

#[tokio::test]
async fn a_script_runs_as_if_started_by_itself() {
    let setup = warm().await;
    std::fs::write(
        setup.path().join("beside.py"),
        "NAME = 'a module beside the script'\n",
    )
    .unwrap();
    let mut spec = setup.script(
        "import os, sys, beside, pickle\n\
         class Net: pass\n\
         if __name__ == '__main__':\n\
         \x20   print(sys.argv[1:], os.environ['COLOR'], os.getcwd() == os.path.dirname(os.path.realpath(__file__)))\n\
         \x20   print(beside.NAME, sys.stdin.read() == '', 'LD_BIND_NOW' in os.environ)\n\
         \x20   print(type(pickle.loads(pickle.dumps(Net()))).__name__, sys.modules['__main__'].__file__ == __file__)\n\
         \x20   print(os.getsid(0) == os.getpid(), sorted(map(int, os.listdir('/proc/self/fd')))[:4])\n\
         \x20   print('to stderr', file=sys.stderr)\n\
         \x20   import atexit; atexit.register(print, 'at exit')\n\
         \x20   import threading; threading.Timer(0.05, print, ['from a thread']).start()\n\
         \x20   sys.exit(5)\n",
    );
    spec.args = vec!["--lr".into(), "0.1".into()];
    spec.env.insert("COLOR".into(), "green".into());
    let story = follow(&mut setup.start(TrainerSpec::Warm(spec)).await).await;
    assert_eq!(story.report().end, End::Code(5));
    let mut lines = story.texts();
    lines.retain(|line| *line != "to stderr");
    assert_eq!(
        lines,
        [
            "['--lr', '0.1'] green True",
            "a module beside the script True False",
            "Net True",
            // 3 is the lifeline, and what follows is the listing's own.
            "True [0, 1, 2, 3]",
            "from a thread",
            "at exit",
        ]
    );
    assert_eq!(story.lines.len(), lines.len() + 1);
    assert!(story.report().max_rss > 0 && !story.report().cpu.is_zero());
}

#[tokio::test]
async fn an_exception_leaves_the_scripts_own_traceback() {
    let setup = warm().await;
    let story = setup
        .run_script("def train():\n    raise ValueError('bad data')\ntrain()\n")
        .await;
    assert_eq!(story.report().end, End::Code(1));
    let client = setup.path().join("client.py");
    let client = client.display();
    let mut lines = story.texts();
    // Newer versions underline the place; not the same in each.
    lines.retain(|line| !line.trim_start().starts_with(['^', '~']));
    assert_eq!(
        lines,
        [
            "Traceback (most recent call last):",
            &format!("  File \"{client}\", line 3, in <module>"),
            "    train()",
            &format!("  File \"{client}\", line 2, in train"),
            "    raise ValueError('bad data')",
            "ValueError: bad data",
        ]
    );
    let failure = story.report().failure(Phase::Train);
    assert_eq!(failure.log_tail.last().unwrap(), "ValueError: bad data");
}

#[tokio::test]
async fn a_script_that_does_not_compile_says_where() {
    let setup = warm().await;
    let story = setup.run_script("x = 1\ny = = 2\n").await;
    assert_eq!(story.report().end, End::Code(1));
    assert!(
        story.texts().iter().any(|line| line.contains("line 2")),
        "{:?}",
        story.texts()
    );
    assert!(story.texts().last().unwrap().starts_with("SyntaxError"));
}

#[tokio::test]
async fn a_changed_script_is_compiled_anew() {
    let setup = warm().await;
    assert_eq!(setup.run_script("print('one')\n").await.texts(), ["one"]);
    assert_eq!(
        setup.run_script("print('other')\n").await.texts(),
        ["other"]
    );
}

#[tokio::test]
async fn exits_and_signals_are_told_apart() {
    let setup = warm().await;
    for (script, end) in [
        ("", End::Code(0)),
        ("import sys; sys.exit('no data here')", End::Code(1)),
        ("import os; os._exit(9)", End::Code(9)),
        ("import os; os.abort()", End::Signal(libc::SIGABRT)),
        ("raise KeyboardInterrupt", End::Signal(libc::SIGINT)),
        (
            "import atexit, sys; atexit.register(sys.exit, 3)",
            End::Code(0),
        ),
    ] {
        let story = setup.run_script(script).await;
        assert_eq!(story.report().end, end, "{script}: {:?}", story.texts());
    }
    let story = setup.run_script("import ctypes; ctypes.string_at(1)").await;
    assert_eq!(story.report().end, End::Signal(libc::SIGSEGV));
    let said = story.texts().join("\n");
    assert!(
        said.contains("Segmentation fault") && said.contains("client.py"),
        "{said}"
    );
    let story = setup
        .run_script("import sys; sys.exit('no data here')")
        .await;
    assert_eq!(story.texts(), ["no data here"]);
}

#[tokio::test]
async fn a_crash_of_an_external_interpreter_is_told_with_its_lines_too() {
    let setup = warm().await;
    let mut spec = setup.shell("");
    let script = "print('before'); import ctypes; ctypes.string_at(1)";
    spec.argv = vec![
        python().to_str().unwrap().into(),
        "-c".into(),
        script.into(),
    ];
    let story = follow(&mut setup.start(TrainerSpec::External(spec)).await).await;
    assert_eq!(story.report().end, End::Signal(libc::SIGSEGV));
    let said = story.texts().join("\n");
    assert!(
        said.contains("before") && said.contains("Segmentation fault"),
        "{said}"
    );
}

#[tokio::test]
async fn equal_seeds_give_equal_numbers_and_none_gives_others() {
    let setup = warm().await;
    let script = "import random, sys\n\
                  print(random.random())\n\
                  if 'numpy' in sys.modules:\n    import numpy; print(numpy.random.rand())\n";
    let mut drawn = Vec::new();
    for seed in [
        Some("7/site-1/0"),
        Some("7/site-1/0"),
        Some("7/site-2/0"),
        None,
        None,
    ] {
        let mut spec = setup.script(script);
        spec.seed = seed.map(str::to_owned);
        let story = follow(&mut setup.start(TrainerSpec::Warm(spec)).await).await;
        assert!(story.report().success(), "{:?}", story.texts());
        drawn.push(story.texts().join(" "));
    }
    assert_eq!(drawn[0], drawn[1]);
    let distinct: std::collections::HashSet<_> = drawn.iter().collect();
    assert_eq!(distinct.len(), 4, "{drawn:?}");
}

#[tokio::test]
async fn a_script_that_is_not_there_is_a_failure_that_says_so() {
    let setup = warm().await;
    for (script, words) in [
        ("gone.py", "gone.py` does not exist"),
        ("", "is not a file"),
    ] {
        let mut spec = setup.script("");
        spec.script = setup.path().join(script);
        let story = follow(&mut setup.start(TrainerSpec::Warm(spec)).await).await;
        let failure = story.end.unwrap_err();
        assert_eq!(failure.code, FailureCode::ScriptMissing, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
    }
}

#[tokio::test]
async fn what_a_trainer_forked_is_ended_with_it() {
    let setup = warm().await;
    let script = "import os, time\n\
                  if os.fork() == 0:\n\
                  \x20   os.setsid()\n\
                  \x20   print(os.getpid(), file=open('child', 'w'))\n\
                  time.sleep(1000)\n";
    let mut handle = setup.start_script(script).await;
    let pid = started(&mut handle).await;
    let child = setup.number_in("child").await;
    handle.stop_gently().await;
    assert_eq!(
        follow(&mut handle).await.report().end,
        End::Signal(libc::SIGTERM)
    );
    gone(child).await;
    assert!(!alive(pid));
}

#[tokio::test]
async fn trainers_survive_their_warm_parent_and_the_next_one_takes_over() {
    let setup = warm().await;
    let warm = ready(&setup).await;
    let script =
        "import time, os\nwhile not os.path.exists('go'): time.sleep(0.005)\nraise SystemExit(4)\n";
    let mut handle = setup.start_script(script).await;
    let pid = started(&mut handle).await;
    kill(warm, libc::SIGKILL);
    until(|| {
        let notices = setup.notices.lock().unwrap();
        notices
            .iter()
            .any(|notice| matches!(notice, SupervisorNotice::WarmLost { message } if message.contains("SIGKILL")))
            .then_some(())
    })
    .await;
    assert!(alive(pid));
    assert_eq!(setup.run_script("print('again')").await.texts(), ["again"]);
    std::fs::write(setup.path().join("go"), "").unwrap();
    assert_eq!(follow(&mut handle).await.report().end, End::Code(4));
}

#[tokio::test]
async fn a_request_on_its_way_when_the_warm_parent_dies_is_asked_again() {
    let setup = warm().await;
    let warm = ready(&setup).await;
    kill(warm, libc::SIGSTOP);
    let mut handle = setup.start_script("print('here')").await;
    // Its socket now holds the request, and nobody will ever read it.
    until(|| request_is_waiting(&setup).then_some(())).await;
    kill(warm, libc::SIGKILL);
    let story = follow(&mut handle).await;
    assert!(story.report().success());
    assert_eq!(story.texts(), ["here"]);
}

/// A request's pipes exist in the supervisor from the moment it was sent.
fn request_is_waiting(setup: &Setup) -> bool {
    let folder = format!("/proc/{}/fd", setup.supervisor.pid());
    let pipes = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|link| link.to_string_lossy().starts_with("pipe:"))
        .count();
    // Signals and lifeline, two ends each; two of the warm parent; two of the trainer.
    pipes >= 8
}

#[tokio::test]
async fn trainers_die_with_a_killed_supervisor() {
    let setup = warm().await;
    let warm = ready(&setup).await;
    // A loop that never gets back to the interpreter could not handle a signal
    // in Python; this one does not even try.
    let script =
        "import signal\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\nwhile True: pass\n";
    let mut handle = setup.start_script(script).await;
    let pid = started(&mut handle).await;
    kill(setup.supervisor.pid(), libc::SIGKILL);
    gone(pid).await;
    gone(warm).await;
}

#[tokio::test]
async fn an_interpreter_that_cannot_serve_is_named_with_its_last_words() {
    let mut config = warm_config();
    config.env.insert("PYTHONPATH".into(), String::new());
    config.env.insert("PYTHONNOUSERSITE".into(), "1".into());
    let setup = Setup::new(config).await;
    let story = setup.run_script("print('never')").await;
    let failure = story.end.unwrap_err();
    assert_eq!(failure.code, FailureCode::SpawnFailed);
    assert!(
        failure
            .message
            .contains("exited with code 1 before it was ready"),
        "{failure}"
    );
    assert!(
        failure
            .log_tail
            .iter()
            .any(|line| line.contains("firesteel")),
        "{failure:?}"
    );

    let config = SupervisorConfig {
        python: Some("/no/such/python".into()),
        ..warm_config()
    };
    let setup = Setup::new(config).await;
    let failure = setup.run_script("print('never')").await.end.unwrap_err();
    assert!(
        failure.message.contains("`/no/such/python` was not found"),
        "{failure}"
    );
}

#[tokio::test]
async fn only_modules_of_the_allow_list_are_imported_ahead() {
    let mut config = warm_config();
    config.preload = vec!["this".into(), "requests.api".into(), "colorsys".into()];
    let setup = Setup::new(config).await;
    ready(&setup).await;
    let failed = setup
        .notices
        .lock()
        .unwrap()
        .iter()
        .find_map(|notice| match notice {
            SupervisorNotice::WarmReady { failed, .. } => Some(failed.clone()),
            _ => None,
        });
    let failed = failed.unwrap();
    assert!(
        failed["this"].contains("not one of the modules"),
        "{failed:?}"
    );
    assert!(failed.contains_key("requests.api") && !failed.contains_key("colorsys"));
    let story = setup
        .run_script("import sys; print([name in sys.modules for name in ('this', 'colorsys')])")
        .await;
    assert_eq!(story.texts(), ["[False, True]"]);
}

#[tokio::test]
async fn multiprocessing_works_in_a_trainer() {
    let setup = warm().await;
    let script = "import multiprocessing as mp\n\
                  def double(x): return 2 * x\n\
                  if __name__ == '__main__':\n\
                  \x20   for way in ('fork', 'spawn'):\n\
                  \x20       with mp.get_context(way).Pool(1) as pool: print(way, pool.map(double, [1, 2]))\n";
    let story = setup.run_script(script).await;
    assert_eq!(story.texts(), ["fork [2, 4]", "spawn [2, 4]"]);
}

#[tokio::test]
async fn a_hundred_trainers_start_within_a_moment() {
    let setup = warm().await;
    let before = Instant::now();
    let mut handles = Vec::new();
    for _ in 0..100 {
        handles.push(setup.start_script("print('here')").await);
    }
    for handle in &mut handles {
        let story = within(follow(handle)).await;
        assert!(story.report().success(), "{:?}", story.texts());
        assert_eq!(story.texts(), ["here"]);
    }
    // A cold start takes a tenth of a second and more for each.
    assert!(before.elapsed().as_secs() < 8, "{:?}", before.elapsed());
}

async fn reusing() -> Setup {
    let setup = Setup::new(SupervisorConfig {
        reuse: true,
        ..warm_config()
    })
    .await;
    ready(&setup).await;
    setup
}

#[tokio::test]
async fn a_reused_process_runs_the_next_script_as_if_it_were_the_first() {
    let setup = reusing().await;
    std::fs::write(setup.path().join("counter.py"), "COUNT = 0\n").unwrap();
    let text = "import os, sys, signal, counter, logging\n\
         counter.COUNT += 1\n\
         print(os.getpid(), counter.COUNT, sys.argv[1:], os.environ.get('LEFT'), 'global' in globals())\n\
         print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, len(logging.getLogger().handlers))\n\
         os.environ['LEFT'] = 'here'\n\
         globals()['global'] = 1\n\
         logging.basicConfig()\n\
         signal.signal(signal.SIGTERM, lambda *_: None)\n\
         sys.path.insert(0, '/nowhere')\n\
         sys.stdout = sys.stderr\n";
    let mut pids = Vec::new();
    for count in 0..4 {
        let mut spec = setup.script(text);
        spec.args = vec![count.to_string()];
        let story = follow(&mut setup.start(TrainerSpec::Warm(spec)).await).await;
        assert_eq!(story.report().end, End::Code(0));
        assert!(story.report().max_rss > 0);
        let lines = story.texts();
        let (pid, said) = lines[0].split_once(' ').unwrap();
        assert_eq!(said, format!("1 ['{count}'] None False"));
        assert_eq!(lines[1], "True 0");
        pids.push(pid.to_owned());
    }
    pids.dedup();
    assert_eq!(pids.len(), 1, "the process was not used again: {pids:?}");
}

#[tokio::test]
async fn what_cannot_be_taken_back_ends_a_reused_process() {
    let leaving = [
        "import sys; sys.exit(3)",
        "raise ValueError('no')",
        "import os; os.kill(os.getpid(), 9)",
        "import subprocess; subprocess.Popen(['sleep', '60'])",
        "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "import atexit; atexit.register(print, 'at exit')",
        "import builtins; builtins.kept = open('/dev/null')",
    ];
    let setup = reusing().await;
    let pid = "import os; print(os.getpid())\n";
    let mut seen = std::collections::HashSet::new();
    for text in leaving {
        // A worker whose files are counted: whatever the script opens is one more.
        let before = setup.run_script(pid).await;
        let left = setup.run_script(&format!("{pid}{text}\n")).await;
        assert_eq!(before.texts()[0], left.texts()[0], "{text}");
        if text.contains("atexit") {
            assert_eq!(left.texts()[1], "at exit");
        }
        assert!(
            seen.insert(before.texts()[0].to_owned()),
            "{text}: still there"
        );
    }
    assert_eq!(
        setup.run_script("raise SystemExit(4)").await.report().end,
        End::Code(4)
    );
}

#[tokio::test]
async fn a_reused_process_can_be_stopped_and_dies_with_its_supervisor() {
    let setup = reusing().await;
    setup.run_script("pass").await;
    let mut handle = setup
        .start_script("print('in', flush=True)\nimport time; time.sleep(600)")
        .await;
    handle.stop(Duration::from_secs(5)).await;
    let story = follow(&mut handle).await;
    assert_eq!(story.report().end, End::Signal(libc::SIGTERM));
    // The next one finds another process.
    assert_eq!(setup.run_script("pass").await.report().end, End::Code(0));
}

#[tokio::test]
async fn the_end_of_one_script_is_never_taken_for_that_of_the_next() {
    let setup = reusing().await;
    let mut ends = Vec::new();
    for count in 0..100 {
        let mut spec = setup.script("import sys; print(sys.argv[1], flush=True)\n");
        spec.args = vec![count.to_string()];
        let mut handle = setup.start(TrainerSpec::Warm(spec)).await;
        // The next is asked for while this one ends.
        let mut lines = Vec::new();
        while lines.is_empty() {
            match within(handle.event()).await {
                Some(TrainerEvent::Output(more)) => lines.extend(more),
                Some(TrainerEvent::Started { .. }) => {}
                other => panic!("{count}: {other:?}"),
            }
        }
        assert_eq!(lines[0].text, count.to_string());
        ends.push(tokio::spawn(async move { follow(&mut handle).await }));
    }
    for end in ends {
        let story = end.await.unwrap();
        assert_eq!(
            (story.report().end.clone(), story.lines.len()),
            (End::Code(0), 0)
        );
    }
}
