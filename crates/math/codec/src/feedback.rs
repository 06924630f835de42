//! Error feedback: what a chain loses is added to what it sends the next time
//! (Seide et al., 2014).
//!
//! It looks at the chain from outside: the residual is what went in less what the
//! receiver will read, so it holds for any filters in any order.

use std::collections::HashMap;
use std::io;

use fearless_simd::Level;
use firesteel_base::limits;
use firesteel_tensor::text::shown;
use firesteel_tensor::{DType, HeaderBuilder, ModelHeader, TensorInfo};

use crate::bytes::{ReadAt, WriteAt};
use crate::chain::{self, Model};
use crate::error::EncodeError;
use crate::kernel::values;
use crate::view::quantizable;

/// A model to whose values the residual of the last time is added.
pub(crate) struct Corrected<'a> {
    model: Model<'a>,
    level: Level,
    /// Tensors in the order of their bytes.
    pieces: Vec<Piece>,
    residual: Option<Model<'a>>,
}

struct Piece {
    start: u64,
    end: u64,
    dtype: DType,
    /// Its place in the model's header.
    at: usize,
    /// Where its residual starts in that file.
    residual: Option<u64>,
    fed_back: bool,
}

impl<'a> Corrected<'a> {
    pub(crate) fn new(
        model: Model<'a>,
        residual: Option<Model<'a>>,
        picks: &dyn Fn(&TensorInfo) -> bool,
    ) -> Result<Self, EncodeError> {
        let mut pieces = Vec::with_capacity(model.header.tensors().len());
        for (at, tensor) in model.header.tensors().iter().enumerate() {
            let fed_back = quantizable(tensor.dtype) && picks(tensor);
            let known = residual.as_ref().filter(|_| fed_back);
            let known = known.and_then(|r| Some((r, r.header.get(&tensor.name)?)));
            if let Some((_, known)) = known
                && (known.dtype != DType::F32 || known.shape != tensor.shape)
            {
                return Err(EncodeError::Residual {
                    tensor: shown(&tensor.name),
                });
            }
            let start = model.header.data_start() + tensor.start;
            pieces.push(Piece {
                start,
                end: start + tensor.size(),
                dtype: tensor.dtype,
                at,
                residual: known.map(|(r, known)| r.header.data_start() + known.start),
                fed_back,
            });
        }
        pieces.sort_by_key(|piece| (piece.start, piece.end));
        Ok(Self {
            model,
            level: Level::new(),
            pieces,
            residual,
        })
    }

    /// The corrected values of a tensor from `first` on, in full precision.
    fn values(&self, piece: &Piece, first: u64, into: &mut [f32]) -> io::Result<()> {
        let size = piece.dtype.size();
        let mut bytes = vec![0; into.len() * size];
        let at = piece.start + first * size as u64;
        self.model.bytes.read_at(at, &mut bytes)?;
        values::widen(self.level, piece.dtype, &bytes, into);
        if let (Some(residual), Some(at)) = (&self.residual, piece.residual) {
            let mut more = vec![0f32; into.len()];
            let bytes = bytemuck::cast_slice_mut(&mut more);
            residual.bytes.read_at(at + 4 * first, bytes)?;
            values::add(self.level, into, &more);
        }
        Ok(())
    }

    /// Fills `into` with a tensor's corrected bytes from `from` on.
    fn fill(&self, piece: &Piece, from: u64, into: &mut [u8]) -> io::Result<()> {
        if piece.residual.is_none() {
            return self.model.bytes.read_at(piece.start + from, into);
        }
        let size = piece.dtype.size() as u64;
        let (mut from, mut into) = (from, into);
        let (mut floats, mut bytes) = (Vec::new(), Vec::new());
        while !into.is_empty() {
            let first = from / size;
            let last = (from + into.len() as u64).div_ceil(size);
            let last = last.min(first + limits::CODEC_WINDOW as u64);
            let count = (last - first) as usize;
            floats.resize(count, 0.0);
            self.values(piece, first, &mut floats)?;
            bytes.resize(count * size as usize, 0);
            values::narrow(self.level, piece.dtype, &floats, &mut bytes);
            let skip = (from - first * size) as usize;
            let length = into.len().min(bytes.len() - skip);
            let (now, rest) = into.split_at_mut(length);
            now.copy_from_slice(bytes.get(skip..skip + length).unwrap_or_default());
            from += length as u64;
            into = rest;
        }
        Ok(())
    }
}

impl ReadAt for Corrected<'_> {
    fn size(&self) -> u64 {
        self.model.bytes.size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let (mut offset, mut into) = (offset, into);
        let head = self.model.header.data_start();
        if offset < head {
            let length = into.len().min((head - offset) as usize);
            let (now, rest) = into.split_at_mut(length);
            self.model.bytes.read_at(offset, now)?;
            offset += length as u64;
            into = rest;
        }
        let first = self.pieces.partition_point(|p| p.end <= offset);
        for piece in self.pieces.iter().skip(first) {
            if into.is_empty() {
                return Ok(());
            }
            let left = usize::try_from(piece.end - offset).unwrap_or(usize::MAX);
            let length = into.len().min(left);
            let (now, rest) = into.split_at_mut(length);
            self.fill(piece, offset - piece.start, now)?;
            offset += length as u64;
            into = rest;
        }
        if into.is_empty() {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

/// Writes what the receiver will miss: the corrected values less those that it
/// will read. A tensor that was not sent at all is not in it: it is as the model
/// has it, on purpose.
pub(crate) fn write(
    corrected: &Corrected<'_>,
    sent: Model<'_>,
    out: &mut dyn WriteAt,
) -> Result<ModelHeader, EncodeError> {
    let view = chain::decode(sent.header, sent.bytes).map_err(EncodeError::Marked)?;
    let (received, bytes): (&ModelHeader, &dyn ReadAt) = match &view {
        Some(view) => (view.header(), view),
        None => (sent.header, sent.bytes),
    };
    let level = corrected.level;
    let all = corrected.model.header.tensors();
    let mut builder = HeaderBuilder::new();
    let mut pieces = HashMap::new();
    for piece in corrected.pieces.iter().filter(|piece| piece.fed_back) {
        pieces.insert(piece.at, piece);
    }
    let mut kept = Vec::new();
    for (at, tensor) in all.iter().enumerate() {
        let source = received.get(&tensor.name);
        if let (Some(piece), Some(source)) = (pieces.get(&at), source) {
            builder.tensor(&tensor.name, DType::F32, &tensor.shape);
            kept.push((*piece, source));
        }
    }
    let (head, header) = builder.encode()?;
    out.write_at(0, &head).map_err(EncodeError::Write)?;
    let (mut lost, mut read, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for (to, (piece, source)) in header.tensors().iter().zip(kept) {
        let mut first = 0;
        while first < to.elements() {
            let count = (to.elements() - first).min(limits::CODEC_WINDOW as u64) as usize;
            lost.resize(count, 0.0);
            read.resize(count, 0.0);
            let values = corrected.values(piece, first, &mut lost);
            values.map_err(EncodeError::Read)?;
            let size = source.dtype.size();
            raw.resize(count * size, 0);
            let at = received.data_start() + source.start + first * size as u64;
            bytes.read_at(at, &mut raw).map_err(EncodeError::Read)?;
            values::widen(level, source.dtype, &raw, &mut read);
            values::subtract(level, &mut lost, &read);
            let at = header.data_start() + to.start + 4 * first;
            let bytes = bytemuck::cast_slice(&lost);
            out.write_at(at, bytes).map_err(EncodeError::Write)?;
            first += count as u64;
        }
    }
    Ok(header)
}
