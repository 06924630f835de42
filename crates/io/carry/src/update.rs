//! Updates as whoever sums them takes them in: out of the form in which they
//! travelled, and checked.

use firesteel_aggregate::{
    Contribution, Exclude, Method, Model, Options, SimdLevel, Sums, UpdateKind, Wide,
    failure as failure_of, verify, verify_sums,
};
use firesteel_base::{Failure, FailureCode, Hint, Phase};
use firesteel_store::{ModelObject, Objects, Spool};
use firesteel_wire::spec::{self, JobSpec};

use crate::{CarryError, filter};

/// How a job's updates are checked, and summed when there are more threads. Made
/// once: patterns are compiled for it.
pub fn options(spec: &JobSpec) -> Options {
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

/// A model as those who calculate see it.
pub fn view(object: &ModelObject) -> Model<'_> {
    Model {
        header: object.header(),
        bytes: object.bytes(),
    }
}

/// An update that is here, as it was before its site's filters.
///
/// # Errors
/// The site's failure.
pub fn decoded(
    update: ModelObject,
    objects: &Objects,
    spool: Option<&Spool>,
) -> Result<ModelObject, Failure> {
    match filter::decode(objects, spool, &update) {
        Ok(decoded) => Ok(decoded.unwrap_or(update)),
        Err(error) => Err(error.failure(Phase::Verify)),
    }
}

/// Checks an update that is here against the model that was handed out.
///
/// # Errors
/// The site's failure.
pub fn check(
    update: &ModelObject,
    base: Option<&ModelObject>,
    options: &Options,
) -> Result<(), Failure> {
    intact(update, Phase::Verify)?;
    verify(view(update), base.map(ModelObject::header), options)
        .map_err(|problems| refused(&problems))
}

/// What problems there are, as the failure of whoever sent it.
pub fn refused(problems: &[firesteel_aggregate::VerifyProblem]) -> Failure {
    failure_of(problems).unwrap_or_else(|| {
        Failure::new(
            FailureCode::Malformed,
            Phase::Verify,
            "the update was refused",
        )
    })
}

/// Whether what is here is as it was received: a mapping of a file that somebody
/// has cut must not be walked through.
///
/// # Errors
/// The failure of whoever sent it.
pub fn intact(update: &ModelObject, phase: Phase) -> Result<(), Failure> {
    let Err(error) = update.check_intact() else {
        return Ok(());
    };
    let message = format!("the update cannot be read any more: {}", sentence(&error));
    Err(Failure::new(FailureCode::Malformed, phase, message)
        .with_hint(error.hint().unwrap_or_default()))
}

/// A relay's sums, as they arrived.
#[derive(Debug, Clone)]
pub struct SumsObject {
    object: ModelObject,
    sums: Sums,
}

impl SumsObject {
    /// Checks what a relay has summed: against the model that was handed out, and
    /// that it is of the updates of as many sites, which count as much, as it was
    /// asked for.
    ///
    /// # Errors
    /// The relay's failure.
    pub fn check(
        object: ModelObject,
        base: Option<&ModelObject>,
        options: &Options,
        weights: &[f64],
    ) -> Result<Self, Failure> {
        let malformed = |why: String| Failure::new(FailureCode::Malformed, Phase::Verify, why);
        intact(&object, Phase::Verify)?;
        let sums = Sums::of(object.header())
            .map_err(|error| malformed(format!("what the relay summed is of no use: {error}")))?;
        let counted = sums.counted();
        // As a fold takes them.
        let rounded = weights.iter().map(|weight| f64::from(*weight as f32));
        let rounded: Vec<f64> = rounded.filter(|weight| *weight > 0.0).collect();
        let (sites, weight) = (rounded.len(), rounded.iter().sum::<f64>());
        // Relays below relays add in another order.
        let close = (counted.weight - weight).abs() <= weight * 1e-9;
        if counted.sites != sites || !close {
            return Err(malformed(format!(
                "the relay was to sum {sites} updates with a weight of {weight} together, and its sums tell of {} with {}",
                counted.sites, counted.weight
            )));
        }
        let base = base.map(ModelObject::header);
        verify_sums(&sums, object.bytes(), base, options).map_err(|problems| refused(&problems))?;
        Ok(Self { object, sums })
    }

    /// As one contribution to a fold.
    pub fn contribution<'a>(&'a self, relay: &'a str) -> Contribution<'a> {
        self.sums.from(relay, self.object.bytes())
    }

    /// How many sites' updates are in it.
    pub fn sites(&self) -> usize {
        self.sums.counted().sites
    }

    /// Bytes of it.
    pub fn size(&self) -> u64 {
        self.object.len()
    }
}

/// A model that did not arrive, as the failure of whoever offered it.
pub fn not_fetched(error: &CarryError) -> Failure {
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

/// The error and its sources as one sentence.
pub fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use firesteel_aggregate::{Data, plan_sums};
    use firesteel_tensor::{DType, HeaderBuilder};

    use super::*;

    fn model(objects: &Objects, values: [f32; 2]) -> ModelObject {
        let mut builder = HeaderBuilder::new();
        builder.tensor("w", DType::F32, &[2]);
        let (mut bytes, _) = builder.encode().unwrap();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        objects.from_bytes(bytes).unwrap()
    }

    #[test]
    fn sums_of_other_updates_than_were_asked_for_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::open(folder.path()).unwrap();
        let updates = [[1.0, 2.0], [3.0, 4.0]].map(|values| model(&objects, values));
        let contributions = updates
            .iter()
            .zip(["a", "b"])
            .map(|(update, site)| Contribution {
                site,
                weight: 3.0,
                header: update.header(),
                data: Data::Mapped(update.bytes()),
            });
        let contributions: Vec<_> = contributions.collect();
        let options = Options::mean();
        let base = model(&objects, [0.0; 2]);
        let plan = plan_sums(&contributions, Some(view(&base)), &options).unwrap();
        let mut output = objects.output(plan.output_len()).unwrap();
        plan.fold(output.bytes_mut()).unwrap();
        let sums = output.finish().unwrap();
        let check = |weights: &[f64]| {
            SumsObject::check(sums.clone(), Some(&base), &options, weights).map(|sums| sums.sites())
        };
        assert_eq!(check(&[3.0, 3.0]).unwrap(), 2);
        for weights in [&[3.0][..], &[3.0, 3.0, 3.0], &[3.0, 4.0], &[6.0]] {
            let failure = check(weights).unwrap_err();
            assert_eq!(failure.code, FailureCode::Malformed);
            assert!(
                failure.message.contains("the relay was to sum"),
                "{failure}"
            );
        }
        // An update is no sum.
        let failure = SumsObject::check(base.clone(), None, &options, &[1.0]).unwrap_err();
        assert!(failure.message.contains("of no use"), "{failure}");
    }
}
