//! Owns: the line of a TOML file, or of a PasteDeploy file's server section, in which a setting is set.
//! Rule: looked for only when there is something wrong with the setting.
//! Never: judges a value.

use std::ops::Range;
use toml::de::DeTable;

/// The line, from 1, of the value that counts: in the table of our name before the top level.
pub fn in_toml(text: &str, name: &str) -> Option<usize> {
    let file = DeTable::parse(text).ok()?;
    let tables = [&["tool", "rgunicorn"][..], &["rgunicorn"], &[]];
    let span = tables.into_iter().find_map(|path| key_span(file.get_ref(), path, name))?;
    Some(line_at(text, span.start))
}

/// The line, from 1, of the value that counts: the last one in the section.
pub fn in_server_section(text: &str, name: &str) -> Option<usize> {
    let mut inside = false;
    let mut found = None;
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with('[') {
            inside = line.starts_with("[server:main]");
        }
        let key = line.split(['=', ':']).next().unwrap_or_default().trim_end();
        if inside && key.strip_prefix("get ").unwrap_or(key) == name {
            found = Some(number);
        }
    }
    found
}

fn key_span(table: &DeTable<'_>, path: &[&str], name: &str) -> Option<Range<usize>> {
    let Some((first, rest)) = path.split_first() else {
        let key = table.keys().find(|key| key.get_ref().as_ref() == name);
        return key.map(|key| key.span());
    };
    key_span(table.get(*first)?.get_ref().as_table()?, rest, name)
}

/// From 1.
pub fn line_at(text: &str, offset: usize) -> usize {
    let before = text.get(..offset).unwrap_or_default();
    before.matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::{in_server_section, in_toml};

    #[test]
    fn the_line_of_the_value_that_counts() {
        let text = "# ours\nworkers = 1\n\n[rgunicorn]\nworkers = 2\nbind = [\n  'a',\n]\n[rgunicorn.m]\nthreads = 1\n";
        assert_eq!(in_toml(text, "workers"), Some(5));
        assert_eq!(in_toml(text, "bind"), Some(6));
        assert_eq!(in_toml(text, "m"), Some(9));
        assert_eq!(in_toml(text, "threads"), None);
        assert_eq!(in_toml("workers = 1\n", "workers"), Some(1));
        assert_eq!(in_toml("[tool.other]\nworkers = 1\n[tool.rgunicorn]\nworkers = 2\n", "workers"), Some(4));
        assert_eq!(in_toml("workers =", "workers"), None);
    }

    #[test]
    fn the_line_in_a_server_section() {
        let text = "[app:main]\nworkers = 1\n[server:main]\nworkers: 2\nworkers = 3\nget threads = t\n[x]\nbind = a\n";
        assert_eq!(in_server_section(text, "workers"), Some(5));
        assert_eq!(in_server_section(text, "threads"), Some(6));
        assert_eq!(in_server_section(text, "bind"), None);
    }
}
