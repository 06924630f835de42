//! The direction of crates: which may name which, and which names are kept out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Lowest first. A crate may use crates of a lower floor, and of its own floor
/// where that makes no cycle.
const FLOORS: [&str; 6] = ["base", "math", "protocol", "io", "role", "top"];

/// Floors whose crates decide and compute, and touch nothing.
const PURE: [&str; 3] = ["base", "math", "protocol"];

/// What reaches a socket, a disk, a process or a runtime. Names that end in
/// `*` stand for a family. The first [`RUNTIMES`] are refused in tests too: code
/// that is tested under a runtime soon needs one.
const TOUCHES: [&str; 13] = [
    "tokio*", "futures*", "async-*", "smol", "mio", "rustix", "libc", "nix", "memmap2", "socket2",
    "reqwest", "hyper*", "chrono",
];

/// How many of [`TOUCHES`] are runtimes.
const RUNTIMES: usize = 5;

/// Floors that read what strangers wrote, where an index out of bounds is an attack.
const READS_STRANGERS: [&str; 3] = ["protocol", "io", "role"];

/// Of those floors, crates that are handed values only, never bytes of a peer.
const READS_NONE: [&str; 1] = ["flow"];

/// The bytes are the business of `wire` and `api`. Of the others, `tensor` reads
/// the params tree with a visitor that stops at its limits, `net` moves any
/// message, and `observe` writes the event files that other programs read.
const ENCODES: [(&str, &[&str]); 2] = [
    ("serde", &["wire", "api", "tensor", "pki"]),
    ("prost", &["wire", "api", "net", "observe"]),
];

/// Errors without a type, where no caller decides anything by them.
const UNTYPED_ERRORS: [&str; 2] = ["cli", "xtask"];

/// Shared memory, process set-up and the foreign-language edge; and the rig, which
/// sets up namespaces and devices.
const UNSAFE: [&str; 5] = ["tensor", "bridge", "launch", "py", "rig"];

/// Folders whose crates are for tests and benches: nothing that is shipped may
/// depend on one, and they encode and fail as is convenient.
const TEST_FOLDERS: [&str; 2] = ["tests/", "benches/"];

/// One module of this crate maps files; the rest of it is safe.
const UNSAFE_IN_MMAP: &str = "store";

/// A crate as the checks see it.
#[derive(Debug, Clone, Default)]
pub struct Room {
    /// The package's name.
    pub package: String,
    /// The folders below the root: `crates/math/tensor`.
    pub folder: String,
    /// What its manifest names.
    pub needs: Vec<Need>,
    /// The text of `lib.rs` or `main.rs`.
    pub source: String,
}

/// A line of a manifest's dependencies.
#[derive(Debug, Clone)]
pub struct Need {
    /// The package that is named.
    pub package: String,
    /// For tests only.
    pub dev: bool,
}

impl Room {
    fn name(&self) -> &str {
        self.folder.rsplit('/').next().unwrap_or(&self.folder)
    }

    /// Its floor's place from below; `None` for crates outside the house (`xtask`).
    fn floor(&self) -> Option<usize> {
        let mut folders = self.folder.split('/');
        if folders.next() != Some("crates") {
            return None;
        }
        let floor = folders.next()?;
        FLOORS.iter().position(|known| *known == floor)
    }

    fn for_tests(&self) -> bool {
        TEST_FOLDERS
            .iter()
            .any(|folder| self.folder.starts_with(folder))
    }

    fn on(&self, floors: &[&str]) -> bool {
        self.floor().is_some_and(|at| floors.contains(&FLOORS[at]))
    }
}

/// Everything that is not as the house is drawn, a sentence each.
pub fn violations(rooms: &[Room]) -> Vec<String> {
    let by_package: BTreeMap<&str, &Room> = rooms
        .iter()
        .map(|room| (room.package.as_str(), room))
        .collect();
    let mut found = Vec::new();
    for room in rooms {
        found.extend(place(room));
        for need in &room.needs {
            match by_package.get(need.package.as_str()) {
                Some(other) => {
                    found.extend(direction(room, other));
                    found.extend(for_tests(room, other, need));
                }
                None => found.extend(foreign(room, need)),
            }
        }
        found.extend(attributes(room));
        found.extend(header(room));
    }
    found.extend(cycles(&by_package));
    found
}

fn place(room: &Room) -> Option<String> {
    if !room.folder.starts_with("crates/") {
        return None;
    }
    if room.floor().is_none() {
        return Some(format!(
            "`{}` lies on no floor; the floors are {}",
            room.folder,
            FLOORS.join(", ")
        ));
    }
    let expected = format!("firesteel-{}", room.name());
    (room.package != expected).then(|| {
        format!(
            "the package in `{}` is named `{}`; crate name = folder name: `{expected}`",
            room.folder, room.package
        )
    })
}

fn direction(room: &Room, other: &Room) -> Option<String> {
    let (from, to) = (room.floor()?, other.floor()?);
    if to > from {
        return Some(format!(
            "`{}` ({}) depends on `{}` ({}), which is a higher floor; move what it needs down, or itself up",
            room.package, FLOORS[from], other.package, FLOORS[to]
        ));
    }
    (from == to && FLOORS[from] == "role").then(|| {
        format!(
            "`{}` depends on `{}`: roles never import roles; what both need belongs to a lower floor",
            room.package, other.package
        )
    })
}

/// What breaks things on purpose stays where things are tested.
fn for_tests(room: &Room, other: &Room, need: &Need) -> Option<String> {
    let wrong = other.for_tests() && !room.for_tests() && !need.dev;
    wrong.then(|| {
        format!(
            "`{}` depends on `{}`, which is for tests and benches; name it below `[dev-dependencies]`",
            room.package, other.package
        )
    })
}

fn foreign(room: &Room, need: &Need) -> Option<String> {
    let name = need.package.as_str();
    let touches = if need.dev {
        &TOUCHES[..RUNTIMES]
    } else {
        &TOUCHES[..]
    };
    if room.on(&PURE) && touches.iter().any(|family| matches(family, name)) {
        return Some(format!(
            "`{}` names `{name}`, but its floor touches no socket, disk, clock or runtime; that part belongs to `io`",
            room.package
        ));
    }
    if room.for_tests() {
        return None;
    }
    let allowed = encoder(name).filter(|allowed| !need.dev && !allowed.contains(&room.name()));
    if let Some(allowed) = allowed {
        return Some(format!(
            "`{}` names `{name}`, but those bytes are the business of {}; convert by hand",
            room.package,
            allowed.join(", ")
        ));
    }
    if !need.dev && matches("anyhow", name) && !UNTYPED_ERRORS.contains(&room.name()) {
        return Some(format!(
            "`{}` names `anyhow`, which is for {} and tests; give the operation an error enum",
            room.package,
            UNTYPED_ERRORS.join(", ")
        ));
    }
    None
}

/// Which crates may name an encoder; `None` when it is none. `serde_json` is
/// not among them: a `Value` is data, and derives nothing.
fn encoder(name: &str) -> Option<&'static [&'static str]> {
    let family = match name {
        "serde" | "serde_derive" => "serde",
        name if name.starts_with("prost") => "prost",
        _ => return None,
    };
    ENCODES
        .iter()
        .find(|(encoder, _)| *encoder == family)
        .map(|(_, allowed)| *allowed)
}

fn matches(family: &str, name: &str) -> bool {
    match family.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => family == name,
    }
}

/// What the crate's first lines must forbid, by its place in the house.
fn attributes(room: &Room) -> Vec<String> {
    let mut found = Vec::new();
    let has = |attribute: &str| {
        room.source
            .lines()
            .any(|line| line.trim().starts_with(attribute))
    };
    let name = room.name();
    if name == UNSAFE_IN_MMAP {
        if !has("#![deny(unsafe_code)]") && !has("#![forbid(unsafe_code)]") {
            found.push(format!(
                "`{}` has no `#![deny(unsafe_code)]`; its module `mmap` alone may allow it",
                room.package
            ));
        }
    } else if !UNSAFE.contains(&name) && !has("#![forbid(unsafe_code)]") {
        found.push(format!(
            "`{}` has no `#![forbid(unsafe_code)]` in its first file; unsafe code is for {} and `{UNSAFE_IN_MMAP}::mmap`",
            room.package,
            UNSAFE.join(", ")
        ));
    }
    if room.on(&READS_STRANGERS)
        && !READS_NONE.contains(&name)
        && !has("#![deny(clippy::indexing_slicing)]")
        && !has("#![warn(clippy::indexing_slicing)]")
    {
        found.push(format!(
            "`{}` has no `#![deny(clippy::indexing_slicing)]` in its first file; its floor reads what strangers wrote",
            room.package
        ));
    }
    found
}

/// The crate's header says what is absent, and where a reader starts.
fn header(room: &Room) -> Option<String> {
    let doc: String = room
        .source
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .collect();
    (!doc.contains("//! Never: ") || !doc.contains("//! Start at ")).then(|| {
        format!(
            "the header of `{}` has three parts: what it is, `Never: …`, `Start at …`",
            room.package
        )
    })
}

fn cycles(rooms: &BTreeMap<&str, &Room>) -> Vec<String> {
    let mut done = BTreeSet::new();
    let mut found = Vec::new();
    for package in rooms.keys() {
        let mut path = Vec::new();
        walk(package, rooms, &mut path, &mut done, &mut found);
    }
    found
}

fn walk<'a>(
    package: &'a str,
    rooms: &BTreeMap<&'a str, &'a Room>,
    path: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
    found: &mut Vec<String>,
) {
    if let Some(start) = path.iter().position(|seen| *seen == package) {
        let mut circle = String::new();
        for step in &path[start..] {
            let _ = write!(circle, "`{step}` → ");
        }
        found.push(format!(
            "{circle}`{package}` is a circle; move what they share down"
        ));
        return;
    }
    if done.contains(package) {
        return;
    }
    let Some(room) = rooms.get(package) else {
        return;
    };
    path.push(package);
    for need in &room.needs {
        // A crate's tests name the crate itself to turn a feature on.
        if !(need.dev && need.package == package) {
            walk(&need.package, rooms, path, done, found);
        }
    }
    path.pop();
    done.insert(package);
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "//! Things.\n//!\n//! Never: x.\n//!\n//! Start at y.\n";

    /// One crate per line: `floor/name: needs`, `~x` for tests only.
    /// `expect` names a part of each violation, in order.
    fn check(house: &str, expect: &[&str]) {
        let rooms: Vec<Room> = house
            .split(';')
            .map(|line| {
                let (folder, needs) = line.trim().split_once(':').unwrap();
                let name = folder.rsplit('/').next().unwrap();
                let inside = |name: &str| house.contains(&format!("/{name}:"));
                Room {
                    package: format!("firesteel-{name}"),
                    folder: format!("crates/{folder}"),
                    needs: needs
                        .split_whitespace()
                        .map(|need| {
                            let bare = need.trim_start_matches('~');
                            Need {
                                package: if inside(bare) {
                                    format!("firesteel-{bare}")
                                } else {
                                    bare.to_owned()
                                },
                                dev: need.starts_with('~'),
                            }
                        })
                        .collect(),
                    source: format!(
                        "{HEADER}#![forbid(unsafe_code)]\n#![deny(clippy::indexing_slicing)]"
                    ),
                }
            })
            .collect();
        compare(&violations(&rooms), expect);
    }

    fn compare(found: &[String], expect: &[&str]) {
        assert_eq!(found.len(), expect.len(), "{found:#?}");
        for (sentence, part) in found.iter().zip(expect) {
            assert!(sentence.contains(part), "{sentence:?} lacks {part:?}");
        }
    }

    #[test]
    fn downwards_and_level_is_fine() {
        check(
            "base/base: thiserror; math/tensor: base half; math/aggregate: base tensor rayon;
             io/store: tensor rustix; role/server: store tokio; top/sim: server; top/cli: anyhow sim",
            &[],
        );
    }

    #[test]
    fn upwards_is_refused_in_tests_too() {
        check(
            "math/tensor: store; io/store: base; base/base: ~tensor",
            &[
                "`firesteel-tensor` (math) depends on `firesteel-store` (io)",
                "`firesteel-base` (base) depends on `firesteel-tensor` (math)",
                "is a circle",
            ],
        );
    }

    #[test]
    fn roles_never_import_roles() {
        check(
            "role/server: agent; role/agent: tokio",
            &["roles never import roles"],
        );
    }

    #[test]
    fn a_circle_on_one_floor_is_named_whole() {
        check(
            "io/a: b; io/b: c; io/c: ~a",
            &["`firesteel-a` → `firesteel-b` → `firesteel-c` → `firesteel-a` is a circle"],
        );
        check("io/a: a", &["`firesteel-a` → `firesteel-a` is a circle"]);
        check("io/a: ~a", &[]);
    }

    #[test]
    fn pure_floors_name_no_runtime_not_even_in_tests() {
        check(
            "protocol/flow: tokio-util; math/tensor: ~tokio ~memmap2; base/base: libc; io/net: tokio",
            &[
                "`firesteel-flow` names `tokio-util`",
                "`firesteel-tensor` names `tokio`",
                "`firesteel-base` names `libc`",
            ],
        );
    }

    #[test]
    fn bytes_are_the_business_of_few() {
        check(
            "protocol/wire: prost serde; io/observe: prost; io/store: serde_json; role/server: serde ~prost; protocol/flow: prost-types",
            &[
                "`firesteel-server` names `serde`",
                "`firesteel-flow` names `prost-types`",
            ],
        );
    }

    #[test]
    fn untyped_errors_are_for_the_command_line() {
        check(
            "top/cli: anyhow; top/sim: anyhow; io/store: ~anyhow",
            &["`firesteel-sim` names `anyhow`"],
        );
    }

    #[test]
    fn what_is_for_tests_stays_there() {
        let room = |folder: &str, needs: &[(&str, bool)]| Room {
            folder: folder.into(),
            package: format!("firesteel-{}", folder.rsplit('/').next().unwrap()),
            source: format!("{HEADER}#![forbid(unsafe_code)]\n#![deny(clippy::indexing_slicing)]"),
            needs: needs
                .iter()
                .map(|&(name, dev)| Need {
                    package: match name {
                        "rig" | "store" => format!("firesteel-{name}"),
                        foreign => foreign.to_owned(),
                    },
                    dev,
                })
                .collect(),
        };
        compare(
            &violations(&[
                room("tests/rig", &[]),
                room(
                    "tests/net",
                    &[("rig", false), ("store", false), ("serde", false)],
                ),
                room("benches/native", &[("rig", false), ("anyhow", false)]),
                room("crates/io/store", &[("rig", true)]),
                room("crates/role/server", &[("rig", false)]),
            ]),
            &["`firesteel-server` depends on `firesteel-rig`, which is for tests"],
        );
    }

    #[test]
    fn names_and_places_agree() {
        let room = |folder: &str, package: &str| Room {
            folder: folder.into(),
            package: package.into(),
            source: format!("{HEADER}#![forbid(unsafe_code)]"),
            needs: Vec::new(),
        };
        compare(
            &violations(&[
                room("crates/attic/things", "firesteel-things"),
                room("crates/math/tensor", "tensors"),
                room("xtask", "xtask"),
            ]),
            &[
                "lies on no floor",
                "crate name = folder name: `firesteel-tensor`",
            ],
        );
    }

    #[test]
    fn unsafe_code_and_indexing_are_forbidden_by_place() {
        let room = |folder: &str, source: &str| Room {
            folder: folder.into(),
            package: format!("firesteel-{}", folder.rsplit('/').next().unwrap()),
            source: format!("{HEADER}{source}"),
            needs: Vec::new(),
        };
        compare(
            &violations(&[
                room(
                    "crates/math/aggregate",
                    "//! #![forbid(unsafe_code)] in a comment",
                ),
                room("crates/math/tensor", ""),
                room(
                    "crates/io/store",
                    "#![deny(unsafe_code)]\n#![deny(clippy::indexing_slicing)]",
                ),
                room("crates/io/launch", ""),
                room("crates/top/py", ""),
                room("crates/role/agent", "#![forbid(unsafe_code)]"),
            ]),
            &[
                "`firesteel-aggregate` has no `#![forbid(unsafe_code)]`",
                "`firesteel-launch` has no `#![deny(clippy::indexing_slicing)]`",
                "`firesteel-agent` has no `#![deny(clippy::indexing_slicing)]`",
            ],
        );
    }

    #[test]
    fn a_header_says_what_is_absent() {
        let room = |source: &str| Room {
            folder: "xtask".into(),
            package: "xtask".into(),
            source: format!("{source}\n#![forbid(unsafe_code)]"),
            needs: Vec::new(),
        };
        compare(
            &violations(&[
                room(HEADER),
                room("//! Things.\n//! Never: x."),
                room("// Never: x.\n//! Start at y."),
            ]),
            &["the header of `xtask`", "the header of `xtask`"],
        );
    }
}
