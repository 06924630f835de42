//! A site's process against a server that does what the test says.

#![allow(clippy::unwrap_used, reason = "a test")]

mod site_common;

use std::time::{Duration, Instant};

use firesteel_daemon::site::SiteError;
use firesteel_rig::Cut;
use firesteel_wire::node::{Stage, to_server};
use serde_json::{Value, json};

use site_common::*;

/// A model of one number.
const MODEL: &[u8] = b"\x38\0\0\0\0\0\0\0\
    {\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}  \0\0\x80\x3f";

fn facts(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

/// The ids that trainers wrote with `lines pids`.
fn pids(bench: &Bench, job: &str) -> Vec<u32> {
    let path = bench.work(job).join("job/code/pids");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

async fn one_pid(bench: &Bench, job: &str) -> u32 {
    until(|| pids(bench, job).first().copied()).await
}

/// What of a resource is free, as the site reports it.
async fn free(met: &mut Met, name: &str) -> f64 {
    let (report, error) = met.ask(json!({"what": "report"})).await;
    assert!(!error, "{report}");
    report["resources"][name]["free"].as_f64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_says_what_it_has_and_nothing_that_is_secret() {
    let bench = Bench::new().await;
    bench.configure(
        "max_jobs = 2\n\
         [data.digits]\npath = \"/secret/place\"\n\
         [resources]\ngpus = [\"0\", \"1\"]\ncustom = {licenses = 3}\n\
         [environments.none]\npython = \"/no/such/python\"\n\
         variables = {TOKEN = \"hidden\"}\n",
    );
    let site = bench.site();
    let mut met = bench.server.meet().await;
    assert_eq!(met.hello.name, "site-1");
    assert!(met.hello.jobs.is_empty());
    let told = facts(&met.hello.facts);
    assert_eq!(told["organization"], "north");
    assert_eq!(told["environments"], json!(["none"]));
    assert_eq!(told["data"], json!(["digits"]));
    assert_eq!(told["resources"]["gpus"], 2);
    assert_eq!(told["resources"]["custom"]["licenses"], 3);
    assert_eq!(
        (&told["max_jobs"], &told["log_streaming"]),
        (&json!(2), &json!(true))
    );
    // Once interpreters were asked, what is wrong with them is a fact.
    let later = met
        .hear(|body| match body {
            to_server::Body::Facts(told) => Some(facts(&told.facts)),
            _ => None,
        })
        .await;
    assert_eq!(later["environments"], json!([]));
    let problem = later["environment_problems"]["none"].as_str().unwrap();
    assert!(
        problem.contains("does not run: there is no such file"),
        "{problem}"
    );
    for text in [told.to_string(), later.to_string()] {
        assert!(
            !text.contains("hidden") && !text.contains("/secret/place"),
            "{text}"
        );
    }
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_from_its_deploy_to_its_end() {
    let bench = Bench::new().await;
    let site = bench.site();
    let mut met = bench.server.meet().await;
    let deploy = bench.noop("j-1");
    let mut at = met.begin(&deploy, &noop()).await;
    assert_eq!(at.hello.site, "site-1");
    at.assign(0, Some(MODEL)).await;
    let update = at.update().await;
    assert_eq!(update.model.unwrap().inline.unwrap(), MODEL);
    at.commit(0).await;
    // A round that is to make a model gets one.
    at.assign(1, None).await;
    assert!(at.update().await.model.unwrap().length > 0);
    at.end().await;
    assert_eq!(met.ended("j-1").await.error, "");
    assert_eq!(free(&mut met, "jobs").await, 4.0);
    // Its folder is kept for people; what was the site's own is gone.
    assert!(bench.work("j-1").join("log.txt").exists());
    assert!(!bench.workspace().join("jobs/j-1/own").exists());
    met.stop("j-1", true).await;
    met.ended("j-1").await;
    assert!(!bench.workspace().join("jobs/j-1").exists());
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_has_what_the_site_gives_it() {
    let bench = Bench::new().await;
    let token = bench.path("token");
    std::fs::write(&token, "hidden-word\n").unwrap();
    std::fs::create_dir(bench.path("data")).unwrap();
    // An interpreter that answers the probe, and shows what a trainer has.
    let python = bench.path("python");
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = -c ]; then echo 3.12.0 yes; exit; fi\n\
         echo \"has $PLAIN and ${{#SECRET}} letters on <$CUDA_VISIBLE_DEVICES> in $(pwd)\"\n\
         exec {} train \"$1\"\n",
        env!("CARGO_BIN_EXE_firesteel-processes-for-daemon-tests")
    );
    std::fs::write(&python, text).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    bench.configure(&format!(
        "[data.digits]\npath = {:?}\n[resources]\ngpus = [\"5\", \"6\"]\n\
         [environments.own]\npython = {python:?}\nvariables = {{PLAIN = \"plain\"}}\n\
         [environments.own.secrets]\nSECRET = {{file = {token:?}}}\n",
        bench.path("data"),
    ));
    let site = bench.site();
    let mut met = bench.server.meet().await;
    let mut spec = scripted();
    spec["trainer"]["command"] = json!(["python3"]);
    spec["env"] = json!("own");
    spec["data"] = json!({"train": "digits"});
    spec["resources"] = json!({"gpus": 1});
    let deploy = bench.bundle("j-1", &spec, &[("client.txt", "connect\nserve 1\nbye\n")]);
    let mut at = met.begin(&deploy, &spec).await;
    assert_eq!(free(&mut met, "gpus").await, 1.0);
    at.assign(0, Some(MODEL)).await;
    at.update().await;
    at.end().await;
    assert_eq!(met.ended("j-1").await.error, "");
    assert_eq!(free(&mut met, "gpus").await, 2.0);
    let log = std::fs::read_to_string(bench.work("j-1").join("log.txt")).unwrap();
    let code = bench.work("j-1").join("job/code");
    let expected = format!("has plain and 11 letters on <5> in {}", code.display());
    assert!(log.contains(&expected), "{log}");
    // Nobody is told a secret, in no log and over no connection.
    bench.server.logged("j-1", "has plain").await;
    let site_log = std::fs::read_to_string(bench.workspace().join("logs/log.txt")).unwrap();
    for text in [log, site_log, bench.server.log("j-1"), bench.server.log("")] {
        assert!(!text.contains("hidden-word"), "{text}");
    }
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_declined_with_a_word_and_a_sentence() {
    let bench = Bench::new().await;
    bench.configure("max_jobs = 1\n[resources]\ncustom = {licenses = 1}\n");
    let site = bench.site();
    let mut met = bench.server.meet().await;
    let mut spec = noop();
    spec["data"] = json!({"train": "digits", "test": "letters"});
    met.deploy(&bench.bundle("data", &spec, &[])).await;
    let declined = met.declined("data").await;
    assert_eq!(declined.code, "data_missing");
    assert!(
        declined.reason.contains("`letters`, `digits`")
            || declined.reason.contains("`digits`, `letters`"),
        "{declined:?}"
    );
    assert!(!declined.hint.is_empty());

    let mut spec = scripted();
    spec["trainer"]["script"] = json!("/opt/none.py");
    met.deploy(&bench.bundle("script", &spec, &[])).await;
    let declined = met.declined("script").await;
    assert_eq!(declined.code, "script_missing");
    assert!(declined.reason.contains("`/opt/none.py`"), "{declined:?}");

    let mut spec = scripted();
    spec["env"] = json!("jax");
    met.deploy(&bench.bundle("env", &spec, &[("client.txt", "")]))
        .await;
    assert_eq!(met.declined("env").await.code, "environment_missing");

    let mut spec = noop();
    spec["resources"] = json!({"custom": {"licenses": 2}});
    met.deploy(&bench.bundle("licenses", &spec, &[])).await;
    let declined = met.declined("licenses").await;
    assert_eq!(declined.code, "resources");
    assert!(
        declined.reason.contains("2 of `licenses`, of which 1"),
        "{declined:?}"
    );

    let deploy = bench.noop("spoiled");
    bench.server.spoil("spoiled");
    met.deploy(&deploy).await;
    let declined = met.declined("spoiled").await;
    assert_eq!(declined.code, "bundle");
    assert!(declined.reason.contains("another digest"), "{declined:?}");

    let mut up = bench.noop("up");
    up.job = "../up".into();
    met.deploy(&up).await;
    assert_eq!(met.declined("../up").await.code, "bundle");
    assert!(!bench.workspace().join("up").exists());

    // One job at a time, exactly; what was declined holds nothing.
    met.deploy(&bench.noop("first")).await;
    met.ready("first").await;
    met.deploy(&bench.noop("second")).await;
    assert_eq!(met.declined("second").await.code, "no_room");
    met.stop("first", false).await;
    met.ended("first").await;
    let again = bench.noop("third");
    met.deploy(&again).await;
    met.ready("third").await;
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_somebody_else_signed_is_declined() {
    let bench = Bench::new().await;
    let site = bench.site();
    let mut met = bench.server.meet().await;
    // The same bytes of another federation, whose authority the site does not know.
    let other = Bench::new().await;
    let foreign = other.noop("j-1");
    bench.server.lend("j-1", &other.server);
    met.deploy(&foreign).await;
    let declined = met.declined("j-1").await;
    assert_eq!(declined.code, "signature", "{declined:?}");
    assert!(!bench.work("j-1").join("job").exists());
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_more_than_was_signed_gets_nothing() {
    let bench = Bench::new().await;
    let site = bench.site();
    let mut met = bench.server.meet().await;
    let deploy = bench.scripted("j-1", "connect\nserve 1\nbye\n");
    let mut spec = scripted();
    spec["trainer"]["script"] = json!("/etc/hostname");
    let mut at = met.begin(&deploy, &spec).await;
    at.assign(0, Some(MODEL)).await;
    let ended = met.ended("j-1").await;
    assert!(ended.error.contains("differs in `trainer`"), "{ended:?}");
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_counts_in_every_state_and_leaves_nothing() {
    let bench = Bench::new().await;
    let site = bench.site();
    let mut met = bench.server.meet().await;

    // Unknown, and twice.
    for _ in 0..2 {
        met.stop("never", false).await;
        assert_eq!(met.ended("never").await.error, "");
    }

    // While its bundle is on its way.
    bench.server.withhold(true);
    met.deploy(&bench.noop("deploying")).await;
    until(|| (!bench.server.offsets().is_empty()).then_some(())).await;
    met.stop("deploying", false).await;
    met.ended("deploying").await;
    bench.server.withhold(false);

    // Ready.
    met.deploy(&bench.noop("ready")).await;
    met.ready("ready").await;
    assert_eq!(free(&mut met, "jobs").await, 3.0);
    met.stop("ready", false).await;
    met.ended("ready").await;

    // Started, and its agent not yet met.
    let deploy = bench.noop("started");
    met.deploy(&deploy).await;
    met.ready("started").await;
    met.start("started").await;
    met.started("started").await;
    met.stop("started", false).await;
    met.ended("started").await;

    // Training, with a process that does not listen.
    let deploy = bench.scripted("running", "connect\nnext\nlines pids\nhang\n");
    let mut at = met.begin(&deploy, &scripted()).await;
    at.assign(0, Some(MODEL)).await;
    at.training().await;
    let pid = one_pid(&bench, "running").await;
    assert!(alive(pid));
    let begun = Instant::now();
    met.stop("running", false).await;
    met.stop("running", false).await;
    met.ended("running").await;
    // At once, not after it has been told: nothing of it is there.
    assert!(!alive(pid));
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(free(&mut met, "jobs").await, 4.0);
    let (report, _) = met.ask(json!({"what": "report"})).await;
    assert_eq!(report["jobs"], json!({}));

    // And a job that has been stopped can be had anew.
    met.deploy(&deploy).await;
    met.ready("running").await;
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_over_a_lost_connection() {
    let bench = Bench::new().await;
    let site = bench.site();
    let mut met = bench.server.meet().await;
    let deploy = bench.scripted(
        "j-1",
        "connect\nnext\nlines pids\nwait go\nsend 1\nserve 1\nbye\n",
    );
    let mut at = met.begin(&deploy, &scripted()).await;
    at.assign(0, Some(MODEL)).await;
    at.training().await;
    let pid = one_pid(&bench, "j-1").await;
    drop((at, met));
    bench.proxy.cut(Cut::Reset);
    let met = bench.server.meet().await;
    let in_hand = &met.hello.jobs;
    assert_eq!(in_hand.len(), 1);
    assert_eq!(
        (in_hand[0].job.as_str(), in_hand[0].stage()),
        ("j-1", Stage::Running)
    );
    let mut at = AtSite::meet(met.scope("j-1"), "j-1", &scripted()).await;
    // The task in hand is still that one, and the process as well.
    assert_eq!(at.hello.holds.len(), 1);
    assert!(alive(pid));
    std::fs::write(bench.work("j-1").join("job/code/go"), "").unwrap();
    assert_eq!(at.update().await.key.unwrap().round, 0);
    at.end().await;
    let mut met = met;
    assert_eq!(met.ended("j-1").await.error, "");
    gone(pid).await;
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_gone_on_with_where_it_stopped() {
    let bench = Bench::new().await;
    let site = bench.site();
    let mut met = bench.server.meet().await;
    let mut text = String::new();
    for number in 0..200_000 {
        text.push_str(&format!("# {number} {}\n", number * 7919 % 1000));
    }
    let deploy = bench.bundle("j-1", &noop(), &[("large.py", &text)]);
    bench
        .proxy
        .slow(firesteel_rig::Direction::Back, 2 * 1024 * 1024);
    met.deploy(&deploy).await;
    let part = bench.workspace().join("jobs/j-1/bundle.part");
    let half = deploy.bundle_length / 4;
    until(|| (std::fs::metadata(&part).ok()?.len() > half).then_some(())).await;
    drop(met);
    bench.proxy.cut(Cut::Reset);
    bench.proxy.free(firesteel_rig::Direction::Back);
    let mut met = bench.server.meet().await;
    met.ready("j-1").await;
    let offsets = bench.server.offsets();
    assert!(
        offsets.last().is_some_and(|last| *last > half),
        "{offsets:?}"
    );
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_was_killed_goes_on_with_its_jobs() {
    let bench = Bench::new().await;
    let site = bench.site();
    let mut met = bench.server.meet().await;
    met.deploy(&bench.noop("waiting")).await;
    met.ready("waiting").await;
    let deploy = bench.noop("working");
    let mut at = met.begin(&deploy, &noop()).await;
    at.assign(0, Some(MODEL)).await;
    at.update().await;
    drop((at, met));
    // As an operator does it; nobody is told that the site leaves its jobs.
    site.stop().await.unwrap();
    let site = bench.site();
    let mut met = bench.server.meet().await;
    let mut jobs: Vec<(String, Stage)> = met
        .hello
        .jobs
        .iter()
        .map(|held| (held.job.clone(), held.stage()))
        .collect();
    jobs.sort();
    assert_eq!(
        jobs,
        [
            ("waiting".to_owned(), Stage::Ready),
            ("working".to_owned(), Stage::Running)
        ]
    );
    let mut at = AtSite::meet(met.scope("working"), "working", &noop()).await;
    // What it had done is there, until its round is committed.
    assert_eq!(at.hello.holds.len(), 1);
    assert_eq!(at.update().await.key.unwrap().round, 0);
    at.end().await;
    met.ended("working").await;
    // The server no longer wants the other.
    met.stop("waiting", false).await;
    met.ended("waiting").await;
    assert_eq!(free(&mut met, "jobs").await, 4.0);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn several_jobs_run_at_once() {
    let bench = Bench::new().await;
    bench.configure("max_jobs = 8\n");
    let site = bench.site();
    let mut met = bench.server.meet().await;
    let mut running = Vec::new();
    for number in 0..8 {
        let deploy = bench.noop(&format!("j-{number}"));
        running.push((met.begin(&deploy, &noop()).await, deploy.job));
    }
    assert_eq!(free(&mut met, "jobs").await, 0.0);
    for (at, _) in &mut running {
        at.assign(0, Some(MODEL)).await;
    }
    for (at, _) in &mut running {
        at.update().await;
    }
    for (at, job) in &mut running {
        at.end().await;
        assert_eq!(met.ended(job).await.error, "");
    }
    assert_eq!(free(&mut met, "jobs").await, 8.0);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_site_says_why() {
    let bench = Bench::new().await;
    let site = bench.site();
    bench.server.refuse("the site was removed").await;
    match within(site.task).await.unwrap() {
        Err(SiteError::Refused { reason }) => assert_eq!(reason, "the site was removed"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_arrive_as_they_are_written_and_through_cuts() {
    let bench = Bench::new().await;
    let site = bench.site();
    let mut met = bench.server.meet().await;
    bench.server.logged("", "connected to the server").await;
    let script =
        "connect\nnext\nsay first words\nwait one\nsay second words\nwait two\nsend 1\nbye\n";
    let deploy = bench.scripted("j-1", script);
    let mut at = met.begin(&deploy, &scripted()).await;
    at.assign(0, Some(MODEL)).await;
    at.training().await;
    // While it trains.
    bench.server.logged("j-1", "first words").await;
    drop((at, met));
    bench.proxy.cut(Cut::Reset);
    std::fs::write(bench.work("j-1").join("job/code/one"), "").unwrap();
    let mut met = bench.server.meet().await;
    let mut at = AtSite::meet(met.scope("j-1"), "j-1", &scripted()).await;
    bench.server.logged("j-1", "second words").await;
    std::fs::write(bench.work("j-1").join("job/code/two"), "").unwrap();
    at.update().await;
    at.end().await;
    met.ended("j-1").await;
    // Byte for byte, to the last line.
    let path = bench.work("j-1").join("log.txt");
    until(|| {
        let log = std::fs::read_to_string(&path).unwrap();
        (bench.server.log("j-1") == log).then_some(())
    })
    .await;
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_allows_no_streaming_sends_no_log() {
    let bench = Bench::new().await;
    bench.configure("allow_log_streaming = false\n");
    let site = bench.site();
    let mut met = bench.server.meet().await;
    assert_eq!(facts(&met.hello.facts)["log_streaming"], false);
    let deploy = bench.noop("j-1");
    let mut at = met.begin(&deploy, &noop()).await;
    at.end().await;
    met.ended("j-1").await;
    site.stop().await.unwrap();
    assert_eq!(bench.server.log_streams(), 0);
    assert!(bench.work("j-1").join("log.txt").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_log_levels_are_asked_for() {
    let bench = Bench::new().await;
    let site = bench.site();
    let mut met = bench.server.meet().await;
    let deploy = bench.bundle("j-1", &noop(), &[("notes.txt", "one\ntwo\n")]);
    let mut at = met.begin(&deploy, &noop()).await;
    at.assign(0, Some(MODEL)).await;
    at.update().await;
    let files = |op: Value| {
        let mut ask = json!({"what": "files", "job": "j-1"});
        ask.as_object_mut()
            .unwrap()
            .extend(op.as_object().unwrap().clone());
        ask
    };
    let (text, error) = met
        .ask(files(json!({"op": "cat", "path": "job/code/notes.txt"})))
        .await;
    assert!(!error, "{text}");
    assert_eq!(text["text"], "one\ntwo\n");
    let (listing, error) = met.ask(files(json!({"op": "ls", "recursive": true}))).await;
    assert!(!error, "{listing}");
    let paths = listing["entries"].to_string();
    assert!(paths.contains("log.txt"), "{paths}");
    // The models in flight and the token's file are no part of it.
    assert!(
        !paths.contains("objects") && !paths.contains("own"),
        "{paths}"
    );
    for path in ["../own", "../job.json", "/etc/passwd"] {
        let (problem, error) = met.ask(files(json!({"op": "cat", "path": path}))).await;
        assert!(error, "{problem}");
        assert_eq!(problem["code"], "invalid");
    }
    let (problem, error) = met
        .ask_as(files(json!({"op": "ls"})), "member", "south")
        .await;
    assert!(error && problem["code"] == "forbidden", "{problem}");

    for (job, level) in [
        (None, "debug"),
        (Some("j-1"), "WARNING"),
        (Some("j-1"), "reload"),
    ] {
        let (settings, error) = met
            .ask_as(
                json!({"what": "log_level", "job": job, "level": level}),
                "project_admin",
                "example",
            )
            .await;
        assert!(!error, "{settings}");
        let now = settings["level"].as_str().unwrap().to_lowercase();
        assert!(
            level == "reload" || now.contains(&level.to_lowercase()),
            "{now}"
        );
    }
    for (level, code) in [
        ("loud", "invalid"),
        ("/etc/passwd", "invalid"),
        ("x.json", "invalid"),
    ] {
        let (problem, error) = met
            .ask_as(
                json!({"what": "log_level", "level": level}),
                "project_admin",
                "example",
            )
            .await;
        assert!(error && problem["code"] == code, "{problem}");
    }
    let config = json!({"version": 1, "levels": {"": "ERROR"}}).to_string();
    let (settings, error) = met
        .ask_as(
            json!({"what": "log_config", "job": "j-1", "config": config}),
            "project_admin",
            "example",
        )
        .await;
    assert!(
        !error && settings["level"].as_str().unwrap().contains("ERROR"),
        "{settings}"
    );
    let (problem, error) = met.ask(json!({"what": "dance"})).await;
    assert!(error && problem["code"] == "invalid", "{problem}");
    at.end().await;
    met.ended("j-1").await;
    let (problem, error) = met
        .ask_as(
            json!({"what": "log_level", "job": "j-1", "level": "debug"}),
            "project_admin",
            "example",
        )
        .await;
    assert!(error && problem["code"] == "wrong-state", "{problem}");
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_is_stopped_leaves_no_process() {
    let bench = Bench::new().await;
    let site = bench.site();
    let mut met = bench.server.meet().await;
    let deploy = bench.scripted("j-1", "connect\nnext\nlines pids\nhang\n");
    let mut at = met.begin(&deploy, &scripted()).await;
    at.assign(0, Some(MODEL)).await;
    at.training().await;
    let pid = one_pid(&bench, "j-1").await;
    site.stop().await.unwrap();
    assert!(!alive(pid));
    // Another process of the same kit can be had.
    let site = bench.site();
    let met = bench.server.meet().await;
    assert_eq!(met.hello.jobs.len(), 1);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_of_one_site_are_one_too_many() {
    let bench = Bench::new().await;
    let site = bench.site();
    let _met = bench.server.meet().await;
    let second = bench.site();
    let error = within(second.task).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("a process works in"), "{error}");
    site.stop().await.unwrap();
}

/// Has four jobs in hand at any time, until many are done.
async fn four_at_a_time(bench: &Bench, mut met: Met) -> Met {
    let jobs = 60;
    let spec = noop();
    let deploys: Vec<_> = (0..jobs)
        .map(|number| bench.noop(&format!("b-{number}")))
        .collect();
    let begun = Instant::now();
    let mut next = deploys.iter();
    let mut running: std::collections::VecDeque<_> = std::collections::VecDeque::new();
    loop {
        while running.len() < 4
            && let Some(deploy) = next.next()
        {
            met.deploy(deploy).await;
            running.push_back(&deploy.job);
        }
        let Some(job) = running.pop_front() else {
            break;
        };
        met.ready(job).await;
        let scope = met.scope(job);
        met.start(job).await;
        let mut at = AtSite::meet(scope, job, &spec).await;
        at.assign(0, Some(MODEL)).await;
        at.update().await;
        at.end().await;
        met.ended(job).await;
    }
    let rate = f64::from(jobs) / begun.elapsed().as_secs_f64();
    println!("four at a time: {rate:.1} jobs/s");
    met
}

/// How many jobs a second a site gets through, one after the other and four at a
/// time, and what it holds when it is idle. Run by hand:
/// `cargo nextest run -p firesteel-daemon --run-ignored only --no-capture pace`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn the_pace_of_jobs() {
    let bench = Bench::new().await;
    bench.configure("max_jobs = 8\n");
    let site = bench.site();
    let mut met = bench.server.meet().await;
    let spec = noop();
    let jobs = 50;
    let deploys: Vec<_> = (0..jobs)
        .map(|number| bench.noop(&format!("a-{number}")))
        .collect();
    let begun = Instant::now();
    for (number, deploy) in deploys.iter().enumerate() {
        let then = Instant::now();
        let mut at = met.begin(deploy, &spec).await;
        let met_at = then.elapsed();
        at.assign(0, Some(MODEL)).await;
        at.update().await;
        let updated = then.elapsed();
        at.end().await;
        let ended = then.elapsed();
        met.ended(&deploy.job).await;
        if number % 10 == 5 {
            let over = then.elapsed();
            println!("met {met_at:?}, update {updated:?}, end {ended:?}, ended {over:?}");
        }
    }
    let rate = f64::from(jobs) / begun.elapsed().as_secs_f64();
    println!("one after the other: {rate:.1} jobs/s");
    let mut met = four_at_a_time(&bench, met).await;
    met.stop("none", false).await;
    met.ended("none").await;
    let Ok(python) = std::env::var("FIRESTEEL_TEST_PYTHON") else {
        return site.stop().await.unwrap();
    };
    site.stop().await.unwrap();
    bench.configure(&format!("[environments.own]\npython = {python:?}\n"));
    let site = bench.site();
    let mut met = bench.server.meet().await;
    let mut spec = noop();
    spec["trainer"] = json!({"script": "client.py", "mode": "warm", "framework": "numpy"});
    let script = "import numpy as np\nimport firesteel.client as flare\nflare.init()\n\
                  while flare.is_running():\n    model = flare.receive()\n    \
                  flare.send(flare.FLModel(params={k: np.asarray(v) + 1 for k, v in model.params.items()}))\n";
    let jobs = 20;
    let deploys: Vec<_> = (0..jobs)
        .map(|number| bench.bundle(&format!("w-{number}"), &spec, &[("client.py", script)]))
        .collect();
    let mut begun = Instant::now();
    for (number, deploy) in deploys.iter().enumerate() {
        if number == 1 {
            println!(
                "the first, with the start of its warm parent: {:?}",
                begun.elapsed()
            );
            begun = Instant::now();
        }
        let mut at = met.begin(deploy, &spec).await;
        at.assign(0, Some(MODEL)).await;
        at.update().await;
        at.end().await;
        assert_eq!(met.ended(&deploy.job).await.error, "");
    }
    let rate = f64::from(jobs - 1) / begun.elapsed().as_secs_f64();
    println!("with a NumPy trainer from the warm parent: {rate:.1} jobs/s");
    site.stop().await.unwrap();
}
