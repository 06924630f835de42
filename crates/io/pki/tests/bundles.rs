//! Bundles: written, taken, and refused when they were made to do harm.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod common;

use std::fs;
use std::io::{self, Cursor, Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::{Made, explained};
use firesteel_pki::bundle::{
    BundleError, Draft, Limits, WriteError, for_sites, open, unpack, write,
};
use firesteel_pki::{AdminRole, Authority, Purpose, Role, Signer};
use proptest::prelude::*;
use serde_json::{Value, json};

const SPEC: &[u8] = br#"{"version": 1, "name": "digits"}"#;

fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(Made::new)
}

fn signer() -> Signer {
    Signer::from_kit(&made().kit("lead@north.org")).unwrap()
}

fn authority() -> Authority {
    made().kit("site-1").authority().clone()
}

struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.root.path().join("sources").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn job(&self) -> PathBuf {
        self.root.path().join("jobs/job-1")
    }

    /// Nothing was left of a refused bundle.
    fn assert_empty(&self) {
        assert!(!self.job().exists());
        let beside = fs::read_dir(self.root.path().join("jobs"));
        let left: Vec<_> = beside
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(left.is_empty(), "{left:?} was left");
        assert!(!self.root.path().join("jobs/evil").exists());
        assert!(!self.root.path().join("evil").exists());
    }
}

/// A bundle of a script, a module and a first model.
fn whole(place: &Place) -> Vec<u8> {
    let script = place.file("train.py", b"print('training')\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let module = place.file("lib/net.py", &vec![b'#'; 3000]);
    let model = place.file("init.safetensors", &vec![7; 5000]);
    let mut out = Vec::new();
    let code = [
        ("train.py".to_owned(), script),
        ("lib/net.py".to_owned(), module),
    ];
    let draft = Draft {
        project: "example_project",
        spec: SPEC,
        code: &code,
        initial: Some(&model),
        submit_key: Some("once"),
    };
    let written = write(&draft, &signer(), &mut out).unwrap();
    assert_eq!(written.length, out.len() as u64);
    assert_eq!(written.submit_key, "once");
    out
}

#[test]
fn what_was_bundled_is_unpacked() {
    let place = Place::new();
    let bytes = whole(&place);
    let into = place.job();
    let bundle = unpack(bytes.as_slice(), &into, &Limits::server(), &authority()).unwrap();
    assert_eq!(bundle.spec, SPEC);
    assert_eq!(bundle.project, "example_project");
    assert_eq!(bundle.submit_key, "once");
    assert_eq!(bundle.submitter.name, "lead@north.org");
    assert_eq!(bundle.submitter.role, Role::Admin(AdminRole::Lead));
    assert!(bundle.brings_code);
    let script = bundle.code.join("train.py");
    assert_eq!(fs::read(&script).unwrap(), b"print('training')\n");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o111;
    assert_ne!(mode(&script), 0);
    assert_eq!(mode(&bundle.code.join("lib/net.py")), 0);
    assert_eq!(
        fs::read(bundle.initial.as_ref().unwrap()).unwrap().len(),
        5000
    );
    // After a restart it is found again as it was.
    assert_eq!(open(&into, &authority()).unwrap(), bundle);
    // The same name cannot be taken twice.
    let error = unpack(bytes.as_slice(), &into, &Limits::server(), &authority()).unwrap_err();
    assert!(matches!(error, BundleError::Exists { .. }), "{error}");
}

#[test]
fn sites_get_what_is_not_the_servers_alone_under_the_same_signature() {
    let place = Place::new();
    let at_server = unpack(
        whole(&place).as_slice(),
        &place.job(),
        &Limits::server(),
        &authority(),
    )
    .unwrap();
    let mut out = Vec::new();
    let written = for_sites(&at_server.folder, &mut out).unwrap();
    assert_eq!(written.length, out.len() as u64);
    let site = place.root.path().join("site/job-1");
    let at_site = unpack(out.as_slice(), &site, &Limits::site(), &authority()).unwrap();
    assert_eq!(at_site.initial, None);
    assert_eq!(at_site.submitter, at_server.submitter);
    assert_eq!(at_site.spec, at_server.spec);
    assert!(at_site.code.join("lib/net.py").is_file());
    open(&site, &authority()).unwrap();
    // A site does not take what is the server's, nor the server half of it.
    let site = place.root.path().join("site/job-2");
    let error = unpack(
        whole(&place).as_slice(),
        &site,
        &Limits::site(),
        &authority(),
    )
    .unwrap_err();
    assert!(
        explained(&error).contains("models/initial.safetensors"),
        "{error}"
    );
    let error = unpack(out.as_slice(), &site, &Limits::server(), &authority()).unwrap_err();
    assert!(
        explained(&error).contains("models/initial.safetensors"),
        "{error}"
    );
    assert!(!site.exists());
}

#[test]
fn a_bundle_without_code_says_so() {
    let place = Place::new();
    let draft = Draft {
        project: "p",
        spec: SPEC,
        code: &[],
        initial: None,
        submit_key: None,
    };
    let mut keys = Vec::new();
    for name in ["a", "b"] {
        let mut out = Vec::new();
        write(&draft, &signer(), &mut out).unwrap();
        let into = place.root.path().join(name);
        let bundle = unpack(out.as_slice(), &into, &Limits::server(), &authority()).unwrap();
        assert!(!bundle.brings_code);
        assert!(bundle.code.is_dir());
        keys.push(bundle.submit_key);
    }
    // Each is a job of its own.
    assert_ne!(keys[0], keys[1]);
}

#[test]
fn what_cannot_be_taken_is_refused_before_it_is_sent() {
    let place = Place::new();
    let file = place.file("x", b"x");
    for (path, words) in [
        ("../x", "leads out"),
        ("a/../../x", "leads out"),
        ("/etc/passwd", "empty part"),
        ("a//b", "empty part"),
        ("a\nb", "control"),
        ("a\\b", "backslash"),
        (&"d/".repeat(130), "bytes"),
        (&"n".repeat(101), "too long"),
        ("", "empty part"),
    ] {
        let code = [(path.to_owned(), file.clone())];
        let draft = Draft {
            project: "p",
            spec: SPEC,
            code: &code,
            initial: None,
            submit_key: None,
        };
        let error = write(&draft, &signer(), io::sink()).unwrap_err();
        assert!(
            explained(&error).contains(words),
            "{path:?}: {}",
            explained(&error)
        );
    }
    let twice = [
        ("a".to_owned(), file.clone()),
        ("A".to_owned(), file.clone()),
    ];
    let draft = |code| Draft {
        project: "p",
        spec: SPEC,
        code,
        initial: None,
        submit_key: None,
    };
    let error = write(&draft(&twice), &signer(), io::sink()).unwrap_err();
    assert!(explained(&error).contains("twice"), "{error}");
    let folder = [("a".to_owned(), place.root.path().to_owned())];
    let error = write(&draft(&folder), &signer(), io::sink()).unwrap_err();
    assert!(matches!(error, WriteError::NotAFile { .. }), "{error}");
    let missing = [("a".to_owned(), place.root.path().join("none"))];
    let error = write(&draft(&missing), &signer(), io::sink()).unwrap_err();
    assert!(explained(&error).contains("none"), "{error}");
}

/// One member of an archive that somebody made by hand.
#[derive(Clone)]
struct Entry {
    path: Vec<u8>,
    kind: u8,
    bytes: Vec<u8>,
    /// Instead of the bytes' own.
    length: Option<u64>,
}

fn entry(path: &str, bytes: &[u8]) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind: b'0',
        bytes: bytes.to_vec(),
        length: None,
    }
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        let raw = header.as_ustar_mut().unwrap();
        raw.name[..entry.path.len()].copy_from_slice(&entry.path);
        raw.linkname[..11].copy_from_slice(b"/etc/passwd");
        header.set_entry_type(tar::EntryType::new(entry.kind));
        header.set_mode(0o644);
        header.set_size(entry.length.unwrap_or(entry.bytes.len() as u64));
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&entry.bytes);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn member(path: &str, bytes: &[u8]) -> Value {
    json!({"path": path, "length": bytes.len(), "sha256": sha256(bytes)})
}

fn sha256(bytes: &[u8]) -> String {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The members before all others, truly signed over any list.
fn head(members: &[Value]) -> Vec<Entry> {
    let list = json!({"version": 1, "project": "p", "submit_key": "k", "members": members});
    signed(&serde_json::to_vec(&list).unwrap())
}

fn signed(list: &[u8]) -> Vec<Entry> {
    let signature = signer().sign(Purpose::Bundle, list).unwrap();
    vec![
        entry("bundle.json", list),
        entry("bundle.sig", &signature),
        entry("submitter.pem", signer().chain_pem()),
    ]
}

/// A good bundle, taken apart; `change` makes a bad one of it.
fn check(change: impl FnOnce(&mut Vec<Entry>), words: &[&str]) {
    let code = b"print()";
    let mut entries = head(&[member("job.json", SPEC), member("code/a.py", code)]);
    entries.push(entry("job.json", SPEC));
    entries.push(entry("code/a.py", code));
    let place = Place::new();
    let limits = Limits::server();
    let good = place.root.path().join("good");
    unpack(archive(&entries).as_slice(), &good, &limits, &authority()).unwrap();
    change(&mut entries);
    refused(&archive(&entries), words);
}

fn refused(bytes: &[u8], words: &[&str]) {
    let place = Place::new();
    let error = unpack(bytes, &place.job(), &Limits::server(), &authority()).unwrap_err();
    let text = explained(&error);
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    assert!(text.len() < 1000, "{text}");
    place.assert_empty();
}

/// A bundle whose list, truly signed, announces one more member.
fn announcing(extra: Value, words: &[&str]) {
    let entries = head(&[member("job.json", SPEC), extra]);
    refused(&archive(&entries), words);
}

#[test]
fn paths_that_lead_out_are_refused_even_when_signed() {
    for (path, words) in [
        ("../evil", &["leads out"][..]),
        ("code/../../evil", &["leads out"]),
        ("code/../job.json", &["leads out"]),
        ("code/./a", &["leads out"]),
        ("/evil", &["absolute"]),
        ("code//a", &["empty part"]),
        ("code/", &["empty part"]),
        ("code/a\u{0}b", &["control"]),
        ("code/..\\..\\evil", &["backslash"]),
        ("evil", &["neither job.json"]),
        ("code", &["neither job.json"]),
        ("codex/a", &["neither job.json"]),
        ("models/other", &["neither job.json"]),
        ("bundle.json", &["neither job.json"]),
        ("", &["empty part"]),
    ] {
        announcing(member(path, b"x"), words);
    }
    announcing(
        member(&format!("code/{}", "x".repeat(300)), b"x"),
        &["over 255 bytes"],
    );
    announcing(
        member(&format!("code/{}", "x".repeat(120)), b"x"),
        &["too long"],
    );
}

#[test]
fn names_that_meet_are_refused() {
    announcing(member("job.json", SPEC), &["job.json", "twice"]);
    for (one, other, word) in [
        ("code/a", "code/a", "twice"),
        ("code/a.py", "code/A.PY", "twice"),
        ("code/a", "code/a/b", "a file and a folder"),
        ("code/A/b", "code/a", "a file and a folder"),
    ] {
        let entries = head(&[
            member("job.json", SPEC),
            member(one, b""),
            member(other, b""),
        ]);
        refused(&archive(&entries), &[word]);
    }
}

#[test]
fn what_the_list_does_not_announce_is_refused() {
    check(
        |e| e.push(entry("code/b.py", b"more")),
        &["code/b.py", "its end"],
    );
    check(
        |e| e.push(entry("../evil", b"more")),
        &["../evil", "its end"],
    );
    check(|e| e.swap(3, 4), &["code/a.py", "job.json"]);
    check(|e| drop(e.remove(4)), &["its end", "code/a.py"]);
    check(|e| drop(e.remove(3)), &["job.json"]);
    check(
        |e| e[4].path = b"../evil".to_vec(),
        &["../evil", "code/a.py"],
    );
    check(|e| e[4].bytes.push(b'x'), &["8 bytes", "7"]);
    check(|e| e.insert(4, e[3].clone()), &["job.json", "code/a.py"]);
    check(|e| e.swap(0, 1), &["bundle.json"]);
    check(|e| e.clear(), &["bundle.json"]);
    check(|e| drop(e.drain(1..)), &["bundle.sig"]);
}

#[test]
fn a_changed_byte_of_any_member_is_noticed() {
    check(
        |e| e[4].bytes[0] ^= 1,
        &["code/a.py", "not what its submitter signed"],
    );
    check(
        |e| e[3].bytes[0] ^= 1,
        &["job.json", "not what its submitter signed"],
    );
    check(|e| e[0].bytes[20] ^= 1, &["signature", "lead@north.org"]);
    check(|e| e[1].bytes[10] ^= 1, &["signature", "lead@north.org"]);
    check(|e| e[1].bytes.clear(), &["signature"]);
    check(|e| e[2].bytes[80] ^= 1, &["certificate"]);
    check(|e| e[2].bytes.clear(), &["certificate"]);
}

#[test]
fn links_devices_and_extensions_are_refused() {
    for (kind, word) in [
        (b'1', "a hard link"),
        (b'2', "a symbolic link"),
        (b'3', "a device"),
        (b'4', "a device"),
        (b'5', "a folder"),
        (b'6', "a pipe"),
        (b'7', "an unknown kind"),
        (b'S', "a sparse file"),
        (b'L', "an extension"),
        (b'K', "an extension"),
        (b'x', "an extension"),
        (b'g', "an extension"),
        (b'z', "an unknown kind"),
    ] {
        for at in 0..5 {
            check(|e| e[at].kind = kind, &[word, "only plain files"]);
        }
    }
}

#[test]
fn bombs_are_refused_by_what_they_announce() {
    let digest = sha256(b"");
    let huge = |path: &str, length: u64| json!({"path": path, "length": length, "sha256": digest});
    announcing(huge("code/zeros", 1 << 40), &["code", "limit"]);
    announcing(huge("code/zeros", u64::MAX), &["code", "limit"]);
    let spec = head(&[huge("job.json", 1 << 30)]);
    refused(&archive(&spec), &["job.json", "limit"]);
    // Each small enough, together too much, and no sum that wraps.
    let half = limits_code() / 2 + 1;
    let entries = head(&[
        member("job.json", SPEC),
        huge("code/a", half),
        huge("code/b", half),
    ]);
    refused(&archive(&entries), &["code", "limit"]);
    let entries = head(&[
        member("job.json", SPEC),
        huge("code/a", u64::MAX),
        huge("code/b", u64::MAX),
    ]);
    refused(&archive(&entries), &["code", "limit"]);
    // A list that announces nothing and a header that announces everything.
    check(|e| e[0].length = Some(1 << 40), &["bundle.json", "limit"]);
    check(|e| e[1].length = Some(1 << 20), &["bundle.sig", "limit"]);
    check(
        |e| e[2].length = Some(u64::MAX / 4),
        &["submitter.pem", "limit"],
    );
    check(|e| e[4].length = Some(1 << 40), &["code/a.py"]);
    let many: Vec<Value> = (0..10_001)
        .map(|n| member(&format!("code/{n}"), b""))
        .collect();
    refused(&archive(&head(&many)), &["members", "limit"]);
}

fn limits_code() -> u64 {
    Limits::server().code
}

#[test]
fn an_endless_stream_is_read_no_further_than_announced() {
    struct Endless {
        head: Cursor<Vec<u8>>,
        read: u64,
    }
    impl Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let done = self.head.read(into)?;
            if done > 0 {
                return Ok(done);
            }
            into.fill(0);
            self.read += into.len() as u64;
            Ok(into.len())
        }
    }
    let place = Place::new();
    let mut stream = Endless {
        head: Cursor::new(whole(&place)),
        read: 0,
    };
    let error = unpack(&mut stream, &place.job(), &Limits::server(), &authority()).unwrap_err();
    assert!(explained(&error).contains("follows its end"), "{error}");
    assert!(stream.read < 64 * 1024, "{} bytes were read", stream.read);
    place.assert_empty();
}

#[test]
fn lists_that_say_nonsense_are_refused() {
    let spec = member("job.json", SPEC);
    let list = |list: Value| signed(&serde_json::to_vec(&list).unwrap());
    for (bad, words) in [
        (
            json!({"version": 2, "project": "p", "submit_key": "k", "members": [spec]}),
            "version 2",
        ),
        (
            json!({"version": 1, "project": "p", "submit_key": "", "members": [spec]}),
            "submit_key",
        ),
        (
            json!({"version": 1, "project": "p", "submit_key": "a\nb", "members": [spec]}),
            "submit_key",
        ),
        (
            json!({"version": 1, "project": "p", "submit_key": "k", "members": []}),
            "job.json",
        ),
        (
            json!({"version": 1, "project": "p", "submit_key": "k", "members": [spec], "more": 1}),
            "more",
        ),
        (
            json!({"version": 1, "project": "p", "members": [spec]}),
            "submit_key",
        ),
        (json!([]), "bundle.json"),
    ] {
        refused(&archive(&list(bad)), &[words]);
    }
    refused(&archive(&signed(b"{nonsense")), &["bundle.json"]);
    let mut bad = spec.clone();
    bad["sha256"] = json!("AB");
    refused(&archive(&head(&[bad])), &["sha256"]);
    let mut bad = spec.clone();
    bad["length"] = json!(-1);
    refused(&archive(&head(&[bad])), &["bundle.json"]);
    let mut bad = spec.clone();
    bad["server_only"] = json!(true);
    refused(&archive(&head(&[bad])), &["server's alone"]);
    let model = member("models/initial.safetensors", b"m");
    announcing(model, &["server_only"]);
}

#[test]
fn another_projects_submitter_is_refused() {
    let place = Place::new();
    let bytes = whole(&place);
    let other = Made::new();
    let error = unpack(
        bytes.as_slice(),
        &place.job(),
        &Limits::server(),
        other.kit("site-1").authority(),
    )
    .unwrap_err();
    assert!(
        explained(&error).contains("not issued by this project's authority"),
        "{error}"
    );
    place.assert_empty();
}

#[test]
fn every_cut_is_noticed_and_nothing_is_left() {
    let place = Place::new();
    let bytes = whole(&place);
    for length in (0..bytes.len())
        .step_by(97)
        .chain([bytes.len() - 1, bytes.len() - 512])
    {
        let target = Place::new();
        let result = unpack(
            &bytes[..length],
            &target.job(),
            &Limits::server(),
            &authority(),
        );
        assert!(result.is_err(), "cut to {length} bytes");
        target.assert_empty();
    }
}

#[test]
fn what_was_changed_on_the_disk_is_noticed_when_it_is_opened() {
    for name in [
        "job.json",
        "code/train.py",
        "models/initial.safetensors",
        "bundle.json",
        "bundle.sig",
    ] {
        let place = Place::new();
        unpack(
            whole(&place).as_slice(),
            &place.job(),
            &Limits::server(),
            &authority(),
        )
        .unwrap();
        let path = place.job().join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[5] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(open(&place.job(), &authority()).is_err(), "{name}");
        bytes[5] ^= 1;
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"more").unwrap();
        assert!(open(&place.job(), &authority()).is_err(), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_flipped_bit_is_taken(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let place = Place::new();
        let mut bytes = whole(&place);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let target = Place::new();
        match unpack(bytes.as_slice(), &target.job(), &Limits::server(), &authority()) {
            Err(_) => target.assert_empty(),
            // Words around the certificate's PEM section mean nothing.
            Ok(bundle) => {
                prop_assert_eq!(bundle.spec, SPEC);
                prop_assert_eq!(fs::read(bundle.code.join("train.py")).unwrap(), b"print('training')\n");
            }
        }
    }
}
