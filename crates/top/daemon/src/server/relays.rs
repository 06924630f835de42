//! Streams that a relay opens to the server.

use std::sync::Arc;

use firesteel_base::JobId;
use firesteel_net::{BoxStream, Kind, Session};
use firesteel_wire::spec::Hierarchy;

use super::door;
use super::shared::{Shared, lock_read};

/// Takes one of them.
pub(super) fn stream(shared: &Arc<Shared>, session: &Session, kind: Kind, stream: BoxStream) {
    let (shared, session) = (Arc::clone(shared), session.clone());
    let connect = shared.durations.connect;
    match kind {
        // The connection of somebody below the relay, which cannot read it.
        Kind::TUNNEL => {
            tokio::spawn(async move {
                let from = session.address();
                if let Some(stream) = crate::relay::answer_tunnel(stream, connect).await
                    && let Some(take) = shared.tunnels.get()
                {
                    take(stream, from);
                }
            });
        }
        // The relay itself is a party to a job.
        Kind::BELOW => {
            let find = move |job: String| async move {
                let job = JobId::new(&job).map_err(|error| error.to_string())?;
                let sums = lock_read(&shared.records)
                    .get(&job)
                    .is_some_and(|record| record.spec.hierarchy == Hierarchy::Aggregate);
                if !sums {
                    return Err(format!("relays have no part in job {job}"));
                }
                door::connections(&shared, job).await
            };
            tokio::spawn(crate::relay::join(stream, session, connect, find));
        }
        _ => drop(stream),
    }
}
