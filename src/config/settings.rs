//! Owns: a value for every option, with who said so; and whose fault a wrong one is.
//! Rule: an error names the setting as its source does: the flag, the variable, the file.
//! Never: decides which source wins.

use std::fmt;
use std::path::PathBuf;

use super::kinds::{HookSpec, Value};
use super::table::{self, options, Opt};
use super::values::Raw;
use crate::error::{Error, Wrong};

/// Who said it: decides how an error names the setting and what the exit code is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// Nobody has, so the option is named that would change it.
    Default,
    Environment(&'static str),
    /// The file's name as errors show it.
    File(String),
    CommandArgs,
    CommandLine,
}

impl Source {
    /// The value cannot be understood.
    pub(super) fn error(&self, opt: &'static Opt, why: &str) -> Error {
        match self {
            Source::CommandArgs | Source::CommandLine => Error::Usage(format!("{}: {why}", self.name(opt))),
            _ => self.wrong(opt, why.to_string()),
        }
    }

    /// The value is understood, and cannot be used.
    pub(super) fn wrong(&self, opt: &'static Opt, why: String) -> Error {
        let file = match self {
            Source::File(file) => Some(PathBuf::from(file)),
            _ => None,
        };
        Error::Setting(Box::new(Wrong { setting: opt.name, source: self.name(opt), file, line: None, why }))
    }

    fn name(&self, opt: &Opt) -> String {
        match self {
            Source::Environment(variable) => variable.to_string(),
            Source::File(file) => file.clone(),
            Source::CommandArgs => format!("{CMD_ARGS}: {}", opt.flag()),
            Source::CommandLine | Source::Default => opt.flag(),
        }
    }
}

pub(super) const CMD_ARGS: &str = "GUNICORN_CMD_ARGS";

/// A value for every row of the table, in its order, and who said so.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings(Vec<(Value, Source)>);

impl Settings {
    pub fn defaults() -> Settings {
        let value = |opt: &Opt| {
            opt.default_value().unwrap_or_else(|why| unreachable!("default of {}: {why}", opt.name))
        };
        Settings(options().map(|opt| (value(opt), Source::Default)).collect())
    }

    pub fn get(&self, name: &str) -> &Value {
        &self.find(name).1 .0
    }

    /// The error that says what is wrong with a setting, in the name of whoever set it.
    pub fn wrong(&self, name: &str, why: String) -> Error {
        let (opt, (_, source)) = self.find(name);
        source.wrong(opt, why)
    }

    pub fn is_from_command_line(&self, name: &str) -> bool {
        self.find(name).1 .1 == Source::CommandLine
    }

    /// Whether it is at its default, or at the environment's.
    pub(super) fn is_left_alone(&self, name: &str) -> bool {
        table::find(name).is_none()
            || matches!(self.find(name).1 .1, Source::Default | Source::Environment(_))
    }

    fn find(&self, name: &str) -> (&'static Opt, &(Value, Source)) {
        let found = options().zip(&self.0).find(|(opt, _)| opt.name == name);
        // Names are literals in the code, every one of which is looked up whenever a configuration is made.
        found.unwrap_or_else(|| unreachable!("no option {name}"))
    }

    pub(super) fn set(&mut self, opt: &'static Opt, raw: &Raw, source: &Source) -> Result<(), Error> {
        let value = opt.read(raw).map_err(|why| source.error(opt, &why))?;
        let at = options().position(|known| known.name == opt.name);
        if let Some(at) = at {
            self.0[at] = (value, source.clone());
        }
        Ok(())
    }

    /// All of them, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Opt, &Value)> {
        options().zip(self.0.iter().map(|(value, _)| value))
    }

    /// The settings in which two sets differ.
    pub fn changes<'a>(&'a self, other: &'a Settings) -> impl Iterator<Item = &'static Opt> + 'a {
        self.iter().zip(other.iter()).filter(|((_, one), (_, two))| one != two).map(|((opt, _), _)| opt)
    }
}

/// `name = value`, sorted, the values one below the other.
impl fmt::Display for Settings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all: Vec<_> = self.iter().map(|(opt, value)| (opt.name, value)).collect();
        all.sort_by_key(|(name, _)| *name);
        let width = all.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        all.iter().try_for_each(|(name, value)| match value {
            // A function in the file has the setting's name.
            Value::Hook(HookSpec::Given) => writeln!(out, "{name:width$} = <{name}()>"),
            value => writeln!(out, "{name:width$} = {value}"),
        })
    }
}
