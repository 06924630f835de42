//! The values of the params that are not tensors, by the same rules: floats are
//! averaged, whole numbers take the maximum, all else must be the same.

use std::collections::HashMap;

use firesteel_tensor::Tree;
use firesteel_tensor::text::shown;
use firesteel_tensor::tree::Path;

use crate::error::AggregateError;
use crate::kernel::order::Rank;
use crate::options::{Contribution, Method, Options, UpdateKind};
use crate::report::{PartialKey, Report, joined};

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

/// The result's params tree. `model` is the tree of the model that is there
/// already; without one the sites' trees are laid over each other.
pub(crate) fn fold_tree(
    contributions: &[Contribution<'_>],
    model: Option<Option<&Tree>>,
    options: &Options,
    report: &mut Report,
) -> Result<Option<Tree>, AggregateError> {
    let known = model.is_some();
    let tree = match model {
        Some(tree) => tree.cloned(),
        None => merged(contributions),
    };
    let Some(mut tree) = tree else {
        return Ok(None);
    };
    if !known {
        prune(&mut tree, &mut Path::default(), options)?;
    }
    let sent: Vec<HashMap<String, &Tree>> = contributions
        .iter()
        .map(|c| scalars(c.header.tree()).into_iter().collect())
        .collect();
    let mut fold = Fold {
        contributions,
        sent,
        options,
        known,
        report,
        names: Names::default(),
    };
    fold.rewrite(&mut tree, &mut Path::default())?;
    Ok(Some(tree))
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
        let result = base.map_or(mean, |base| number(base) + mean);
        if !result.is_finite() {
            return Err(AggregateError::NotFinite {
                key: shown(path),
                count: 1,
                elements: 1,
            });
        }
        Ok(Tree::Float(result))
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
    let greatest = greatest.unwrap_or(0);
    match base {
        // A float of the model stays one when whole numbers are added to it.
        Some(Tree::Float(base)) => Tree::Float(base + greatest as f64),
        Some(base) => Tree::Int(of(base).unwrap_or(0).saturating_add(greatest)),
        None => Tree::Int(greatest),
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
