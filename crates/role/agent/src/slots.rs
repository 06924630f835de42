//! Workers: how many trainers may work at once on this machine, and with which
//! GPUs.
//!
//! A trainer whose task is done still has its process's end before it, some
//! milliseconds in which the next one can be started. So there may be twice as
//! many processes as workers, half of them on their way out.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The workers of one machine. A clone is another handle to the same.
#[derive(Clone)]
pub struct Slots(Arc<Pool>);

struct Pool {
    workers: Arc<Semaphore>,
    processes: Arc<Semaphore>,
    /// The GPUs of free workers, as in `CUDA_VISIBLE_DEVICES`; the lowest is
    /// taken first, so that a run uses the same ones each time.
    free: Mutex<Vec<(usize, Option<String>)>>,
    count: usize,
}

/// One worker, given back when dropped.
pub struct Slot {
    pool: Arc<Pool>,
    number: usize,
    gpus: Option<String>,
    /// None once it has left.
    worker: Option<OwnedSemaphorePermit>,
    _process: OwnedSemaphorePermit,
}

impl Slots {
    /// `count` workers; worker `n` sees the GPUs `gpus[n % gpus.len()]`, or all
    /// there are when `gpus` is empty.
    pub fn new(count: usize, gpus: &[String]) -> Self {
        let free = (0..count)
            .rev()
            .map(|number| {
                (
                    number,
                    number
                        .checked_rem(gpus.len())
                        .and_then(|at| gpus.get(at))
                        .cloned(),
                )
            })
            .collect();
        Self(Arc::new(Pool {
            workers: Arc::new(Semaphore::new(count)),
            processes: Arc::new(Semaphore::new(
                count.saturating_mul(2).min(Semaphore::MAX_PERMITS),
            )),
            free: Mutex::new(free),
            count,
        }))
    }

    /// How many workers there are.
    pub fn count(&self) -> usize {
        self.0.count
    }

    /// Waits for a free worker; those who waited longest come first.
    pub async fn acquire(&self) -> Slot {
        let worker = acquire(&self.0.workers).await;
        let process = acquire(&self.0.processes).await;
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, gpus) = free.pop().expect("there are as many entries as permits");
        Slot {
            pool: Arc::clone(&self.0),
            number,
            gpus,
            worker: Some(worker),
            _process: process,
        }
    }
}

async fn acquire(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(semaphore)
        .acquire_owned()
        .await
        .expect("the semaphore is never closed")
}

impl Slot {
    /// What `CUDA_VISIBLE_DEVICES` should be for the trainer; none: as it is.
    pub fn gpus(&self) -> Option<&str> {
        self.gpus.as_deref()
    }
}

impl Slot {
    /// Lets the next trainer start while the process of this one comes to its end.
    /// Not where it has a GPU: what it holds of that one's memory is free only after.
    pub(crate) fn leave(&mut self) {
        if self.gpus.is_none() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        let Some(worker) = self.worker.take() else {
            return;
        };
        let mut free = self
            .pool
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        free.push((self.number, self.gpus.take()));
        free.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.0));
        // Whoever gets it finds the entry.
        drop(worker);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_free(slots: &Slots) -> bool {
        tokio::select! {
            biased;
            _ = slots.acquire() => true,
            () = tokio::task::yield_now() => false,
        }
    }

    #[tokio::test]
    async fn a_worker_that_leaves_makes_room_for_one_process_more() {
        let slots = Slots::new(1, &[]);
        let mut first = slots.acquire().await;
        assert!(!is_free(&slots).await);
        first.leave();
        let mut second = slots.acquire().await;
        second.leave();
        // Two processes on their way out are as many as there may be.
        assert!(!is_free(&slots).await);
        drop(first);
        let third = slots.acquire().await;
        drop(second);
        assert!(!is_free(&slots).await);
        drop(third);
        assert!(is_free(&slots).await);
    }

    #[tokio::test]
    async fn a_worker_with_a_gpu_stays_to_the_end() {
        let slots = Slots::new(1, &["0".to_owned()]);
        let mut first = slots.acquire().await;
        first.leave();
        assert!(!is_free(&slots).await);
        drop(first);
        assert_eq!(slots.acquire().await.gpus(), Some("0"));
    }

    #[tokio::test]
    async fn workers_share_gpus_in_turn_and_come_back() {
        let gpus = ["0".to_owned(), "1,2".to_owned()];
        let slots = Slots::new(3, &gpus);
        let first = slots.acquire().await;
        let second = slots.acquire().await;
        let third = slots.acquire().await;
        assert_eq!(
            [first.gpus(), second.gpus(), third.gpus()],
            [Some("0"), Some("1,2"), Some("0")]
        );
        let waiting = tokio::spawn({
            let slots = slots.clone();
            async move { slots.acquire().await.gpus().map(str::to_owned) }
        });
        drop(second);
        assert_eq!(waiting.await.unwrap().as_deref(), Some("1,2"));
        assert!(Slots::new(1, &[]).acquire().await.gpus().is_none());
    }
}
