//! The partial form of a mean: what a relay makes of the updates below it, and
//! hands up in their place. It is a model file of its own kind, which tells sums,
//! weights and numbers of sites, and nothing of a single site.

use std::collections::HashMap;

use firesteel_tensor::text::shown;
use firesteel_tensor::{DType, HeaderBuilder, HeaderError, ModelHeader, Tree, check_finite};

use crate::options::{Contribution, Data, UpdateKind};
use crate::plan::{ABSENT, Key, Source};
use crate::scalar::ScalarSums;

/// The metadata by which such a file is known.
const KEY: &str = "firesteel.sums";
/// Before the name of an integer tensor: its least and its greatest values.
const LEAST: &str = "firesteel.sums.least/";
const MOST: &str = "firesteel.sums.most/";
const VERSION: i64 = 1;
/// More sites than a federation can have; so sums of such counts stay exact.
const SITES: u64 = 1 << 32;

/// Sites, and how much they count together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Counted {
    /// How many.
    pub sites: usize,
    /// The sum of their weights.
    pub weight: f64,
}

impl Counted {
    pub(crate) fn add(&mut self, other: Self) {
        self.sites += other.sites;
        self.weight += other.weight;
    }
}

/// The sums of some sites' updates, as their file's header tells them.
#[derive(Debug, Clone)]
pub struct Sums {
    file: ModelHeader,
    /// As the header of an update of these sites would be.
    face: ModelHeader,
    /// In the order of the face's tensors.
    entries: Vec<Entry>,
    values: HashMap<String, ScalarSums>,
    kind: UpdateKind,
    all: Counted,
    /// Those whose updates hold only what changed.
    partial: Counted,
}

/// One key's part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Entry {
    /// Places in the file's tensors.
    pub(crate) sum: usize,
    pub(crate) least: Option<usize>,
    pub(crate) most: Option<usize>,
    /// Those that sent it.
    pub(crate) counted: Counted,
    /// Those that left it out because it did not change there.
    pub(crate) unchanged: Counted,
}

/// What a piece of the result is of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The value, or the sum.
    Value,
    /// The least of an integer's values.
    Least,
    /// The greatest.
    Most,
}

/// Why a file that says that it holds sums cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SumsError {
    /// Of a later release.
    #[error("the sums have version {found}, this release reads version {VERSION}")]
    Version {
        /// The file's.
        found: i64,
    },
    /// What it says of itself cannot be.
    #[error("the sums are malformed: {what}")]
    Malformed {
        /// What is wrong.
        what: String,
    },
    /// Its tensors are none that updates could have.
    #[error("the sums are of no model")]
    Header(#[from] HeaderError),
}

fn malformed(what: impl Into<String>) -> SumsError {
    SumsError::Malformed { what: what.into() }
}

impl Sums {
    /// Whether a file holds sums.
    pub fn is_one(header: &ModelHeader) -> bool {
        header.metadata().contains_key(KEY)
    }

    /// Reads what the header tells. Nothing of it is trusted but that what counts
    /// is a number; [`crate::verify_sums`] checks it against a model.
    ///
    /// # Errors
    /// [`SumsError`], also for a file that does not hold sums.
    pub fn of(header: &ModelHeader) -> Result<Self, SumsError> {
        let text = header.metadata().get(KEY);
        let text = text.ok_or_else(|| malformed("it does not say that it holds any"))?;
        let told = Tree::parse(text).map_err(|error| malformed(error.to_string()))?;
        let version = int(&told, "version")?;
        if version != VERSION {
            return Err(SumsError::Version { found: version });
        }
        let kind = match get(&told, "kind")? {
            Tree::Str(kind) if kind == "full" => UpdateKind::Full,
            Tree::Str(kind) if kind == "diff" => UpdateKind::Diff,
            _ => return Err(malformed("`kind` is neither full nor diff")),
        };
        let all = counted(list(&told, "all")?)?;
        let partial = counted(list(&told, "partial")?)?;
        let mut runs = Vec::new();
        for run in list(&told, "keys")? {
            let Tree::List(run) = run else {
                return Err(malformed("an entry of `keys` is no list"));
            };
            let [Tree::Int(count), Tree::Str(dtype), rest @ ..] = &run[..] else {
                return Err(malformed("an entry of `keys` lacks its parts"));
            };
            let dtype = DType::parse(dtype)
                .ok_or_else(|| malformed(format!("`{}` is no dtype", shown(dtype))))?;
            let (sent, unchanged) = rest
                .split_at_checked(2)
                .ok_or_else(|| malformed("an entry of `keys` lacks its parts"))?;
            let count = usize::try_from(*count)
                .map_err(|_| malformed("an entry of `keys` is of less than no tensor"))?;
            runs.push((count, dtype, counted(sent)?, counted(unchanged)?));
        }
        let tensors = header.tensors();
        let mut runs = runs.into_iter();
        let (mut left, mut run) = (0, None);
        let mut entries = Vec::new();
        let mut builder = HeaderBuilder::new();
        for (at, tensor) in tensors.iter().enumerate() {
            let name = &*tensor.name;
            if name.starts_with(LEAST) || name.starts_with(MOST) {
                continue;
            }
            while left == 0 {
                let next = runs.next();
                let next =
                    next.ok_or_else(|| malformed(format!("nothing is said of `{}`", shown(name))))?;
                (left, run) = (next.0, Some((next.1, next.2, next.3)));
            }
            left -= 1;
            let Some((dtype, counted, unchanged)) = run else {
                continue;
            };
            let sites = counted.sites.saturating_add(unchanged.sites);
            if counted.sites == 0 || sites > all.sites {
                return Err(malformed(format!(
                    "`{}` is said to be of {sites} of {} sites",
                    shown(name),
                    all.sites
                )));
            }
            let summed = if dtype == DType::Bool {
                DType::Bool
            } else {
                DType::F64
            };
            let extreme = |prefix: &str| {
                let at = header.position(&format!("{prefix}{name}"));
                let fits = at
                    .and_then(|at| tensors.get(at))
                    .is_some_and(|extreme| extreme.dtype == dtype && extreme.shape == tensor.shape);
                match (dtype.is_int(), fits) {
                    (true, true) => Ok(at),
                    (true, false) => Err(malformed(format!(
                        "the least or greatest values of `{}` are missing",
                        shown(name)
                    ))),
                    (false, _) => Ok(None),
                }
            };
            if tensor.dtype != summed {
                return Err(malformed(format!(
                    "the sum of `{}` is {}, not {summed}",
                    shown(name),
                    tensor.dtype
                )));
            }
            entries.push(Entry {
                sum: at,
                least: extreme(LEAST)?,
                most: extreme(MOST)?,
                counted,
                unchanged,
            });
            builder.tensor(name, dtype, &tensor.shape);
        }
        for (alias, name) in header.aliases() {
            builder.alias(alias, name);
        }
        if let Ok(tree) = get(&told, "tree") {
            builder.tree(tree.clone());
        }
        let mut values = HashMap::new();
        if let Tree::Dict(found) = get(&told, "values")? {
            for (path, value) in found {
                values.insert(path.clone(), ScalarSums::from_tree(value)?);
            }
        }
        for (key, value) in header.metadata() {
            if key != KEY {
                builder.metadata(key, value);
            }
        }
        let (_, face) = builder.encode()?;
        Ok(Self {
            file: header.clone(),
            face,
            entries,
            values,
            kind,
            all,
            partial,
        })
    }

    /// The sites whose updates are in it.
    pub fn counted(&self) -> Counted {
        self.all
    }

    /// What those updates are.
    pub fn kind(&self) -> UpdateKind {
        self.kind
    }

    /// It as one contribution to a fold; `bytes` is the whole file.
    pub fn from<'a>(&'a self, relay: &'a str, bytes: &'a [u8]) -> Contribution<'a> {
        Contribution {
            site: relay,
            weight: self.all.weight,
            header: &self.face,
            data: Data::Sums { sums: self, bytes },
        }
    }

    /// The header that an update of these sites would have.
    pub(crate) fn face(&self) -> &ModelHeader {
        &self.face
    }

    pub(crate) fn file(&self) -> &ModelHeader {
        &self.file
    }

    pub(crate) fn values(&self) -> &HashMap<String, ScalarSums> {
        &self.values
    }

    pub(crate) fn partial(&self) -> Counted {
        self.partial
    }

    /// What it has of the key at this place of its face.
    pub(crate) fn entry(&self, place: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(place).ok()?)
    }

    /// A stretch of one of the file's tensors.
    pub(crate) fn stretch<'b>(
        &self,
        bytes: &'b [u8],
        tensor: usize,
        first: usize,
        elements: usize,
    ) -> Option<&'b [u8]> {
        let tensor = self.file.tensors().get(tensor)?;
        let size = tensor.dtype.size();
        let bytes = self.file.bytes_of(tensor, bytes)?;
        bytes.get(first * size..(first + elements) * size)
    }
}

/// What a relay hands up of the fold's keys: the tensors of its file, and what
/// each is of.
pub(crate) fn lay_out(
    keys: &[Key],
    sources: &[Source<'_>],
    kind: UpdateKind,
    values: Vec<(String, ScalarSums)>,
    tree: Option<Tree>,
    like: &ModelHeader,
) -> Result<(HeaderBuilder, Vec<(usize, Part)>), HeaderError> {
    let mut builder = HeaderBuilder::new();
    let mut parts = Vec::new();
    let mut runs: Vec<(i64, DType, Counted, Counted)> = Vec::new();
    let mut names = std::collections::HashSet::new();
    for (at, key) in keys.iter().enumerate().filter(|(_, key)| key.sites > 0) {
        if key.name.starts_with(LEAST) || key.name.starts_with(MOST) {
            return Err(HeaderError::ReservedName);
        }
        let dtype = if key.dtype == DType::Bool {
            DType::Bool
        } else {
            DType::F64
        };
        builder.tensor(&key.name, dtype, &key.shape);
        parts.push((at, Part::Value));
        names.insert(&key.name);
        let (sent, unchanged) = counts(at, sources);
        match runs.last_mut() {
            Some((count, of, s, u)) if (*of, *s, *u) == (key.dtype, sent, unchanged) => *count += 1,
            _ => runs.push((1, key.dtype, sent, unchanged)),
        }
    }
    let ints = |(_, key): &(usize, &Key)| key.sites > 0 && key.dtype.is_int();
    for (at, key) in keys.iter().enumerate().filter(ints) {
        for (prefix, part) in [(LEAST, Part::Least), (MOST, Part::Most)] {
            builder.tensor(&format!("{prefix}{}", key.name), key.dtype, &key.shape);
            parts.push((at, part));
        }
    }
    for (alias, name) in like.aliases() {
        if names.contains(name) {
            builder.alias(alias, name);
        }
    }
    for (key, value) in like.metadata() {
        if key != KEY {
            builder.metadata(key, value);
        }
    }
    let (mut all, mut partial) = (Counted::default(), Counted::default());
    for source in sources {
        all.add(source.counted());
        partial.add(source.partial_counted());
    }
    let keys = runs.into_iter().map(|(count, dtype, sent, unchanged)| {
        let mut run = vec![Tree::Int(count), Tree::Str(dtype.as_str().to_owned())];
        run.extend(told(sent).into_iter().chain(told(unchanged)));
        Tree::List(run)
    });
    let values = values
        .iter()
        .map(|(path, value)| (path.clone(), value.to_tree()));
    let kind = match kind {
        UpdateKind::Full => "full",
        UpdateKind::Diff => "diff",
    };
    let mut entries = vec![
        ("version".to_owned(), Tree::Int(VERSION)),
        ("kind".to_owned(), Tree::Str(kind.to_owned())),
        ("all".to_owned(), Tree::List(told(all).into())),
        ("partial".to_owned(), Tree::List(told(partial).into())),
        ("keys".to_owned(), Tree::List(keys.collect())),
        ("values".to_owned(), Tree::Dict(values.collect())),
    ];
    if let Some(tree) = tree {
        entries.push(("tree".to_owned(), tree));
    }
    builder.metadata(KEY, &Tree::Dict(entries).to_json());
    Ok((builder, parts))
}

/// Who sent a key, and who left it out because it did not change.
fn counts(key: usize, sources: &[Source<'_>]) -> (Counted, Counted) {
    let (mut sent, mut unchanged) = (Counted::default(), Counted::default());
    for source in sources {
        let place = source.places.get(key).copied().unwrap_or(ABSENT);
        let entry = source.sums.and_then(|(sums, _)| sums.entry(place));
        match (source.sums, entry) {
            (Some(_), Some(entry)) => {
                sent.add(entry.counted);
                unchanged.add(entry.unchanged);
            }
            (Some((sums, _)), None) => unchanged.add(sums.partial()),
            (None, _) if place != ABSENT => sent.add(source.counted()),
            (None, _) => unchanged.add(source.partial_counted()),
        }
    }
    (sent, unchanged)
}

/// Whether the file's numbers are such: what of its tensors is not, by name.
pub(crate) fn odd_numbers(sums: &Sums, bytes: &[u8]) -> Vec<(String, u64, u64)> {
    let tensors = sums.file.tensors().iter();
    let odd = tensors.filter_map(|tensor| {
        let bytes = sums.file.bytes_of(tensor, bytes)?;
        let count = match tensor.dtype {
            DType::Bool => bytes.iter().filter(|byte| **byte > 1).count() as u64,
            dtype => check_finite(dtype, bytes),
        };
        (count > 0).then(|| (shown(&tensor.name), count, tensor.elements()))
    });
    odd.collect()
}

/// A number of sites, and the bits of their weight: so that it comes back as it
/// was.
fn told(counted: Counted) -> [Tree; 2] {
    [Tree::Int(counted.sites as i64), bits(counted.weight)]
}

pub(crate) fn bits(number: f64) -> Tree {
    Tree::Int(number.to_bits().cast_signed())
}

pub(crate) fn counted(told: &[Tree]) -> Result<Counted, SumsError> {
    let [Tree::Int(sites), weight] = told else {
        return Err(malformed("a number of sites is missing"));
    };
    let weight = number(weight)?;
    let sites = u64::try_from(*sites).ok().filter(|sites| *sites <= SITES);
    let sites = sites.and_then(|sites| usize::try_from(sites).ok());
    let sites = sites.ok_or_else(|| malformed("a number of sites is none"))?;
    if weight < 0.0 {
        return Err(malformed("a weight is negative"));
    }
    Ok(Counted { sites, weight })
}

pub(crate) fn number(tree: &Tree) -> Result<f64, SumsError> {
    match tree {
        Tree::Int(bits) => Some(f64::from_bits(bits.cast_unsigned())),
        _ => None,
    }
    .filter(|number| number.is_finite())
    .ok_or_else(|| malformed("a sum or weight is not a finite number"))
}

fn get<'t>(tree: &'t Tree, key: &str) -> Result<&'t Tree, SumsError> {
    let entries = match tree {
        Tree::Dict(entries) => &entries[..],
        _ => &[],
    };
    let found = entries.iter().find(|(name, _)| name == key);
    found
        .map(|(_, value)| value)
        .ok_or_else(|| malformed(format!("`{key}` is missing")))
}

fn int(tree: &Tree, key: &str) -> Result<i64, SumsError> {
    match get(tree, key)? {
        Tree::Int(number) => Ok(*number),
        _ => Err(malformed(format!("`{key}` is no whole number"))),
    }
}

fn list<'t>(tree: &'t Tree, key: &str) -> Result<&'t [Tree], SumsError> {
    match get(tree, key)? {
        Tree::List(items) => Ok(items),
        _ => Err(malformed(format!("`{key}` is no list"))),
    }
}
