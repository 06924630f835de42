//! Bytes for somebody further up, which nobody on the way can read: the session
//! between a site and its server runs through them, with mutual TLS of its own.

use std::io;
use std::time::Duration;

use firesteel_net::{BoxStream, LinkError, read_one, write_one};
use firesteel_wire::relay::{TunnelIs, TunnelTo};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::time::timeout;

/// Relays that one tunnel may pass: more than any federation has, and few enough
/// that relays that name each other are found out at once.
pub const HOPS: u32 = 8;

/// Bytes of a first message: a name, or a sentence.
const MESSAGE: usize = 4096;

/// Bytes of either direction that a tunnel holds.
const BUFFER: usize = 64 * 1024;

/// Why a tunnel did not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// The stream.
    #[error("the stream of a tunnel failed")]
    Stream(#[from] LinkError),
    /// Nothing was said.
    #[error("a tunnel was closed before it was made")]
    Closed,
    /// Nothing was said for too long.
    #[error("a tunnel was not made within {} s", connect.as_secs_f32())]
    TooSlow {
        /// The duration `connect`.
        connect: Duration,
    },
    /// Somebody on the way said no.
    #[error("the tunnel to the server was refused: {why}")]
    Refused {
        /// Its own words.
        why: String,
    },
}

/// Asks for a tunnel on a fresh stream to a relay, or to the server itself; what
/// comes back leads to the server.
///
/// # Errors
/// [`TunnelError`].
pub async fn ask(
    mut stream: BoxStream,
    to: TunnelTo,
    connect: Duration,
) -> Result<BoxStream, TunnelError> {
    let asked = async {
        write_one(&mut stream, &to).await?;
        let answer = read_one::<TunnelIs>(&mut stream, "TunnelIs", MESSAGE).await?;
        let answer = answer.ok_or(TunnelError::Closed)?;
        if !answer.refused.is_empty() {
            let why = answer.refused;
            return Err(TunnelError::Refused { why });
        }
        Ok(())
    };
    match timeout(connect, asked).await {
        Ok(asked) => asked.map(|()| stream),
        Err(_) => Err(TunnelError::TooSlow { connect }),
    }
}

/// At the server: takes what somebody below asks for on this stream.
///
/// # Errors
/// [`TunnelError`].
pub async fn answer(mut stream: BoxStream, connect: Duration) -> Result<BoxStream, TunnelError> {
    wanted(&mut stream, connect).await?;
    write_one(&mut stream, &TunnelIs::default()).await?;
    Ok(stream)
}

async fn wanted(stream: &mut BoxStream, connect: Duration) -> Result<TunnelTo, TunnelError> {
    match timeout(connect, read_one::<TunnelTo>(stream, "TunnelTo", MESSAGE)).await {
        Ok(wanted) => wanted?.ok_or(TunnelError::Closed),
        Err(_) => Err(TunnelError::TooSlow { connect }),
    }
}

/// At a relay: carries a tunnel that somebody below asks for on this stream to
/// whoever is above, until either end closes it. `above` makes a stream to it.
/// How many bytes went up and down.
///
/// # Errors
/// [`TunnelError`]; who asked has been told.
pub async fn pass<F>(
    mut below: BoxStream,
    above: impl FnOnce() -> F,
    connect: Duration,
) -> Result<(u64, u64), TunnelError>
where
    F: Future<Output = Result<BoxStream, String>>,
{
    let wanted = wanted(&mut below, connect).await?;
    let hops = wanted.hops.saturating_add(1);
    let made = async {
        if hops > HOPS {
            let why = format!("it has passed {HOPS} relays: do two of them name each other?");
            return Err(TunnelError::Refused { why });
        }
        let stream = timeout(connect, above()).await;
        let stream = stream
            .map_err(|_| TunnelError::TooSlow { connect })?
            .map_err(|why| TunnelError::Refused { why })?;
        ask(stream, TunnelTo { hops, ..wanted }, connect).await
    };
    let mut up = match made.await {
        Ok(up) => up,
        Err(error) => {
            let refused = match &error {
                TunnelError::Refused { why } => why.clone(),
                other => other.to_string(),
            };
            // It may be gone by now.
            let _ = timeout(connect, write_one(&mut below, &TunnelIs { refused })).await;
            return Err(error);
        }
    };
    write_one(&mut below, &TunnelIs::default()).await?;
    let copied = copy_bidirectional_with_sizes(&mut below, &mut up, BUFFER, BUFFER).await;
    // A connection that is cut in the middle is what its two ends see, too.
    Ok(copied.unwrap_or((0, 0)))
}

impl TunnelError {
    /// It, where an [`io::Error`] is wanted.
    pub fn io(self) -> io::Error {
        io::Error::other(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firesteel_net::pipe;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const CONNECT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn bytes_go_through_relays_and_ends_do_too() {
        let (site, first) = pipe(64);
        let (first_up, second) = pipe(64);
        let (second_up, server) = pipe(64);
        tokio::spawn(pass(first, || async { Ok(first_up) }, CONNECT));
        let last = tokio::spawn(pass(second, || async { Ok(second_up) }, CONNECT));
        let serving = tokio::spawn(async move {
            let mut stream = answer(server, CONNECT).await.unwrap();
            let mut all = String::new();
            stream.read_to_string(&mut all).await.unwrap();
            stream
                .write_all(all.to_uppercase().as_bytes())
                .await
                .unwrap();
            stream.shutdown().await.unwrap();
        });
        let mut stream = ask(site, TunnelTo::default(), CONNECT).await.unwrap();
        stream.write_all(b"hello through two").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = String::new();
        stream.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "HELLO THROUGH TWO");
        serving.await.unwrap();
        assert_eq!(last.await.unwrap().unwrap(), (17, 17));
    }

    #[tokio::test]
    async fn relays_that_name_each_other_are_found_out() {
        let (site, relay) = pipe(256);
        let passing = pass(
            relay,
            || async { panic!("nobody is asked any more") },
            CONNECT,
        );
        let to = TunnelTo {
            hops: HOPS,
            ..TunnelTo::default()
        };
        let (passed, asked) = tokio::join!(passing, ask(site, to, CONNECT));
        assert!(matches!(passed, Err(TunnelError::Refused { .. })));
        let error = asked.err().unwrap().to_string();
        assert!(error.contains("8 relays"), "{error}");
    }

    #[tokio::test]
    async fn why_there_is_no_way_up_is_told_below() {
        let (site, relay) = pipe(256);
        let passing = pass(
            relay,
            || async { Err("the server is away".to_owned()) },
            CONNECT,
        );
        let (_, asked) = tokio::join!(passing, ask(site, TunnelTo::default(), CONNECT));
        let error = asked.err().unwrap().to_string();
        assert!(error.ends_with("the server is away"), "{error}");
    }
}
