//! Sums: of the updates that are held here, and of what relays below have summed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use firesteel_aggregate::{AggregateError, Contribution, Data, Options, UpdateKind, plan_sums};
use firesteel_base::{Attempt, Failure, FailureCode, Hint, Phase, Round, SiteName, TaskKey};
use firesteel_carry::update::{self, SumsObject, sentence, view};
use firesteel_carry::{Carrier, Fetched, Offer, Order, Progress, Remote};
use firesteel_store::{ModelObject, Objects, PartName};
use firesteel_wire::control::{
    Blame, Collect, FailureMessage, Key, Object, Partial, Weighed, to_site,
};
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::Shared;
use super::held::HeldUpdate;

/// Why there are no sums, and without whom there may be.
struct Unsummed {
    failure: Box<Failure>,
    blame: Vec<(SiteName, Failure)>,
}

impl From<Failure> for Unsummed {
    fn from(failure: Failure) -> Self {
        Self {
            failure: Box::new(failure),
            blame: Vec::new(),
        }
    }
}

/// One update here, and how much it counts.
struct Local {
    key: TaskKey,
    weight: f64,
    update: HeldUpdate,
}

/// What a relay below was asked for.
struct Asked {
    parts: Vec<Weighed>,
    sites: Vec<SiteName>,
}

/// Sums what is asked for; what is told above.
pub(super) async fn answer(shared: &Arc<Shared>, collect: Collect) -> Partial {
    let contributors: Vec<Key> = collect
        .parts
        .iter()
        .filter_map(|part| part.key.clone())
        .collect();
    let (round, attempt) = (collect.round, collect.attempt);
    let mut partial = Partial {
        round,
        attempt,
        contributors,
        ..Partial::default()
    };
    match sum(shared, collect).await {
        Ok(sums) => partial.sums = sums,
        Err(unsummed) => {
            shared.logger.warning(&unsummed.failure.to_string());
            partial.failure = Some(FailureMessage::from(&*unsummed.failure));
            let blame = unsummed.blame.iter().map(|(site, failure)| Blame {
                site: site.as_str().to_owned(),
                failure: Some(FailureMessage::from(failure)),
            });
            partial.blame = blame.collect();
        }
    }
    partial
}

async fn sum(shared: &Arc<Shared>, collect: Collect) -> Result<Option<Object>, Unsummed> {
    let until = Instant::now() + shared.durations.lease;
    let (locals, asked) = found(shared, &collect, until).await?;
    let kind = if collect.diff {
        UpdateKind::Diff
    } else {
        UpdateKind::Full
    };
    let options = Options {
        threads: shared.threads,
        ..shared.options.for_kind(kind)
    };
    // What the sites were given: the server says what it is, for those who came to
    // know of this job later.
    let base = match &collect.model {
        None => None,
        Some(object) => {
            let had = shared.have(object).await;
            let (_, plain) = had.map_err(|why| {
                let why = format!("the round's model could not be fetched: {why}");
                Failure::new(FailureCode::Internal, Phase::Aggregate, why)
            })?;
            Some((object.id, plain))
        }
    };
    let mut sums = Vec::new();
    for (relay, asked) in asked {
        let part = from_below(shared, &collect, &relay, &asked, (&base, &options)).await;
        let part = part.map_err(|mut unsummed| {
            // Whoever cannot be blamed alone is blamed with all below that relay.
            if unsummed.blame.is_empty() {
                let sites = asked.sites.iter();
                let failure = &unsummed.failure;
                unsummed.blame = sites
                    .map(|site| (site.clone(), (**failure).clone()))
                    .collect();
            }
            unsummed
        })?;
        sums.extend(part.map(|part| (relay, asked.sites, part)));
    }
    let objects = shared.objects.clone();
    let keys: Vec<TaskKey> = locals.iter().map(|local| local.key.clone()).collect();
    let work = move || fold(&objects, base.as_ref(), locals, sums, &options);
    let folded = tokio::task::spawn_blocking(work).await;
    let folded = folded.unwrap_or_else(|_| {
        let why = "the relay panicked while updates were summed";
        Err(Failure::new(FailureCode::Internal, Phase::Aggregate, why).into())
    })?;
    let Some(object) = folded else {
        return Ok(None);
    };
    let (round, attempt) = (Round(collect.round), collect.attempt);
    shared.state().held.summed(&keys, round, attempt);
    Ok(Some(if Shared::is_inline(object.len()) {
        Object {
            inline: Some(bytes::Bytes::copy_from_slice(object.bytes())),
            id: object.id().0,
            length: object.len(),
        }
    } else {
        let name = Offer::Update {
            round: collect.round,
            attempt,
        };
        shared.up.offer(name, &object)
    }))
}

/// Where the updates are: here, or below relays. Those of sites that are on their
/// way back are waited for.
async fn found(
    shared: &Arc<Shared>,
    collect: &Collect,
    until: Instant,
) -> Result<(Vec<Local>, BTreeMap<SiteName, Asked>), Unsummed> {
    let mut changed = shared.changed.subscribe();
    loop {
        changed.borrow_and_update();
        let mut locals = Vec::new();
        let mut asked: BTreeMap<SiteName, Asked> = BTreeMap::new();
        let mut missing = Vec::new();
        {
            let state = shared.state();
            for part in &collect.parts {
                let key = part.key.as_ref().map(TaskKey::try_from);
                let Some(Ok(key)) = key else {
                    let why = "the server asked for an update without its key";
                    let failure = Failure::new(FailureCode::Malformed, Phase::Aggregate, why);
                    return Err(failure.into());
                };
                match state.via.get(&key.site) {
                    Some(Some(relay)) => {
                        let asked = asked.entry(relay.clone()).or_insert_with(|| Asked {
                            parts: Vec::new(),
                            sites: Vec::new(),
                        });
                        asked.parts.push(part.clone());
                        asked.sites.push(key.site);
                    }
                    _ => match state.held.get(&key) {
                        Some(update) => locals.push(Local {
                            key,
                            weight: part.weight,
                            update: update.clone(),
                        }),
                        None => missing.push(key.site),
                    },
                }
            }
        }
        if missing.is_empty() {
            return Ok((locals, asked));
        }
        if timeout_at(until.into(), changed.changed()).await.is_err() {
            let why = "the relay does not have the site's update any more, and it was not sent again within the lease";
            let failure = Failure::new(FailureCode::Disconnected, Phase::Aggregate, why);
            let blame = missing.into_iter().map(|site| (site, failure.clone()));
            return Err(Unsummed {
                blame: blame.collect(),
                failure: Box::new(failure),
            });
        }
    }
}

/// What a relay below has summed; `None` when nothing of it counts.
async fn from_below(
    shared: &Arc<Shared>,
    collect: &Collect,
    relay: &SiteName,
    asked: &Asked,
    (base, options): (&Option<(u64, ModelObject)>, &Options),
) -> Result<Option<SumsObject>, Unsummed> {
    let carrier = shared.carrier(relay.as_str());
    let model = match &collect.model {
        None => None,
        Some(object) => {
            let given = shared.give(object, &carrier).await;
            let given =
                given.map_err(|why| Failure::new(FailureCode::Internal, Phase::Aggregate, why))?;
            Some(given.object)
        }
    };
    let below = Collect {
        parts: asked.parts.clone(),
        model,
        ..collect.clone()
    };
    let partial = told(shared, relay, below).await?;
    if let Some(failure) = partial.failure {
        let failure = Failure::from(failure);
        let blame = partial.blame.into_iter().filter_map(|blame| {
            let site = SiteName::new(&blame.site).ok()?;
            let own = blame.failure.map_or_else(|| failure.clone(), Failure::from);
            asked.sites.contains(&site).then_some((site, own))
        });
        return Err(Unsummed {
            blame: blame.collect(),
            failure: Box::new(failure),
        });
    }
    let keys: Vec<Key> = asked
        .parts
        .iter()
        .filter_map(|part| part.key.clone())
        .collect();
    if partial.contributors != keys {
        let why = format!("relay {relay} has summed other updates than it was asked for");
        return Err(Failure::new(FailureCode::Malformed, Phase::Aggregate, why).into());
    }
    let Some(object) = partial.sums else {
        return Ok(None);
    };
    let object = sums_of(shared, &carrier, collect, relay, object).await?;
    let weights: Vec<f64> = asked.parts.iter().map(|part| part.weight).collect();
    let (base, options) = (base.clone(), options.clone());
    let checking = tokio::task::spawn_blocking(move || {
        SumsObject::check(
            object,
            base.as_ref().map(|(_, base)| base),
            &options,
            &weights,
        )
    });
    let checked = checking.await.unwrap_or_else(|_| {
        let why = "the relay panicked while sums were checked";
        Err(Failure::new(FailureCode::Internal, Phase::Verify, why))
    });
    Ok(Some(checked?))
}

async fn sums_of(
    shared: &Arc<Shared>,
    carrier: &Arc<Remote>,
    collect: &Collect,
    relay: &SiteName,
    object: Object,
) -> Result<ModelObject, Failure> {
    if let Some(bytes) = &object.inline {
        let made = shared.objects.from_bytes(&bytes[..]);
        return made.map_err(|error| {
            let why = format!("what relay {relay} sent is no model: {}", sentence(&error));
            Failure::new(FailureCode::Malformed, Phase::Verify, why)
        });
    }
    let fetched = carrier.fetch(Order {
        name: format!("the sums of round {}", collect.round),
        part: PartName::of_update(&TaskKey {
            round: Round(collect.round),
            site: relay.clone(),
            attempt: Attempt(collect.attempt),
        }),
        whole: true,
        progress: Arc::new(Progress::new(object.length)),
        object,
    });
    match fetched.await {
        Ok(Fetched::Here(object)) => Ok(object),
        Ok(Fetched::Live(_)) => {
            let why = format!("there is no room for what relay {relay} has summed");
            Err(Failure::new(FailureCode::DiskFull, Phase::Verify, why))
        }
        Err(error) => Err(update::not_fetched(&error)),
    }
}

/// Asks a relay below until it has answered: again when it has connected anew.
async fn told(
    shared: &Arc<Shared>,
    relay: &SiteName,
    collect: Collect,
) -> Result<Partial, Failure> {
    let lease = shared.durations.lease;
    let mut until = Instant::now() + lease;
    let mut changed = shared.changed.subscribe();
    loop {
        changed.borrow_and_update();
        let answer = {
            let mut state = shared.state();
            state.relays.get_mut(relay).and_then(|below| {
                let (tell, answer) = oneshot::channel();
                below.waiting.insert((collect.round, collect.attempt), tell);
                let body = to_site::Body::Collect(collect.clone());
                below.say.try_send(body).is_ok().then_some(answer)
            })
        };
        if let Some(answer) = answer {
            // It waits for its sites for a lease itself; while it is connected, it
            // is waited for.
            if let Ok(partial) = answer.await {
                return Ok(partial);
            }
            until = Instant::now() + lease;
            continue;
        }
        if timeout_at(until.into(), changed.changed()).await.is_err() {
            let why = format!("relay {relay} below did not come back within its lease");
            return Err(Failure::new(
                FailureCode::Disconnected,
                Phase::Aggregate,
                why,
            ));
        }
    }
}

/// Sums; `None` when nothing counts.
fn fold(
    objects: &Objects,
    base: Option<&(u64, ModelObject)>,
    locals: Vec<Local>,
    sums: Vec<(SiteName, Vec<SiteName>, SumsObject)>,
    options: &Options,
) -> Result<Option<ModelObject>, Unsummed> {
    let mut blame = Vec::new();
    for local in &locals {
        let checked = update::intact(&local.update.model, Phase::Aggregate);
        // What was checked against this very model is not looked at again.
        let known = base.is_some_and(|(id, _)| local.update.checked == Some(*id));
        let checked = checked.and_then(|()| match known {
            true => Ok(()),
            false => update::check(&local.update.model, base.map(|(_, base)| base), options),
        });
        if let Err(failure) = checked {
            blame.push((local.key.site.clone(), failure));
        }
    }
    if let Some((site, failure)) = blame.first() {
        let mut failure = failure.clone();
        failure.message = format!("{site}: {}", failure.message);
        let failure = Box::new(failure);
        return Err(Unsummed { failure, blame });
    }
    let direct = locals.iter().map(|local| Contribution {
        site: local.key.site.as_str(),
        weight: local.weight,
        header: local.update.model.header(),
        data: Data::Mapped(local.update.model.bytes()),
    });
    let below = sums
        .iter()
        .map(|(relay, _, sums)| sums.contribution(relay.as_str()));
    let contributions: Vec<_> = direct.chain(below).collect();
    let failed = |error: AggregateError| {
        let mut failure =
            Failure::new(FailureCode::KeyMismatch, Phase::Aggregate, sentence(&error));
        failure.hint = error.hint().unwrap_or_default();
        let mut blame = Vec::new();
        if let AggregateError::Update { site, problem } = &error {
            let own = update::refused(std::slice::from_ref(problem));
            let here = locals.iter().map(|local| &local.key.site);
            let here = here.filter(|name| name.as_str() == site);
            let below = sums.iter().filter(|(relay, _, _)| relay.as_str() == site);
            let all = here.chain(below.flat_map(|(_, sites, _)| sites));
            blame.extend(all.map(|name| (name.clone(), own.clone())));
        }
        let failure = Box::new(failure);
        Unsummed { failure, blame }
    };
    let plan = match plan_sums(&contributions, base.map(|(_, base)| view(base)), options) {
        Ok(plan) => plan,
        Err(AggregateError::NoWeight { .. } | AggregateError::Nothing) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let stored = |error: &dyn std::error::Error, full: bool| {
        let code = if full {
            FailureCode::DiskFull
        } else {
            FailureCode::Internal
        };
        Failure::new(code, Phase::Aggregate, sentence(error))
    };
    let mut output = objects
        .output(plan.output_len())
        .map_err(|error| stored(&error, error.is_full()))?;
    plan.fold(output.bytes_mut()).map_err(failed)?;
    let object = output.finish().map_err(|error| stored(&error, false))?;
    Ok(Some(object))
}
