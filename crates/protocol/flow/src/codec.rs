//! The bytes of snapshots: little-endian, counted, and read with suspicion.
//!
//! A snapshot begins with a magic word, a version and the workflow's kind; what
//! follows is the state, field by field. Nothing read decides an allocation
//! larger than what is left to read.

use firesteel_base::{Attempt, Failure, FailureCode, Phase, Round, SiteName, Time};

use crate::{
    BestMark, Missed, ModelHandle, Outcome, ParamsType, RestoreError, SiteFailure, StopReason,
    TaskStage,
};

const MAGIC: [u8; 4] = *b"FSWF";

/// Bytes of a kind that an error repeats.
const KIND_SHOWN: usize = 32;

/// Starts a snapshot.
// WIRE: magic, u16 version, kind as a counted string.
pub(crate) fn begin(version: u16, kind: &str) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(version.to_le_bytes());
    kind.to_owned().pack(&mut out);
    out
}

/// Checks the start of a snapshot and gives the reader of the rest.
pub(crate) fn open<'a>(
    bytes: &'a [u8],
    version: u16,
    kind: &'static str,
) -> Result<Reader<'a>, RestoreError> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take::<4>("the magic word")? != MAGIC {
        return Err(RestoreError::Damaged {
            at: 0,
            what: "the magic word",
        });
    }
    let found = u16::from_le_bytes(reader.take("the version")?);
    if found == 0 || found > version {
        return Err(RestoreError::Version {
            found,
            known: version,
        });
    }
    let named = String::unpack(&mut reader)?;
    if named != kind {
        return Err(RestoreError::Kind {
            found: named.chars().take(KIND_SHOWN).collect(),
            expected: kind,
        });
    }
    Ok(reader)
}

/// A position in bytes that anybody may have written.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], RestoreError> {
        let found = (self.bytes.get(self.at..))
            .and_then(|rest| rest.first_chunk::<N>())
            .ok_or(self.damaged(what))?;
        self.at += N;
        Ok(*found)
    }

    fn take_slice(&mut self, length: usize, what: &'static str) -> Result<&[u8], RestoreError> {
        let damaged = self.damaged(what);
        let end = self.at.checked_add(length).ok_or(damaged.clone())?;
        let found = self.bytes.get(self.at..end).ok_or(damaged)?;
        self.at = end;
        Ok(found)
    }

    pub(crate) fn damaged(&self, what: &'static str) -> RestoreError {
        RestoreError::Damaged { at: self.at, what }
    }

    /// Ends the reading; bytes left over are damage.
    pub(crate) fn finish(self) -> Result<(), RestoreError> {
        if self.at == self.bytes.len() {
            Ok(())
        } else {
            Err(self.damaged("the end"))
        }
    }
}

/// What a snapshot can hold.
pub(crate) trait Pack: Sized {
    fn pack(&self, out: &mut Vec<u8>);
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, RestoreError>;
}

macro_rules! pack_number {
    ($($number:ty: $what:literal,)*) => {$(
        impl Pack for $number {
            fn pack(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
            fn unpack(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
                Ok(Self::from_le_bytes(reader.take($what)?))
            }
        }
    )*};
}
pack_number! {
    u8: "a byte",
    u32: "a 32-bit number",
    u64: "a 64-bit number",
    f64: "a floating-point number",
}

impl Pack for bool {
    fn pack(&self, out: &mut Vec<u8>) {
        u8::from(*self).pack(out);
    }
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        match u8::unpack(reader)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(reader.damaged("a yes or no")),
        }
    }
}

/// Counts are 32 bits wide: no list of a workflow comes near that.
fn pack_count(count: usize, out: &mut Vec<u8>) {
    u32::try_from(count)
        .expect("lists are bounded by the numbers of sites, metrics and log lines")
        .pack(out);
}

impl Pack for usize {
    fn pack(&self, out: &mut Vec<u8>) {
        (*self as u64).pack(out);
    }
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        Self::try_from(u64::unpack(reader)?).map_err(|_| reader.damaged("a count"))
    }
}

impl Pack for String {
    fn pack(&self, out: &mut Vec<u8>) {
        pack_count(self.len(), out);
        out.extend(self.as_bytes());
    }
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        let length = u32::unpack(reader)? as usize;
        let text = std::str::from_utf8(reader.take_slice(length, "a text")?).map(str::to_owned);
        text.map_err(|_| reader.damaged("a text in UTF-8"))
    }
}

impl<T: Pack> Pack for Option<T> {
    fn pack(&self, out: &mut Vec<u8>) {
        self.is_some().pack(out);
        if let Some(inner) = self {
            inner.pack(out);
        }
    }
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        Ok(match bool::unpack(reader)? {
            true => Some(T::unpack(reader)?),
            false => None,
        })
    }
}

impl<T: Pack> Pack for Vec<T> {
    fn pack(&self, out: &mut Vec<u8>) {
        pack_count(self.len(), out);
        for item in self {
            item.pack(out);
        }
    }
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        // Every item takes at least a byte, so a lying count ends at the end
        // of the bytes, and nothing is reserved on its word.
        let count = u32::unpack(reader)?;
        (0..count).map(|_| T::unpack(reader)).collect()
    }
}

impl<T: Pack> Pack for Box<T> {
    fn pack(&self, out: &mut Vec<u8>) {
        T::pack(self, out);
    }
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        T::unpack(reader).map(Self::new)
    }
}

impl<A: Pack, B: Pack> Pack for (A, B) {
    fn pack(&self, out: &mut Vec<u8>) {
        self.0.pack(out);
        self.1.pack(out);
    }
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        Ok((A::unpack(reader)?, B::unpack(reader)?))
    }
}

macro_rules! pack_newtype {
    ($($name:ident($inner:ty),)*) => {$(
        impl Pack for $name {
            fn pack(&self, out: &mut Vec<u8>) {
                self.0.pack(out);
            }
            fn unpack(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
                Ok(Self(<$inner>::unpack(reader)?))
            }
        }
    )*};
}
pack_newtype! { Time(u64), Round(u32), Attempt(u32), ModelHandle(u64), }

/// Fields in the order given: that order is the format.
macro_rules! pack_struct {
    ($($name:ident { $($field:ident),* $(,)? })*) => {$(
        impl $crate::codec::Pack for $name {
            fn pack(&self, out: &mut Vec<u8>) {
                $($crate::codec::Pack::pack(&self.$field, out);)*
            }
            fn unpack(reader: &mut $crate::codec::Reader<'_>) -> Result<Self, $crate::RestoreError> {
                Ok(Self { $($field: $crate::codec::Pack::unpack(reader)?,)* })
            }
        }
    )*};
}
pub(crate) use pack_struct;

/// A byte per variant, then its fields in the order given.
macro_rules! pack_enum {
    ($($name:ident { $($tag:literal => $variant:ident $({ $($field:ident),* $(,)? })? $(($inner:ident))?,)* })*) => {$(
        impl $crate::codec::Pack for $name {
            fn pack(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant $({ $($field),* })? $(($inner))? => {
                        out.push($tag);
                        $($($crate::codec::Pack::pack($field, out);)*)?
                        $($crate::codec::Pack::pack($inner, out);)?
                    })*
                }
            }
            fn unpack(reader: &mut $crate::codec::Reader<'_>) -> Result<Self, $crate::RestoreError> {
                match <u8 as $crate::codec::Pack>::unpack(reader)? {
                    $($tag => {
                        $($(let $field = $crate::codec::Pack::unpack(reader)?;)*)?
                        $(let $inner = $crate::codec::Pack::unpack(reader)?;)?
                        Ok(Self::$variant $({ $($field),* })? $(($inner))?)
                    })*
                    _ => Err(reader.damaged(concat!("a kind of ", stringify!($name)))),
                }
            }
        }
    )*};
}
pub(crate) use pack_enum;

impl Pack for SiteName {
    fn pack(&self, out: &mut Vec<u8>) {
        self.as_str().to_owned().pack(out);
    }
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        Self::new(&String::unpack(reader)?).map_err(|_| reader.damaged("a site's name"))
    }
}

impl Pack for FailureCode {
    fn pack(&self, out: &mut Vec<u8>) {
        self.as_str().to_owned().pack(out);
    }
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        Self::parse(&String::unpack(reader)?).ok_or(reader.damaged("a failure's code"))
    }
}

impl Pack for Phase {
    fn pack(&self, out: &mut Vec<u8>) {
        self.as_str().to_owned().pack(out);
    }
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        Self::parse(&String::unpack(reader)?).ok_or(reader.damaged("a failure's phase"))
    }
}

pack_enum! {
    ParamsType { 0 => Full, 1 => Diff, }
    TaskStage { 0 => Assigned, 1 => Accepted, 2 => Training, 3 => Returning, }
    StopReason {
        0 => AllRounds,
        1 => Condition { condition, value },
        2 => Patience { rounds },
    }
    Outcome {
        0 => Completed { stop, rounds },
        1 => CompletedWith { stop, rounds, contributed, of, missed },
        2 => Failed { cause, hint, round, failures },
        3 => Aborted { reason },
    }
}

pack_struct! {
    Failure { code, phase, message, hint, traceback, log_tail }
    BestMark { model, made_in, rated_in, metric, value }
    Missed { site, rounds, first, last, cause }
    SiteFailure { site, failure }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_beyond_the_bytes_is_damage_and_reserves_nothing() {
        let bytes = u32::MAX.to_le_bytes();
        for unpack in [
            |r: &mut Reader<'_>| Vec::<u64>::unpack(r).err(),
            |r: &mut Reader<'_>| String::unpack(r).err(),
            |r: &mut Reader<'_>| Vec::<Failure>::unpack(r).err(),
        ] {
            let mut reader = Reader {
                bytes: &bytes,
                at: 0,
            };
            assert!(matches!(
                unpack(&mut reader),
                Some(RestoreError::Damaged { at: 4, .. })
            ));
        }
    }

    #[test]
    fn what_is_not_a_snapshot_is_named() {
        assert!(matches!(
            open(b"PK\x03\x04....", 1, "fedavg"),
            Err(RestoreError::Damaged { at: 0, .. })
        ));
        assert!(matches!(
            open(&begin(2, "fedavg"), 1, "fedavg"),
            Err(RestoreError::Version { found: 2, known: 1 })
        ));
        assert!(matches!(
            open(&begin(1, "cyclic"), 1, "fedavg"),
            Err(RestoreError::Kind { found, .. }) if found == "cyclic"
        ));
    }

    #[test]
    fn bytes_left_over_are_damage() {
        let mut bytes = begin(1, "fedavg");
        assert!(open(&bytes, 1, "fedavg").unwrap().finish().is_ok());
        bytes.push(0);
        assert!(open(&bytes, 1, "fedavg").unwrap().finish().is_err());
    }
}
