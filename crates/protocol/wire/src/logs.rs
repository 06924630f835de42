//! Live logs: what a site and the server say on a stream of kind LOGS.
//!
//! One stream is about one log. The site opens it and says which ([`LogIs`]); the
//! server answers how much of it is there ([`LogFrom`]), and the site sends what
//! follows ([`LogBytes`]), for as long as the stream is open. A position counts the
//! bytes since the log's birth, rotated files included, so a log goes on at the
//! byte after a cut, a rotation and a restart of either end.

/// From the site to the server.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ToReader {
    /// One of the messages; none when it is of a later version.
    #[prost(oneof = "to_reader::Body", tags = "1, 2, 3")]
    pub body: Option<to_reader::Body>,
}

/// The bodies of [`ToReader`].
pub mod to_reader {
    /// One of them.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// The first message.
        #[prost(message, tag = "1")]
        Is(super::LogIs),
        /// What follows.
        #[prost(message, tag = "2")]
        Bytes(super::LogBytes),
        /// Nothing follows any more: the job is over.
        #[prost(message, tag = "3")]
        End(super::LogEnd),
    }
}

/// Which log the stream is about.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LogIs {
    /// The job; empty for the log of the site itself.
    #[prost(string, tag = "1")]
    pub job: String,
    /// A number that was drawn when the log was begun, never zero: another one is
    /// another log, of which the server has nothing.
    #[prost(fixed64, tag = "2")]
    pub birth: u64,
}

/// Bytes of the log.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LogBytes {
    /// The position of the first. Beyond the end of what went before where bytes
    /// were gone before they could be sent.
    #[prost(uint64, tag = "1")]
    pub from: u64,
    /// The bytes, at most `limits::LOG_CHUNK`.
    #[prost(bytes = "bytes", tag = "2")]
    pub bytes: bytes::Bytes,
}

/// Nothing follows any more.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LogEnd {
    /// The position of the log's end.
    #[prost(uint64, tag = "1")]
    pub at: u64,
}

/// From the server to the site.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LogFrom {
    /// The position from which on the server wants it.
    #[prost(uint64, tag = "1")]
    pub position: u64,
    /// Why the server wants none of it; empty when it does.
    #[prost(string, tag = "2")]
    pub refused: String,
    /// Said once more at the end: everything up to the position is written down.
    #[prost(bool, tag = "3")]
    pub whole: bool,
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_later_message_is_one_without_a_body() {
        // Field 9, a string: nothing that this build knows.
        let later = [0x4a, 0x01, b'x'];
        assert_eq!(ToReader::decode(&later[..]).unwrap().body, None);
    }

    #[test]
    fn layouts_stay_as_they_are() {
        let bytes = ToReader {
            body: Some(to_reader::Body::Bytes(LogBytes {
                from: 300,
                bytes: bytes::Bytes::from_static(b"ab"),
            })),
        };
        let expected = [0x12, 0x07, 0x08, 0xac, 0x02, 0x12, 0x02, b'a', b'b'];
        assert_eq!(bytes.encode_to_vec(), expected);
        let is = ToReader {
            body: Some(to_reader::Body::Is(LogIs {
                job: "j".into(),
                birth: 1,
            })),
        };
        let expected = [0x0a, 0x0c, 0x0a, 0x01, b'j', 0x11, 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(is.encode_to_vec(), expected);
        let from = LogFrom {
            position: 5,
            refused: String::new(),
            whole: true,
        };
        assert_eq!(from.encode_to_vec(), [0x08, 0x05, 0x18, 0x01]);
    }
}
