//! One site below: its messages go through as they are, but for models and
//! updates, which stop here.

use std::sync::Arc;

use firesteel_base::{Failure, FailureCode, Phase, SiteName, TaskKey, limits};
use firesteel_carry::update::{self, sentence};
use firesteel_carry::{Carrier, Fetched, Order, Progress, Remote};
use firesteel_net::{Reader, Writer, split};
use firesteel_store::{ModelObject, PartName};
use firesteel_wire::control::{
    Assign, FailureMessage, Hello, Key, TaskFailed, ToServer, ToSite, Update, to_server, to_site,
};
use tokio::task::JoinSet;

use super::Shared;
use super::held::HeldUpdate;
use super::neighbor::{Given, not_given};

/// The site whose stream it is.
pub(super) struct Whose {
    pub(super) name: SiteName,
    /// The relay below this one through which it comes.
    pub(super) via: Option<SiteName>,
    /// The way of models to it, or to that relay.
    pub(super) carrier: Arc<Remote>,
}

/// What was done beside the messages.
enum Done {
    /// A task whose model is here, or is not.
    Given(Assign, Result<Given, String>),
    /// What is to be said of an update.
    Update(to_server::Body),
}

/// A task's model, and its number.
type Base = Option<(u64, ModelObject)>;

/// Serves the site until either end closes its stream.
pub(super) async fn serve(
    shared: Arc<Shared>,
    (mut below, mut to_site): (Reader, Writer),
    whose: Whose,
    hello: Hello,
) {
    let Some(up) = shared.stream_up().await else {
        return;
    };
    let (mut above, mut to_server) = split(up);
    let site = whose.name.clone();
    shared.state().via.insert(site.clone(), whose.via.clone());
    shared.touch();
    let logger = shared.logger.for_site(&site);
    logger.debug(&format!("{site} is connected"));
    let first = to_server::Body::Hello(hello);
    if to_server.send(&said(first)).await.is_err() {
        return;
    }
    let mut work: JoinSet<Done> = JoinSet::new();
    // The task whose model is on its way, and the model of the last one.
    let (mut giving, mut base): (Option<Key>, Base) = (None, None);
    let (mut below_open, mut above_open) = (true, true);
    while below_open || above_open {
        tokio::select! {
            message = below.next::<ToServer>("ToServer"), if below_open => match message {
                Ok(Some(ToServer { body: Some(to_server::Body::Update(update)) }))
                    if whose.via.is_none() && update.model.is_some() =>
                {
                    let (shared, carrier, site) =
                        (Arc::clone(&shared), Arc::clone(&whose.carrier), site.clone());
                    let base = base.clone();
                    work.spawn(async move {
                        Done::Update(take(&shared, &carrier, &site, update, base).await)
                    });
                }
                // Nobody else has updates of it.
                Ok(Some(ToServer { body: Some(to_server::Body::Update(mut update)) })) => {
                    update.at_relay = whose.via.is_some() && update.at_relay;
                    if to_server.send(&said(to_server::Body::Update(update))).await.is_err() {
                        break;
                    }
                }
                Ok(Some(ToServer { body: Some(body) })) => {
                    if to_server.send(&said(body)).await.is_err() {
                        break;
                    }
                }
                Ok(Some(ToServer { body: None })) => {}
                Ok(None) => {
                    below_open = false;
                    // What it still has to say of its work is said first.
                    if work.is_empty() && to_server.close().await.is_err() {
                        break;
                    }
                }
                Err(_) => break,
            },
            message = above.next::<ToSite>("ToSite"), if above_open => match message {
                Ok(Some(ToSite { body: Some(to_site::Body::Assign(assign)) })) if assign.model.is_some() => {
                    giving.clone_from(&assign.key);
                    let (shared, carrier) = (Arc::clone(&shared), Arc::clone(&whose.carrier));
                    work.spawn(async move {
                        let model = assign.model.clone().unwrap_or_default();
                        let given = shared.give(&model, &carrier).await;
                        Done::Given(assign, given)
                    });
                }
                Ok(Some(ToSite { body: Some(body) })) => {
                    if let to_site::Body::Cancel(cancel) = &body
                        && cancel.key == giving
                    {
                        // It never hears of it.
                        giving = None;
                    }
                    if to_site.send(&ToSite { body: Some(body) }).await.is_err() {
                        break;
                    }
                }
                Ok(Some(ToSite { body: None })) => {}
                Ok(None) => {
                    above_open = false;
                    if to_site.close().await.is_err() {
                        break;
                    }
                }
                Err(_) => break,
            },
            Some(done) = work.join_next() => {
                let sent = match done {
                    Ok(Done::Given(assign, _)) if assign.key != giving => Ok(()),
                    Ok(Done::Given(mut assign, Ok(given))) => {
                        giving = None;
                        assign.model = Some(given.object);
                        base = Some((given.id, given.plain));
                        let body = Some(to_site::Body::Assign(assign));
                        to_site.send(&ToSite { body }).await
                    }
                    Ok(Done::Given(assign, Err(why))) => {
                        giving = None;
                        let failure = not_given(&shared.relay, &why);
                        logger.error(&failure.to_string());
                        to_server.send(&said(failed(assign.key, &failure))).await
                    }
                    Ok(Done::Update(body)) => to_server.send(&said(body)).await,
                    // A panic of our own: who waits for it sees the stream end.
                    Err(_) => break,
                };
                if sent.is_err() {
                    break;
                }
                if !below_open && work.is_empty() && to_server.close().await.is_err() {
                    break;
                }
            }
        }
        // The job's end: nothing comes from above any more, and the site has left.
        if !above_open && work.is_empty() && !below_open {
            break;
        }
    }
}

fn said(body: to_server::Body) -> ToServer {
    ToServer { body: Some(body) }
}

fn failed(key: Option<Key>, failure: &Failure) -> to_server::Body {
    to_server::Body::TaskFailed(TaskFailed {
        key,
        failure: Some(FailureMessage::from(failure)),
    })
}

/// Fetches an update, checks it and keeps it; what is told above.
async fn take(
    shared: &Arc<Shared>,
    carrier: &Remote,
    site: &SiteName,
    mut update: Update,
    base: Base,
) -> to_server::Body {
    let key = update.key.clone();
    match keep(shared, carrier, site, &update, base).await {
        Ok(()) => {
            update.model = None;
            update.at_relay = true;
            to_server::Body::Update(update)
        }
        Err(failure) => {
            shared.logger.for_site(site).warning(&failure.to_string());
            failed(key, &failure)
        }
    }
}

async fn keep(
    shared: &Arc<Shared>,
    carrier: &Remote,
    site: &SiteName,
    update: &Update,
    base: Base,
) -> Result<(), Failure> {
    let malformed = |why: String| Failure::new(FailureCode::Malformed, Phase::Verify, why);
    let key = update.key.as_ref().map(TaskKey::try_from);
    let key = match key {
        Some(Ok(key)) if key.site == *site => key,
        _ => {
            let why = "an update about work that is not the site's own".to_owned();
            return Err(malformed(why));
        }
    };
    // A site that came back says again what it holds.
    if shared.state().held.get(&key).is_some() {
        return Ok(());
    }
    let object = update.model.clone().unwrap_or_default();
    let model = match &object.inline {
        Some(bytes) if bytes.len() > limits::INLINE_OBJECT => {
            return Err(malformed(format!(
                "sent {} bytes of model in a message, the limit is {}",
                bytes.len(),
                limits::INLINE_OBJECT
            )));
        }
        Some(bytes) => {
            let made = shared.objects.from_bytes(&bytes[..]);
            made.map_err(|error| {
                malformed(format!("the update is not a model: {}", sentence(&error)))
            })?
        }
        None => {
            let fetched = carrier.fetch(Order {
                progress: Arc::new(Progress::new(object.length)),
                object,
                name: format!("the update of round {}", key.round),
                part: PartName::of_update(&key),
                // What is summed is read when it is asked for.
                whole: true,
            });
            match fetched.await {
                Ok(Fetched::Here(model)) => model,
                Ok(Fetched::Live(_)) => {
                    let why = "there is no room for the update at the relay";
                    return Err(Failure::new(FailureCode::DiskFull, Phase::Verify, why));
                }
                Err(error) => return Err(update::not_fetched(&error)),
            }
        }
    };
    let (objects, spool) = (shared.objects.clone(), shared.spool.clone());
    let kind = if update.diff {
        firesteel_aggregate::UpdateKind::Diff
    } else {
        firesteel_aggregate::UpdateKind::Full
    };
    let options = shared.options.for_kind(kind);
    let checking = tokio::task::spawn_blocking(move || {
        let model = update::decoded(model, &objects, Some(&spool))?;
        let checked = match base {
            Some((id, base)) => {
                update::check(&model, Some(&base), &options)?;
                Some(id)
            }
            // Checked when it is summed: then the server says what it is of.
            None => None,
        };
        Ok(HeldUpdate::new(model, checked))
    });
    let held = checking.await.unwrap_or_else(|_| {
        Err(Failure::new(
            FailureCode::Internal,
            Phase::Verify,
            "the relay panicked while an update was checked",
        ))
    })?;
    shared.state().held.put(key, held);
    shared.touch();
    Ok(())
}
