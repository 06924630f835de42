//! The ways from a site to its server.

use std::io;

use firesteel_net::{Options, Session, dial_with};
use firesteel_node::parts::sentence;
use firesteel_pki::{Connect, Kit};
use firesteel_wire::spec::Hierarchy;

use super::desk::Desk;
use crate::dialing::target;
use crate::relay::Uplink;

/// Dials the server by the ways of the kit, in their order.
///
/// # Errors
/// What was wrong with the last of them, in a sentence.
pub(super) async fn server(desk: &Desk) -> Result<Session, String> {
    let mut last = "its kit names no server to connect to".to_owned();
    for way in desk.kit.connect() {
        match by(&desk.kit, &way, desk.net.clone()).await {
            Ok((session, uplink)) => {
                desk.set_uplink(uplink);
                return Ok(session);
            }
            Err(why) => last = why,
        }
    }
    Err(last)
}

/// The session with the server, and with the relay that it goes through.
async fn by(
    kit: &Kit,
    way: &Connect,
    options: Options,
) -> Result<(Session, Option<Uplink>), String> {
    let target = target(kit, way)?;
    let failed = |error| sentence(&error);
    if way.through_relay.is_none() {
        let session = dial_with(&target, options).await;
        return Ok((session.map_err(failed)?, None));
    }
    let uplink = Uplink::dial(target, options.clone())
        .await
        .map_err(failed)?;
    let server = &kit.config().server;
    let session = uplink.server(server, kit.identity(), options).await;
    Ok((session.map_err(failed)?, Some(uplink)))
}

/// The scope in which a job's agent and its server, or the relay that sums for the
/// server, speak.
///
/// # Errors
/// What the session says.
pub(super) async fn scope(
    desk: &Desk,
    session: &Session,
    job: &str,
    hierarchy: Hierarchy,
) -> io::Result<Session> {
    match desk.uplink().filter(|_| hierarchy == Hierarchy::Aggregate) {
        Some(uplink) => Ok(uplink.job(job, 0).await?),
        None => session.scope(job).map_err(io::Error::other),
    }
}
