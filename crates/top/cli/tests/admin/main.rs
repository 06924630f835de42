//! `firesteel job` and `firesteel site` as a person and a script meet them: the
//! binary, over TLS, with a kit, against the real interface.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

#[path = "../../../daemon/tests/rest/common.rs"]
#[allow(dead_code, reason = "shared with the tests of the interface")]
mod common;
mod rig;

use std::net::TcpListener;

use firesteel_api::job::JobFailure;
use firesteel_api::{EventKind, JobState};
use firesteel_base::{Failure, FailureCode, Phase};
use firesteel_pki::bundle::{self, Limits};
use serde_json::Value;

use common::{JOB, job};
use rig::Rig;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn lists_and_details_are_tables_and_json() {
    let rig = Rig::new();
    let ann = |args: &[&str]| rig.run("lead@north.org", args);
    let (code, out, err) = ann(&["job", "list"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with("ID   NAME    STATE"), "{out}");
    assert!(lines[1].starts_with("j-1  digits  running"), "{out}");
    let (_, out, _) = ann(&["job", "list", "--json"]);
    assert_eq!(json(&out)["jobs"][0]["id"], JOB);
    let (_, out, _) = ann(&["job", "list", "--state", "failed", "--json"]);
    assert_eq!(json(&out)["jobs"], Value::Array(Vec::new()));

    // The start of an id is enough.
    let (code, out, _) = ann(&["job", "show", "j"]);
    assert_eq!(code, 0);
    assert!(
        out.contains("rounds: 1 of 3") && out.contains("site-1"),
        "{out}"
    );
    let (_, out, _) = ann(&["--json", "job", "show", "j-1"]);
    assert_eq!(out, "", "`--json` belongs to the command");
    let (_, out, _) = ann(&["job", "--json", "show", "j-1"]);
    assert_eq!(json(&out)["at"][0]["site"], "site-1");

    let (code, out, _) = ann(&["site", "list"]);
    assert_eq!(code, 0);
    assert!(out.contains("site-2  south  connected"), "{out}");
    let (_, out, _) = ann(&["site", "show", "site-1", "--json"]);
    assert_eq!(json(&out)["org"], "north");
    let (_, out, _) = ann(&["site", "log", "site-1", "debug"]);
    assert_eq!(out, "site-1\n  level: info\n");
}

#[test]
fn a_folder_is_bundled_signed_submitted_and_watched_to_its_end() {
    let rig = Rig::new();
    let mut failed = job("j-2", JobState::Failed);
    failed.summary.status = "failed in round 2".to_owned();
    failed.summary.submitter.name = "lead@north.org".to_owned();
    let failure = Failure::new(FailureCode::Raised, Phase::Train, "ValueError: no data")
        .with_hint("check the path of the data");
    let failure = JobFailure::of(Some("site-1".to_owned()), Some(1), &failure);
    failed.failures.push(failure.clone());
    rig.fake
        .memory
        .lock()
        .unwrap()
        .jobs
        .insert("j-2".to_owned(), failed);
    rig.event(EventKind::RoundDone {
        round: 0,
        rounds: 3,
        contributed: 2,
        sites: 2,
        seconds: 1.5,
        metrics: [("loss".to_owned(), 0.25)].into(),
    });
    rig.event(EventKind::Failure { failure });
    rig.event(EventKind::State {
        state: JobState::Failed,
        status: "failed in round 2".to_owned(),
    });

    let folder = rig.folder.path().join("digits");
    std::fs::create_dir_all(folder.join("code/__pycache__")).unwrap();
    std::fs::write(folder.join("job.json"), r#"{"version": 1}"#).unwrap();
    std::fs::write(folder.join("code/client.py"), "print()").unwrap();
    std::fs::write(folder.join("code/__pycache__/client.pyc"), "x").unwrap();
    let folder = folder.to_str().unwrap();
    let (code, out, err) = rig.run("lead@north.org", &["job", "submit", folder, "--watch"]);
    assert_eq!(code, 4, "{out}{err}");
    let told: Vec<_> = out.lines().map(|line| line.split_at(9).1).collect();
    assert_eq!(told[0], "round 1 of 3: 2 of 2 sites, 1.5 s, loss 0.2500");
    assert_eq!(told[1], "site-1: ValueError: no data [raised]");
    assert!(out.contains("hint: check the path of the data"), "{out}");
    assert!(
        !out.contains('\x1b') && !err.contains('\x1b'),
        "plain in a pipe"
    );
    assert_eq!(err, "job j-2\n");

    let (code, out, _) = rig.run("lead@north.org", &["job", "watch", "j-2", "--json"]);
    assert_eq!(code, 4);
    let lines: Vec<_> = out.lines().map(json).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[0]["kind"], "round_done");
    assert_eq!(lines[3]["job"]["state"], "failed");

    // What arrived is the bundle of this folder, signed by this person.
    let memory = rig.fake.memory.lock().unwrap();
    let (bytes, by, key) = &memory.bundles[0];
    let into = rig.folder.path().join("unpacked");
    let server = rig.kit("server.north.org");
    let found = bundle::unpack(&bytes[..], &into, &Limits::server(), server.authority()).unwrap();
    assert_eq!(found.submitter.name, "lead@north.org");
    assert_eq!(by.name, "lead@north.org");
    assert_eq!(key.as_deref(), Some(found.submit_key.as_str()));
    assert!(found.code.join("client.py").is_file());
    assert!(!found.code.join("__pycache__").exists());
    // And nothing of it is left here.
    let left = std::fs::read_dir(rig.folder.path().join("tmp")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn results_are_fetched_when_there_are_any() {
    let rig = Rig::new();
    let dir = rig.fake.dir.path().join("job/models");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("best"), "model").unwrap();
    std::fs::write(rig.fake.dir.path().join("job/log.txt"), "line").unwrap();
    std::fs::write(rig.fake.dir.path().join("server.log"), "one\ntwo\nthree\n").unwrap();
    let to = rig.folder.path().join("out");
    let to = to.to_str().unwrap();
    let ann = |args: &[&str]| rig.run("lead@north.org", args);
    let (code, _, err) = ann(&["job", "download", "j-1", "-o", to]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("has not ended"), "{err}");
    rig.fake.state(JobState::Completed);
    let (code, out, err) = ann(&["job", "download", "j-1", "-o", to, "--only", "models"]);
    assert_eq!((code, out.as_str()), (0, &*format!("{to}\n")), "{err}");
    assert_eq!(
        std::fs::read(format!("{to}/models/best")).unwrap(),
        b"model"
    );
    assert!(!std::path::Path::new(&format!("{to}/log.txt")).exists());
    let (code, out, _) = ann(&["job", "download", "j-1", "-o", to, "--json"]);
    assert_eq!(code, 0);
    assert_eq!(json(&out)["bytes"], 9);

    let (code, out, _) = ann(&["job", "logs", "j-1"]);
    assert_eq!((code, out.as_str()), (0, "one\ntwo\nthree\n"));
    let (code, out, _) = ann(&["job", "logs", "j-1", "--tail", "1", "-f"]);
    assert_eq!((code, out.as_str()), (0, "three\n"));
    let (code, out, _) = ann(&["job", "watch", "j-1"]);
    assert_eq!(code, 0, "{out}");
    let (code, out, _) = ann(&["job", "clone", "j-1"]);
    assert_eq!((code, out.as_str()), (0, "j-3\n"));
    let (code, _, _) = ann(&["job", "delete", "j-1"]);
    assert_eq!(code, 0);
    assert_eq!(ann(&["job", "show", "j-1"]).0, 5);
}

#[test]
fn each_kind_of_trouble_has_its_exit_code() {
    let rig = Rig::new();
    let member = |args: &[&str]| rig.run("member@north.org", args);
    let (code, out, err) = member(&["job", "abort", "j-1"]);
    assert_eq!((code, out.as_str()), (3, ""));
    assert!(err.starts_with("error: "), "{err}");
    let (code, out, _) = member(&["job", "abort", "j-1", "--json"]);
    assert_eq!(
        (code, json(&out)["error"]["code"].as_str()),
        (3, Some("forbidden"))
    );
    assert_eq!(member(&["job", "show", "none"]).0, 5);
    assert_eq!(member(&["site", "show", "none"]).0, 5);
    assert_eq!(member(&["job", "watch", "j-1", "--timeout", "0.3"]).0, 6);
    assert_eq!(member(&["job", "dance"]).0, 64);
    assert_eq!(member(&["job", "list", "--state", "sad"]).0, 64);
    assert_eq!(member(&["job", "submit", "/nowhere"]).0, 1);
    // A site's kit, and none.
    let (code, _, err) = rig.run("site-1", &["job", "list"]);
    assert_eq!(code, 1);
    assert!(err.contains("only people log in"), "{err}");
    let (code, _, err) = rig.run_without_kit(&["job", "list"]);
    assert_eq!(code, 1);
    assert!(err.contains("FIRESTEEL_KIT"), "{err}");
    assert_eq!(rig.run("lead@north.org", &["job", "abort", "j-1"]).0, 0);
}

#[test]
fn a_dead_server_is_exit_code_2_and_a_sentence() {
    let rig = Rig::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    rig.point("lead@north.org", address);
    let (code, out, err) = rig.run("lead@north.org", &["job", "list"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(
        err.starts_with(&format!("error: no connection to {address}\n  because: ")),
        "{err}"
    );
    assert!(err.contains("\nhint: is the server up"), "{err}");
    let (code, out, _) = rig.run("lead@north.org", &["site", "list", "--json"]);
    assert_eq!(
        (code, json(&out)["error"]["code"].as_str()),
        (2, Some("no-connection"))
    );
}
