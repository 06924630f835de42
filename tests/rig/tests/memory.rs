//! The rulers see what is there, and count it where it belongs.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use firesteel_rig::memory::{Group, Held, Peak, pss, touch, tree};
use firesteel_rig::wait::block_until;
use firesteel_rig::{RigError, refuse_or_skip};

const MIB: u64 = 1024 * 1024;
const HOLDS: &str = "FIRESTEEL_RIG_TEST_HOLDS";

/// Not a test by itself: a process that holds memory until its input ends.
#[test]
fn helper_that_holds_memory() {
    let Ok(bytes) = std::env::var(HOLDS) else {
        return;
    };
    std::io::stdin().lines().next();
    let held = vec![1u8; bytes.parse().unwrap()];
    println!("holding");
    std::io::stdin().lines().next();
    drop(std::hint::black_box(held));
}

/// Such a process, before it holds anything.
fn holder(bytes: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["helper_that_holds_memory", "--exact", "--nocapture"])
        .env(HOLDS, bytes.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Lets it have its memory.
fn hold(child: &mut Child) {
    writeln!(child.stdin.as_mut().unwrap()).unwrap();
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(
        lines
            .map_while(Result::ok)
            .any(|line| line.contains("holding"))
    );
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn a_process_owns_what_it_wrote() {
    let mut child = holder(64 * MIB);
    hold(&mut child);
    let held = Held::of(child.id()).unwrap();
    assert!((64 * MIB..96 * MIB).contains(&held.owned()), "{held:?}");
    assert_eq!(held.owned(), held.anonymous + held.shared);
    assert!(held.files > 0, "its program is a mapped file");
    let pss = pss(child.id()).unwrap();
    assert!((64 * MIB..96 * MIB).contains(&pss), "{pss}");
    end(child);
    assert!(Held::own().owned() > 0);
}

#[test]
fn a_tree_is_measured_to_its_leaves_and_over_its_end() {
    let mut child = holder(48 * MIB);
    assert!(tree(std::process::id()).contains(&child.id()));
    let peak = Peak::watch(std::process::id(), Duration::from_millis(5));
    hold(&mut child);
    let id = child.id();
    block_until(|| (Held::of(id)?.owned() > 48 * MIB).then_some(()));
    let peaks = peak.stop();
    assert!(peaks.owned > 48 * MIB && peaks.pss > 48 * MIB, "{peaks:?}");
    assert!(peaks.processes >= 2 && peaks.samples >= 1);
    end(child);
    assert!(!tree(std::process::id()).contains(&id));
    assert_eq!(Held::of(id), None);
}

#[test]
fn touched_pages_are_given_back() {
    let before = Held::own().owned();
    let peak = Peak::watch(std::process::id(), Duration::from_millis(1));
    touch(200 * MIB);
    let (peaks, after) = (peak.stop(), Held::own().owned());
    assert!(peaks.owned > before + 100 * MIB, "{peaks:?}");
    assert!(after < before + 32 * MIB, "{before} {after}");
}

#[test]
fn a_control_group_tells_pages_from_the_page_cache() {
    let group = match Group::new() {
        Ok(group) => group,
        Err(error @ RigError::Unavailable { .. }) => return refuse_or_skip(&error.to_string()),
        Err(error) => panic!("{error:?}"),
    };
    let mut child = holder(64 * MIB);
    if let Err(error) = group.add(child.id()) {
        end(child);
        return refuse_or_skip(&format!("a process cannot be moved into a group: {error}"));
    }
    hold(&mut child);
    let usage = group.usage().unwrap();
    assert!((64 * MIB..96 * MIB).contains(&usage.owned()), "{usage:?}");
    assert!(group.peak().unwrap() >= 64 * MIB);
    end(child);
    let folder = group.folder().to_owned();
    drop(group);
    assert!(!folder.exists());
}
