//! Parses settings from text, and finds every problem before it reports any.

use std::fmt;
use std::path::Path;

use clap::error::ErrorKind;
use clap::{Arg, Command, ValueHint};

use super::proxy::variables::{self as proxy, Variable};
use super::sources::{ENV_FILE, Origin, SourceLayers, Sources, declared, is_secret};
use super::values::without_user_info;
use crate::secret::{HIDDEN, read_text};

/// A group of settings that can be loaded on its own.
pub trait SettingsGroup: clap::Args {
    /// Checks what involves several values, and fills in values that depend on others.
    fn check(&mut self, review: &mut Review);
}

/// A setting as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The variable.
    pub name: String,
    /// Its value, or a placeholder for a secret; `None` if unset.
    pub value: Option<String>,
    /// Its default, if any.
    pub default: Option<String>,
    /// The source of the value.
    pub origin: Origin,
    /// A one-line description.
    pub help: String,
}

/// A problem with one variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The variable.
    pub variable: String,
    /// What is wrong with it.
    pub text: String,
}

/// Every problem of the configuration, one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The exit code of the process: `EX_CONFIG` of sysexits.h, on which systemd does not restart it.
    pub const EXIT_CODE: u8 = 78;

    /// A problem that only appears when the agent starts.
    pub fn of(variable: &str, text: impl Into<String>) -> Self {
        Self(vec![Problem { variable: variable.to_owned(), text: text.into() }])
    }

    /// The problems, in the order of the settings.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Problem { variable, text }) in self.0.iter().enumerate() {
            let line_end = if i == 0 { "" } else { "\n" };
            write!(f, "{line_end}{variable}: {text}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The findings about the settings so far: each value's source, problems and warnings.
#[derive(Debug, Default)]
pub struct Review {
    pub(super) settings: Vec<Setting>,
    pub(super) warnings: Vec<String>,
    /// The proxy variables. They are shared with other programs and are not settings.
    pub(super) proxy_variables: Vec<Variable>,
    problems: Vec<Problem>,
}

impl Review {
    /// Reports a problem. A variable's first problem counts; the rest usually follow from it.
    pub(super) fn problem(&mut self, variable: &str, text: impl Into<String>) {
        if !self.problems.iter().any(|known| known.variable == variable) {
            self.problems.push(Problem { variable: variable.to_owned(), text: text.into() });
        }
    }

    /// Reports something odd that does not stop the agent.
    pub(super) fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// The warnings.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether there are no problems so far.
    pub(super) fn is_good(&self) -> bool {
        self.problems.is_empty()
    }

    /// Whether anything but the default sets the variable.
    pub(super) fn is_set(&self, variable: &str) -> bool {
        self.settings.iter().any(|setting| setting.name == variable && setting.origin != Origin::Default)
    }

    /// Replaces the value shown, for a setting derived from another variable.
    pub(super) fn derived(&mut self, variable: &str, value: &str) {
        if let Some(setting) = self.settings.iter_mut().find(|setting| setting.name == variable) {
            setting.value = Some(value.to_owned());
        }
    }

    /// Checks that a file can be read now, although it is used only later.
    pub(super) fn readable(&mut self, variable: &str, path: Option<&Path>) {
        if let Some(path) = path
            && let Err(e) = read_text(path)
        {
            self.problem(variable, format!("cannot read {}: {e}", path.display()));
        }
    }

    /// Checks that a certificate and its private key are set together.
    pub(super) fn pair(&mut self, certificate: (&str, Option<&Path>), key: (&str, Option<&Path>)) {
        self.readable(certificate.0, certificate.1);
        self.readable(key.0, key.1);
        for ((_, path), (missing, other)) in [(certificate, key), (key, certificate)] {
            if path.is_some() && other.is_none() {
                self.problem(missing, "not set, but required because its counterpart is set");
            }
        }
    }
}

/// Reads a group's settings from the sources.
///
/// The [`Review`] collects the warnings and the source of each setting.
pub fn load<T: SettingsGroup>(sources: &Sources) -> Result<(T, Review), Problems> {
    let mut review = Review::default();
    let layers = SourceLayers::read(sources).map_err(|e| {
        let variable = if sources.dotenv_required { ENV_FILE } else { ".env" };
        Problems::of(variable, format!("cannot be read: {e}"))
    })?;
    if !layers.skipped_lines.is_empty() {
        review.warn(format!(".env: skipped lines that are not settings: {:?}", layers.skipped_lines));
    }
    for (name, known) in layers.misspelt() {
        review.warn(format!(".env: unknown setting {name} ignored: did you mean {known}?"));
    }
    let args = declared::<T>();
    let mut words = Vec::new();
    for arg in &args {
        let argument = setting(arg, &layers, &mut review);
        words.extend(argument.map(|text| argument_of(arg, &text)));
    }
    proxy_variables(&layers, &mut review);
    let command = Command::new("settings").no_binary_name(true).args(args);
    // Every argument has been parsed already: this fails only if the declarations are wrong.
    let parsed = command.try_get_matches_from(words).and_then(|matches| T::from_arg_matches(&matches));
    let mut group = parsed.map_err(|e| Problems::of("settings", e.kind().to_string()))?;
    group.check(&mut review);
    if review.problems.is_empty() {
        return Ok((group, review));
    }
    let position = |problem: &Problem| review.settings.iter().position(|s| s.name == problem.variable);
    let mut problems = review.problems.clone();
    problems.sort_by_key(position);
    Err(Problems(problems))
}

/// Finds a setting's value and reports on it. Returns text that is certain to parse.
fn setting(arg: &Arg, layers: &SourceLayers, review: &mut Review) -> Option<String> {
    let name = arg.get_id().as_str();
    let default = arg.get_default_values().first().map(|text| text.to_string_lossy().into_owned());
    let found = layers.find(arg).and_then(|found| match found {
        Some(found) => judge(arg, &found.text).map(|()| Some(found)),
        None if arg.is_required_set() => Err("required, but not set".to_owned()),
        None => Ok(None),
    });
    let (text, origin) = match found {
        Ok(Some(found)) => (Some(found.text), found.origin),
        Ok(None) => (default.clone(), Origin::Default),
        Err(text) => {
            review.problem(name, text);
            (default.clone().or_else(|| arg.is_required_set().then(|| stand_in(arg))), Origin::Default)
        }
    };
    let is_secret = is_secret(arg);
    if is_secret && origin == Origin::Flag {
        review.warn(format!("{name}: every user of this machine can read a secret on the command line"));
    }
    let shown = |text: &String| if is_secret { HIDDEN.to_owned() } else { without_user_info(text) };
    review.settings.push(Setting {
        name: name.to_owned(),
        value: text.as_ref().map(shown),
        default,
        origin,
        help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
    });
    text
}

/// Collects the proxy variables from the sources.
fn proxy_variables(layers: &SourceLayers, review: &mut Review) {
    for (name, help) in proxy::VARIABLES {
        let Some((spelling, found)) = layers.shared(name) else { continue };
        let variable = Variable { name, spelling, text: found.text, origin: found.origin };
        review.settings.push(Setting {
            name: variable.spelling.clone(),
            value: Some(variable.shown()),
            default: None,
            origin: variable.origin.clone(),
            help: help.to_owned(),
        });
        review.proxy_variables.push(variable);
    }
}

/// A value for a required setting that is missing, for checking the group as a whole. Never leaves [`load`]: that fails.
fn stand_in(arg: &Arg) -> String {
    let text = if arg.get_value_hint() == ValueHint::Url { "https://unset.invalid" } else { "unset" };
    text.to_owned()
}

/// Parses a single value: clap stops at the first error.
fn judge(arg: &Arg, text: &str) -> Result<(), String> {
    let command = Command::new("setting").no_binary_name(true).arg(arg.clone());
    command.try_get_matches_from([argument_of(arg, text)]).map(drop).map_err(|error| match error.kind() {
        ErrorKind::InvalidValue => {
            let choices: Vec<_> = arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
            format!("{text:?} is not one of {}", choices.join(", "))
        }
        kind => std::error::Error::source(&error).map_or_else(|| kind.to_string(), ToString::to_string),
    })
}

fn argument_of(arg: &Arg, text: &str) -> String {
    format!("--{}={text}", arg.get_long().unwrap_or_default())
}
