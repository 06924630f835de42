//! One update against the model, before it may count.

use std::io::{self, Read as _};

use firesteel_base::{Failure, FailureCode, Hint, Phase, limits};
use firesteel_tensor::text::{shape as shown_shape, shown};
use firesteel_tensor::{DType, Facts, ModelHeader, TensorInfo, Tree, check_finite};

use crate::options::{LiveSource, Model, Options, Wide};
use crate::scalar::scalars;
use crate::sums::{Sums, odd_numbers};

/// A number that is compared by its bits, as an error has to be.
#[derive(Debug, Clone, Copy)]
pub struct Number(pub f64);

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Number {}

impl std::fmt::LowerExp for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::LowerExp::fmt(&self.0, f)
    }
}

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
    /// Only what changed, and nothing that it changed from.
    #[error("the update holds only what changed, but there is no model that it changed")]
    PartialWithoutModel,
    /// The manifest speaks of other tensors than the header.
    #[error("the update's manifest tells of {facts} tensors, its header of {tensors}")]
    FactsCount {
        /// How many the manifest tells of.
        facts: usize,
        /// How many there are.
        tensors: usize,
    },
    /// NaN or infinity in a tensor, by its manifest or as it came.
    #[error("tensor `{tensor}` has values that are NaN or Inf")]
    NotAllFinite {
        /// The tensor.
        tensor: String,
    },
    /// The bytes that came are not those that the manifest told of.
    #[error("tensor `{tensor}` has the norm {found:e}, its manifest says {expected:e}")]
    Norm {
        /// The tensor.
        tensor: String,
        /// Of what came.
        found: Number,
        /// As the manifest says.
        expected: Number,
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
            Self::Length { .. }
            | Self::NotBool { .. }
            | Self::FactsCount { .. }
            | Self::Norm { .. } => FailureCode::Malformed,
            Self::UnknownTensor { .. }
            | Self::UnknownValue { .. }
            | Self::ValueKind { .. }
            | Self::PartialWithoutModel
            | Self::NothingInCommon { .. } => FailureCode::KeyMismatch,
            Self::Shape { .. } => FailureCode::ShapeMismatch,
            Self::DType { .. } => FailureCode::DtypeMismatch,
            Self::NotFinite { .. } | Self::NotAllFinite { .. } | Self::ValueNotFinite { .. } => {
                FailureCode::NotFinite
            }
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
    check_header(update.header, model, options, &mut problems);
    check_numbers(update, options, &mut problems);
    check_scalars(update.header, options, &mut problems);
    done(problems)
}

/// Checks an update that is still at its site by its header and what its manifest
/// says of the tensors. The fold holds the values against the same as they come.
///
/// # Errors
/// As [`verify`].
pub fn verify_live(
    update: &ModelHeader,
    facts: &[Facts],
    model: Option<&ModelHeader>,
    options: &Options,
) -> Result<(), Vec<VerifyProblem>> {
    let mut problems = Vec::new();
    check_header(update, model, options, &mut problems);
    check_facts(update, facts, options, &mut problems);
    check_scalars(update, options, &mut problems);
    done(problems)
}

/// Checks an update that is here, but is read in windows, as [`verify`] does.
/// What is wrong comes back; nothing, if it is fine.
///
/// # Errors
/// As its reader's.
pub fn verify_read(
    update: &ModelHeader,
    source: &dyn LiveSource,
    model: Option<&ModelHeader>,
    options: &Options,
) -> io::Result<Vec<VerifyProblem>> {
    let mut problems = Vec::new();
    check_header(update, model, options, &mut problems);
    let counts = |tensor: &&TensorInfo| !options.exclude.contains(&tensor.name);
    let tensors: Vec<_> = update.data_order().into_iter().filter(counts).collect();
    let start = update.data_start();
    let ranges: Vec<_> = tensors
        .iter()
        .filter(|tensor| tensor.size() > 0)
        .map(|tensor| start + tensor.start..start + tensor.end)
        .collect();
    let mut bytes = source.open(&ranges)?;
    let mut window = Vec::new();
    for tensor in tensors {
        let (mut left, mut counts) = (tensor.size(), Counts::default());
        while left > 0 {
            // A window is a whole number of elements of any dtype.
            let size = left.min(limits::LIVE_WINDOW as u64) as usize;
            window.resize(size, 0);
            bytes.read_exact(&mut window)?;
            counts.add(tensor.dtype, &window);
            left -= size as u64;
        }
        counts.tell(tensor, &mut problems);
    }
    check_scalars(update, options, &mut problems);
    Ok(problems)
}

/// Checks what a relay has summed: that it is what updates of sites could have
/// become, and that every number is finite. `bytes` is the whole file.
///
/// # Errors
/// As [`verify`].
pub fn verify_sums(
    sums: &Sums,
    bytes: &[u8],
    model: Option<&ModelHeader>,
    options: &Options,
) -> Result<(), Vec<VerifyProblem>> {
    let (length, expected) = (bytes.len() as u64, sums.file().total_len());
    if length != expected {
        return Err(vec![VerifyProblem::Length { length, expected }]);
    }
    let mut problems = Vec::new();
    let face = sums.face();
    match model {
        Some(model) => {
            // Where nothing changed at any site, there is nothing to sum.
            if !(face.tensors().is_empty() && sums.partial() == sums.counted()) {
                check_keys(face, model, options, &mut problems);
            }
            let known: std::collections::HashMap<_, _> =
                scalars(model.tree()).into_iter().collect();
            for (path, value) in sums.values() {
                match known.get(path) {
                    Some(model) if value.fits(model) => {}
                    Some(model) => problems.push(VerifyProblem::ValueKind {
                        path: shown(path),
                        found: value.kind(),
                        expected: model.kind(),
                    }),
                    None => problems.push(VerifyProblem::UnknownValue {
                        path: shown(path),
                        kind: value.kind(),
                    }),
                }
            }
        }
        None if sums.partial().sites > 0 => problems.push(VerifyProblem::PartialWithoutModel),
        None => {}
    }
    for (tensor, count, elements) in odd_numbers(sums, bytes) {
        problems.push(VerifyProblem::NotFinite {
            tensor,
            count,
            elements,
        });
    }
    done(problems)
}

fn done(problems: Vec<VerifyProblem>) -> Result<(), Vec<VerifyProblem>> {
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

fn check_header(
    update: &ModelHeader,
    model: Option<&ModelHeader>,
    options: &Options,
    problems: &mut Vec<VerifyProblem>,
) {
    match model {
        Some(model) => {
            check_keys(update, model, options, problems);
            check_values(update, model, options, problems);
        }
        None if update.is_partial() => problems.push(VerifyProblem::PartialWithoutModel),
        None => {}
    }
}

fn check_facts(
    update: &ModelHeader,
    facts: &[Facts],
    options: &Options,
    problems: &mut Vec<VerifyProblem>,
) {
    let tensors = update.tensors();
    if facts.len() != tensors.len() {
        problems.push(VerifyProblem::FactsCount {
            facts: facts.len(),
            tensors: tensors.len(),
        });
    }
    for (tensor, facts) in tensors.iter().zip(facts) {
        if !facts.finite && !options.exclude.contains(&tensor.name) {
            problems.push(VerifyProblem::NotAllFinite {
                tensor: shown(&tensor.name),
            });
        }
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
    // Where nothing changed, a partial update holds nothing.
    if known == 0 && keys > 0 && !update.is_partial() {
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
        let mut counts = Counts::default();
        counts.add(tensor.dtype, bytes);
        counts.tell(tensor, problems);
    }
}

/// Values of a tensor that cannot be.
#[derive(Default)]
struct Counts {
    not_bool: u64,
    not_finite: u64,
}

impl Counts {
    fn add(&mut self, dtype: DType, bytes: &[u8]) {
        if dtype == DType::Bool {
            self.not_bool += bytes.iter().filter(|b| **b > 1).count() as u64;
        }
        self.not_finite += check_finite(dtype, bytes);
    }

    fn tell(&self, tensor: &TensorInfo, problems: &mut Vec<VerifyProblem>) {
        let elements = tensor.elements();
        if self.not_bool > 0 {
            problems.push(VerifyProblem::NotBool {
                tensor: shown(&tensor.name),
                count: self.not_bool,
                elements,
            });
        }
        if self.not_finite > 0 {
            problems.push(VerifyProblem::NotFinite {
                tensor: shown(&tensor.name),
                count: self.not_finite,
                elements,
            });
        }
    }
}

fn check_scalars(update: &ModelHeader, options: &Options, problems: &mut Vec<VerifyProblem>) {
    for (path, value) in scalars(update.tree()) {
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
