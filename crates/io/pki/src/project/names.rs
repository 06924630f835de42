//! Which names a participant, a host and an organization may have.

use std::net::IpAddr;

use firesteel_base::{SiteName, limits};
use rustls::pki_types::ServerName;

use super::Part;

/// Words that commands use for targets; a site of that name could not be meant.
const TAKEN: [&str; 4] = ["server", "all", "client", "site"];

/// A participant's name, by what it is.
pub(super) fn participant(name: &str, part: &Part) -> Result<String, String> {
    match part {
        Part::Server(_) => {
            if name.parse::<IpAddr>().is_ok() {
                return Err(format!(
                    "`{name}` is an address; give the server a name, and the address as `default_host`"
                ));
            }
            host(name)?;
        }
        Part::Site(_) | Part::Relay(_) => {
            SiteName::new(name).map_err(|error| error.to_string())?;
            if matches!(part, Part::Relay(_)) {
                // It is dialed by this name.
                host(name)?;
            }
            if TAKEN.contains(&name) {
                return Err(format!(
                    "`{name}` is a word of commands; choose another, `site-1` say"
                ));
            }
        }
        Part::Admin(_) => email(name)?,
    }
    Ok(name.to_owned())
}

/// A DNS name or an IP address.
pub(super) fn host(name: &str) -> Result<String, String> {
    if name.parse::<IpAddr>().is_ok() {
        return Ok(name.to_owned());
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            // An underscore is no part of a host's name, but of many a container's.
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    // A last part that is a number would be taken for an address by many.
    if name.len() <= 253 && name.split('.').all(label) && ServerName::try_from(name).is_ok() {
        return Ok(name.to_owned());
    }
    let shown: String = name.chars().take(80).collect();
    Err(format!(
        "{shown:?} is neither a host name (letters, digits, `-`, and dots between; the last part no number) nor an address"
    ))
}

fn email(name: &str) -> Result<(), String> {
    let plain = |text: &str, also: &[u8]| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || also.contains(&byte))
    };
    let good = name.len() <= limits::NAME_LENGTH
        && name.split_once('@').is_some_and(|(user, domain)| {
            // Neither may start with a dot: the name is a folder's, too.
            plain(user, b"._%+-")
                && !user.starts_with(['.', '-'])
                && plain(domain, b".-")
                && host(domain).is_ok()
        });
    if good {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(format!(
        "{shown:?} is no e-mail address of at most {} characters, as admins are named by",
        limits::NAME_LENGTH
    ))
}

/// The name of a project or an organization.
pub(super) fn simple(name: &str) -> Result<(), String> {
    let good = name.len() <= limits::NAME_LENGTH
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'));
    if good {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(format!(
        "{shown:?} must be 1 to {} letters, digits, `_`, `-` or `.`, and start with a letter or digit",
        limits::NAME_LENGTH
    ))
}
