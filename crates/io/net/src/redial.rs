//! Connecting again.

use std::time::Duration;

use firesteel_transfer::Backoff;

use crate::tls;

/// Tries until it succeeds, with growing pauses that are drawn at random, so that
/// those who lost the same server do not come back at the same moment. `failed`
/// hears of each failure and of the pause after it; it may give up by `false`.
///
/// The caller keeps the back-off from one session to the next, and says
/// [`Backoff::progressed`] once a session did something: a server that takes
/// sessions and drops them at once is a failure, too.
///
/// # Errors
/// The last failure, when `failed` gave up.
pub async fn redial<T, E>(
    backoff: &mut Backoff,
    mut dial: impl AsyncFnMut() -> Result<T, E>,
    mut failed: impl FnMut(&E, Duration) -> bool,
) -> Result<T, E> {
    loop {
        let error = match dial().await {
            Ok(made) => return Ok(made),
            Err(error) => error,
        };
        let pause = backoff.next(random());
        if !failed(&error, pause) {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    tls::provider()
        .secure_random
        .fill(&mut bytes)
        .expect("the random generator of the system works");
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_tries_with_growing_pauses_until_it_succeeds() {
        let mut backoff = Backoff::default();
        let mut tries = 0;
        let mut pauses = Vec::new();
        let start = tokio::time::Instant::now();
        let made = redial(
            &mut backoff,
            async || {
                tries += 1;
                if tries < 40 { Err("no") } else { Ok(tries) }
            },
            |_, pause| {
                pauses.push(pause);
                true
            },
        )
        .await;
        assert_eq!(made, Ok(40));
        assert_eq!(pauses.len(), 39);
        assert!(start.elapsed() >= pauses.iter().sum::<Duration>());
        assert!(pauses[0] <= Backoff::FIRST);
        assert!(pauses.iter().all(|pause| *pause <= Backoff::LONGEST));
        // Full jitter: of 30 draws from 0 to 5 s some are short and some long.
        assert!(pauses.iter().any(|pause| *pause > Backoff::LONGEST / 2));
        assert!(
            pauses[8..]
                .iter()
                .any(|pause| *pause < Backoff::LONGEST / 2)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn it_gives_up_when_told() {
        let mut backoff = Backoff::default();
        let mut left = 3;
        let made: Result<(), _> = redial(
            &mut backoff,
            async || Err("no"),
            |_, _| {
                left -= 1;
                left > 0
            },
        )
        .await;
        assert_eq!((made, left), (Err("no"), 0));
    }
}
