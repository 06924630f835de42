//! What can be wrong with an offer or a fetch.

use firesteel_base::{Failure, FailureCode, Hint, Phase};

/// Why a stream call failed. Each renders as a sentence without a full stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// There is no such offer, or not for this site: the two are not told apart.
    #[error("site {site} offers nothing {what} to this site")]
    NotOffered {
        /// Which site was asked.
        site: String,
        /// `named "x"`, or `under this ref`.
        what: String,
        /// The names it does offer to the asker.
        names: Vec<String>,
    },
    /// A name that is no name, or leads out of the folder.
    #[error("{name:?} cannot be asked for: {why}")]
    Name {
        /// The name, cut where it is very long.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is no such file in an offered folder, or it is none that is handed out.
    #[error("{name:?} of site {site} cannot be fetched: {why}")]
    File {
        /// Which site.
        site: String,
        /// The name.
        name: String,
        /// What the system said, or what it is.
        why: String,
    },
    /// The file is not what it was when it was offered.
    #[error("{name:?} of site {site} has changed since it was offered")]
    Changed {
        /// Which site.
        site: String,
        /// The name, or the id.
        name: String,
    },
    /// What came with an offer is not what the offer says.
    #[error("the offer cannot be taken: {why}")]
    Offer {
        /// Why.
        why: String,
    },
    /// The limit on standing offers.
    #[error("there are {limit} standing offers already")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// Another site's offer could not be brought here.
    #[error("{what:?} could not be fetched from site {site}: {why}")]
    Elsewhere {
        /// Which site.
        site: String,
        /// The name, or the id.
        what: String,
        /// What happened.
        why: String,
    },
    /// What the offering site said, in another process.
    #[error("{message}")]
    Told {
        /// One of the codes of the other variants.
        code: &'static str,
        /// The sentence.
        message: String,
        /// What can be done; may be empty.
        hint: String,
    },
}

/// Characters of a peer's sentence that are repeated.
const TOLD: usize = 1024;

impl StreamError {
    /// From what another process said. An unknown code counts as `unreachable`.
    pub fn told(code: &str, message: &str, hint: &str) -> Self {
        let codes = [
            "not-offered",
            "bad-name",
            "no-file",
            "changed",
            "bad-offer",
            "too-many",
        ];
        let code = codes.into_iter().find(|known| *known == code);
        let text = |text: &str| {
            let clean = text.chars().filter(|c| !c.is_control());
            clean.take(TOLD).collect()
        };
        Self::Told {
            code: code.unwrap_or("unreachable"),
            message: text(message),
            hint: text(hint),
        }
    }

    /// A stable code, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotOffered { .. } => "not-offered",
            Self::Name { .. } => "bad-name",
            Self::File { .. } => "no-file",
            Self::Changed { .. } => "changed",
            Self::Offer { .. } => "bad-offer",
            Self::TooMany { .. } => "too-many",
            Self::Elsewhere { .. } => "unreachable",
            Self::Told { code, .. } => code,
        }
    }

    /// As a failure of the product's common form.
    pub fn failure(&self) -> Failure {
        let code = FailureCode::parse(self.code()).unwrap_or(FailureCode::Misuse);
        let mut failure = Failure::new(code, Phase::Train, self.to_string());
        failure.hint = self.hint().unwrap_or_default();
        failure
    }
}

impl Hint for StreamError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotOffered { site, names, .. } if names.is_empty() => Some(format!(
                "{site} has to call stream.offer(…, name=…); give wait= to wait for it"
            )),
            Self::NotOffered { site, names, .. } => {
                Some(format!("{site} offers {}", names.join(", ")))
            }
            Self::Name { .. } => Some(
                "a name is an offer's, or <folder>/<path> for a file in an offered folder".into(),
            ),
            Self::Changed { .. } => {
                Some("offer it again, and leave an offered file as it is".into())
            }
            Self::TooMany { .. } => Some(
                "withdraw what nobody needs any more, or offer with times= or under the same name"
                    .into(),
            ),
            Self::Told { hint, .. } => (!hint.is_empty()).then(|| hint.clone()),
            Self::File { .. } | Self::Offer { .. } | Self::Elsewhere { .. } => None,
        }
    }
}
