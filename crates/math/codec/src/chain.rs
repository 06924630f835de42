//! The filters of one direction, in order, and the way back.
//!
//! Filters run once per (job, round, site, attempt), into the file that is then
//! offered; whoever pulls again gets that file. Encoding needs room for what lies
//! between two filters that encode; decoding never does.

use std::io;

use firesteel_base::limits;
use firesteel_tensor::{ModelHeader, TensorInfo};

use crate::bytes::{Draft, ReadAt, WriteAt};
use crate::error::{DecodeError, EncodeError};
use crate::feedback::{self, Corrected};
use crate::layer::{self, Step};
use crate::pick::Pick;
use crate::scheme::Scheme;
use crate::step::Work;
use crate::view::View;

/// One filter.
#[derive(Debug, Clone)]
pub enum Filter {
    /// Floats travel in fewer bits.
    Quantize {
        /// In which.
        scheme: Scheme,
        /// Which tensors.
        pick: Pick,
        /// How values between two codes are rounded.
        rounding: Rounding,
        /// What becomes of what rounding lost.
        loss: Loss,
    },
    /// Only the largest values of a difference travel.
    TopK {
        /// Their share, above 0 and at most 1.
        share: f64,
        /// Of which tensors.
        pick: Pick,
        /// What becomes of the others.
        loss: Loss,
    },
    /// Bytes travel compressed, without loss.
    Compress {
        /// The level of zstd, 1 to 19.
        level: i32,
        /// Of which tensors.
        pick: Pick,
    },
    /// Only these tensors travel; the others are as the model has them.
    Keep(Pick),
    /// These tensors do not travel; they are as the model has them.
    Exclude(Pick),
    /// No update travels but of this kind.
    Only(Kind),
}

/// What params are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The params themselves.
    Full,
    /// Their difference to the model handed out.
    Diff,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Diff => "DIFF",
        }
    }
}

/// How a value between two codes is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearer one.
    Nearest,
    /// To either, so that the mean is right.
    Stochastic,
}

/// What becomes of what a filter loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It is gone.
    Forgotten,
    /// It is added to what is sent the next time.
    FedBack,
}

/// The filters of one direction.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    filters: Vec<Filter>,
}

impl Chain {
    /// Filters in the order in which they work on what goes out.
    pub fn new(filters: Vec<Filter>) -> Self {
        Self { filters }
    }

    /// This chain, then another: the job's, then the site's own.
    #[must_use]
    pub fn then(mut self, more: &Self) -> Self {
        self.filters.extend_from_slice(&more.filters);
        self
    }

    /// Whether it leaves every model as it is.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// The filters in order.
    pub fn filters(&self) -> &[Filter] {
        &self.filters
    }

    /// Whether it keeps what it loses for the next time: then
    /// [`Context::residual`] is worth giving.
    pub fn feeds_back(&self) -> bool {
        self.filters.iter().any(Filter::feeds_back)
    }

    fn fed_back(&self, header: &ModelHeader, tensor: &TensorInfo) -> bool {
        self.filters.iter().any(|filter| match filter {
            Filter::Quantize { pick, .. } | Filter::TopK { pick, .. } => {
                filter.feeds_back() && pick.picks(header, tensor)
            }
            _ => false,
        })
    }
}

impl Filter {
    fn feeds_back(&self) -> bool {
        matches!(
            self,
            Self::Quantize {
                loss: Loss::FedBack,
                ..
            } | Self::TopK {
                loss: Loss::FedBack,
                ..
            }
        )
    }
}

/// A model's header and the bytes of its file, header included.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// Parsed from these bytes.
    pub header: &'a ModelHeader,
    /// The whole file.
    pub bytes: &'a dyn ReadAt,
}

/// What was lost the last time, and where to put what is lost this time.
pub struct Residual<'a> {
    /// `None` the first time.
    pub before: Option<Model<'a>>,
    /// Becomes a model file. Nothing is written when nothing can be lost.
    pub after: &'a mut dyn Draft,
}

/// What the filters need to know beside the model.
pub struct Context<'a> {
    /// What the params are.
    pub kind: Kind,
    /// From (job, round, site, attempt): rounding by chance follows from it.
    pub seed: u64,
    /// For chains that feed back; without it, loss is forgotten.
    pub residual: Option<Residual<'a>>,
    /// Makes an empty file for what lies between two filters.
    pub scratch: &'a mut dyn FnMut() -> io::Result<Box<dyn Draft>>,
}

/// What [`encode`] has written.
#[derive(Debug)]
pub struct Encoded {
    /// The header of the encoded model.
    pub header: ModelHeader,
    /// The header of the residual, if one was written.
    pub residual: Option<ModelHeader>,
}

/// Runs a model through a chain, into `out`: an empty file, which is then a model
/// file. The same model, chain and context give the same bytes.
///
/// # Errors
/// [`EncodeError`]; `out` is then worthless.
pub fn encode(
    chain: &Chain,
    model: Model<'_>,
    context: Context<'_>,
    out: &mut dyn Draft,
) -> Result<Encoded, EncodeError> {
    let Context {
        kind,
        seed,
        residual,
        scratch,
    } = context;
    let residual = residual.filter(|_| chain.feeds_back());
    // A model that is encoded already is what it stands for.
    let plain = decode(model.header, model.bytes).map_err(EncodeError::Marked)?;
    let model = match &plain {
        None => model,
        Some(view) => Model {
            header: view.header(),
            bytes: view,
        },
    };
    let Some(residual) = residual else {
        let header = run(chain, model, (kind, seed), scratch, out)?;
        return Ok(Encoded {
            header,
            residual: None,
        });
    };
    let picks = |tensor: &TensorInfo| chain.fed_back(model.header, tensor);
    let corrected = Corrected::new(model, residual.before, &picks)?;
    let input = Model {
        header: model.header,
        bytes: &corrected,
    };
    let header = run(chain, input, (kind, seed), scratch, out)?;
    let sent = Model {
        header: &header,
        bytes: &*out,
    };
    let residual = feedback::write(&corrected, sent, residual.after)?;
    Ok(Encoded {
        header,
        residual: Some(residual),
    })
}

fn run(
    chain: &Chain,
    model: Model<'_>,
    (kind, seed): (Kind, u64),
    scratch: &mut dyn FnMut() -> io::Result<Box<dyn Draft>>,
    out: &mut dyn Draft,
) -> Result<ModelHeader, EncodeError> {
    // What the next filter reads.
    let mut header = model.header.clone();
    let mut bytes: Box<dyn ReadAt + '_> = Box::new(model.bytes);
    let mut works = Vec::new();
    // Leaving a tensor out and encoding the others can be done in any order, so
    // what is left out is left out first, and nobody encodes it.
    for (at, filter) in (0u64..).zip(&chain.filters) {
        match filter {
            Filter::Only(only) if *only == kind => {}
            Filter::Only(_) => {
                return Err(EncodeError::Blocked {
                    kind: kind.as_str(),
                });
            }
            Filter::Keep(pick) | Filter::Exclude(pick) => {
                let keeps = matches!(filter, Filter::Keep(_));
                let all = header.clone();
                let view = View::select(&header, bytes, |t| pick.picks(&all, t) == keeps);
                let view = view.map_err(EncodeError::Marked)?;
                header = view.header().clone();
                bytes = Box::new(view);
            }
            Filter::TopK { .. } if kind != Kind::Diff => {
                return Err(EncodeError::NotDifference {
                    kind: kind.as_str(),
                });
            }
            encoding => works.extend(encoding.work(seed, at)),
        }
    }
    let count = works.len();
    if count > limits::CODEC_LAYERS {
        return Err(EncodeError::TooManyLayers {
            count,
            limit: limits::CODEC_LAYERS,
        });
    }
    for (at, (step, pick, share, effort, seed)) in works.into_iter().enumerate() {
        let picks = |header: &ModelHeader, tensor: &TensorInfo| pick.picks(header, tensor);
        let work = Work {
            step,
            picks: &picks,
            share,
            effort,
            seed,
        };
        if at + 1 == count {
            return work.run(&header, &*bytes, out);
        }
        let mut between = scratch().map_err(EncodeError::Scratch)?;
        header = work.run(&header, &*bytes, &mut *between)?;
        bytes = Box::new(between);
    }
    copy(&header, &*bytes, out)?;
    Ok(header)
}

/// The header of the largest model that a chain may make of one, whatever its
/// values are: so many bytes `out` may take, and each file between two filters.
///
/// # Errors
/// [`EncodeError`] when the chain cannot take the model.
pub fn largest(chain: &Chain, header: &ModelHeader) -> Result<ModelHeader, EncodeError> {
    let mut header = header.clone();
    for filter in &chain.filters {
        if let Some((step, pick, share, effort, seed)) = filter.work(0, 0) {
            let picks = |header: &ModelHeader, tensor: &TensorInfo| pick.picks(header, tensor);
            let picks = &picks;
            let work = Work {
                step,
                picks,
                share,
                effort,
                seed,
            };
            header = work.largest(&header)?;
        }
    }
    Ok(header)
}

/// Step, tensors, share, level and seed of a filter that encodes.
type Numbers<'f> = (Step, &'f Pick, f64, i32, Option<u64>);

impl Filter {
    fn work(&self, seed: u64, at: u64) -> Option<Numbers<'_>> {
        match self {
            Self::Quantize {
                scheme,
                pick,
                rounding,
                ..
            } => {
                // Two filters of a chain must not throw the same dice.
                let seed = seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let seed = (*rounding == Rounding::Stochastic).then_some(seed);
                Some((Step::Quantize(*scheme), pick, 1.0, 0, seed))
            }
            Self::TopK { share, pick, .. } => Some((Step::TopK, pick, *share, 0, None)),
            Self::Compress { level, pick } => Some((Step::Zstd, pick, 1.0, *level, None)),
            Self::Keep(_) | Self::Exclude(_) | Self::Only(_) => None,
        }
    }
}

fn copy(
    header: &ModelHeader,
    bytes: &dyn ReadAt,
    out: &mut dyn WriteAt,
) -> Result<(), EncodeError> {
    let mut window = Vec::new();
    let mut at = 0;
    while at < header.total_len() {
        let length = (header.total_len() - at).min(4 * limits::CODEC_WINDOW as u64);
        window.resize(length as usize, 0);
        bytes.read_at(at, &mut window).map_err(EncodeError::Read)?;
        out.write_at(at, &window).map_err(EncodeError::Write)?;
        at += length;
    }
    Ok(())
}

/// Whether a model is encoded, and has to go through [`decode`] before its
/// tensors mean anything.
///
/// # Errors
/// [`DecodeError`] when it says so in a way that this build does not know.
pub fn is_encoded(header: &ModelHeader) -> Result<bool, DecodeError> {
    Ok(layer::count(header)? > 0)
}

/// The model that an encoded one stands for, layer by layer, computed as it is
/// read; `None` when the model is not encoded. Only headers, code books and ranges
/// are read here. Before the data is, compare [`View::header`] with what was
/// expected: a small file may stand for a model that fits no disk.
///
/// # Errors
/// [`DecodeError`], with the tensor's name where it is one.
pub fn decode<'a>(
    header: &ModelHeader,
    bytes: &'a dyn ReadAt,
) -> Result<Option<View<'a>>, DecodeError> {
    let mut view: Option<View<'a>> = None;
    loop {
        let (header, inner): (ModelHeader, Box<dyn ReadAt + 'a>) = match view.take() {
            None => (header.clone(), Box::new(bytes)),
            Some(view) => (view.header().clone(), Box::new(view)),
        };
        let below = layer::count(&header)?;
        match View::decode(&header, inner)? {
            Err(_) => return Ok(None),
            Ok(next) if below == 1 => return Ok(Some(next)),
            Ok(next) => view = Some(next),
        }
    }
}
