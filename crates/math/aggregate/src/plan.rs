//! What a fold will do, decided and checked before a byte is written.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use firesteel_tensor::text::shown;
use firesteel_tensor::{DType, HeaderBuilder, ModelHeader, TensorInfo, Tree};

use crate::error::AggregateError;
use crate::kernel::order::{Network, Rank};
use crate::options::{Contribution, Data, Method, Model, Options, UpdateKind, Wide};
use crate::report::{PartialKey, Report, joined};
use crate::scalar::{cut_of, fold_tree};
use crate::sums::{self, Counted, Part, Sums};
use crate::verify::{VerifyProblem, misfit};

/// Marks a key that a source does not have.
pub(crate) const ABSENT: u64 = u64::MAX;

/// A fold that can be carried out: everything fits, and the result's layout is
/// known. Only bools and numbers that outgrow their dtype can still fail it.
#[derive(Debug)]
pub struct Plan<'a> {
    pub(crate) sources: Vec<Source<'a>>,
    pub(crate) model: Option<Model<'a>>,
    /// In the order of the result's tensors.
    pub(crate) keys: Vec<Key>,
    pub(crate) header: ModelHeader,
    pub(crate) header_bytes: Vec<u8>,
    pub(crate) form: Form,
    /// What each of the result's tensors is of, by its place: a key and a part.
    pub(crate) parts: Vec<(usize, Part)>,
    pub(crate) options: Options,
    /// The sorting networks of every number of rows that a key has.
    pub(crate) networks: BTreeMap<usize, Network>,
    pub(crate) report: Report,
}

/// What comes out of a fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A model.
    Model,
    /// Sums that another fold goes on with.
    Sums,
}

/// One site's file, and where in its data each key's tensor starts.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(crate) site: &'a str,
    pub(crate) header: &'a ModelHeader,
    pub(crate) data: Data<'a>,
    /// Rounded to f32.
    pub(crate) weight: f64,
    /// Whether a key that it lacks did not change there.
    pub(crate) partial: bool,
    /// Shared by the sites whose files are laid out alike: nearly always all. Of
    /// sums, the places of their entries.
    pub(crate) places: Arc<[u64]>,
    /// What it is, when it is no update of one site, and its bytes.
    pub(crate) sums: Option<(&'a Sums, &'a [u8])>,
}

impl Source<'_> {
    /// Whom it stands for.
    pub(crate) fn counted(&self) -> Counted {
        match self.sums {
            Some((sums, _)) => sums.counted(),
            None => Counted {
                sites: 1,
                weight: self.weight,
            },
        }
    }

    /// Those of them for whom a key that they lack did not change.
    pub(crate) fn partial_counted(&self) -> Counted {
        match self.sums {
            Some((sums, _)) => sums.partial(),
            None if self.partial => self.counted(),
            None => Counted::default(),
        }
    }
}

/// One tensor of the result.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: Arc<str>,
    pub(crate) shape: Vec<u64>,
    /// What the sites send; the model's when none sends it.
    pub(crate) dtype: DType,
    /// How many sites send it.
    pub(crate) sites: usize,
    /// How many values it is folded from: those, and one of each site that says
    /// by leaving it out that it did not change; 0 when no site sends it.
    pub(crate) rows: usize,
    /// The tensor of the model, by its place in the model's header.
    pub(crate) model: Option<usize>,
}

impl Plan<'_> {
    /// The result's header.
    pub fn header(&self) -> &ModelHeader {
        &self.header
    }

    /// The result's first bytes, up to the data; [`Plan::fold`] writes them too.
    pub fn header_bytes(&self) -> &[u8] {
        &self.header_bytes
    }

    /// Bytes of the whole result, which the output of [`Plan::fold`] must have.
    pub fn output_len(&self) -> u64 {
        self.header.total_len()
    }

    /// The order statistic of `sites` values; `None` for a mean.
    pub(crate) fn rank(&self, sites: usize) -> Option<Rank> {
        rank(self.options.method, sites)
    }
}

fn rank(method: Method, sites: usize) -> Option<Rank> {
    match method {
        Method::Mean => None,
        Method::Median => Some(Rank::Median),
        Method::TrimmedMean(fraction) => Some(Rank::Trimmed(cut_of(fraction, sites))),
    }
}

/// Checks the updates against each other and the model, and lays the result out.
///
/// `contributions` are in site order; the result's bits depend on it. `model` is
/// the model that the sites were given (or the server's wide copy of it): needed
/// for [`UpdateKind::Diff`], and keeps the keys that no site sends.
///
/// # Errors
/// [`AggregateError`] for everything that can be known without reading tensors.
pub fn plan<'a>(
    contributions: &[Contribution<'a>],
    model: Option<Model<'a>>,
    options: &Options,
) -> Result<Plan<'a>, AggregateError> {
    make(contributions, model, options, Form::Model)
}

/// The same for a relay: what is laid out is not a model, but the sums from which
/// another fold makes one, or sums of more sites (see [`Sums`]). Only a mean has
/// them, and the updates must be here as whole files.
///
/// # Errors
/// As [`plan`]'s.
pub fn plan_sums<'a>(
    contributions: &[Contribution<'a>],
    model: Option<Model<'a>>,
    options: &Options,
) -> Result<Plan<'a>, AggregateError> {
    make(contributions, model, options, Form::Sums)
}

fn make<'a>(
    contributions: &[Contribution<'a>],
    model: Option<Model<'a>>,
    options: &Options,
    form: Form,
) -> Result<Plan<'a>, AggregateError> {
    check_options(contributions, model, options, form)?;
    let mut report = Report::default();
    let counted = counted(contributions, options, &mut report)?;
    report.sites = counted.iter().map(sites_of).sum();
    let mut keys = Keys::new(model.map(|m| m.header), options);
    let places = keys.place_all(&counted)?;
    let untied = std::mem::take(&mut keys.untied);
    if !untied.is_empty() {
        report.warnings.push(format!(
            "{} came apart from the tensor that the model ties to it; the tied one counts",
            joined(&untied, "`")
        ));
    }
    let (keys, left_out) = keys.finish(&counted, &places);
    report.excluded.extend(left_out);
    let (tree, values) = fold_tree(
        &counted,
        model.map(|m| m.header.tree()),
        options,
        form,
        &mut report,
    )?;
    let sources = counted.iter().zip(places).map(|(c, places)| Source {
        site: c.site,
        header: c.header,
        data: c.data,
        partial: c.header.is_partial(),
        weight: f64::from(c.weight as f32),
        places,
        sums: match c.data {
            Data::Sums { sums, bytes } => Some((sums, bytes)),
            _ => None,
        },
    });
    let sources: Vec<_> = sources.collect();

    let like = model.map_or(counted[0].header, |m| m.header);
    let (builder, parts) = match form {
        Form::Model => {
            let parts = (0..keys.len()).map(|key| (key, Part::Value));
            (model_like(&keys, tree, like, options), parts.collect())
        }
        // Whoever goes on with it has the model, and its tree, when there is one.
        Form::Sums => {
            let tree = tree.filter(|_| model.is_none());
            sums::lay_out(&keys, &sources, options.kind, values, tree, like)?
        }
    };
    let (header_bytes, header) = builder.encode()?;
    note_keys(&keys, report.sites, options, &mut report);
    let networks = keys.iter().filter(|key| key.rows > 0).filter_map(|key| {
        let rank = rank(options.method, key.rows)?;
        Some((key.rows, rank))
    });
    let networks: BTreeMap<_, _> = networks.collect();
    let networks = networks
        .into_iter()
        .map(|(rows, rank)| (rows, Network::new(rows, rank)));
    Ok(Plan {
        networks: networks.collect(),
        sources,
        model,
        keys,
        header,
        header_bytes,
        form,
        parts,
        options: options.clone(),
        report,
    })
}

/// The header of the model that comes out.
fn model_like(
    keys: &[Key],
    tree: Option<Tree>,
    like: &ModelHeader,
    options: &Options,
) -> HeaderBuilder {
    let mut builder = HeaderBuilder::new();
    for key in keys {
        let dtype = Wide::widened(options.master_dtype, key.dtype);
        builder.tensor(&key.name, dtype, &key.shape);
    }
    let names: HashSet<_> = keys.iter().map(|key| &key.name).collect();
    for (alias, name) in like.aliases() {
        if names.contains(name) {
            builder.alias(alias, name);
        }
    }
    if let Some(tree) = tree {
        builder.tree(tree);
    }
    for (key, value) in like.metadata() {
        builder.metadata(key, value);
    }
    builder
}

/// How many sites a contribution is of.
pub(crate) fn sites_of(contribution: &Contribution<'_>) -> usize {
    match contribution.data {
        Data::Sums { sums, .. } => sums.counted().sites,
        _ => 1,
    }
}

fn check_options(
    contributions: &[Contribution<'_>],
    model: Option<Model<'_>>,
    options: &Options,
    form: Form,
) -> Result<(), AggregateError> {
    if contributions.is_empty() {
        return Err(AggregateError::Nothing);
    }
    if options.kind == UpdateKind::Diff && model.is_none() {
        return Err(AggregateError::DiffWithoutModel);
    }
    if let Method::TrimmedMean(fraction) = options.method
        && !(0.0..0.5).contains(&fraction)
    {
        return Err(AggregateError::Trim { fraction });
    }
    if let Some(live) = contributions
        .iter()
        .find(|c| matches!(c.data, Data::Live { .. }))
        && options.method.needs_spooled()
    {
        return Err(AggregateError::NeedsSpooled {
            method: options.method.name(),
            site: live.site.to_owned(),
        });
    }
    let summed = contributions
        .iter()
        .find(|c| matches!(c.data, Data::Sums { .. }));
    if options.method != Method::Mean
        && let Some(at) = summed.or(contributions.first().filter(|_| form == Form::Sums))
    {
        return Err(AggregateError::NoSums {
            method: options.method.name(),
            site: at.site.to_owned(),
        });
    }
    let length = |owner: &str, header: &ModelHeader, bytes: &[u8]| {
        let (length, expected) = (bytes.len() as u64, header.total_len());
        if length == expected {
            return Ok(());
        }
        Err(AggregateError::Length {
            owner: owner.to_owned(),
            length,
            expected,
        })
    };
    if let Some(model) = model {
        length("the model", model.header, model.bytes)?;
    }
    for contribution in contributions {
        let refused = |problem| AggregateError::Update {
            site: contribution.site.to_owned(),
            problem,
        };
        let header = contribution.header;
        match contribution.data {
            Data::Mapped(bytes) => length(contribution.site, header, bytes)?,
            Data::Live { facts, .. } if facts.len() != header.tensors().len() => {
                return Err(refused(VerifyProblem::FactsCount {
                    facts: facts.len(),
                    tensors: header.tensors().len(),
                }));
            }
            Data::Live { .. } | Data::Read(_) if form == Form::Sums => {
                return Err(AggregateError::NeedsSpooled {
                    method: "sum at a relay",
                    site: contribution.site.to_owned(),
                });
            }
            Data::Live { .. } | Data::Read(_) => {}
            Data::Sums { sums, bytes } => {
                length(contribution.site, sums.file(), bytes)?;
                if sums.kind() != options.kind {
                    return Err(AggregateError::OtherKind {
                        site: contribution.site.to_owned(),
                    });
                }
            }
        }
        if header.is_partial() && model.is_none() {
            return Err(refused(VerifyProblem::PartialWithoutModel));
        }
    }
    Ok(())
}

/// The contributions that count: for a mean, those with a weight.
fn counted<'a>(
    contributions: &[Contribution<'a>],
    options: &Options,
    report: &mut Report,
) -> Result<Vec<Contribution<'a>>, AggregateError> {
    if options.method != Method::Mean {
        return Ok(contributions.to_vec());
    }
    let mut counted = Vec::with_capacity(contributions.len());
    let mut weightless = Vec::new();
    for contribution in contributions {
        if let Data::Sums { sums, .. } = contribution.data {
            // What is summed was looked at where it was summed.
            if sums.counted().weight > 0.0 {
                counted.push(*contribution);
            }
            continue;
        }
        let weight = contribution.weight as f32;
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(AggregateError::Weight {
                site: contribution.site.to_owned(),
                weight: contribution.weight,
            });
        }
        if weight == 0.0 {
            weightless.push(contribution.site);
        } else {
            counted.push(*contribution);
        }
    }
    if counted.is_empty() {
        return Err(AggregateError::NoWeight {
            sites: contributions.iter().map(sites_of).sum(),
        });
    }
    if !weightless.is_empty() {
        report.warnings.push(format!(
            "{} counted for nothing, with a weight of zero",
            joined(&weightless, "")
        ));
    }
    Ok(counted)
}

/// The result's keys while the sites' files are looked through.
struct Keys<'o> {
    list: Vec<Key>,
    /// From a name or an alias to the key's place in `list`.
    index: HashMap<Arc<str>, usize>,
    /// With a model, no key is added to its own.
    closed: bool,
    options: &'o Options,
    excluded: Vec<Arc<str>>,
    untied: Vec<Arc<str>>,
}

impl<'o> Keys<'o> {
    fn new(model: Option<&ModelHeader>, options: &'o Options) -> Self {
        let mut keys = Self {
            list: Vec::new(),
            index: HashMap::new(),
            closed: model.is_some(),
            options,
            excluded: Vec::new(),
            untied: Vec::new(),
        };
        for (at, tensor) in model.iter().flat_map(|m| m.tensors()).enumerate() {
            keys.add(tensor, Some(at));
        }
        keys.add_aliases(model);
        keys
    }

    fn add(&mut self, tensor: &TensorInfo, model: Option<usize>) -> usize {
        self.list.push(Key {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            dtype: tensor.dtype,
            sites: 0,
            rows: 0,
            model,
        });
        self.index.insert(tensor.name.clone(), self.list.len() - 1);
        self.list.len() - 1
    }

    fn add_aliases(&mut self, header: Option<&ModelHeader>) {
        for (alias, name) in header.iter().flat_map(|h| h.aliases()) {
            if let Some(at) = self.index.get(name).copied() {
                self.index.entry(alias.clone()).or_insert(at);
            }
        }
    }

    /// Where each contribution has each key.
    fn place_all(
        &mut self,
        contributions: &[Contribution<'_>],
    ) -> Result<Vec<Arc<[u64]>>, AggregateError> {
        let mut known: Vec<(&ModelHeader, Arc<[u64]>)> = Vec::new();
        let mut places = Vec::with_capacity(contributions.len());
        for contribution in contributions {
            let header = contribution.header;
            let refused = |problem| AggregateError::Update {
                site: contribution.site.to_owned(),
                problem,
            };
            if matches!(contribution.data, Data::Sums { .. }) {
                let entry = |tensor: &TensorInfo| {
                    header.position(&tensor.name).map_or(ABSENT, |at| at as u64)
                };
                places.push(self.place(header, entry).map_err(refused)?);
                continue;
            }
            // Thousands of sites with a hundred thousand tensors each: what is
            // laid out alike is looked up once.
            let alike = known.iter().find(|(other, _)| {
                other.tensors() == header.tensors() && other.aliases() == header.aliases()
            });
            if let Some((_, found)) = alike {
                places.push(found.clone());
                continue;
            }
            let found = self.place(header, |tensor| tensor.start).map_err(refused)?;
            if known.len() < 4 {
                known.push((header, found.clone()));
            }
            places.push(found);
        }
        Ok(places)
    }

    /// `place_of` is where a tensor of it is found.
    fn place(
        &mut self,
        header: &ModelHeader,
        place_of: impl Fn(&TensorInfo) -> u64,
    ) -> Result<Arc<[u64]>, VerifyProblem> {
        let mut places = vec![ABSENT; self.list.len()];
        let aliases: HashMap<_, _> = header.aliases().iter().map(|(a, n)| (n, a)).collect();
        for tensor in header.tensors() {
            if self.options.exclude.contains(&tensor.name) {
                self.excluded.push(tensor.name.clone());
                continue;
            }
            let known = self.index.get(&tensor.name).copied();
            let by_alias = || self.index.get(*aliases.get(&tensor.name)?).copied();
            let at = match known.or_else(by_alias) {
                Some(at) => at,
                None if self.closed => {
                    return Err(VerifyProblem::UnknownTensor {
                        tensor: shown(&tensor.name),
                    });
                }
                None => {
                    places.push(ABSENT);
                    self.add(tensor, None)
                }
            };
            self.fit(at, tensor)?;
            if places[at] != ABSENT {
                self.untied.push(tensor.name.clone());
            }
            // Under its own name a tensor counts before one under an alias.
            if places[at] == ABSENT || self.list[at].name == tensor.name {
                places[at] = place_of(tensor);
            }
        }
        for (alias, name) in header.aliases() {
            let at = self.index.get(alias).copied();
            if let (Some(at), Some(tensor)) = (at, header.get(name))
                && places[at] == ABSENT
            {
                self.fit(at, tensor)?;
                places[at] = place_of(tensor);
            }
        }
        if !self.closed {
            self.add_aliases(Some(header));
        }
        Ok(places.into())
    }

    /// Checks a tensor against its key, whose dtype becomes what sites send.
    fn fit(&mut self, at: usize, tensor: &TensorInfo) -> Result<(), VerifyProblem> {
        let key = &mut self.list[at];
        // What is sent the first time holds for all, even under a wide model.
        let wide = self.options.master_dtype.filter(|_| key.sites == 0);
        if let Some(problem) = misfit(tensor, &key.shape, key.dtype, wide) {
            return Err(problem);
        }
        key.dtype = tensor.dtype;
        key.sites += 1;
        Ok(())
    }

    /// The keys with their number of sites, and the names that are left out.
    fn finish(
        mut self,
        contributions: &[Contribution<'_>],
        places: &[Arc<[u64]>],
    ) -> (Vec<Key>, Vec<Arc<str>>) {
        for (at, key) in self.list.iter_mut().enumerate() {
            let (mut sent, mut unchanged) = (0, 0);
            for (contribution, places) in contributions.iter().zip(places) {
                let place = places.get(at).copied().unwrap_or(ABSENT);
                match contribution.data {
                    Data::Sums { sums, .. } => match sums.entry(place) {
                        Some(entry) => {
                            sent += entry.counted.sites;
                            unchanged += entry.unchanged.sites;
                        }
                        None => unchanged += sums.partial().sites,
                    },
                    _ if place != ABSENT => sent += 1,
                    _ => unchanged += usize::from(contribution.header.is_partial()),
                }
            }
            key.sites = sent;
            key.rows = if sent > 0 { sent + unchanged } else { 0 };
        }
        let names: HashSet<_> = self.list.iter().map(|key| &key.name).collect();
        // Those that the model has are noted with the model's keys.
        self.excluded.retain(|name| !names.contains(name));
        self.excluded.sort_unstable();
        self.excluded.dedup();
        (self.list, self.excluded)
    }
}

fn note_keys(keys: &[Key], sites: usize, options: &Options, report: &mut Report) {
    for key in keys {
        if options.exclude.contains(&key.name) {
            report.excluded.push(key.name.clone());
        } else if key.sites == 0 {
            report.kept.push(key.name.clone());
        } else if key.rows < sites {
            report.partial.push(PartialKey {
                key: key.name.clone(),
                sites: key.rows,
            });
        }
    }
}
