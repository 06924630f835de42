//! A session with a site or a relay below.

use std::sync::Arc;

use firesteel_net::{Kind, Session};
use firesteel_node::parts::sentence;
use firesteel_observe::Logger;
use firesteel_relay::tunnel;
use tokio::task::JoinSet;

use super::jobs::Jobs;
use super::upward::Upward;

/// Tunnels and questions that one neighbor may have open: a site has a few
/// connections with the server, a relay below those of all its sites.
const STREAMS: usize = 4096;

/// Serves it to its end.
pub(super) async fn serve(session: Session, upward: Upward, jobs: Arc<Jobs>, logger: Logger) {
    let name = session.peer().name.clone();
    logger.info(&format!("{name} is connected from {}", session.address()));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = session.accept(), if open.len() < STREAMS => accepted,
            Some(_) = open.join_next() => continue,
        };
        let Some((kind, stream)) = accepted else {
            break;
        };
        let (upward, jobs) = (upward.clone(), Arc::clone(&jobs));
        let (logger, session, name) = (logger.clone(), session.clone(), name.clone());
        open.spawn(async move {
            if kind == Kind::TUNNEL {
                let connect = upward.connect();
                let passed = tunnel::pass(stream, || upward.tunnel(), connect).await;
                if let Err(error) = passed {
                    logger.debug(&format!("a tunnel of {name}: {}", sentence(&error)));
                }
            } else if kind == Kind::BELOW {
                jobs.answer(stream, session).await;
            }
            // A kind of a later version: dropped, which the neighbor sees.
        });
    }
    logger.info(&format!("{name} is gone: {}", session.closed().await));
}
