//! `firesteel provision`, as a person meets it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use firesteel_pki::Kit;

/// Runs it in a folder; gives its exit code, standard output and standard error.
fn provision(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_firesteel"))
        .arg("provision")
        .args(args)
        .current_dir(folder)
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

#[test]
fn from_the_sample_to_kits_that_open() {
    let root = tempfile::tempdir().unwrap();
    let (code, stdout, stderr) = provision(root.path(), &["--sample"]);
    assert_eq!((code, stdout.as_str()), (0, "project.yml\n"), "{stderr}");
    let (code, _, stderr) = provision(root.path(), &["--sample"]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains("project.yml") && stderr.contains("hint:"),
        "{stderr}"
    );

    let (code, stdout, stderr) = provision(root.path(), &[]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stdout.lines().count(), 5, "{stdout}");
    assert!(
        stderr.contains("workspace/example_project/state"),
        "{stderr}"
    );
    let kits = root.path().join("workspace/example_project/prod_00");
    for name in ["server1.example.com", "site-1", "admin@example.com"] {
        Kit::open(kits.join(name)).unwrap();
    }

    fs::write(root.path().join("more.yml"), "name: site-9\norg: east\n").unwrap();
    let (code, stdout, stderr) = provision(root.path(), &["--add-client", "more.yml", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let shown: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(shown["folder"], "workspace/example_project/prod_01");
    let how = |name: &str| {
        let kits = shown["kits"].as_array().unwrap();
        let kit = kits.iter().find(|kit| kit["name"] == name).unwrap();
        kit["certificate"].clone()
    };
    assert_eq!(
        (how("site-1"), how("site-9")),
        ("known".into(), "new".into())
    );
}

#[test]
fn kits_in_a_folder_are_kept_and_never_overwritten() {
    let root = tempfile::tempdir().unwrap();
    provision(root.path(), &["--sample"]);
    let (code, _, stderr) = provision(root.path(), &["-o", "kits"]);
    assert_eq!(code, 0, "{stderr}");
    let (code, stdout, stderr) = provision(root.path(), &["-o", "kits"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stdout.lines().all(|line| line.contains(" kept ")),
        "{stdout}"
    );
    let file = root.path().join("project.yml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("8002", "8012")).unwrap();
    let (code, stdout, stderr) = provision(root.path(), &["-o", "kits"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("holds another kit"), "{stderr}");
    assert!(
        stderr.contains("hint: kits that are there are never overwritten"),
        "{stderr}"
    );
}

#[test]
fn mistakes_are_told_with_their_line() {
    let root = tempfile::tempdir().unwrap();
    let (code, _, stderr) = provision(root.path(), &[]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains("project.yml") && stderr.contains("--sample"),
        "{stderr}"
    );
    fs::write(
        root.path().join("project.yml"),
        "api_version: 3\nname: p\nparticipants:\n  - {name: ../x, type: client, org: o}\n",
    )
    .unwrap();
    let (code, _, stderr) = provision(root.path(), &[]);
    assert_eq!(code, 1);
    assert!(
        stderr.starts_with("error: project.yml:4: `participants[0].name`"),
        "{stderr}"
    );
    assert!(!root.path().join("workspace").exists());
}
