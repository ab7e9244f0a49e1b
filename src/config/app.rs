//! Owns: what the application is loaded from.
//! Rule: `--paste` on the command line, else the command line's MODULE:NAME, else `paste` wherever it is set, else `wsgi_app`.
//! Never: opens a file; what is in one is for Python to say.

use super::kinds::Value;
use super::settings::Settings;
use super::values;
use std::path::{self, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppSpec {
    /// `MODULE[:NAME]`.
    Module(String),
    Paste(PasteFile),
}

/// A PasteDeploy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasteFile {
    /// Good in whatever folder the server goes to.
    pub path: PathBuf,
    /// Which of the applications in it; None: its main one.
    pub name: Option<String>,
    /// What is added to the defaults in it.
    pub variables: Vec<(String, String)>,
}

impl AppSpec {
    /// `named` is the command line's MODULE:NAME.
    pub fn of(settings: &Settings, named: Option<&str>) -> Option<AppSpec> {
        let paste = || PasteFile::of(settings).map(AppSpec::Paste);
        let module = |name: &str| AppSpec::Module(name.to_string());
        match settings.get("wsgi_app") {
            _ if settings.is_from_command_line("paste") => paste(),
            Value::Text(name) => named.map(module).or_else(paste).or_else(|| Some(module(name))),
            _ => named.map(module).or_else(paste),
        }
    }

    /// What processes are called that serve it.
    pub fn name(&self) -> String {
        match self {
            AppSpec::Module(name) => name.clone(),
            AppSpec::Paste(file) => file.path.display().to_string(),
        }
    }
}

impl PasteFile {
    fn of(settings: &Settings) -> Option<PasteFile> {
        let (Value::Text(location), Value::Texts(variables)) =
            (settings.get("paste"), settings.get("raw_paste_global_conf"))
        else {
            return None;
        };
        let (file, name) = location.split_once('#').unwrap_or((location, ""));
        Some(PasteFile {
            // In a folder that is gone no file will be found either, which is told then.
            path: path::absolute(file).unwrap_or_else(|_| file.into()),
            name: Some(name.to_string()).filter(|name| !name.is_empty()),
            // Each has been checked by its kind.
            variables: variables.iter().filter_map(|text| values::variable(text).ok()).collect(),
        })
    }
}
