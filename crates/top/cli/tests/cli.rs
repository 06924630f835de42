//! The command line, as a person meets it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::path::Path;
use std::process::{Command, Stdio};

/// Runs the binary; gives its exit code, standard output and standard error.
fn firesteel(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_firesteel"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn check(args: &[&str], code: i32, stdout: &str, stderr: &str) {
    assert_eq!(
        firesteel(args),
        (code, stdout.to_owned(), stderr.to_owned()),
        "{args:?}"
    );
}

/// A folder with two finished runs of one job and an interrupted one of another.
fn runs() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let run = |path: &str, summary: Option<&str>| {
        let folder = root.path().join(path);
        std::fs::create_dir_all(folder.join("metrics")).unwrap();
        std::fs::write(folder.join("job.json"), "{}").unwrap();
        if let Some(summary) = summary {
            std::fs::write(folder.join("metrics/summary.json"), summary).unwrap();
        }
    };
    run("digits/20260101-120000", Some(r#"{"status": "failed"}"#));
    run("digits/20260102-120000", Some(SUMMARY));
    run("cifar/20260101-120000", None);
    root
}

const SUMMARY: &str = r#"{"status": "completed_with_failures", "message": "completed with 4 of 5 sites",
    "seconds": 12.34, "key_metric": "accuracy", "final_round": 9, "final_key_metric": 0.95,
    "best_round": 7, "best_key_metric": 0.96125,
    "failures": [{"site": "site-3", "message": "the trainer exited with code 3"}]}"#;

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_version_is_told() {
    check(
        &["--version"],
        0,
        &format!("firesteel {}\n", env!("CARGO_PKG_VERSION")),
        "",
    );
}

#[test]
fn a_supervisor_without_an_agent_says_so() {
    check(
        &["supervise"],
        1,
        "",
        "error: standard input is not an agent's socket\n\n\
         hint: `firesteel supervise` is started by Firesteel itself\n",
    );
}

#[test]
fn supervise_is_not_among_the_commands_for_people() {
    let (code, help, _) = firesteel(&["--help"]);
    assert_eq!(code, 0);
    assert!(
        help.contains("runs") && !help.contains("supervise"),
        "{help}"
    );
}

#[test]
fn a_command_that_is_not_known_is_not_understood() {
    let (code, stdout, stderr) = firesteel(&["dance"]);
    assert_eq!((code, stdout.as_str()), (64, ""));
    assert!(
        stderr.starts_with("error: unrecognized subcommand 'dance'"),
        "{stderr}"
    );
}

#[test]
fn runs_are_listed() {
    let root = runs();
    check(
        &["runs", "list", "--root", shown(root.path())],
        0,
        "cifar   20260101-120000  interrupted\n\
         digits  20260101-120000  failed\n\
         digits  20260102-120000  completed_with_failures\n",
        "",
    );
    let (code, stdout, _) = firesteel(&["runs", "list", "--json", "--root", shown(root.path())]);
    let rows: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, rows.as_array().unwrap().len()), (0, 3));
    assert_eq!(rows[1]["status"], "failed");
    let nowhere = root.path().join("nowhere");
    let words = format!("no runs in `{}`\n", nowhere.display());
    check(&["runs", "list", "--root", shown(&nowhere)], 0, "", &words);
    check(
        &["runs", "list", "--json", "--root", shown(&nowhere)],
        0,
        "[]\n",
        "",
    );
}

#[test]
fn the_latest_run_of_a_job_is_shown() {
    let root = runs();
    let path = root.path().join("digits/20260102-120000");
    check(
        &["runs", "show", "digits", "--root", shown(root.path())],
        0,
        &format!(
            "run      digits/20260102-120000\n\
             status   completed_with_failures\n\
             message  completed with 4 of 5 sites\n\
             took     12.3 s\n\
             last     round 10, accuracy 0.9500\n\
             best     round 8, accuracy 0.9613\n\
             failure  site-3: the trainer exited with code 3\n\
             files    {}\n",
            path.display()
        ),
        "",
    );
    let args = [
        "runs",
        "show",
        "digits/20260101-120000",
        "--json",
        "--root",
        shown(root.path()),
    ];
    let (code, stdout, _) = firesteel(&args);
    let run: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &run["summary"]["status"]), (0, &"failed".into()));
}

#[test]
fn a_run_that_is_not_there_is_named() {
    let root = runs();
    check(
        &["runs", "show", "mnist", "--root", shown(root.path())],
        1,
        "",
        &format!(
            "error: there is no run `mnist` in `{}`\n\nhint: see which there are: \
             `firesteel runs list`; another folder is named with --root\n",
            root.path().display()
        ),
    );
}
