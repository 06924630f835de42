//! Messages, one frame each, over any stream.

use std::io;

use bytes::BytesMut;
use firesteel_wire::frame::{self, FrameError};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::BoxStream;

/// Why a message could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The stream failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The peer sent what is no message, or we would have.
    #[error("the peer does not speak the protocol")]
    Frame(#[from] FrameError),
    /// The stream ended within a message.
    #[error("the connection ended within a message")]
    Truncated,
}

/// The two directions of a stream.
pub fn split(stream: BoxStream) -> (Reader, Writer) {
    let (read, write) = tokio::io::split(stream);
    (
        Reader {
            stream: read,
            buffer: BytesMut::new(),
        },
        Writer { stream: write },
    )
}

/// Reads messages.
pub struct Reader {
    stream: ReadHalf<BoxStream>,
    buffer: BytesMut,
}

impl Reader {
    /// The next message; `None` when the peer has closed the stream between two.
    ///
    /// Cancel safe: when the future is dropped, nothing read is lost.
    ///
    /// # Errors
    /// [`LinkError`]; the stream is of no use after one.
    pub async fn next<M: Message + Default>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<M>, LinkError> {
        loop {
            if let Some(message) = frame::decode(&mut self.buffer, name)? {
                // A buffer that once held a large message is not kept for the
                // small ones: with a thousand idle peers it would add up.
                if self.buffer.is_empty() && self.buffer.capacity() > 2 * 1024 {
                    self.buffer = BytesMut::new();
                }
                return Ok(Some(message));
            }
            self.buffer.reserve(512);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(LinkError::Truncated)
                };
            }
        }
    }
}

/// Writes messages.
pub struct Writer {
    stream: WriteHalf<BoxStream>,
}

impl Writer {
    /// Writes one message and hands it to the stream.
    ///
    /// # Errors
    /// [`LinkError`]; the stream is of no use after one that is not
    /// [`LinkError::Frame`].
    pub async fn send(&mut self, message: &impl Message) -> Result<(), LinkError> {
        let bytes = frame::encode(message)?;
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// Says that nothing follows.
    ///
    /// # Errors
    /// [`LinkError::Io`] when the stream had failed.
    pub async fn close(&mut self) -> Result<(), LinkError> {
        self.stream.shutdown().await?;
        Ok(())
    }
}

/// Reads one message of at most `most` bytes, and nothing beyond it: what follows
/// is no message. `None` when the peer has closed the stream before it.
///
/// # Errors
/// [`LinkError`]; the stream is of no use after one.
pub async fn read_one<M: Message + Default>(
    stream: &mut BoxStream,
    name: &'static str,
    most: usize,
) -> Result<Option<M>, LinkError> {
    let mut head = [0; frame::HEAD];
    let first = stream.read(&mut head).await?;
    if first == 0 {
        return Ok(None);
    }
    let rest = head.get_mut(first..).unwrap_or_default();
    stream.read_exact(rest).await.map_err(ended)?;
    let length = u32::from_le_bytes(head) as usize;
    if length > most {
        return Err(FrameError::TooLong {
            length,
            limit: most,
        }
        .into());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(ended)?;
    let mut buffer = BytesMut::with_capacity(frame::HEAD + length);
    buffer.extend_from_slice(&head);
    buffer.extend_from_slice(&body);
    Ok(frame::decode(&mut buffer, name)?)
}

/// Writes one message to a stream on which something else may follow.
///
/// # Errors
/// [`LinkError`].
pub async fn write_one(stream: &mut BoxStream, message: &impl Message) -> Result<(), LinkError> {
    stream.write_all(&frame::encode(message)?).await?;
    Ok(stream.flush().await?)
}

fn ended(error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LinkError::Truncated,
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe;
    use firesteel_wire::control::{RoundCommitted, ToSite, to_site};

    fn message(round: u32) -> ToSite {
        ToSite {
            body: Some(to_site::Body::RoundCommitted(RoundCommitted { round })),
        }
    }

    #[tokio::test]
    async fn messages_arrive_in_order_through_a_narrow_pipe() {
        let (near, far) = pipe(3);
        let (_, mut writer) = split(near);
        let (mut reader, _keep) = split(far);
        let sending = tokio::spawn(async move {
            for round in 0..100 {
                writer.send(&message(round)).await.unwrap();
            }
            writer.close().await.unwrap();
        });
        for round in 0..100 {
            assert_eq!(
                reader.next::<ToSite>("ToSite").await.unwrap(),
                Some(message(round))
            );
        }
        assert_eq!(reader.next::<ToSite>("ToSite").await.unwrap(), None);
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn one_message_is_read_and_not_a_byte_more() {
        let (mut near, mut far) = pipe(3);
        let sending = tokio::spawn(async move {
            write_one(&mut near, &message(7)).await.unwrap();
            near.write_all(b"the rest").await.unwrap();
        });
        let one = read_one::<ToSite>(&mut far, "ToSite", 64).await.unwrap();
        assert_eq!(one, Some(message(7)));
        let mut rest = String::new();
        far.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "the rest");
        let end = read_one::<ToSite>(&mut far, "ToSite", 64).await.unwrap();
        assert_eq!(end, None);
        sending.await.unwrap();
        for (bytes, long) in [(&[65u8, 0, 0, 0, 1][..], true), (&[9, 0, 0, 0, 1], false)] {
            let (mut near, mut far) = pipe(64);
            near.write_all(bytes).await.unwrap();
            drop(near);
            let error = read_one::<ToSite>(&mut far, "ToSite", 64).await;
            match error.unwrap_err() {
                LinkError::Frame(FrameError::TooLong { length: 65, .. }) => assert!(long),
                LinkError::Truncated => assert!(!long),
                other => panic!("{other}"),
            }
        }
    }

    #[tokio::test]
    async fn an_end_within_a_message_is_an_error() {
        let (mut near, far) = pipe(64);
        near.write_all(&[9, 0, 0, 0, 1]).await.unwrap();
        drop(near);
        let (mut reader, _keep) = split(far);
        let error = reader.next::<ToSite>("ToSite").await.unwrap_err();
        assert!(matches!(error, LinkError::Truncated), "{error}");
    }
}
