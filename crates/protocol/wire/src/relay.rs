//! What is said to and by relays, each message the first of a stream in the
//! session between a relay and its neighbor.
//!
//! Within a job that a relay aggregates, the messages are those of
//! [`crate::control`].

/// The first message of a tunnel: to whom it leads. What follows the answer are
/// bytes that relays carry and cannot read.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TunnelTo {
    /// The server's name, as its certificate has it; empty for the only one.
    #[prost(string, tag = "1")]
    pub server: String,
    /// Relays that it has passed.
    #[prost(uint32, tag = "2")]
    pub hops: u32,
}

/// The answer of whoever is at its end, or of a relay that cannot pass it on.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TunnelIs {
    /// Why there is none; empty when there is one.
    #[prost(string, tag = "1")]
    pub refused: String,
}

/// The first message of a stream by which a node below takes part in a job
/// through this one: both make a scope of the job's name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JobWanted {
    /// The job's id.
    #[prost(string, tag = "1")]
    pub job: String,
    /// Relays between it and the site that asked first.
    #[prost(uint32, tag = "2")]
    pub hops: u32,
}

/// The answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JobIs {
    /// Why not; empty when the scope is there.
    #[prost(string, tag = "1")]
    pub refused: String,
}

/// The first message of a stream on which a model is pulled from a relay's cache.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelWanted {
    /// The job's id.
    #[prost(string, tag = "1")]
    pub job: String,
    /// The root of its manifest, as the server has told it end to end.
    #[prost(bytes = "bytes", tag = "2")]
    pub root: bytes::Bytes,
    /// What the server has told with it, to those who may have the model only.
    #[prost(bytes = "bytes", tag = "3")]
    pub ticket: bytes::Bytes,
    /// Bytes of the model.
    #[prost(uint64, tag = "4")]
    pub length: u64,
    /// Relays that asked before.
    #[prost(uint32, tag = "5")]
    pub hops: u32,
}

/// The answer: the pull may begin.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelIs {
    /// Why not; empty when it may.
    #[prost(string, tag = "1")]
    pub refused: String,
    /// The number under which it is pulled on this stream.
    #[prost(uint64, tag = "2")]
    pub id: u64,
}
