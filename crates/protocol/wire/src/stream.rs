//! What is said before a stream between two sites is pulled.
//!
//! The asking agent says [`Ask`] to the server, the server passes it on to the
//! offering agent, whose [`Answer`] goes back the same way. The pull follows on the
//! same stream.

use crate::bridge::Refused;

pub use crate::bridge::StreamKind;

/// The first message: what is asked for.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Ask {
    /// The site that asks. The server sets it to what it knows.
    #[prost(string, tag = "1")]
    pub asker: String,
    /// The site that offers it.
    #[prost(string, tag = "2")]
    pub site: String,
    /// Its id; empty when it is asked for by name.
    #[prost(string, tag = "3")]
    pub id: String,
    /// Its name; a file in a folder is `<the folder's name>/<path within it>`.
    #[prost(string, tag = "4")]
    pub name: String,
    /// Microseconds to wait for the offer to be made.
    #[prost(uint64, tag = "5")]
    pub wait: u64,
    /// The asker's number of this fetch: the object that it pulls afterwards. An
    /// ask with the same number goes on with the same fetch.
    #[prost(uint64, tag = "6")]
    pub ticket: u64,
}

/// What the offering site says to an [`Ask`], or the server in its place.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Answer {
    /// Which of the two; `None` is something that a newer agent says.
    #[prost(oneof = "answer::Body", tags = "1, 2")]
    pub body: Option<answer::Body>,
}

/// The kinds of [`Answer`].
pub mod answer {
    /// What becomes of the fetch.
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Body {
        /// It can be pulled now.
        #[prost(message, tag = "1")]
        Found(super::Found),
        /// It cannot be had.
        #[prost(message, tag = "2")]
        Refused(super::Refused),
    }
}

/// What was found.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Found {
    /// Its id; empty for a file in a folder.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// What it is.
    #[prost(enumeration = "StreamKind", tag = "3")]
    pub kind: i32,
    /// Its bytes.
    #[prost(uint64, tag = "4")]
    pub length: u64,
}
