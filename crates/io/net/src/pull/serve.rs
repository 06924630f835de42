//! The end that has the file.

use std::fmt::Write as _;
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use firesteel_base::{Durations, limits};
use firesteel_transfer::frame::Head;
use firesteel_transfer::{
    Budget, Manifest, ObjectRef, RefusalCode, Sender, SenderEvent, Share, TransferError, Work,
    WorkKind,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::buffers::Buffers;
use super::frames::{HeadReader, flush};
use super::halves::Halves;
use super::offer::{OfferError, Offered, Offers, blocking};
use crate::BoxStream;

/// Whom to serve, and with what.
#[derive(Debug, Clone)]
pub struct Serving {
    /// Who is at the other end of the stream, by its certificate.
    pub peer: String,
    /// What all that is sent by this role shares.
    pub budget: Budget,
    /// `idle` counts, and `lease` for a peer that says that it waits itself.
    pub durations: Durations,
}

/// What was served until the peer closed the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Served {
    /// Bytes of files sent.
    pub bytes: u64,
    /// Objects that the peer has whole now.
    pub complete: u64,
    /// Objects that it gave up.
    pub given_up: u64,
    /// Frames that came for a transfer that was over.
    pub late_frames: u64,
}

/// Why serving a stream ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The stream failed.
    #[error("the connection to {peer} was lost while it pulled {object}")]
    Stream {
        /// Who pulled.
        peer: String,
        /// What.
        object: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The peer takes nothing of what it asked for.
    #[error("{peer} has read nothing of {object} for {} s", idle.as_secs())]
    Stalled {
        /// Who pulled.
        peer: String,
        /// What.
        object: String,
        /// For how long.
        idle: Duration,
    },
    /// The peer asked for nothing.
    #[error("{peer} has asked for nothing more of {object} for {} s", idle.as_secs())]
    Idle {
        /// Who pulled.
        peer: String,
        /// What.
        object: String,
        /// For how long.
        idle: Duration,
    },
    /// The peer broke the protocol.
    #[error("{peer} cannot pull {object}")]
    Transfer {
        /// Who pulled.
        peer: String,
        /// What.
        object: String,
        /// What it did.
        #[source]
        source: TransferError,
    },
}

/// Serves one stream until the peer closes it: several pulls may follow each
/// other. Drop the future to stop.
///
/// # Errors
/// [`ServeError`]; a file that cannot be read is the peer's error, not one here.
pub async fn serve(
    stream: BoxStream,
    offers: &dyn Offers,
    serving: &Serving,
) -> Result<Served, ServeError> {
    let stream = Halves::new(stream);
    let desk = Desk {
        state: Mutex::default(),
        changed: Notify::new(),
        serving,
    };
    let ended = tokio::select! {
        ended = desk.listen(&stream) => ended,
        ended = desk.send(&stream, offers) => ended,
    };
    let mut state = desk.state();
    state.served.late_frames = state.sender.late();
    ended.map(|()| state.served)
}

/// What the two directions of a stream share.
struct Desk<'a> {
    state: Mutex<State>,
    changed: Notify,
    serving: &'a Serving,
}

#[derive(Default)]
struct State {
    sender: Sender,
    /// Asked for, and not looked up yet.
    opened: Option<ObjectRef>,
    /// What the peer pulls, or last pulled.
    object: Option<ObjectRef>,
    offered: Option<Arc<Offered>>,
    busy: Busy,
    /// When the peer said something last.
    heard_at: Option<Instant>,
    served: Served,
}

impl State {
    fn is_heard(&self, idle: Duration) -> bool {
        self.heard_at.is_some_and(|at| at.elapsed() < idle)
    }
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Busy {
    #[default]
    No,
    Yes,
}

/// A batch of frames, ready to be written.
struct Batch {
    bytes: Bytes,
    /// Bytes of files in it.
    data: u64,
}

impl Desk<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the receiver says.
    async fn listen(&self, mut stream: &Halves) -> Result<(), ServeError> {
        let mut heads = HeadReader::default();
        let idle = self.serving.durations.idle;
        loop {
            let read = tokio::time::timeout(idle, heads.next(&mut stream)).await;
            let bytes = match read {
                Ok(Ok(Some(bytes))) => bytes,
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(source)) => return Err(self.lost(source)),
                // While there is something to write, the writer's limit counts.
                Err(_) if self.state().busy == Busy::Yes => continue,
                Err(_) => {
                    let (peer, object) = self.names();
                    return Err(ServeError::Idle { peer, object, idle });
                }
            };
            let mut state = self.state();
            state.heard_at = Some(Instant::now());
            let event = Head::decode(&bytes).and_then(|head| state.sender.handle(&head));
            match event {
                Ok(SenderEvent::Open(object)) => {
                    state.opened = Some(object);
                    state.object = Some(object);
                    state.offered = None;
                    state.busy = Busy::Yes;
                }
                Ok(SenderEvent::Want) => state.busy = Busy::Yes,
                Ok(SenderEvent::Close { complete }) => {
                    state.offered = None;
                    match complete {
                        true => state.served.complete += 1,
                        false => state.served.given_up += 1,
                    }
                }
                Ok(SenderEvent::Nothing) => {}
                Err(source) => {
                    drop(state);
                    let (peer, object) = self.names();
                    return Err(ServeError::Transfer {
                        peer,
                        object,
                        source,
                    });
                }
            }
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Answers, and sends what is wanted: one batch is read while another is
    /// written.
    async fn send(&self, stream: &Halves, offers: &dyn Offers) -> Result<(), ServeError> {
        let share = self.serving.budget.join(&self.serving.peer);
        let buffers = Buffers::default();
        let mut ready: Option<Batch> = None;
        loop {
            let opened = self.state().opened.take();
            if let Some(object) = opened {
                self.answer(stream, offers, object).await?;
                continue;
            }
            let next = self.next_batch(&share, &buffers);
            let (written, read) = tokio::join!(self.write(stream, ready.take()), next);
            written?;
            match read {
                Ok(Some(batch)) => ready = Some(batch),
                Ok(None) => {
                    self.flush(stream).await?;
                    if self.rests() {
                        // A stream that is asked nothing holds no buffers.
                        buffers.shrink();
                        // What came since leaves its notice.
                        self.changed.notified().await;
                    }
                }
                Err(refusal) => self.write_raw(stream, refusal.into()).await?,
            }
        }
    }

    /// Whether there is nothing to do.
    fn rests(&self) -> bool {
        let mut state = self.state();
        let rests = state.opened.is_none() && state.sender.is_idle();
        if rests {
            state.busy = Busy::No;
        }
        rests
    }

    /// The answer to an `Open`.
    async fn answer(
        &self,
        stream: &Halves,
        offers: &dyn Offers,
        object: ObjectRef,
    ) -> Result<(), ServeError> {
        let Some(offered) = offers.find(&self.serving.peer, object.id) else {
            let sentence = format!("object {} is not offered here", object.id);
            let frame = refusal(&mut self.state().sender, RefusalCode::Gone, &sentence);
            return self.write_raw(stream, frame.into()).await;
        };
        let manifest = {
            let every = (self.serving.durations.idle / 8).min(Duration::from_secs(1));
            let mut making = std::pin::pin!(offered.manifest());
            loop {
                match tokio::time::timeout(every, &mut making).await {
                    Ok(made) => break made,
                    Err(_) => {
                        let head = self.state().sender.wait(offered.read());
                        let frame = Bytes::copy_from_slice(&head.encode());
                        self.write_raw(stream, frame).await?;
                        self.flush(stream).await?;
                    }
                }
            }
        };
        let frame = {
            let mut state = self.state();
            if state.opened.is_some() || state.sender.object() != Some(object) {
                // The peer has changed its mind meanwhile.
                return Ok(());
            }
            match manifest {
                Ok(manifest) => {
                    let (head, root) = state.sender.offer(manifest);
                    state.offered = Some(offered.clone());
                    let mut frame = head.encode().to_vec();
                    frame.extend_from_slice(&root.0);
                    frame
                }
                Err(error) => refuse_for(&mut state.sender, &error),
            }
        };
        self.write_raw(stream, frame.into()).await
    }

    /// Reads the next batch; the frame to send instead when that fails.
    async fn next_batch(&self, share: &Share, buffers: &Buffers) -> Result<Option<Batch>, Vec<u8>> {
        {
            let state = self.state();
            if state.offered.is_none() || state.sender.is_idle() {
                return Ok(None);
            }
        }
        let mut buffer = buffers.take().await;
        let (works, offered, manifest) = {
            let mut state = self.state();
            let Some(offered) = state.offered.clone() else {
                return Ok(None);
            };
            let works = next_works(&mut state.sender, batch_size(share));
            if works.is_empty() {
                return Ok(None);
            }
            let manifest = offered.known_manifest().cloned();
            (works, offered, manifest)
        };
        let source = offered.source().clone();
        // What lies in memory is read at once: another thread would have to be
        // woken, and would find its bytes in no cache of its own.
        let manifest = manifest.as_deref();
        let cached = fill(&mut buffer.bytes, &works, manifest, |offset, into| {
            Ok(source.read_cached_at(offset, into)? == into.len())
        });
        let read = match cached {
            Ok(None) => {
                let manifest = offered.known_manifest().cloned();
                let read = move || {
                    let manifest = manifest.as_deref();
                    let data = fill(&mut buffer.bytes, &works, manifest, |offset, into| {
                        source.read_at(offset, into).map(|()| true)
                    })?;
                    Ok((buffer, data.unwrap_or(0)))
                };
                blocking(read).await
            }
            Ok(Some(data)) => Ok((buffer, data)),
            Err(error) => Err(error),
        };
        match read {
            Ok((buffer, data)) => Ok(Some(Batch {
                bytes: buffer.freeze(),
                data,
            })),
            Err(error) => {
                let mut state = self.state();
                state.offered = None;
                Err(refuse_for(&mut state.sender, &offered.unreadable(error)))
            }
        }
    }

    async fn write(&self, stream: &Halves, batch: Option<Batch>) -> Result<(), ServeError> {
        let Some(batch) = batch else {
            return Ok(());
        };
        self.write_raw(stream, batch.bytes).await?;
        self.state().served.bytes += batch.data;
        Ok(())
    }

    async fn write_raw(&self, stream: &Halves, mut rest: Bytes) -> Result<(), ServeError> {
        let Durations { idle, lease, .. } = self.serving.durations;
        let mut taken_at = Instant::now();
        while !rest.is_empty() {
            let write = poll_fn(|cx| stream.poll_give(cx, &mut rest));
            let written = match tokio::time::timeout(idle, write).await {
                Ok(written) => written.and_then(|written| match written {
                    0 => Err(io::ErrorKind::WriteZero.into()),
                    written => Ok(written),
                }),
                // A peer that waits for its own disk, or for another site, says so.
                Err(_) if self.state().is_heard(idle) && taken_at.elapsed() < lease => continue,
                Err(elapsed) => Err(elapsed.into()),
            };
            written.map_err(|source| self.lost(source))?;
            taken_at = Instant::now();
        }
        Ok(())
    }

    async fn flush(&self, mut stream: &Halves) -> Result<(), ServeError> {
        let flushed = flush(&mut stream, self.serving.durations.idle).await;
        flushed.map_err(|source| self.lost(source))
    }

    fn lost(&self, source: io::Error) -> ServeError {
        let (peer, object) = self.names();
        if source.kind() == io::ErrorKind::TimedOut {
            let idle = self.serving.durations.idle;
            return ServeError::Stalled { peer, object, idle };
        }
        ServeError::Stream {
            peer,
            object,
            source,
        }
    }

    fn names(&self) -> (String, String) {
        let object = match self.state().object {
            Some(object) => format!("object {}", object.id),
            None => "nothing".into(),
        };
        (self.serving.peer.clone(), object)
    }
}

/// Frames for one batch.
fn next_works(sender: &mut Sender, size: usize) -> Vec<Work> {
    let mut works = Vec::new();
    let mut bytes = 0;
    while bytes < size && works.len() < limits::TRANSFER_RANGES {
        let Some(work) = sender.next((size - bytes).min(limits::TRANSFER_PAYLOAD)) else {
            break;
        };
        bytes += work.head.payload as usize;
        works.push(work);
    }
    works
}

/// Bytes of a batch: a quarter of what the transfer may have, since it has two.
pub(super) fn batch_size(share: &Share) -> usize {
    let quarter = usize::try_from(share.window() / 4).unwrap_or(usize::MAX);
    let frames = quarter / limits::TRANSFER_PAYLOAD * limits::TRANSFER_PAYLOAD;
    frames.clamp(limits::TRANSFER_PAYLOAD, limits::TRANSFER_BATCH)
}

/// Fills `bytes` with these frames, reading straight to where each payload goes;
/// how many bytes of the file they are, or `None` when `read` could not have some.
fn fill(
    bytes: &mut Vec<u8>,
    works: &[Work],
    manifest: Option<&Manifest>,
    read: impl Fn(u64, &mut [u8]) -> io::Result<bool>,
) -> io::Result<Option<u64>> {
    let needed: usize = works
        .iter()
        .map(|work| firesteel_transfer::frame::HEAD + work.head.payload as usize)
        .sum();
    bytes.resize(needed, 0);
    let mut rest = bytes.as_mut_slice();
    let mut data = 0;
    for work in works {
        let head = work.head.encode();
        let (at_head, after) = rest.split_at_mut(head.len());
        let (payload, after) = after.split_at_mut(work.head.payload as usize);
        rest = after;
        at_head.copy_from_slice(&head);
        match work.kind {
            WorkKind::Data => {
                if !read(work.head.offset, payload)? {
                    return Ok(None);
                }
                data += payload.len() as u64;
            }
            WorkKind::Manifest => {
                let start = usize::try_from(work.head.offset).unwrap_or(usize::MAX);
                let from = manifest
                    .and_then(|m| m.encoded().get(start..))
                    .and_then(|from| from.get(..payload.len()));
                // The sender has checked the range against this manifest.
                payload.copy_from_slice(from.ok_or(io::ErrorKind::InvalidInput)?);
            }
        }
    }
    Ok(Some(data))
}

fn refusal(sender: &mut Sender, code: RefusalCode, sentence: &str) -> Vec<u8> {
    let (head, sentence) = sender.refuse(code, sentence);
    let mut frame = head.encode().to_vec();
    frame.extend_from_slice(&sentence);
    frame
}

fn refuse_for(sender: &mut Sender, error: &OfferError) -> Vec<u8> {
    let code = match error {
        OfferError::Read { changed: false, .. } => RefusalCode::Unreadable,
        OfferError::Read { .. } | OfferError::Manifest { .. } => RefusalCode::Changed,
    };
    // The receiver sees no chain of errors, so the sentence holds it.
    let mut sentence = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let _ = write!(sentence, ": {error}");
        source = error.source();
    }
    refusal(sender, code, &sentence)
}
