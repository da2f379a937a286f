//! The sources of values: flags before the environment before `.env`, and files for secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use clap::builder::ValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{Config, dotenv, spelling};
use crate::secret::{Secret, read_text};

/// The source of a setting's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// The environment.
    Environment,
    /// The `.env` file.
    Dotenv,
    /// The file named by `X_FILE`.
    File(PathBuf),
    /// A systemd credential.
    Credential,
    /// The state directory provided by systemd.
    StateDirectory,
    /// Not set.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment => f.write_str("environment"),
            Self::Dotenv => f.write_str(".env"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Credential => f.write_str("systemd credential"),
            Self::StateDirectory => f.write_str("STATE_DIRECTORY"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A flag for every variable: `--server-id` for `SERVER_ID`. Flatten it into a command line.
///
/// Values stay as typed. [`Config::load`] checks them together with everything else.
#[derive(Clone, Default)]
pub struct Flags(BTreeMap<String, String>);

impl Flags {
    /// These flags, plus those of `others` that are not set here.
    #[must_use]
    pub fn or(mut self, others: Self) -> Self {
        for (name, value) in others.0 {
            self.0.entry(name).or_insert(value);
        }
        self
    }
}

impl Flags {
    /// Whether they select an agent: all flags do except those for the token.
    pub fn name_an_agent(&self) -> bool {
        self.0.keys().any(|name| !name.starts_with("ADMIN_TOKEN"))
    }

    /// These flags, with `variable` set to `value` if there is one.
    #[must_use]
    pub fn with(mut self, variable: &str, value: Option<String>) -> Self {
        self.0.extend(value.map(|value| (variable.to_owned(), value)));
        self
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for arg in flag_args() {
            let name = arg.get_id().as_str();
            if matches.value_source(name) == Some(ValueSource::CommandLine)
                && let Some(value) = matches.get_one::<String>(name)
            {
                self.0.insert(name.to_owned(), value.clone());
            }
        }
        Ok(())
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        command.args(flag_args())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// Every setting as a clap argument, with the flag of its variable.
pub(super) fn declared<T: clap::Args>() -> Vec<Arg> {
    let command = T::augment_args(Command::new("settings"));
    let with_flag = |arg: &Arg| {
        let is_choice = !arg.get_possible_values().is_empty();
        // A boolean takes a value too: its default is not always `false`.
        arg.clone().long(flag_of(arg.get_id().as_str())).action(ArgAction::Set).ignore_case(is_choice)
    };
    command.get_arguments().map(with_flag).collect()
}

/// The same arguments as unchecked text, plus `--x-file` for each secret.
fn flag_args() -> Vec<Arg> {
    let mut args: Vec<Arg> = Vec::new();
    for arg in declared::<Config>() {
        let name = arg.get_id().as_str().to_owned();
        if is_secret(&arg) {
            let file = Arg::new(file_variable(&name))
                .long(flag_of(&file_variable(&name)))
                .value_name("PATH")
                .help(format!("File with {name}"));
            args.push(match arg.get_help_heading() {
                Some(heading) => file.help_heading(heading.to_owned()),
                None => file,
            });
        }
        let choices: Vec<_> = arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
        let form = if choices.is_empty() { name } else { choices.join("|") };
        args.push(arg.required(false).value_parser(ValueParser::string()).value_name(form));
    }
    args.into_iter().map(|arg| arg.hide_possible_values(true)).collect()
}

/// Whether the setting's field is a [`Secret`].
pub(super) fn is_secret(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == ValueParser::from(clap::value_parser!(Secret)).type_id()
}

/// Every known name in `.env`.
fn known_names() -> BTreeSet<String> {
    let settings = declared::<Config>();
    let of_setting = settings.iter().flat_map(|arg| {
        let name = arg.get_id().as_str().to_owned();
        let file = is_secret(arg).then(|| file_variable(&name));
        let aliases = arg.get_all_aliases().unwrap_or_default().into_iter().map(variable_of);
        aliases.chain(file).chain([name])
    });
    of_setting.collect()
}

fn file_variable(name: &str) -> String {
    format!("{name}_FILE")
}

fn flag_of(variable: &str) -> String {
    variable.to_ascii_lowercase().replace('_', "-")
}

fn variable_of(flag: &str) -> String {
    flag.to_ascii_uppercase().replace('-', "_")
}

/// Everything that settings are read from: a test can supply all of it.
#[derive(Clone, Default)]
pub struct Sources {
    /// The flags of the command line.
    pub flags: Flags,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// The `.env` file, which need not exist.
    pub dotenv: Option<PathBuf>,
    /// Whether the file must exist: somebody named it.
    pub dotenv_required: bool,
}

/// Names a file to read instead of `.env`. Not a setting: it says where to find settings.
pub(super) const ENV_FILE: &str = "DATAPLANE_ENV_FILE";

impl Sources {
    /// The environment of this process, and `.env` in the working directory or the file named by `DATAPLANE_ENV_FILE`.
    pub fn of_process(flags: Flags) -> Self {
        // Invalid UTF-8 becomes U+FFFD. Such a value is later refused by its variable's name.
        let text = |s: std::ffi::OsString| s.to_string_lossy().into_owned();
        let env = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        let named = std::env::var_os(ENV_FILE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let dotenv_required = named.is_some();
        Self { flags, env, dotenv: named.or_else(|| Some(PathBuf::from(".env"))), dotenv_required }
    }
}

/// A value as text, and its source.
pub(super) struct SourceValue {
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// The sources as three maps. The first with a value wins; an empty value counts as unset.
pub(super) struct SourceLayers {
    layers: [(Origin, BTreeMap<String, String>); 3],
    credentials: Option<PathBuf>,
    state_directory: Option<PathBuf>,
    /// The skipped lines of `.env`.
    pub(super) skipped_lines: Vec<usize>,
}

impl SourceLayers {
    pub(super) fn read(sources: &Sources) -> io::Result<Self> {
        let env: BTreeMap<_, _> = sources.env.iter().cloned().collect();
        let text = match sources.dotenv.as_deref().map(read_text) {
            Some(Err(e)) if e.kind() != io::ErrorKind::NotFound || sources.dotenv_required => return Err(e),
            Some(Ok(text)) => text,
            _ => String::new(),
        };
        let dotenv = dotenv::parse(&text, |name| env.get(name).cloned());
        let directory = |name: &str| env.get(name).filter(|path| !path.is_empty());
        Ok(Self {
            credentials: directory("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            // systemd separates several state directories with colons; the first is the agent's.
            state_directory: directory("STATE_DIRECTORY")
                .and_then(|all| all.split(':').next())
                .map(PathBuf::from),
            skipped_lines: dotenv.skipped,
            layers: [
                (Origin::Flag, sources.flags.0.clone()),
                (Origin::Environment, env),
                (Origin::Dotenv, dotenv.values),
            ],
        })
    }

    /// Unknown names in `.env` that resemble a setting, each with that setting. Unknown names in the environment are ignored.
    pub(super) fn misspelt(&self) -> Vec<(&str, String)> {
        let [.., (_, dotenv)] = &self.layers;
        let known = known_names();
        let unknown = dotenv.keys().filter(|name| !known.contains(*name));
        unknown
            .filter_map(|name| Some((name.as_str(), spelling::nearest(name, &known)?.to_owned())))
            .collect()
    }

    /// The setting's value, if it is set. An error is a problem with this setting.
    pub(super) fn find(&self, arg: &Arg) -> Result<Option<SourceValue>, String> {
        let name = arg.get_id().as_str();
        let mut names = vec![name.to_owned()];
        names.extend(arg.get_all_aliases().unwrap_or_default().into_iter().map(variable_of));
        let value = self.value(&names);
        if is_secret(arg) {
            return self.secret(name, value);
        }
        let state_directory = self.state_directory.as_deref().filter(|_| name == "OUTBOX_DIR");
        let found =
            value.map(|found| SourceValue { text: found.text.trim().to_owned(), ..found }).or_else(|| {
                let text = state_directory?.join("outbox").to_string_lossy().into_owned();
                Some(SourceValue { text, origin: Origin::StateDirectory })
            });
        match found {
            Some(found) if found.text.contains('\u{fffd}') => Err("is not valid UTF-8".to_owned()),
            found => Ok(found),
        }
    }

    /// A variable that other programs also read, in upper or lower case: its name as spelled here, and its value.
    pub(super) fn shared(&self, name: &str) -> Option<(String, SourceValue)> {
        let spellings = [name.to_owned(), name.to_ascii_lowercase()];
        self.layers.iter().flat_map(|layer| spellings.iter().map(move |name| (layer, name))).find_map(
            |((origin, values), name)| {
                let text = values.get(name).map(|text| text.trim()).filter(|text| !text.is_empty())?;
                Some((name.clone(), SourceValue { text: text.to_owned(), origin: origin.clone() }))
            },
        )
    }

    fn value(&self, names: &[String]) -> Option<SourceValue> {
        self.layers.iter().find_map(|(origin, values)| {
            let text =
                names.iter().find_map(|name| values.get(name).filter(|text| !text.trim().is_empty()))?;
            Some(SourceValue { text: text.clone(), origin: origin.clone() })
        })
    }

    /// A secret: its own value, the content of the file named for it, or systemd's credential.
    fn secret(&self, name: &str, value: Option<SourceValue>) -> Result<Option<SourceValue>, String> {
        let variable = file_variable(name);
        let file = self.value(std::slice::from_ref(&variable));
        if value.is_some() && file.is_some() {
            return Err(format!("set, and {variable} too: set only one"));
        }
        if let Some(file) = file {
            let path = PathBuf::from(file.text.trim());
            return read_secret(&path).map(|text| Some(SourceValue { text, origin: Origin::File(path) }));
        }
        let credential = self.credentials.as_ref().map(|dir| dir.join(name.to_ascii_lowercase()));
        match (value, credential) {
            (None, Some(path)) if path.exists() => {
                read_secret(&path).map(|text| Some(SourceValue { text, origin: Origin::Credential }))
            }
            (Some(value), _) if value.text.contains('\u{fffd}') => Err("is not valid UTF-8".to_owned()),
            // It would end a path early; see `Secret::into_argument`.
            (Some(value), _) if value.text.contains('\0') => Err("contains a NUL character".to_owned()),
            (value, _) => Ok(value),
        }
    }
}

fn read_secret(path: &Path) -> Result<String, String> {
    let secret = Secret::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    Ok(secret.into_argument())
}
