//! Owns: the extra files: those that are named, and patterns which files may come to match later.
//! Rule: a pattern is a shell's, with `**` for any number of folders; what an editor leaves for a moment never matches.
//! Never: waits, watches.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// As in a shell: `*` matches neither `/` nor a leading dot.
const LIKE_A_SHELL: glob::MatchOptions = glob::MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

pub struct Pattern {
    /// Where it begins, no part of which is a pattern.
    base: PathBuf,
    text: String,
    pub files: BTreeSet<PathBuf>,
    /// Where a file may appear that matches.
    pub folders: BTreeSet<PathBuf>,
}

/// Whether it is a pattern and not the name of a file.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// Why a pattern is none.
pub fn fault(text: &str) -> Option<String> {
    glob::Pattern::new(text).err().map(|e| e.msg.to_string())
}

impl Pattern {
    /// A relative pattern begins in `folder`.
    pub fn new(folder: &Path, text: &str) -> Pattern {
        let (base, text) = match text.strip_prefix('/') {
            Some(rest) => (Path::new("/"), rest),
            None => (folder, text),
        };
        let (files, folders) = (BTreeSet::new(), BTreeSet::new());
        Pattern { base: base.to_path_buf(), text: text.to_string(), files, folders }
    }

    /// Looks again; gives the files that have come.
    pub fn expand(&mut self) -> Vec<PathBuf> {
        let found = self.matches(Path::new(&self.text));
        let files: BTreeSet<_> = found.into_iter().filter(|path| !is_noise(path) && path.is_file()).collect();
        let new = files.difference(&self.files).cloned().collect();
        self.files = files;
        self.folders = self.parents();
        new
    }

    /// The folders that match the beginning of the pattern, from the last that is named on.
    fn parents(&self) -> BTreeSet<PathBuf> {
        let parts: Vec<_> = Path::new(&self.text).components().collect();
        let named = parts.iter().take_while(|part| !is_magic(part)).count();
        let beginnings = (named..parts.len()).map(|count| parts[..count].iter().collect::<PathBuf>());
        beginnings.flat_map(|text| self.matches(&text)).filter(|path| is_folder(path)).collect()
    }

    /// Folders that cannot be read match nothing.
    fn matches(&self, text: &Path) -> Vec<PathBuf> {
        if text.as_os_str().is_empty() {
            return vec![self.base.clone()];
        }
        let base = glob::Pattern::escape(&self.base.to_string_lossy());
        let whole = format!("{base}/{}", text.to_string_lossy());
        glob::glob_with(&whole, LIKE_A_SHELL).into_iter().flatten().flatten().collect()
    }
}

fn is_magic(part: &Component<'_>) -> bool {
    is_pattern(&part.as_os_str().to_string_lossy())
}

/// Not through a link: it may lead back to where it is.
fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// What editors and Python write beside a file.
pub fn is_noise(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ends = [".swp", ".swx", ".swo", ".pyc", ".pyo", "___jb_tmp___", "___jb_old___"];
    name == "4913"
        || name.ends_with('~')
        || (name.starts_with('#') && name.ends_with('#'))
        || name.starts_with(".#")
        || name.starts_with(".goutputstream-")
        || ends.iter().any(|end| name.ends_with(end))
        || path.components().any(|part| part.as_os_str() == "__pycache__")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_finds_files_that_come_and_the_folders_where_they_may() {
        let root = std::env::temp_dir().join(format!("rgunicorn-[glob]-{}", std::process::id()));
        fs::create_dir_all(root.join("t/deep")).unwrap();
        fs::write(root.join("t/a.html"), "").unwrap();
        fs::write(root.join("t/a.html~"), "").unwrap();
        fs::write(root.join("t/.a.html.swp"), "").unwrap();
        let mut pattern = Pattern::new(&root, "t/**/*");
        assert_eq!(pattern.expand(), [root.join("t/a.html")]);
        assert!(pattern.folders.contains(&root.join("t")) && pattern.folders.contains(&root.join("t/deep")));
        assert!(pattern.expand().is_empty());
        fs::write(root.join("t/deep/b"), "").unwrap();
        assert_eq!(pattern.expand(), [root.join("t/deep/b")]);
        let mut plain = Pattern::new(&root, "*.txt");
        assert!(plain.expand().is_empty());
        assert_eq!(plain.folders, BTreeSet::from([root.clone()]));
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn what_editors_leave_is_noise() {
        for name in ["a.py~", ".a.py.swp", "4913", "#a.py#", ".#a.py", "__pycache__/a.cpython-311.pyc"] {
            assert!(is_noise(Path::new(name)), "{name}");
        }
        for name in ["a.py", "templates/x.html", "4913.txt"] {
            assert!(!is_noise(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn faults() {
        assert!(fault("a/***").is_some() && fault("a/[").is_some());
        assert!(fault("a/**/*.html").is_none());
    }
}
