//! How a session begins: a signature over a nonce for a token.
//!
//! It works behind whoever ends TLS on the way, because nothing of it depends on
//! the connection: the signature covers the server's name, so that one given to
//! another server is of no use here.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a server hands out to be signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Nonce {
    /// An unguessable word. Good for one login.
    pub nonce: String,
    /// The server's name, which the signature covers too. A client signs for the
    /// server named in its own kit, whatever stands here.
    pub server: String,
    /// Seconds until it is forgotten.
    pub expires_in_s: u64,
}

/// The signed nonce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The nonce as it was handed out.
    pub nonce: String,
    /// The kit's certificate and what leads to the project's root, PEM.
    pub certificates: String,
    /// The signature of [`signed_text`], base64.
    pub signature: String,
}

/// What a login gives.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// To be sent as `authorization: Bearer …`.
    pub token: String,
    /// Seconds until it is refused; at most an hour.
    pub expires_in_s: u64,
    /// Whom the server took you for.
    pub subject: crate::Person,
    /// The server's name.
    pub server: String,
    /// The project's name.
    pub project: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("expires_in_s", &self.expires_in_s)
            .field("subject", &self.subject)
            .finish_non_exhaustive()
    }
}

/// What a login signs, after the prefix `firesteel login 1\0` that keeps a
/// signature made for something else from fitting: the server, and the nonce as
/// it was handed out.
pub fn signed_text(server: &str, nonce: &str) -> Vec<u8> {
    format!("server {server}\nnonce {nonce}\n").into_bytes()
}
