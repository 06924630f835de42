//! Waiting for what happens, with a deadline: never for a time.

use std::time::{Duration, Instant};

/// After this long, what a test waits for is not going to happen. A busy machine
/// takes seconds for what takes milliseconds on an idle one.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// Waits for a future; panics where it takes longer than [`PATIENCE`].
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it did not happen in time")
}

/// Asks again and again until there is an answer.
pub async fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "it did not happen in time");
        tokio::time::sleep(LOOK).await;
    }
}

/// The same in a thread.
pub fn block_until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "it did not happen in time");
        std::thread::sleep(LOOK);
    }
}

/// Whether a process runs: a zombie does not.
pub fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        !matches!(state, Some('Z' | 'X') | None)
    })
}

/// Waits until a process is gone or a zombie.
pub async fn gone(pid: u32) {
    until(|| (!alive(pid)).then_some(())).await;
}

/// Ends a process by a signal that it cannot refuse.
pub fn kill(pid: u32) {
    let id = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .expect("the id of a process");
    rustix::process::kill_process(id, rustix::process::Signal::KILL)
        .expect("the process is there and ours");
}
