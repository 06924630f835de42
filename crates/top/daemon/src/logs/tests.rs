use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use firesteel_net::{BoxStream, pipe, read_one, split, write_one};
use firesteel_wire::logs::{LogBytes, LogEnd, LogFrom, LogIs, ToReader, to_reader};

use super::Source;
use super::receive::receive_within;

/// A log as `observe` writes it: whole lines, rotated by renames.
struct Log {
    path: PathBuf,
    keep: usize,
    all: Vec<u8>,
    written: u64,
}

impl Log {
    fn new(dir: &Path, keep: usize) -> Self {
        Self {
            path: dir.join("log.txt"),
            keep,
            all: Vec::new(),
            written: 0,
        }
    }

    fn add(&mut self, text: &str) {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.path);
        file.unwrap().write_all(text.as_bytes()).unwrap();
        self.all.extend_from_slice(text.as_bytes());
    }

    fn line(&mut self) {
        self.written += 1;
        let text = format!("line {} {}\n", self.written, "x".repeat(37));
        self.add(&text);
    }

    fn numbered(&self, number: usize) -> PathBuf {
        PathBuf::from(format!("{}.{number}", self.path.display()))
    }

    fn rotate(&self) {
        for number in (1..self.keep).rev() {
            let _ = std::fs::rename(self.numbered(number), self.numbered(number + 1));
        }
        std::fs::rename(&self.path, self.numbered(1)).unwrap();
    }
}

/// All that is there from a position on, and where it begins.
fn drain(source: &mut Source, mut position: u64, all: bool) -> (Vec<(u64, u64)>, Vec<u8>, u64) {
    let mut bytes = Vec::new();
    let mut pieces = Vec::new();
    while let Some((from, more)) = source.read(position, all).unwrap() {
        pieces.push((from, more.len() as u64));
        position = from + more.len() as u64;
        bytes.extend_from_slice(&more);
    }
    (pieces, bytes, position)
}

#[test]
fn a_log_is_one_row_through_rotations_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::new(dir.path(), 5);
    let mut source = Source::open(&log.path, 5).unwrap();
    let birth = source.birth();
    assert_eq!(source.read(0, false).unwrap(), None);
    let mut got = Vec::new();
    let mut position = 0;
    for turn in 0..40 {
        for _ in 0..7 {
            log.line();
        }
        if turn % 3 == 0 {
            log.rotate();
        }
        if turn % 4 == 1 {
            source = Source::open(&log.path, 5).unwrap();
            assert_eq!(source.birth(), birth);
        }
        if turn % 2 == 0 {
            let (_, bytes, next) = drain(&mut source, position, false);
            got.extend_from_slice(&bytes);
            position = next;
        }
    }
    let (_, bytes, next) = drain(&mut source, position, true);
    got.extend_from_slice(&bytes);
    assert_eq!(next, log.all.len() as u64);
    assert!(got == log.all, "{} of {} bytes", got.len(), log.all.len());
}

#[test]
fn a_line_is_given_when_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::new(dir.path(), 2);
    let mut source = Source::open(&log.path, 2).unwrap();
    log.add("one\ntw");
    assert_eq!(source.read(0, false).unwrap(), Some((0, b"one\n".to_vec())));
    assert_eq!(source.read(4, false).unwrap(), None);
    assert_eq!(source.read(4, true).unwrap(), Some((4, b"tw".to_vec())));
    log.add("o\n");
    assert_eq!(source.read(4, false).unwrap(), Some((4, b"two\n".to_vec())));
    // A line that is longer than a message goes in pieces.
    let long = "y".repeat(firesteel_base::limits::LOG_CHUNK + 10);
    log.add(&long);
    let (from, piece) = source.read(8, false).unwrap().unwrap();
    assert_eq!((from, piece.len()), (8, firesteel_base::limits::LOG_CHUNK));
}

#[test]
fn what_was_rotated_away_is_a_gap_and_nothing_comes_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::new(dir.path(), 2);
    let mut source = Source::open(&log.path, 2).unwrap();
    log.line();
    let (_, _, position) = drain(&mut source, 0, true);
    for _ in 0..5 {
        log.line();
        log.rotate();
    }
    log.line();
    let (pieces, bytes, end) = drain(&mut source, position, true);
    let text = String::from_utf8(bytes).unwrap();
    let numbers: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    assert_eq!(numbers, ["5", "6", "7"]);
    assert!(pieces[0].0 >= position);
    // From here on it is one row again.
    log.line();
    let (_, bytes, _) = drain(&mut source, end, true);
    assert!(bytes.starts_with(b"line 8"));
}

// ----- the server's end -----------------------------------------------------

/// A stream to a receiver that writes to `path`.
fn receiving(path: &Path, budget: u64) -> (BoxStream, tokio::task::JoinHandle<()>) {
    let (near, far) = pipe(256 * 1024);
    let path = path.to_owned();
    let task = tokio::spawn(async move {
        let place = move |job: Option<&str>| match job {
            Some("wanted") | None => Ok(path),
            Some(other) => Err(format!("there is no job {other}")),
        };
        let _ = receive_within(far, place, budget).await;
    });
    (near, task)
}

async fn say(stream: &mut BoxStream, body: to_reader::Body) {
    write_one(stream, &ToReader { body: Some(body) })
        .await
        .unwrap();
}

async fn hear(stream: &mut BoxStream) -> LogFrom {
    let heard = read_one::<LogFrom>(stream, "LogFrom", 4096).await.unwrap();
    heard.expect("the stream ended")
}

fn is(job: &str, birth: u64) -> to_reader::Body {
    to_reader::Body::Is(LogIs {
        job: job.into(),
        birth,
    })
}

fn bytes(from: u64, text: &str) -> to_reader::Body {
    to_reader::Body::Bytes(LogBytes {
        from,
        bytes: bytes::Bytes::copy_from_slice(text.as_bytes()),
    })
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Opens a stream, says `pieces`, and ends it; what was answered first.
async fn send(path: &Path, budget: u64, birth: u64, pieces: &[(u64, &str)]) -> u64 {
    let (mut stream, task) = receiving(path, budget);
    say(&mut stream, is("", birth)).await;
    let first = hear(&mut stream).await;
    assert_eq!(first.refused, "");
    let mut at = 0;
    for (from, text) in pieces {
        say(&mut stream, bytes(*from, text)).await;
        at = from + text.len() as u64;
    }
    say(&mut stream, to_reader::Body::End(LogEnd { at })).await;
    let last = hear(&mut stream).await;
    assert!(last.whole);
    task.await.unwrap();
    first.position
}

#[tokio::test]
async fn what_was_written_is_not_wanted_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("logs/site-1.log");
    assert_eq!(send(&path, 1000, 7, &[(0, "one\n"), (4, "two\n")]).await, 0);
    // A site that repeats itself is written once.
    let again = [(2, "e\ntwo\nthree\n")];
    assert_eq!(send(&path, 1000, 7, &again).await, 8);
    assert_eq!(read(&path), "one\ntwo\nthree\n");
    // Another log: the old one is put aside.
    assert_eq!(send(&path, 1000, 8, &[(0, "new\n")]).await, 0);
    assert_eq!(read(&path), "new\n");
    assert_eq!(
        read(&dir.path().join("logs/site-1.log.1")),
        "one\ntwo\nthree\n"
    );
}

#[tokio::test]
async fn the_last_bytes_are_kept_within_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("site.log");
    let older = dir.path().join("site.log.1");
    let mut position = 0;
    let mut all = String::new();
    for number in 0..50 {
        let line = format!("line {number:04}\n");
        assert_eq!(send(&path, 100, 7, &[(position, &line)]).await, position);
        position += line.len() as u64;
        all.push_str(&line);
        let kept = format!("{}{}", read(&older), read(&path));
        assert!(all.ends_with(&kept), "{kept}");
        assert!(
            kept.len() <= 100 && (kept.len() > 40 || number < 4),
            "{}",
            kept.len()
        );
    }
}

#[tokio::test]
async fn a_killed_server_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("site.log");
    send(&path, 1000, 7, &[(0, "one\n")]).await;
    // Killed between the rename and the note: the note is of the file before.
    std::fs::rename(&path, dir.path().join("site.log.1")).unwrap();
    assert_eq!(send(&path, 1000, 7, &[(4, "two\n")]).await, 4);
    assert_eq!(send(&path, 1000, 7, &[]).await, 8);
    assert_eq!(read(&path), "two\n");
}

#[tokio::test]
async fn a_gap_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("site.log");
    send(&path, 10_000, 7, &[(0, "one\n"), (1000, "late\n")]).await;
    assert_eq!(
        read(&path),
        "(996 bytes of this log were gone before they could be sent)\nlate\n"
    );
    assert_eq!(send(&path, 10_000, 7, &[]).await, 1005);
}

#[tokio::test]
async fn what_has_no_place_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("site.log");
    for (job, birth, expected) in [
        ("other", 7, "there is no job other"),
        ("../up", 7, ""),
        ("wanted", 0, "no number of birth"),
    ] {
        let (mut stream, task) = receiving(&path, 1000);
        say(&mut stream, is(job, birth)).await;
        let heard = hear(&mut stream).await;
        assert!(
            !heard.refused.is_empty() && heard.refused.contains(expected),
            "{heard:?}"
        );
        task.await.unwrap();
    }
    let (mut stream, task) = receiving(&path, 1000);
    say(&mut stream, bytes(0, "x")).await;
    assert!(hear(&mut stream).await.refused.contains("names no log"));
    task.await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_link_in_the_place_of_a_log_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("site.log");
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "mine").unwrap();
    std::os::unix::fs::symlink(&victim, &path).unwrap();
    let (mut stream, task) = receiving(&path, 1000);
    say(&mut stream, is("", 7)).await;
    assert!(hear(&mut stream).await.refused.contains("cannot write it"));
    task.await.unwrap();
    assert_eq!(read(&victim), "mine");
}

// ----- both ends ------------------------------------------------------------

/// A log that is written, rotated, and sent over streams that are cut: what arrives
/// is what was written.
#[tokio::test]
async fn nothing_is_lost_and_nothing_comes_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::new(dir.path(), 4);
    let path = dir.path().join("server/site.log");
    for turn in 0..12u64 {
        for _ in 0..50 {
            log.line();
        }
        if turn % 2 == 1 {
            log.rotate();
            log.line();
        }
        // A stream that is cut after a number of messages, and a new process of the
        // site every other time.
        let mut source = Source::open(&log.path, 4).unwrap();
        let (near, task) = receiving(&path, 1 << 20);
        let (mut reader, mut writer) = split(near);
        let hello = ToReader {
            body: Some(is("", source.birth())),
        };
        writer.send(&hello).await.unwrap();
        let from = reader.next::<LogFrom>("LogFrom").await.unwrap().unwrap();
        let mut position = from.position;
        let mut left = turn % 3;
        while let Some((from, piece)) = source.read(position, false).unwrap() {
            // Small pieces, so that a cut comes in the middle.
            let piece = &piece[..piece.len().min(701)];
            let body = to_reader::Body::Bytes(LogBytes {
                from,
                bytes: bytes::Bytes::copy_from_slice(piece),
            });
            writer.send(&ToReader { body: Some(body) }).await.unwrap();
            position = from + piece.len() as u64;
            if left == 0 {
                break;
            }
            left -= 1;
        }
        drop((reader, writer));
        task.await.unwrap();
    }
    let mut source = Source::open(&log.path, 4).unwrap();
    let position = send(&path, 1 << 20, source.birth(), &[]).await;
    let (_, rest, _) = drain(&mut source, position, true);
    let rest = String::from_utf8(rest).unwrap();
    send(&path, 1 << 20, source.birth(), &[(position, &rest)]).await;
    assert_eq!(read(&path), String::from_utf8(log.all).unwrap());
}
