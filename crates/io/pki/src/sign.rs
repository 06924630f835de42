//! Signatures with a kit's key, and what a good one says.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, RSA_PSS_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};
use firesteel_base::{Hint, limits};
use firesteel_policy::Role;
use rustls::SignatureScheme;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::SigningKey;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::certificate::{Authority, ChainError};
use crate::kit::Kit;

/// What a signature is for. It is part of what is signed, so that a signature
/// made for one thing is worth nothing for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// A kit's manifest, by the project's authority.
    Manifest,
    /// A bundle's list of members, by who submits it.
    Bundle,
    /// A server's challenge, by who logs in.
    Login,
}

impl Purpose {
    /// WIRE: stands before the signed bytes.
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Manifest => b"firesteel manifest 1\0",
            Self::Bundle => b"firesteel bundle 1\0",
            Self::Login => b"firesteel login 1\0",
        }
    }

    fn whole(self, bytes: &[u8]) -> Vec<u8> {
        [self.prefix(), bytes].concat()
    }
}

/// Signs with a private key. Cheap to clone; the key never leaves it.
#[derive(Clone)]
pub struct Signer {
    key: Arc<dyn SigningKey>,
    chain: Arc<[u8]>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

/// Why nothing can be signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    /// The key file cannot be read.
    #[error("could not read the private key `{path}`")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is no key, or one of a kind that is not supported.
    #[error("the private key in `{path}` cannot be used: {why}")]
    Key {
        /// The file.
        path: String,
        /// What is wrong with it; never its content.
        why: String,
    },
    /// The key's maker failed.
    #[error("signing failed: {why}")]
    Sign {
        /// What it said.
        why: String,
    },
}

impl Hint for SignError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Key { .. } => Some(
                "the kit's own key is ECDSA P-256; P-384, Ed25519 and RSA from 2048 bits work too"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// Who signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The name in the certificate.
    pub name: String,
    /// The organization in it.
    pub org: String,
    /// The role in it.
    pub role: Role,
}

impl Signed {
    /// Who signed, as `policy` asks for it.
    pub fn subject(&self) -> firesteel_policy::Subject {
        firesteel_policy::Subject {
            name: self.name.clone(),
            org: self.org.clone(),
            role: self.role,
        }
    }
}

/// Why a signature is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The signer's certificate is not good.
    #[error("the signer's certificate is not taken")]
    Chain(#[from] ChainError),
    /// The signer's key is of a kind that is not known.
    #[error("`{name}` has a key of an unknown kind ({kind})")]
    Kind {
        /// The signer.
        name: String,
        /// The kind's object identifier.
        kind: String,
    },
    /// Something was changed after it was signed, or somebody else signed it.
    #[error("the signature of `{name}` does not belong to these bytes")]
    Signature {
        /// The signer.
        name: String,
    },
}

impl Hint for VerifyError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Chain(error) => error.hint(),
            Self::Signature { .. } => {
                Some("it was changed on its way: fetch or make it again".to_owned())
            }
            Self::Kind { .. } => None,
        }
    }
}

impl Signer {
    /// The kit's key.
    ///
    /// # Errors
    /// [`SignError`], which names the file.
    pub fn from_kit(kit: &Kit) -> Result<Self, SignError> {
        let files = kit.identity_files();
        let read = |path: &Path| {
            crate::files::read(path, limits::PEM_FILE).map_err(|source| SignError::Read {
                path: path.display().to_string(),
                source,
            })
        };
        let (key, chain) = (read(&files.key)?, read(&files.certificates)?);
        Self::new(&key, &chain, &files.key.display().to_string())
    }

    /// A key and the chain that goes with it, PEM; `from` is what errors call it.
    pub(crate) fn new(key: &[u8], chain: &[u8], from: &str) -> Result<Self, SignError> {
        let failed = |why: String| SignError::Key {
            path: from.to_owned(),
            why,
        };
        let key = PrivateKeyDer::from_pem_slice(key)
            // The parser's own words could quote the file.
            .map_err(|_| failed("it is no PEM section of a known kind".to_owned()))?;
        let key = rustls::crypto::aws_lc_rs::default_provider()
            .key_provider
            .load_private_key(key)
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self {
            key,
            chain: chain.into(),
        })
    }

    /// The certificates that a verifier needs, PEM.
    pub fn chain_pem(&self) -> &[u8] {
        &self.chain
    }

    /// Signs.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn sign(&self, purpose: Purpose, bytes: &[u8]) -> Result<Vec<u8>, SignError> {
        let failed = |why: String| SignError::Sign { why };
        let schemes = [
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ED25519,
            SignatureScheme::RSA_PSS_SHA256,
        ];
        let signer = self
            .key
            .choose_scheme(&schemes)
            .ok_or_else(|| failed("its key is of an unknown kind".to_owned()))?;
        signer
            .sign(&purpose.whole(bytes))
            .map_err(|error| failed(error.to_string()))
    }
}

/// Checks a signature by the holder of a chain that the authority issued, now.
///
/// # Errors
/// [`VerifyError`], which names the signer.
pub fn verify(
    chain_pem: &[u8],
    authority: &Authority,
    purpose: Purpose,
    bytes: &[u8],
    signature: &[u8],
) -> Result<Signed, VerifyError> {
    let (holder, leaf) = authority.checked(chain_pem, SystemTime::now())?;
    verify_by(&leaf, &holder.name, purpose, bytes, signature)?;
    Ok(Signed {
        name: holder.name,
        org: holder.org,
        role: holder.role,
    })
}

/// Checks a signature by the key of one certificate.
pub(crate) fn verify_by(
    certificate: &CertificateDer<'_>,
    name: &str,
    purpose: Purpose,
    bytes: &[u8],
    signature: &[u8],
) -> Result<(), VerifyError> {
    let kind = |kind: String| VerifyError::Kind {
        name: name.to_owned(),
        kind,
    };
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| {
        VerifyError::Chain(ChainError::Damaged {
            what: "certificate",
            why: error.to_string(),
        })
    })?;
    let key = parsed.public_key();
    let id = key.algorithm.algorithm.to_id_string();
    let curve = || {
        let parameters = key.algorithm.parameters.as_ref()?;
        parameters.as_oid().ok().map(|oid| oid.to_id_string())
    };
    let algorithm: &'static dyn VerificationAlgorithm = match id.as_str() {
        "1.2.840.10045.2.1" => match curve().as_deref() {
            Some("1.2.840.10045.3.1.7") => &ECDSA_P256_SHA256_ASN1,
            Some("1.3.132.0.34") => &ECDSA_P384_SHA384_ASN1,
            other => return Err(kind(other.unwrap_or("no curve").to_owned())),
        },
        "1.3.101.112" => &ED25519,
        "1.2.840.113549.1.1.1" => &RSA_PSS_2048_8192_SHA256,
        _ => return Err(kind(id)),
    };
    UnparsedPublicKey::new(algorithm, key.subject_public_key.data.as_ref())
        .verify(&purpose.whole(bytes), signature)
        .map_err(|_| VerifyError::Signature {
            name: name.to_owned(),
        })
}
