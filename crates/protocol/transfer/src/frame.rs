//! Frames of a transfer: a head of 32 bytes, then the payload as it is.

use crate::error::TransferError;
use firesteel_base::limits;

/// Bytes of a frame's head.
pub const HEAD: usize = 32;

/// The version of the protocol, in every frame.
pub const VERSION: u8 = 1;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Receiver: begins a transfer. `offset` is the object's id, `value` its length.
    Open = 1,
    /// Receiver: wants `value` bytes of the manifest from `offset` on.
    WantManifest = 2,
    /// Receiver: wants `value` bytes of the file from `offset` on.
    Want = 3,
    /// Receiver: wants nothing more of this transfer. `value` is 0 when it has
    /// everything, 1 when it gave up.
    Close = 4,
    /// Either: still there. From a sender `value` is how many bytes it has read
    /// to make the manifest.
    Wait = 5,
    /// Sender: the answer to `Open`. `offset` is the manifest's length, `value`
    /// the file's, the payload the manifest's digest.
    Offer = 16,
    /// Sender: bytes of the manifest from `offset` on.
    Manifest = 17,
    /// Sender: bytes of the file from `offset` on.
    Data = 18,
    /// Sender: this transfer is over. `value` is the code, the payload a sentence.
    Refused = 19,
}

impl Kind {
    fn parse(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Open,
            2 => Self::WantManifest,
            3 => Self::Want,
            4 => Self::Close,
            5 => Self::Wait,
            16 => Self::Offer,
            17 => Self::Manifest,
            18 => Self::Data,
            19 => Self::Refused,
            _ => return None,
        })
    }

    /// The longest payload that it may have.
    fn limit(self) -> usize {
        match self {
            Self::Open | Self::WantManifest | Self::Want | Self::Close | Self::Wait => 0,
            Self::Offer => crate::Digest::BYTES,
            Self::Manifest | Self::Data => limits::TRANSFER_PAYLOAD,
            Self::Refused => limits::REFUSAL,
        }
    }
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub kind: Kind,
    /// Bytes that follow it.
    pub payload: u32,
    /// The transfer that it belongs to; the receiver numbers them.
    pub transfer: u64,
    /// See [`Kind`].
    pub offset: u64,
    /// See [`Kind`].
    pub value: u64,
}

impl Head {
    /// A frame without payload.
    pub fn new(kind: Kind, transfer: u64, offset: u64, value: u64) -> Self {
        Self {
            kind,
            payload: 0,
            transfer,
            offset,
            value,
        }
    }

    /// The head's bytes.
    pub fn encode(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        let mut rest = &mut bytes[..];
        for field in [
            &[self.kind as u8, VERSION, 0, 0][..],
            &self.payload.to_le_bytes(),
            &self.transfer.to_le_bytes(),
            &self.offset.to_le_bytes(),
            &self.value.to_le_bytes(),
        ] {
            let (here, after) = rest.split_at_mut(field.len());
            here.copy_from_slice(field);
            rest = after;
        }
        bytes
    }

    /// Reads a head, and refuses it before any memory is taken for its payload.
    ///
    /// # Errors
    /// [`TransferError::Frame`] for an unknown kind or version, or a payload that
    /// is longer than its kind may have.
    pub fn decode(bytes: &[u8; HEAD]) -> Result<Self, TransferError> {
        let [kind, version, _, _, rest @ ..] = *bytes;
        if version != VERSION {
            return Err(TransferError::frame(format!(
                "a frame of version {version}, we speak {VERSION}"
            )));
        }
        let Some(kind) = Kind::parse(kind) else {
            return Err(TransferError::frame(format!("a frame of kind {kind}")));
        };
        let (payload, rest) = take::<4>(&rest);
        let (transfer, rest) = take::<8>(rest);
        let (offset, rest) = take::<8>(rest);
        let (value, _) = take::<8>(rest);
        let payload = u32::from_le_bytes(payload);
        let limit = kind.limit();
        if payload as usize > limit {
            return Err(TransferError::frame(format!(
                "a frame {kind:?} with {payload} bytes, the limit is {limit}"
            )));
        }
        Ok(Self {
            kind,
            payload,
            transfer: u64::from_le_bytes(transfer),
            offset: u64::from_le_bytes(offset),
            value: u64::from_le_bytes(value),
        })
    }
}

fn take<const N: usize>(bytes: &[u8]) -> ([u8; N], &[u8]) {
    let (first, rest) = bytes
        .split_first_chunk()
        .expect("a head has as many bytes as its fields");
    (*first, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_comes_back() {
        let head = Head {
            kind: Kind::Data,
            payload: limits::TRANSFER_PAYLOAD as u32,
            transfer: u64::MAX,
            offset: 1 << 63,
            value: 7,
        };
        assert_eq!(Head::decode(&head.encode()).unwrap(), head);
    }

    #[test]
    fn heads_that_are_none_are_refused_before_memory_is_taken() {
        let good = Head::new(Kind::Data, 1, 2, 3).encode();
        for (at, byte, says) in [
            (0, 9, "kind 9"),
            (1, 2, "version 2"),
            (7, 0xff, "the limit is 262144"),
        ] {
            let mut bytes = good;
            bytes[at] = byte;
            let error = Head::decode(&bytes).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let mut want = Head::new(Kind::Want, 1, 2, 3);
        want.payload = 1;
        assert!(Head::decode(&want.encode()).is_err());
    }
}
