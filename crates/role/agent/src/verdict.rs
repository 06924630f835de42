//! Why a trainer is gone, in a sentence for the person who must act.

use firesteel_base::{Failure, FailureCode, Phase};
use firesteel_launch::{End, ExitReport, Oom};
use firesteel_wire::bridge::Failed;

/// What was going on when a trainer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It had not called `init`.
    Unconnected,
    /// It had, and had not asked for a task.
    Connected,
    /// It had a task.
    Working,
}

/// Judges a trainer that ended without its result.
pub(crate) fn judge(stage: Stage, crash: Option<&Failed>, exit: Option<&ExitReport>) -> Failure {
    let tail: Vec<String> = exit.map(lines).unwrap_or_default();
    let phase = if stage == Stage::Working {
        Phase::Train
    } else {
        Phase::Start
    };
    let mut failure = match (crash, exit) {
        (Some(crash), _) => raised(crash, phase),
        (None, Some(exit)) => exited(stage, phase, exit),
        (None, None) => Failure::new(
            FailureCode::Exited,
            phase,
            "the trainer closed its connection before it sent a result",
        )
        .with_hint("call flare.send() for every model that flare.receive() returns"),
    };
    if failure.traceback.is_none() {
        failure.traceback = traceback_in(&tail);
    }
    failure.log_tail = tail;
    failure
}

fn raised(crash: &Failed, phase: Phase) -> Failure {
    let code = FailureCode::parse(&crash.code).unwrap_or(FailureCode::Raised);
    let phase = Phase::parse(&crash.phase).unwrap_or(phase);
    let mut failure = Failure::new(
        code,
        phase,
        format!("the training script raised {}", crash.message),
    );
    failure.hint = hint_for(&crash.message);
    if !crash.traceback.is_empty() {
        failure.traceback = Some(crash.traceback.clone());
    }
    failure
}

fn exited(stage: Stage, phase: Phase, exit: &ExitReport) -> Failure {
    match (&exit.end, &exit.oom) {
        (End::Code(code), Oom::No) => exited_with(*code, stage, phase, exit),
        (End::Code(code), Oom::Likely { evidence }) => {
            // Whatever was ended need not have been part of it: both causes are told.
            let mut failure = exited_with(*code, stage, phase, exit);
            failure.message = format!("{}, after {evidence}", failure.message);
            failure.hint = format!("{}; or: {}", failure.hint, exit.failure(phase).hint);
            failure
        }
        _ => exit.failure(phase),
    }
}

fn exited_with(code: i32, stage: Stage, phase: Phase, exit: &ExitReport) -> Failure {
    // A script that raised before it was connected leaves its traceback on stderr.
    let tail = lines(exit);
    if let Some(traceback) = traceback_in(&tail) {
        let last = traceback.lines().last().unwrap_or_default().to_owned();
        let (code, what) = match stage {
            Stage::Unconnected => (FailureCode::ImportFailed, "raised before flare.init()"),
            _ => (FailureCode::Raised, "raised"),
        };
        let mut failure = Failure::new(code, phase, format!("the training script {what}: {last}"));
        failure.hint = hint_for(&last);
        failure.traceback = Some(traceback);
        return failure;
    }
    let when = match stage {
        Stage::Unconnected => "before it called flare.init()",
        Stage::Connected => "before it asked for a task",
        Stage::Working => "before it sent its result",
    };
    let kind = match stage {
        Stage::Connected => FailureCode::NeverReceived,
        Stage::Unconnected | Stage::Working => FailureCode::Exited,
    };
    let message = format!("the trainer exited with code {code} {when}");
    Failure::new(kind, phase, message).with_hint(match stage {
        Stage::Unconnected => "the training script must call flare.init() and then receive and send models in a loop",
        Stage::Connected => "the training script must call flare.receive(), as in `while flare.is_running(): model = flare.receive()`",
        Stage::Working => "the training script must call flare.send() for every model that flare.receive() returns",
    })
}

fn lines(exit: &ExitReport) -> Vec<String> {
    exit.log_tail.iter().map(|line| line.text.clone()).collect()
}

fn hint_for(message: &str) -> String {
    if let Some(rest) = message.split("No module named ").nth(1) {
        let module = rest
            .trim_matches(|c| c == '\'' || c == '"')
            .split('.')
            .next()
            .unwrap_or(rest);
        return format!(
            "install `{module}` in the environment that runs the trainers, or put it beside the script"
        );
    }
    if message.contains("No space left on device") {
        return "free some space on the run's disk, or choose another with SimEnv(workspace_root=…); the job goes on from its last round with resume=True".to_owned();
    }
    if message.contains("MemoryError") || message.contains("out of memory") {
        return "use smaller batches, fewer workers (num_workers=), or a machine with more memory"
            .to_owned();
    }
    "the traceback says where; to step through it, run the job with SimEnv(debug=\"<site>\")"
        .to_owned()
}

/// The last Python traceback in some lines of output.
fn traceback_in(lines: &[String]) -> Option<String> {
    let start = lines.iter().rposition(|line| {
        line.starts_with("Traceback (most recent call last)") || line.starts_with("  File \"")
    })?;
    // A syntax error has no first line of the usual form: its block is short.
    let start = lines
        .get(..=start)?
        .iter()
        .rposition(|line| line.starts_with("Traceback (most recent call last)"))
        .filter(|&first| {
            lines
                .get(first..start)
                .is_some_and(|block| block.iter().skip(1).all(|line| line.starts_with(' ')))
        })
        .unwrap_or(start);
    let body: Vec<&str> = lines.get(start..)?.iter().map(String::as_str).collect();
    // Up to and with the first line after the frames: the exception.
    let end = body
        .iter()
        .skip(1)
        .position(|line| !line.starts_with(' ') && !line.is_empty())?
        + 2;
    Some(body.get(..end)?.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_last_traceback_is_found_among_other_lines() {
        let tail = lines(
            "epoch 1\nTraceback (most recent call last):\n  File \"a.py\", line 1, in <module>\n    import x\n\
             ModuleNotFoundError: No module named 'x'\nbye",
        );
        let found = traceback_in(&tail).unwrap();
        assert!(found.starts_with("Traceback"), "{found}");
        assert!(found.ends_with("No module named 'x'"), "{found}");
        assert_eq!(traceback_in(&lines("all is well\nreally")), None);
    }

    #[test]
    fn a_syntax_error_is_a_traceback_too() {
        let tail =
            lines("  File \"c.py\", line 3\n    def (\n        ^\nSyntaxError: invalid syntax");
        assert!(
            traceback_in(&tail)
                .unwrap()
                .ends_with("SyntaxError: invalid syntax")
        );
    }

    #[test]
    fn an_exit_while_the_kernel_was_short_of_memory_names_both_causes() {
        let exit = ExitReport {
            end: End::Code(3),
            sent_signal: None,
            oom: Oom::Likely {
                evidence: "the kernel ended a process".to_owned(),
            },
            max_rss: 0,
            cpu: std::time::Duration::ZERO,
            log_tail: Vec::new(),
        };
        let failure = judge(Stage::Connected, None, Some(&exit));
        assert_eq!(failure.code, FailureCode::NeverReceived);
        assert_eq!(
            failure.message,
            "the trainer exited with code 3 before it asked for a task, after the kernel ended a process"
        );
        assert!(failure.hint.contains("flare.receive()"), "{}", failure.hint);
        assert!(failure.hint.contains("child processes"), "{}", failure.hint);
    }

    #[test]
    fn a_missing_module_is_named_in_the_hint() {
        let hint = hint_for("ModuleNotFoundError: No module named 'torch.nn'");
        assert!(hint.starts_with("install `torch`"), "{hint}");
    }
}
