//! The secret that lets one trainer in.

use std::fmt::Write as _;
use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// Bytes of randomness in a token's secret.
const SECRET_BYTES: usize = 32;

/// A registration's number and the secret that goes with it.
///
/// The number is looked up in a table, which takes a time that depends on it;
/// the secret is compared in a time that does not depend on its content.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) number: u64,
    secret: String,
}

impl Token {
    pub(crate) fn new(number: u64) -> io::Result<Self> {
        let mut secret = String::with_capacity(2 * SECRET_BYTES);
        for byte in random::<SECRET_BYTES>()? {
            write!(secret, "{byte:02x}").expect("writing to a string cannot fail");
        }
        Ok(Self { number, secret })
    }

    /// As given to the trainer.
    pub(crate) fn text(&self) -> String {
        format!("{:x}.{}", self.number, self.secret)
    }

    /// The number that a trainer's token claims.
    pub(crate) fn claimed_number(text: &str) -> Option<u64> {
        let (number, _) = text.split_once('.')?;
        u64::from_str_radix(number, 16).ok()
    }

    /// Whether `text` is this token.
    pub(crate) fn admits(&self, text: &str) -> bool {
        let ours = self.text();
        // A length is no secret.
        ours.len() == text.len()
            && ours
                .bytes()
                .zip(text.bytes())
                .fold(0, |differences, (a, b)| differences | (a ^ b))
                == 0
    }
}

/// Bytes from the kernel's generator.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += getrandom(rest, GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_token_is_admitted() {
        let token = Token::new(26).unwrap();
        let other = Token::new(26).unwrap();
        let text = token.text();
        assert_eq!(text.len(), 3 + 64);
        assert_eq!(Token::claimed_number(&text), Some(26));
        assert!(token.admits(&text));
        assert!(!token.admits(&other.text()));
        assert!(!token.admits(&text[..text.len() - 1]));
        assert!(!token.admits(""));
        for bad in ["", "zz.1", "1", ".", "123456789012345678901.0"] {
            assert!(
                Token::claimed_number(bad).is_none_or(|_| !token.admits(bad)),
                "{bad}"
            );
        }
    }
}
