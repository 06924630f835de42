//! What a site has of its own for a job, beside what the job's spec says.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// What a site has of its own for a job. The default is nothing: names and paths of
/// the spec are taken as they are, as in a simulation.
#[derive(Clone, Default)]
pub struct Local {
    /// What the names of data mean here, instead of what the spec says.
    pub data: Option<BTreeMap<String, String>>,
    /// Additions to the trainers' environment. They win over those of the spec, and
    /// are told to nobody.
    pub env: BTreeMap<String, String>,
    /// The folder of the job's code, to which the files of the spec are relative.
    pub code: Option<PathBuf>,
    /// The interpreter that stands for `python` and `python3` in commands.
    pub python: Option<PathBuf>,
}

/// Values of the environment may be secrets.
impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local")
            .field("data", &self.data)
            .field("env", &self.env.keys())
            .field("code", &self.code)
            .field("python", &self.python)
            .finish()
    }
}

impl Local {
    /// The command with this site's interpreter.
    pub(crate) fn command(&self, mut command: Vec<String>) -> Vec<String> {
        if let (Some(python), Some(first)) = (&self.python, command.first_mut())
            && matches!(first.as_str(), "python" | "python3")
        {
            *first = python.to_string_lossy().into_owned();
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_is_the_interpreter_of_the_site() {
        let none = Local::default();
        let some = Local {
            python: Some("/envs/torch/bin/python".into()),
            ..Local::default()
        };
        let command = |first: &str| some.command(vec![first.into(), "-u".into()]);
        assert_eq!(command("python3"), ["/envs/torch/bin/python", "-u"]);
        assert_eq!(command("bash"), ["bash", "-u"]);
        assert_eq!(none.command(vec!["python3".into()]), ["python3"]);
    }

    #[test]
    fn no_value_of_the_environment_is_shown() {
        let local = Local {
            env: BTreeMap::from([("TOKEN".to_owned(), "hidden".to_owned())]),
            ..Local::default()
        };
        let shown = format!("{local:?}");
        assert!(
            shown.contains("TOKEN") && !shown.contains("hidden"),
            "{shown}"
        );
    }
}
