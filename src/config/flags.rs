//! Owns: the command line that follows from the table.
//! Rule: one argument for a row that has a flag, under its section's heading.
//! Never: reads a value; that is `kinds`.

use super::kinds::Kind;
use super::table::{options, Opt, CONFIGURATION};
use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Command};

/// Ids of the positional arguments: the application, and whatever else there is.
pub const APP: &str = "APP";
pub const EXTRA: &str = "EXTRA";

/// The command line: one argument per row that has a flag, under its section's heading.
pub fn command() -> Command {
    let app = Arg::new(APP).help("The application, MODULE:NAME; NAME is 'application' if left out.");
    let extra = Arg::new(EXTRA).num_args(0..).hide(true);
    let version = Arg::new("version")
        .short('v')
        .long("version")
        .action(ArgAction::Version)
        .help_heading(CONFIGURATION)
        .help("Print the version.");
    let help = Arg::new("help")
        .short('h')
        .long("help")
        .action(ArgAction::Help)
        .help_heading(CONFIGURATION)
        .help("Print this.");
    Command::new("rgunicorn")
        .about("Serves a WSGI application over HTTP from several processes.")
        .override_usage("rgunicorn [OPTIONS] [APP]")
        .after_help(AFTER_ALL)
        .version("")
        .no_binary_name(true)
        .disable_version_flag(true)
        .disable_help_flag(true)
        .infer_long_args(true)
        .args_override_self(true)
        .next_line_help(true)
        .max_term_width(80)
        .arg(app)
        .arg(extra)
        .args(options().filter(|opt| !opt.long.is_empty()).map(arg))
        .arg(help)
        .arg(version)
}

const AFTER_ALL: &str = "A value on the command line replaces one from GUNICORN_CMD_ARGS, that one \
     from the config file, that one from the environment.\n\n\
     Commands for a server that runs: 'rgunicorn reload --help', 'rgunicornc --help'.";

fn arg(opt: &'static Opt) -> Arg {
    let action = match opt.kind {
        Kind::Flag { .. } => ArgAction::SetTrue,
        kind if kind.repeats() => ArgAction::Append,
        _ => ArgAction::Set,
    };
    let arg = Arg::new(opt.name)
        .long(opt.long[0])
        .aliases(&opt.long[1..])
        .action(action)
        .help_heading(opt.section)
        .hide(opt.ignored.is_some())
        .help(help(opt));
    let arg = match opt.short {
        Some(short) => arg.short(short),
        None => arg,
    };
    match opt.kind {
        Kind::Flag { .. } => arg,
        Kind::Switch { bare, .. } => {
            arg.value_name(opt.kind.meta()).num_args(0..=1).default_missing_value(bare)
        }
        // `-w -1` must reach the sentence about the number, not be taken for a flag.
        kind => arg.value_name(kind.meta()).allow_negative_numbers(true),
    }
}

/// The help text, with what applies when the option is not given.
fn help(opt: &Opt) -> StyledStr {
    let mut notes = Vec::new();
    if !opt.default.is_empty() && !matches!(opt.kind, Kind::Flag { .. }) {
        notes.push(format!("[default: {}]", opt.default));
    }
    if let Some(env) = opt.env {
        notes.push(format!("[env: {}]", env.name));
    }
    match notes.is_empty() {
        true => StyledStr::from(opt.help),
        false => StyledStr::from(format!("{}\n{}", opt.help, notes.join(" "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_fits_a_terminal_and_is_grouped() {
        command().debug_assert();
        let help = command().render_help().to_string();
        assert!(help.lines().all(|line| line.chars().count() <= 80));
        for opt in options().filter(|opt| !opt.long.is_empty() && opt.ignored.is_none()) {
            assert!(help.contains(&format!("\n{}:\n", opt.section)));
            assert!(help.contains(&opt.flag()));
        }
    }
}
