//! What the server does with the streams of relays.

use std::time::Duration;

use firesteel_carry::{Connection, Way};
use firesteel_net::{BoxStream, Session, read_one, write_one};
use firesteel_wire::relay::{JobIs, JobWanted};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::tunnel;
use crate::uplink::scope;

/// Bytes of a first message.
const MESSAGE: usize = 4096;

/// At the server, for a stream of the kind `TUNNEL`: what came through relays, to
/// be taken like a fresh connection; `None` when nothing did.
pub async fn answer_tunnel(stream: BoxStream, connect: Duration) -> Option<BoxStream> {
    tunnel::answer(stream, connect).await.ok()
}

/// At the server, for a stream of the kind `BELOW` of a relay's session: has the
/// relay take part in the job that it names. `find` gives where the job takes its
/// connections, or says why not.
pub async fn join<F>(
    mut stream: BoxStream,
    session: Session,
    connect: Duration,
    find: impl FnOnce(String) -> F,
) where
    F: Future<Output = Result<mpsc::Sender<Connection>, String>>,
{
    let wanted = read_one::<JobWanted>(&mut stream, "JobWanted", MESSAGE);
    let Ok(Ok(Some(wanted))) = timeout(connect, wanted).await else {
        return;
    };
    let found = match find(wanted.job.clone()).await {
        Ok(connections) => match scope(&session, &wanted.job, connect).await {
            Ok(scope) => Ok((connections, scope)),
            Err(error) => Err(error.to_string()),
        },
        Err(why) => Err(why),
    };
    let refused = found.as_ref().err().cloned().unwrap_or_default();
    if write_one(&mut stream, &JobIs { refused }).await.is_err() {
        return;
    }
    let Ok((connections, scope)) = found else {
        return;
    };
    // It dials at once, or not at all.
    let Ok(Some(control)) = timeout(connect, scope.accept_control()).await else {
        return;
    };
    let way = Way::Session(scope);
    // A job that has just ended takes nobody any more, which the relay sees.
    let _ = connections.send(Connection { control, way }).await;
}
