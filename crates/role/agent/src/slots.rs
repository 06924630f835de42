//! Workers: how many trainers may live at once on this machine, and with which
//! GPUs.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The workers of one machine. A clone is another handle to the same.
#[derive(Clone)]
pub struct Slots(Arc<Pool>);

struct Pool {
    permits: Arc<Semaphore>,
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
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    /// `count` workers; worker `n` sees the GPUs `gpus[n % gpus.len()]`, or all
    /// there are when `gpus` is empty.
    pub fn new(count: usize, gpus: &[String]) -> Self {
        let free = (0..count)
            .rev()
            .map(|number| (number, number.checked_rem(gpus.len()).and_then(|at| gpus.get(at)).cloned()))
            .collect();
        Self(Arc::new(Pool { permits: Arc::new(Semaphore::new(count)), free: Mutex::new(free), count }))
    }

    /// How many workers there are.
    pub fn count(&self) -> usize {
        self.0.count
    }

    /// Waits for a free worker; those who waited longest come first.
    pub async fn acquire(&self) -> Slot {
        let permit = Arc::clone(&self.0.permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, gpus) = free.pop().expect("there are as many entries as permits");
        Slot { pool: Arc::clone(&self.0), number, gpus, _permit: permit }
    }
}

impl Slot {
    /// What `CUDA_VISIBLE_DEVICES` should be for the trainer; none: as it is.
    pub fn gpus(&self) -> Option<&str> {
        self.gpus.as_deref()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Before the permit, which is a field and is dropped after this.
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push((self.number, self.gpus.take()));
        free.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn workers_share_gpus_in_turn_and_come_back() {
        let gpus = ["0".to_owned(), "1,2".to_owned()];
        let slots = Slots::new(3, &gpus);
        let first = slots.acquire().await;
        let second = slots.acquire().await;
        let third = slots.acquire().await;
        assert_eq!([first.gpus(), second.gpus(), third.gpus()], [Some("0"), Some("1,2"), Some("0")]);
        let waiting = tokio::spawn({
            let slots = slots.clone();
            async move { slots.acquire().await.gpus().map(str::to_owned) }
        });
        drop(second);
        assert_eq!(waiting.await.unwrap().as_deref(), Some("1,2"));
        assert!(Slots::new(1, &[]).acquire().await.gpus().is_none());
    }
}
