//! The plainest tar: POSIX headers, regular files, nothing else.

use std::io::{self, Read};

use tar::{EntryType, Header};

use super::BundleError;

pub(super) const BLOCK: usize = 512;

/// Zero blocks that may follow the two at the end: other writers fill up to 20.
const TAIL: usize = 20;

/// What a header says.
pub(super) struct Entry {
    pub path: String,
    pub length: u64,
}

/// The header of a file.
pub(super) fn header(path: &str, length: u64, executable: bool) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(path)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(if executable { 0o755 } else { 0o644 });
    // Nothing of the machine it was made on, and the same bytes each time.
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(length);
    header.set_cksum();
    Ok(header)
}

/// Zeros after so many bytes of content.
pub(super) fn padding(length: u64) -> usize {
    let over = (length % BLOCK as u64) as usize;
    if over == 0 { 0 } else { BLOCK - over }
}

/// Reads exactly so many bytes.
pub(super) fn exactly(
    from: &mut impl Read,
    into: &mut [u8],
    within: &str,
) -> Result<(), BundleError> {
    from.read_exact(into).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => BundleError::Short {
            within: within.to_owned(),
        },
        _ => BundleError::Stream(error),
    })
}

/// The next file's header; `None` at the end, which is read to the last byte.
pub(super) fn next(from: &mut impl Read, after: &str) -> Result<Option<Entry>, BundleError> {
    let mut block = [0; BLOCK];
    let within = format!("what follows {after}");
    exactly(from, &mut block, &within)?;
    if block.iter().all(|byte| *byte == 0) {
        end(from)?;
        return Ok(None);
    }
    let refused = |problem: String| BundleError::Archive { problem };
    let header = Header::from_byte_slice(&block);
    let Some(ustar) = header.as_ustar() else {
        return Err(refused(format!("after {after} there is no POSIX header")));
    };
    let sum: u32 = block
        .iter()
        .enumerate()
        // The field of the sum itself counts as spaces.
        .map(|(at, byte)| match at {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        })
        .sum();
    if !header.cksum().is_ok_and(|stored| stored == sum) {
        return Err(refused(format!("the header after {after} is damaged")));
    }
    let path = ustar.path_bytes();
    let shown = String::from_utf8_lossy(path.get(..80).unwrap_or(&path)).into_owned();
    let kind = match header.entry_type() {
        EntryType::Regular => None,
        EntryType::Link => Some("a hard link"),
        EntryType::Symlink => Some("a symbolic link"),
        EntryType::Char | EntryType::Block => Some("a device"),
        EntryType::Directory => Some("a folder"),
        EntryType::Fifo => Some("a pipe"),
        EntryType::GNUSparse => Some("a sparse file"),
        EntryType::XHeader
        | EntryType::XGlobalHeader
        | EntryType::GNULongName
        | EntryType::GNULongLink => Some("an extension of the archive"),
        _ => Some("of an unknown kind"),
    };
    if let Some(kind) = kind {
        return Err(BundleError::NotAFile { path: shown, kind });
    }
    let length = header
        .entry_size()
        .map_err(|_| refused(format!("the length of {shown:?} is no number")))?;
    let path = String::from_utf8(path.into_owned())
        .map_err(|_| refused(format!("the path {shown:?} is not UTF-8")))?;
    Ok(Some(Entry { path, length }))
}

/// After the first zero block: one more, and zeros to the end.
fn end(from: &mut impl Read) -> Result<(), BundleError> {
    let mut block = [0; BLOCK];
    exactly(from, &mut block, "its end")?;
    let mut rest = Vec::new();
    from.take((TAIL * BLOCK) as u64 + 1)
        .read_to_end(&mut rest)
        .map_err(BundleError::Stream)?;
    if rest.len() > TAIL * BLOCK || block.iter().chain(&rest).any(|byte| *byte != 0) {
        return Err(BundleError::Archive {
            problem: "something follows its end".to_owned(),
        });
    }
    Ok(())
}
