//! Where things are, and what travels beside a body.

/// Hands out a nonce.
pub const LOGIN_NONCE: &str = "/v1/login/nonce";
/// Takes a signed nonce, gives a token.
pub const LOGIN: &str = "/v1/login";
/// Forgets the token.
pub const LOGOUT: &str = "/v1/logout";
/// How the server is.
pub const STATUS: &str = "/v1/status";
/// All jobs.
pub const JOBS: &str = "/v1/jobs";
/// All sites.
pub const SITES: &str = "/v1/sites";
/// The document of all routes.
pub const OPENAPI: &str = "/v1/openapi.json";

/// The header with the submit key: a second submission with it gives the first
/// one's job.
pub const SUBMIT_KEY: &str = "firesteel-submit-key";
/// The media type of a bundle.
pub const BUNDLE_TYPE: &str = "application/x-tar";

/// A job, or something of it: `job("id", "/abort")`.
pub fn job(id: &str, rest: &str) -> String {
    format!("{JOBS}/{}{rest}", encoded(id))
}

/// A site, or something of it.
pub fn site(name: &str, rest: &str) -> String {
    format!("{SITES}/{}{rest}", encoded(name))
}

/// A path's names, each safe within a URL; `/` stays.
pub fn encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            other => {
                let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0');
                out.push('%');
                out.push(digit(other >> 4).to_ascii_uppercase());
                out.push(digit(other & 15).to_ascii_uppercase());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_a_url() {
        assert_eq!(encoded("a b/ä?#%"), "a%20b/%C3%A4%3F%23%25");
        assert_eq!(job("x1", "/abort"), "/v1/jobs/x1/abort");
    }
}
