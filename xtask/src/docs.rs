//! Cheap checks of pages and examples.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Where every failure code has its section.
const FAILURES: &str = "docs/reference/failures.md";
/// Where the codes are defined.
const CODES: &str = "crates/base/base/src/failure.rs";
/// The map of the house, which must name every room.
const MAP: &str = "ARCHITECTURE.md";
const DECISIONS: &str = "docs/decisions/";
const FRAGMENTS: &str = "changelog.d/";
const KINDS: [&str; 5] = ["added", "changed", "fixed", "removed", "security"];
/// Folders that are made, fetched or not ours.
const SKIPPED: [&str; 7] = [
    "target",
    "node_modules",
    "dist",
    "firesteel-runs",
    "bench-results",
    "__pycache__",
    "corpus",
];

/// What the checks look at: read once, so that they are plain functions.
#[derive(Debug, Default)]
pub struct Tree {
    /// Every file, as a path below the root with `/`.
    pub files: BTreeSet<String>,
    /// Every Markdown page and its text.
    pub pages: BTreeMap<String, String>,
    /// Every folder below `examples` that holds Python.
    pub examples: BTreeSet<String>,
    /// The text of the file with the failure codes.
    pub codes: String,
    /// The folders of the crates.
    pub crates: Vec<String>,
    /// Pages that sources send their readers to: `(source, page)`.
    pub mentions: BTreeSet<(String, String)>,
}

impl Tree {
    /// Reads the tree below `root`.
    pub fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        tree.walk(root, "")?;
        tree.codes = fs::read_to_string(root.join(CODES)).with_context(|| CODES)?;
        Ok(tree)
    }

    fn walk(&mut self, root: &Path, below: &str) -> Result<()> {
        let folder = root.join(below);
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if below.is_empty() {
                name.clone()
            } else {
                format!("{below}/{name}")
            };
            let kind = entry.file_type()?;
            if kind.is_dir() {
                if !name.starts_with('.') && !SKIPPED.contains(&name.as_str()) {
                    self.walk(root, &path)?;
                }
            } else if kind.is_file() {
                self.add(&path, &entry.path())?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &str, on_disk: &Path) -> Result<()> {
        if path.ends_with(".md") {
            let text = fs::read_to_string(on_disk).with_context(|| path.to_owned())?;
            self.pages.insert(path.to_owned(), text);
        }
        if let (true, Some((folder, _))) = (
            path.starts_with("examples/") && path.ends_with(".py"),
            path.rsplit_once('/'),
        ) {
            self.examples.insert(folder.to_owned());
        }
        if let (true, Some(folder)) = (
            path.starts_with("crates/"),
            path.strip_suffix("/Cargo.toml"),
        ) {
            self.crates.push(folder.to_owned());
        }
        let source = path.ends_with(".rs") || path.ends_with(".py");
        if source && (path.starts_with("crates/") || path.starts_with("python/")) {
            let text = fs::read_to_string(on_disk).with_context(|| path.to_owned())?;
            for page in mentions_of(&text) {
                self.mentions.insert((path.to_owned(), page.to_owned()));
            }
        }
        self.files.insert(path.to_owned());
        Ok(())
    }

    fn exists(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        path.is_empty()
            || self.files.contains(path)
            || self
                .files
                .range(folder.clone()..)
                .next()
                .is_some_and(|file| file.starts_with(&folder))
    }
}

/// Everything that is missing or leads nowhere, a sentence each.
pub fn violations(tree: &Tree) -> Vec<String> {
    let mut found = examples(tree);
    found.extend(links(tree));
    found.extend(mentions(tree));
    found.extend(failure_codes(tree));
    found.extend(map(tree));
    found.extend(decisions(tree));
    found.extend(fragments(tree));
    found
}

fn examples(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for folder in &tree.examples {
        for file in ["job.py", "client.py", "README.md"] {
            if !tree.files.contains(&format!("{folder}/{file}")) {
                found.push(format!("the example `{folder}` has no {file}"));
            }
        }
    }
    found
}

fn links(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (page, text) in &tree.pages {
        for link in links_of(text) {
            let (path, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() {
                page.clone()
            } else {
                match resolve(page, path) {
                    Some(target) if tree.exists(&target) => target,
                    _ => {
                        found.push(format!("{page} links to `{link}`, which does not exist"));
                        continue;
                    }
                }
            };
            let lost = !heading.is_empty()
                && tree
                    .pages
                    .get(&target)
                    .is_some_and(|text| !headings(text).any(|(_, title)| slug(title) == heading));
            if lost {
                found.push(format!(
                    "{page} links to `{link}`, but {target} has no such heading"
                ));
            }
        }
    }
    found
}

fn mentions(tree: &Tree) -> Vec<String> {
    tree.mentions
        .iter()
        .filter(|(_, page)| !tree.files.contains(page))
        .map(|(source, page)| format!("{source} sends its reader to {page}, which does not exist"))
        .collect()
}

/// Every `docs/….md` in a source.
fn mentions_of(text: &str) -> impl Iterator<Item = &str> {
    let in_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.');
    text.match_indices("docs/")
        .map(move |(at, _)| {
            let rest = &text[at..];
            &rest[..rest.find(|c| !in_path(c)).unwrap_or(rest.len())]
        })
        .map(|path| path.trim_end_matches('.'))
        .filter(|path| path.ends_with(".md"))
}

/// The targets of `[text](target)` that stay in the tree, code left out.
fn links_of(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        // Every second piece between back-ticks is code.
        let bare: String = line.split('`').step_by(2).collect();
        let mut rest = bare.as_str();
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, tail)) = after.split_once(')') else {
                break;
            };
            let target = target.split_whitespace().next().unwrap_or("");
            if !target.contains("://") && !target.starts_with("mailto:") {
                found.push(target.to_owned());
            }
            rest = tail;
        }
    }
    found
}

/// The lines outside fenced code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        if fence {
            fenced = !fenced;
        }
        !fence && !fenced
    })
}

/// Each heading's depth and title.
fn headings(text: &str) -> impl Iterator<Item = (usize, &str)> {
    prose(text).filter_map(|line| {
        let title = line.trim_start_matches('#');
        let depth = line.len() - title.len();
        (depth > 0 && title.starts_with(' ')).then(|| (depth, title.trim()))
    })
}

/// A heading's anchor, as code forges make it.
fn slug(title: &str) -> String {
    title
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            '-' | '_' => Some(c),
            c if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

/// A link's path below the root; `None` when it leaves the tree.
fn resolve(page: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

fn failure_codes(tree: &Tree) -> Vec<String> {
    let codes: Vec<&str> = tree
        .codes
        .lines()
        .filter_map(|line| {
            let (variant, code) = line.trim().strip_suffix("\",")?.split_once(" = \"")?;
            variant.chars().all(char::is_alphanumeric).then_some(code)
        })
        .collect();
    if codes.is_empty() {
        return vec![format!("no failure codes were found in {CODES}")];
    }
    let Some(page) = tree.pages.get(FAILURES) else {
        return vec![format!("{FAILURES} does not exist")];
    };
    let sections: Vec<&str> = headings(page)
        .filter(|(depth, _)| *depth == 2)
        .filter_map(|(_, title)| title.strip_prefix('`')?.strip_suffix('`'))
        .collect();
    let mut found = Vec::new();
    for code in &codes {
        if !sections.contains(code) {
            found.push(format!("{FAILURES} has no section \"## `{code}`\""));
        }
    }
    for section in &sections {
        if !codes.contains(section) {
            found.push(format!(
                "{FAILURES} explains `{section}`, which is no failure code"
            ));
        }
    }
    if found.is_empty() && sections != codes {
        found.push(format!(
            "{FAILURES} has its sections in another order than {CODES}"
        ));
    }
    found
}

fn map(tree: &Tree) -> Vec<String> {
    let Some(page) = tree.pages.get(MAP) else {
        return vec![format!("{MAP} does not exist")];
    };
    tree.crates
        .iter()
        .filter(|folder| !page.contains(&format!("`{}`", folder.trim_start_matches("crates/"))))
        .map(|folder| {
            format!(
                "{MAP} does not name `{}`",
                folder.trim_start_matches("crates/")
            )
        })
        .collect()
}

fn decisions(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let mut numbers: BTreeMap<&str, &str> = BTreeMap::new();
    for (path, text) in &tree.pages {
        let Some(name) = path.strip_prefix(DECISIONS) else {
            continue;
        };
        let (number, _) = name.split_once('-').unwrap_or((name, ""));
        if number.len() != 4 || !number.bytes().all(|b| b.is_ascii_digit()) {
            found.push(format!("{path} is not named NNNN-title.md"));
            continue;
        }
        if let Some(other) = numbers.insert(number, name) {
            found.push(format!("{other} and {name} have the same number"));
        }
        for part in ["Context", "Choice", "What we gave up"] {
            if !headings(text).any(|(_, title)| title == part) {
                found.push(format!("{path} has no heading \"{part}\""));
            }
        }
    }
    found
}

fn fragments(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in &tree.pages {
        let Some(name) = path.strip_prefix(FRAGMENTS) else {
            continue;
        };
        if name == "README.md" {
            continue;
        }
        let kind = name
            .trim_end_matches(".md")
            .rsplit_once('.')
            .map(|(_, kind)| kind);
        if !kind.is_some_and(|kind| KINDS.contains(&kind)) {
            found.push(format!(
                "{path} is not named <words>.<kind>.md with a kind of {}",
                KINDS.join(", ")
            ));
        }
        if text.trim().is_empty() {
            found.push(format!("{path} says nothing"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[(&str, &str)] = &[
        ("ARCHITECTURE.md", "# Map\n`math/tensor`"),
        ("crates/math/tensor/Cargo.toml", ""),
        (
            "docs/reference/failures.md",
            "# F\n## `raised`\n## `exited`\n",
        ),
    ];
    const TWO_CODES: &str = "    Raised = \"raised\",\n    Exited = \"exited\",\n";

    /// Files of a made-up tree beside the good ones (a path given twice is
    /// replaced), and a part of each sentence that is expected.
    fn check(files: &[(&str, &str)], expect: &[&str]) {
        let mut tree = Tree {
            codes: TWO_CODES.into(),
            ..Tree::default()
        };
        for (path, text) in GOOD.iter().chain(files) {
            tree.files.insert((*path).into());
            if path.ends_with(".md") {
                tree.pages.insert((*path).into(), (*text).into());
            }
            if path.starts_with("examples/") && path.ends_with(".py") {
                tree.examples
                    .insert(path.rsplit_once('/').unwrap().0.into());
            }
            if let Some(folder) = path.strip_suffix("/Cargo.toml") {
                tree.crates.push(folder.into());
            }
        }
        let found = violations(&tree);
        assert_eq!(found.len(), expect.len(), "{found:#?}");
        for (sentence, part) in found.iter().zip(expect) {
            assert!(sentence.contains(part), "{sentence:?} lacks {part:?}");
        }
    }

    #[test]
    fn a_good_tree_is_fine() {
        check(&[], &[]);
    }

    #[test]
    fn an_example_needs_its_three_files() {
        check(
            &[("examples/a/job.py", ""), ("examples/a/README.md", "")],
            &["`examples/a` has no client.py"],
        );
    }

    #[test]
    fn links_must_lead_somewhere() {
        check(
            &[
                (
                    "docs/a.md",
                    "[x](../ARCHITECTURE.md#map) [y](b.md) [`z`](c.md) [w](https://x.y/z)\n\
                     [up](../../../etc) `[code](no.md)` [f](../crates/math)\n```\n[fenced](no.md)\n```\n",
                ),
                ("docs/b.md", "[t](#two-words) [u](#none)\n## Two `words`\n"),
            ],
            &[
                "docs/a.md links to `c.md`",
                "docs/a.md links to `../../../etc`",
                "docs/b.md links to `#none`, but docs/b.md has no such heading",
            ],
        );
    }

    #[test]
    fn every_failure_code_is_explained_and_no_other() {
        check(
            &[("docs/reference/failures.md", "## `raised`\n## `gone`\n")],
            &[
                "no section \"## `exited`\"",
                "`gone`, which is no failure code",
            ],
        );
        check(
            &[("docs/reference/failures.md", "## `exited`\n## `raised`\n")],
            &["another order"],
        );
    }

    #[test]
    fn sources_send_nobody_to_a_missing_page() {
        let text = "//! See `docs/specs/a.md`.\n/// In docs/b.md. And docs/specs.\n";
        assert_eq!(
            mentions_of(text).collect::<Vec<_>>(),
            ["docs/specs/a.md", "docs/b.md"]
        );
        let mut tree = Tree::default();
        tree.files.insert("docs/b.md".into());
        for page in mentions_of(text) {
            tree.mentions.insert(("x.rs".into(), page.into()));
        }
        assert_eq!(
            mentions(&tree),
            ["x.rs sends its reader to docs/specs/a.md, which does not exist"]
        );
    }

    #[test]
    fn the_map_names_every_room() {
        check(
            &[("crates/io/store/Cargo.toml", "")],
            &["does not name `io/store`"],
        );
    }

    #[test]
    fn decisions_and_fragments_have_their_form() {
        let whole = "# t\n## Context\n## Choice\n## What we gave up\n";
        check(
            &[
                ("docs/decisions/0001-a.md", whole),
                ("docs/decisions/0001-b.md", whole),
                ("docs/decisions/0002-c.md", "## Context\n## Choice\n"),
                ("docs/decisions/notes.md", whole),
                ("changelog.d/README.md", ""),
                ("changelog.d/a.added.md", "Text."),
                ("changelog.d/b.md", "Text."),
                ("changelog.d/c.fixed.md", "\n"),
            ],
            &[
                "0001-a.md and 0001-b.md have the same number",
                "0002-c.md has no heading \"What we gave up\"",
                "notes.md is not named NNNN-title.md",
                "changelog.d/b.md is not named",
                "c.fixed.md says nothing",
            ],
        );
    }
}
