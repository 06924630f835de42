//! Who signed, as the certificates of a project say.

use std::sync::Arc;

use firesteel_base::Hint as _;
use firesteel_pki::{Authority, Purpose};

use super::router::Verify;

/// Takes logins with certificates that `authority` issued.
pub fn by_certificate(authority: Authority) -> Verify {
    Arc::new(move |chain, text, signature| {
        let purpose = Purpose::Login;
        firesteel_pki::verify(chain.as_bytes(), &authority, purpose, text, signature)
            .map(|signed| signed.subject())
            .map_err(|error| {
                let mut why = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(cause) = source {
                    why = format!("{why}: {cause}");
                    source = cause.source();
                }
                match error.hint() {
                    Some(hint) => format!("{why} ({hint})"),
                    None => why,
                }
            })
    })
}
