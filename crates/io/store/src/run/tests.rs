use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use firesteel_base::Hint;

use super::*;

const SPEC: &str = r#"{"version":1,"name":"digits","min_clients":2,"seed":null}"#;

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_348_800)
}

#[test]
fn a_run_has_a_private_directory_of_its_own() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().join("firesteel-runs");
    let first = RunDir::create_at(&root, "digits", SPEC, noon()).unwrap();
    let second = RunDir::create_at(&root, "digits", SPEC, noon()).unwrap();
    let third = RunDir::create_at(&root, "digits", SPEC, noon()).unwrap();
    assert_eq!(first.path(), root.join("digits/20261122-120000"));
    assert_eq!(second.run(), "20261122-120000-2");
    assert_eq!(third.run(), "20261122-120000-3");
    for path in [
        &root,
        &root.join("digits"),
        first.path(),
        &first.models_dir(),
    ] {
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700, "{path:?}");
    }
    assert_eq!(
        std::fs::read_link(root.join("digits/latest")).unwrap(),
        Path::new("20261122-120000-3")
    );
    assert_eq!(
        std::fs::read_to_string(first.path().join("job.json")).unwrap(),
        SPEC
    );
}

#[test]
fn many_runs_that_start_at_once_do_not_meet() {
    let root = tempfile::tempdir().unwrap();
    let runs: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| RunDir::create_at(root.path(), "j", SPEC, noon()).unwrap()))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let mut names: Vec<_> = runs.iter().map(RunDir::run).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 8);
}

#[test]
fn the_latest_run_is_resumed() {
    let root = tempfile::tempdir().unwrap();
    drop(RunDir::create_at(root.path(), "digits", SPEC, noon()).unwrap());
    let later = noon() + Duration::from_secs(5);
    let latest = RunDir::create_at(root.path(), "digits", SPEC, later).unwrap();
    let path = latest.path().to_owned();
    drop(latest);
    // Another order of fields, and one that is null, are the same job.
    let same = r#"{"min_clients":2,"name":"digits","version":1,"stop":null}"#;
    let resumed = RunDir::open_latest(root.path(), "digits", same).unwrap();
    assert_eq!(resumed.path(), path);
    drop(resumed);
    // Without the link (a copied tree) the newest by name is taken.
    std::fs::remove_file(root.path().join("digits/latest")).unwrap();
    let resumed = RunDir::open_latest(root.path(), "digits", SPEC).unwrap();
    assert_eq!(resumed.path(), path);
}

#[test]
fn a_run_in_use_is_refused_with_who_uses_it() {
    let root = tempfile::tempdir().unwrap();
    let run = RunDir::create(root.path(), "digits", SPEC).unwrap();
    let error = RunDir::open_latest(root.path(), "digits", SPEC).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the run in `{}` is in use by this very process",
            run.path().display()
        )
    );
    // As another process would have left it.
    std::fs::write(run.path().join("lock"), "4242\n").unwrap();
    let error = RunDir::open_latest(root.path(), "digits", SPEC).unwrap_err();
    assert!(error.to_string().ends_with("in use by process 4242"));
    assert!(error.hint().unwrap().contains("resume=True"));
    drop(run);
    // A lock file that a dead process left holds nobody up.
    RunDir::open_latest(root.path(), "digits", SPEC).unwrap();
}

#[test]
fn another_process_really_is_kept_out() {
    let root = tempfile::tempdir().unwrap();
    let run = RunDir::create(root.path(), "digits", SPEC).unwrap();
    let lock = run.path().join("lock");
    let try_lock = || {
        std::process::Command::new("flock")
            .args(["--nonblock", "--exclusive"])
            .arg(&lock)
            .arg("true")
            .status()
            .unwrap()
            .success()
    };
    assert!(!try_lock());
    drop(run);
    assert!(try_lock());
}

#[test]
fn a_changed_job_is_refused_with_what_changed() {
    let root = tempfile::tempdir().unwrap();
    drop(RunDir::create(root.path(), "digits", SPEC).unwrap());
    let changed = r#"{"version":1,"name":"digits","min_clients":3,"seed":7}"#;
    let error = RunDir::open_latest(root.path(), "digits", changed).unwrap_err();
    let RunError::SpecChanged { fields, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(fields, &["min_clients", "seed"]);
    assert!(error.to_string().ends_with(": min_clients, seed"));
    // Refused, and not locked for it.
    RunDir::open_latest(root.path(), "digits", SPEC).unwrap();
}

#[test]
fn nothing_to_resume_is_said() {
    let root = tempfile::tempdir().unwrap();
    let error = RunDir::open_latest(root.path(), "digits", SPEC).unwrap_err();
    assert!(matches!(error, RunError::NoRun { .. }), "{error}");
    let run = RunDir::create(root.path(), "digits", SPEC).unwrap();
    std::fs::write(run.path().join("job.json"), "{").unwrap();
    drop(run);
    let error = RunDir::open_latest(root.path(), "digits", SPEC).unwrap_err();
    assert!(matches!(error, RunError::SpecDamaged { .. }), "{error}");
}

#[test]
fn names_that_are_paths_are_refused() {
    let root = tempfile::tempdir().unwrap();
    for name in ["", "..", "../x", "a/b", "/etc", ".hidden", "a b"] {
        for result in [
            RunDir::create(root.path(), name, SPEC),
            RunDir::open_latest(root.path(), name, SPEC),
        ] {
            assert!(matches!(result, Err(RunError::Name { .. })), "{name}");
        }
    }
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    let error = RunDir::create(root.path(), "a", "[]").unwrap_err();
    assert!(matches!(error, RunError::Spec));
}

#[test]
fn runs_are_listed() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(RunDir::list(&root.path().join("none")).unwrap(), []);
    for _ in 0..10 {
        drop(RunDir::create_at(root.path(), "digits", SPEC, noon()).unwrap());
    }
    let live = RunDir::create_at(root.path(), "digits", SPEC, noon()).unwrap();
    drop(RunDir::create_at(root.path(), "cifar", SPEC, noon()).unwrap());
    std::fs::create_dir(root.path().join("not a run")).unwrap();
    let summary = root.path().join("cifar/latest/metrics/summary.json");
    std::fs::write(summary, r#"{"status":"completed"}"#).unwrap();
    let found = RunDir::list(root.path()).unwrap();
    assert_eq!(found.len(), 12);
    let shown: Vec<_> = found
        .iter()
        .map(|run| (run.job.as_str(), run.run.as_str(), run.live))
        .collect();
    assert_eq!(shown[0], ("cifar", "20261122-120000", false));
    assert_eq!(shown[1], ("digits", "20261122-120000", false));
    assert_eq!(shown[10], ("digits", "20261122-120000-10", false));
    assert_eq!(shown[11], ("digits", "20261122-120000-11", true));
    assert_eq!(found[0].status.as_deref(), Some("completed"));
    assert_eq!(found[1].status, None);
    drop(live);
}

#[test]
fn a_site_has_its_own_folders() {
    let root = tempfile::tempdir().unwrap();
    let run = RunDir::create(root.path(), "digits", SPEC).unwrap();
    let site = SiteName::new("site-1").unwrap();
    let state = run.site_state(&site).unwrap();
    let draft = state.draft(firesteel_base::Round(0), firesteel_base::Attempt(0));
    std::fs::write(&draft, "x").unwrap();
    let path = state.commit(&draft, firesteel_base::Round(0)).unwrap();
    assert_eq!(
        path,
        run.path().join("sites/site-1/state/r000000.safetensors")
    );
    assert!(run.events_dir(&site).ends_with("tb_events/site-1"));
    assert!(run.outbox_dir(&site).ends_with("sites/site-1/outbox"));
}
