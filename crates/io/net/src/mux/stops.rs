//! Ending many streams at once, from outside of whoever holds them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::Context;

use futures_util::task::AtomicWaker;

use crate::session::lock;

/// Streams that end together.
#[derive(Default)]
pub(crate) struct Stops(Mutex<Members>);

#[derive(Default)]
struct Members {
    stopped: bool,
    streams: Vec<Weak<Stop>>,
    /// So many there may be before those that have gone are looked for.
    tidy_at: usize,
}

/// One stream's part in it.
#[derive(Default)]
pub(crate) struct Stop {
    stopped: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Stops {
    /// Another stream; it is stopped at once where all were stopped before.
    pub fn add(&self) -> Arc<Stop> {
        let stop = Arc::new(Stop::default());
        let mut members = lock(&self.0);
        if members.stopped {
            stop.stop();
            return stop;
        }
        if members.streams.len() >= members.tidy_at {
            members.streams.retain(|stream| stream.strong_count() > 0);
            members.tidy_at = (members.streams.len() * 2).max(16);
        }
        members.streams.push(Arc::downgrade(&stop));
        stop
    }

    /// Ends them all.
    pub fn stop(&self) {
        let streams = {
            let mut members = lock(&self.0);
            members.stopped = true;
            std::mem::take(&mut members.streams)
        };
        for stop in streams.iter().filter_map(Weak::upgrade) {
            stop.stop();
        }
    }
}

impl Stop {
    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.reader.wake();
        self.writer.wake();
    }

    /// Whether the stream was stopped; if not yet, the reader is woken then.
    pub fn poll_read(&self, cx: &mut Context<'_>) -> bool {
        self.poll(&self.reader, cx)
    }

    /// The same for the writer.
    pub fn poll_write(&self, cx: &mut Context<'_>) -> bool {
        self.poll(&self.writer, cx)
    }

    fn poll(&self, waker: &AtomicWaker, cx: &mut Context<'_>) -> bool {
        if self.stopped.load(Ordering::Acquire) {
            return true;
        }
        waker.register(cx.waker());
        self.stopped.load(Ordering::Acquire)
    }
}
