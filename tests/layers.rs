//! The house plan, checked: imports go down only, `pyo3` and `unsafe` are where they may be, every file says what it owns.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A module and its layer: 0 system, 1 pure rules, 2 shared parts, 3 one connection, 4 loops and Python, 5 roles, 6 entry.
/// The longest prefix counts, so that `config::values` may lie below `config`.
const LAYERS: &[(&str, u32)] = &[
    ("sys", 0),
    ("version", 0),
    ("error", 0),
    ("defect", 0),
    ("config::values", 0),
    ("config", 1),
    ("http", 1),
    ("proxy", 1),
    ("proxy_protocol", 1),
    ("scoreboard", 2),
    ("listener", 2),
    ("control", 2),
    ("log", 2),
    ("panic", 2),
    ("log_file", 2),
    ("log_text", 2),
    ("remote", 2),
    ("syslog", 2),
    ("statsd", 2),
    ("systemd", 2),
    ("identity", 2),
    ("access_log", 2),
    ("access_sink", 2),
    ("tls", 2),
    ("transport", 2),
    ("body_buffer", 2),
    ("buffer", 2),
    ("timers", 2),
    ("handoff", 2),
    ("crash_report", 2),
    ("watch", 2),
    ("conn", 3),
    ("exchange", 3),
    ("app", 3),
    ("event_loop", 4),
    ("python", 4),
    ("launch", 4),
    ("logger", 4),
    ("hooks", 4),
    ("wsgi", 4),
    ("daemon", 4),
    ("development", 4),
    ("worker", 5),
    ("fork_doctor", 5),
    ("mold", 5),
    ("arbiter", 5),
    ("reload", 5),
    ("cli", 6),
    ("surface", 6),
    ("lib", 6),
    ("main", 6),
];

/// Who may import whom within a layer: (who, whom). There is no way back, so no cycle.
const BESIDE: &[(&str, &str)] = &[
    ("error", "sys"),
    ("config", "http"),
    ("config", "proxy_protocol"),
    ("proxy", "http"),
    ("proxy", "proxy_protocol"),
    ("buffer", "transport"),
    ("access_sink", "access_log"),
    ("crash_report", "log"),
    ("crash_report", "scoreboard"),
    ("access_sink", "log"),
    ("log", "identity"),
    ("access_sink", "syslog"),
    ("access_sink", "statsd"),
    ("log", "log_file"),
    ("log", "log_text"),
    ("panic", "log"),
    ("log", "syslog"),
    ("log", "statsd"),
    ("syslog", "remote"),
    ("statsd", "remote"),
    ("access_sink", "transport"),
    ("transport", "tls"),
    ("handoff", "transport"),
    ("exchange", "conn"),
    ("app", "exchange"),
    ("wsgi", "python"),
    ("wsgi", "hooks"),
    ("wsgi", "logger"),
    ("hooks", "python"),
    ("hooks", "launch"),
    ("wsgi", "launch"),
    ("launch", "python"),
    ("hooks", "logger"),
    ("logger", "python"),
    ("daemon", "python"),
    ("mold", "worker"),
    ("mold", "fork_doctor"),
    ("arbiter", "worker"),
    ("arbiter", "mold"),
    ("reload", "arbiter"),
    ("lib", "cli"),
    ("lib", "surface"),
];

/// The arbiter supervises; it must not be able to touch a request.
const ARBITER_NEVER: &[&str] = &["http", "conn", "exchange", "wsgi", "event_loop", "app", "transport"];

const PYO3: &[&str] = &[
    "lib",
    "main",
    "python",
    "launch",
    "logger",
    "hooks",
    "wsgi",
    "daemon",
    "development",
    "worker",
    "fork_doctor",
    "mold",
    "arbiter",
    "surface",
    "reload",
];

struct Source {
    path: PathBuf,
    module: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(source(&root, path));
            }
        }
    }
    assert!(found.len() > 40, "only {} files were found", found.len());
    found
}

fn source(root: &Path, path: PathBuf) -> Source {
    let inner = path.strip_prefix(root).unwrap().with_extension("");
    let parts: Vec<_> = inner.iter().map(|part| part.to_str().unwrap()).collect();
    let module = parts.join("::").trim_end_matches("::mod").to_string();
    let text = fs::read_to_string(&path).unwrap();
    Source { path, module, text }
}

fn within(module: &str, prefix: &str) -> bool {
    module == prefix || module.starts_with(&format!("{prefix}::"))
}

fn place(module: &str) -> (&'static str, u32) {
    let known = LAYERS.iter().filter(|(prefix, _)| within(module, prefix));
    *known.max_by_key(|(prefix, _)| prefix.len()).unwrap_or_else(|| panic!("{module} has no layer"))
}

/// The modules that a file names by `crate::`, tests left out.
fn imports(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]").next().unwrap();
    let code: String =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for part in code.split("crate::").skip(1) {
        let path: String =
            part.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
        found.insert(path.trim_end_matches(':').to_string());
    }
    found
}

#[test]
fn imports_go_down_only() {
    let mut wrong = Vec::new();
    for file in sources() {
        let (own, layer) = place(&file.module);
        for import in imports(&file.text) {
            let (other, below) = place(&import);
            let allowed = own == other || below < layer || BESIDE.contains(&(own, other));
            if !allowed {
                wrong.push(format!(
                    "{} (layer {layer}) imports {import} (layer {below})",
                    file.path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn neighbours_have_no_way_back() {
    for (who, whom) in BESIDE {
        assert!(!BESIDE.contains(&(whom, who)), "{who} and {whom} import each other");
        assert_eq!(place(who).1, place(whom).1, "{who} and {whom} are in different layers");
    }
}

#[test]
fn the_arbiter_cannot_touch_a_request() {
    for file in sources().iter().filter(|file| within(&file.module, "arbiter")) {
        for import in imports(&file.text) {
            let forbidden = ARBITER_NEVER.iter().any(|never| within(&import, never));
            assert!(!forbidden, "{} imports {import}", file.path.display());
        }
    }
}

/// The fuzz crate compiles the pure rules by themselves: what they import must be there too.
#[test]
fn the_fuzz_crate_has_what_the_rules_import() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/src/lib.rs");
    let text = fs::read_to_string(path).unwrap();
    let has = |module: &str| text.contains(&format!("pub mod {module};"));
    let sources = sources();
    let rules: Vec<_> = sources.iter().filter(|file| has(place(&file.module).0)).collect();
    assert!(rules.len() >= 10, "only {} files", rules.len());
    for file in rules {
        for import in imports(&file.text) {
            let top = import.split("::").next().unwrap();
            assert!(has(top), "{} imports {import}, which fuzz/src/lib.rs lacks", file.path.display());
        }
    }
}

#[test]
fn pyo3_is_where_python_is() {
    for file in sources() {
        let allowed = PYO3.iter().any(|module| within(&file.module, module));
        assert!(allowed || !file.text.contains("pyo3::"), "{} names pyo3", file.path.display());
    }
}

#[test]
fn unsafe_is_in_sys_and_ffi_and_each_block_has_its_proof() {
    for file in sources() {
        let code = file.text.split("#[cfg(test)]").next().unwrap();
        let lines: Vec<_> = code.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            if !code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe") {
                continue;
            }
            let allowed = within(&file.module, "sys") || file.module == "wsgi::ffi";
            assert!(allowed, "{}:{} is unsafe", file.path.display(), at + 1);
            let before = &lines[at.saturating_sub(6)..at];
            assert!(
                before.iter().any(|line| line.contains("SAFETY:")),
                "{}:{} has no SAFETY line",
                file.path.display(),
                at + 1
            );
        }
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for file in sources() {
        let first = file.text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! "), "{} does not open with //!", file.path.display());
        if file.module != "lib" {
            for word in ["Owns:", "Rule:", "Never:"] {
                assert!(file.text.contains(&format!("//! {word}")), "{} has no {word}", file.path.display());
            }
        }
    }
}
