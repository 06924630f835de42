use std::fmt;

/// What somebody asks to do. The names are those of the commands that people of
/// other federations know, so that rules written for them can be carried over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Action {
    /// Submit a job; a site asks it of the submitter before it takes the job.
    SubmitJob,
    /// Submit a job again.
    CloneJob,
    /// Bring code along with a job; asked of the submitter by every site.
    BringCode,
    /// Stop a job.
    AbortJob,
    /// Delete a job and what it left.
    DeleteJob,
    /// Change how much a running job logs.
    ConfigureJobLog,
    /// Fetch what a job left: models, metrics, files.
    DownloadJob,
    /// Read a job's logs, from the server or from sites.
    ReadJobLog,
    /// List the jobs.
    ListJobs,
    /// See one job: its spec, its state, its events.
    ViewJob,
    /// See the server and the sites that are connected.
    ViewStatus,
    /// See a job's metrics and counters.
    ViewStats,
    /// See a job's errors.
    ViewErrors,
    /// Ask a machine about itself.
    SystemInfo,
    /// Ask a site for its resources.
    ReportResources,
    /// Ask a site for its environments.
    ReportEnvironment,
    /// Start a node again.
    Restart,
    /// Stop a node.
    Shutdown,
    /// Forget a site until it connects again.
    RemoveSite,
    /// Give a site no more jobs and do not let it connect.
    DisableSite,
    /// Undo that.
    EnableSite,
    /// Change how much a node logs.
    ConfigureSiteLog,
    /// Read files in a node's workspace, by list, head, tail and search.
    ReadFiles,
}

/// Actions for which one rule can be made. An action's own rule comes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Category {
    /// Stop, delete, change a job.
    ManageJob,
    /// Fetch what a job left.
    DownloadJob,
    /// Look.
    View,
    /// Run the machines.
    Operate,
    /// Read files of a machine.
    ShellCommands,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::SubmitJob,
        Self::CloneJob,
        Self::BringCode,
        Self::AbortJob,
        Self::DeleteJob,
        Self::ConfigureJobLog,
        Self::DownloadJob,
        Self::ReadJobLog,
        Self::ListJobs,
        Self::ViewJob,
        Self::ViewStatus,
        Self::ViewStats,
        Self::ViewErrors,
        Self::SystemInfo,
        Self::ReportResources,
        Self::ReportEnvironment,
        Self::Restart,
        Self::Shutdown,
        Self::RemoveSite,
        Self::DisableSite,
        Self::EnableSite,
        Self::ConfigureSiteLog,
        Self::ReadFiles,
    ];

    /// Its name in rules and in audit logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SubmitJob => "submit_job",
            Self::CloneJob => "clone_job",
            Self::BringCode => "byoc",
            Self::AbortJob => "abort_job",
            Self::DeleteJob => "delete_job",
            Self::ConfigureJobLog => "configure_job_log",
            Self::DownloadJob => "download_job",
            Self::ReadJobLog => "get_job_log",
            Self::ListJobs => "list_jobs",
            Self::ViewJob => "get_job_meta",
            Self::ViewStatus => "check_status",
            Self::ViewStats => "show_stats",
            Self::ViewErrors => "show_errors",
            Self::SystemInfo => "sys_info",
            Self::ReportResources => "report_resources",
            Self::ReportEnvironment => "report_env",
            Self::Restart => "restart",
            Self::Shutdown => "shutdown",
            Self::RemoveSite => "remove_client",
            Self::DisableSite => "disable_client",
            Self::EnableSite => "enable_client",
            Self::ConfigureSiteLog => "configure_site_log",
            Self::ReadFiles => "read_files",
        }
    }

    /// The reverse of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == text)
    }

    /// The category it belongs to, if it belongs to one.
    pub fn category(self) -> Option<Category> {
        Some(match self {
            Self::SubmitJob | Self::CloneJob | Self::BringCode => return None,
            Self::AbortJob | Self::DeleteJob | Self::ConfigureJobLog => Category::ManageJob,
            // A log can quote data as a result can, so it is no mere look.
            Self::DownloadJob | Self::ReadJobLog => Category::DownloadJob,
            Self::ListJobs
            | Self::ViewJob
            | Self::ViewStatus
            | Self::ViewStats
            | Self::ViewErrors => Category::View,
            Self::SystemInfo
            | Self::ReportResources
            | Self::ReportEnvironment
            | Self::Restart
            | Self::Shutdown
            | Self::RemoveSite
            | Self::DisableSite
            | Self::EnableSite
            | Self::ConfigureSiteLog => Category::Operate,
            Self::ReadFiles => Category::ShellCommands,
        })
    }
}

impl Category {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::ManageJob,
        Self::DownloadJob,
        Self::View,
        Self::Operate,
        Self::ShellCommands,
    ];

    /// Its name in rules.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ManageJob => "manage_job",
            Self::DownloadJob => "download_job",
            Self::View => "view",
            Self::Operate => "operate",
            Self::ShellCommands => "shell_commands",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_action_has_a_name_of_its_own() {
        let names: BTreeSet<_> = Action::ALL.iter().map(|action| action.as_str()).collect();
        assert_eq!(names.len(), Action::ALL.len());
        for action in Action::ALL {
            assert_eq!(Action::parse(action.as_str()), Some(action));
        }
        assert_eq!(Action::parse("rm"), None);
    }
}
