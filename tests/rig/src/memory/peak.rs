//! The most that a tree of processes held.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Held, pss, tree};

/// The largest samples of a tree, in bytes. Each figure has its own moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peaks {
    /// Anonymous and shared pages of all processes together.
    pub owned: u64,
    /// Their proportional set size.
    pub pss: u64,
    /// Pages of mapped files, counted once per process that has them.
    pub files: u64,
    /// Processes.
    pub processes: usize,
    /// How often it was looked.
    pub samples: u64,
}

/// Looks at a tree of processes again and again until it is told to stop.
///
/// What comes and goes between two looks is not seen. For a peak without gaps
/// there is the kernel's own of a control group, which counts the page cache, too.
#[derive(Debug)]
pub struct Peak {
    stop: SyncSender<()>,
    thread: JoinHandle<Peaks>,
}

impl Peak {
    /// Watches a process and everything below it, every so often.
    pub fn watch(root: u32, every: Duration) -> Self {
        let (stop, told) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            let mut peaks = Peaks::default();
            while told.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                peaks.look(root);
            }
            peaks.look(root);
            peaks
        });
        Self { stop, thread }
    }

    /// Ends it, after a last look.
    pub fn stop(self) -> Peaks {
        drop(self.stop);
        self.thread.join().expect("the sampler does not panic")
    }
}

impl Peaks {
    fn look(&mut self, root: u32) {
        let pids = tree(root);
        let mut sum = Held::default();
        let mut proportional = 0;
        for &pid in &pids {
            let held = Held::of(pid).unwrap_or_default();
            sum.anonymous += held.anonymous;
            sum.shared += held.shared;
            sum.files += held.files;
            proportional += pss(pid).unwrap_or_default();
        }
        self.owned = self.owned.max(sum.owned());
        self.pss = self.pss.max(proportional);
        self.files = self.files.max(sum.files);
        self.processes = self.processes.max(pids.len());
        self.samples += 1;
    }
}
