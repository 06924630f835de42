//! Frames: a little-endian `u32` length, then that many bytes of one message.

use bytes::{Buf, Bytes, BytesMut};
use firesteel_base::limits;
use prost::Message;

/// Bytes of a frame's head.
pub const HEAD: usize = 4;

/// Why bytes are not a frame of the expected message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The announced or actual length is over the limit.
    #[error("a frame of {length} bytes, the limit is {limit}")]
    TooLong {
        /// Bytes announced by the peer, or needed by the message.
        length: usize,
        /// [`limits::FRAME`].
        limit: usize,
    },
    /// The bytes are not the message they should be.
    #[error("a frame that is not a `{expected}` message")]
    Malformed {
        /// The name of the message type.
        expected: &'static str,
        /// What the decoder said.
        #[source]
        source: prost::DecodeError,
    },
}

/// A frame ready to be written.
///
/// # Errors
/// [`FrameError::TooLong`] when the message does not fit [`limits::FRAME`].
pub fn encode(message: &impl Message) -> Result<Bytes, FrameError> {
    let length = message.encoded_len();
    if length > limits::FRAME {
        return Err(FrameError::TooLong {
            length,
            limit: limits::FRAME,
        });
    }
    let mut buffer = BytesMut::with_capacity(HEAD + length);
    buffer.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    message
        .encode(&mut buffer)
        .expect("the buffer was reserved for the encoded length");
    Ok(buffer.freeze())
}

/// Takes one message off the front of `buffer`; `None` while it is incomplete.
///
/// `name` is the message's name in errors.
///
/// # Errors
/// [`FrameError`]; the stream cannot be read further after one.
pub fn decode<M: Message + Default>(
    buffer: &mut BytesMut,
    name: &'static str,
) -> Result<Option<M>, FrameError> {
    let Some(head) = buffer.get(..HEAD) else {
        return Ok(None);
    };
    let mut head: &[u8] = head;
    let length = head.get_u32_le() as usize;
    if length > limits::FRAME {
        return Err(FrameError::TooLong {
            length,
            limit: limits::FRAME,
        });
    }
    if buffer.len() < HEAD + length {
        buffer.reserve(HEAD + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(HEAD);
    let body = buffer.split_to(length).freeze();
    M::decode(body)
        .map(Some)
        .map_err(|source| FrameError::Malformed {
            expected: name,
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Probe {
        #[prost(string, tag = "1")]
        text: String,
    }

    #[test]
    fn a_frame_comes_back_whatever_the_cuts() {
        let sent = Probe {
            text: "hello".into(),
        };
        let bytes = encode(&sent).unwrap();
        for cut in 0..=bytes.len() {
            let mut buffer = BytesMut::from(&bytes[..cut]);
            let first: Option<Probe> = decode(&mut buffer, "Probe").unwrap();
            assert_eq!(first.is_some(), cut == bytes.len());
            if first.is_none() {
                buffer.extend_from_slice(&bytes[cut..]);
                assert_eq!(
                    decode::<Probe>(&mut buffer, "Probe").unwrap().unwrap(),
                    sent
                );
            }
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn a_huge_length_is_refused_before_memory_is_taken() {
        let mut buffer = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        let error = decode::<Probe>(&mut buffer, "Probe").unwrap_err();
        assert!(error.to_string().contains("limit is 1048576"), "{error}");
        assert!(buffer.capacity() < 1 << 20);
    }

    #[test]
    fn bytes_that_are_no_message_are_refused_by_name() {
        let mut buffer = BytesMut::from(&[3u8, 0, 0, 0, 0xff, 0xff, 0xff][..]);
        let error = decode::<Probe>(&mut buffer, "Probe").unwrap_err();
        assert!(error.to_string().contains("`Probe`"), "{error}");
    }
}
