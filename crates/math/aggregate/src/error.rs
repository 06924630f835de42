//! Why a fold was refused.

use firesteel_base::Hint;
use firesteel_tensor::HeaderError;

use crate::VerifyProblem;

/// Why no model came out of the updates.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AggregateError {
    /// Not one update.
    #[error("there is no update to aggregate")]
    Nothing,
    /// Differences, but nothing to add them to.
    #[error("updates of kind DIFF need the model that they are differences to")]
    DiffWithoutModel,
    /// A trim that leaves nothing, or is no number.
    #[error("a trimmed mean takes at least 0 and less than 0.5 off each end, not {fraction}")]
    Trim {
        /// What was asked for.
        fraction: f64,
    },
    /// A weight that cannot be one.
    #[error("{site} has the weight {weight}, which is not a number from 0 to 3.4e38")]
    Weight {
        /// The site.
        site: String,
        /// Its weight.
        weight: f64,
    },
    /// Every site's weight is zero.
    #[error("the weights of all {sites} sites are zero")]
    NoWeight {
        /// How many there are.
        sites: usize,
    },
    /// The bytes are not the file that the header is of.
    #[error("{owner} has {length} bytes, but the header describes {expected}")]
    Length {
        /// The site, or `the model`.
        owner: String,
        /// Bytes there are.
        length: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// The method has to have every update as a file.
    #[error(
        "the {method} needs every update on the server's disk, and that of {site} is still at its site"
    )]
    NeedsSpooled {
        /// The method.
        method: &'static str,
        /// The first such site.
        site: String,
    },
    /// The method cannot go on with sums.
    #[error("the {method} needs the update of every site, and {site} is not one")]
    NoSums {
        /// The method.
        method: &'static str,
        /// Whose contribution it is.
        site: String,
    },
    /// Whole models here and differences there.
    #[error("{site} sums updates of the other kind: all must be FULL, or all DIFF")]
    OtherKind {
        /// The relay.
        site: String,
    },
    /// An update that was read from its site could not be read to its end.
    #[error("the update of {site} could not be read to its end: {problem}")]
    Live {
        /// The site.
        site: String,
        /// What its reader said.
        problem: String,
    },
    /// An update does not fit the model, or the first update.
    #[error("{site}: {problem}")]
    Update {
        /// The site.
        site: String,
        /// What does not fit.
        problem: VerifyProblem,
    },
    /// Bools that are not the same everywhere.
    #[error("the bool tensor `{tensor}` has other values at {odd} than at {first}")]
    BoolsDiffer {
        /// The tensor.
        tensor: String,
        /// The sites whose values differ, joined.
        odd: String,
        /// The first site that sent it.
        first: String,
    },
    /// Values of the params that have no mean and are not the same everywhere.
    #[error("the {kind} at `{path}` is another at {odd} than at {first}")]
    ValuesDiffer {
        /// Where in the params.
        path: String,
        /// What the first site has there.
        kind: &'static str,
        /// The sites whose values differ, joined.
        odd: String,
        /// The first site that sent it.
        first: String,
    },
    /// The result has values that its dtype cannot hold.
    #[error("the aggregate of `{key}`: {count} of {elements} values are NaN or Inf")]
    NotFinite {
        /// The tensor or the path.
        key: String,
        /// How many.
        count: u64,
        /// Of how many.
        elements: u64,
    },
    /// A key inside a list is excluded, and there is no model to take it from.
    #[error(
        "`{key}` cannot be excluded: it is an item of a list, and there is no model to keep it from"
    )]
    ExcludedItem {
        /// The key.
        key: String,
    },
    /// The result cannot be laid out as a model file.
    #[error("the aggregate cannot be written")]
    Header(#[from] HeaderError),
    /// The output has another length than the plan says.
    #[error("the output has {length} bytes, the aggregate needs {expected}")]
    Output {
        /// Bytes there are.
        length: u64,
        /// Bytes there should be.
        expected: u64,
    },
}

impl Hint for AggregateError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::DiffWithoutModel => "give an initial model, or let the sites send FULL params",
            Self::NoWeight { .. } => {
                "set NUM_STEPS_CURRENT_ROUND in the update's meta, or the site weights of the job, above zero"
            }
            Self::Weight { .. } => "see NUM_STEPS_CURRENT_ROUND and the job's site weights",
            Self::BoolsDiffer { tensor, .. } => {
                return Some(format!(
                    "exclude `{tensor}` from the aggregation, or send it as a float"
                ));
            }
            Self::ValuesDiffer { path, .. } => {
                return Some(format!(
                    "exclude `{path}` from the aggregation, or leave it out of params"
                ));
            }
            Self::NotFinite { .. } => {
                "the values outgrew their dtype; lower the learning rate or set `master_dtype`"
            }
            Self::NeedsSpooled { .. } => {
                "give the spool more room, or aggregate by the mean, which takes updates straight from their sites"
            }
            Self::NoSums { .. } => {
                "use the hierarchy `splice` or `cache`, or aggregate by the mean"
            }
            Self::ExcludedItem { .. } => "give an initial model, or send a dict",
            Self::Header(error) => return error.hint(),
            Self::Update { problem, .. } => return problem.hint(),
            _ => return None,
        };
        Some(text.into())
    }
}
