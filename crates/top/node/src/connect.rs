//! Connections over TLS, as roles take them.

use std::io;

use firesteel_carry::{Connection, Dial, Dialing, Way};
use firesteel_net::{Identity, Listener, Options, Session};
use firesteel_observe::Logger;
use tokio::sync::mpsc;

/// Dials a server.
pub(crate) struct NetDial {
    pub(crate) address: String,
    pub(crate) server_name: String,
    pub(crate) identity: Identity,
    pub(crate) options: Options,
}

impl Dial for NetDial {
    fn dial(&mut self) -> Dialing<'_> {
        Box::pin(async {
            let dialed = firesteel_net::dial(
                &self.address,
                &self.server_name,
                &self.identity,
                self.options.clone(),
            );
            let session = dialed.await.map_err(io::Error::other)?;
            connection(session).ok_or_else(|| io::ErrorKind::NotConnected.into())
        })
    }
}

fn connection(session: Session) -> Option<Connection> {
    let control = session.control()?;
    Some(Connection {
        control,
        way: Way::Session(session),
    })
}

/// Hands over what comes in, until nobody takes it.
pub(crate) async fn accept(
    listener: Listener,
    connections: mpsc::Sender<Connection>,
    logger: Logger,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.closed() => return,
        };
        match accepted {
            Ok(session) => {
                if let Some(connection) = connection(session)
                    && connections.send(connection).await.is_err()
                {
                    return;
                }
            }
            Err(error) => logger.warning(&format!(
                "a connection was not taken: {}",
                crate::parts::sentence(&error)
            )),
        }
    }
}
