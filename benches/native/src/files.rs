//! Files that are in the page cache, with all their blocks allocated.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use firesteel_store::{ModelObject, Objects};
use firesteel_tensor::{DType, HeaderBuilder};

/// How much is read, written, hashed or sent at a time, as in a transfer.
pub const WINDOW: usize = 256 * 1024;

/// Tensors of a model that is only bytes here.
const MODEL_TENSORS: u64 = 64;

/// A model of noise, mapped; its file and its store lie in `folder`.
///
/// The store maps it as it does for everybody; what is mapped is kept open by it.
pub fn mapped_model(folder: &Path, name: &str, bytes: u64) -> Result<ModelObject> {
    let path = folder.join(name);
    if !path.exists() {
        write_model(&path, MODEL_TENSORS, bytes / MODEL_TENSORS)?;
    }
    let objects = Objects::open(&folder.join(format!("{name}-objects")))?;
    Ok(objects.import_kept(&path)?)
}

/// A model of noise: nothing of it is sparse, equal or compressible. Its length.
pub fn write_model(path: &Path, tensors: u64, each: u64) -> Result<u64> {
    let mut builder = HeaderBuilder::new();
    for number in 0..tensors {
        builder.tensor(&format!("layer_{number:06}"), DType::F32, &[each / 4]);
    }
    let (head, header) = builder.encode()?;
    let mut file = io::BufWriter::with_capacity(WINDOW, File::create(path)?);
    file.write_all(&head)?;
    let mut left = header.total_len() - head.len() as u64;
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    while left > 0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Two numbers from 1 to 2: finite, whatever the bits.
        let bits = (state & 0x007f_ffff_007f_ffff) | 0x3f80_0000_3f80_0000;
        let now = left.min(8) as usize;
        file.write_all(&bits.to_le_bytes()[..now])?;
        left -= now as u64;
    }
    file.into_inner()?.sync_all()?;
    Ok(header.total_len())
}

/// Opens a file for writing over, all of whose pages are there.
pub fn warm_output(path: &Path, bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    if file.metadata()?.len() != bytes {
        file.set_len(0)?;
        let zeros = vec![0u8; WINDOW];
        let mut left = bytes;
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(WINDOW).min(WINDOW);
            (&file).write_all(&zeros[..now])?;
            left -= now as u64;
        }
    }
    Ok(file)
}
