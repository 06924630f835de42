//! A job on its way to the sites: as it is submitted, with its sites decided, and
//! with its code unpacked.
//!
//! What is submitted may leave its sites to the server, and names files relative
//! to the folder of its code. Server and sites work with what comes out of here.

use super::{Emptiness, FilterFile, JobSpec, Mode, SpecError, check_length, read};

impl JobSpec {
    /// Reads and checks a job spec as it is submitted: `sites` may be empty, which
    /// means all that are connected, and paths are relative to the bundle.
    ///
    /// # Errors
    /// [`SpecError`] with the first field that is wrong.
    pub fn parse_submitted(json: &[u8]) -> Result<Self, SpecError> {
        check_length(json.len())?;
        let spec: Self = read(json)?;
        spec.check(Emptiness::Allowed)?;
        if spec.trainer.mode != Mode::Noop {
            check_path("train_script", &spec.trainer.script)?;
        }
        for (site, settings) in &spec.site {
            if let Some(script) = &settings.script {
                check_path(&format!("site_config.{site}.train_script"), script)?;
            }
        }
        for (field, FilterFile(file)) in spec.filters.files() {
            check_path(&field, file)?;
        }
        if let Some(model) = &spec.initial_model {
            if model.starts_with('/') {
                return Err(SpecError::new(
                    "initial_model",
                    format!("is {model:?}, expected a path inside the bundle"),
                )
                .hint("a server reads no file that a job names; put the model into the bundle"));
            }
            check_path("initial_model", model)?;
        }
        check_length(spec.to_json().len())?;
        Ok(spec)
    }

    /// The same job at these sites, in this order.
    ///
    /// # Errors
    /// [`SpecError`] when the job cannot work with them: too few, or without one
    /// that it requires or has settings for.
    pub fn at_sites(mut self, sites: Vec<String>) -> Result<Self, SpecError> {
        self.sites = sites;
        self.check(Emptiness::Refused)?;
        check_length(self.to_json().len())?;
        Ok(self)
    }

    /// The same job with its files in the folder `code`, an absolute path. Paths
    /// that are absolute already are files that the sites have, and stay.
    #[must_use]
    pub fn rooted(mut self, code: &str) -> Self {
        let code = code.trim_end_matches('/');
        let place = |path: &mut String| {
            if !path.starts_with('/') {
                *path = format!("{code}/{path}");
            }
        };
        place(&mut self.trainer.script);
        self.site
            .values_mut()
            .filter_map(|settings| settings.script.as_mut())
            .for_each(place);
        self.filters.files_mut().for_each(place);
        self
    }

    /// The script that a site runs.
    pub fn script_at(&self, site: &str) -> &str {
        self.site
            .get(site)
            .and_then(|settings| settings.script.as_deref())
            .unwrap_or(&self.trainer.script)
    }
}

/// A path that leads nowhere but below the folder it is relative to, or an
/// absolute one.
fn check_path(field: &str, path: &str) -> Result<(), SpecError> {
    let inside = path.strip_prefix('/').unwrap_or(path);
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    if inside.split('/').all(plain) && !path.contains(['\0', '\\']) {
        return Ok(());
    }
    Err(SpecError::new(
        field,
        format!("is {path:?}, expected names joined by `/`, without `.` and `..`"),
    )
    .hint("a path is relative to the job's code, or absolute for a file that the sites have"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job() -> Value {
        json!({
            "version": 1, "name": "digits",
            "algorithm": {"kind": "fedavg", "num_rounds": 3},
            "sites": [], "min_clients": 2,
            "trainer": {"script": "client.py"},
            "site": {"lyon": {"script": "own/train.py"}, "oslo": {"script": "/opt/train.py"}},
            "policy": {"required_sites": ["lyon"]},
            "filters": {"result": [{"filter": {"kind": "python", "module": "own", "file": "own.py", "class": "Clip"}, "sites": ["oslo"]}]},
            "initial_model": "models/initial.safetensors",
        })
    }

    fn submitted(change: impl FnOnce(&mut Value)) -> Result<JobSpec, SpecError> {
        let mut value = job();
        change(&mut value);
        JobSpec::parse_submitted(value.to_string().as_bytes())
    }

    #[test]
    fn sites_may_be_left_to_the_server_and_are_checked_when_they_are_decided() {
        let spec = submitted(|_| ()).unwrap();
        assert!(JobSpec::parse(job().to_string().as_bytes()).is_err());
        let decided = spec.clone().at_sites(vec!["lyon".into(), "oslo".into()]);
        assert_eq!(decided.unwrap().sites, ["lyon", "oslo"]);
        let cases: [(&[&str], &str); 4] = [
            (&[], "sites"),
            (&["lyon"], "site_config"),
            (&["oslo", "rome"], "site_config"),
            (&["lyon", "oslo", "lyon"], "sites"),
        ];
        for (sites, field) in cases {
            let sites = sites.iter().map(ToString::to_string).collect();
            assert_eq!(spec.clone().at_sites(sites).unwrap_err().field, field);
        }
    }

    #[test]
    fn code_is_found_where_it_was_unpacked_and_installed_files_where_they_are() {
        let spec = submitted(|_| ()).unwrap().rooted("/jobs/7/code/");
        assert_eq!(spec.trainer.script, "/jobs/7/code/client.py");
        assert_eq!(spec.script_at("lyon"), "/jobs/7/code/own/train.py");
        assert_eq!(spec.script_at("oslo"), "/opt/train.py");
        assert_eq!(spec.script_at("rome"), "/jobs/7/code/client.py");
        let files: Vec<_> = spec.filters.files().map(|(_, file)| file.0).collect();
        assert_eq!(files, ["/jobs/7/code/own.py"]);
    }

    #[test]
    fn a_path_that_leads_out_of_the_bundle_is_refused_by_name() {
        type Change = Box<dyn FnOnce(&mut Value)>;
        let cases: Vec<(&str, Change)> = vec![
            (
                "train_script",
                Box::new(|v| v["trainer"]["script"] = json!("../client.py")),
            ),
            (
                "train_script",
                Box::new(|v| v["trainer"]["script"] = json!("/opt/../etc/x")),
            ),
            (
                "train_script",
                Box::new(|v| v["trainer"]["script"] = json!("a//b.py")),
            ),
            (
                "site_config.lyon.train_script",
                Box::new(|v| v["site"]["lyon"]["script"] = json!("./x.py")),
            ),
            (
                "filters.result[0].file",
                Box::new(|v| v["filters"]["result"][0]["filter"]["file"] = json!("..")),
            ),
            (
                "initial_model",
                Box::new(|v| v["initial_model"] = json!("/etc/shadow")),
            ),
            (
                "initial_model",
                Box::new(|v| v["initial_model"] = json!("../m")),
            ),
        ];
        for (field, change) in cases {
            assert_eq!(submitted(change).unwrap_err().field, field);
        }
    }
}
