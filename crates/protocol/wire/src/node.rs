//! What a server and a node below it (a site, or a relay) say to each other about
//! jobs as a whole, on the control stream of their session.
//!
//! What is said within a job is in [`crate::control`], on a stream of the job's
//! own scope. The life of a job at a site is: [`Deploy`], [`Ready`] or
//! [`Declined`], [`Start`], [`Ended`]; [`Stop`] is valid at any time, also for a
//! job that the site does not know, and is always answered by [`Ended`].

/// From a site or a relay to the server.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ToServer {
    /// One of the messages; none when it is of a later version.
    #[prost(oneof = "to_server::Body", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub body: Option<to_server::Body>,
}

/// The bodies of [`ToServer`].
pub mod to_server {
    /// One of them.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// The first message of a session.
        #[prost(message, tag = "1")]
        Hello(super::Hello),
        /// A job is unpacked, its needs are there, and it can start.
        #[prost(message, tag = "2")]
        Ready(super::Ready),
        /// The site takes no part in a job.
        #[prost(message, tag = "3")]
        Declined(super::Declined),
        /// Nothing of a job runs at the site any more, and all that it had is free.
        #[prost(message, tag = "4")]
        Ended(super::Ended),
        /// The answer to an ask.
        #[prost(message, tag = "5")]
        Answer(super::Answer),
        /// The node's facts have changed.
        #[prost(message, tag = "6")]
        Facts(super::Facts),
        /// A job's agent is up at the site.
        #[prost(message, tag = "7")]
        Started(super::Started),
    }
}

/// From the server to a site or a relay.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ToNode {
    /// One of the messages; none when it is of a later version.
    #[prost(oneof = "to_node::Body", tags = "1, 2, 3, 4, 5, 6")]
    pub body: Option<to_node::Body>,
}

/// The bodies of [`ToNode`].
pub mod to_node {
    /// One of them.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// The answer to a hello that is taken.
        #[prost(message, tag = "1")]
        Welcome(super::Welcome),
        /// The answer to a hello that is not.
        #[prost(message, tag = "2")]
        Refused(super::Refused),
        /// A job to make ready for.
        #[prost(message, tag = "3")]
        Deploy(super::Deploy),
        /// A job that is ready begins.
        #[prost(message, tag = "4")]
        Start(super::Start),
        /// A job is to end at the site.
        #[prost(message, tag = "5")]
        Stop(super::Stop),
        /// Something an administrator wants of the node.
        #[prost(message, tag = "6")]
        Ask(super::Ask),
    }
}

/// Who connects.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// The oldest protocol that the node speaks.
    #[prost(uint32, tag = "1")]
    pub protocol_min: u32,
    /// The newest.
    #[prost(uint32, tag = "2")]
    pub protocol_max: u32,
    /// Names of optional abilities.
    #[prost(string, repeated, tag = "3")]
    pub features: Vec<String>,
    /// Its build, for logs and lists.
    #[prost(string, tag = "4")]
    pub build: String,
    /// Its name, which must be that of its certificate.
    #[prost(string, tag = "5")]
    pub name: String,
    /// A number that the process drew when it was started, never zero.
    #[prost(uint64, tag = "6")]
    pub instance: u64,
    /// What it has to offer, as JSON: environments, names of data, resources.
    #[prost(bytes = "bytes", tag = "7")]
    pub facts: bytes::Bytes,
    /// The jobs that it has in hand.
    #[prost(message, repeated, tag = "8")]
    pub jobs: Vec<InHand>,
}

/// A job that a site has in hand.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InHand {
    /// Its id.
    #[prost(string, tag = "1")]
    pub job: String,
    /// Where it is.
    #[prost(enumeration = "Stage", tag = "2")]
    pub stage: i32,
}

/// Where a job is at a site. Zero is none of those that this build knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Stage {
    /// Something that a newer build says.
    Unknown = 0,
    /// Being fetched, unpacked and checked.
    Deploying = 1,
    /// Ready to start.
    Ready = 2,
    /// Its agent is up.
    Running = 3,
    /// On its way out.
    Stopping = 4,
}

/// The server's answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    /// The protocol both will speak.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// The server's build, for logs.
    #[prost(string, tag = "2")]
    pub build: String,
    /// A number that the server's process drew when it was started, never zero.
    #[prost(uint64, tag = "3")]
    pub instance: u64,
    /// The time at the server, in microseconds since 1970 UTC, for judging how far
    /// the clocks are apart; nothing is decided by it.
    #[prost(uint64, tag = "4")]
    pub clock: u64,
}

/// Why a session is not taken. The server closes it then.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Refused {
    /// A sentence for the node's operator.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// Whether another try may end otherwise.
    #[prost(bool, tag = "2")]
    pub retry: bool,
}

/// A job to make ready for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Deploy {
    /// The job's id, made by the server.
    #[prost(string, tag = "1")]
    pub job: String,
    /// Which try of the server's to deploy it; what answers another one does not
    /// count.
    #[prost(uint32, tag = "2")]
    pub attempt: u32,
    /// The job's name, for people.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Bytes of its bundle.
    #[prost(uint64, tag = "4")]
    pub bundle_length: u64,
    /// Their SHA-256.
    #[prost(bytes = "bytes", tag = "5")]
    pub bundle_sha256: bytes::Bytes,
    /// What of its resources the site is to set aside, as JSON.
    #[prost(bytes = "bytes", tag = "6")]
    pub resources: bytes::Bytes,
    /// The sites of the job, as known so far.
    #[prost(string, repeated, tag = "7")]
    pub sites: Vec<String>,
}

/// The bundle is unpacked, the needs are there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ready {
    /// The job.
    #[prost(string, tag = "1")]
    pub job: String,
    /// The attempt of the deploy.
    #[prost(uint32, tag = "2")]
    pub attempt: u32,
}

/// The site takes no part.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Declined {
    /// The job.
    #[prost(string, tag = "1")]
    pub job: String,
    /// The attempt of the deploy.
    #[prost(uint32, tag = "2")]
    pub attempt: u32,
    /// A word for programs: `data_missing`, `environment_missing`, `not_allowed`,
    /// `signature`, `no_room`, `resources`, `script_missing`, `bundle`.
    #[prost(string, tag = "3")]
    pub code: String,
    /// A sentence for whoever submitted the job.
    #[prost(string, tag = "4")]
    pub reason: String,
    /// What to do about it; may be empty.
    #[prost(string, tag = "5")]
    pub hint: String,
}

/// A job that is ready begins: the site makes the job's scope and dials in it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Start {
    /// The job.
    #[prost(string, tag = "1")]
    pub job: String,
}

/// A job's agent is up at the site. From here on the site is missed when it is gone.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Started {
    /// The job.
    #[prost(string, tag = "1")]
    pub job: String,
}

/// A job is to end at the site, wherever it is there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stop {
    /// The job.
    #[prost(string, tag = "1")]
    pub job: String,
    /// Why, for the site's log.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// Whether the site may remove what it keeps of the job.
    #[prost(bool, tag = "3")]
    pub forget: bool,
}

/// Nothing of the job runs at the site any more: no process, no slot, no port.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ended {
    /// The job.
    #[prost(string, tag = "1")]
    pub job: String,
    /// What went wrong at the site, in a sentence; empty when nothing did.
    #[prost(string, tag = "2")]
    pub error: String,
}

/// What an administrator wants of the node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ask {
    /// The server's number of it.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What, as JSON.
    #[prost(bytes = "bytes", tag = "2")]
    pub request: bytes::Bytes,
    /// Who asks: name, organization and role, as the server has verified them.
    #[prost(string, tag = "3")]
    pub name: String,
    /// The organization.
    #[prost(string, tag = "4")]
    pub organization: String,
    /// The role.
    #[prost(string, tag = "5")]
    pub role: String,
}

/// The answer to an [`Ask`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Answer {
    /// The ask's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What was asked for, or the error (`code`, `message`, `hint`), as JSON.
    #[prost(bytes = "bytes", tag = "2")]
    pub body: bytes::Bytes,
    /// Whether it is an error.
    #[prost(bool, tag = "3")]
    pub error: bool,
}

/// The node's facts have changed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Facts {
    /// All of them, as JSON.
    #[prost(bytes = "bytes", tag = "1")]
    pub facts: bytes::Bytes,
}

/// The first message on a stream for a bundle: which one, and from where on.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BundleWanted {
    /// The job.
    #[prost(string, tag = "1")]
    pub job: String,
    /// The first byte that is wanted.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
}

/// The answer, which the bytes follow as they are.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BundleIs {
    /// Bytes of the whole bundle.
    #[prost(uint64, tag = "1")]
    pub length: u64,
    /// Their SHA-256.
    #[prost(bytes = "bytes", tag = "2")]
    pub sha256: bytes::Bytes,
    /// Why there is none; nothing follows then.
    #[prost(string, tag = "3")]
    pub refused: String,
}
