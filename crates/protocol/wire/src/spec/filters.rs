//! The filters of a job or of a site: what a model passes on its way.

use firesteel_base::{SiteName, limits};
use firesteel_codec::{Chain, Filter, Kind, Loss, PatternError, Pick, Rounding, Scheme};
use serde::{Deserialize, Serialize};

use super::{SpecError, Transfer};

/// The filters of both directions, each in the order in which a model meets them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filters {
    /// From the server to the sites.
    pub task_data: Vec<Placed>,
    /// From the sites to the server.
    pub result: Vec<Placed>,
}

/// Which way a model goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the server to a site.
    TaskData,
    /// From a site to the server.
    Result,
}

/// A filter and where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placed {
    /// What it does.
    pub filter: FilterKind,
    /// At which sites; absent: at all.
    #[serde(default)]
    pub sites: Option<Vec<String>>,
}

/// What a filter does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum FilterKind {
    /// Floats travel in fewer bits.
    Quantize {
        /// `fp16`, `bf16`, `int8`, `fp4`, `nf4` or `adaptive`.
        scheme: String,
        /// Regular expressions of the tensors' names; none: all tensors.
        #[serde(default)]
        include: Vec<String>,
        /// Those that are left as they are.
        #[serde(default)]
        exclude: Vec<String>,
        /// What is lost is added to what is sent the next time.
        #[serde(default)]
        error_feedback: bool,
        /// Rounding by chance, right in the mean.
        #[serde(default)]
        stochastic: bool,
    },
    /// The largest values of a difference travel, and no others.
    TopK {
        /// Their share, above 0 and at most 1.
        share: f64,
        /// As in `quantize`.
        #[serde(default)]
        include: Vec<String>,
        /// As in `quantize`.
        #[serde(default)]
        exclude: Vec<String>,
        /// As in `quantize`.
        #[serde(default)]
        error_feedback: bool,
    },
    /// Bytes travel compressed by zstd.
    Compress {
        /// 1, fast, to 19, small.
        level: i32,
        /// As in `quantize`.
        #[serde(default)]
        include: Vec<String>,
        /// As in `quantize`.
        #[serde(default)]
        exclude: Vec<String>,
    },
    /// These tensors do not travel: the model keeps its own.
    ExcludeVars {
        /// Regular expressions of their names.
        patterns: Vec<String>,
    },
    /// Only these tensors travel: the model keeps its own of the others.
    KeepVars {
        /// Regular expressions of their names.
        patterns: Vec<String>,
    },
    /// Only updates of this kind travel; others fail at the site.
    OnlyKind {
        /// Which kind.
        transfer: Transfer,
    },
    /// A class of the user's own, in the trainer's process.
    Python(PythonFilter),
}

/// A filter that a trainer runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PythonFilter {
    /// The module that defines the class, as it is imported.
    pub module: String,
    /// Its file, when it lies beside the training script and not in an installed
    /// package.
    #[serde(default)]
    pub file: Option<String>,
    /// Its name in the module.
    pub class: String,
    /// What the class is called with, by keyword.
    #[serde(default)]
    pub args: serde_json::Map<String, serde_json::Value>,
}

/// The path of a file that defines a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilterFile<'a>(pub &'a str);

impl Filters {
    /// Reads the filters of a site's own: all of them are for that site.
    ///
    /// # Errors
    /// [`SpecError`] with the field that is wrong.
    pub fn parse(json: &[u8]) -> Result<Self, SpecError> {
        let filters: Self = super::read(json)?;
        filters.check(Some(&[]), None)?;
        Ok(filters)
    }

    /// The built-in filters of a direction at a site.
    pub fn chain(&self, direction: Direction, site: &SiteName) -> Chain {
        let built_in = self
            .at(direction, site)
            .filter_map(|filter| filter.built_in().expect("checked when the spec was parsed"));
        Chain::new(built_in.collect())
    }

    /// The user's own filters of a direction at a site, for its trainer.
    pub fn python(&self, direction: Direction, site: &SiteName) -> Vec<&PythonFilter> {
        let python = self.at(direction, site).filter_map(|filter| match filter {
            FilterKind::Python(filter) => Some(filter),
            _ => None,
        });
        python.collect()
    }

    fn at(&self, direction: Direction, site: &SiteName) -> impl Iterator<Item = &FilterKind> {
        let all = match direction {
            Direction::TaskData => &self.task_data,
            Direction::Result => &self.result,
        };
        let here = move |placed: &&Placed| {
            let sites = placed.sites.as_ref();
            sites.is_none_or(|sites| sites.iter().any(|name| name == site.as_str()))
        };
        all.iter().filter(here).map(|placed| &placed.filter)
    }

    /// The files of classes that come with the job, each with its field.
    pub fn files(&self) -> impl Iterator<Item = (String, FilterFile<'_>)> {
        let all = [("task_data", &self.task_data), ("result", &self.result)];
        all.into_iter().flat_map(|(name, filters)| {
            filters
                .iter()
                .enumerate()
                .filter_map(move |(at, placed)| match &placed.filter {
                    FilterKind::Python(PythonFilter {
                        file: Some(file), ..
                    }) => Some((format!("filters.{name}[{at}].file"), FilterFile(file))),
                    _ => None,
                })
        })
    }

    pub(super) fn files_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let all = self.task_data.iter_mut().chain(&mut self.result);
        all.filter_map(|placed| match &mut placed.filter {
            FilterKind::Python(python) => python.file.as_mut(),
            _ => None,
        })
    }

    /// `sites` are those of the job where they are known, and none of them for a
    /// site's own filters; `transfer` is what its scripts send, where that is known.
    pub(super) fn check(
        &self,
        sites: Option<&[String]>,
        transfer: Option<Transfer>,
    ) -> Result<(), SpecError> {
        for (name, filters) in [("task_data", &self.task_data), ("result", &self.result)] {
            let mut encoding = 0;
            for (at, placed) in filters.iter().enumerate() {
                let field = format!("filters.{name}[{at}]");
                let unknown = placed.sites.iter().flatten();
                let unknown = unknown
                    .into_iter()
                    .find(|site| sites.is_some_and(|sites| !sites.contains(site)));
                if let Some(site) = unknown {
                    return Err(SpecError::new(
                        format!("{field}.sites"),
                        format!("names `{site}`, which is not a site of this job"),
                    ));
                }
                placed.filter.check(&field)?;
                encoding += usize::from(matches!(
                    placed.filter,
                    FilterKind::Quantize { .. }
                        | FilterKind::TopK { .. }
                        | FilterKind::Compress { .. }
                ));
                if name == "task_data" && placed.filter.is_for_results() {
                    return Err(SpecError::new(
                        field,
                        "works on results alone: a model that is handed out is whole",
                    ));
                }
                let whole = transfer == Some(Transfer::Full);
                if whole && matches!(placed.filter, FilterKind::TopK { .. }) {
                    return Err(SpecError::new(
                        field,
                        "keeps the largest values of a difference, but the sites send FULL",
                    )
                    .hint("use params_transfer_type=\"DIFF\""));
                }
            }
            if encoding > limits::CODEC_LAYERS {
                return Err(SpecError::new(
                    format!("filters.{name}"),
                    format!(
                        "has {encoding} filters that encode, the limit is {}",
                        limits::CODEC_LAYERS
                    ),
                ));
            }
        }
        check_order("filters.result", &self.result, false)?;
        check_order("filters.task_data", &self.task_data, true)
    }
}

/// A trainer's filters run in the trainer: first of all on the way out, last of
/// all on the way in.
fn check_order(field: &str, filters: &[Placed], last: bool) -> Result<(), SpecError> {
    let python = |placed: &Placed| matches!(placed.filter, FilterKind::Python(_));
    let turn = filters.windows(2).position(|pair| match pair {
        [first, second] => python(first) == last && python(second) != last,
        _ => false,
    });
    let Some(at) = turn else {
        return Ok(());
    };
    let (problem, hint) = if last {
        (
            "is built in and stands behind a Python filter, which runs in the trainer",
            "put the Python filters last: what comes in meets them last",
        )
    } else {
        (
            "is a Python filter, which runs in the trainer, and stands behind a built-in one",
            "put the Python filters first: what goes out meets them first",
        )
    };
    Err(SpecError::new(format!("{field}[{}]", at + 1), problem).hint(hint))
}

impl FilterKind {
    fn is_for_results(&self) -> bool {
        matches!(
            self,
            Self::TopK { .. }
                | Self::ExcludeVars { .. }
                | Self::KeepVars { .. }
                | Self::OnlyKind { .. }
        )
    }

    fn check(&self, field: &str) -> Result<(), SpecError> {
        match self {
            Self::Quantize { scheme, .. } if Scheme::parse(scheme).is_none() => {
                let names = Scheme::ALL.map(|scheme| format!("{:?}", scheme.as_str()));
                return Err(SpecError::new(
                    format!("{field}.scheme"),
                    format!("is {scheme:?}, expected one of {}", names.join(", ")),
                ));
            }
            Self::TopK { share, .. } if !(*share > 0.0 && *share <= 1.0) => {
                return Err(SpecError::new(
                    format!("{field}.share"),
                    format!("is {share}, expected a share above 0 and at most 1"),
                ));
            }
            Self::Compress { level, .. } if !(1..=19).contains(level) => {
                return Err(SpecError::new(
                    format!("{field}.level"),
                    format!("is {level}, expected 1 to 19"),
                ));
            }
            Self::ExcludeVars { patterns } | Self::KeepVars { patterns } if patterns.is_empty() => {
                return Err(SpecError::new(
                    format!("{field}.patterns"),
                    "is empty, expected names of tensors",
                ));
            }
            Self::Python(filter) if filter.module.is_empty() || filter.class.is_empty() => {
                return Err(SpecError::new(field, "names no module, or no class in it"));
            }
            _ => {}
        }
        self.built_in().map(|_| ()).map_err(|error| {
            let problem = format!("{error}: {}", error.source);
            SpecError::new(field, problem)
        })
    }

    /// The filter itself; `None` for one that runs in the trainer.
    fn built_in(&self) -> Result<Option<Filter>, PatternError> {
        let loss = |feedback: bool| {
            if feedback {
                Loss::FedBack
            } else {
                Loss::Forgotten
            }
        };
        Ok(Some(match self {
            Self::Quantize {
                scheme,
                include,
                exclude,
                error_feedback,
                stochastic,
            } => Filter::Quantize {
                scheme: Scheme::parse(scheme).unwrap_or(Scheme::Fp16),
                pick: Pick::new(include, exclude)?,
                rounding: if *stochastic {
                    Rounding::Stochastic
                } else {
                    Rounding::Nearest
                },
                loss: loss(*error_feedback),
            },
            Self::TopK {
                share,
                include,
                exclude,
                error_feedback,
            } => Filter::TopK {
                share: *share,
                pick: Pick::new(include, exclude)?,
                loss: loss(*error_feedback),
            },
            Self::Compress {
                level,
                include,
                exclude,
            } => Filter::Compress {
                level: *level,
                pick: Pick::new(include, exclude)?,
            },
            Self::ExcludeVars { patterns } => Filter::Exclude(Pick::new(patterns, &[])?),
            Self::KeepVars { patterns } => Filter::Keep(Pick::new(patterns, &[])?),
            Self::OnlyKind { transfer } => Filter::Only(match transfer {
                Transfer::Full => Kind::Full,
                Transfer::Diff => Kind::Diff,
            }),
            Self::Python(_) => return Ok(None),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(filters: serde_json::Value, transfer: Transfer) -> Result<Filters, String> {
        let text = filters.to_string();
        let filters: Filters = crate::spec::read(text.as_bytes()).map_err(|e| e.to_string())?;
        let sites = ["site-1".to_owned(), "site-2".to_owned()];
        let checked = filters.check(Some(&sites), Some(transfer));
        checked.map_err(|error| error.to_string())?;
        Ok(filters)
    }

    fn python() -> serde_json::Value {
        json!({"filter": {"kind": "python", "module": "mine", "file": "/x/mine.py", "class": "Mine"}})
    }

    fn nf4() -> serde_json::Value {
        json!({"filter": {"kind": "quantize", "scheme": "nf4"}})
    }

    #[test]
    fn filters_are_those_of_the_site_and_the_direction() {
        let filters = check(
            json!({
                "task_data": [{"filter": {"kind": "quantize", "scheme": "fp16"}}, python()],
                "result": [
                    python(),
                    {"filter": {"kind": "exclude_vars", "patterns": ["^bn"]}},
                    {"filter": {"kind": "top_k", "share": 0.1, "error_feedback": true},
                     "sites": ["site-2"]},
                    nf4(),
                    {"filter": {"kind": "compress", "level": 3}, "sites": ["site-1"]},
                ],
            }),
            Transfer::Diff,
        );
        let filters = filters.unwrap();
        let site = |name| SiteName::new(name).unwrap();
        let chain = |name, direction| filters.chain(direction, &site(name));
        assert_eq!(chain("site-1", Direction::TaskData).filters().len(), 1);
        let one = chain("site-1", Direction::Result);
        assert!(matches!(
            one.filters(),
            [
                Filter::Exclude(_),
                Filter::Quantize { .. },
                Filter::Compress { level: 3, .. }
            ]
        ));
        assert!(!one.feeds_back());
        let two = chain("site-2", Direction::Result);
        assert!(matches!(
            two.filters(),
            [
                Filter::Exclude(_),
                Filter::TopK { .. },
                Filter::Quantize { .. }
            ]
        ));
        assert!(two.feeds_back());
        assert_eq!(filters.python(Direction::Result, &site("site-2")).len(), 1);
        let text = serde_json::to_string(&filters).unwrap();
        assert_eq!(
            crate::spec::read::<Filters>(text.as_bytes()).unwrap(),
            filters
        );
    }

    #[test]
    fn every_refusal_names_its_field() {
        let result = |filter: serde_json::Value| json!({"result": [nf4(), {"filter": filter}]});
        let quantize = |more: serde_json::Value| {
            let mut filter = json!({"kind": "quantize", "scheme": "nf4"});
            filter
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            result(filter)
        };
        for (filters, want) in [
            (
                quantize(json!({"scheme": "nf5"})),
                "`filters.result[1].scheme`: is \"nf5\", expected one of \"fp16\"",
            ),
            (
                quantize(json!({"include": ["("]})),
                "`filters.result[1]`: `(` is not a regular expression",
            ),
            (
                quantize(json!({"exclude": ["("]})),
                "`filters.result[1]`: `(` is not a regular expression",
            ),
            (quantize(json!({"bits": 4})), "unknown field `bits`"),
            (
                result(json!({"kind": "top_k", "share": 0.0})),
                "`filters.result[1].share`: is 0",
            ),
            (
                result(json!({"kind": "top_k", "share": 1.5})),
                "`filters.result[1].share`: is 1.5",
            ),
            (
                result(json!({"kind": "top_k", "share": 0.5})),
                "but the sites send FULL",
            ),
            (
                result(json!({"kind": "compress", "level": 20})),
                "`filters.result[1].level`: is 20",
            ),
            (
                result(json!({"kind": "exclude_vars", "patterns": []})),
                "`filters.result[1].patterns`: is empty",
            ),
            (result(json!({"kind": "noise"})), "unknown variant `noise`"),
            (
                json!({"result": [{"filter": {"kind": "compress", "level": 1}, "sites": ["x"]}]}),
                "`filters.result[0].sites`: names `x`",
            ),
            (
                json!({"task_data": [{"filter": {"kind": "keep_vars", "patterns": ["x"]}}]}),
                "`filters.task_data[0]`: works on results alone",
            ),
            (
                json!({"result": [nf4(), python()]}),
                "`filters.result[1]`: is a Python filter",
            ),
            (
                json!({"task_data": [python(), nf4()]}),
                "`filters.task_data[1]`: is built in",
            ),
            (
                json!({"result": vec![nf4(); 9]}),
                "`filters.result`: has 9 filters that encode, the limit is 8",
            ),
            (
                result(json!({"kind": "python", "module": "", "class": "X"})),
                "`filters.result[1]`: names no module",
            ),
            (json!({"results": []}), "unknown field `results`"),
        ] {
            let error = check(filters.clone(), Transfer::Full).unwrap_err();
            assert!(error.contains(want), "{filters}: {error}");
        }
    }

    #[test]
    fn a_site_has_filters_of_its_own() {
        let text = json!({"result": [nf4()]}).to_string();
        let own = Filters::parse(text.as_bytes()).unwrap();
        let site = SiteName::new("anywhere").unwrap();
        assert_eq!(own.chain(Direction::Result, &site).filters().len(), 1);
        let text = json!({"result": [{"filter": {"kind": "compress", "level": 99}}]}).to_string();
        let error = Filters::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.field, "filters.result[0].level");
    }
}
