//! Owns: the first look at the command line: whether to help, to print the version, or to run.
//! Rule: a command line that cannot be used is refused here, in one sentence, before anything else is read.
//! Never: knows an option (the table does), prints, exits.

use crate::config::sources::{self, Parsed};
use crate::error::Error;

/// What the command line asks for; a text is for standard output, after which the exit code is 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Help(String),
    Version(String),
    /// The words as they were given: `config::load` reads them, again at every reload.
    Run {
        args: Vec<String>,
    },
}

/// `args` excludes the program's name. An error is printed as `rgunicorn: {error}`.
pub fn parse(args: &[String]) -> Result<Command, Error> {
    Ok(match sources::parse(args)? {
        Parsed::Help(text) => Command::Help(text),
        Parsed::Version => Command::Version(version()),
        Parsed::Args(given) => {
            given.check()?;
            Command::Run { args: args.to_vec() }
        }
    })
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
        for line in ["-h", "--help", "app:app -w 2 --help"] {
            assert!(matches!(parse(&words(line)), Ok(Command::Help(text)) if text.contains("--bind")));
        }
        for line in ["-v", "--version"] {
            let version = format!("rgunicorn (version {})\n", env!("CARGO_PKG_VERSION"));
            assert_eq!(parse(&words(line)), Ok(Command::Version(version)));
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
