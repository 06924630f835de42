//! Builders: what they say that is meant here too.

use serde_saphyr::Spanned;

use super::ProjectError;
use super::raw::{RawBuilder, RawProject};
use super::read::Reader;
use crate::config::Scheme;

/// Days for which a project's authority is valid: it must outlive every
/// certificate that it issues, and to replace it means new kits for everybody.
const ROOT_DAYS: u32 = 3650;

/// Days for which certificates of participants are valid. They are renewed by
/// provisioning again, which somebody must do by hand.
const DAYS: u32 = 1095;

/// Classes that make what every kit has here: nothing to say.
const BUILT_IN: [&str; 2] = ["WorkspaceBuilder", "SignatureBuilder"];

/// Classes whose product has no counterpart; the kits are made without.
const WITHOUT: [(&str, &str); 6] = [
    ("HEBuilder", "kits hold no keys for homomorphic encryption"),
    ("EdgeBuilder", "kits hold nothing for edge devices"),
    (
        "DockerBuilder",
        "kits hold no start scripts for containers: run `firesteel` in yours",
    ),
    ("AWSBuilder", "kits hold no start scripts for a cloud"),
    ("AzureBuilder", "kits hold no start scripts for a cloud"),
    ("OnPremPackager", "kits are plain folders"),
];

pub(super) struct Settings {
    pub scheme: Scheme,
    pub root_days: u32,
    pub days: u32,
}

pub(super) fn read(
    raw: &RawProject,
    reader: &Reader<'_>,
    warnings: &mut Vec<String>,
) -> Result<Settings, ProjectError> {
    let mut settings = Settings {
        scheme: Scheme::default(),
        root_days: ROOT_DAYS,
        days: DAYS,
    };
    let all = raw.builders.iter().flatten().enumerate();
    let all = all
        .map(|(at, builder)| (format!("builders[{at}]"), builder))
        .chain(raw.packager.iter().map(|p| ("packager".to_owned(), p)));
    for (field, builder) in all {
        let class = builder.path.value.rsplit('.').next().unwrap_or_default();
        match class {
            "StaticFileBuilder" => static_files(builder, &field, reader, &mut settings, warnings)?,
            "CertBuilder" => {
                if let Some(days) = days(builder, "root_valid_days", &field, reader)? {
                    settings.root_days = days;
                }
                if let Some(days) = days(builder, "valid_days", &field, reader)? {
                    settings.days = days;
                }
                // No certificate outlives its authority.
                settings.days = settings.days.min(settings.root_days);
            }
            _ if BUILT_IN.contains(&class) => {}
            _ => match WITHOUT.iter().find(|(known, _)| *known == class) {
                Some((_, without)) => warnings.push(format!(
                    "{}:{}: `{field}` is a {class}, and {without}",
                    reader.file.display(),
                    builder.path.referenced.line(),
                )),
                None => {
                    return Err(reader.hinted(
                        builder.path.referenced,
                        format!("{field}.path"),
                        format!("`{}` is not known, and is not run", builder.path.value),
                        "remove it, and change the kits afterwards by what it did: the owner's .toml \
                         file of each is not signed",
                    ));
                }
            },
        }
    }
    Ok(settings)
}

type Args = serde_json::Map<String, serde_json::Value>;

fn arg<'a>(
    builder: &'a RawBuilder,
    name: &str,
) -> Option<(&'a Spanned<Args>, &'a serde_json::Value)> {
    let args = builder.args.as_ref()?;
    args.value.get(name).map(|value| (args, value))
}

fn days(
    builder: &RawBuilder,
    name: &str,
    field: &str,
    reader: &Reader<'_>,
) -> Result<Option<u32>, ProjectError> {
    let Some((args, value)) = arg(builder, name) else {
        return Ok(None);
    };
    // A hundred years: beyond, dates leave what certificates can say.
    match value.as_u64().and_then(|days| u32::try_from(days).ok()) {
        Some(days @ 1..=36_500) => Ok(Some(days)),
        _ => Err(reader.error(
            args.referenced,
            format!("{field}.args.{name}"),
            format!("{value} must be a number of days from 1 to 36500"),
        )),
    }
}

fn static_files(
    builder: &RawBuilder,
    field: &str,
    reader: &Reader<'_>,
    settings: &mut Settings,
    warnings: &mut Vec<String>,
) -> Result<(), ProjectError> {
    if let Some((args, value)) = arg(builder, "scheme") {
        let field = format!("{field}.args.scheme");
        let Some(text) = value.as_str() else {
            return Err(reader.error(args.referenced, field, "must be a text"));
        };
        let text = Spanned::new(text.to_owned(), args.referenced, args.defined);
        if let Some(scheme) = reader.scheme(Some(&text), &field)? {
            settings.scheme = scheme;
        }
    }
    if let Some((args, value)) = arg(builder, "overseer_agent") {
        let exists = value.get("overseer_exists").and_then(|on| on.as_bool());
        if exists == Some(true) {
            return Err(reader.hinted(
                args.referenced,
                format!("{field}.args.overseer_agent"),
                "there is no overseer: it chose among several servers, and there is one",
                "remove it: jobs survive a restart of the server, and sites connect again by \
                 themselves",
            ));
        }
    }
    for (name, without) in [
        (
            "download_job_url",
            "results are fetched over the server's own port",
        ),
        (
            "app_validator",
            "job specs are checked before they are taken",
        ),
        ("docker_image", "kits hold no start scripts for containers"),
    ] {
        if let Some((args, value)) = arg(builder, name)
            && value.as_str().is_some_and(|text| !text.is_empty())
        {
            warnings.push(format!(
                "{}:{}: `{field}.args.{name}` has no effect: {without}",
                reader.file.display(),
                args.referenced.line(),
            ));
        }
    }
    if let Some((args, serde_json::Value::Bool(false))) = arg(builder, "require_signed_jobs") {
        warnings.push(format!(
            "{}:{}: `{field}.args.require_signed_jobs` has no effect: every job is signed",
            reader.file.display(),
            args.referenced.line(),
        ));
    }
    Ok(())
}
