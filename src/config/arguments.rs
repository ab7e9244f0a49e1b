//! Owns: a command line as it was given: its words taken apart, and what is wrong with them said in a sentence.
//! Rule: values stay as they were written until somebody asks for them.
//! Never: knows what else has a say.

use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::ArgMatches;

use super::flags;
use super::kinds::{Kind, Value};
use super::settings::{Settings, Source};
use super::table::{self, options, Opt};
use super::values::Raw;
use crate::error::Error;

/// What a command line asks for.
pub enum Parsed {
    Help(String),
    Version,
    Args(Args),
}

/// The options given on a command line, in the table's order and not yet checked.
#[derive(Default)]
pub struct Args {
    pub(super) flags: Vec<(&'static Opt, Raw)>,
    pub(super) app: Option<String>,
    pub(super) extra: Vec<String>,
}

impl Args {
    /// The config file that it names; `-c ''` names none.
    pub(super) fn config(&self) -> Option<PathBuf> {
        let named = self.flags.iter().find(|(opt, _)| opt.name == "config");
        match named {
            Some((_, Raw::Text(path))) if !path.trim().is_empty() => {
                let path = path.trim();
                Some(PathBuf::from(path.strip_prefix("file:").unwrap_or(path)))
            }
            _ => None,
        }
    }

    /// The options given, checked.
    pub fn values(&self) -> Result<Vec<(&'static Opt, Value)>, Error> {
        let read = |(opt, raw): &(&'static Opt, Raw)| match opt.read(raw) {
            Ok(value) => Ok((*opt, value)),
            Err(why) => Err(Source::CommandLine.error(opt, &why)),
        };
        self.flags.iter().map(read).collect()
    }

    /// The words that belong to no option.
    pub fn positional(&self) -> Vec<String> {
        self.app.iter().chain(&self.extra).cloned().collect()
    }

    /// Refuses values that cannot be used, so that a usage error does not depend on anything else.
    pub fn check(&self) -> Result<(), Error> {
        let mut settings = Settings::defaults();
        self.flags.iter().try_for_each(|(opt, raw)| settings.set(opt, raw, &Source::CommandLine))
    }
}

/// The words of a command line, without the program's name → what it asks for.
pub fn parse(args: &[String]) -> Result<Parsed, Error> {
    match flags::command().try_get_matches_from(args) {
        Ok(matches) => Ok(Parsed::Args(from_matches(&matches))),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp => Ok(Parsed::Help(error.to_string())),
            ErrorKind::DisplayVersion => Ok(Parsed::Version),
            _ => Err(Error::Usage(usage_sentence(&error))),
        },
    }
}

fn from_matches(matches: &ArgMatches) -> Args {
    let with_flag = options().filter(|opt| !opt.long.is_empty());
    Args {
        flags: with_flag.filter_map(|opt| Some((opt, from_match(matches, opt)?))).collect(),
        app: words(matches, flags::APP).pop(),
        extra: words(matches, flags::EXTRA),
    }
}

fn from_match(matches: &ArgMatches, opt: &Opt) -> Option<Raw> {
    if let Kind::Flag { given } = opt.kind {
        return matches.get_flag(opt.name).then_some(Raw::Bool(given));
    }
    let mut values = words(matches, opt.name);
    match opt.kind.repeats() {
        true if values.is_empty() => None,
        true => Some(Raw::List(values.into_iter().map(Raw::Text).collect())),
        false => values.pop().map(Raw::Text),
    }
}

fn words(matches: &ArgMatches, id: &str) -> Vec<String> {
    matches.get_many::<String>(id).map(|values| values.cloned().collect()).unwrap_or_default()
}

/// The parser's error in one sentence of ours.
fn usage_sentence(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let argument = context(ContextKind::InvalidArg);
    // "--workers <N>" → "--workers"
    let flag = argument.split_whitespace().next().unwrap_or(argument);
    match error.kind() {
        ErrorKind::UnknownArgument => unknown_flag(flag),
        ErrorKind::InvalidValue => format!("{flag} needs a value"),
        ErrorKind::TooManyValues => format!("{flag} takes no value"),
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            first.trim_start_matches("error: ").to_string()
        }
    }
}

fn unknown_flag(flag: &str) -> String {
    let shown = flag.escape_debug();
    let Some(long) = flag.strip_prefix("--") else {
        return format!("unknown option {shown}");
    };
    let meant = table::flags_beginning(long);
    if meant.len() > 1 {
        return format!("{shown} could be any of {}", meant.join(", "));
    }
    match table::closest_flag(long) {
        Some(known) => format!("unknown option {shown} (did you mean --{known}?)"),
        None => format!("unknown option {shown}"),
    }
}
