//! Means of metrics, weighted as the updates are.

use std::collections::BTreeMap;

use firesteel_base::SiteName;

use crate::MetricMean;

/// One site's metrics and how much they count.
pub(super) struct Sample<'a> {
    pub(super) site: &'a SiteName,
    pub(super) weight: f64,
    pub(super) metrics: &'a [(String, f64)],
}

/// The means by name, and what was left out.
pub(super) struct Means {
    pub(super) means: Vec<MetricMean>,
    /// Metrics that were NaN or infinite, and who sent them so.
    pub(super) not_finite: Vec<(String, Vec<SiteName>)>,
}

#[derive(Default)]
struct Sum {
    weighted: f64,
    weights: f64,
    sites: usize,
    not_finite: Vec<SiteName>,
}

/// Averages each metric over the samples that have it, in their order, so that
/// equal samples give equal bits.
pub(super) fn average<'a>(samples: impl Iterator<Item = Sample<'a>>) -> Means {
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    for sample in samples {
        for (name, value) in sample.metrics {
            let sum = sums.entry(name).or_default();
            let weighted = value * sample.weight;
            if !weighted.is_finite() || !(sum.weighted + weighted).is_finite() {
                sum.not_finite.push(sample.site.clone());
                continue;
            }
            sum.weighted += weighted;
            sum.weights += sample.weight;
            sum.sites += 1;
        }
    }
    let means = (sums.iter())
        .filter(|(_, sum)| sum.weights > 0.0)
        .map(|(name, sum)| MetricMean {
            name: (*name).to_owned(),
            value: sum.weighted / sum.weights,
            sites: sum.sites,
        })
        .collect();
    let not_finite = (sums.into_iter())
        .filter(|(_, sum)| !sum.not_finite.is_empty())
        .map(|(name, sum)| (name.to_owned(), sum.not_finite))
        .collect();
    Means { means, not_finite }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(samples: &[(f64, f64)]) -> Option<f64> {
        let site = SiteName::new("a").unwrap();
        let metrics: Vec<_> = (samples.iter())
            .map(|(_, value)| vec![("x".to_owned(), *value)])
            .collect();
        let samples = (samples.iter().zip(&metrics)).map(|((weight, _), metrics)| Sample {
            site: &site,
            weight: *weight,
            metrics,
        });
        average(samples).means.first().map(|mean| mean.value)
    }

    #[test]
    fn means_are_weighted() {
        assert_eq!(mean(&[(1.0, 0.5), (3.0, 0.9)]), Some(0.8));
        assert_eq!(mean(&[(2.0, 1.0)]), Some(1.0));
    }

    #[test]
    fn what_is_not_finite_is_left_out() {
        assert_eq!(mean(&[(1.0, f64::NAN), (3.0, 0.9)]), mean(&[(3.0, 0.9)]));
        assert_eq!(mean(&[(1.0, f64::INFINITY)]), None);
        // Finite values whose sum is not.
        assert_eq!(mean(&[(1.0, f64::MAX), (1.0, f64::MAX)]), Some(f64::MAX));
    }

    #[test]
    fn a_site_without_weight_has_no_say() {
        assert_eq!(mean(&[(0.0, 0.1), (2.0, 0.9)]), Some(0.9));
        assert_eq!(mean(&[(0.0, 0.1)]), None);
    }
}
