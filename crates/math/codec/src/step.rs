//! One filter that encodes: from a model to an encoded model, window by window.

use std::collections::HashMap;

use fearless_simd::Level;
use firesteel_base::limits;
use firesteel_tensor::text::shown;
use firesteel_tensor::{DType, HeaderBuilder, ModelHeader, TensorInfo};

use crate::bytes::{ReadAt, WriteAt};
use crate::error::EncodeError;
use crate::kernel::Dice;
use crate::kernel::adaptive;
use crate::kernel::dice::Throw;
use crate::kernel::four::{self, Four};
use crate::kernel::half::{self, Half};
use crate::kernel::{int8, values};
use crate::layer::{self, Entry, Layer, Part, Step};
use crate::sparse::{self, Dense, ThinError};
use crate::view::{code_of, quantizable};
use crate::{Scheme, zip};

/// What one encoding filter does.
pub(crate) struct Work<'a> {
    pub step: Step,
    /// Which of the tensors, by their names.
    pub picks: &'a dyn Fn(&ModelHeader, &TensorInfo) -> bool,
    /// For [`Step::TopK`]: the share that is kept.
    pub share: f64,
    /// For [`Step::Zstd`]: its level.
    pub effort: i32,
    /// Rounding by chance, from this seed.
    pub seed: Option<u64>,
}

/// Bytes that two more tensors cost in a header. What saves less stays as it is.
const ENTRY_COST: u64 = 256;

/// A tensor of the model and what becomes of it.
struct Target<'h> {
    tensor: &'h TensorInfo,
    becomes: Becomes,
}

enum Becomes {
    Same,
    Encoded {
        /// The encoded tensor, with the greatest length it may have.
        dtype: DType,
        shape: Vec<u64>,
        parts: Vec<Part>,
        range: Option<adaptive::Range>,
        kept: u64,
    },
}

impl Work<'_> {
    /// Encodes a model; the encoded model's header.
    pub(crate) fn run(
        &self,
        header: &ModelHeader,
        bytes: &dyn ReadAt,
        out: &mut dyn WriteAt,
    ) -> Result<ModelHeader, EncodeError> {
        let level = Level::new();
        let targets = self.targets(level, header, Some(bytes))?;
        let mark = layer::unused_mark(header);
        let mut lengths = HashMap::new();
        let (head, plan) = self.lay_out(header, &targets, &mark, &lengths, 0)?;
        let mut writing = Writing {
            work: self,
            level,
            from: header,
            bytes,
            to: &plan,
            mark: &mark,
            out,
            room: Room::default(),
        };
        if self.step != Step::Zstd {
            for target in &targets {
                writing.write(target)?;
            }
            out.write_at(0, &head).map_err(EncodeError::Write)?;
            return Ok(plan);
        }
        // The lengths are known only now. What has more than one byte per element
        // lies before all of these, and its place is known already.
        let mut order: Vec<&Target<'_>> = targets.iter().collect();
        order.sort_by_key(|target| plan.get(&target.tensor.name).map(|t| (t.start, t.end)));
        // All parts are wide, so the first single byte lies behind them.
        let mut reached = plan.data_len() - single_bytes(&plan);
        for target in order {
            let Some(place) = plan.get(&target.tensor.name) else {
                continue;
            };
            if place.dtype.size() > 1 {
                writing.write(target)?;
                continue;
            }
            let length = match target.becomes {
                Becomes::Same => writing.copy(target.tensor, reached)?,
                Becomes::Encoded { .. } => writing.zip(target.tensor, reached)?,
            };
            lengths.insert(target.tensor.name.to_string(), length);
            reached += length;
        }
        let start = plan.data_start();
        let (head, plan) = self.lay_out(header, &targets, &mark, &lengths, start)?;
        out.write_at(0, &head).map_err(EncodeError::Write)?;
        Ok(plan)
    }

    /// The header of the largest model that may come out, whatever the values are.
    pub(crate) fn largest(&self, header: &ModelHeader) -> Result<ModelHeader, EncodeError> {
        let targets = self.targets(Level::new(), header, None)?;
        let mark = layer::unused_mark(header);
        let (_, plan) = self.lay_out(header, &targets, &mark, &HashMap::new(), 0)?;
        Ok(plan)
    }

    fn targets<'h>(
        &self,
        level: Level,
        header: &'h ModelHeader,
        bytes: Option<&dyn ReadAt>,
    ) -> Result<Vec<Target<'h>>, EncodeError> {
        // Tensors that an earlier filter added are no values to be rounded.
        let added = Layer::innermost_mark(header).map(str::to_owned);
        let lossy = self.step != Step::Zstd;
        let mut targets = Vec::with_capacity(header.tensors().len());
        for tensor in header.tensors() {
            let part = added
                .as_ref()
                .is_some_and(|mark| tensor.name.contains(mark));
            let skip = lossy && (part || !quantizable(tensor.dtype));
            let becomes = if skip || tensor.size() == 0 || !(self.picks)(header, tensor) {
                Becomes::Same
            } else {
                self.target(level, header, tensor, bytes)?
            };
            targets.push(Target { tensor, becomes });
        }
        Ok(targets)
    }

    fn target(
        &self,
        level: Level,
        header: &ModelHeader,
        tensor: &TensorInfo,
        bytes: Option<&dyn ReadAt>,
    ) -> Result<Becomes, EncodeError> {
        let elements = tensor.elements();
        let mut range = None;
        let mut kept = 0;
        let (dtype, shape) = match self.step {
            Step::Quantize(Scheme::Fp16) => (DType::F16, tensor.shape.clone()),
            Step::Quantize(Scheme::Bf16) => (DType::BF16, tensor.shape.clone()),
            Step::Quantize(Scheme::Int8) => (DType::U8, vec![elements]),
            Step::Quantize(Scheme::Fp4 | Scheme::Nf4) => (DType::U8, vec![elements.div_ceil(2)]),
            Step::Quantize(Scheme::Adaptive) => {
                let found = match bytes {
                    Some(bytes) => self.range(level, header, tensor, bytes)?,
                    None => adaptive::Range::widest(8 * tensor.dtype.size() as u32),
                };
                let Some(found) = found else {
                    return Ok(Becomes::Same);
                };
                range = Some(found);
                let length = if found.steps == 0 { 0 } else { elements };
                (found.dtype(), vec![length])
            }
            Step::TopK => {
                kept = sparse::kept(elements, self.share);
                (tensor.dtype, vec![kept])
            }
            Step::Zstd => (DType::U8, vec![zip::bound(tensor.size())]),
        };
        let parts = self.step.parts(tensor.dtype, elements, kept);
        let sizes = parts
            .iter()
            .map(|p| p.elements * p.dtype.size() as u64 + ENTRY_COST / 2);
        let encoded = shape.iter().product::<u64>() * dtype.size() as u64 + sizes.sum::<u64>();
        let saves = match self.step {
            // Whether it does is known only afterwards.
            Step::Zstd => tensor.size() > 2 * ENTRY_COST,
            _ => encoded < tensor.size(),
        };
        if !saves {
            return Ok(Becomes::Same);
        }
        Ok(Becomes::Encoded {
            dtype,
            shape,
            parts,
            range,
            kept,
        })
    }

    fn range(
        &self,
        level: Level,
        header: &ModelHeader,
        tensor: &TensorInfo,
        bytes: &dyn ReadAt,
    ) -> Result<Option<adaptive::Range>, EncodeError> {
        let mut room = Room::default();
        let (mut least, mut greatest) = (f32::INFINITY, f32::NEG_INFINITY);
        let mut bad = 0;
        let mut first = 0;
        while first < tensor.elements() {
            let count = room.read(level, header, bytes, tensor, first)?;
            bad += values::not_finite(level, &room.values);
            for value in &room.values {
                least = least.min(*value);
                greatest = greatest.max(*value);
            }
            first += count;
        }
        self.check_finite(tensor, bad)?;
        let bits = 8 * tensor.dtype.size() as u32;
        Ok(adaptive::Range::new(
            f64::from(least),
            f64::from(greatest),
            bits,
        ))
    }

    fn check_finite(&self, tensor: &TensorInfo, bad: u64) -> Result<(), EncodeError> {
        if bad == 0 {
            return Ok(());
        }
        Err(EncodeError::NotFinite {
            tensor: shown(&tensor.name),
            step: self.step.as_str(),
            count: bad,
            elements: tensor.elements(),
        })
    }

    /// The encoded model's head and header, with `lengths` for those tensors whose
    /// lengths are known by now.
    fn lay_out(
        &self,
        header: &ModelHeader,
        targets: &[Target<'_>],
        mark: &str,
        lengths: &HashMap<String, u64>,
        data_start: u64,
    ) -> Result<(Vec<u8>, ModelHeader), EncodeError> {
        let mut builder = HeaderBuilder::new();
        let mut entries = Vec::new();
        let mut at = 0;
        for target in targets {
            let tensor = target.tensor;
            let name = &*tensor.name;
            match &target.becomes {
                Becomes::Same => {
                    builder.tensor(name, tensor.dtype, &tensor.shape);
                }
                Becomes::Encoded {
                    dtype,
                    shape,
                    parts,
                    ..
                } => {
                    let known = lengths.get(name).map(|length| vec![*length]);
                    builder.tensor(name, *dtype, known.as_ref().unwrap_or(shape));
                    for part in parts {
                        let name = format!("{name}{mark}{}", part.name);
                        builder.tensor(&name, part.dtype, &[part.elements]);
                    }
                    entries.push(Entry {
                        at,
                        dtype: tensor.dtype,
                        shape: tensor.shape.clone(),
                    });
                    at += parts.len();
                }
            }
            at += 1;
        }
        for (alias, name) in header.aliases() {
            builder.alias(alias, name);
        }
        if header.is_partial() {
            builder.partial();
        }
        for (key, value) in header.metadata() {
            builder.metadata(key, value);
        }
        let layer = Layer {
            step: self.step,
            mark: mark.to_owned(),
            entries,
        };
        layer
            .describe(header, &mut builder)
            .map_err(EncodeError::Marked)?;
        Ok(builder.encode_at(data_start)?)
    }
}

/// Bytes of all tensors of single bytes: they lie at the end.
fn single_bytes(header: &ModelHeader) -> u64 {
    let single = header.tensors().iter().filter(|t| t.dtype.size() == 1);
    single.map(TensorInfo::size).sum()
}

/// What a window takes.
#[derive(Default)]
struct Room {
    bytes: Vec<u8>,
    values: Vec<f32>,
    codes: Vec<u8>,
    absmax: Vec<f32>,
}

impl Room {
    /// Reads the window of values from `first` on; how many there are.
    fn read(
        &mut self,
        level: Level,
        header: &ModelHeader,
        bytes: &dyn ReadAt,
        tensor: &TensorInfo,
        first: u64,
    ) -> Result<u64, EncodeError> {
        let count = (tensor.elements() - first).min(limits::CODEC_WINDOW as u64);
        let size = tensor.dtype.size();
        let at = header.data_start() + tensor.start + first * size as u64;
        self.values.resize(count as usize, 0.0);
        if tensor.dtype == DType::F32 {
            let into = bytemuck::cast_slice_mut(&mut self.values);
            bytes.read_at(at, into).map_err(EncodeError::Read)?;
        } else {
            self.bytes.resize(count as usize * size, 0);
            bytes
                .read_at(at, &mut self.bytes)
                .map_err(EncodeError::Read)?;
            values::widen(level, tensor.dtype, &self.bytes, &mut self.values);
        }
        Ok(count)
    }
}

struct Writing<'w> {
    work: &'w Work<'w>,
    level: Level,
    from: &'w ModelHeader,
    bytes: &'w dyn ReadAt,
    to: &'w ModelHeader,
    mark: &'w str,
    out: &'w mut dyn WriteAt,
    room: Room,
}

impl<'w> Writing<'w> {
    fn write(&mut self, target: &Target<'_>) -> Result<(), EncodeError> {
        let tensor = target.tensor;
        let at = self.place(&tensor.name);
        match &target.becomes {
            Becomes::Same => self.copy(tensor, at).map(|_| ()),
            Becomes::Encoded {
                parts, range, kept, ..
            } => {
                let parts: Vec<u64> = parts
                    .iter()
                    .map(|part| self.place(&format!("{}{}{}", tensor.name, self.mark, part.name)))
                    .collect();
                match self.work.step {
                    Step::TopK => self.thin_out(tensor, *kept, at, &parts),
                    _ => self.quantize(tensor, range.as_ref(), at, &parts),
                }
            }
        }
    }

    /// Where a tensor of the encoded model starts, from the start of the data.
    fn place(&self, name: &str) -> u64 {
        let tensor = self.to.get(name);
        tensor
            .map(|t| t.start)
            .expect("the plan was made from the same names")
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), EncodeError> {
        let at = self.to.data_start() + at;
        self.out.write_at(at, bytes).map_err(EncodeError::Write)
    }

    /// Copies a tensor's bytes; how many there are.
    fn copy(&mut self, tensor: &TensorInfo, at: u64) -> Result<u64, EncodeError> {
        let mut done = 0;
        let mut window = std::mem::take(&mut self.room.bytes);
        while done < tensor.size() {
            let length = (tensor.size() - done).min(4 * limits::CODEC_WINDOW as u64);
            window.resize(length as usize, 0);
            let from = self.from.data_start() + tensor.start + done;
            self.bytes
                .read_at(from, &mut window)
                .map_err(EncodeError::Read)?;
            self.put(at + done, &window)?;
            done += length;
        }
        self.room.bytes = window;
        Ok(tensor.size())
    }

    /// Compresses a tensor's bytes; how many there are then.
    fn zip(&mut self, tensor: &TensorInfo, at: u64) -> Result<u64, EncodeError> {
        let mut zipper = zip::Zipper::new(self.work.effort).map_err(EncodeError::Scratch)?;
        let ends = self.place(&format!("{}{}ends", tensor.name, self.mark));
        let mut window = Vec::new();
        let (mut done, mut written, mut frame) = (0, 0u64, 0);
        while done < tensor.size() {
            let length = (tensor.size() - done).min(limits::CODEC_FRAME as u64);
            window.resize(length as usize, 0);
            let from = self.from.data_start() + tensor.start + done;
            self.bytes
                .read_at(from, &mut window)
                .map_err(EncodeError::Read)?;
            let zipped = zipper.zip(&window, tensor.dtype.size());
            let zipped = zipped.map_err(EncodeError::Scratch)?;
            let bytes = zipper.zipped.get(..zipped).unwrap_or_default();
            self.put(at + written, bytes)?;
            written += zipped as u64;
            self.put(ends + 8 * frame, &written.to_le_bytes())?;
            done += length;
            frame += 1;
        }
        Ok(written)
    }

    fn thin_out(
        &mut self,
        tensor: &TensorInfo,
        kept: u64,
        at: u64,
        parts: &[u64],
    ) -> Result<(), EncodeError> {
        let &[index, ends] = parts else {
            return Ok(());
        };
        let start = self.to.data_start();
        let dense = Dense {
            inner: self.bytes,
            at: self.from.data_start() + tensor.start,
            dtype: tensor.dtype,
            elements: tensor.elements(),
            level: self.level,
        };
        let places = [start + at, start + index, start + ends];
        match dense.thin_out(kept, self.out, places) {
            Ok(bad) => self.work.check_finite(tensor, bad),
            Err(ThinError::Read(error)) => Err(EncodeError::Read(error)),
            Err(ThinError::Write(error)) => Err(EncodeError::Write(error)),
        }
    }

    fn quantize(
        &mut self,
        tensor: &TensorInfo,
        range: Option<&adaptive::Range>,
        at: u64,
        parts: &[u64],
    ) -> Result<(), EncodeError> {
        let Step::Quantize(scheme) = self.work.step else {
            return Ok(());
        };
        if let Some(range) = range {
            let numbers = [range.least, range.width, f64::from(range.steps)];
            self.put(
                parts.first().copied().unwrap_or_default(),
                bytemuck::cast_slice(&numbers),
            )?;
            if range.steps == 0 {
                return Ok(());
            }
        }
        if let Some(code) = parts.get(1) {
            self.put(*code, &code_of(scheme))?;
        }
        let dice = self.work.seed.map(|seed| Dice::new(seed, &tensor.name));
        let code_bits = match scheme {
            Scheme::Fp16 | Scheme::Bf16 => 16,
            Scheme::Int8 => 8,
            Scheme::Fp4 | Scheme::Nf4 => 4,
            Scheme::Adaptive => range.map_or(8, |range| 8 * range.dtype().size() as u64),
        };
        let mut first = 0;
        let mut bad = 0;
        let mut room = std::mem::take(&mut self.room);
        while first < tensor.elements() {
            // Copied, though it may be in memory: reading a window in one sweep and
            // working on it in the cache is faster than working as it comes.
            let count = room.read(self.level, self.from, self.bytes, tensor, first)?;
            room.codes
                .resize((count * code_bits).div_ceil(8) as usize, 0);
            let how = How {
                scheme,
                dtype: tensor.dtype,
                range,
                dice: dice.map(|dice| dice.from(first)),
            };
            if !self.window(&how, &mut room) {
                bad += values::not_finite(self.level, &room.values);
            }
            self.put(at + first * code_bits / 8, &room.codes)?;
            if let (Some(absmax), true) = (parts.first(), scheme.block() > 1) {
                let place = absmax + first / scheme.block() as u64 * 4;
                self.put(place, bytemuck::cast_slice(&room.absmax))?;
            }
            first += count;
        }
        self.room = room;
        self.work.check_finite(tensor, bad)
    }

    /// Encodes one window; whether all of it is finite.
    fn window(&self, how: &How<'_>, room: &mut Room) -> bool {
        let level = self.level;
        let How {
            scheme,
            dtype,
            range,
            dice,
        } = *how;
        let block = scheme.block();
        let Room {
            bytes,
            values: floats,
            codes,
            absmax,
        } = room;
        if block > 1 {
            absmax.resize(floats.len().div_ceil(block), 0.0);
        }
        let which = match scheme {
            Scheme::Fp16 => Half::Fp16,
            _ => Half::Bf16,
        };
        match scheme {
            Scheme::Fp16 | Scheme::Bf16 => {
                if dtype != DType::F64 {
                    return half::encode(level, which, floats, dice, codes);
                }
                if dice.is_none() {
                    half::encode_f64(level, which, bytes, codes);
                } else {
                    half::encode(level, which, floats, dice, codes);
                }
                // Of an f64 an f32 infinity may have come, which is no fault.
                firesteel_tensor::check_finite(DType::F64, bytes) == 0
            }
            Scheme::Int8 => int8::encode(level, block, floats, dice, (absmax, codes)),
            Scheme::Fp4 => four::encode(level, Four::Fp4, block, floats, dice, (absmax, codes)),
            Scheme::Nf4 => four::encode(level, Four::Nf4, block, floats, dice, (absmax, codes)),
            Scheme::Adaptive => {
                if let Some(range) = range {
                    adaptive::encode(level, range, floats, dice, codes);
                }
                true
            }
        }
    }
}

/// How a window is encoded.
struct How<'r> {
    scheme: Scheme,
    dtype: DType,
    range: Option<&'r adaptive::Range>,
    dice: Option<Throw>,
}
