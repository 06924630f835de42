//! One update against the model, before it may count.

use firesteel_base::{Failure, FailureCode, Hint, Phase};
use firesteel_tensor::text::{shape as shown_shape, shown};
use firesteel_tensor::{DType, ModelHeader, TensorInfo, Tree, check_finite};

use crate::options::{Model, Options, Wide};
use crate::scalar::scalars;

/// What is wrong with an update. Each renders as a sentence without a full stop
/// that can stand after `site-3: `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyProblem {
    /// The bytes are not the file that the header is of.
    #[error("the update has {length} bytes, but its header describes {expected}")]
    Length {
        /// Bytes there are.
        length: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// A tensor that the model lacks.
    #[error("tensor `{tensor}` is not in the model")]
    UnknownTensor {
        /// The tensor.
        tensor: String,
    },
    /// A value of the params that the model lacks.
    #[error("the {kind} at `{path}` is not in the model")]
    UnknownValue {
        /// Where in the params.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// A value of the params that is of another kind than the model's.
    #[error("the value at `{path}` is of type {found}, the model has {expected}")]
    ValueKind {
        /// Where in the params.
        path: String,
        /// What the update has.
        found: &'static str,
        /// What the model has.
        expected: &'static str,
    },
    /// Not one key of the model.
    #[error("the update has none of the model's {keys} keys{}{sent}", if sent.is_empty() { "" } else { "; it has " })]
    NothingInCommon {
        /// How many the model has.
        keys: usize,
        /// The update's own keys, joined; empty when it has none.
        sent: String,
    },
    /// Another shape.
    #[error("tensor `{tensor}` has shape {found}, the model has {expected}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The update's, as shown.
        found: String,
        /// The model's, as shown.
        expected: String,
    },
    /// Another dtype.
    #[error("tensor `{tensor}` is {found}, the model has {expected}")]
    DType {
        /// The tensor.
        tensor: String,
        /// The update's.
        found: DType,
        /// The model's.
        expected: DType,
    },
    /// NaN or infinity in a tensor.
    #[error("tensor `{tensor}`: {count} of {elements} values are NaN or Inf")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// How many elements.
        count: u64,
        /// Of how many.
        elements: u64,
    },
    /// NaN or infinity as a value of the params.
    #[error("the value at `{path}` is {value}")]
    ValueNotFinite {
        /// Where in the params.
        path: String,
        /// The value, as Python shows it.
        value: String,
    },
    /// Bytes of a bool tensor that are neither 0 nor 1.
    #[error("tensor `{tensor}`: {count} of {elements} values are neither true nor false")]
    NotBool {
        /// The tensor.
        tensor: String,
        /// How many elements.
        count: u64,
        /// Of how many.
        elements: u64,
    },
}

impl VerifyProblem {
    /// The failure's stable code.
    pub fn code(&self) -> FailureCode {
        match self {
            Self::Length { .. } | Self::NotBool { .. } => FailureCode::Malformed,
            Self::UnknownTensor { .. }
            | Self::UnknownValue { .. }
            | Self::ValueKind { .. }
            | Self::NothingInCommon { .. } => FailureCode::KeyMismatch,
            Self::Shape { .. } => FailureCode::ShapeMismatch,
            Self::DType { .. } => FailureCode::DtypeMismatch,
            Self::NotFinite { .. } | Self::ValueNotFinite { .. } => FailureCode::NotFinite,
        }
    }
}

impl Hint for VerifyProblem {
    fn hint(&self) -> Option<String> {
        let text = match self.code() {
            FailureCode::NotFinite => {
                "the training diverged at this site; lower its learning rate or clip its gradients"
            }
            FailureCode::ShapeMismatch => {
                "every site must build the same network; exclude the tensor if it is meant to differ"
            }
            FailureCode::DtypeMismatch => {
                "send the params in the dtype in which they were received"
            }
            FailureCode::KeyMismatch => {
                "send the params with the keys under which they were received, or fewer"
            }
            _ => return None,
        };
        Some(text.into())
    }
}

/// Checks one update: keys, shapes and dtypes against the model, if there is one,
/// and that every number is finite. Excluded keys are not looked at.
///
/// # Errors
/// Everything that is wrong, first to last; [`failure`] makes one message of it.
pub fn verify(
    update: Model<'_>,
    model: Option<&ModelHeader>,
    options: &Options,
) -> Result<(), Vec<VerifyProblem>> {
    let length = update.bytes.len() as u64;
    let expected = update.header.total_len();
    if length != expected {
        return Err(vec![VerifyProblem::Length { length, expected }]);
    }
    let mut problems = Vec::new();
    if let Some(model) = model {
        check_keys(update.header, model, options, &mut problems);
        check_values(update.header, model, options, &mut problems);
    }
    check_numbers(update, options, &mut problems);
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

/// One failure of the update's site: the first problem in full, the number of the
/// others. `None` when there are no problems.
pub fn failure(problems: &[VerifyProblem]) -> Option<Failure> {
    let first = problems.first()?;
    let message = match problems.len() {
        1 => first.to_string(),
        2 => format!("{first} (and one more problem)"),
        count => format!("{first} (and {} more problems)", count - 1),
    };
    let failure = Failure::new(first.code(), Phase::Verify, message);
    Some(match first.hint() {
        Some(hint) => failure.with_hint(hint),
        None => failure,
    })
}

/// Whether a tensor may be folded into the model's; what is wrong if not. A model
/// that the server keeps wide takes the narrow floats that the sites work in.
pub(crate) fn misfit(
    update: &TensorInfo,
    shape: &[u64],
    dtype: DType,
    wide: Option<Wide>,
) -> Option<VerifyProblem> {
    if update.shape != shape {
        return Some(VerifyProblem::Shape {
            tensor: shown(&update.name),
            found: shown_shape(&update.shape),
            expected: shown_shape(shape),
        });
    }
    let narrower = || Wide::widened(wide, update.dtype) == dtype;
    if update.dtype != dtype && !narrower() {
        return Some(VerifyProblem::DType {
            tensor: shown(&update.name),
            found: update.dtype,
            expected: dtype,
        });
    }
    None
}

fn check_keys(
    update: &ModelHeader,
    model: &ModelHeader,
    options: &Options,
    problems: &mut Vec<VerifyProblem>,
) {
    let mut known = 0;
    for tensor in update.tensors() {
        if options.exclude.contains(&tensor.name) {
            known += 1;
            continue;
        }
        // The update may know the tensor by a name that the model has as an alias.
        let by_alias = || {
            let mut aliases = update.aliases().iter();
            aliases.find_map(|(alias, name)| {
                (*name == tensor.name).then(|| model.get(alias)).flatten()
            })
        };
        match model.get(&tensor.name).or_else(by_alias) {
            None => problems.push(VerifyProblem::UnknownTensor {
                tensor: shown(&tensor.name),
            }),
            Some(expected) => {
                known += 1;
                problems.extend(misfit(
                    tensor,
                    &expected.shape,
                    expected.dtype,
                    options.master_dtype,
                ));
            }
        }
    }
    let keys = model.tensors().len();
    if known == 0 && keys > 0 {
        let names: Vec<&str> = update
            .tensors()
            .iter()
            .map(|tensor| &*tensor.name)
            .collect();
        let sent = crate::report::joined(&names, "`");
        problems.insert(0, VerifyProblem::NothingInCommon { keys, sent });
    }
}

fn check_values(
    update: &ModelHeader,
    model: &ModelHeader,
    options: &Options,
    problems: &mut Vec<VerifyProblem>,
) {
    if update.tree() == model.tree() {
        return;
    }
    let expected: std::collections::HashMap<_, _> = scalars(model.tree()).into_iter().collect();
    for (path, value) in scalars(update.tree()) {
        if options.exclude.contains(&path) {
            continue;
        }
        match expected.get(&path) {
            None => problems.push(VerifyProblem::UnknownValue {
                path: shown(&path),
                kind: value.kind(),
            }),
            Some(model) if !crate::scalar::same_kind(model, value) => {
                problems.push(VerifyProblem::ValueKind {
                    path: shown(&path),
                    found: value.kind(),
                    expected: model.kind(),
                });
            }
            Some(_) => {}
        }
    }
}

fn check_numbers(update: Model<'_>, options: &Options, problems: &mut Vec<VerifyProblem>) {
    for tensor in update.header.tensors() {
        if options.exclude.contains(&tensor.name) {
            continue;
        }
        let bytes = update.header.bytes_of(tensor, update.bytes);
        let bytes = bytes.expect("the file's length was checked, and the header covers it");
        let elements = tensor.elements();
        if tensor.dtype == DType::Bool {
            let count = bytes.iter().filter(|b| **b > 1).count() as u64;
            if count > 0 {
                problems.push(VerifyProblem::NotBool {
                    tensor: shown(&tensor.name),
                    count,
                    elements,
                });
            }
        }
        let count = check_finite(tensor.dtype, bytes);
        if count > 0 {
            problems.push(VerifyProblem::NotFinite {
                tensor: shown(&tensor.name),
                count,
                elements,
            });
        }
    }
    for (path, value) in scalars(update.header.tree()) {
        if let Tree::Float(number) = value
            && !number.is_finite()
            && !options.exclude.contains(&path)
        {
            let value = if number.is_nan() {
                "nan".to_owned()
            } else {
                number.to_string()
            };
            let path = shown(&path);
            problems.push(VerifyProblem::ValueNotFinite { path, value });
        }
    }
}
