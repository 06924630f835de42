//! Checking an update, and summing a round's.

use std::collections::HashMap;
use std::sync::Arc;

use firesteel_aggregate::{
    AggregateError, Cast, Contribution, Data, Exclude, Method, Model, Options, SimdLevel,
    UpdateKind, Wide, plan, verify as verify_update, verify_live,
};
use firesteel_base::{Failure, FailureCode, Hint, Phase, SiteName, limits};
use firesteel_carry::{CarryError, LiveModel, filter};
use firesteel_flow::{FoldRequest, ModelHandle, ParamsType};
use firesteel_store::{ModelObject, Objects, Spool};
use firesteel_tensor::ModelHeader;
use firesteel_wire::spec::{self, JobSpec};

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
}

impl Held {
    /// The model, unless it is elsewhere.
    pub(crate) fn here(&self) -> Option<&ModelObject> {
        match self {
            Self::Here(object) => Some(object),
            Self::Live(_) => None,
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

    fn header(&self) -> &ModelHeader {
        match self {
            Self::Here(object) => object.header(),
            Self::Live(live) => live.header(),
        }
    }

    fn data(&self) -> Data<'_> {
        match self {
            Self::Here(object) => Data::Mapped(object.bytes()),
            Self::Live(live) => Data::Live {
                source: &**live,
                facts: live.facts(),
            },
        }
    }
}

/// A fold, ready to be run on whatever thread.
pub(crate) struct Folding {
    objects: Objects,
    base: Option<ModelObject>,
    inputs: Vec<(SiteName, f64, Held)>,
    options: Options,
}

/// Updates that together have fewer bytes than this are summed in the loop.
const SMALL: u64 = 4 * limits::INLINE_OBJECT as u64;

/// How the job's updates are checked, and summed when there are more threads. Made
/// once: patterns are compiled for it.
pub(crate) fn options(spec: &JobSpec) -> Options {
    let aggregation = &spec.aggregation;
    Options {
        method: match aggregation.method {
            spec::Method::Mean => Method::Mean,
            spec::Method::Median => Method::Median,
            spec::Method::TrimmedMean => Method::TrimmedMean(aggregation.trim),
        },
        kind: UpdateKind::Full,
        exclude: Exclude::new(&aggregation.exclude).expect("checked when the spec was parsed"),
        master_dtype: match aggregation.master_dtype.as_deref() {
            Some("float32") => Some(Wide::F32),
            Some("float64") => Some(Wide::F64),
            _ => None,
        },
        threads: 1,
        simd: SimdLevel::new(),
    }
}

/// Checks one update against the model that was handed out.
pub(crate) fn verify(
    update: &Held,
    base: Option<&ModelObject>,
    options: &Options,
) -> Result<(), Failure> {
    intact(update, Phase::Verify)?;
    let base = base.map(ModelObject::header);
    let verified = match update {
        Held::Here(object) => verify_update(view(object), base, options),
        Held::Live(live) => verify_live(live.header(), live.facts(), base, options),
    };
    verified.map_err(|problems| {
        firesteel_aggregate::failure(&problems).unwrap_or_else(|| {
            Failure::new(
                FailureCode::Malformed,
                Phase::Verify,
                "the update was refused",
            )
        })
    })
}

/// Whether what is here is as it was received: a mapping of a file that somebody
/// has cut must not be walked through.
fn intact(update: &Held, phase: Phase) -> Result<(), Failure> {
    let Some(Err(error)) = update.here().map(ModelObject::check_intact) else {
        return Ok(());
    };
    let message = format!("the update cannot be read any more: {}", sentence(&error));
    Err(Failure::new(FailureCode::Malformed, phase, message)
        .with_hint(error.hint().unwrap_or_default()))
}

/// An update as it was before its site's filters.
pub(crate) fn decoded(
    update: Held,
    objects: &Objects,
    spool: Option<&Spool>,
) -> Result<Held, Failure> {
    let decoded = match &update {
        Held::Here(object) => filter::decode(objects, spool, object),
        Held::Live(live) if live.is_encoded() => {
            let why = "there is no room for the update, and what went through filters cannot be read from its site while it is folded";
            return Err(Failure::new(FailureCode::DiskFull, Phase::Verify, why)
                .with_hint("give the server's spool a larger budget, or its disk more room"));
        }
        Held::Live(_) => return Ok(update),
    };
    match decoded {
        Ok(decoded) => Ok(decoded.map_or(update, Held::Here)),
        Err(error) => Err(error.failure(Phase::Verify)),
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

fn view(object: &ModelObject) -> Model<'_> {
    Model {
        header: object.header(),
        bytes: object.bytes(),
    }
}

impl Folding {
    /// Takes hold of everything that a fold needs.
    pub(crate) fn new(
        objects: &Objects,
        models: &HashMap<ModelHandle, Held>,
        request: FoldRequest,
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
            options: Options {
                threads,
                ..options.for_kind(kind)
            },
        })
    }

    pub(crate) fn is_small(&self) -> bool {
        let here = self.inputs.iter().map(|(_, _, held)| held.here());
        here.map(|object| object.map_or(u64::MAX, ModelObject::len))
            .fold(0, u64::saturating_add)
            <= SMALL
    }

    /// Sums.
    #[expect(clippy::result_large_err, reason = "once per round")]
    pub(crate) fn run(self) -> Refolded {
        self.intact()?;
        let contributions: Vec<Contribution<'_>> = self
            .inputs
            .iter()
            .map(|(site, weight, object)| Contribution {
                site: site.as_str(),
                weight: *weight,
                header: object.header(),
                data: object.data(),
            })
            .collect();
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
                let failure = intact(held, Phase::Aggregate).err()?;
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
            .filter(|(name, _, _)| name.as_str() == site);
        let blamed = blamed
            .map(|(name, _, _)| (name.clone(), own.clone()))
            .collect();
        (failure, blamed)
    }
}

/// A model that did not arrive, as the site's failure.
pub(crate) fn not_fetched(error: &CarryError) -> Failure {
    let code = if error.is_full() {
        FailureCode::DiskFull
    } else {
        FailureCode::Malformed
    };
    let message = match error {
        CarryError::Gone { .. } => "the update was gone before it could be fetched".to_owned(),
        other => format!("the update could not be fetched: {}", sentence(other)),
    };
    Failure::new(code, Phase::Verify, message).with_hint(error.hint().unwrap_or_default())
}

/// Keys that a round's record names one by one.
const NOTES: usize = 16;

/// The error and its sources as one sentence.
pub(crate) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
