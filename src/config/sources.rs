//! Owns: where settings come from, and which source wins.
//! Rule: defaults < environment < a PasteDeploy file's server section < config file < GUNICORN_CMD_ARGS < command line; a later list replaces an earlier one.
//! Never: executes Python (a closure does) or looks at the process: arguments and environment are parameters.

use super::app::{AppSpec, PasteFile};
use super::arguments::{parse, Args, Parsed};
use super::files::{config_file, has_python_name, is_module, passed_over, read_toml};
use super::settings::{Settings, Source, CMD_ARGS};
use super::table::{self, options};
use super::values::Raw;
use crate::error::Error;
use std::path::{Path, PathBuf};

/// Gives a variable of the environment.
pub type Environment<'a> = dyn Fn(&str) -> Option<String> + 'a;
/// Gives what Python reads for us.
pub type RunPython<'a> = dyn FnMut(Script) -> Result<Vec<(String, Raw)>, Error> + 'a;

/// What holds settings that only Python can read.
pub enum Script<'a> {
    /// A config file to execute (or `python:MODULE` to import), of whose module the globals are given.
    File(&'a Path),
    /// The server section of a PasteDeploy file. The error's text is the predicate of a sentence.
    Server(&'a PasteFile),
}

/// What all sources together say.
pub struct Gathered {
    pub settings: Settings,
    pub app: Option<String>,
    pub config_file: Option<PathBuf>,
    pub warnings: Vec<String>,
}

/// Reads every source; `base` is what goes before the config file, and `dir` where that is looked for when none is named.
pub fn gather(
    args: &[String],
    env: &Environment,
    base: Vec<(String, Raw)>,
    run_python: &mut RunPython,
    dir: &Path,
) -> Result<Gathered, Error> {
    let line = given(parse(args)?, &Source::CommandLine)?;
    let cmd_args = given(command_args(env)?, &Source::CommandArgs)?;
    let (config_file, named_by) = config_file(&line, &cmd_args, dir);
    let mut all = Gathered { config_file, ..Gathered::defaults() };
    all.environment(env)?;
    all.set_by("init()", base)?;
    if let Some(path) = all.config_file.clone() {
        all.warnings.extend(passed_over(&path, dir));
        all.file(&path, &named_by, run_python)?;
    }
    all.flags(&cmd_args, &Source::CommandArgs)?;
    all.flags(&line, &Source::CommandLine)?;
    all.app = line.app;
    all.ignored(&line.extra);
    all.server_section(run_python)?;
    Ok(all)
}

/// What a program sets that has an application object of its own: no file, no command line.
pub fn gather_set(entries: Vec<(String, Raw)>, env: &Environment) -> Result<Gathered, Error> {
    let mut all = Gathered::defaults();
    all.environment(env)?;
    all.set_by("load_config()", entries)?;
    Ok(all)
}

impl Gathered {
    pub fn defaults() -> Gathered {
        Gathered { settings: Settings::defaults(), app: None, config_file: None, warnings: Vec::new() }
    }

    /// Takes over what a program's function has set, or a file in which every name should be a setting's.
    fn set_by(&mut self, label: &str, entries: Vec<(String, Raw)>) -> Result<(), Error> {
        let unknown = self.entries(entries, label)?;
        self.warnings.extend(complaints(unknown, Language::Toml, label));
        Ok(())
    }

    fn environment(&mut self, env: &Environment) -> Result<(), Error> {
        for opt in options() {
            let Some(variable) = opt.env else { continue };
            let Some(text) = env(variable.name) else {
                continue;
            };
            if text.trim().is_empty() && !opt.kind.takes_empty() {
                continue;
            }
            let raw = Raw::Text(format!("{}{text}", variable.prefix));
            let source = Source::Environment(variable.name);
            self.settings.set(opt, &raw, &source)?;
        }
        Ok(())
    }

    fn flags(&mut self, args: &Args, source: &Source) -> Result<(), Error> {
        for (opt, raw) in &args.flags {
            self.settings.set(opt, raw, source)?;
        }
        Ok(())
    }

    /// gunicorn drops the words after the application in silence; we say so.
    fn ignored(&mut self, words: &[String]) {
        self.warnings.extend(words.iter().map(|word| {
            let word = word.escape_debug();
            format!("one application is served, the argument '{word}' is ignored")
        }));
    }

    fn file(&mut self, path: &Path, named_by: &Source, run_python: &mut RunPython) -> Result<(), Error> {
        let label = path.strip_prefix(".").unwrap_or(path).display().to_string();
        if let (false, false, Some(opt)) = (is_module(path), path.exists(), table::find("config")) {
            return Err(named_by.wrong(opt, format!("the file '{label}' does not exist")));
        }
        let (entries, language) = match path.extension() {
            Some(end) if end == "toml" => (read_toml(path, &label)?, Language::Toml),
            _ => (run_python(Script::File(path))?, Language::Python),
        };
        let unknown = self.entries(entries, &label)?;
        self.warnings.extend(complaints(unknown, language, &label));
        if matches!(language, Language::Python) && !is_module(path) && !has_python_name(path) {
            self.warnings.push(format!("{label}: read as Python, though its name does not end in .py"));
        }
        Ok(())
    }

    /// Of the PasteDeploy file that is served: read last, as any source may name it, and for what no other one says.
    fn server_section(&mut self, run_python: &mut RunPython) -> Result<(), Error> {
        let Some(AppSpec::Paste(file)) = AppSpec::of(&self.settings, self.app.as_deref()) else {
            return Ok(());
        };
        if let Some(module) = self.app.take() {
            self.ignored(&[module]);
        }
        let entries = run_python(Script::Server(&file));
        let wrong = |e: Error| self.settings.wrong("paste", format!("'{}' {e}", file.path.display()));
        let (config, mut entries): (Vec<_>, Vec<_>) =
            entries.map_err(wrong)?.into_iter().partition(|(name, _)| name == "config");
        let label = file.path.display().to_string();
        if !config.is_empty() {
            self.warnings.push(format!("{label}: with --paste 'config' is not read there; use --config"));
        }
        entries.retain(|(name, _)| self.settings.is_left_alone(name));
        self.set_by(&label, entries)
    }

    /// Takes the settings out of a file's entries and gives back the rest.
    fn entries(&mut self, entries: Vec<(String, Raw)>, label: &str) -> Result<Vec<(String, Raw)>, Error> {
        let source = Source::File(label.to_string());
        let mut unknown = Vec::new();
        for (name, raw) in entries {
            match table::find(&name) {
                // By now the file has been chosen; the name is a common one for a helper variable.
                Some(opt) if opt.name == "config" => {}
                Some(opt) => self.settings.set(opt, &raw, &source)?,
                None => unknown.push((name, raw)),
            }
        }
        Ok(unknown)
    }
}

/// Decides what an unknown name means: in Python a helper variable, in TOML a mistake.
#[derive(Clone, Copy)]
enum Language {
    Python,
    Toml,
}

/// The warnings about a file's entries that are no settings of ours.
fn complaints(unknown: Vec<(String, Raw)>, language: Language, label: &str) -> Vec<String> {
    unknown.iter().filter_map(|(name, raw)| complaint(name, raw, language, label)).collect()
}

fn complaint(name: &str, raw: &Raw, language: Language, label: &str) -> Option<String> {
    let closest = table::closest_name(name);
    match (language, closest) {
        (Language::Toml, None) => Some(format!("{label}: unknown setting '{name}' ignored")),
        (Language::Toml, Some(known)) => {
            Some(format!("{label}: unknown setting '{name}' ignored (did you mean '{known}'?)"))
        }
        // A function, module or class is code, whatever it is called.
        (Language::Python, Some(known))
            if is_variable(name) && !matches!(raw, Raw::Callable(_) | Raw::Other(_)) =>
        {
            Some(format!("{label}: '{name}' is no setting (did you mean '{known}'?)"))
        }
        (Language::Python, _) => None,
    }
}

fn is_variable(name: &str) -> bool {
    !name.starts_with('_') && !name.contains(|letter: char| letter.is_ascii_uppercase())
}

/// The words in GUNICORN_CMD_ARGS, split as a shell would.
fn command_args(env: &Environment) -> Result<Parsed, Error> {
    let text = env(CMD_ARGS).unwrap_or_default();
    let words = shlex::split(&text)
        .ok_or_else(|| Error::Usage(format!("{CMD_ARGS}: a quotation mark is not closed")))?;
    parse(&words).map_err(|error| Error::Usage(format!("{CMD_ARGS}: {error}")))
}

/// The options, where only options make sense: help and version are answered before a configuration is made.
fn given(parsed: Parsed, source: &Source) -> Result<Args, Error> {
    match (parsed, source) {
        (Parsed::Args(args), _) => Ok(args),
        (_, Source::CommandArgs) => {
            Err(Error::Usage(format!("{CMD_ARGS}: --help and --version belong on the command line")))
        }
        _ => Ok(Args::default()),
    }
}
#[cfg(test)]
mod tests {
    use super::super::files::{PROJECT_FILE, PYTHON_FILE, TOML_FILE};
    use super::super::kinds::Value;
    use super::*;
    use std::cell::RefCell;
    use std::fs;
    use std::time::Duration;

    /// A directory of its own for one test, removed at its end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let name = format!("rgunicorn-sources-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Dir(path)
        }

        fn file(&self, name: &str, text: &str) -> String {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Everything that a start reads, to be overridden field by field.
    #[derive(Default)]
    struct Start<'a> {
        line: &'a str,
        env: &'a [(&'a str, &'a str)],
        base: Vec<(&'a str, Raw)>,
        python: Vec<(&'a str, Raw)>,
        /// The server section of whatever PasteDeploy file is asked for.
        section: Vec<(&'a str, Raw)>,
        dir: Option<&'a Dir>,
    }

    impl Start<'_> {
        fn gather(&self) -> Result<Gathered, Error> {
            let get = |name: &str| {
                let found = self.env.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| value.to_string())
            };
            let globals = self.python.iter();
            let globals: Vec<_> = globals.map(|(name, raw)| (name.to_string(), raw.clone())).collect();
            let dir = self.dir.map_or(Path::new("/nonexistent"), |dir| &dir.0);
            let base = self.base.iter().map(|(name, raw)| (name.to_string(), raw.clone())).collect();
            let mut run = |script: Script| match script {
                Script::File(_) => Ok(globals.clone()),
                Script::Server(file) => self.section(file),
            };
            gather(&shlex::split(self.line).unwrap(), &get, base, &mut run, dir)
        }

        fn section(&self, file: &PasteFile) -> Result<Vec<(String, Raw)>, Error> {
            match file.path.ends_with("missing.ini") {
                true => Err(Error::Other("is not there".to_string())),
                false => Ok(self.section.iter().map(|(name, raw)| (name.to_string(), raw.clone())).collect()),
            }
        }

        fn value(&self, name: &str) -> Value {
            self.gather().unwrap().settings.get(name).clone()
        }

        fn warnings(&self) -> Vec<String> {
            self.gather().unwrap().warnings
        }

        fn refused(&self) -> (String, i32) {
            let error = self.gather().err().unwrap();
            (error.to_string(), error.exit_code())
        }
    }

    fn said(text: &str) -> Raw {
        Raw::Text(text.to_string())
    }

    fn sentence(line: &str) -> String {
        let start = Start { line, ..Start::default() };
        let (sentence, code) = start.refused();
        assert_eq!(code, 2);
        sentence
    }

    #[test]
    fn each_source_replaces_the_one_before() {
        let python = [("workers", Raw::Int(3))];
        let env = [("WEB_CONCURRENCY", "2"), (CMD_ARGS, "-w 4")];
        let at = |env, python: &[(&'static str, Raw)], line| {
            Start { line, env, python: python.to_vec(), ..Start::default() }.value("workers")
        };
        assert_eq!(at(&[], &[], ""), Value::Int(1));
        assert_eq!(at(&env[..1], &[], ""), Value::Int(2));
        assert_eq!(at(&env[..1], &python, "-c python:conf"), Value::Int(3));
        assert_eq!(at(&env, &python, "-c python:conf"), Value::Int(4));
        assert_eq!(at(&env, &python, "-c python:conf -w 5"), Value::Int(5));
    }

    #[test]
    fn what_a_program_sets_is_between_the_environment_and_the_file() {
        let env = [("WEB_CONCURRENCY", "2")];
        let base = vec![("workers", Raw::Int(3))];
        let start = Start { env: &env, base: base.clone(), ..Start::default() };
        assert_eq!(start.value("workers"), Value::Int(3));
        let python = vec![("workers", Raw::Int(4))];
        let start = Start { line: "-c python:conf", env: &env, base, python, ..Start::default() };
        assert_eq!(start.value("workers"), Value::Int(4));
        let wrong = Start { base: vec![("workers", said("x"))], ..Start::default() };
        assert_eq!(wrong.refused(), ("init(): workers: 'x' is not a whole number ≥ 1".to_string(), 1));
    }

    #[test]
    fn a_server_section_is_between_the_environment_and_the_file() {
        let env = [("WEB_CONCURRENCY", "2"), (CMD_ARGS, "--paste /a.ini")];
        let section = vec![("workers", said("3")), ("threads", said("4"))];
        let start =
            |line, python| Start { line, env: &env, python, section: section.clone(), ..Start::default() };
        assert_eq!(start("", Vec::new()).value("workers"), Value::Int(3));
        let python = vec![("workers", Raw::Int(5))];
        assert_eq!(start("-c python:conf", python.clone()).value("workers"), Value::Int(5));
        assert_eq!(start("-c python:conf", python.clone()).value("threads"), Value::Int(4));
        assert_eq!(start("-c python:conf -w 6", python).value("workers"), Value::Int(6));
        // Another application is served.
        assert_eq!(start("a:b", Vec::new()).value("workers"), Value::Int(2));
    }

    #[test]
    fn what_is_wrong_with_a_server_section() {
        let start = |line, name, value| Start { line, section: vec![(name, value)], ..Start::default() };
        let wrong = start("--paste /a.ini", "workers", said("x"));
        assert_eq!(wrong.refused(), ("/a.ini: workers: 'x' is not a whole number ≥ 1".to_string(), 1));
        let unknown = start("--paste /a.ini", "wrokers", said("2")).warnings();
        assert_eq!(unknown, ["/a.ini: unknown setting 'wrokers' ignored (did you mean 'workers'?)"]);
        let config = start("--paste /a.ini a:b", "config", said("c.py")).warnings();
        assert_eq!(
            config,
            [
                "one application is served, the argument 'a:b' is ignored",
                "/a.ini: with --paste 'config' is not read there; use --config"
            ]
        );
        let missing = start("--paste /missing.ini", "workers", said("2"));
        assert_eq!(missing.refused(), ("--paste: '/missing.ini' is not there".to_string(), 1));
    }

    #[test]
    fn a_program_that_sets_everything_itself() {
        let set = |name: &str, raw| gather_set(vec![(name.to_string(), raw)], &|_| None);
        assert_eq!(*set("threads", Raw::Int(2)).unwrap().settings.get("threads"), Value::Int(2));
        let refused = set("threads", Raw::Int(0)).err().unwrap();
        assert_eq!(refused.to_string(), "load_config(): threads: 0 is not a whole number ≥ 1");
        assert_eq!(refused.exit_code(), 1);
        let unknown = set("thread", Raw::Int(2)).unwrap().warnings;
        assert_eq!(unknown, ["load_config(): unknown setting 'thread' ignored (did you mean 'threads'?)"]);
        let env = |name: &str| (name == "WEB_CONCURRENCY").then(|| "5".to_string());
        assert_eq!(*gather_set(vec![], &env).unwrap().settings.get("workers"), Value::Int(5));
    }

    #[test]
    fn a_list_replaces_the_earlier_list() {
        let start = Start {
            line: "-c python:conf -b fd://4 -b fd://5",
            python: vec![("bind", Raw::List(vec![said("fd://3")]))],
            ..Start::default()
        };
        let fds = [4, 5].map(super::super::Address::Fd);
        assert_eq!(start.value("bind"), Value::Addresses(fds.to_vec()));
    }

    #[test]
    fn variables_of_the_environment() {
        let value = |env: &[(&str, &str)], name| Start { env, ..Start::default() }.value(name);
        let port = value(&[("PORT", "5000")], "bind");
        assert_eq!(port, Value::Addresses(vec!["0.0.0.0:5000".parse().unwrap()]));
        // Empty means unset, but an empty list of trusted proxies means none.
        assert_eq!(value(&[("WEB_CONCURRENCY", "")], "workers"), Value::Int(1));
        let nobody = value(&[("FORWARDED_ALLOW_IPS", "")], "forwarded_allow_ips");
        assert_eq!(nobody, Value::Texts(vec![]));
        assert_eq!(value(&[("SENDFILE", "no")], "sendfile"), Value::Bool(false));
    }

    #[test]
    fn command_line_forms() {
        let value = |line, name| Start { line, ..Start::default() }.value(name);
        assert_eq!(value("--workers=3", "workers"), Value::Int(3));
        assert_eq!(value("-w3", "workers"), Value::Int(3));
        assert_eq!(value("-w 2 -w 3", "workers"), Value::Int(3));
        assert_eq!(value("--back 7", "backlog"), Value::Int(7));
        assert_eq!(value("-D", "daemon"), Value::Bool(true));
        assert_eq!(value("--no-sendfile", "sendfile"), Value::Bool(false));
        for (line, word) in [
            ("--proxy-protocol", "auto"),
            ("--proxy-protocol -w 2", "auto"),
            ("--proxy-protocol v1 a:b", "v1"),
            ("--proxy-protocol=v2 a:b", "v2"),
            ("a:b --proxy-protocol", "auto"),
            ("a:b", "off"),
        ] {
            assert_eq!(value(line, "proxy_protocol"), Value::Text(word.to_string()), "{line}");
        }
        for flag in ["--limit-request-field_size", "--limit-request-field-size"] {
            let args = [flag, "5"].map(str::to_string);
            let all = gather(&args, &|_| None, Vec::new(), &mut |_| Ok(vec![]), Path::new("/nonexistent"));
            let settings = all.unwrap().settings;
            assert_eq!(*settings.get("limit_request_field_size"), Value::Int(5));
        }
        let second = Value::Seconds(Duration::from_secs(1));
        assert_eq!(value("app:app -t 1", "timeout"), second);
    }

    #[test]
    fn the_application_is_the_first_word_of_the_command_line() {
        let start = Start { line: "a:b c:d -w 2", env: &[(CMD_ARGS, "x:y")], ..Start::default() };
        let all = start.gather().unwrap();
        assert_eq!(all.app.as_deref(), Some("a:b"));
        assert_eq!(all.warnings, ["one application is served, the argument 'c:d' is ignored"]);
        let none = Start { env: start.env, ..Start::default() };
        assert_eq!(none.gather().unwrap().app, None);
    }

    #[test]
    fn usage_errors_are_one_sentence() {
        let pairs = [
            ("--wrokers 3", "unknown option --wrokers (did you mean --workers?)"),
            ("--nope", "unknown option --nope"),
            ("-x", "unknown option -x"),
            ("-w", "--workers needs a value"),
            ("--daemon=1", "--daemon takes no value"),
            ("-w x", "--workers: 'x' is not a whole number ≥ 1"),
            ("-w -1", "--workers: '-1' is not a whole number ≥ 1"),
            ("-b h:x", "--bind: 'x' is not a port (0 to 65535)"),
            ("--worker-c 3", "--worker-c could be any of --worker-class, --worker-connections"),
            ("--cert-reqs 3", "--cert-reqs: '3' is more than 2"),
        ];
        for (line, text) in pairs {
            assert_eq!(sentence(line), text);
        }
    }

    #[test]
    fn errors_name_their_source() {
        let refused = |start: Start| start.refused();
        let env = |name, value| Start { env: Box::leak(Box::new([(name, value)])), ..Start::default() };
        assert_eq!(
            refused(env("WEB_CONCURRENCY", "x")),
            ("WEB_CONCURRENCY: 'x' is not a whole number ≥ 1".to_string(), 1)
        );
        assert_eq!(
            refused(env(CMD_ARGS, "-w x")),
            ("GUNICORN_CMD_ARGS: --workers: 'x' is not a whole number ≥ 1".to_string(), 2)
        );
        assert_eq!(
            refused(env(CMD_ARGS, "--nope")),
            ("GUNICORN_CMD_ARGS: unknown option --nope".to_string(), 2)
        );
        assert_eq!(
            refused(env(CMD_ARGS, "'a")),
            ("GUNICORN_CMD_ARGS: a quotation mark is not closed".to_string(), 2)
        );
        assert_eq!(
            refused(env(CMD_ARGS, "-h")),
            ("GUNICORN_CMD_ARGS: --help and --version belong on the command line".to_string(), 2)
        );
        let file = Start { line: "-c python:conf", python: vec![("workers", said("x"))], ..Start::default() };
        assert_eq!(refused(file), ("python:conf: workers: 'x' is not a whole number ≥ 1".to_string(), 1));
    }

    #[test]
    fn which_file_is_read() {
        let dir = Dir::new("which");
        let read = RefCell::new(Vec::new());
        let chosen = |line: &str, cmd_args: &str| {
            let get = |name: &str| (name == CMD_ARGS).then(|| cmd_args.to_string());
            let mut run = |script: Script| {
                if let Script::File(path) = script {
                    read.borrow_mut().push(path.display().to_string());
                }
                Ok(Vec::new())
            };
            let words = shlex::split(line).unwrap();
            gather(&words, &get, Vec::new(), &mut run, &dir.0).unwrap().config_file
        };
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(chosen("", ""), None);
        let toml = dir.file(TOML_FILE, "");
        assert_eq!(chosen("", ""), path(&toml));
        let python = dir.file(PYTHON_FILE, "");
        assert_eq!(chosen("", ""), path(&python));
        assert_eq!(chosen("-c ''", ""), path(&python));
        let other = dir.file("other", "");
        assert_eq!(chosen("", &format!("-c {other}")), path(&other));
        assert_eq!(chosen(&format!("-c {toml}"), "-c nope"), path(&toml));
        assert_eq!(chosen(&format!("-c file:{other}"), ""), path(&other));
        assert_eq!(chosen("-c python:a.b", ""), path("python:a.b"));
        assert_eq!(read.into_inner(), [&python, &python, &other, &other, "python:a.b"]);
    }

    #[test]
    fn a_projects_file_is_read_for_its_table_only() {
        let dir = Dir::new("project");
        let start = || Start { dir: Some(&dir), ..Start::default() };
        dir.file(PROJECT_FILE, "workers = 7\n[tool.black]\nthreads = 7\n");
        assert_eq!(start().gather().unwrap().config_file, None);
        dir.file(PROJECT_FILE, "not toml");
        assert_eq!(start().gather().unwrap().config_file, None);
        dir.file(PROJECT_FILE, "workers = 7\n[tool.rgunicorn]\nthreads = 3\nwrokers = 2\n");
        assert_eq!((start().value("threads"), start().value("workers")), (Value::Int(3), Value::Int(1)));
        assert!(start().warnings()[0].contains("'wrokers'"));
        dir.file(PROJECT_FILE, "[tool.rgunicorn]\nthreads = = 3\n");
        assert!(start().refused().0.contains("pyproject.toml:2: "));
        dir.file(TOML_FILE, "threads = 4\n");
        assert_eq!(start().value("threads"), Value::Int(4));
    }

    #[test]
    fn settings_are_listed_by_name() {
        let text = Settings::defaults().to_string();
        let names: Vec<_> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert!(names.is_sorted() && names.len() == options().count());
        let at = text.lines().map(|line| line.find(" = ")).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(at.len(), 1);
    }

    #[test]
    fn the_file_that_is_passed_over_is_named() {
        let dir = Dir::new("both");
        dir.file(TOML_FILE, "");
        let python = dir.file(PYTHON_FILE, "");
        let warnings = |line: &str| Start { line, dir: Some(&dir), ..Start::default() }.warnings();
        let text = "rgunicorn.toml is not read because gunicorn.conf.py is there";
        assert_eq!(warnings(""), [text]);
        assert_eq!(warnings(&format!("-c {python}")), [text]);
        assert!(warnings("-c python:conf").is_empty());
    }

    #[test]
    fn a_missing_file_is_an_error() {
        for line in ["-c nope.py", "-c nope.toml", "-c file:nope.py"] {
            let start = Start { line, ..Start::default() };
            let (sentence, code) = start.refused();
            assert!(sentence.starts_with("--config: the file 'nope."), "{sentence}");
            assert!(sentence.ends_with("' does not exist"));
            assert_eq!(code, 1);
        }
    }

    #[test]
    fn an_error_of_the_python_file_is_passed_on() {
        let words = ["-c".to_string(), "python:conf".to_string()];
        let mut run = |_: Script| Err(Error::Other("conf: NameError".to_string()));
        let error = gather(&words, &|_| None, Vec::new(), &mut run, Path::new("/nonexistent"));
        assert_eq!(error.err().unwrap().to_string(), "conf: NameError");
    }

    #[test]
    fn toml_files() {
        let dir = Dir::new("toml");
        let text = "workers = 3\nwrokers = 1\n[rgunicorn]\nthreads = 2\n\
                    zzz = 1\n[rgunicorn.secure_scheme_headers]\nA = 'b'\n";
        dir.file(TOML_FILE, text);
        let start = Start { dir: Some(&dir), ..Start::default() };
        assert_eq!(start.value("workers"), Value::Int(3));
        assert_eq!(start.value("threads"), Value::Int(2));
        let pair = ("A".to_string(), "b".to_string());
        assert_eq!(start.value("secure_scheme_headers"), Value::Pairs(vec![pair]));
        let label = dir.0.join(TOML_FILE).display().to_string();
        assert_eq!(
            start.warnings(),
            [
                format!("{label}: unknown setting 'wrokers' ignored (did you mean 'workers'?)"),
                format!("{label}: unknown setting 'zzz' ignored"),
            ]
        );
    }

    #[test]
    fn wrong_toml_names_the_line() {
        let dir = Dir::new("wrong");
        let path = dir.file(TOML_FILE, "workers = 3\nthreads = = 2\n");
        let start = Start { dir: Some(&dir), ..Start::default() };
        let (sentence, code) = start.refused();
        assert!(sentence.starts_with(&format!("{path}:2: ")), "{sentence}");
        assert!(!sentence.contains('\n'));
        assert_eq!(code, 1);
    }

    #[test]
    fn a_file_that_is_not_text_is_an_error() {
        let dir = Dir::new("binary");
        fs::write(dir.0.join(TOML_FILE), b"\xff").unwrap();
        let start = Start { dir: Some(&dir), ..Start::default() };
        let (sentence, code) = start.refused();
        assert!(sentence.starts_with("config file /"), "{sentence}");
        assert!(sentence.ends_with("(--config)"), "{sentence}");
        assert_eq!(code, 1);
    }

    #[test]
    fn warnings_about_a_python_file() {
        let other = |what: &str| Raw::Other(what.to_string());
        let start = Start {
            line: "-c python:conf",
            python: vec![
                ("post_fork", Raw::Callable("<function post_fork>".to_string())),
                ("reload", Raw::Bool(false)),
                ("wrokers", Raw::Int(3)),
                ("thread", other("<module 'thread'>")),
                ("_theads", Raw::Int(1)),
                ("WORKER", Raw::Int(1)),
                ("cores", Raw::Int(1)),
                ("config", Raw::Int(1)),
            ],
            ..Start::default()
        };
        assert_eq!(start.warnings(), ["python:conf: 'wrokers' is no setting (did you mean 'workers'?)"]);
    }

    #[test]
    fn help_and_version_are_not_errors() {
        assert!(matches!(parse(&["-h".to_string()]), Ok(Parsed::Help(_))));
        let version = ["--version".to_string()];
        assert!(matches!(parse(&version), Ok(Parsed::Version)));
    }

    #[test]
    fn changes_between_two_sets() {
        let one = Settings::defaults();
        let start = Start { line: "-w 2 -D", ..Start::default() };
        let two = start.gather().unwrap().settings;
        let names: Vec<_> = one.changes(&two).map(|opt| opt.name).collect();
        assert_eq!(names, ["workers", "daemon"]);
        assert_eq!(one.changes(&one).count(), 0);
    }
}
