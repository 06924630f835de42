//! Bytes in flight of a whole role, shared among its transfers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use firesteel_base::limits;

/// What all transfers of a role share. A clone is another handle to the same.
///
/// Each peer gets an equal share of the bytes, and each of its transfers an equal
/// share of that; none ever gets less than one frame, so that no number of slow
/// transfers stops another. What is held together is at most the budget, or one
/// frame per transfer where that is more.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Mutex<Books>>);

#[derive(Debug)]
struct Books {
    capacity: u64,
    held: u64,
    /// Transfers per peer.
    peers: BTreeMap<String, u64>,
}

/// The share of one transfer; dropped when the transfer ends, it gives back what
/// it holds.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    peer: String,
    held: u64,
}

/// What every transfer may have, whatever the others do.
const LEAST: u64 = limits::TRANSFER_PAYLOAD as u64;

impl Budget {
    /// A budget of so many bytes.
    pub fn new(capacity: u64) -> Self {
        Self(Arc::new(Mutex::new(Books {
            capacity,
            held: 0,
            peers: BTreeMap::new(),
        })))
    }

    /// A transfer with `peer` begins.
    pub fn join(&self, peer: &str) -> Share {
        *self.books().peers.entry(peer.to_owned()).or_default() += 1;
        Share {
            budget: self.clone(),
            peer: peer.to_owned(),
            held: 0,
        }
    }

    /// Bytes held by all transfers together.
    pub fn held(&self) -> u64 {
        self.books().held
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Numbers only: nobody can leave them half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(limits::TRANSFER_BUDGET)
    }
}

impl Books {
    fn share(&self, peer: &str) -> u64 {
        let peers = self.peers.len().max(1) as u64;
        let transfers = self.peers.get(peer).copied().unwrap_or(1).max(1);
        (self.capacity / peers / transfers).clamp(LEAST, limits::TRANSFER_WINDOW)
    }
}

impl Share {
    /// How many bytes it may hold now; it changes as transfers come and go.
    pub fn window(&self) -> u64 {
        self.budget.books().share(&self.peer)
    }

    /// Takes up to `most` bytes: less, or none, when its share or the whole
    /// budget has no more. A transfer that holds nothing always gets something.
    pub fn take(&mut self, most: u64) -> u64 {
        let mut books = self.budget.books();
        let own = books.share(&self.peer).saturating_sub(self.held);
        let all = books.capacity.saturating_sub(books.held);
        let least = LEAST.saturating_sub(self.held);
        let taken = most.min(own).min(all.max(least));
        books.held += taken;
        self.held += taken;
        taken
    }

    /// Gives `bytes` back.
    pub fn give(&mut self, bytes: u64) {
        let bytes = bytes.min(self.held);
        self.budget.books().held -= bytes;
        self.held -= bytes;
    }

    /// Bytes that it holds.
    pub fn held(&self) -> u64 {
        self.held
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut books = self.budget.books();
        books.held -= self.held;
        if let Some(transfers) = books.peers.get_mut(&self.peer) {
            *transfers -= 1;
            if *transfers == 0 {
                books.peers.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn peers_share_equally_whatever_the_number_of_their_transfers() {
        let budget = Budget::new(16 * MIB);
        let greedy: Vec<_> = (0..4).map(|_| budget.join("greedy")).collect();
        let modest = budget.join("modest");
        assert_eq!(modest.window(), 8 * MIB);
        assert!(greedy.iter().all(|share| share.window() == 2 * MIB));
        drop(greedy);
        assert_eq!(modest.window(), 16 * MIB);
    }

    #[test]
    fn a_transfer_that_holds_nothing_always_gets_something() {
        let budget = Budget::new(MIB);
        let mut stuck = budget.join("slow");
        assert_eq!(stuck.take(u64::MAX), MIB);
        let mut others: Vec<_> = (0..50).map(|n| budget.join(&format!("site-{n}"))).collect();
        for share in &mut others {
            assert_eq!(share.take(u64::MAX), LEAST);
            assert_eq!(share.take(u64::MAX), 0);
        }
        drop(others);
        drop(stuck);
        assert_eq!(budget.held(), 0);
    }

    proptest! {
        #[test]
        fn never_more_is_held_than_the_budget_or_a_frame_each(
            steps in proptest::collection::vec((0usize..12, 0u64..4 * MIB, any::<bool>()), 1..200),
        ) {
            let budget = Budget::new(3 * MIB);
            let mut shares: Vec<_> = (0..12).map(|n| budget.join(&format!("site-{}", n % 5))).collect();
            for (at, bytes, take) in steps {
                let share = &mut shares[at];
                if take { share.take(bytes); } else { share.give(bytes); }
                let sum: u64 = shares.iter().map(Share::held).sum();
                prop_assert_eq!(budget.held(), sum);
                prop_assert!(sum <= 3 * MIB + 12 * LEAST);
            }
        }
    }
}
