//! Checking an update, and summing a round's.

use std::collections::HashMap;
use std::sync::Arc;

use firesteel_aggregate::{
    AggregateError, Cast, Contribution, Data, Options, UpdateKind, plan, verify_live,
};
use firesteel_base::{Failure, FailureCode, Hint, Phase, SiteName, TaskKey, limits};
use firesteel_carry::{LiveModel, filter, update};
use firesteel_flow::{FoldRequest, ModelHandle, ParamsType};
use firesteel_store::{ModelObject, Objects, Spool};
use firesteel_tensor::ModelHeader;

use crate::relays::Part;

pub(crate) use firesteel_carry::update::{not_fetched, options, sentence, view};

/// What a fold came to: a model, or why there is none and whose fault it is.
pub(crate) type Refolded = Result<Folded, (Failure, Vec<(SiteName, Failure)>)>;

/// A round's new model.
pub(crate) struct Folded {
    pub(crate) model: ModelObject,
    pub(crate) notes: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

/// A model that the workflow knows by a handle.
#[derive(Clone)]
pub(crate) enum Held {
    /// It is here.
    Here(ModelObject),
    /// It is an update that stays at its site until it is folded.
    Live(Arc<LiveModel>),
    /// It is an update that a relay holds, which sums it with others.
    Below(TaskKey),
}

impl Held {
    /// The model, unless it is elsewhere.
    pub(crate) fn here(&self) -> Option<&ModelObject> {
        match self {
            Self::Here(object) => Some(object),
            Self::Live(_) | Self::Below(_) => None,
        }
    }

    /// Whether reading it takes time.
    pub(crate) fn is_large(&self) -> bool {
        self.here()
            .is_none_or(|object| object.len() > limits::INLINE_OBJECT as u64)
    }

    /// Whether it is in a form in which updates only travel.
    pub(crate) fn is_encoded(&self) -> bool {
        self.here().is_some_and(filter::is_encoded)
    }

    /// Its header and what it holds; `None` when it is below a relay.
    fn data(&self) -> Option<(&ModelHeader, Data<'_>)> {
        match self {
            Self::Here(object) => Some((object.header(), Data::Mapped(object.bytes()))),
            Self::Live(live) => Some((
                live.header(),
                Data::Live {
                    source: &**live,
                    facts: live.facts(),
                },
            )),
            Self::Below(_) => None,
        }
    }
}

/// A fold, ready to be run on whatever thread.
pub(crate) struct Folding {
    objects: Objects,
    base: Option<ModelObject>,
    inputs: Vec<(SiteName, f64, Held)>,
    /// What relays have summed.
    parts: Vec<Part>,
    options: Options,
}

/// Updates that together have fewer bytes than this are summed in the loop.
const SMALL: u64 = 4 * limits::INLINE_OBJECT as u64;

/// Checks one update against the model that was handed out.
pub(crate) fn verify(
    update: &Held,
    base: Option<&ModelObject>,
    options: &Options,
) -> Result<(), Failure> {
    match update {
        Held::Here(object) => update::check(object, base, options),
        Held::Live(live) => {
            let base = base.map(ModelObject::header);
            verify_live(live.header(), live.facts(), base, options)
                .map_err(|problems| update::refused(&problems))
        }
        // Its relay has.
        Held::Below(_) => Ok(()),
    }
}

/// An update as it was before its site's filters.
pub(crate) fn decoded(
    update: Held,
    objects: &Objects,
    spool: Option<&Spool>,
) -> Result<Held, Failure> {
    match update {
        Held::Here(object) => update::decoded(object, objects, spool).map(Held::Here),
        Held::Live(live) if live.is_encoded() => {
            let why = "there is no room for the update, and what went through filters cannot be read from its site while it is folded";
            Err(Failure::new(FailureCode::DiskFull, Phase::Verify, why)
                .with_hint("give the server's spool a larger budget, or its disk more room"))
        }
        other => Ok(other),
    }
}

/// The model as trainers see it: in the dtypes of `like`.
pub(crate) fn narrowed(
    objects: &Objects,
    model: &ModelObject,
    like: &ModelObject,
) -> Result<ModelObject, Failure> {
    let failed = |problem: String| {
        Failure::new(
            FailureCode::Internal,
            Phase::Aggregate,
            format!("the model cannot be cast back to its own dtypes: {problem}"),
        )
    };
    let cast = Cast::new(view(model), like.header()).map_err(|error| failed(sentence(&error)))?;
    let mut output = objects
        .output(cast.header().total_len())
        .map_err(|error| failed(sentence(&error)))?;
    cast.write(output.bytes_mut())
        .map_err(|error| failed(sentence(&error)))?;
    output.finish().map_err(|error| failed(sentence(&error)))
}

impl Folding {
    /// Takes hold of everything that a fold needs; `parts` is what stands for the
    /// updates that relays hold.
    pub(crate) fn new(
        objects: &Objects,
        models: &HashMap<ModelHandle, Held>,
        (request, parts): (FoldRequest, Vec<Part>),
        options: &Options,
        threads: usize,
    ) -> Result<Self, Failure> {
        let gone = |what: String| {
            Failure::new(
                FailureCode::Internal,
                Phase::Aggregate,
                format!("{what} is gone"),
            )
        };
        let base = match request.base {
            None => None,
            Some(handle) => Some(
                models
                    .get(&handle)
                    .and_then(Held::here)
                    .cloned()
                    .ok_or_else(|| gone("the round's model".to_owned()))?,
            ),
        };
        let diff = request
            .inputs
            .first()
            .is_some_and(|input| input.params_type == ParamsType::Diff);
        let inputs = request.inputs.into_iter().map(|input| {
            let object = models.get(&input.model).cloned();
            let object = object.ok_or_else(|| gone(format!("the update of {}", input.site)))?;
            Ok((input.site, input.weight, object))
        });
        let kind = if diff {
            UpdateKind::Diff
        } else {
            UpdateKind::Full
        };
        Ok(Self {
            objects: objects.clone(),
            base,
            inputs: inputs.collect::<Result<_, Failure>>()?,
            parts,
            options: Options {
                threads,
                ..options.for_kind(kind)
            },
        })
    }

    pub(crate) fn is_small(&self) -> bool {
        let direct = self.inputs.iter().map(|(_, _, held)| match held {
            Held::Here(object) => object.len(),
            Held::Live(_) => u64::MAX,
            Held::Below(_) => 0,
        });
        let summed = self.parts.iter().map(|part| part.sums.size());
        direct.chain(summed).fold(0, u64::saturating_add) <= SMALL
    }

    /// Sums.
    #[expect(clippy::result_large_err, reason = "once per round")]
    pub(crate) fn run(self) -> Refolded {
        self.intact()?;
        let direct = self.inputs.iter().filter_map(|(site, weight, object)| {
            let (header, data) = object.data()?;
            Some(Contribution {
                site: site.as_str(),
                weight: *weight,
                header,
                data,
            })
        });
        let summed = self.parts.iter();
        let summed = summed.map(|part| part.sums.contribution(part.relay.as_str()));
        let contributions: Vec<Contribution<'_>> = direct.chain(summed).collect();
        let base = self.base.as_ref().map(view);
        let plan = plan(&contributions, base, &self.options).map_err(|error| self.blame(&error))?;
        let stored = |error: &dyn std::error::Error, hint: Option<String>, full: bool| {
            let code = if full {
                FailureCode::DiskFull
            } else {
                FailureCode::Internal
            };
            let failure = Failure::new(code, Phase::Aggregate, sentence(error));
            (failure.with_hint(hint.unwrap_or_default()), Vec::new())
        };
        let mut output = self
            .objects
            .output(plan.output_len())
            .map_err(|error| stored(&error, error.hint(), error.is_full()))?;
        let report = plan
            .fold(output.bytes_mut())
            .map_err(|error| self.blame(&error))?;
        let model = output
            .finish()
            .map_err(|error| stored(&error, error.hint(), false))?;
        let through = self.parts.iter().map(|part| {
            let sites = part.sums.sites();
            format!("relay {} summed the updates of {sites} sites", part.relay)
        });
        let notes = report
            .partial
            .iter()
            .take(NOTES)
            .map(|partial| {
                format!(
                    "`{}` was averaged over {} of {} sites",
                    partial.key, partial.sites, report.sites
                )
            })
            .chain((report.partial.len() > NOTES).then(|| {
                format!(
                    "{} more keys were averaged over some of the sites",
                    report.partial.len() - NOTES
                )
            }))
            .chain(through)
            .collect();
        Ok(Folded {
            model,
            notes,
            warnings: report.warnings,
        })
    }

    /// Whether everything that is here can be read.
    #[expect(clippy::result_large_err, reason = "once per round")]
    fn intact(&self) -> Result<(), (Failure, Vec<(SiteName, Failure)>)> {
        if let Some(Err(error)) = self.base.as_ref().map(ModelObject::check_intact) {
            let message = format!(
                "the round's model cannot be read any more: {}",
                sentence(&error)
            );
            let failure = Failure::new(FailureCode::Internal, Phase::Aggregate, message)
                .with_hint(error.hint().unwrap_or_default());
            return Err((failure, Vec::new()));
        }
        let blamed: Vec<_> = self
            .inputs
            .iter()
            .filter_map(|(site, _, held)| {
                let failure = update::intact(held.here()?, Phase::Aggregate).err()?;
                Some((site.clone(), failure))
            })
            .collect();
        match blamed.first() {
            None => Ok(()),
            Some((site, failure)) => {
                let mut first = failure.clone();
                first.message = format!("{site}: {}", failure.message);
                Err((first, blamed))
            }
        }
    }

    /// The failure, and the sites without which the fold may succeed.
    fn blame(&self, error: &AggregateError) -> (Failure, Vec<(SiteName, Failure)>) {
        let mut failure = Failure::new(FailureCode::KeyMismatch, Phase::Aggregate, sentence(error));
        failure.hint = error.hint().unwrap_or_default();
        let AggregateError::Update { site, problem } = error else {
            return (failure, Vec::new());
        };
        let own = firesteel_aggregate::failure(std::slice::from_ref(problem))
            .unwrap_or_else(|| failure.clone());
        let blamed = self
            .inputs
            .iter()
            .filter(|(name, _, _)| name.as_str() == site)
            .map(|(name, _, _)| name);
        let relays = self.parts.iter().filter(|part| part.relay.as_str() == site);
        let blamed = blamed.chain(relays.flat_map(|part| &part.sites));
        let blamed = blamed.map(|name| (name.clone(), own.clone())).collect();
        (failure, blamed)
    }
}

/// Keys that a round's record names one by one.
const NOTES: usize = 16;
