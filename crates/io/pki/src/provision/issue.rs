//! Certificates: the authority's, and those it issues.

use std::net::IpAddr;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::ServerName;
use time::OffsetDateTime;

use crate::project::{Part, Participant, Project};

/// Clocks of sites may be behind by so much and still take a new certificate.
const SLACK: time::Duration = time::Duration::HOUR;

/// What the authority is called and may do. The same each time it is asked, so
/// that a kept key with it issues what the kept certificate stands above.
pub(super) fn authority(project: &Project) -> CertificateParams {
    let mut params = CertificateParams::default();
    let names = &mut params.distinguished_name;
    names.push(DnType::CommonName, format!("{} authority", project.name));
    names.push(DnType::OrganizationName, project.name.as_str());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        // It signs the lists of the kits' files.
        KeyUsagePurpose::DigitalSignature,
    ];
    params
}

/// The authority's own certificate, PEM.
pub(super) fn root(
    project: &Project,
    key: &KeyPair,
    now: SystemTime,
) -> Result<String, rcgen::Error> {
    let mut params = authority(project);
    let now = OffsetDateTime::from(now);
    params.not_before = now - SLACK;
    params.not_after = now + time::Duration::days(project.root_days.into());
    params.serial_number = Some(serial()?);
    Ok(params.self_signed(key)?.pem())
}

/// A participant's certificate, PEM, valid no longer than its authority.
pub(super) fn leaf(
    project: &Project,
    participant: &Participant,
    key: &KeyPair,
    issuer: &Issuer<'_, KeyPair>,
    (now, last): (SystemTime, SystemTime),
) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    let names = &mut params.distinguished_name;
    names.push(DnType::CommonName, participant.identity());
    names.push(DnType::OrganizationalUnitName, participant.role().as_str());
    names.push(DnType::OrganizationName, participant.org.as_str());
    for host in hosts(participant) {
        params.subject_alt_names.push(match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.as_str().try_into()?),
        });
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = purposes(participant);
    params.use_authority_key_identifier_extension = true;
    let now = OffsetDateTime::from(now);
    params.not_before = now - SLACK;
    params.not_after =
        (now + time::Duration::days(project.days.into())).min(OffsetDateTime::from(last));
    params.serial_number = Some(serial()?);
    Ok(params.signed_by(key, issuer)?.pem())
}

fn purposes(participant: &Participant) -> Vec<ExtendedKeyUsagePurpose> {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    match &participant.part {
        // Who has the server's key still cannot pose as a site of it.
        Part::Server(_) => vec![ServerAuth],
        Part::Relay(_) => vec![ServerAuth, ClientAuth],
        Part::Site(part) if part.listening.is_some() => vec![ServerAuth, ClientAuth],
        Part::Site(_) | Part::Admin(_) => vec![ClientAuth],
    }
}

/// The names and addresses under which a participant is reached: those in its
/// certificate. None for who is not connected to.
pub(super) fn hosts(participant: &Participant) -> Vec<String> {
    let (host, others) = match &participant.part {
        Part::Server(part) => (part.default_host.as_ref(), &part.host_names),
        Part::Relay(part) => (
            Some(&part.listening.default_host),
            &part.listening.host_names,
        ),
        Part::Site(part) => match &part.listening {
            Some(listening) => (Some(&listening.default_host), &listening.host_names),
            None => return Vec::new(),
        },
        Part::Admin(_) => return Vec::new(),
    };
    // A site's name need not be one that can be dialed.
    let own = [participant.identity(), participant.name.as_str()];
    let own = own
        .into_iter()
        .filter(|name| ServerName::try_from(*name).is_ok());
    let mut hosts: Vec<String> = Vec::new();
    for name in own
        .into_iter()
        .chain(host.into_iter().chain(others).map(String::as_str))
    {
        if !hosts.iter().any(|known| known == name) {
            hosts.push(name.to_owned());
        }
    }
    hosts
}

/// By default it would follow from the key, and a renewed certificate would be
/// mistaken for the one before.
fn serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    // A positive number whose first byte is not zero.
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}
