//! Whole simulations, whose trainers are processes that do what a script says.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use firesteel_base::Round;
use firesteel_flow::JobStage;
use firesteel_rig::models::{model, values_in};
use firesteel_rig::wait::{alive, block_until as until};
use firesteel_sim::{SimError, SimOutcome, Simulation};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(25);
/// What does not wait for a grace is done by then, however busy the machine.
const AT_ONCE: Duration = Duration::from_secs(10);

/// The program that is supervisor and trainers.
fn processes() -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let target = me.ancestors().nth(2).unwrap();
    let program = target.join("examples/processes-for-sim-tests");
    assert!(
        program.exists(),
        "`cargo nextest run -p firesteel-sim` builds {}",
        program.display()
    );
    program
}

/// A job, a machine, and a place for both.
struct Bench {
    folder: tempfile::TempDir,
    spec: Value,
    options: Value,
}

impl Bench {
    fn new(sites: usize, rounds: u32, script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let names: Vec<String> = (1..=sites).map(|n| format!("site-{n}")).collect();
        let client = path.join("client.txt");
        std::fs::write(&client, script.replace("$DIR", path.to_str().unwrap())).unwrap();
        let spec = json!({
            "version": 1, "name": "test",
            "algorithm": {"kind": "fedavg", "num_rounds": rounds},
            "sites": names, "min_clients": sites, "seed": 7,
            "trainer": {"script": client, "mode": "external", "command": [processes(), "train"]},
        });
        let options = json!({
            "root": path.join("runs"), "python": "/none", "binary": processes(),
            "num_workers": sites, "console": "off", "log": "full", "threads": 2,
            "durations": {"stop_grace_s": 15.0, "drain_s": 5.0},
        });
        Self {
            folder,
            spec,
            options,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn touch(&self, name: &str) {
        std::fs::write(self.path(name), "").unwrap();
    }

    fn script(&self, script: &str) {
        let text = script.replace("$DIR", self.folder.path().to_str().unwrap());
        std::fs::write(self.path("client.txt"), text).unwrap();
    }

    fn start(&self) -> Simulation {
        let spec = self.spec.to_string();
        let mut simulation =
            Simulation::new(spec.as_bytes(), self.options.to_string().as_bytes()).unwrap();
        simulation.start().unwrap();
        simulation
    }

    fn run(&self) -> SimOutcome {
        ended(&self.start()).unwrap()
    }

    fn pids(&self) -> Vec<u32> {
        let text = std::fs::read_to_string(self.path("pids")).unwrap_or_default();
        // The last line may be half written.
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

fn ended(simulation: &Simulation) -> Result<SimOutcome, SimError> {
    assert!(
        simulation.waiter().wait(PATIENCE),
        "{:?}",
        simulation.status()
    );
    simulation.result().unwrap()
}

fn last_model(outcome: &SimOutcome) -> Vec<u8> {
    std::fs::read(outcome.report.run_dir.join("models/last.safetensors")).unwrap()
}

fn in_round(simulation: &Simulation, round: u32) {
    until(|| {
        let status = simulation.status()?;
        (status.round == Some(Round(round)) && status.stage == JobStage::Running).then_some(())
    });
}

#[test]
fn a_simulation_trains_and_says_what_it_came_to() {
    let bench = Bench::new(3, 3, "lines $DIR/pids\nconnect\nserve 0.5");
    let outcome = bench.run();
    assert_eq!(
        outcome.report.status(),
        "completed",
        "{:?}",
        outcome.cause()
    );
    assert_eq!(
        (outcome.rounds(), outcome.cause(), outcome.hint()),
        (Some(3), None, String::new())
    );
    assert!(
        outcome.stop().unwrap().contains("all rounds"),
        "{:?}",
        outcome.stop()
    );
    assert!(outcome.report.failures.is_empty());
    assert_eq!(
        values_in(&last_model(&outcome)),
        [(0.5f32 * 1.1 + 0.5) * 1.1 + 0.5]
    );
    let run = &outcome.report.run_dir;
    assert!(run.starts_with(bench.path("runs/test")));
    let summary: Value =
        serde_json::from_slice(&std::fs::read(run.join("metrics/summary.json")).unwrap()).unwrap();
    assert_eq!(summary["status"], "completed");
    let rounds = std::fs::read_to_string(run.join("metrics/rounds.jsonl")).unwrap();
    assert_eq!(rounds.lines().count(), 3);
    assert_eq!(
        bench.pids().len(),
        3,
        "one process per site for the whole job"
    );
    until(|| bench.pids().iter().all(|&pid| !alive(pid)).then_some(()));
    assert_eq!(
        std::fs::read_to_string(run.join("error_log.txt")).unwrap_or_default(),
        ""
    );
}

#[test]
fn the_bits_do_not_depend_on_which_trainer_is_done_first() {
    let mut bits = Vec::new();
    for order in [
        [1, 2, 3],
        [1, 3, 2],
        [2, 1, 3],
        [2, 3, 1],
        [3, 1, 2],
        [3, 2, 1],
    ] {
        let mut script = "connect\nnext\n".to_owned();
        let turn = |site: u32| order.iter().position(|&one| one == site).unwrap();
        for site in 1..=3 {
            script += &format!("at site-{site} wait $DIR/turn-{}\n", turn(site));
        }
        script += "at site-1 send 1e8\nat site-2 send 0.1\nat site-3 send -1e8\n";
        for site in 1..=3 {
            script += &format!("at site-{site} touch $DIR/turn-{}\n", turn(site) + 1);
        }
        let bench = Bench::new(3, 1, &script);
        bench.touch("turn-0");
        let outcome = bench.run();
        assert_eq!(
            outcome.report.status(),
            "completed",
            "{:?}",
            outcome.cause()
        );
        bits.push(last_model(&outcome));
    }
    assert!(bits.windows(2).all(|two| two[0] == two[1]));
}

#[test]
fn a_run_that_is_aborted_in_mid_round_and_resumed_ends_with_the_same_bits() {
    let place = Bench::new(2, 5, "connect\nserve 0.3");
    let whole = place.run();
    assert_eq!(whole.report.status(), "completed");
    for round in 0..5 {
        let held = format!(
            "connect\n{}next\nat site-2 wait $DIR/go\nsend 0.3\nserve 0.3",
            "next\nsend 0.3\n".repeat(round)
        );
        let mut bench = Bench::new(2, 5, &held);
        let simulation = bench.start();
        in_round(&simulation, round as u32);
        simulation.abort("the lights went out");
        let outcome = ended(&simulation).unwrap();
        assert_eq!(outcome.cause().as_deref(), Some("the lights went out"));
        bench.script("connect\nserve 0.3");
        bench.options["resume"] = json!(true);
        let resumed = bench.run();
        assert_eq!(
            resumed.report.status(),
            "completed",
            "round {round}: {:?}",
            resumed.cause()
        );
        assert_eq!(
            resumed.report.resumed_after,
            round.checked_sub(1).map(|round| Round(round as u32))
        );
        assert_eq!(resumed.report.run_dir, outcome.report.run_dir);
        assert_eq!(last_model(&resumed), last_model(&whole), "round {round}");
    }
}

#[test]
fn a_site_that_fails_is_named_and_the_quorum_decides() {
    let script = "connect\nat site-2 exit 3\nserve 1";
    let mut bench = Bench::new(3, 2, script);
    bench.spec["min_clients"] = json!(2);
    let outcome = bench.run();
    assert_eq!(outcome.report.status(), "completed with 2 of 3 sites");
    assert_eq!(outcome.report.failures.len(), 1);
    let failed = &outcome.report.failures[0];
    assert_eq!((&*failed.site, failed.round), ("site-2", Some(Round(1))));
    assert!(
        failed.failure.message.contains("exited with code 3"),
        "{}",
        failed.failure
    );
    assert!(!failed.failure.hint.is_empty());

    let bench = Bench::new(3, 2, script);
    let started = Instant::now();
    let outcome = bench.run();
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    assert_eq!(outcome.report.status(), "failed");
    let cause = outcome.cause().unwrap();
    assert!(
        cause.contains("site-2: ") && cause.contains("exited with code 3"),
        "{cause}"
    );
    assert!(
        outcome.hint().contains("flare.receive()"),
        "{}",
        outcome.hint()
    );
    assert_eq!(outcome.rounds(), None);
}

#[test]
fn a_late_result_counts_in_the_round_that_is_open_when_it_comes() {
    // site-2 answers the first round when site-1 is at work in the second.
    let script = "connect\nnext\nat site-2 wait $DIR/go\nat site-2 send 10\nat site-1 send 1\n\
                  at site-1 next\nat site-1 touch $DIR/go\nat site-1 hang\nserve 1";
    let mut bench = Bench::new(2, 2, script);
    bench.spec["min_clients"] = json!(1);
    bench.spec["policy"] = json!({"quorum_start": 2, "grace_s": 0.0, "late": "next_round"});
    let outcome = bench.run();
    assert_eq!(
        outcome.report.status(),
        "completed with 0 of 2 sites",
        "{:?}",
        outcome.cause()
    );
    assert_eq!(values_in(&last_model(&outcome)), [10.0]);
    let rounds =
        std::fs::read_to_string(outcome.report.run_dir.join("metrics/rounds.jsonl")).unwrap();
    let states: Vec<Value> = rounds
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["sites"].clone())
        .collect();
    assert_eq!(states.len(), 2, "{rounds}");
}

#[test]
fn slow_two_hundred_sites_share_two_workers() {
    let mut bench = Bench::new(200, 2, "lines $DIR/pids\nconnect\nserve 1");
    bench.options["num_workers"] = json!(2);
    bench.options["gpus"] = json!(["0", "1"]);
    let initial = bench.path("initial.safetensors");
    std::fs::write(&initial, model(&vec![1.0; 30_000])).unwrap();
    bench.spec["initial_model"] = json!(initial);
    let simulation = bench.start();
    let waiter = simulation.waiter();
    let started = Instant::now();
    while !waiter.wait(Duration::from_millis(20)) {
        let at_once = bench.pids().iter().filter(|&&pid| alive(pid)).count();
        assert!(at_once <= 2, "{at_once} trainers at once");
        assert!(started.elapsed() < Duration::from_secs(100));
    }
    let outcome = simulation.result().unwrap().unwrap();
    assert_eq!(
        outcome.report.status(),
        "completed",
        "{:?}",
        outcome.cause()
    );
    assert_eq!(bench.pids().len(), 400);
    let values = values_in(&last_model(&outcome));
    assert!(
        values
            .iter()
            .all(|&value| value == (1.0f32 * 1.1 + 1.0) * 1.1 + 1.0),
        "{}",
        values[0]
    );
    // Nothing piles up on the disk.
    let left = std::fs::read_dir(outcome.report.run_dir.join("objects"))
        .unwrap()
        .count();
    assert!(left <= 8, "{left} files");
    let outboxes = std::fs::read_dir(outcome.report.run_dir.join("sites")).unwrap();
    for site in outboxes {
        let outbox = site.unwrap().path().join("outbox");
        assert_eq!(std::fs::read_dir(outbox).unwrap().count(), 0);
    }
}

fn supervisors() -> Vec<u32> {
    let me = std::process::id();
    let numbers = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    numbers
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat
                .rsplit_once(") ")
                .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
            parent == Some(me)
        })
        .collect()
}

#[test]
fn a_supervisor_that_dies_in_mid_job_fails_the_job_with_its_cause() {
    // Others wait for a worker and try to start a trainer just then.
    let mut bench = Bench::new(
        20,
        2,
        "lines $DIR/pids\nconnect\nnext\ntouch $DIR/here\nhang",
    );
    bench.options["num_workers"] = json!(2);
    bench.spec["min_clients"] = json!(1);
    let simulation = bench.start();
    until(|| bench.path("here").exists().then_some(()));
    let ours = supervisors();
    assert_eq!(ours.len(), 1);
    let started = Instant::now();
    let kill = std::process::Command::new("kill")
        .args(["-KILL", &ours[0].to_string()])
        .status();
    assert!(kill.unwrap().success());
    let outcome = ended(&simulation).unwrap();
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    let cause = outcome.cause().unwrap();
    assert!(
        cause.contains("lost together with its supervisor"),
        "{cause}"
    );
    until(|| bench.pids().iter().all(|&pid| !alive(pid)).then_some(()));
}

#[test]
fn an_abort_ends_a_job_at_any_moment_and_every_process_with_it() {
    for script in [
        "lines $DIR/pids\nhang",
        "lines $DIR/pids\nconnect\nhang",
        "lines $DIR/pids\nconnect\nnext\nhang",
    ] {
        for sites in [1, 20] {
            let mut bench = Bench::new(sites, 1, script);
            bench.options["num_workers"] = json!(2);
            let simulation = bench.start();
            until(|| (!bench.pids().is_empty()).then_some(()));
            let started = Instant::now();
            simulation.abort("enough");
            let outcome = ended(&simulation).unwrap();
            assert!(
                started.elapsed() < AT_ONCE,
                "{script}: {:?}",
                started.elapsed()
            );
            assert_eq!(outcome.report.status(), "aborted");
            until(|| bench.pids().iter().all(|&pid| !alive(pid)).then_some(()));
        }
    }
    // Before anything has begun.
    let bench = Bench::new(3, 1, "connect\nserve 1");
    let spec = bench.spec.to_string();
    let mut simulation =
        Simulation::new(spec.as_bytes(), bench.options.to_string().as_bytes()).unwrap();
    simulation.abort("never mind");
    simulation.start().unwrap();
    let outcome = ended(&simulation).unwrap();
    assert_eq!(outcome.cause().as_deref(), Some("never mind"));
    let log = std::fs::read_to_string(outcome.report.run_dir.join("log.txt")).unwrap();
    assert!(!log.contains("ended early"), "{log}");
}

#[test]
fn a_result_is_given_once_and_a_wait_may_be_endless() {
    let bench = Bench::new(1, 1, "connect\nserve 1");
    let simulation = bench.start();
    assert!(simulation.waiter().wait(Duration::MAX));
    assert!(matches!(simulation.result(), Some(Ok(_))));
    assert!(
        simulation.result().is_none(),
        "it was taken, and nothing panicked"
    );
}

#[test]
fn what_cannot_be_run_is_refused_with_its_field() {
    let refused = |change: fn(&mut Bench)| {
        let mut bench = Bench::new(1, 1, "connect\nserve 1");
        change(&mut bench);
        let spec = bench.spec.to_string();
        match Simulation::new(spec.as_bytes(), bench.options.to_string().as_bytes()) {
            Err(error) => error.to_string(),
            Ok(mut simulation) => {
                simulation.start().unwrap();
                let error = ended(&simulation).unwrap_err();
                let mut text = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(error) = source {
                    text += &format!(": {error}");
                    source = error.source();
                }
                text
            }
        }
    };
    type Change = fn(&mut Bench);
    let cases: [(&str, Change); 7] = [
        ("`debug`: names `site-9`", |bench| {
            bench.options["debug"] = json!("site-9")
        }),
        ("`console`: is \"loud\"", |bench| {
            bench.options["console"] = json!("loud")
        }),
        ("`durations.stop_grace`: is -1", |bench| {
            bench.options["durations"] = json!({"stop_grace_s": -1.0})
        }),
        ("durations.lunch_s", |bench| {
            bench.options["durations"] = json!({"lunch_s": 1.0})
        }),
        (
            "supervisor `/none/firesteel` could not be started",
            |bench| bench.options["binary"] = json!("/none/firesteel"),
        ),
        ("the initial model cannot be", |bench| {
            bench.spec["initial_model"] = json!("/none/model.safetensors")
        }),
        ("has no run to resume", |bench| {
            bench.options["resume"] = json!(true)
        }),
    ];
    for (words, change) in cases {
        let told = refused(change);
        assert!(told.contains(words), "{words:?} in {told:?}");
    }
}

#[test]
fn an_attached_site_has_a_profile_and_no_deadline() {
    let mut bench = Bench::new(2, 1, "connect\nserve 1");
    bench.options["debug"] = json!("site-2");
    bench.spec["policy"] = json!({"task_s": 0.05, "round_s": 0.05});
    let simulation = bench.start();
    let profile = until(|| {
        let path = simulation.run_dir()?.join("attach/site-2.json");
        firesteel_bridge::read_profile(&path).ok()
    });
    in_round(&simulation, 0);
    // The other site is done long before; its deadlines would have passed.
    until(|| (simulation.status()?.have == 1).then_some(()));
    let waited = Instant::now();
    until(|| (waited.elapsed() > Duration::from_millis(200)).then_some(()));
    let dial = firesteel_bridge::Dial {
        socket: Path::new(&profile.socket),
        token: &profile.token,
        rank: 0,
        version: "test",
        connect: PATIENCE,
    };
    let client = firesteel_bridge::BridgeClient::connect(dial, &mut || Ok(())).unwrap();
    let firesteel_bridge::Outcome::Task(task) =
        client.next(Some(PATIENCE), &mut || Ok(())).unwrap()
    else {
        panic!("the job has ended");
    };
    let result = firesteel_bridge::Outgoing {
        params_type: "FULL".into(),
        model: firesteel_bridge::ResultModel::Inline(model(&[3.0]).into()),
        metrics: Default::default(),
        meta: String::new(),
        state_file: String::new(),
        partial: false,
    };
    client
        .send_result(&task.key, result, &mut || Ok(()))
        .unwrap();
    let outcome = ended(&simulation).unwrap();
    assert_eq!(
        outcome.report.status(),
        "completed",
        "{:?}",
        outcome.cause()
    );
    // The other site counts twice: it reported two steps.
    assert_eq!(values_in(&last_model(&outcome)), [(2.0 * 1.0 + 3.0) / 3.0]);
}
