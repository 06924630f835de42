//! The bytes of a model, wherever they are: mapped, in a file, in memory, or not
//! there at all until somebody asks.

use std::io;

/// Bytes that can be read from anywhere, by several threads at once.
pub trait ReadAt: Send + Sync {
    /// How many there are.
    fn size(&self) -> u64;

    /// Fills `into` with the bytes from `offset` on.
    ///
    /// # Errors
    /// Whatever kept it from filling all of `into`; the end of the bytes is
    /// [`io::ErrorKind::UnexpectedEof`].
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

/// Bytes that can be written anywhere; what lies between is zeros.
pub trait WriteAt {
    /// Writes `bytes` from `offset` on.
    ///
    /// # Errors
    /// Whatever kept it from writing all of them.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

/// A file that is being made: what was written can be read again.
pub trait Draft: ReadAt + WriteAt {}

impl<T: ReadAt + WriteAt + ?Sized> Draft for T {}

impl ReadAt for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|start| start.checked_add(into.len()));
        let bytes = start.zip(end).and_then(|(start, end)| self.get(start..end));
        let Some(bytes) = bytes else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        into.copy_from_slice(bytes);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.as_slice().size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset, into)
    }
}

impl WriteAt for Vec<u8> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start
            .checked_add(bytes.len())
            .ok_or(io::ErrorKind::FileTooLarge)?;
        if self.len() < end {
            self.resize(end, 0);
        }
        if let Some(room) = self.get_mut(start..end) {
            room.copy_from_slice(bytes);
        }
        Ok(())
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, into)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Box<T> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, into)
    }
}

impl<T: WriteAt + ?Sized> WriteAt for Box<T> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, bytes)
    }
}
