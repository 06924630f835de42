use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use firesteel_api::ask::{FileOp, Listing, Matches, Text};
use firesteel_api::{Code, Problem};
use firesteel_base::limits;

use serde_json::Value;

use super::answer;

fn bench() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("job");
    fs::create_dir_all(root.join("code/deep")).unwrap();
    fs::write(dir.path().join("secret"), "secret\n").unwrap();
    fs::write(root.join("log.txt"), "one\ntwo error\nthree\nERROR four\n").unwrap();
    fs::write(root.join("code/client.py"), "import flare\n").unwrap();
    fs::write(root.join("code/deep/notes"), "an error here\n").unwrap();
    (dir, root)
}

macro_rules! read_as {
    ($($of:ty),*) => { $(impl Read for $of {
        fn read(value: Value) -> Self {
            serde_json::from_value(value).unwrap()
        }
    })* };
}

/// An answer, as the one who asked reads it.
trait Read {
    fn read(value: Value) -> Self;
}

read_as!(Listing, Text, Matches);

fn read<T: Read>(value: Value) -> T {
    T::read(value)
}

fn ls(root: &Path, path: &str, recursive: bool) -> Result<Listing, Problem> {
    let path = path.to_owned();
    answer(root, &FileOp::Ls { path, recursive }).map(read)
}

fn cat(root: &Path, path: &str, offset: u64) -> Result<Text, Problem> {
    let path = path.to_owned();
    answer(root, &FileOp::Cat { path, offset }).map(read)
}

fn head(root: &Path, path: &str, lines: u32) -> Result<Text, Problem> {
    let path = path.to_owned();
    answer(root, &FileOp::Head { path, lines }).map(read)
}

fn tail(root: &Path, path: &str, lines: u32) -> Result<Text, Problem> {
    let path = path.to_owned();
    answer(root, &FileOp::Tail { path, lines }).map(read)
}

fn grep(root: &Path, path: &str, pattern: &str) -> Result<Matches, Problem> {
    grep_with(root, path, pattern, false, false, false)
}

#[expect(clippy::fn_params_excessive_bools, reason = "they are grep's own")]
fn grep_with(
    root: &Path,
    path: &str,
    pattern: &str,
    ignore_case: bool,
    fixed: bool,
    invert: bool,
) -> Result<Matches, Problem> {
    let op = FileOp::Grep {
        path: path.to_owned(),
        pattern: pattern.to_owned(),
        ignore_case,
        fixed,
        invert,
    };
    answer(root, &op).map(read)
}

fn found(matches: &Matches) -> Vec<(String, u64)> {
    matches
        .lines
        .iter()
        .map(|one| (one.path.clone(), one.line))
        .collect()
}

#[test]
fn a_folder_is_listed() {
    let (_dir, root) = bench();
    let paths = |listing: Listing| -> Vec<String> {
        listing
            .entries
            .into_iter()
            .map(|entry| entry.path)
            .collect()
    };
    assert_eq!(paths(ls(&root, "", false).unwrap()), ["code", "log.txt"]);
    assert_eq!(
        paths(ls(&root, ".", true).unwrap()),
        [
            "code",
            "code/client.py",
            "code/deep",
            "code/deep/notes",
            "log.txt"
        ]
    );
    assert_eq!(
        paths(ls(&root, "code/", false).unwrap()),
        ["client.py", "deep"]
    );
    let one = ls(&root, "log.txt", false).unwrap();
    assert_eq!((one.entries[0].bytes, one.entries[0].folder), (31, false));
    assert!(one.entries[0].modified.is_some());
}

#[test]
fn a_listing_has_an_end() {
    let (_dir, root) = bench();
    for number in 0..limits::FILES_ENTRIES + 10 {
        fs::write(root.join(format!("f{number}")), "").unwrap();
    }
    let listing = ls(&root, "", false).unwrap();
    assert!(listing.cut);
    assert_eq!(listing.entries.len(), limits::FILES_ENTRIES);
}

#[test]
fn pieces_of_a_file() {
    let (_dir, root) = bench();
    let whole = cat(&root, "log.txt", 0).unwrap();
    assert_eq!(whole.text, "one\ntwo error\nthree\nERROR four\n");
    assert_eq!(
        (whole.offset, whole.end, whole.bytes, whole.cut),
        (0, 31, 31, false)
    );
    assert_eq!(cat(&root, "log.txt", 20).unwrap().text, "ERROR four\n");
    assert_eq!(cat(&root, "log.txt", 99).unwrap().text, "");
    assert_eq!(head(&root, "log.txt", 2).unwrap().text, "one\ntwo error\n");
    assert_eq!(head(&root, "log.txt", 0).unwrap().text, "");
    assert_eq!(head(&root, "log.txt", 99).unwrap().text, whole.text);
    let last = tail(&root, "log.txt", 2).unwrap();
    assert_eq!(
        (last.text.as_str(), last.offset),
        ("three\nERROR four\n", 14)
    );
    assert_eq!(tail(&root, "log.txt", 99).unwrap().text, whole.text);
    assert_eq!(tail(&root, "log.txt", 0).unwrap().text, "");
    fs::write(root.join("open"), "a\nb").unwrap();
    assert_eq!(tail(&root, "open", 1).unwrap().text, "b");
    fs::write(root.join("empty"), "").unwrap();
    assert_eq!(tail(&root, "empty", 5).unwrap().text, "");
}

#[test]
fn large_files_are_answered_in_pieces_that_join() {
    let (_dir, root) = bench();
    let mut text = String::new();
    for number in 0..60_000 {
        text.push_str(&format!("line {number} é\n"));
    }
    fs::write(root.join("large"), &text).unwrap();
    let mut joined = String::new();
    let mut offset = 0;
    loop {
        let piece = cat(&root, "large", offset).unwrap();
        joined.push_str(&piece.text);
        offset = piece.end;
        if !piece.cut {
            break;
        }
        assert!(!piece.text.is_empty());
    }
    assert!(joined == text);
    let last = tail(&root, "large", 3).unwrap();
    assert_eq!(last.text, "line 59997 é\nline 59998 é\nline 59999 é\n");
    let most = tail(&root, "large", u32::MAX).unwrap();
    assert!(most.cut && most.text.starts_with("line "));
    assert!(head(&root, "large", u32::MAX).unwrap().cut);
}

#[test]
fn what_a_terminal_would_obey_is_not_shown() {
    let (_dir, root) = bench();
    fs::write(root.join("raw"), b"\x1b[31mred\x07\xff\tok\n").unwrap();
    let text = cat(&root, "raw", 0).unwrap().text;
    assert_eq!(text, "\u{fffd}[31mred\u{fffd}\u{fffd}\tok\n");
}

#[test]
fn lines_that_hold_a_pattern() {
    let (_dir, root) = bench();
    assert_eq!(
        found(&grep(&root, "log.txt", "error").unwrap()),
        [("log.txt".to_owned(), 2)]
    );
    let any = grep_with(&root, "log.txt", "error", true, false, false).unwrap();
    assert_eq!(
        found(&any),
        [("log.txt".to_owned(), 2), ("log.txt".to_owned(), 4)]
    );
    let not = grep_with(&root, "log.txt", "error", false, false, true).unwrap();
    assert_eq!(not.lines.len(), 3);
    let below = grep(&root, "", "error").unwrap();
    assert_eq!(
        found(&below),
        [("code/deep/notes".to_owned(), 1), ("log.txt".to_owned(), 2)]
    );
    let code = grep(&root, "code", "^import").unwrap();
    assert_eq!(found(&code), [("code/client.py".to_owned(), 1)]);
    let fixed = grep_with(&root, "log.txt", "t.o", false, true, false).unwrap();
    assert!(fixed.lines.is_empty());
    let problem = grep(&root, "log.txt", "(").unwrap_err();
    assert_eq!(
        (problem.code, problem.field.as_deref()),
        (Code::Invalid, Some("pattern"))
    );
}

#[test]
fn catastrophic_patterns_take_no_time() {
    let (_dir, root) = bench();
    fs::write(
        root.join("as"),
        format!("{}!\n", "a".repeat(limits::LOG_LINE)).repeat(20),
    )
    .unwrap();
    for pattern in [
        "(a+)+$",
        "(a|aa)+$",
        "(a|a?)+$",
        "(.*a){12}$",
        "([a-zA-Z]+)*$",
    ] {
        // Were they of the kind that goes back, the test would not end.
        let matches = grep(&root, "as", pattern).unwrap();
        assert!(matches.lines.len() <= 20, "{pattern}");
    }
    for pattern in ["x{1000}{1000}", "(((a{100}){100}){100})", r"(a)\1", "(?=a)"] {
        let problem = grep(&root, "as", pattern).unwrap_err();
        assert!(
            problem.message.contains("refused"),
            "{pattern}: {problem:?}"
        );
    }
    let long = grep(&root, "as", &"a".repeat(limits::FILES_PATH + 1)).unwrap_err();
    assert!(long.message.contains("limit"), "{long:?}");
}

#[test]
fn a_search_has_an_end() {
    let (_dir, root) = bench();
    fs::write(root.join("many"), "hit\n".repeat(limits::FILES_LINES + 5)).unwrap();
    let matches = grep(&root, "many", "hit").unwrap();
    assert!(matches.cut);
    assert_eq!(matches.lines.len(), limits::FILES_LINES);
    fs::write(root.join("wide"), format!("{}\n", "w".repeat(1 << 20))).unwrap();
    let wide = grep(&root, "wide", "w").unwrap();
    assert!(wide.lines[0].text.len() < limits::FILES_LINE + 8);
    // One answer fits one message, whatever it holds.
    fs::write(root.join("quotes"), "\"\\\n".repeat(400_000)).unwrap();
    for op in [
        FileOp::Cat {
            path: "quotes".into(),
            offset: 0,
        },
        FileOp::Grep {
            path: "quotes".into(),
            pattern: ".".into(),
            ignore_case: false,
            fixed: false,
            invert: false,
        },
    ] {
        let length = answer(&root, &op).unwrap().to_string().len();
        assert!(length < limits::FRAME, "{length}");
    }
}

/// A path or a pattern is never an argument of anything.
#[test]
fn shells_and_options_are_names_like_others() {
    let (_dir, root) = bench();
    for path in [
        "; id",
        "$(id)",
        "`id`",
        "-f /etc/passwd",
        "| cat",
        "*",
        "log.txt; id",
        "--help",
    ] {
        for refused in [
            ls(&root, path, false).map(drop),
            cat(&root, path, 0).map(drop),
            head(&root, path, 1).map(drop),
            tail(&root, path, 1).map(drop),
            grep(&root, path, "x").map(drop),
        ] {
            let problem = refused.unwrap_err();
            assert!(
                matches!(problem.code, Code::FileNotFound | Code::Invalid),
                "{path}: {problem:?}"
            );
        }
    }
    // And they are found when there are such files.
    for name in ["; id", "$(id)", "--help", "*"] {
        fs::write(root.join(name), "harmless\n").unwrap();
        assert_eq!(cat(&root, name, 0).unwrap().text, "harmless\n");
    }
    for pattern in ["; id", "$(id)", "-f /etc/passwd", "--include=*"] {
        let matches = grep_with(&root, "", pattern, false, true, false).unwrap();
        assert!(matches.lines.is_empty(), "{pattern}");
    }
}

#[test]
fn nothing_outside_is_reached() {
    let (dir, root) = bench();
    for path in [
        "..",
        "../secret",
        "code/../../secret",
        "/etc/passwd",
        "//etc/passwd",
        "code//client.py",
        "code/./client.py",
        "a\0b",
        "a\nb",
    ] {
        for refused in [
            cat(&root, path, 0).map(drop),
            ls(&root, path, true).map(drop),
        ] {
            assert_eq!(refused.unwrap_err().code, Code::Invalid, "{path}");
        }
    }
    symlink(dir.path().join("secret"), root.join("out")).unwrap();
    symlink("log.txt", root.join("in")).unwrap();
    symlink(dir.path(), root.join("up")).unwrap();
    for path in ["out", "in", "up", "up/secret"] {
        assert!(cat(&root, path, 0).is_err(), "{path}");
        assert!(ls(&root, path, true).is_err(), "{path}");
    }
    let all = ls(&root, "", true).unwrap();
    assert!(
        all.entries
            .iter()
            .all(|entry| !matches!(&*entry.path, "out" | "in" | "up"))
    );
    assert!(grep(&root, "", "secret").unwrap().lines.is_empty());
    let pipe = root.join("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(cat(&root, "pipe", 0).is_err());
    assert!(ls(&dir.path().join("none"), "", false).is_err());
    assert!(cat(&root, &"x/".repeat(600), 0).is_err());
}

#[test]
fn a_folder_that_turns_into_a_link_never_leads_out() {
    let (dir, root) = bench();
    fs::create_dir(dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("outside/file"), "secret").unwrap();
    symlink(dir.path().join("outside"), root.join("link")).unwrap();
    fs::create_dir(root.join("x")).unwrap();
    fs::write(root.join("x/file"), "inside").unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = fs::rename(root.join("x"), root.join("dir"));
                let _ = fs::rename(root.join("link"), root.join("x"));
                let _ = fs::rename(root.join("x"), root.join("link"));
                let _ = fs::rename(root.join("dir"), root.join("x"));
            }
        });
        let mut seen = 0;
        for _ in 0..4000 {
            if let Ok(text) = cat(&root, "x/file", 0) {
                assert_eq!(text.text, "inside");
                seen += 1;
            }
            if seen % 100 == 1 {
                let matches = grep(&root, "", "secret").unwrap();
                assert!(matches.lines.is_empty());
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(seen > 0, "the race was never won by the right file");
    });
}

#[test]
fn the_way_without_the_kernels_help_is_as_narrow() {
    let (dir, root) = bench();
    let folder = fs::File::open(&root).unwrap();
    let by_parts = |path: &str| super::beneath::by_parts(&folder, path);
    assert!(by_parts("code/deep/notes").is_ok());
    symlink(dir.path(), root.join("up")).unwrap();
    assert!(by_parts("up/secret").is_err());
    assert!(by_parts("up").is_err());
}
