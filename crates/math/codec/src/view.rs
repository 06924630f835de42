//! A model file that is computed as it is read: decoded, or without some of its
//! tensors. It is never there as a whole.

use std::io;
use std::ops::Range;

use fearless_simd::Level;
use firesteel_base::limits;
use firesteel_tensor::text::shown;
use firesteel_tensor::{DType, HeaderBuilder, ModelHeader, TensorInfo};

use crate::bytes::{ReadAt, WriteAt};
use crate::error::DecodeError;
use crate::kernel::adaptive;
use crate::kernel::four::{self, Four};
use crate::kernel::half::{self, Half};
use crate::kernel::{int8, values};
use crate::layer::{self, Entry, Layer, STRETCH, Step};
use crate::{Scheme, sparse, zip};

/// A model that is computed from another one's bytes, as often as it is read.
pub struct View<'a> {
    inner: Box<dyn ReadAt + 'a>,
    head: Vec<u8>,
    header: ModelHeader,
    /// In the order of the data.
    pieces: Vec<Piece>,
    level: Level,
}

/// Where a tensor of the view comes from.
struct Piece {
    /// Its bytes in the view's file.
    place: Range<u64>,
    name: String,
    dtype: DType,
    origin: Origin,
}

/// Offsets are those of the inner file.
pub(crate) enum Origin {
    Same { at: u64 },
    Half { half: Half, at: u64 },
    Int8 { at: u64, absmax: u64 },
    Four { four: Four, at: u64, absmax: u64 },
    Adaptive { range: adaptive::Range, at: u64 },
    Sparse(sparse::Origin),
    Zip(zip::Origin),
}

impl<'a> View<'a> {
    /// The model without its outermost layer; the bytes back when it has none.
    pub(crate) fn decode(
        header: &ModelHeader,
        inner: Box<dyn ReadAt + 'a>,
    ) -> Result<Result<Self, Box<dyn ReadAt + 'a>>, DecodeError> {
        let Some((number, layer)) = Layer::outermost(header)? else {
            return Ok(Err(inner));
        };
        check_length(header, &*inner)?;
        let mut builder = HeaderBuilder::new();
        layer.restore(number, header, &mut builder)?;
        let mut origins = Vec::new();
        let mut entries = layer.entries.iter().peekable();
        let mut tensors = header.tensors().iter().enumerate();
        while let Some((at, tensor)) = tensors.next() {
            let Some(entry) = entries.next_if(|entry| entry.at == at) else {
                if tensor.name.contains(&layer.mark) {
                    return Err(damaged(&tensor.name, "it belongs to no tensor"));
                }
                builder.tensor(&tensor.name, tensor.dtype, &tensor.shape);
                origins.push(Origin::Same {
                    at: header.data_start() + tensor.start,
                });
                continue;
            };
            let mut parts = Vec::new();
            let wanted = parts_of(&layer, entry, tensor)?;
            for part in &wanted {
                let name = format!("{}{}{}", tensor.name, layer.mark, part.name);
                let found = tensors.next().map(|(_, tensor)| tensor);
                let found = found.filter(|found| *found.name == *name);
                let found = found.filter(|f| layer::is_flat(f, part.dtype, part.elements));
                let Some(found) = found else {
                    let problem = format!("its `{}` is missing, or of another length", part.name);
                    return Err(damaged(&tensor.name, &problem));
                };
                parts.push(header.data_start() + found.start);
            }
            origins.push(origin(&layer, entry, tensor, header, &parts, &*inner)?);
            builder.tensor(&tensor.name, entry.dtype, &entry.shape);
        }
        if let Some(entry) = entries.next() {
            let problem = format!("its entry {} is part of another tensor", entry.at);
            let layer = number;
            return Err(DecodeError::Layer { layer, problem });
        }
        let (head, header) = builder.encode()?;
        Ok(Ok(Self::new(inner, head, header, origins)))
    }

    /// The tensors that `keep` picks. What it leaves out is as the model has it.
    pub(crate) fn select(
        header: &ModelHeader,
        inner: Box<dyn ReadAt + 'a>,
        keep: impl Fn(&TensorInfo) -> bool,
    ) -> Result<Self, DecodeError> {
        check_length(header, &*inner)?;
        let mut builder = HeaderBuilder::new();
        let mut origins = Vec::new();
        let mut gone = header.is_partial();
        for tensor in header.tensors() {
            if keep(tensor) {
                builder.tensor(&tensor.name, tensor.dtype, &tensor.shape);
                let at = header.data_start() + tensor.start;
                origins.push(Origin::Same { at });
            } else {
                gone = true;
            }
        }
        for (alias, name) in header.aliases() {
            if header.get(name).is_some_and(&keep) {
                builder.alias(alias, name);
            }
        }
        if let Some(tree) = header.tree() {
            builder.tree(tree.clone());
        } else if gone {
            // The flat dict of all tensors, or its keys would be gone with them.
            builder.tree(header.tree_or_flat());
        }
        if gone {
            builder.partial();
        }
        for (key, value) in header.metadata() {
            builder.metadata(key, value);
        }
        let (head, header) = builder.encode()?;
        Ok(Self::new(inner, head, header, origins))
    }

    fn new(
        inner: Box<dyn ReadAt + 'a>,
        head: Vec<u8>,
        header: ModelHeader,
        origins: Vec<Origin>,
    ) -> Self {
        let mut pieces: Vec<Piece> = Vec::with_capacity(origins.len());
        for (tensor, origin) in header.tensors().iter().zip(origins) {
            let start = header.data_start() + tensor.start;
            pieces.push(Piece {
                place: start..start + tensor.size(),
                name: shown(&tensor.name),
                dtype: tensor.dtype,
                origin,
            });
        }
        pieces.sort_by_key(|piece| (piece.place.start, piece.place.end));
        Self {
            inner,
            head,
            header,
            pieces,
            level: Level::new(),
        }
    }

    /// The header of the model that it shows.
    pub fn header(&self) -> &ModelHeader {
        &self.header
    }

    /// Writes the whole file, window by window.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are damaged, or cannot be read or written.
    pub fn write(&self, out: &mut dyn WriteAt) -> Result<(), DecodeError> {
        out.write_at(0, &self.head).map_err(DecodeError::Write)?;
        let mut window = Vec::new();
        for piece in &self.pieces {
            let mut at = piece.place.start;
            while at < piece.place.end {
                let most = (limits::CODEC_WINDOW * piece.dtype.size()) as u64;
                let length = most.min(piece.place.end - at);
                window.resize(length as usize, 0);
                self.fill(piece, at - piece.place.start, &mut window)?;
                out.write_at(at, &window).map_err(DecodeError::Write)?;
                at += length;
            }
        }
        Ok(())
    }

    /// Reads the bytes of one tensor from `from` on.
    fn fill(&self, piece: &Piece, from: u64, into: &mut [u8]) -> Result<(), DecodeError> {
        let size = piece.dtype.size();
        match &piece.origin {
            Origin::Same { at } => self.read(at + from, into),
            Origin::Zip(origin) => origin.read(&*self.inner, &piece.name, from, into),
            Origin::Sparse(origin) => origin.read(&*self.inner, &piece.name, size, from, into),
            quantized => self.dequantize(piece, quantized, from, into),
        }
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), DecodeError> {
        self.inner.read_at(at, into).map_err(DecodeError::Read)
    }

    fn dequantize(
        &self,
        piece: &Piece,
        origin: &Origin,
        from: u64,
        into: &mut [u8],
    ) -> Result<(), DecodeError> {
        let size = piece.dtype.size() as u64;
        let elements = (piece.place.end - piece.place.start) / size;
        let block = match origin {
            Origin::Int8 { .. } => Scheme::Int8.block() as u64,
            // Of the others any multiple of two will do.
            _ => Scheme::Nf4.block() as u64,
        };
        let mut room = Room::default();
        let (mut from, mut into) = (from, into);
        while !into.is_empty() {
            let first = from / size / block * block;
            let last = (from + into.len() as u64).div_ceil(size);
            let last = last.min(first + limits::CODEC_WINDOW as u64).min(elements);
            let count = (last - first) as usize;
            room.values.resize(count, 0.0);
            self.values(piece, origin, first, &mut room)?;
            // What of the window was asked for.
            let skip = (from - first * size) as usize;
            let length = into.len().min(count * size as usize - skip);
            let (now, rest) = into.split_at_mut(length);
            if skip == 0 && length == count * size as usize {
                values::narrow(self.level, piece.dtype, &room.values, now);
            } else {
                room.bytes.resize(count * size as usize, 0);
                values::narrow(self.level, piece.dtype, &room.values, &mut room.bytes);
                now.copy_from_slice(room.bytes.get(skip..skip + length).unwrap_or_default());
            }
            from += length as u64;
            into = rest;
        }
        Ok(())
    }

    /// The values of a window that starts with a block.
    fn values(
        &self,
        piece: &Piece,
        origin: &Origin,
        first: u64,
        room: &mut Room,
    ) -> Result<(), DecodeError> {
        let count = room.values.len();
        let Room {
            values,
            codes,
            absmax,
            ..
        } = room;
        match origin {
            Origin::Half { half, at } => {
                codes.resize(2 * count, 0);
                self.read(at + 2 * first, codes)?;
                half::decode(self.level, *half, codes, values);
            }
            Origin::Int8 { at, absmax: scales } => {
                let block = Scheme::Int8.block();
                codes.resize(count, 0);
                self.read(at + first, codes)?;
                self.scales(
                    piece,
                    scales + first / block as u64 * 4,
                    count.div_ceil(block),
                    absmax,
                )?;
                int8::decode(block, absmax, codes, values);
            }
            Origin::Four {
                four,
                at,
                absmax: scales,
            } => {
                let block = Scheme::Nf4.block();
                codes.resize(count.div_ceil(2), 0);
                self.read(at + first / 2, codes)?;
                self.scales(
                    piece,
                    scales + first / block as u64 * 4,
                    count.div_ceil(block),
                    absmax,
                )?;
                four::decode(*four, block, absmax, codes, values);
            }
            Origin::Adaptive { range, at } => {
                let size = if range.steps == 0 {
                    0
                } else {
                    range.dtype().size()
                };
                codes.resize(size * count, 0);
                self.read(at + size as u64 * first, codes)?;
                adaptive::decode(self.level, range, codes, values);
            }
            // These are not quantized and do not come here.
            Origin::Same { .. } | Origin::Sparse(_) | Origin::Zip(_) => {}
        }
        Ok(())
    }

    fn scales(
        &self,
        piece: &Piece,
        at: u64,
        count: usize,
        into: &mut Vec<f32>,
    ) -> Result<(), DecodeError> {
        into.resize(count, 0.0);
        self.read(at, bytemuck::cast_slice_mut(into))?;
        match into.iter().all(|scale| scale.is_finite() && *scale >= 0.0) {
            true => Ok(()),
            false => Err(damaged(&piece.name, "a largest magnitude is none")),
        }
    }
}

/// What a read needs beside the bytes that it fills.
#[derive(Default)]
struct Room {
    values: Vec<f32>,
    codes: Vec<u8>,
    absmax: Vec<f32>,
    bytes: Vec<u8>,
}

impl ReadAt for View<'_> {
    fn size(&self) -> u64 {
        self.header.total_len()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.size()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut offset, mut into) = (offset, into);
        let head = self.head.len() as u64;
        if offset < head {
            let length = into.len().min((head - offset) as usize);
            let (now, rest) = into.split_at_mut(length);
            self.head.read_at(offset, now)?;
            offset += length as u64;
            into = rest;
        }
        let first = self.pieces.partition_point(|p| p.place.end <= offset);
        for piece in self.pieces.iter().skip(first) {
            if into.is_empty() {
                break;
            }
            let left = piece.place.end - offset;
            let length = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let (now, rest) = into.split_at_mut(length);
            self.fill(piece, offset - piece.place.start, now)?;
            offset += length as u64;
            into = rest;
        }
        Ok(())
    }
}

pub(crate) fn damaged(tensor: &str, problem: &str) -> DecodeError {
    DecodeError::Tensor {
        tensor: shown(tensor),
        problem: problem.into(),
    }
}

fn check_length(header: &ModelHeader, inner: &dyn ReadAt) -> Result<(), DecodeError> {
    let (length, expected) = (inner.size(), header.total_len());
    if length == expected {
        Ok(())
    } else {
        Err(DecodeError::Length { length, expected })
    }
}

/// The parts that must follow an encoded tensor, whose own dtype and length are
/// checked here.
fn parts_of(
    layer: &Layer,
    entry: &Entry,
    tensor: &TensorInfo,
) -> Result<Vec<layer::Part>, DecodeError> {
    let elements = layer::elements(&entry.shape)
        .filter(|elements| elements.checked_mul(8).is_some())
        .ok_or_else(|| damaged(&tensor.name, "its shape is larger than any can be"))?;
    let fits = match layer.step {
        Step::Quantize(_) | Step::TopK if !quantizable(entry.dtype) => false,
        Step::Quantize(Scheme::Fp16) => tensor.dtype == DType::F16 && tensor.shape == entry.shape,
        Step::Quantize(Scheme::Bf16) => tensor.dtype == DType::BF16 && tensor.shape == entry.shape,
        Step::Quantize(Scheme::Int8) => layer::is_flat(tensor, DType::U8, elements),
        Step::Quantize(Scheme::Fp4 | Scheme::Nf4) => {
            layer::is_flat(tensor, DType::U8, elements.div_ceil(2))
        }
        // Which of these it is, the range says.
        Step::Quantize(Scheme::Adaptive) => {
            layer::is_flat(tensor, DType::U8, elements)
                || layer::is_flat(tensor, DType::U16, elements)
                || layer::is_flat(tensor, DType::U8, 0)
        }
        Step::TopK => {
            tensor.dtype == entry.dtype && tensor.shape.len() == 1 && tensor.elements() <= elements
        }
        Step::Zstd => tensor.dtype == DType::U8 && tensor.shape.len() == 1,
    };
    if !fits {
        let problem = format!(
            "{} of {:?} is not what {} makes of {} of {:?}",
            tensor.dtype,
            tensor.shape,
            layer.step.as_str(),
            entry.dtype,
            entry.shape
        );
        return Err(damaged(&tensor.name, &problem));
    }
    Ok(layer.step.parts(entry.dtype, elements, tensor.elements()))
}

/// Whether the lossy steps take a dtype.
pub(crate) fn quantizable(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
}

fn origin(
    layer: &Layer,
    entry: &Entry,
    tensor: &TensorInfo,
    header: &ModelHeader,
    parts: &[u64],
    inner: &dyn ReadAt,
) -> Result<Origin, DecodeError> {
    let at = header.data_start() + tensor.start;
    let elements = layer::elements(&entry.shape).unwrap_or_default();
    let missing = || damaged(&tensor.name, "a part is missing");
    let first = parts.first().copied();
    let second = parts.get(1).copied();
    Ok(match layer.step {
        Step::Quantize(Scheme::Fp16) => Origin::Half {
            half: Half::Fp16,
            at,
        },
        Step::Quantize(Scheme::Bf16) => Origin::Half {
            half: Half::Bf16,
            at,
        },
        Step::Quantize(scheme @ (Scheme::Int8 | Scheme::Fp4 | Scheme::Nf4)) => {
            let (absmax, code) = (first.ok_or_else(missing)?, second.ok_or_else(missing)?);
            check_code(scheme, &tensor.name, code, inner)?;
            match scheme {
                Scheme::Int8 => Origin::Int8 { at, absmax },
                Scheme::Fp4 => Origin::Four {
                    four: Four::Fp4,
                    at,
                    absmax,
                },
                _ => Origin::Four {
                    four: Four::Nf4,
                    at,
                    absmax,
                },
            }
        }
        Step::Quantize(Scheme::Adaptive) => {
            let mut bytes = [0; 24];
            let place = first.ok_or_else(missing)?;
            inner
                .read_at(place, &mut bytes)
                .map_err(DecodeError::Read)?;
            let [least, width, steps] = bytemuck::pod_read_unaligned::<[f64; 3]>(&bytes);
            let known = least.is_finite()
                && width.is_finite()
                && width >= 0.0
                && (0.0..=65535.0).contains(&steps)
                && steps.fract() == 0.0;
            let range = adaptive::Range {
                least,
                width,
                steps: if known { steps as u32 } else { 0 },
            };
            let length = if range.steps == 0 { 0 } else { elements };
            if !known || !layer::is_flat(tensor, range.dtype(), length) {
                return Err(damaged(&tensor.name, "its range is none"));
            }
            Origin::Adaptive { range, at }
        }
        Step::TopK => Origin::Sparse(sparse::Origin {
            values: at,
            index: first.ok_or_else(missing)?,
            ends: second.ok_or_else(missing)?,
            kept: tensor.elements(),
            stretches: elements.div_ceil(STRETCH),
            elements,
        }),
        Step::Zstd => Origin::Zip(zip::Origin {
            at,
            length: tensor.size(),
            ends: first.ok_or_else(missing)?,
            unzipped: elements * entry.dtype.size() as u64,
            size: entry.dtype.size(),
        }),
    })
}

/// The code book travels, as it does from bitsandbytes, but no other than the
/// scheme's is taken.
fn check_code(
    scheme: Scheme,
    tensor: &str,
    at: u64,
    inner: &dyn ReadAt,
) -> Result<(), DecodeError> {
    let code = code_of(scheme);
    let mut found = vec![0; code.len()];
    inner.read_at(at, &mut found).map_err(DecodeError::Read)?;
    if found == code {
        Ok(())
    } else {
        Err(damaged(
            tensor,
            &format!("its code book is not that of {scheme}"),
        ))
    }
}

/// The bytes of a scheme's code book.
pub(crate) fn code_of(scheme: Scheme) -> Vec<u8> {
    match scheme {
        Scheme::Int8 => bytemuck::cast_slice(&int8::CODES).to_vec(),
        Scheme::Fp4 => bytemuck::cast_slice(&Four::Fp4.codes()).to_vec(),
        Scheme::Nf4 => bytemuck::cast_slice(&Four::Nf4.codes()).to_vec(),
        Scheme::Fp16 | Scheme::Bf16 | Scheme::Adaptive => Vec::new(),
    }
}
