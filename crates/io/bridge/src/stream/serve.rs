//! The agent's end of a connection for streams.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use firesteel_wire::bridge::{self as say, from_agent, from_trainer};

use super::{Found, Offer, StreamError, StreamKind, Streams, Wanted};
use crate::connection::{BridgeReceiver, BridgeSender, ConnectionError};

/// Answers one trainer's offers and fetches, one after the other, until it leaves.
///
/// A fetch is given up when the trainer leaves meanwhile.
pub(crate) async fn serve(
    mut receiver: BridgeReceiver,
    mut sender: BridgeSender,
    streams: Arc<dyn Streams>,
) -> Result<(), ConnectionError> {
    while let Some(body) = receiver.frame().await? {
        match body {
            from_trainer::Body::Offer(offer) => {
                let taken = match (receiver.descriptor(), offer_of(offer)) {
                    (Some(file), Ok(offer)) => streams.offer(offer, file).await,
                    (None, Ok(_)) => Err(malformed("its descriptor is missing")),
                    (_, Err(error)) => Err(error),
                };
                answer(&mut sender, taken.map(|id| say::Offered { id })).await?;
            }
            from_trainer::Body::Withdraw(withdraw) => {
                let id = withdraw.id.clone();
                let done = streams.withdraw(withdraw.id).await;
                answer(&mut sender, done.map(|()| say::Offered { id })).await?;
            }
            from_trainer::Body::Fetch(fetch) => {
                let wanted = Wanted {
                    site: fetch.site,
                    id: fetch.id,
                    name: fetch.name,
                    wait: Duration::from_micros(fetch.wait),
                };
                let found = tokio::select! {
                    found = streams.fetch(wanted) => found,
                    // Nothing is said before the answer: whatever comes is the end.
                    _ = receiver.frame() => return Ok(()),
                };
                match found {
                    Ok(found) => hand_over(&mut sender, found).await?,
                    Err(error) => refuse(&mut sender, &error).await?,
                }
            }
            from_trainer::Body::Bye(say::Bye {}) => return Ok(()),
            _ => return Err(ConnectionError::Unexpected),
        }
    }
    Ok(())
}

fn offer_of(offer: say::Offer) -> Result<Offer, StreamError> {
    Ok(Offer {
        kind: StreamKind::try_from(offer.kind)
            .map_err(|_| malformed("it is of a kind that this agent does not know"))?,
        name: offer.name,
        length: offer.length,
        to: offer.to,
        times: offer.times,
        owned: offer.owned,
    })
}

fn malformed(why: &str) -> StreamError {
    StreamError::Offer {
        why: why.to_owned(),
    }
}

async fn answer(
    sender: &mut BridgeSender,
    result: Result<say::Offered, StreamError>,
) -> Result<(), ConnectionError> {
    match result {
        Ok(offered) => sender.say(from_agent::Body::Offered(offered)).await,
        Err(error) => refuse(sender, &error).await,
    }
}

async fn hand_over(sender: &mut BridgeSender, found: Found) -> Result<(), ConnectionError> {
    let fetched = say::Fetched {
        id: found.id,
        name: found.name,
        kind: found.kind.into(),
        length: found.length,
        owned: found.owned,
    };
    let body = from_agent::Body::Fetched(fetched);
    sender.say_with(body, Some(found.file.as_fd())).await
}

async fn refuse(sender: &mut BridgeSender, error: &StreamError) -> Result<(), ConnectionError> {
    let failure = error.failure();
    sender
        .say(from_agent::Body::Refused(say::Refused {
            code: error.code().to_owned(),
            message: failure.message,
            hint: failure.hint,
        }))
        .await
}
