//! The values of the params that are not tensors, by the same rules: floats are
//! averaged, whole numbers take the maximum, all else must be the same.

use std::collections::HashMap;

use firesteel_tensor::Tree;
use firesteel_tensor::text::shown;
use firesteel_tensor::tree::Path;

use crate::error::AggregateError;
use crate::kernel::order::Rank;
use crate::options::{Contribution, Data, Method, Options, UpdateKind};
use crate::plan::Form;
use crate::report::{PartialKey, Report, joined};
use crate::sums::{self, Counted, SumsError, bits, counted};

/// The values and their paths; a path that stands twice gets a number.
pub(crate) fn scalars(tree: Option<&Tree>) -> Vec<(String, &Tree)> {
    let mut found = Vec::new();
    let mut names = Names::default();
    if let Some(tree) = tree {
        tree.walk(|path, leaf| {
            if !matches!(leaf, Tree::Tensor(_)) {
                found.push((names.unique(path), leaf));
            }
        });
    }
    found
}

/// Tells paths apart that are written alike, as `{"a.b": 1, "a": {"b": 2}}` has.
#[derive(Default)]
struct Names(HashMap<String, usize>);

impl Names {
    fn unique(&mut self, path: &Path) -> String {
        let times = self.0.entry(path.as_str().to_owned()).or_insert(0);
        *times += 1;
        match *times {
            1 => path.as_str().to_owned(),
            again => format!("{}#{again}", path.as_str()),
        }
    }
}

/// Whether two values can be folded: numbers with numbers, others with their like.
pub(crate) fn same_kind(a: &Tree, b: &Tree) -> bool {
    let number = |value: &Tree| matches!(value, Tree::Int(_) | Tree::Float(_));
    a.kind() == b.kind() || (number(a) && number(b))
}

/// What comes of the params trees: one, and with [`Form::Sums`] the sums of the
/// values whose places it has.
pub(crate) type FoldedTree = (Option<Tree>, Vec<(String, ScalarSums)>);

/// The result's params tree. `model` is the tree of the model that is there
/// already; without one the sites' trees are laid over each other.
pub(crate) fn fold_tree(
    contributions: &[Contribution<'_>],
    model: Option<Option<&Tree>>,
    options: &Options,
    form: Form,
    report: &mut Report,
) -> Result<FoldedTree, AggregateError> {
    let known = model.is_some();
    let tree = match model {
        Some(tree) => tree.cloned(),
        None => merged(contributions),
    };
    let Some(mut tree) = tree else {
        return Ok((None, Vec::new()));
    };
    if !known {
        prune(&mut tree, &mut Path::default(), options)?;
    }
    let sent: Vec<HashMap<String, &Tree>> = contributions
        .iter()
        .map(|c| match c.data {
            // Its tree only has the places.
            Data::Sums { .. } => HashMap::new(),
            _ => scalars(c.header.tree()).into_iter().collect(),
        })
        .collect();
    let mut fold = Fold {
        contributions,
        sent,
        form,
        sums: Vec::new(),
        options,
        known,
        report,
        names: Names::default(),
    };
    fold.rewrite(&mut tree, &mut Path::default())?;
    let sums = std::mem::take(&mut fold.sums);
    Ok((Some(tree), sums))
}

fn merged(contributions: &[Contribution<'_>]) -> Option<Tree> {
    if contributions.iter().all(|c| c.header.tree().is_none()) {
        return None;
    }
    let mut whole: Option<Tree> = None;
    let mut last: Option<&Tree> = None;
    for contribution in contributions {
        let tree = contribution.header.tree();
        // Nearly always every site has the same tree.
        if tree.is_some() && tree == last {
            continue;
        }
        last = tree;
        let tree = contribution.header.tree_or_flat();
        match &mut whole {
            None => whole = Some(tree),
            Some(whole) => merge(whole, tree),
        }
    }
    whole
}

/// Adds what `other` has more in its dicts.
fn merge(tree: &mut Tree, other: Tree) {
    let (Tree::Dict(entries), Tree::Dict(more)) = (tree, other) else {
        return;
    };
    let mut places: HashMap<String, usize> = HashMap::with_capacity(entries.len());
    for (at, (key, _)) in entries.iter().enumerate() {
        places.insert(key.clone(), at);
    }
    for (key, node) in more {
        match places.get(&key) {
            Some(&at) => merge(&mut entries[at].1, node),
            None => entries.push((key, node)),
        }
    }
}

/// Takes the excluded leaves out of a tree that no model stands behind.
fn prune(node: &mut Tree, path: &mut Path, options: &Options) -> Result<(), AggregateError> {
    match node {
        Tree::Dict(entries) => {
            let mut error = None;
            entries.retain_mut(|(key, child)| {
                path.push_key(key);
                let excluded = excluded(child, path, options);
                if !excluded && error.is_none() {
                    error = prune(child, path, options).err();
                }
                path.pop();
                !excluded
            });
            error.map_or(Ok(()), Err)
        }
        Tree::List(items) | Tree::Tuple(items) => {
            for (at, child) in items.iter_mut().enumerate() {
                path.push_index(at);
                if excluded(child, path, options) {
                    return Err(AggregateError::ExcludedItem {
                        key: path.to_string(),
                    });
                }
                prune(child, path, options)?;
                path.pop();
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn excluded(node: &Tree, path: &Path, options: &Options) -> bool {
    match node {
        Tree::Dict(_) | Tree::List(_) | Tree::Tuple(_) => false,
        Tree::Tensor(name) => options.exclude.contains(name),
        _ => options.exclude.contains(path.as_str()),
    }
}

struct Fold<'c, 'r> {
    contributions: &'c [Contribution<'c>],
    sent: Vec<HashMap<String, &'c Tree>>,
    form: Form,
    sums: Vec<(String, ScalarSums)>,
    options: &'c Options,
    /// Whether the tree is a model's, so that its values are kept or added to.
    known: bool,
    report: &'r mut Report,
    names: Names,
}

impl Fold<'_, '_> {
    fn rewrite(&mut self, node: &mut Tree, path: &mut Path) -> Result<(), AggregateError> {
        match node {
            Tree::Dict(entries) => {
                for (key, child) in entries {
                    path.push_key(key);
                    self.rewrite(child, path)?;
                    path.pop();
                }
                Ok(())
            }
            Tree::List(items) | Tree::Tuple(items) => {
                for (at, child) in items.iter_mut().enumerate() {
                    path.push_index(at);
                    self.rewrite(child, path)?;
                    path.pop();
                }
                Ok(())
            }
            Tree::Tensor(_) => Ok(()),
            scalar => {
                let name = self.names.unique(path);
                self.fold(scalar, &name)
            }
        }
    }

    fn fold(&mut self, value: &mut Tree, path: &str) -> Result<(), AggregateError> {
        if self.options.exclude.contains(path) {
            self.report.excluded.push(path.into());
            return Ok(());
        }
        let mut sent = Vec::new();
        for (contribution, values) in self.contributions.iter().zip(&self.sent) {
            if let Some(value) = values.get(path) {
                sent.push((contribution, *value));
            }
        }
        let summed = self.contributions.iter().filter_map(|c| match c.data {
            Data::Sums { sums, .. } => Some((c.site, sums.values().get(path)?)),
            _ => None,
        });
        let summed: Vec<_> = summed.collect();
        if self.form == Form::Sums || !summed.is_empty() {
            return self.fold_sums(value, path, &sent, &summed);
        }
        let Some((_, first)) = sent.first().copied() else {
            self.report.kept.push(path.into());
            return Ok(());
        };
        if sent.len() < self.contributions.len() {
            self.report.partial.push(PartialKey {
                key: path.into(),
                sites: sent.len(),
            });
        }
        let base = (self.known && self.options.kind == UpdateKind::Diff).then(|| value.clone());
        let all = |test: fn(&Tree) -> bool| sent.iter().all(|(_, value)| test(value));
        let folded = if all(|v| matches!(v, Tree::Int(_))) {
            int(&sent, base.as_ref())
        } else if all(|v| matches!(v, Tree::Int(_) | Tree::Float(_))) {
            self.float(&sent, base.as_ref(), path)?
        } else {
            same(&sent, path)?;
            first.clone()
        };
        *value = folded;
        Ok(())
    }

    /// The same by way of sums, which are what comes out of it or part of what goes
    /// in.
    fn fold_sums(
        &mut self,
        value: &mut Tree,
        path: &str,
        sent: &[(&Contribution<'_>, &Tree)],
        summed: &[(&str, &ScalarSums)],
    ) -> Result<(), AggregateError> {
        let mut total: Option<(&str, ScalarSums)> = None;
        for (site, more) in sent
            .iter()
            .map(|(c, value)| (c.site, ScalarSums::of(c.weight, value)))
            .chain(summed.iter().map(|(site, sums)| (*site, (*sums).clone())))
        {
            match &mut total {
                None => total = Some((site, more)),
                Some((first, total)) => {
                    if !total.add(&more) {
                        return Err(AggregateError::ValuesDiffer {
                            path: shown(path),
                            kind: total.kind(),
                            odd: site.to_owned(),
                            first: (*first).to_owned(),
                        });
                    }
                }
            }
        }
        let Some((_, total)) = total else {
            self.report.kept.push(path.into());
            return Ok(());
        };
        let sites = total.sites();
        if sites < self.report.sites {
            self.report.partial.push(PartialKey {
                key: path.into(),
                sites,
            });
        }
        if self.form == Form::Sums {
            self.sums.push((path.to_owned(), total));
            *value = Tree::None;
            return Ok(());
        }
        let base = (self.known && self.options.kind == UpdateKind::Diff).then(|| value.clone());
        *value = match total {
            ScalarSums::Same { value, .. } => value,
            ScalarSums::Number {
                ints: Some((_, most)),
                ..
            } => plus(&Tree::Int(most), base.as_ref()),
            ScalarSums::Number {
                all,
                sum,
                least,
                most,
                ..
            } => {
                let equal = least.to_bits() == most.to_bits();
                let mean = if equal { least } else { sum / all.weight };
                finite(base.as_ref().map_or(mean, |base| number(base) + mean), path)?
            }
        };
        Ok(())
    }

    fn float(
        &self,
        sent: &[(&Contribution<'_>, &Tree)],
        base: Option<&Tree>,
        path: &str,
    ) -> Result<Tree, AggregateError> {
        let mut values: Vec<f64> = sent.iter().map(|(_, value)| number(value)).collect();
        let equal = values.iter().all(|v| v.to_bits() == values[0].to_bits());
        let mean = if equal {
            values[0]
        } else {
            match self.options.method {
                Method::Mean => {
                    let weights = || sent.iter().map(|(c, _)| f64::from(c.weight as f32));
                    let products = weights().zip(&values).map(|(w, v)| w * v);
                    products.sum::<f64>() / weights().sum::<f64>()
                }
                Method::Median => middle(&mut values, Rank::Median),
                Method::TrimmedMean(fraction) => {
                    let cut = cut_of(fraction, values.len());
                    middle(&mut values, Rank::Trimmed(cut))
                }
            }
        };
        finite(base.map_or(mean, |base| number(base) + mean), path)
    }
}

fn finite(result: f64, path: &str) -> Result<Tree, AggregateError> {
    if !result.is_finite() {
        return Err(AggregateError::NotFinite {
            key: shown(path),
            count: 1,
            elements: 1,
        });
    }
    Ok(Tree::Float(result))
}

/// What some sites have at one place of their params, summed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ScalarSums {
    /// Numbers.
    Number {
        all: Counted,
        /// Of weight and value.
        sum: f64,
        /// The least and the greatest, by the order of their bits.
        least: f64,
        most: f64,
        /// The same, exactly, when all of them are whole.
        ints: Option<(i64, i64)>,
    },
    /// What has no mean, and is the same everywhere.
    Same { sites: usize, value: Tree },
}

impl ScalarSums {
    fn of(weight: f64, value: &Tree) -> Self {
        let ints = match value {
            Tree::Int(value) => Some((*value, *value)),
            Tree::Float(_) => None,
            _ => {
                return Self::Same {
                    sites: 1,
                    value: value.clone(),
                };
            }
        };
        let weight = f64::from(weight as f32);
        let value = number(value);
        Self::Number {
            all: Counted { sites: 1, weight },
            sum: weight * value,
            least: value,
            most: value,
            ints,
        }
    }

    /// Adds those of other sites; whether they can be.
    fn add(&mut self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Number {
                    all,
                    sum,
                    least,
                    most,
                    ints,
                },
                Self::Number {
                    all: more,
                    sum: product,
                    least: low,
                    most: high,
                    ints: others,
                },
            ) => {
                all.add(*more);
                *sum += product;
                *least = std::cmp::min_by(*least, *low, f64::total_cmp);
                *most = std::cmp::max_by(*most, *high, f64::total_cmp);
                *ints = ints.zip(*others).map(|(a, b)| (a.0.min(b.0), a.1.max(b.1)));
                true
            }
            (
                Self::Same { sites, value },
                Self::Same {
                    sites: more,
                    value: other,
                },
            ) if value == other => {
                *sites += more;
                true
            }
            _ => false,
        }
    }

    fn sites(&self) -> usize {
        match self {
            Self::Number { all, .. } => all.sites,
            Self::Same { sites, .. } => *sites,
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Number { .. } => "number",
            Self::Same { value, .. } => value.kind(),
        }
    }

    /// Whether it can stand for values like this one of a model.
    pub(crate) fn fits(&self, model: &Tree) -> bool {
        match self {
            Self::Number { .. } => matches!(model, Tree::Int(_) | Tree::Float(_)),
            Self::Same { value, .. } => same_kind(value, model),
        }
    }

    pub(crate) fn to_tree(&self) -> Tree {
        match self {
            Self::Same { sites, value } => {
                Tree::List(vec![Tree::Int(*sites as i64), value.clone()])
            }
            Self::Number {
                all,
                sum,
                least,
                most,
                ints,
            } => {
                let mut parts = vec![Tree::Int(all.sites as i64)];
                parts.extend([all.weight, *sum, *least, *most].map(bits));
                if let Some((least, most)) = ints {
                    parts.extend([Tree::Int(*least), Tree::Int(*most)]);
                }
                Tree::List(parts)
            }
        }
    }

    pub(crate) fn from_tree(tree: &Tree) -> Result<Self, SumsError> {
        let parts = match tree {
            Tree::List(parts) => &parts[..],
            _ => &[],
        };
        Ok(match parts {
            [Tree::Int(sites), value] => Self::Same {
                sites: usize::try_from(*sites).unwrap_or_default(),
                value: value.clone(),
            },
            [sites, weight, sum, least, most, ints @ ..] => Self::Number {
                all: counted(&[sites.clone(), weight.clone()])?,
                sum: sums::number(sum)?,
                least: sums::number(least)?,
                most: sums::number(most)?,
                ints: match ints {
                    [Tree::Int(least), Tree::Int(most)] => Some((*least, *most)),
                    _ => None,
                },
            },
            _ => {
                return Err(SumsError::Malformed {
                    what: "a value of the params lacks its parts".to_owned(),
                });
            }
        })
    }
}

/// How many values a trimmed mean takes off each end.
pub(crate) fn cut_of(fraction: f64, sites: usize) -> usize {
    // Below one half, so that something always stays.
    ((fraction * sites as f64) as usize).min((sites - 1) / 2)
}

fn middle(values: &mut [f64], rank: Rank) -> f64 {
    values.sort_by(f64::total_cmp);
    let kept = &values[rank.kept(values.len())];
    kept.iter().sum::<f64>() / kept.len() as f64
}

fn number(value: &Tree) -> f64 {
    match value {
        Tree::Float(number) => *number,
        Tree::Int(number) => *number as f64,
        _ => 0.0,
    }
}

fn int(sent: &[(&Contribution<'_>, &Tree)], base: Option<&Tree>) -> Tree {
    let of = |value: &Tree| match value {
        Tree::Int(number) => Some(*number),
        _ => None,
    };
    let greatest = sent.iter().filter_map(|(_, value)| of(value)).max();
    plus(&Tree::Int(greatest.unwrap_or(0)), base)
}

/// A whole number, added to the model's if it is a difference.
fn plus(greatest: &Tree, base: Option<&Tree>) -> Tree {
    let of = |value: &Tree| match value {
        Tree::Int(number) => *number,
        _ => 0,
    };
    match base {
        // A float of the model stays one when whole numbers are added to it.
        Some(Tree::Float(base)) => Tree::Float(base + of(greatest) as f64),
        Some(base) => Tree::Int(of(base).saturating_add(of(greatest))),
        None => greatest.clone(),
    }
}

fn same(sent: &[(&Contribution<'_>, &Tree)], path: &str) -> Result<(), AggregateError> {
    let Some(((first, value), others)) = sent.split_first() else {
        return Ok(());
    };
    let odd: Vec<_> = others
        .iter()
        .filter(|(_, other)| other != value)
        .map(|(contribution, _)| contribution.site)
        .collect();
    if odd.is_empty() {
        return Ok(());
    }
    Err(AggregateError::ValuesDiffer {
        path: shown(path),
        kind: value.kind(),
        odd: joined(&odd, ""),
        first: first.site.to_owned(),
    })
}
