//! The agent's end of one trainer's connection.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use firesteel_base::{Attempt, Failure, Round, limits};
use firesteel_wire::bridge::{
    self as say, Chunk, FromAgent, FromTrainer, Hello, from_agent, from_trainer,
};
use firesteel_wire::frame::{self, FrameError};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::pass;

/// Bytes of a model per frame where it has to be copied through the socket.
const CHUNK_BYTES: usize = 256 * 1024;
/// Bytes read at once from a trainer.
const READ_BYTES: usize = 4096;

/// Why a connection to a trainer cannot be used further.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The socket failed; most often the trainer is gone.
    #[error("the connection to the trainer was lost")]
    Lost(#[source] io::Error),
    /// The trainer sent bytes that are no message.
    #[error("the trainer sent {0}")]
    Frame(#[source] FrameError),
    /// The trainer left in the middle of a message.
    #[error("the trainer's connection ended within a message")]
    Cut,
    /// The trainer said something that has no place here.
    #[error("the trainer sent a message that has no place on this connection")]
    Unexpected,
    /// A message is too large to be sent.
    #[error("the message to the trainer is too large")]
    TooLarge(#[source] FrameError),
    /// The model could not be read while it was copied to the trainer.
    #[error("the model could not be read while it was copied to the trainer")]
    Model(#[source] io::Error),
    /// An earlier message was cut off when its sender was cancelled.
    #[error("an earlier message to the trainer was interrupted")]
    Interrupted,
}

/// What a trainer says after its hello.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TrainerMessage {
    /// It wants a task.
    Next,
    /// It has finished one. Answer with [`BridgeSender::accept`] or
    /// [`BridgeSender::refuse`].
    Result(say::TaskResult),
    /// A line of log.
    Log(say::Log),
    /// A value to track.
    Metric(say::Metric),
    /// The script failed.
    Failed(say::Failed),
    /// It leaves in peace.
    Bye,
}

/// Where the bytes of a task's model are.
#[derive(Debug)]
pub enum ModelSource {
    /// The task has no model.
    None,
    /// In memory: at most `limits::INLINE_OBJECT` bytes.
    Inline(Bytes),
    /// In a file that does not change. The trainer gets a duplicate of this very
    /// description, and so of a lock it holds.
    File {
        /// The file.
        file: File,
        /// Its length in bytes.
        length: u64,
    },
}

/// A task for a trainer.
#[derive(Debug)]
pub struct Work {
    /// `train`, `validate` or `submit_model`.
    pub name: String,
    /// The round it belongs to.
    pub round: Round,
    /// Which try it is.
    pub attempt: Attempt,
    /// The job's first round.
    pub start_round: Round,
    /// How many rounds the job has.
    pub total_rounds: u32,
    /// The model's meta dictionary, as JSON.
    pub meta: String,
    /// The model.
    pub model: ModelSource,
}

/// A trainer that showed a valid token and now waits to be welcomed.
#[derive(Debug)]
pub struct Connection {
    hello: Hello,
    peer: u32,
    protocol: u32,
    receiver: BridgeReceiver,
    sender: BridgeSender,
}

impl Connection {
    pub(crate) fn new(receiver: BridgeReceiver, hello: Hello, peer: u32, protocol: u32) -> Self {
        let sender = BridgeSender {
            stream: receiver.stream.clone(),
            copies: hello.copies,
            cut: false,
        };
        Self {
            hello,
            peer,
            protocol,
            receiver,
            sender,
        }
    }

    /// The trainer's rank; rank 0 is the one that trains with the agent.
    pub fn rank(&self) -> u32 {
        self.hello.rank
    }

    /// The process id behind the socket, as the kernel knows it.
    pub fn pid(&self) -> u32 {
        self.peer
    }

    /// The product's version in the trainer's environment.
    pub fn version(&self) -> &str {
        &self.hello.version
    }

    /// True when models are copied through the socket for want of descriptors:
    /// worth one line of log.
    pub fn copies(&self) -> bool {
        self.hello.copies
    }

    /// Lets the trainer in, with what it should know as JSON.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub async fn welcome(&mut self, json: &str) -> Result<(), ConnectionError> {
        let welcome = say::Welcome {
            protocol: self.protocol,
            json: json.to_owned(),
        };
        self.sender.say(from_agent::Body::Welcome(welcome)).await
    }

    /// [`BridgeReceiver::recv`].
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub async fn recv(&mut self) -> Result<Option<TrainerMessage>, ConnectionError> {
        self.receiver.recv().await
    }

    /// The half that speaks, for use before [`Connection::split`].
    pub fn sender(&mut self) -> &mut BridgeSender {
        &mut self.sender
    }

    /// Both halves, to be used by different tasks or branches of a `select!`.
    pub fn split(self) -> (BridgeReceiver, BridgeSender) {
        (self.receiver, self.sender)
    }
}

/// The half of a connection that listens.
#[derive(Debug)]
pub struct BridgeReceiver {
    stream: Arc<UnixStream>,
    buffer: BytesMut,
    descriptors: VecDeque<OwnedFd>,
}

impl BridgeReceiver {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream: Arc::new(stream),
            buffer: BytesMut::new(),
            descriptors: VecDeque::new(),
        }
    }

    /// The descriptor that came with the last frame.
    pub(crate) fn descriptor(&mut self) -> Option<OwnedFd> {
        let descriptor = self.descriptors.pop_front();
        // One per frame: others are nobody's.
        self.descriptors.clear();
        descriptor
    }

    /// What the trainer says next; `None` when it has closed the connection.
    /// May be cancelled: nothing is lost.
    ///
    /// # Errors
    /// [`ConnectionError`]; the connection cannot be read further after one.
    pub async fn recv(&mut self) -> Result<Option<TrainerMessage>, ConnectionError> {
        let Some(body) = self.frame().await? else {
            return Ok(None);
        };
        Ok(Some(match body {
            from_trainer::Body::Hello(_)
            | from_trainer::Body::Offer(_)
            | from_trainer::Body::Fetch(_)
            | from_trainer::Body::Withdraw(_) => return Err(ConnectionError::Unexpected),
            from_trainer::Body::Next(say::Next {}) => TrainerMessage::Next,
            from_trainer::Body::Result(result) => TrainerMessage::Result(result),
            from_trainer::Body::Log(log) => TrainerMessage::Log(log),
            from_trainer::Body::Metric(metric) => TrainerMessage::Metric(metric),
            from_trainer::Body::Failed(failed) => TrainerMessage::Failed(failed),
            from_trainer::Body::Bye(say::Bye {}) => TrainerMessage::Bye,
        }))
    }

    /// The next frame of a kind that is known; `None` at the end of the stream.
    pub(crate) async fn frame(&mut self) -> Result<Option<from_trainer::Body>, ConnectionError> {
        loop {
            let decoded = frame::decode::<FromTrainer>(&mut self.buffer, "FromTrainer")
                .map_err(ConnectionError::Frame)?;
            match decoded {
                Some(FromTrainer { body: Some(body) }) => return Ok(Some(body)),
                // A kind that only a newer trainer knows.
                Some(FromTrainer { body: None }) => continue,
                None => {}
            }
            self.stream
                .readable()
                .await
                .map_err(ConnectionError::Lost)?;
            match self.read() {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(ConnectionError::Cut),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ConnectionError::Lost(error)),
            }
        }
    }

    /// Reads once, with the descriptors that come along.
    fn read(&mut self) -> io::Result<usize> {
        let Self {
            stream,
            buffer,
            descriptors,
        } = self;
        let filled = buffer.len();
        buffer.resize(filled + READ_BYTES, 0);
        let space = buffer.get_mut(filled..).unwrap_or_default();
        let read = stream.try_io(Interest::READABLE, || {
            pass::receive(stream.as_fd(), space, descriptors)
        });
        buffer.truncate(filled + *read.as_ref().unwrap_or(&0));
        read
    }

    pub(crate) fn stream(&self) -> Arc<UnixStream> {
        self.stream.clone()
    }
}

/// The half of a connection that speaks.
///
/// A cancelled call may leave half a message behind; every later call then
/// fails with [`ConnectionError::Interrupted`].
#[derive(Debug)]
pub struct BridgeSender {
    stream: Arc<UnixStream>,
    copies: bool,
    cut: bool,
}

impl BridgeSender {
    pub(crate) fn new(stream: Arc<UnixStream>) -> Self {
        Self {
            stream,
            copies: false,
            cut: false,
        }
    }

    /// Gives the trainer a task.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub async fn send_task(&mut self, work: Work) -> Result<(), ConnectionError> {
        let copies = self.copies;
        let model = match &work.model {
            ModelSource::None => None,
            ModelSource::Inline(bytes) => Some(say::task::Model::Inline(bytes.clone())),
            ModelSource::File { length, .. } if copies => Some(say::task::Model::Copied(*length)),
            ModelSource::File { length, .. } => Some(say::task::Model::File(*length)),
        };
        let task = from_agent::Body::Task(say::Task {
            key: say::TaskKey {
                name: work.name,
                round: work.round.0,
                attempt: work.attempt.0,
            },
            start_round: work.start_round.0,
            total_rounds: work.total_rounds,
            meta: work.meta,
            model,
        });
        match work.model {
            ModelSource::File { file, length } if copies => {
                self.say(task).await?;
                self.copy(&file, length).await
            }
            ModelSource::File { file, .. } => self.say_with(task, Some(file.as_fd())).await,
            ModelSource::None | ModelSource::Inline(_) => self.say(task).await,
        }
    }

    /// The last result has been taken.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub async fn accept(&mut self) -> Result<(), ConnectionError> {
        self.say(from_agent::Body::Accepted(say::Accepted {})).await
    }

    /// The last hello or result has been refused.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub async fn refuse(&mut self, failure: &Failure) -> Result<(), ConnectionError> {
        self.say(from_agent::Body::Refused(say::Refused {
            code: failure.code.as_str().to_owned(),
            message: failure.message.clone(),
            hint: failure.hint.clone(),
        }))
        .await
    }

    /// There will be no more tasks.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub async fn end(&mut self, reason: &str) -> Result<(), ConnectionError> {
        self.say(from_agent::Body::End(say::End {
            reason: reason.to_owned(),
        }))
        .await
    }

    /// Sends a model piece by piece.
    async fn copy(&mut self, file: &File, length: u64) -> Result<(), ConnectionError> {
        let mut at = 0;
        while at < length {
            let size =
                usize::try_from(length - at).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
            let mut data = vec![0; size];
            file.read_exact_at(&mut data, at).map_err(|error| {
                // The trainer still waits for the rest, which will not come.
                self.cut = true;
                ConnectionError::Model(error)
            })?;
            at += size as u64;
            self.say(from_agent::Body::Chunk(Chunk { data: data.into() }))
                .await?;
        }
        Ok(())
    }

    pub(crate) async fn say(&mut self, body: from_agent::Body) -> Result<(), ConnectionError> {
        self.say_with(body, None).await
    }

    pub(crate) async fn say_with(
        &mut self,
        body: from_agent::Body,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), ConnectionError> {
        if self.cut {
            return Err(ConnectionError::Interrupted);
        }
        let message = FromAgent { body: Some(body) };
        let bytes = frame::encode(&message).map_err(ConnectionError::TooLarge)?;
        self.cut = true;
        let mut rest: &[u8] = &bytes;
        let mut descriptor = descriptor;
        while !rest.is_empty() {
            self.stream
                .writable()
                .await
                .map_err(ConnectionError::Lost)?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                pass::send(self.stream.as_fd(), rest, descriptor)
            });
            match sent {
                Ok(sent) => {
                    descriptor = None;
                    rest = rest.get(sent..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ConnectionError::Lost(error)),
            }
        }
        self.cut = false;
        Ok(())
    }
}

// A chunk and its envelope always fit a frame.
const _: () = assert!(CHUNK_BYTES + 64 < limits::FRAME);
