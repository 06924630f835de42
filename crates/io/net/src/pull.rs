//! Large objects over streams: what drives `firesteel_transfer`.
//!
//! One end serves what it offers ([`serve`]), the other pulls it ([`Pull`]). Disks
//! and digests are worked on by blocking threads, a batch at a time, while the
//! next batch is on the connection. What a sender's kernel has in memory is read
//! at once, and handed to the connection without a copy.
//!
//! Memory: either end holds two batches per transfer (`limits::TRANSFER_BATCH`,
//! less when many transfers share a budget), the puller a manifest, an offer
//! another one for all its pullers.

mod buffers;
mod frames;
mod halves;
mod known;
mod offer;
mod receive;
mod serve;

pub use known::Known;
pub use offer::{FileSource, OfferError, Offered, Offers, Source};
pub use receive::{Progress, Pull, PullError, PullFailure, Pulled, Sink};
pub use serve::{ServeError, Served, Serving, serve};

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that no other transfer of this process has.
fn transfer_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
