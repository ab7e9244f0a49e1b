//! Owns: the kinds of value that options take, as people and programs are told of them; and a value, how it is shown.
//! Rule: whatever depends on the kind is a `match` here; only what is accepted is for `reading` to say.
//! Never: knows an option.

use super::values::{Address, LogTarget, Raw};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// True or false; the bare flag on a command line stores `given`.
    Flag {
        given: bool,
    },
    Int {
        min: i64,
        max: i64,
    },
    /// A file mode: octal when it begins with 0.
    Mode,
    Seconds,
    Text,
    /// A value of any type that only its being set matters of.
    Anything,
    Path,
    /// A folder that has to be there.
    Folder,
    /// A file that has to be there, and is read by the arbiter.
    File,
    /// A file that the server makes, in a folder that has to be there.
    NewFile,
    Log,
    /// A user or a group, by name or by number.
    Account,
    /// One of these words, in any case.
    Choice(&'static [&'static str]),
    /// The same, or true, which is the word `bare`, or false, which is the first. The bare flag is true too.
    Switch {
        words: &'static [&'static str],
        bare: &'static str,
    },
    /// Text with a rule of its own, which gives back the value or the predicate of a sentence.
    Checked(fn(&str) -> Result<String, String>),
    /// A class of worker, or the text that names it.
    Worker,
    /// Any texts, one per flag.
    Texts,
    /// Paths or URLs, one per flag.
    WarmUps,
    CommaList,
    AllowList,
    /// `NAME=value`, once per flag.
    Env,
    /// The same, where `\=` is a `=` that does not end the name.
    Variables,
    /// Listening addresses, one per flag.
    Addresses,
    /// A dictionary of texts.
    Map,
    /// A Python function, or where it is: `MODULE.NAME`.
    Hook,
    /// A Python class, or the text that names it.
    Class,
    /// A dictionary of anything.
    Tree,
}

/// A setting's value once it has been checked.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Unset,
    Bool(bool),
    Int(i64),
    Seconds(Duration),
    Text(String),
    Texts(Vec<String>),
    Pairs(Vec<(String, String)>),
    Path(PathBuf),
    Log(LogTarget),
    Addresses(Vec<Address>),
    Hook(HookSpec),
    /// An object in the config file that was executed, under the setting's name; the text is for people.
    Given(String),
    Tree(Raw),
}

/// Where the function is that a hook calls; which arguments it takes only Python can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookSpec {
    /// In the config file that was executed, under the setting's name.
    Given,
    Import {
        module: String,
        name: String,
    },
}

/// As Python writes it, which is what gunicorn prints.
impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        match self {
            Value::Unset => out.write_str("None"),
            Value::Bool(true) => out.write_str("True"),
            Value::Bool(false) => out.write_str("False"),
            Value::Int(number) => write!(out, "{number}"),
            Value::Seconds(time) => write!(out, "{}", time.as_secs_f64()),
            Value::Text(text) => out.write_str(text),
            Value::Texts(texts) => {
                out.write_str(&list(texts.iter().map(|text| format!("'{text}'")).collect()))
            }
            Value::Pairs(pairs) => {
                let items: Vec<_> =
                    pairs.iter().map(|(name, value)| format!("'{name}': '{value}'")).collect();
                write!(out, "{{{}}}", items.join(", "))
            }
            Value::Path(path) | Value::Log(LogTarget::File(path)) => write!(out, "{}", path.display()),
            Value::Log(LogTarget::Dash) => out.write_str("-"),
            Value::Addresses(all) => out.write_str(&list(all.iter().map(|one| format!("'{one}'")).collect())),
            Value::Given(shown) => out.write_str(shown),
            Value::Tree(Raw::Map(pairs)) => {
                let names: Vec<_> = pairs.iter().map(|(name, _)| format!("'{name}': ...")).collect();
                write!(out, "{{{}}}", names.join(", "))
            }
            Value::Tree(_) => out.write_str("{}"),
            Value::Hook(HookSpec::Given) => out.write_str("<function>"),
            Value::Hook(HookSpec::Import { name, .. }) => write!(out, "<{name}()>"),
        }
    }
}

impl Kind {
    /// Whether the option may be given several times, each adding a value.
    pub fn repeats(self) -> bool {
        matches!(self, Kind::Env | Kind::Variables | Kind::Addresses | Kind::Texts | Kind::WarmUps)
    }

    /// Whether an empty environment variable says something; elsewhere it is taken for an unset one.
    pub fn takes_empty(self) -> bool {
        matches!(self, Kind::CommaList | Kind::AllowList)
    }

    /// What stands for the value in the help.
    pub fn meta(self) -> &'static str {
        match self {
            Kind::Flag { .. } => "",
            Kind::Int { .. } => "N",
            Kind::Mode => "MODE",
            Kind::Seconds => "SECONDS",
            Kind::Text | Kind::Texts | Kind::Anything | Kind::Hook | Kind::Class | Kind::Tree => "TEXT",
            Kind::Choice(_) | Kind::Switch { .. } | Kind::Checked(_) | Kind::Worker => "WORD",
            Kind::Path | Kind::Folder | Kind::File | Kind::NewFile | Kind::Log => "PATH",
            Kind::Account => "NAME",
            Kind::CommaList | Kind::AllowList => "LIST",
            Kind::Env | Kind::Variables | Kind::Map => "NAME=VALUE",
            Kind::Addresses => "ADDRESS",
            Kind::WarmUps => "URL",
        }
    }

    /// One word for it, for programs that read the table.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Flag { .. } => "flag",
            Kind::Int { .. } => "int",
            Kind::Mode => "mode",
            Kind::Seconds => "seconds",
            Kind::Text => "text",
            Kind::Anything => "anything",
            Kind::Path => "path",
            Kind::Folder => "folder",
            Kind::File => "file",
            Kind::NewFile => "new_file",
            Kind::Log => "log",
            Kind::Account => "account",
            Kind::Choice(_) => "choice",
            Kind::Switch { .. } => "switch",
            Kind::Checked(_) => "checked",
            Kind::Worker => "worker",
            Kind::Texts => "texts",
            Kind::WarmUps => "warm_ups",
            Kind::CommaList => "comma_list",
            Kind::AllowList => "allow_list",
            Kind::Env => "env",
            Kind::Variables => "variables",
            Kind::Addresses => "addresses",
            Kind::Map => "map",
            Kind::Hook => "hook",
            Kind::Class => "class",
            Kind::Tree => "tree",
        }
    }

    /// What is accepted, for people.
    pub fn allowed(self) -> String {
        let text = match self {
            Kind::Flag { .. } => "true or false",
            Kind::Int { min, max: i64::MAX } => return format!("a whole number ≥ {min}"),
            Kind::Int { min, max } => return format!("a whole number from {min} to {max}"),
            Kind::Mode => "a file mode like 0022",
            Kind::Seconds => "seconds ≥ 0, with decimals if wanted",
            Kind::Text | Kind::Checked(_) => "text",
            Kind::Anything => "anything",
            Kind::Path => "a path",
            Kind::Folder => "a folder that exists",
            Kind::File => "a file that can be read",
            Kind::NewFile => "a file in a folder that exists",
            Kind::Log => "a file in a folder that exists, or `-`",
            Kind::Account => "a name or a number",
            Kind::Choice(words) => return words.join(", "),
            Kind::Switch { words, bare } => {
                return format!("{}; true is {bare}, false is {}", words.join(", "), words[0])
            }
            Kind::Worker => "sync, gthread",
            Kind::Texts => "texts, one per flag; in a file a list",
            Kind::WarmUps => "paths like /health or URLs like https://host/health, one per flag; in a file a text or a list",
            Kind::CommaList => "texts, separated by commas; in a file also a list",
            Kind::AllowList => {
                "IP addresses and networks, separated by commas, or `*`; in a file also a list"
            }
            Kind::Env | Kind::Variables => "NAME=value, one per flag; in a file a list",
            Kind::Addresses => "addresses, one per flag; in a file a text or a list",
            Kind::Map => "a dictionary of texts",
            Kind::Hook => "a function, or the text MODULE.NAME",
            Kind::Class => "a class, or the text MODULE.NAME",
            Kind::Tree => "a dictionary",
        };
        text.to_string()
    }
}
