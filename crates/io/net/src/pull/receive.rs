//! The end that wants the file.

mod disk;

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use firesteel_base::{Durations, FailureCode, Hint, Time};
use firesteel_transfer::frame::Head;
use firesteel_transfer::{
    Admit, Backoff, Budget, Counters, Digest, Event, Manifest, ObjectRef, Receiver, RefusalCode,
    Share, TransferError,
};
use futures_util::future::poll_fn;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Known;
use super::frames::{HeadReader, flush, write_all};
use super::serve::batch_size;
use super::transfer_number;
use crate::mux::MuxStream;
use crate::{BoxStream, Stream};
use disk::{Batch, Disk, Local, Report};

/// Where what is pulled goes. Called from blocking threads, one at a time.
pub trait Sink: Send + Sync {
    /// Writes bytes that came. They are not checked yet.
    ///
    /// # Errors
    /// When they cannot be kept: the transfer ends.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads back what was written.
    ///
    /// # Errors
    /// When it cannot be read: the transfer ends.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// What an earlier try or process left here: a claim, which is checked.
    fn received(&self) -> Vec<Range<u64>> {
        Vec::new()
    }

    /// What [`Sink::save`] was given last, also by an earlier process.
    fn note(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Makes what was written outlast this process, with a note of some bytes
    /// that says of which file it is.
    ///
    /// # Errors
    /// When that cannot be written down: the transfer ends.
    fn save(&self, _note: &[u8]) -> io::Result<()> {
        Ok(())
    }

    /// These bytes are wrong, or not there.
    fn forget(&self, _range: Range<u64>) {}

    /// These bytes are right, for good.
    fn verified(&self, _range: Range<u64>) {}
}

/// How far a pull has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes of the object that are there.
    pub done: u64,
    /// Bytes of the object, or of what is wanted of it.
    pub total: u64,
    /// Bytes that came over the network.
    pub pulled: u64,
}

/// What was pulled.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// Of the file.
    pub manifest: Arc<Manifest>,
    /// What it took.
    pub counters: Counters,
}

/// Why an object could not be pulled.
#[derive(Debug, thiserror::Error)]
#[error("{object} could not be pulled from {peer}")]
pub struct PullError {
    /// From whom.
    pub peer: String,
    /// What a person calls it.
    pub object: String,
    /// Why.
    #[source]
    pub reason: PullFailure,
}

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullFailure {
    /// The stream failed or ended.
    #[error("the connection was lost")]
    Stream(#[source] io::Error),
    /// No stream to the peer.
    #[error("no connection: {0}")]
    Connect(String),
    /// The peer refused, broke the protocol, or sent what is not the file.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// It cannot be kept here.
    #[error("it cannot be stored")]
    Sink(#[source] io::Error),
    /// The caller asked to stop.
    #[error("it was canceled")]
    Canceled,
    /// For so long nothing came, whatever was tried.
    #[error("nothing came within the lease of {} s", lease.as_secs())]
    LeaseEnded {
        /// How long.
        lease: Duration,
        /// Why the last try failed.
        #[source]
        last: Box<PullFailure>,
    },
}

impl PullFailure {
    /// Whether another try may end better.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Stream(_) | Self::Connect(_) => true,
            Self::Transfer(error) => error.is_passing(),
            Self::Sink(_) | Self::Canceled | Self::LeaseEnded { .. } => false,
        }
    }
}

impl PullError {
    /// Whether the disk here is full.
    pub fn is_disk_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(&self.reason, PullFailure::Sink(error) if full.contains(&error.kind()))
    }

    /// Whether the caller asked for it.
    pub fn is_canceled(&self) -> bool {
        matches!(self.reason, PullFailure::Canceled)
    }

    /// Whether the peer does not offer the object, or no longer.
    pub fn is_gone(&self) -> bool {
        let code = RefusalCode::Gone;
        matches!(&self.reason, PullFailure::Transfer(TransferError::Refused { code: c, .. }) if *c == code)
    }

    /// The code of the failure that it is of a site's work.
    pub fn failure_code(&self) -> FailureCode {
        match &self.reason {
            _ if self.is_disk_full() => FailureCode::DiskFull,
            PullFailure::Canceled => FailureCode::Aborted,
            PullFailure::Sink(_) => FailureCode::Internal,
            PullFailure::Transfer(error) if !error.is_passing() => FailureCode::Malformed,
            _ => FailureCode::Disconnected,
        }
    }
}

impl Hint for PullError {
    fn hint(&self) -> Option<String> {
        match &self.reason {
            PullFailure::Transfer(error) => error.hint(),
            _ if self.is_disk_full() => {
                Some("free some space: what was received so far is kept".into())
            }
            _ => None,
        }
    }
}

/// Pulls one object into a [`Sink`], over one stream or several that follow each
/// other.
pub struct Pull {
    peer: String,
    name: String,
    object: ObjectRef,
    sink: Arc<dyn Sink>,
    budget: Budget,
    durations: Durations,
    known: Option<Arc<Known>>,
    manifest: Option<Arc<Manifest>>,
    only: Option<Vec<Range<u64>>>,
    progress: Option<watch::Sender<Progress>>,
    cancel: CancellationToken,
    /// `None` before the first try, and after a failure that left it unclear what
    /// was written.
    receiver: Option<Receiver>,
    disk: Option<Disk>,
    job: Option<JoinHandle<Done>>,
    /// What came and is not with the disk yet.
    batch: Option<Batch>,
    spare: Option<Batch>,
    local: std::collections::VecDeque<Local>,
    started: Instant,
}

/// What the blocking thread gives back.
struct Done {
    disk: Disk,
    batch: Option<Batch>,
    report: io::Result<Report>,
}

impl fmt::Debug for Pull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pull")
            .field("peer", &self.peer)
            .field("name", &self.name)
            .field("object", &self.object)
            .finish_non_exhaustive()
    }
}

impl Pull {
    /// Pulls `object` from `peer`; `name` is what a person calls it.
    pub fn new(
        peer: &str,
        name: &str,
        object: ObjectRef,
        sink: Arc<dyn Sink>,
        budget: &Budget,
    ) -> Self {
        Self {
            peer: peer.to_owned(),
            name: name.to_owned(),
            object,
            sink,
            budget: budget.clone(),
            durations: Durations::default(),
            known: None,
            manifest: None,
            only: None,
            progress: None,
            cancel: CancellationToken::new(),
            receiver: None,
            disk: None,
            job: None,
            batch: None,
            spare: None,
            local: std::collections::VecDeque::new(),
            started: Instant::now(),
        }
    }

    /// Other durations; `idle` and `lease` count.
    #[must_use]
    pub fn durations(mut self, durations: Durations) -> Self {
        self.durations = durations;
        self
    }

    /// What is at hand of the same job is copied, not pulled.
    #[must_use]
    pub fn known(mut self, known: Arc<Known>) -> Self {
        self.known = Some(known);
        self
    }

    /// The manifest, where it is known from before.
    #[must_use]
    pub fn manifest(mut self, manifest: Arc<Manifest>) -> Self {
        self.manifest = Some(manifest);
        self
    }

    /// Pulls only these bytes, in this order.
    #[must_use]
    pub fn only(mut self, ranges: Vec<Range<u64>>) -> Self {
        self.only = Some(ranges);
        self
    }

    /// Tells how far it has come.
    #[must_use]
    pub fn progress(mut self, progress: watch::Sender<Progress>) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Ends, also between two tries, when this is canceled.
    #[must_use]
    pub fn cancel(mut self, cancel: CancellationToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        let receiver = self.receiver.as_ref();
        receiver.map(Receiver::counters).unwrap_or_default()
    }

    /// Pulls over streams that `connect` makes, until the object is there: after a
    /// cut it waits a little and goes on at the byte.
    ///
    /// # Errors
    /// [`PullError`] when it was canceled, when nothing came within the duration
    /// `lease`, or for what no other try would cure.
    pub async fn retrying<F, E>(
        &mut self,
        mut connect: impl FnMut() -> F,
    ) -> Result<Pulled, PullError>
    where
        F: Future<Output = Result<BoxStream, E>>,
        E: fmt::Display,
    {
        let mut backoff = Backoff::default();
        let mut had = self.counters();
        let mut last_progress = Instant::now();
        let lease = self.durations.lease;
        let cancel = self.cancel.clone();
        loop {
            let left = lease.saturating_sub(last_progress.elapsed());
            let connected = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(self.failed(PullFailure::Canceled)),
                connected = tokio::time::timeout(left, connect()) => connected,
            };
            let failure = match connected {
                Ok(Ok(stream)) => match self.over(stream).await {
                    Ok(pulled) => return Ok(pulled),
                    Err(error) => error.reason,
                },
                Ok(Err(error)) => PullFailure::Connect(error.to_string()),
                Err(_) => PullFailure::Connect("none came about".to_owned()),
            };
            if !failure.is_passing() {
                return Err(self.failed(failure));
            }
            let now = self.counters();
            if now.pulled > had.pulled || now.manifest > had.manifest || now.skipped > had.skipped {
                had = now;
                last_progress = Instant::now();
                backoff.progressed();
            }
            if last_progress.elapsed() >= lease {
                let last = Box::new(failure);
                return Err(self.failed(PullFailure::LeaseEnded { lease, last }));
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(self.failed(PullFailure::Canceled)),
                () = tokio::time::sleep(backoff.next(random())) => {}
            }
        }
    }

    /// Pulls over one stream. After a failure that passes, call it again with
    /// another one: it goes on at the byte.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn over(&mut self, mut stream: BoxStream) -> Result<Pulled, PullError> {
        let cancel = self.cancel.clone();
        let mut share = self.budget.join(&self.peer);
        let mut reading = Reading::default();
        // What a future that was dropped had read of a frame.
        if let Some(batch) = &mut self.batch {
            batch.break_off();
        }
        let ended = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(PullFailure::Canceled),
            ended = self.run(&mut stream, &mut share, &mut reading) => ended,
        };
        let settled = self.settle(&mut reading).await;
        let close = self.receiver.as_mut().and_then(|receiver| match ended {
            Ok(_) | Err(PullFailure::Canceled) => receiver.close(),
            Err(_) => None,
        });
        if let Some(head) = close {
            // A courtesy: the peer sees the end of the stream in any case.
            let goodbye = async {
                let idle = Duration::from_millis(200);
                write_all(&mut stream, &head.encode(), idle).await?;
                flush(&mut stream, idle).await
            };
            let _: io::Result<()> = goodbye.await;
        }
        let ended = match (ended, settled) {
            (Ok(pulled), Ok(())) => Ok(pulled),
            (Ok(_), Err(failure)) | (Err(failure), _) => Err(failure),
        };
        ended.map_err(|failure| {
            if matches!(failure, PullFailure::Sink(_)) {
                // What was written is for the sink to say.
                self.receiver = None;
                self.disk = None;
            }
            self.failed(failure)
        })
    }

    fn failed(&self, reason: PullFailure) -> PullError {
        PullError {
            peer: self.peer.clone(),
            object: self.name.clone(),
            reason,
        }
    }

    fn now(&self) -> Time {
        Time::ZERO + self.started.elapsed()
    }

    /// Whatever the stream's end left: what came goes to the disk, and what is
    /// there is written down.
    async fn settle(&mut self, reading: &mut Reading) -> Result<(), PullFailure> {
        let mut result = self.finish_job().await;
        if let Some((offset, came)) = reading.cut_short() {
            let now = self.now();
            if let (Some(batch), Some(receiver)) = (&mut self.batch, &mut self.receiver) {
                batch.commit(offset);
                receiver.came(offset, came as u64, now);
            }
        }
        if let Some(receiver) = &mut self.receiver {
            receiver.cut();
        }
        if result.is_ok() && self.batch.as_ref().is_some_and(|batch| !batch.is_empty()) {
            self.hand_over();
            result = self.finish_job().await;
        }
        self.spare = None;
        self.batch = None;
        let root = self.manifest_root();
        if let (Ok(()), Some(root)) = (&result, root) {
            let sink = self.sink.clone();
            let saved = super::offer::blocking(move || sink.save(&root.0)).await;
            result = saved.map_err(PullFailure::Sink);
        }
        result
    }

    fn manifest_root(&self) -> Option<Digest> {
        let manifest = self.receiver.as_ref()?.manifest()?;
        Some(manifest.root())
    }

    async fn run(
        &mut self,
        stream: &mut BoxStream,
        share: &mut Share,
        reading: &mut Reading,
    ) -> Result<Pulled, PullFailure> {
        // What a future that was dropped had begun: the disk comes back with it.
        self.finish_job().await?;
        let now = self.now();
        if self.receiver.is_none() {
            let mut receiver = Receiver::new(self.object, self.durations.idle)?;
            if let Some(only) = &self.only {
                receiver = receiver.only(only.clone());
            }
            if let Some(manifest) = &self.manifest {
                receiver = receiver.with_manifest(manifest.clone());
            }
            self.receiver = Some(receiver);
            self.disk = Some(Disk::new(self.sink.clone()));
            self.local.clear();
        }
        let head = self.receiver().open(transfer_number(), now);
        let idle = self.durations.idle;
        self.send(stream, &head.encode()).await?;
        let mut heads = HeadReader::default();
        let mut said = Instant::now();
        loop {
            // One size for the whole turn: it changes as other transfers come and go.
            let size = batch_size(share);
            self.next_job(size, reading.has_begun());
            if self.is_complete() {
                let receiver = self.receiver();
                let manifest = receiver.manifest().cloned();
                return Ok(Pulled {
                    manifest: manifest.expect("nothing is complete without its manifest"),
                    counters: receiver.counters(),
                });
            }
            if self.ask(stream, share).await? {
                said = Instant::now();
            }
            let wakeup = self.receiver().next_wakeup();
            let now = self.now();
            let wait = wakeup.map_or(idle, |at| at - now).min(idle / 3);
            let may_read = self.may_read(reading, size);
            if !may_read {
                // It is the disk that is waited for, not the peer.
                self.receiver().alive(now);
            }
            tokio::select! {
                done = finished(&mut self.job), if self.job.is_some() => {
                    self.job = None;
                    self.take_back(done, share)?;
                }
                read = read_some(stream, &mut heads, reading, &mut self.batch), if may_read => {
                    match read.map_err(PullFailure::Stream)? {
                        Some(step) => self.take_in(step, reading, share)?,
                        None => return Err(PullFailure::Stream(io::ErrorKind::UnexpectedEof.into())),
                    }
                }
                () = tokio::time::sleep(wait) => {
                    let now = self.now();
                    self.receiver().check_idle(now)?;
                }
            }
            if said.elapsed() >= idle / 3 {
                if let Some(head) = self.receiver().wait() {
                    self.send(stream, &head.encode()).await?;
                }
                said = Instant::now();
            }
        }
    }

    fn receiver(&mut self) -> &mut Receiver {
        let receiver = self.receiver.as_mut();
        receiver.expect("a pull has a receiver while it runs")
    }

    fn is_complete(&mut self) -> bool {
        self.job.is_none()
            && self.batch.as_ref().is_none_or(Batch::is_empty)
            && self.receiver().is_complete()
    }

    async fn send(&self, stream: &mut BoxStream, bytes: &[u8]) -> Result<(), PullFailure> {
        let idle = self.durations.idle;
        let sent = async {
            write_all(stream, bytes, idle).await?;
            flush(stream, idle).await
        };
        sent.await.map_err(PullFailure::Stream)
    }

    /// Asks for more when half of what may be asked for has come.
    async fn ask(
        &mut self,
        stream: &mut BoxStream,
        share: &mut Share,
    ) -> Result<bool, PullFailure> {
        let now = self.now();
        let receiver = self.receiver();
        let asked = receiver.asked();
        let window = share.window();
        if !receiver.has_wishes() || asked > window / 2 {
            return Ok(false);
        }
        let room = share.take(window - asked);
        let (heads, taken) = receiver.wants(room, now);
        share.give(room - taken);
        if heads.is_empty() {
            return Ok(false);
        }
        let bytes: Vec<u8> = heads.iter().flat_map(Head::encode).collect();
        self.send(stream, &bytes).await?;
        Ok(true)
    }

    /// Whether there is a place for what would be read next.
    fn may_read(&mut self, reading: &Reading, size: usize) -> bool {
        let Some(needed) = reading.needs_room() else {
            return true;
        };
        if self.batch.is_none() {
            let spare = self.spare.take();
            self.batch = Some(spare.unwrap_or_default());
        }
        let batch = self.batch.as_ref();
        batch.is_some_and(|batch| batch.has_room(needed, size))
    }

    /// What was read changes.
    fn take_in(
        &mut self,
        step: Step,
        reading: &mut Reading,
        share: &mut Share,
    ) -> Result<(), PullFailure> {
        let now = self.now();
        match step {
            Step::Head(bytes) => {
                let head = Head::decode(&bytes)?;
                let admit = self.receiver().admit(&head)?;
                *reading = Reading::of(head, admit);
                if head.payload == 0
                    && let Admit::Message = admit
                {
                    *reading = Reading::Head;
                    self.message(&head, &[], share)?;
                }
            }
            Step::Some => {
                if !matches!(reading, Reading::Drop { .. }) {
                    self.receiver().alive(now);
                }
            }
            Step::Payload => match std::mem::take(reading) {
                Reading::Message { head, bytes, .. } => self.message(&head, &bytes, share)?,
                Reading::Data { offset, length, .. } => {
                    if let Some(batch) = &mut self.batch {
                        batch.commit(offset);
                    }
                    self.receiver().came(offset, length as u64, now);
                }
                Reading::Drop { .. } | Reading::Head => {}
            },
        }
        Ok(())
    }

    fn message(
        &mut self,
        head: &Head,
        payload: &[u8],
        share: &mut Share,
    ) -> Result<(), PullFailure> {
        let now = self.now();
        let before = self.receiver().counters().manifest;
        let mut event = self.receiver().message(head, payload, now)?;
        // One that is equal to what is at hand needs no bytes at all.
        let known = self.known.clone();
        if let Some(root) = self.receiver().missing_manifest()
            && let Some(manifest) = known.and_then(|known| known.whole(&root))
        {
            event = self.receiver().found(manifest)?;
        }
        share.give(self.receiver().counters().manifest - before);
        match event {
            Event::Nothing => Ok(()),
            Event::Planning => {
                self.plan();
                Ok(())
            }
        }
    }

    /// The manifest is there: what of the file is at hand?
    fn plan(&mut self) {
        let Some(manifest) = self.receiver().manifest().cloned() else {
            return;
        };
        let claims = disk::claims(&*self.sink, &manifest);
        if let Some(disk) = &mut self.disk {
            disk.begin(manifest.clone());
        }
        let known = self.known.clone();
        let mut local = std::collections::VecDeque::new();
        self.receiver().plan(|index, block| {
            if claims.covers(&block.range()) {
                local.push_back(Local::Claim(index));
                return true;
            }
            let found = known.as_ref().and_then(|known| known.find(block));
            let is_known = found.is_some();
            if let Some((source, offset)) = found {
                local.push_back(Local::Known {
                    index,
                    source,
                    offset,
                });
            }
            is_known
        });
        // Blocks that were cut in the middle: their starts are hashed, so that the
        // rest can follow.
        for range in claims.iter() {
            let Some(index) = manifest.block_at(range.end) else {
                continue;
            };
            let Some(block) = manifest.block(index) else {
                continue;
            };
            let taken = local.iter().any(|l| l.index() == index);
            if range.start <= block.offset && block.offset < range.end && !taken {
                let bytes = range.end - block.offset;
                self.receiver().has_start(index, bytes);
                local.push_front(Local::Start { index, bytes });
            }
        }
        self.local = local;
    }

    /// Gives the disk something to do, if it is free and there is something. A
    /// batch into which a frame is being read stays until that is whole.
    fn next_job(&mut self, size: usize, reading: bool) {
        if self.job.is_some() {
            return;
        }
        while let Some(copy) = self.receiver().next_copy() {
            self.local.push_back(Local::Twin(copy));
        }
        let starts = matches!(self.local.front(), Some(Local::Start { .. }));
        let asked = self.receiver().asked();
        let full = self
            .batch
            .as_ref()
            .is_some_and(|batch| !batch.is_empty() && (batch.is_full(size) || asked == 0));
        if full && !starts && !reading {
            self.hand_over();
        } else if !self.local.is_empty() {
            let work = disk::some_local(&mut self.local);
            let Some(mut disk) = self.disk.take() else {
                return;
            };
            self.job = Some(tokio::task::spawn_blocking(move || {
                let report = disk.local(work);
                Done {
                    disk,
                    batch: None,
                    report,
                }
            }));
        }
    }

    /// Hands the batch to the disk, which must be free.
    fn hand_over(&mut self) {
        let (Some(batch), Some(mut disk)) = (self.batch.take(), self.disk.take()) else {
            return;
        };
        self.job = Some(tokio::task::spawn_blocking(move || {
            let report = disk.write(&batch);
            Done {
                disk,
                batch: Some(batch),
                report,
            }
        }));
    }

    /// Waits for the disk, and takes its report.
    async fn finish_job(&mut self) -> Result<(), PullFailure> {
        while self.job.is_some() {
            let done = finished(&mut self.job).await;
            self.job = None;
            let mut share = self.budget.join(&self.peer);
            self.take_back(done, &mut share)?;
        }
        Ok(())
    }

    fn take_back(&mut self, done: Done, share: &mut Share) -> Result<(), PullFailure> {
        self.disk = Some(done.disk);
        if let Some(mut batch) = done.batch {
            share.give(batch.bytes());
            batch.clear();
            self.spare = Some(batch);
        }
        let report = done.report.map_err(PullFailure::Sink)?;
        for found in report.checked {
            self.receiver().checked(found)?;
        }
        for index in report.had {
            self.receiver().had(index);
        }
        for index in report.missing {
            self.receiver().missing(index);
        }
        self.tell();
        Ok(())
    }

    fn tell(&mut self) {
        let total = match &self.only {
            Some(only) => only.iter().map(|range| range.end - range.start).sum(),
            None => self.object.length,
        };
        let counters = self.counters();
        if let Some(progress) = &self.progress {
            progress.send_replace(Progress {
                done: (counters.pulled + counters.skipped).min(total),
                total,
                pulled: counters.pulled,
            });
        }
    }
}

/// Waits for the blocking thread.
async fn finished(job: &mut Option<JoinHandle<Done>>) -> Done {
    let Some(job) = job else {
        return std::future::pending().await;
    };
    match job.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// What is being read of the stream; it outlasts the future that reads.
#[derive(Default)]
enum Reading {
    /// The head of the next frame.
    #[default]
    Head,
    Message {
        head: Head,
        bytes: Vec<u8>,
        filled: usize,
    },
    Data {
        offset: u64,
        length: usize,
        filled: usize,
    },
    Drop {
        left: usize,
    },
}

/// What one read brought.
enum Step {
    Head([u8; firesteel_transfer::frame::HEAD]),
    /// Part of a payload.
    Some,
    /// The end of one.
    Payload,
}

impl Reading {
    fn of(head: Head, admit: Admit) -> Self {
        let length = head.payload as usize;
        match admit {
            Admit::Message => Self::Message {
                head,
                bytes: vec![0; length],
                filled: 0,
            },
            Admit::Data { offset } => Self::Data {
                offset,
                length,
                filled: 0,
            },
            Admit::Drop if length == 0 => Self::Head,
            Admit::Drop => Self::Drop { left: length },
        }
    }

    /// Room in the batch that the frame needs, before its first byte is read.
    fn needs_room(&self) -> Option<usize> {
        match self {
            Self::Data {
                length, filled: 0, ..
            } => Some(*length),
            _ => None,
        }
    }

    /// Whether the batch holds some of a frame's bytes, but not all.
    fn has_begun(&self) -> bool {
        matches!(self, Self::Data { filled: 1.., .. })
    }

    /// What came of a frame that will not end.
    fn cut_short(&mut self) -> Option<(u64, usize)> {
        match std::mem::take(self) {
            Self::Data { offset, filled, .. } if filled > 0 => Some((offset, filled)),
            _ => None,
        }
    }
}

/// Reads what there is of the next head or payload; `None` at the stream's end.
/// Nothing is lost when the future is dropped.
async fn read_some(
    stream: &mut BoxStream,
    heads: &mut HeadReader,
    reading: &mut Reading,
    batch: &mut Option<Batch>,
) -> io::Result<Option<Step>> {
    let (read, whole) = match reading {
        Reading::Head => return Ok(heads.next(stream).await?.map(Step::Head)),
        Reading::Message { bytes, filled, .. } => {
            let into = bytes.get_mut(*filled..).unwrap_or_default();
            let read = stream.read(into).await?;
            *filled += read;
            (read, *filled == bytes.len())
        }
        Reading::Data { length, filled, .. } => {
            let bytes = some_bytes(stream, *length - *filled).await?;
            let read = bytes.len();
            if let Some(batch) = batch.as_mut().filter(|_| read > 0) {
                batch.push(bytes);
            }
            *filled += read;
            (read, *filled == *length)
        }
        Reading::Drop { left } => {
            let mut nowhere = [0; 4096];
            let here = (*left).min(nowhere.len());
            let into = nowhere.get_mut(..here).unwrap_or_default();
            let read = stream.read(into).await?;
            *left -= read;
            (read, *left == 0)
        }
    };
    Ok(match (read, whole) {
        (0, _) => None,
        (_, true) => Some(Step::Payload),
        (_, false) => Some(Step::Some),
    })
}

/// Some of what the stream has next, without a copy where it can give it so; none
/// at its end. Nothing is lost when the future is dropped.
async fn some_bytes(stream: &mut BoxStream, most: usize) -> io::Result<Bytes> {
    let stream: &mut dyn Stream = &mut **stream;
    if stream.as_any().is::<MuxStream>() {
        return poll_fn(|cx| match stream.as_any().downcast_mut::<MuxStream>() {
            Some(stream) => stream.poll_bytes(cx, most),
            None => Poll::Ready(Ok(Bytes::new())),
        })
        .await;
    }
    let mut bytes = BytesMut::with_capacity(most);
    stream.read_buf(&mut bytes).await?;
    Ok(bytes.freeze())
}

/// Any number: the standard library's hash keys are drawn from the system.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}
