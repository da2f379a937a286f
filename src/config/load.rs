//! From text to types: every problem is found before any is reported.

use std::fmt;
use std::path::Path;

use clap::error::ErrorKind;
use clap::{Arg, Command, ValueHint};

use super::proxy;
use super::sources::{ENV_FILE, Origin, SourceLayers, Sources, declared, is_secret};
use super::values::without_user_info;
use crate::secret::{HIDDEN, read_text};

/// A group of settings that can be loaded by itself.
pub trait SettingsGroup: clap::Args {
    /// Checks what no value shows alone, and fills in what depends on other values.
    fn check(&mut self, review: &mut Review);
}

/// One setting, to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The variable.
    pub name: String,
    /// Its value, or a stand-in if it is a secret; `None` if it has none.
    pub value: Option<String>,
    /// Its default, if it has one.
    pub default: Option<String>,
    /// Where the value came from.
    pub origin: Origin,
    /// One line about what it does.
    pub help: String,
}

/// Something wrong with one variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The variable.
    pub variable: String,
    /// What is wrong with it.
    pub text: String,
}

/// Everything that is wrong with the configuration, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// What the process exits with: `EX_CONFIG` of sysexits.h, so that systemd does not start it again.
    pub const EXIT_CODE: u8 = 78;

    /// One that shows itself only when the agent begins.
    pub fn of(variable: &str, text: impl Into<String>) -> Self {
        Self(vec![Problem { variable: variable.to_owned(), text: text.into() }])
    }

    /// Each problem, in the order of the settings.
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

/// What is known so far about the settings: their values' origins, what is wrong, what is odd.
#[derive(Debug, Default)]
pub struct Review {
    pub(super) settings: Vec<Setting>,
    pub(super) warnings: Vec<String>,
    /// Variables that name proxies, which are no settings of ours alone.
    pub(super) proxy_variables: Vec<proxy::Variable>,
    problems: Vec<Problem>,
}

impl Review {
    /// Something is wrong. Said once for each variable: what follows from the first problem is no news.
    pub(super) fn problem(&mut self, variable: &str, text: impl Into<String>) {
        if !self.problems.iter().any(|known| known.variable == variable) {
            self.problems.push(Problem { variable: variable.to_owned(), text: text.into() });
        }
    }

    /// Something is odd, but the agent can run.
    pub(super) fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// What is odd about the settings.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether no problem is known.
    pub(super) fn is_good(&self) -> bool {
        self.problems.is_empty()
    }

    /// Whether anyone set the variable.
    pub(super) fn is_set(&self, variable: &str) -> bool {
        self.settings.iter().any(|setting| setting.name == variable && setting.origin != Origin::Default)
    }

    /// The value that was found after all, where it follows from another variable.
    pub(super) fn derived(&mut self, variable: &str, value: &str) {
        if let Some(setting) = self.settings.iter_mut().find(|setting| setting.name == variable) {
            setting.value = Some(value.to_owned());
        }
    }

    /// A file that will be needed must be there now.
    pub(super) fn readable(&mut self, variable: &str, path: Option<&Path>) {
        if let Some(path) = path
            && let Err(e) = read_text(path)
        {
            self.problem(variable, format!("cannot read {}: {e}", path.display()));
        }
    }

    /// A certificate and its private key are of use only together.
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
/// What was odd, and each setting's origin, are in the [`Review`].
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
    // Every argument was parsed before, so that this can only fail by a mistake in the declarations.
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

/// Finds one setting's value and notes what there is to say about it. Gives the text that certainly parses.
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

/// Notes what the sources say of proxies.
fn proxy_variables(layers: &SourceLayers, review: &mut Review) {
    for (name, help) in proxy::VARIABLES {
        let Some((spelling, found)) = layers.shared(name) else { continue };
        let variable = proxy::Variable { name, spelling, text: found.text, origin: found.origin };
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

/// Lets a group be checked as a whole although a required value is missing. Never leaves [`load`]: there is a problem.
fn stand_in(arg: &Arg) -> String {
    let text = if arg.get_value_hint() == ValueHint::Url { "https://unset.invalid" } else { "unset" };
    text.to_owned()
}

/// Parses one value alone, because clap stops at the first that is wrong.
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
