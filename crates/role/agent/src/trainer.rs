//! One trainer: its process, its connection, and what is known of both.

use std::time::{Duration, Instant};

use firesteel_bridge::{
    BridgeReceiver, BridgeSender, Connection, ConnectionError, Expected, TrainerMessage,
};
use firesteel_launch::{ExitReport, TrainerEvent, TrainerHandle};
use firesteel_wire::bridge::Failed;

use crate::slots::Slot;
use crate::verdict::Stage;

/// Something that a trainer did.
pub(crate) enum Happened {
    /// It connected.
    Connected(Box<Connection>),
    /// It said something.
    Said(TrainerMessage),
    /// Its connection is over.
    Hung(Option<ConnectionError>),
    /// Its process did something.
    Process(TrainerEvent),
}

/// A trainer that was started, or is waited for.
pub(crate) struct Trainer {
    /// None when a person started it.
    pub(crate) process: Option<TrainerHandle>,
    expected: Expected,
    receiver: Option<BridgeReceiver>,
    pub(crate) sender: Option<BridgeSender>,
    /// It was connected at some time.
    pub(crate) met: bool,
    /// It waits for a task.
    pub(crate) asks: bool,
    /// The task in hand was given to its present connection.
    pub(crate) holds: bool,
    /// Tasks it has answered.
    pub(crate) served: u32,
    /// It was told that no further task comes.
    pub(crate) dismissed: bool,
    /// It is being ended: what becomes of it is no failure.
    pub(crate) stopping: bool,
    /// What it said of its own failure.
    pub(crate) crash: Option<Failed>,
    /// How its process ended.
    pub(crate) exit: Option<ExitReport>,
    /// Until when something has to happen, and what else will be done.
    pub(crate) limit: Option<Instant>,
    /// The worker it occupies.
    pub(crate) slot: Option<Slot>,
}

impl Trainer {
    pub(crate) fn new(
        process: Option<TrainerHandle>,
        expected: Expected,
        slot: Option<Slot>,
        start: Option<Duration>,
    ) -> Self {
        Self {
            process,
            expected,
            receiver: None,
            sender: None,
            met: false,
            asks: false,
            holds: false,
            served: 0,
            dismissed: false,
            stopping: false,
            crash: None,
            exit: None,
            limit: start.map(|start| Instant::now() + start),
            slot,
        }
    }

    /// What happens next. May be cancelled: nothing is lost.
    pub(crate) async fn next(&mut self) -> Happened {
        let Self {
            process,
            expected,
            receiver,
            exit,
            ..
        } = self;
        let hearing = async {
            match receiver {
                Some(receiver) => match receiver.recv().await {
                    Ok(Some(said)) => Happened::Said(said),
                    Ok(None) => Happened::Hung(None),
                    Err(error) => Happened::Hung(Some(error)),
                },
                // An exit is the last thing: nobody will connect any more.
                None if exit.is_some() => std::future::pending().await,
                None => Happened::Connected(Box::new(expected.accept().await)),
            }
        };
        let watching = async {
            match process {
                Some(process) if exit.is_none() => match process.event().await {
                    Some(event) => Happened::Process(event),
                    None => std::future::pending().await,
                },
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            // What was said before an exit is heard before it.
            biased;
            happened = hearing => happened,
            happened = watching => happened,
        }
    }

    /// Takes its connection into use.
    pub(crate) fn connect(&mut self, connection: Connection) {
        let (receiver, sender) = connection.split();
        self.receiver = Some(receiver);
        self.sender = Some(sender);
        self.holds = false;
        self.met = true;
    }

    /// Lets go of its connection.
    pub(crate) fn hang_up(&mut self) {
        self.receiver = None;
        self.sender = None;
        self.asks = false;
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.receiver.is_some()
    }

    /// Whether nothing more will come from it.
    pub(crate) fn is_gone(&self) -> bool {
        !self.is_connected() && (self.exit.is_some() || (self.process.is_none() && self.met))
    }

    /// Whether its process goes on without a connection, and nobody has seen to it.
    pub(crate) fn has_left(&self) -> bool {
        let lives = self.process.is_some() && self.exit.is_none();
        lives && self.met && !self.is_connected() && !self.stopping && self.limit.is_none()
    }

    /// How far it was, with a task in hand or without.
    pub(crate) fn stage(&self, working: bool) -> Stage {
        match (self.met, working) {
            (false, _) => Stage::Unconnected,
            (true, false) => Stage::Connected,
            (true, true) => Stage::Working,
        }
    }

    /// Ends its process: asks, waits for `grace`, then forces.
    pub(crate) async fn stop(&mut self, grace: Duration) {
        self.stopping = true;
        self.limit = None;
        if let Some(process) = &self.process {
            process.stop(grace).await;
        }
    }
}
