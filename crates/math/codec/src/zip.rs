//! Compression: frames of zstd over a tensor's bytes, of which all first bytes of
//! its elements come first, then all second ones. Exponents that are alike then
//! lie beside each other.

use std::io;

use firesteel_base::limits;

use crate::bytes::ReadAt;
use crate::error::DecodeError;
use crate::view::damaged;

const FRAME: usize = limits::CODEC_FRAME;

/// Where the parts of a compressed tensor are.
pub(crate) struct Origin {
    pub at: u64,
    pub length: u64,
    pub ends: u64,
    /// Bytes of the tensor.
    pub unzipped: u64,
    /// Bytes of an element.
    pub size: usize,
}

impl Origin {
    /// Fills `into` with the tensor's bytes from `from` on.
    pub(crate) fn read(
        &self,
        inner: &dyn ReadAt,
        name: &str,
        from: u64,
        into: &mut [u8],
    ) -> Result<(), DecodeError> {
        let mut room = Room::default();
        let (mut from, mut into) = (from, into);
        while !into.is_empty() {
            let frame = from / FRAME as u64;
            self.frame(inner, name, frame, &mut room)?;
            let skip = (from % FRAME as u64) as usize;
            let bytes = room.bytes.get(skip..).unwrap_or_default();
            let length = into.len().min(bytes.len());
            if length == 0 {
                return Err(damaged(name, "it ends early"));
            }
            let (now, rest) = into.split_at_mut(length);
            now.copy_from_slice(bytes.get(..length).unwrap_or_default());
            from += length as u64;
            into = rest;
        }
        Ok(())
    }

    fn frame(
        &self,
        inner: &dyn ReadAt,
        name: &str,
        frame: u64,
        room: &mut Room,
    ) -> Result<(), DecodeError> {
        let end = |frame: u64| {
            let mut bytes = [0; 8];
            let at = self.ends + 8 * frame;
            inner.read_at(at, &mut bytes).map_err(DecodeError::Read)?;
            Ok::<_, DecodeError>(u64::from_le_bytes(bytes))
        };
        let before = match frame.checked_sub(1) {
            Some(before) => end(before)?,
            None => 0,
        };
        let after = end(frame)?;
        let last = (frame + 1) * FRAME as u64 >= self.unzipped;
        let most = zstd::zstd_safe::compress_bound(FRAME) as u64;
        let fits = before <= after
            && after - before <= most
            && after <= self.length
            && (!last || after == self.length);
        if !fits {
            return Err(damaged(name, "the lengths of its frames do not add up"));
        }
        room.zipped.resize((after - before) as usize, 0);
        let at = self.at + before;
        inner
            .read_at(at, &mut room.zipped)
            .map_err(DecodeError::Read)?;
        let length = (self.unzipped - frame * FRAME as u64).min(FRAME as u64) as usize;
        room.planes.resize(length, 0);
        // Never more than there is room for, whatever the frame says.
        let found = zstd::bulk::decompress_to_buffer(&room.zipped, &mut room.planes);
        match found {
            Ok(found) if found == length => {}
            Ok(_) => return Err(damaged(name, "a frame has another length than it should")),
            Err(_) => return Err(damaged(name, "a frame cannot be decompressed")),
        }
        room.bytes.resize(length, 0);
        gather(&room.planes, self.size, &mut room.bytes);
        Ok(())
    }
}

#[derive(Default)]
struct Room {
    zipped: Vec<u8>,
    planes: Vec<u8>,
    bytes: Vec<u8>,
}

/// Compresses frames, one after the other.
pub(crate) struct Zipper {
    zstd: zstd::bulk::Compressor<'static>,
    planes: Vec<u8>,
    pub zipped: Vec<u8>,
}

impl Zipper {
    pub(crate) fn new(level: i32) -> io::Result<Self> {
        Ok(Self {
            zstd: zstd::bulk::Compressor::new(level)?,
            planes: Vec::new(),
            zipped: vec![0; zstd::zstd_safe::compress_bound(FRAME)],
        })
    }

    /// Compresses one frame of elements of `size` bytes; how many bytes of
    /// `zipped` it takes.
    pub(crate) fn zip(&mut self, frame: &[u8], size: usize) -> io::Result<usize> {
        self.planes.resize(frame.len(), 0);
        spread(frame, size, &mut self.planes);
        self.zstd.compress_to_buffer(&self.planes, &mut self.zipped)
    }
}

/// The most bytes that so many may take.
pub(crate) fn bound(bytes: u64) -> u64 {
    let frames = bytes.div_ceil(FRAME as u64);
    frames.saturating_mul(zstd::zstd_safe::compress_bound(FRAME) as u64)
}

/// Puts first bytes to first bytes, second to second ones.
fn spread(bytes: &[u8], size: usize, planes: &mut [u8]) {
    match size {
        2 => spread_by::<2>(bytes, planes),
        4 => spread_by::<4>(bytes, planes),
        8 => spread_by::<8>(bytes, planes),
        _ => planes.copy_from_slice(bytes),
    }
}

fn spread_by<const N: usize>(bytes: &[u8], planes: &mut [u8]) {
    let count = bytes.len() / N;
    for (byte, plane) in planes.chunks_mut(count.max(1)).enumerate() {
        for (to, element) in plane.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *to = element.get(byte).copied().unwrap_or_default();
        }
    }
}

/// The inverse of [`spread`].
fn gather(planes: &[u8], size: usize, bytes: &mut [u8]) {
    match size {
        2 => gather_by::<2>(planes, bytes),
        4 => gather_by::<4>(planes, bytes),
        8 => gather_by::<8>(planes, bytes),
        _ => bytes.copy_from_slice(planes),
    }
}

fn gather_by<const N: usize>(planes: &[u8], bytes: &mut [u8]) {
    let count = bytes.len() / N;
    for (byte, plane) in planes.chunks(count.max(1)).enumerate() {
        for (from, element) in plane.iter().zip(bytes.as_chunks_mut::<N>().0) {
            if let Some(to) = element.get_mut(byte) {
                *to = *from;
            }
        }
    }
}
