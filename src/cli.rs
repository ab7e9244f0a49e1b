//! Owns: the first look at the command line: whether to help, to print the version, or to run.
//! Rule: a command line that cannot be used is refused here, in one sentence, before anything else is read.
//! Never: knows an option (the table does), prints, exits.

use std::time::Duration;

use crate::config::arguments::{self, Parsed};
use crate::error::Error;
use crate::reload::Order;

/// What the command line asks for; a text is for standard output, after which the exit code is 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Help(String),
    Version(String),
    /// The words as they were given: `config::load` reads them, again at every reload.
    Run {
        args: Vec<String>,
    },
    Reload(Order),
}

/// How long `rgunicorn reload --wait` waits: longer than a reload may take by default.
const PATIENCE: Duration = Duration::from_secs(600);

const RELOAD_HELP: &str = "\
Has a running server reload its configuration and application, as HUP does.

Usage: rgunicorn reload [--wait [--timeout SECONDS]] PIDFILE

  PIDFILE             the file that the server was given with --pid
  --wait              wait for the end of the reload, and say how it ended
  --timeout SECONDS   how long to wait [600]

Exit codes: 0 the new workers serve (without --wait: the server was told); 1 the reload
failed, the old workers serve on, and the reason is on standard error; 2 the command line;
3 no running server, it cannot be asked, or it has ended; 4 the reload has not ended in time;
130 interrupted, the reload goes on.
";

/// `args` excludes the program's name. An error is printed as `rgunicorn: {error}`.
pub fn parse(args: &[String]) -> Result<Command, Error> {
    if let Some(command) = reload(args) {
        return command;
    }
    Ok(match arguments::parse(args)? {
        Parsed::Help(text) => Command::Help(text),
        Parsed::Version => Command::Version(version()),
        Parsed::Args(given) => {
            given.check()?;
            Command::Run { args: args.to_vec() }
        }
    })
}

/// The command `reload`, and no application of this name: that has no `--wait`, and no other word beside it which is not
/// an option's. Alone with `--help` it is the command.
fn reload(args: &[String]) -> Option<Result<Command, Error>> {
    let (_, words) = args.split_first().filter(|(first, _)| *first == "reload")?;
    let (mut wait, mut help, mut timeout, mut strange, mut paths) = (false, false, None, None, Vec::new());
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match (word, word.strip_prefix("--timeout=")) {
            ("--wait", _) => wait = true,
            ("-h" | "--help", _) => help = true,
            ("--timeout", _) => timeout = Some(words.next().unwrap_or_default()),
            (_, Some(value)) => timeout = Some(value),
            (word, None) if word.starts_with('-') => strange = strange.or(Some(word)),
            (word, None) => paths.push(word),
        }
    }
    let usage = |sentence: String| Some(Err(Error::Usage(sentence)));
    match (strange, paths.as_slice()) {
        (None, _) if help => Some(Ok(Command::Help(RELOAD_HELP.into()))),
        (Some(_), _) | (_, []) if !wait => None,
        (Some(word), _) => usage(format!("reload has no option {word}")),
        (None, [path]) if wait => Some(patience(timeout).map(|wait| order(path, Some(wait)))),
        (None, [path]) if timeout.is_none() => Some(Ok(order(path, None))),
        (None, [_]) => usage("--timeout of reload goes with --wait".into()),
        (None, []) => usage("reload --wait needs a PIDFILE".into()),
        (None, [_, more, ..]) => usage(format!("reload takes one PIDFILE; {more} is another word")),
    }
}

fn order(pidfile: &str, wait: Option<Duration>) -> Command {
    Command::Reload(Order { pidfile: pidfile.into(), wait })
}

fn patience(given: Option<&str>) -> Result<Duration, Error> {
    let Some(text) = given else {
        return Ok(PATIENCE);
    };
    let seconds = text.parse().ok().filter(|seconds| *seconds > 0.0);
    let patience = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    patience.ok_or_else(|| Error::Usage(format!("--timeout: '{text}' is not a number of seconds > 0")))
}

/// In gunicorn's form, which deployment scripts take apart.
fn version() -> String {
    format!("rgunicorn (version {})\n", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_string).collect()
    }

    #[test]
    fn help_and_version_win() {
        for line in ["-h", "--help", "app:app -w 2 --help", "reload -w 2 --help"] {
            assert!(matches!(parse(&words(line)), Ok(Command::Help(text)) if text.contains("--bind")));
        }
        for line in ["-v", "--version"] {
            let version = format!("rgunicorn (version {})\n", env!("CARGO_PKG_VERSION"));
            assert_eq!(parse(&words(line)), Ok(Command::Version(version)));
        }
    }

    #[test]
    fn an_application_may_be_called_reload() {
        for line in [
            "reload",
            "reload -w 4",
            "reload --timeout 30",
            "reload --timeout=30 -b :80",
            "reload x --bind :80",
        ] {
            assert!(matches!(parse(&words(line)), Ok(Command::Run { .. })), "{line}");
        }
    }

    #[test]
    fn a_reload_is_ordered_by_a_pid_file_or_by_wait() {
        let order = |wait: Option<u64>| {
            Ok(Command::Reload(Order { pidfile: "x.pid".into(), wait: wait.map(Duration::from_secs) }))
        };
        for (line, wait) in [
            ("reload x.pid", None),
            ("reload --wait x.pid", Some(600)),
            ("reload x.pid --wait --timeout 7", Some(7)),
            ("reload --timeout=7 --wait x.pid", Some(7)),
        ] {
            assert_eq!(parse(&words(line)), order(wait), "{line}");
        }
        for line in ["reload --help", "reload -h", "reload --wait --help", "reload x.pid --help"] {
            assert!(
                matches!(parse(&words(line)), Ok(Command::Help(text)) if text.contains("PIDFILE")),
                "{line}"
            );
        }
        for (line, part) in [
            ("reload --wait", "needs a PIDFILE"),
            ("reload --wait a b", "b is another word"),
            ("reload --wait a -w 4", "no option -w"),
            ("reload --timeout 5 a", "goes with --wait"),
            ("reload --wait --timeout x a", "'x' is not a number"),
            ("reload --wait --timeout 0 a", "'0' is not a number"),
            ("reload --wait a --timeout", "'' is not a number"),
        ] {
            let error = parse(&words(line)).unwrap_err();
            assert!(error.to_string().contains(part) && error.exit_code() == 2, "{line}: {error}");
        }
    }

    #[test]
    fn the_words_are_kept_for_loading() {
        let args = words("-w 2 app:app -b :80 -b :81");
        assert_eq!(parse(&args), Ok(Command::Run { args: args.clone() }));
    }

    #[test]
    fn wrong_words_and_values_are_usage_errors() {
        let wrong = [
            ("--wrokers 2", "unknown option --wrokers (did you mean --workers?)"),
            ("--workers x", "--workers: 'x' is not a whole number ≥ 1"),
        ];
        for (line, sentence) in wrong {
            let error = parse(&words(line)).unwrap_err();
            assert_eq!(error.to_string(), sentence);
            assert_eq!(error.exit_code(), 2);
        }
    }
}
