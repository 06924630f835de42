//! Nonces and tokens.
//!
//! A nonce costs no memory before it is used: it carries the time it was made and
//! a keyed digest of itself, and only those with which somebody logged in are
//! remembered, until they would have expired. Of a token there is only its digest.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use firesteel_base::limits;
use firesteel_policy::Subject;
use rustix::rand::{GetRandomFlags, getrandom};

/// How long a nonce may be signed: a slow line's round trip and a slow key.
pub(super) const NONCE_LIFE: Duration = Duration::from_secs(60);
/// How long a token is good: the hour that a stolen one may be worth at most.
pub(super) const TOKEN_LIFE: Duration = Duration::from_secs(3600);

const RANDOM: usize = 16;
const TIME: usize = 8;
const MAC: usize = 16;
const NONCE: usize = RANDOM + TIME + MAC;

/// Why a nonce was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NonceError {
    /// Not one of ours; or the server was started anew since.
    Unknown,
    /// Older than [`NONCE_LIFE`].
    Expired,
    /// Somebody logged in with it.
    Used,
}

/// The tokens of one server. Times come in, so that tests can make them pass.
pub(super) struct Tokens {
    key: [u8; 32],
    origin: Instant,
    used: HashMap<[u8; RANDOM], Instant>,
    tokens: HashMap<[u8; 32], Held>,
}

struct Held {
    subject: Subject,
    until: Instant,
}

/// The system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the system gave no random bytes")]
pub(super) struct NoRandom(#[source] std::io::Error);

fn random<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += getrandom(rest, GetRandomFlags::empty()).map_err(|e| NoRandom(e.into()))?;
    }
    Ok(bytes)
}

impl Tokens {
    pub(super) fn new(now: Instant) -> Result<Self, NoRandom> {
        Ok(Self {
            key: random()?,
            origin: now,
            used: HashMap::new(),
            tokens: HashMap::new(),
        })
    }

    /// A nonce to be signed.
    pub(super) fn nonce(&self, now: Instant) -> Result<String, NoRandom> {
        let mut bytes = Vec::with_capacity(NONCE);
        bytes.extend_from_slice(&random::<RANDOM>()?);
        let age = now.saturating_duration_since(self.origin).as_secs();
        bytes.extend_from_slice(&age.to_be_bytes());
        let mac = self.mac(&bytes);
        bytes.extend_from_slice(&mac);
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    fn mac(&self, bytes: &[u8]) -> [u8; MAC] {
        let whole = blake3::keyed_hash(&self.key, bytes);
        let mut mac = [0; MAC];
        for (to, from) in mac.iter_mut().zip(whole.as_bytes()) {
            *to = *from;
        }
        mac
    }

    /// Whether a nonce is one of ours, and neither old nor used. It is not used
    /// up by this: a wrong signature must not take it from its owner.
    pub(super) fn check(&self, nonce: &str, now: Instant) -> Result<(), NonceError> {
        self.open(nonce, now).map(drop)
    }

    fn open(&self, nonce: &str, now: Instant) -> Result<[u8; RANDOM], NonceError> {
        let bytes: [u8; NONCE] = URL_SAFE_NO_PAD
            .decode(nonce)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(NonceError::Unknown)?;
        let (said, mac) = bytes.split_at(RANDOM + TIME);
        let made = blake3::keyed_hash(&self.key, said);
        // blake3's own comparison takes the same time for every byte, but only
        // knows whole digests.
        let mut wrong = 0;
        for (a, b) in mac.iter().zip(made.as_bytes()) {
            wrong |= a ^ b;
        }
        if wrong != 0 {
            return Err(NonceError::Unknown);
        }
        let (id, time) = said.split_at(RANDOM);
        let id: [u8; RANDOM] = id.try_into().map_err(|_| NonceError::Unknown)?;
        let time: [u8; TIME] = time.try_into().map_err(|_| NonceError::Unknown)?;
        let made = self.origin + Duration::from_secs(u64::from_be_bytes(time));
        if now.saturating_duration_since(made) > NONCE_LIFE {
            return Err(NonceError::Expired);
        }
        if self.used.contains_key(&id) {
            return Err(NonceError::Used);
        }
        Ok(id)
    }

    /// Uses up a nonce and makes a token for whom it was signed by.
    pub(super) fn login(
        &mut self,
        nonce: &str,
        subject: Subject,
        now: Instant,
    ) -> Result<Result<String, NonceError>, NoRandom> {
        let id = match self.open(nonce, now) {
            Ok(id) => id,
            Err(error) => return Ok(Err(error)),
        };
        let token = URL_SAFE_NO_PAD.encode(random::<32>()?);
        self.used.retain(|_, until| *until > now);
        // A little longer than the nonce itself is good: its time is in seconds.
        self.used
            .insert(id, now + NONCE_LIFE + Duration::from_secs(2));
        self.make_room(&subject, now);
        let held = Held {
            subject,
            until: now + TOKEN_LIFE,
        };
        self.tokens.insert(digest(&token), held);
        Ok(Ok(token))
    }

    fn make_room(&mut self, subject: &Subject, now: Instant) {
        self.tokens.retain(|_, held| held.until > now);
        let mine = |held: &Held| held.subject == *subject;
        if self.tokens.values().filter(|held| mine(held)).count() >= limits::REST_TOKENS_EACH {
            self.drop_first(mine);
        }
        if self.tokens.len() >= limits::REST_TOKENS {
            self.drop_first(|_| true);
        }
    }

    fn drop_first(&mut self, among: impl Fn(&Held) -> bool) {
        let first = self
            .tokens
            .iter()
            .filter(|(_, held)| among(held))
            .min_by_key(|(_, held)| held.until)
            .map(|(digest, _)| *digest);
        if let Some(first) = first {
            self.tokens.remove(&first);
        }
    }

    /// Whose token this is.
    pub(super) fn whose(&self, token: &str, now: Instant) -> Option<Subject> {
        self.tokens
            .get(&digest(token))
            .filter(|held| held.until > now)
            .map(|held| held.subject.clone())
    }

    /// Forgets a token.
    pub(super) fn forget(&mut self, token: &str) {
        self.tokens.remove(&digest(token));
    }
}

fn digest(token: &str) -> [u8; 32] {
    *blake3::hash(token.as_bytes()).as_bytes()
}

#[cfg(test)]
mod tests {
    use firesteel_policy::{AdminRole, Role};

    use super::*;

    fn subject(name: &str) -> Subject {
        Subject {
            name: name.to_owned(),
            org: "north".to_owned(),
            role: Role::Admin(AdminRole::Lead),
        }
    }

    fn tokens() -> (Tokens, Instant) {
        let now = Instant::now();
        (Tokens::new(now).unwrap(), now)
    }

    #[test]
    fn a_token_is_its_subjects_until_it_ends() {
        let (mut tokens, now) = tokens();
        let nonce = tokens.nonce(now).unwrap();
        let token = tokens.login(&nonce, subject("ann"), now).unwrap().unwrap();
        assert_eq!(tokens.whose(&token, now), Some(subject("ann")));
        let late = now + TOKEN_LIFE;
        assert_eq!(
            tokens.whose(&token, late - Duration::from_secs(1)),
            Some(subject("ann"))
        );
        assert_eq!(tokens.whose(&token, late), None);
        assert_eq!(tokens.whose("", now), None);
        tokens.forget(&token);
        assert_eq!(tokens.whose(&token, now), None);
    }

    #[test]
    fn a_nonce_is_good_once_and_for_a_minute() {
        let (mut tokens, now) = tokens();
        let nonce = tokens.nonce(now).unwrap();
        assert_eq!(tokens.check(&nonce, now), Ok(()));
        let late = now + NONCE_LIFE + Duration::from_secs(1);
        assert_eq!(tokens.check(&nonce, late), Err(NonceError::Expired));
        assert!(tokens.login(&nonce, subject("ann"), now).unwrap().is_ok());
        let again = tokens.login(&nonce, subject("ann"), now).unwrap();
        assert_eq!(again, Err(NonceError::Used));
        // What is remembered of it goes when it would have expired anyway.
        let other = tokens.nonce(late).unwrap();
        let later = late + Duration::from_secs(2);
        assert!(tokens.login(&other, subject("ann"), later).unwrap().is_ok());
        assert_eq!(tokens.used.len(), 1);
        assert_eq!(tokens.check(&nonce, later), Err(NonceError::Expired));
    }

    #[test]
    fn a_changed_or_foreign_nonce_is_unknown() {
        let (here, now) = tokens();
        let (there, _) = tokens();
        let nonce = there.nonce(now).unwrap();
        assert_eq!(here.check(&nonce, now), Err(NonceError::Unknown));
        let nonce = here.nonce(now).unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(&nonce).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let changed = URL_SAFE_NO_PAD.encode(changed);
            assert_eq!(here.check(&changed, now), Err(NonceError::Unknown), "{at}");
        }
        for bad in ["", "x", "é", &nonce[1..], &format!("{nonce}A")] {
            assert_eq!(here.check(bad, now), Err(NonceError::Unknown), "{bad}");
        }
    }

    #[test]
    fn one_person_does_not_take_the_tokens_of_the_others() {
        let (mut tokens, now) = tokens();
        let nonce = tokens.nonce(now).unwrap();
        let anns = tokens.login(&nonce, subject("ann"), now).unwrap().unwrap();
        let mut first = None;
        for _ in 0..=limits::REST_TOKENS_EACH {
            let nonce = tokens.nonce(now).unwrap();
            let token = tokens.login(&nonce, subject("bob"), now + Duration::from_millis(1));
            first.get_or_insert(token.unwrap().unwrap());
        }
        assert_eq!(tokens.tokens.len(), 1 + limits::REST_TOKENS_EACH);
        assert_eq!(tokens.whose(&anns, now), Some(subject("ann")));
    }
}
