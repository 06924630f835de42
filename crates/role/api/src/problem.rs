//! How a request is refused.

use std::fmt;

use firesteel_base::Hint;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a request was refused: the body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// A stable word for programs.
    pub code: Code,
    /// One sentence for people, without a full stop.
    pub message: String,
    /// What to do about it; empty when there is nothing useful to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// The field or parameter that is wrong, `policy.quorum_round` say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl Problem {
    /// A problem without hint or field.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: String::new(),
            field: None,
        }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same with the field that is wrong.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
}

/// Reads the JSON body of a request.
///
/// # Errors
/// [`Problem`] with the field that is wrong.
pub fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut from = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut from).map_err(|error| {
        let field = error.path().to_string();
        let problem = Problem::new(Code::Invalid, format!("the body: {}", error.inner()));
        // The whole, or text that broke off where a field was to come.
        if field == "." || field.contains('?') {
            problem
        } else {
            problem.with_field(field)
        }
    })?;
    from.end()
        .map_err(|error| Problem::new(Code::Invalid, format!("the body: {error}")))?;
    Ok(value)
}

impl Hint for Problem {
    fn hint(&self) -> Option<String> {
        (!self.hint.is_empty()).then(|| self.hint.clone())
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, $status:literal;)*) => {
        /// A stable word for each kind of refusal, and the status it comes with.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        #[non_exhaustive]
        pub enum Code { $($(#[$doc])* #[serde(rename = $word)] $variant,)* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word as written.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// The HTTP status it comes with.
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }
        }
    };
}

codes! {
    /// A parameter, the body or a bundle is not what was expected.
    Invalid = "invalid", 400;
    /// No token, or one that has expired or is unknown: log in.
    Unauthenticated = "unauthenticated", 401;
    /// The login was refused: nonce, certificate or signature do not hold.
    LoginRefused = "login-refused", 401;
    /// The subject's role does not allow it.
    Forbidden = "forbidden", 403;
    /// There is no such route.
    NoRoute = "no-route", 404;
    /// There is no such job, or it is not yours to see.
    JobNotFound = "job-not-found", 404;
    /// There is no such site.
    SiteNotFound = "site-not-found", 404;
    /// There is no such file or log.
    FileNotFound = "file-not-found", 404;
    /// The route exists, and not with this method.
    Method = "method", 405;
    /// The request came too slowly.
    TooSlow = "too-slow", 408;
    /// The submit key was used for another job.
    KeyTaken = "key-taken", 409;
    /// The job with this submit key was deleted.
    KeyDeleted = "key-deleted", 410;
    /// It cannot be done in the job's state: it runs still, or runs no more.
    WrongState = "wrong-state", 409;
    /// The site is not connected.
    SiteAway = "site-away", 409;
    /// The body or what it unpacks to is too large.
    TooLarge = "too-large", 413;
    /// The range lies outside the file.
    Range = "range", 416;
    /// The bundle or its job was refused.
    BundleRefused = "bundle-refused", 422;
    /// The site's own settings forbid it.
    SiteRefused = "site-refused", 422;
    /// Too many requests at once.
    TooMany = "too-many", 429;
    /// A bug in the product. Please report it.
    Internal = "internal", 500;
    /// The server is starting, stopping or full.
    Unavailable = "unavailable", 503;
    /// The site did not answer in time.
    SiteSilent = "site-silent", 504;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_written_as_its_word() {
        for code in Code::ALL {
            let written = serde_json::to_string(code).unwrap();
            assert_eq!(written, format!("\"{}\"", code.as_str()));
            assert_eq!(serde_json::from_str::<Code>(&written).unwrap(), *code);
            assert!((400..=599).contains(&code.status()));
        }
    }
}
