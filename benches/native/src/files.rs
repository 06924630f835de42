//! Files that are in the page cache, with all their blocks allocated.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// How much is read, written, hashed or sent at a time, as in a transfer.
pub const WINDOW: usize = 256 * 1024;

/// Makes a file of noise: nothing of it is sparse, equal or compressible.
pub fn noise(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut window = vec![0u8; WINDOW];
    let mut left = bytes;
    while left > 0 {
        for eight in window.as_chunks_mut::<8>().0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *eight = state.to_le_bytes();
        }
        let now = usize::try_from(left).unwrap_or(WINDOW).min(WINDOW);
        file.write_all(&window[..now])?;
        left -= now as u64;
    }
    Ok(())
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
