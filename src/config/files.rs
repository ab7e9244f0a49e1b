//! Owns: which configuration file is read, and what is in one that is TOML.
//! Rule: a file that was named is read, whatever it is called; the usual ones are looked for where nobody has named one.
//! Never: executes Python, knows a setting.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::arguments::Args;
use super::lines;
use super::settings::Source;
use super::values::Raw;
use crate::error::Error;

pub(super) const PYTHON_FILE: &str = "gunicorn.conf.py";
pub(super) const TOML_FILE: &str = "rgunicorn.toml";
/// Read last, and only when it has a table for us.
pub(super) const PROJECT_FILE: &str = "pyproject.toml";

/// The file to read, and who has named it: if nobody has, it is the first of the usual ones that is there.
pub(super) fn config_file(line: &Args, cmd_args: &Args, dir: &Path) -> (Option<PathBuf>, Source) {
    let given = [(line, Source::CommandLine), (cmd_args, Source::CommandArgs)];
    let named = given.into_iter().find_map(|(args, source)| Some((Some(args.config()?), source)));
    named.unwrap_or_else(|| (usual_files(dir).next().or_else(|| project_file(dir)), Source::Default))
}

fn usual_files(dir: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    let paths = [PYTHON_FILE, TOML_FILE].into_iter().map(|name| dir.join(name));
    paths.filter(|path| path.exists())
}

/// A project's file that cannot be parsed is somebody else's concern, unless it names us.
fn project_file(dir: &Path) -> Option<PathBuf> {
    let path = dir.join(PROJECT_FILE);
    let text = fs::read_to_string(&path).ok()?;
    let ours = match toml::from_str::<ProjectFile>(&text) {
        Ok(file) => file.tool.rgunicorn.is_some(),
        Err(_) => text.contains("tool.rgunicorn"),
    };
    ours.then_some(path)
}

/// Two usual files side by side: someone is about to edit the one that is not read.
pub(super) fn passed_over(chosen: &Path, dir: &Path) -> Option<String> {
    let mut usual = usual_files(dir).skip_while(|path| path != chosen);
    match (usual.next(), usual.next()) {
        (Some(_), Some(_)) => Some(format!("{TOML_FILE} is not read because {PYTHON_FILE} is there")),
        _ => None,
    }
}

/// `python:MODULE` is imported, not opened.
pub(super) fn is_module(path: &Path) -> bool {
    path.to_string_lossy().starts_with("python:")
}

pub(super) fn has_python_name(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "py" || end == "pyc")
}

/// Setting names at the top level, or in a table of our name, so that the file can be shared.
#[derive(serde::Deserialize)]
struct TomlFile {
    #[serde(default)]
    rgunicorn: toml::Table,
    #[serde(flatten)]
    top: toml::Table,
}

/// `[tool.rgunicorn]` in a pyproject.toml; the rest belongs to others.
#[derive(serde::Deserialize)]
struct ProjectFile {
    #[serde(default)]
    tool: Tools,
}

#[derive(Default, serde::Deserialize)]
struct Tools {
    rgunicorn: Option<toml::Table>,
}

pub(super) fn read_toml(path: &Path, label: &str) -> Result<Vec<(String, Raw)>, Error> {
    let what = format!("config file {label}");
    let text = fs::read(path)
        .and_then(|octets| String::from_utf8(octets).map_err(io::Error::other))
        .map_err(|error| Error::system(&what, &error, "--config"))?;
    let entries = if path.file_name().is_some_and(|name| name == PROJECT_FILE) {
        toml::from_str(&text).map(|file: ProjectFile| file.tool.rgunicorn.unwrap_or_default())
    } else {
        toml::from_str(&text).map(|file: TomlFile| file.top.into_iter().chain(file.rgunicorn).collect())
    };
    let entries = entries.map_err(|error| toml_error(&text, label, error))?;
    Ok(entries.into_iter().map(|(key, value)| (key, value.into())).collect())
}

fn toml_error(text: &str, label: &str, error: toml::de::Error) -> Error {
    let line = lines::line_at(text, error.span().map_or(0, |span| span.start));
    let why = error.message().replace('\n', ", ");
    Error::Other(format!("{label}:{line}: {why}"))
}
