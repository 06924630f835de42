//! What both ends say first on a connection, right after the TLS handshake.

use std::fmt;

use firesteel_base::limits;

/// The version of the session protocol.
pub(crate) const VERSION: u8 = 1;

/// Bytes of a [`Token`].
pub(crate) const TOKEN: usize = 32;

/// Binds bulk connections to their session. Whoever has it and the session's
/// certificate belongs to the session; so it is never shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token([u8; TOKEN]);

impl Token {
    /// From random bytes.
    pub fn new(bytes: [u8; TOKEN]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The dialing end's first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The oldest version it speaks.
    pub oldest: u8,
    /// The newest.
    pub newest: u8,
    /// What the connection is for.
    pub purpose: HelloPurpose,
}

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HelloPurpose {
    /// It starts a session.
    Control {
        /// How many bulk connections may follow; none where everything has to
        /// share this one.
        bulk: u8,
    },
    /// It belongs to a session that is there.
    Bulk {
        /// Which.
        token: Token,
    },
}

/// The accepting end's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Welcome {
    /// The connection is taken.
    Session {
        /// The version both will speak.
        version: u8,
        /// How many bulk connections may follow, at most what the hello said.
        bulk: u8,
        /// What they must show.
        token: Token,
    },
    /// The bulk connection is taken.
    Bulk,
    /// It is not.
    Refused {
        /// Why, for programs.
        code: u8,
        /// Why, for people.
        why: String,
    },
}

/// [`Welcome::Refused`]: no common version.
pub(crate) const REFUSED_VERSION: u8 = 1;
/// [`Welcome::Refused`]: the token is unknown, or the certificate is another's.
pub(crate) const REFUSED_TOKEN: u8 = 2;
/// [`Welcome::Refused`]: as many bulk connections as were agreed are there.
pub(crate) const REFUSED_MANY: u8 = 3;
/// Its certificate's role opens no session.
pub(crate) const REFUSED_ROLE: u8 = 4;

/// What cannot be a hello or a welcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// More than such a message may have.
    #[error("a message of {0} bytes, the limit is {limit}", limit = limits::SESSION_MESSAGE)]
    TooLong(usize),
    /// It ends too early, or has a value that is none.
    #[error("a damaged {0}")]
    Malformed(&'static str),
}

/// Bytes before a message: its length, little-endian.
pub(crate) const HEAD: usize = 2;

/// The length that a head announces.
pub(crate) fn length(head: [u8; HEAD]) -> Result<usize, HelloError> {
    let length = usize::from(u16::from_le_bytes(head));
    if length > limits::SESSION_MESSAGE {
        return Err(HelloError::TooLong(length));
    }
    Ok(length)
}

// WIRE: both messages start with the four bytes `FSS` and a zero, so that what is
// no session is told at once. What follows the known fields is skipped: a later
// version may have put it there.
const MAGIC: [u8; 4] = *b"FSS\0";

impl Hello {
    /// As it travels, with its head.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = MAGIC.to_vec();
        body.extend([self.oldest, self.newest]);
        match &self.purpose {
            HelloPurpose::Control { bulk } => body.extend([0, *bulk]),
            HelloPurpose::Bulk { token } => {
                body.push(1);
                body.extend(token.0);
            }
        }
        framed(&body)
    }

    /// From a body without its head.
    ///
    /// # Errors
    /// [`HelloError::Malformed`].
    pub fn decode(body: &[u8]) -> Result<Self, HelloError> {
        let mut fields = Fields::of(body, "hello")?;
        let (oldest, newest) = (fields.byte()?, fields.byte()?);
        let purpose = match fields.byte()? {
            0 => HelloPurpose::Control {
                bulk: fields.byte()?,
            },
            1 => HelloPurpose::Bulk {
                token: fields.token()?,
            },
            _ => return Err(HelloError::Malformed("hello")),
        };
        Ok(Self {
            oldest,
            newest,
            purpose,
        })
    }
}

impl Welcome {
    /// As it travels, with its head.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = MAGIC.to_vec();
        match self {
            Self::Session {
                version,
                bulk,
                token,
            } => {
                body.extend([0, *version, *bulk]);
                body.extend(token.0);
            }
            Self::Bulk => body.push(1),
            Self::Refused { code, why } => {
                body.extend([2, *code]);
                let room = limits::SESSION_MESSAGE - body.len();
                body.extend(why.bytes().take(why.floor_char_boundary(room)));
            }
        }
        framed(&body)
    }

    /// From a body without its head.
    ///
    /// # Errors
    /// [`HelloError::Malformed`].
    pub fn decode(body: &[u8]) -> Result<Self, HelloError> {
        let mut fields = Fields::of(body, "welcome")?;
        Ok(match fields.byte()? {
            0 => Self::Session {
                version: fields.byte()?,
                bulk: fields.byte()?,
                token: fields.token()?,
            },
            1 => Self::Bulk,
            2 => Self::Refused {
                code: fields.byte()?,
                // It will be printed: whatever a terminal would obey goes.
                why: String::from_utf8_lossy(fields.rest)
                    .chars()
                    .map(|c| if c.is_control() { ' ' } else { c })
                    .collect(),
            },
            _ => return Err(HelloError::Malformed("welcome")),
        })
    }
}

fn framed(body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("a session message is at most 1 KiB long");
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(body);
    bytes
}

struct Fields<'a> {
    rest: &'a [u8],
    name: &'static str,
}

impl<'a> Fields<'a> {
    fn of(body: &'a [u8], name: &'static str) -> Result<Self, HelloError> {
        let rest = body
            .strip_prefix(&MAGIC)
            .ok_or(HelloError::Malformed(name))?;
        Ok(Self { rest, name })
    }

    fn byte(&mut self) -> Result<u8, HelloError> {
        let (&byte, rest) = self
            .rest
            .split_first()
            .ok_or(HelloError::Malformed(self.name))?;
        self.rest = rest;
        Ok(byte)
    }

    fn token(&mut self) -> Result<Token, HelloError> {
        let (token, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(HelloError::Malformed(self.name))?;
        self.rest = rest;
        Ok(Token(*token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token([7; TOKEN])
    }

    #[test]
    fn hellos_and_welcomes_come_back_as_they_were() {
        for purpose in [
            HelloPurpose::Control { bulk: 4 },
            HelloPurpose::Bulk { token: token() },
        ] {
            let hello = Hello {
                oldest: 1,
                newest: 3,
                purpose,
            };
            let bytes = hello.encode();
            assert_eq!(length([bytes[0], bytes[1]]).unwrap(), bytes.len() - HEAD);
            assert_eq!(Hello::decode(&bytes[HEAD..]).unwrap(), hello);
            for cut in HEAD..bytes.len() {
                Hello::decode(&bytes[HEAD..cut]).unwrap_err();
            }
            let mut longer = bytes.clone();
            longer.extend([1, 2, 3]);
            assert_eq!(Hello::decode(&longer[HEAD..]).unwrap(), hello);
        }
        for welcome in [
            Welcome::Session {
                version: 1,
                bulk: 2,
                token: token(),
            },
            Welcome::Bulk,
            Welcome::Refused {
                code: 9,
                why: "no ünder 18".to_owned(),
            },
        ] {
            assert_eq!(Welcome::decode(&welcome.encode()[HEAD..]).unwrap(), welcome);
        }
    }

    #[test]
    fn a_refusal_is_cut_to_the_limit_and_cleaned() {
        let refused = Welcome::Refused {
            code: 1,
            why: format!("\u{1b}[31m{}", "ü".repeat(2000)),
        };
        let bytes = refused.encode();
        assert!(bytes.len() <= HEAD + limits::SESSION_MESSAGE);
        let Welcome::Refused { why, .. } = Welcome::decode(&bytes[HEAD..]).unwrap() else {
            panic!("not a refusal");
        };
        assert!(
            why.starts_with(" [31mü") && !why.contains('\u{fffd}'),
            "{why}"
        );
    }

    #[test]
    fn a_token_is_never_shown() {
        assert_eq!(format!("{:?}", token()), "Token(…)");
    }

    #[test]
    fn an_over_long_message_is_refused_by_its_head() {
        assert_eq!(
            length(2000_u16.to_le_bytes()),
            Err(HelloError::TooLong(2000))
        );
    }
}
