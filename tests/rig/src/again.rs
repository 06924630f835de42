//! A test that runs itself once more, as a process of its own where something is
//! different: in namespaces of its own, or where files may not grow.
//!
//! Namespaces are left and entered by a whole process (only a process with one
//! thread can leave its user namespace), so a test cannot just move into them.
//! It starts its own program for this one test instead. The second process ends
//! with the first one, and its namespaces, devices and mounts with it.

use std::io;
use std::process::{Command, ExitCode, Output, Stdio};

use crate::{RigError, sys};

/// Names the test that runs again, to the process in which it does.
const AGAIN: &str = "FIRESTEEL_RIG_AGAIN";

/// The exit code of a test that found that its surroundings do not allow it.
const UNAVAILABLE: u8 = 77;

/// What is different the second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Again {
    /// Namespaces of its own for networks and mounts, in which it is root.
    OwnSpace,
    /// No file may grow beyond so many bytes: a write fails half way, as on a
    /// disk that fills up. Possible for everybody, everywhere.
    SmallFiles(u64),
}

/// Proof that this process is in namespaces of its own.
#[derive(Debug)]
pub struct Space(());

impl Space {
    /// The value, or the end of a test whose surroundings do not allow what it
    /// needs: "skipped" and why, and a failure where `CI` is set.
    pub fn need<T>(&self, made: Result<T, RigError>) -> T {
        match made {
            Ok(value) => value,
            Err(error @ RigError::Failed { .. }) => panic!("{}", chain(&error)),
            Err(error @ RigError::Unavailable { .. }) => {
                eprintln!("{}", chain(&error));
                std::process::exit(UNAVAILABLE.into())
            }
        }
    }
}

/// Runs the rest of a test in namespaces of its own.
///
/// In the process that has them, the value is `Some`. In the first process, or
/// where the kernel allows none, it is `None`, and the test returns:
///
/// ```no_run
/// # fn a_test() {
/// let Some(space) = firesteel_rig::own_space!() else {
///     return;
/// };
/// let server = space.need(firesteel_rig::Place::new());
/// # }
/// ```
#[macro_export]
macro_rules! own_space {
    () => {{
        fn here() {}
        $crate::space_of(&$crate::test_name(std::any::type_name_of_val(&here)))
    }};
}

/// Runs the rest of a test in a process whose files may not grow beyond so many
/// bytes; whether this is that process.
#[macro_export]
macro_rules! small_files {
    ($bytes:expr) => {{
        fn here() {}
        let test = $crate::test_name(std::any::type_name_of_val(&here));
        $crate::again(&test, $crate::Again::SmallFiles($bytes)).is_none()
    }};
}

/// The name by which a test program knows a test, from the path of a function
/// inside it.
pub fn test_name(inside: &str) -> String {
    let segments: Vec<&str> = inside
        .split("::")
        .filter(|segment| *segment != "{{closure}}")
        .collect();
    match segments.as_slice() {
        [_program, path @ .., _here] => path.join("::"),
        _ => String::new(),
    }
}

/// What [`own_space!`] stands for.
pub fn space_of(test: &str) -> Option<Space> {
    match again(test, Again::OwnSpace) {
        None => Some(Space(())),
        Some(_) => None,
    }
}

/// Runs a test of this program again, and fails where it does; what it printed.
/// `None` in the process where it is run again.
///
/// A test that is run again in several ways tells them apart by what it finds.
pub fn again(test: &str, how: Again) -> Option<Output> {
    if std::env::var_os(AGAIN).is_some_and(|running| running.as_encoded_bytes() == test.as_bytes())
    {
        return None;
    }
    let program = std::env::current_exe().expect("a test knows its program");
    let mut command = Command::new(program);
    command
        .args([test, "--exact", "--nocapture"])
        .env(AGAIN, test)
        .stdin(Stdio::null());
    let before = match how {
        Again::OwnSpace => sys::Before {
            unshare: Some(sys::Spaces::network_and_mounts()),
            ..Default::default()
        },
        Again::SmallFiles(bytes) => sys::Before {
            file_limit: Some(bytes),
            ..Default::default()
        },
    };
    sys::prepare(&mut command, before);
    let output = match command.output() {
        Ok(output) => output,
        Err(source) => {
            let error = RigError::of("a process in namespaces of its own", source);
            match error {
                RigError::Unavailable { .. } => refuse_or_skip(&chain(&error)),
                RigError::Failed { .. } => panic!("{}", chain(&error)),
            }
            return Some(empty());
        }
    };
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if output.status.code() == Some(UNAVAILABLE.into()) {
        let why = err
            .trim_end()
            .lines()
            .last()
            .unwrap_or("it did not say why");
        refuse_or_skip(why);
        return Some(output);
    }
    assert!(
        output.status.success() && out.contains("1 passed"),
        "`{test}` failed in a process of its own ({}):\n{out}\n{err}",
        output.status
    );
    // What it measured is worth reading.
    eprint!("{err}");
    Some(output)
}

/// Says that a test was skipped and why; where `CI` is set, that is a failure: a
/// test that lacks its set-up there tests nothing, unnoticed.
pub fn refuse_or_skip(why: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "the CI lacks what this test needs: {why}"
    );
    eprintln!("skipped: {why}");
}

/// Moves a program that has one thread into namespaces of its own: what a bench
/// does first. Its children follow.
pub fn isolate_process() -> Result<Space, RigError> {
    sys::Spaces::network_and_mounts()
        .enter()
        .map_err(|source| RigError::of("a process in namespaces of its own", source))?;
    Ok(Space(()))
}

impl From<RigError> for ExitCode {
    /// A program that lacks its set-up ends with the same code as a test.
    fn from(error: RigError) -> Self {
        eprintln!("error: {}", chain(&error));
        match error {
            RigError::Unavailable { .. } => Self::from(UNAVAILABLE),
            RigError::Failed { .. } => Self::FAILURE,
        }
    }
}

fn chain(error: &RigError) -> String {
    let (RigError::Unavailable { source, .. } | RigError::Failed { source, .. }) = error;
    format!("{error}: {}", io_text(source))
}

fn io_text(error: &io::Error) -> String {
    error.to_string()
}

fn empty() -> Output {
    use std::os::unix::process::ExitStatusExt;
    Output {
        status: std::process::ExitStatus::from_raw(i32::from(UNAVAILABLE) << 8),
        stdout: Vec::new(),
        stderr: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(inside: &str, expect: &str) {
        assert_eq!(test_name(inside), expect);
    }

    #[test]
    fn a_test_finds_its_own_name() {
        check("wan::a_test::here", "a_test");
        check("firesteel_rig::again::tests::x::here", "again::tests::x");
        check("wan::asynchronous::{{closure}}::here", "asynchronous");
        fn here() {}
        assert_eq!(
            test_name(std::any::type_name_of_val(&here)),
            "again::tests::a_test_finds_its_own_name"
        );
    }
}
