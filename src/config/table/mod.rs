//! Owns: the one table of options, a file for each part of it, and what can be asked of it by name.
//! Rule: nothing else knows an option's name, flags, default or help; to add an option is to add a row.
//! Never: decides between sources, keeps a value, acts on one.

mod application;
mod control;
mod development;
mod hooks;
mod listening;
mod logging;
mod parsing;
mod process;
mod proxy;
mod tls;
mod unserved;
mod workers;

pub use self::application::CONFIGURATION;
use super::kinds::{Kind, Value};
use super::values::Raw;

/// One row of the table.
#[derive(Debug)]
pub struct Opt {
    /// The setting's name in config files; gunicorn's where gunicorn has it.
    pub name: &'static str,
    pub short: Option<char>,
    /// The first is shown, the others are other spellings of it. Empty: config file only.
    pub long: &'static [&'static str],
    pub env: Option<Env>,
    pub kind: Kind,
    /// As text of this kind; empty means unset.
    pub default: &'static str,
    /// Whether a reload takes a new value over, without a restart.
    pub reloadable: bool,
    pub section: &'static str,
    pub help: &'static str,
    /// Why it is read and checked, and has no effect.
    pub ignored: Option<&'static str>,
}

/// The environment variable that replaces a default.
#[derive(Clone, Copy, Debug)]
pub struct Env {
    pub name: &'static str,
    /// Goes before the variable's text: PORT is only a part of an address.
    pub prefix: &'static str,
}

const ANY: i64 = i64::MAX;

/// What most rows have in common.
const ROW: Opt = Opt {
    name: "",
    short: None,
    long: &[],
    env: None,
    kind: Kind::Text,
    default: "",
    reloadable: true,
    section: "",
    help: "",
    ignored: None,
};

const PARTS: [&[Opt]; 12] = [
    application::ROWS,
    listening::ROWS,
    workers::ROWS,
    parsing::ROWS,
    proxy::ROWS,
    tls::ROWS,
    logging::ROWS,
    process::ROWS,
    control::ROWS,
    development::ROWS,
    hooks::ROWS,
    unserved::ROWS,
];

/// Every row, in the order in which the help has them.
pub fn options() -> impl Iterator<Item = &'static Opt> + Clone {
    PARTS.into_iter().flatten()
}

impl Opt {
    /// The flag as errors show it; a setting without one is shown by its name.
    pub fn flag(&self) -> String {
        match self.long.first() {
            Some(long) => format!("--{long}"),
            None => self.name.to_string(),
        }
    }

    /// Every spelling of the flag, with its dashes.
    pub fn flags(&self) -> Vec<String> {
        let short = self.short.map(|letter| format!("-{letter}"));
        short.into_iter().chain(self.long.iter().map(|long| format!("--{long}"))).collect()
    }

    /// A raw value → this setting's value, or the predicate of an error sentence.
    pub fn read(&self, raw: &Raw) -> Result<Value, String> {
        match (self.kind, raw) {
            // A flag set to None in a config file is one that was left alone.
            (Kind::Flag { .. }, Raw::None) => self.default_value(),
            (kind, raw) => kind.read(raw),
        }
    }

    pub fn default_value(&self) -> Result<Value, String> {
        self.kind.read(&Raw::Text(self.default.to_string()))
    }
}

pub fn find(name: &str) -> Option<&'static Opt> {
    options().find(|opt| opt.name == name)
}

/// The setting that a misspelt name was probably meant for.
pub fn closest_name(name: &str) -> Option<&'static str> {
    closest(name, options().map(|opt| opt.name))
}

/// The flags that a word, without its dashes, could be short for.
pub fn flags_beginning(word: &str) -> Vec<String> {
    options().filter(|opt| opt.long.iter().any(|long| long.starts_with(word))).map(Opt::flag).collect()
}

/// The long flag, without dashes, that a misspelt one was probably meant for.
pub fn closest_flag(flag: &str) -> Option<&'static str> {
    let longs = options().flat_map(|opt| opt.long.iter().copied());
    closest(flag, longs.chain(["help", "version"]))
}

fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (distance(word, candidate), candidate))
        // Two edits turn most four-letter words into one another.
        .filter(|(edits, candidate)| *edits <= 2 && *edits * 3 <= candidate.len())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's: the insertions, deletions and replacements that lead from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_table_is_consistent() {
        let mut names = BTreeSet::new();
        let mut flags = BTreeSet::new();
        for opt in options() {
            assert!(names.insert(opt.name), "{} twice", opt.name);
            assert!(opt.long.iter().all(|flag| flags.insert(*flag)));
            assert!(opt.default_value().is_ok(), "default of {}", opt.name);
            assert!(!opt.section.is_empty() && opt.help.ends_with('.'));
        }
    }

    #[test]
    fn every_setting_of_gunicorn_is_known_once() {
        let ours = [
            "warm_up",
            "boot_timeout",
            "header_timeout",
            "body_timeout",
            "write_timeout",
            "queue_timeout",
            "response_buffer",
            "limit_request_head",
            "limit_request_body",
            "request_buffering",
        ];
        let names: BTreeSet<_> = options().map(|opt| opt.name).filter(|name| !ours.contains(name)).collect();
        assert_eq!(names.len(), 120);
        assert_eq!(options().count() - ours.len(), 120);
    }

    #[test]
    fn misspellings() {
        assert_eq!(closest_flag("wrokers"), Some("workers"));
        assert_eq!(closest_flag("keepalive"), Some("keep-alive"));
        assert_eq!(closest_flag("hepl"), None);
        assert_eq!(closest_name("worker"), Some("workers"));
        assert_eq!(closest_name("certfiel"), Some("certfile"));
        assert_eq!(closest_name("statsd_hots"), Some("statsd_host"));
        assert_eq!(closest_name("blog"), None);
        assert_eq!(closest_name("os"), None);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn prefixes() {
        let flags = ["--workers", "--worker-class", "--worker-connections", "--worker-tmp-dir"];
        assert_eq!(flags_beginning("worker"), flags);
    }
}
