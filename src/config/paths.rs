//! Owns: whether the files and folders that settings name can be what they are named for.
//! Rule: looked at once everything is known and before anything is done, from the folder that the server will be in.
//! Never: makes or changes a file; that it can be written to is seen by whoever writes.

use super::kinds::{Kind, Value};
use super::settings::Settings;
use super::values::LogTarget;
use crate::error::{reason, Error};
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// `dir` is the folder that the server was started in.
///
/// Errors: the first path that cannot be used, in the table's order; `chdir` goes before all others, which depend on it.
pub fn check(settings: &Settings, dir: &Path) -> Result<(), Error> {
    let chdir = match settings.get("chdir") {
        Value::Path(path) => dir.join(path),
        _ => dir.to_path_buf(),
    };
    judge(settings, "chdir", folder(&chdir))?;
    settings.iter().filter(|(opt, _)| opt.name != "chdir").try_for_each(|(opt, value)| {
        let found = match (opt.kind, value) {
            (Kind::Folder, Value::Path(path)) => folder(&chdir.join(path)),
            (Kind::File, Value::Path(path)) => file(&chdir.join(path)),
            (Kind::NewFile, Value::Path(path)) | (Kind::Log, Value::Log(LogTarget::File(path))) => {
                new_file(&chdir.join(path))
            }
            _ => Ok(()),
        };
        judge(settings, opt.name, found)
    })
}

fn judge(settings: &Settings, name: &str, found: Result<(), String>) -> Result<(), Error> {
    found.map_err(|why| settings.wrong(name, format!("'{}' {why}", settings.get(name))))
}

fn folder(path: &Path) -> Result<(), String> {
    let is_folder = fs::metadata(path).map(|found| found.is_dir());
    said(is_folder, "is not a folder that exists", "is not a folder")
}

fn file(path: &Path) -> Result<(), String> {
    let is_file = File::open(path).and_then(|file| file.metadata()).map(|found| !found.is_dir());
    said(is_file, "is not a file that can be read", "is a folder, not a file")
}

/// A file that the server makes, or one that is there already.
fn new_file(path: &Path) -> Result<(), String> {
    if path.is_dir() {
        return Err("is a folder, not a file".to_string());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let is_folder = folder.map_or(Ok(true), |folder| fs::metadata(folder).map(|found| found.is_dir()));
    said(is_folder, "is not in a folder that exists", "is not in a folder")
}

fn said(found: io::Result<bool>, absent: &str, another: &str) -> Result<(), String> {
    match found {
        Ok(true) => Ok(()),
        Ok(false) => Err(another.to_string()),
        Err(error) => Err(format!("{absent}: {}", reason(&error))),
    }
}
