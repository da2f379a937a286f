//! A secret value that is never shown. It knows its source, so that a changed file can be read again.

pub mod expiry;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::OFlags;

/// Far more than any key, certificate or `.env` file; limits a mistaken path such as `/dev/zero`.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Separates value and path in one string: neither a path nor a variable can contain it.
const SEPARATOR: char = '\0';

/// Shown in place of a secret.
pub(crate) const HIDDEN: &str = "[hidden]";

/// The source of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// Given directly, by flag or variable.
    Value,
    /// Read from this file, which is named by the variable `X_FILE` or is a systemd credential.
    File(PathBuf),
}

/// A secret value. Neither `Debug` nor `Display` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    value: String,
    source: SecretSource,
}

impl Secret {
    /// A secret given directly.
    pub fn new(value: impl Into<String>) -> Self {
        Self { value: value.into(), source: SecretSource::Value }
    }

    /// Reads a secret from a file, without trailing line ends.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = read_text(path)?;
        let value = text.trim_end_matches(['\r', '\n']);
        if value.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty"));
        }
        if value.contains(SEPARATOR) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file contains a NUL character"));
        }
        Ok(Self { value: value.to_owned(), source: SecretSource::File(path.to_owned()) })
    }

    /// The value itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.value
    }

    /// The file that holds it.
    pub fn file(&self) -> Option<&Path> {
        match &self.source {
            SecretSource::Value => None,
            SecretSource::File(path) => Some(path),
        }
    }

    /// The source of the secret.
    pub fn source(&self) -> &SecretSource {
        &self.source
    }

    /// Joins value and source in one string, which clap carries from the sources to the typed field.
    pub(crate) fn into_argument(self) -> String {
        match self.source {
            SecretSource::Value => self.value,
            SecretSource::File(path) => format!("{}{SEPARATOR}{}", path.display(), self.value),
        }
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    /// The inverse of [`Secret::into_argument`]; a plain string is a secret given directly.
    fn from_str(argument: &str) -> Result<Self, Self::Err> {
        Ok(match argument.split_once(SEPARATOR) {
            Some((path, value)) => {
                Self { value: value.to_owned(), source: SecretSource::File(PathBuf::from(path)) }
            }
            None => Self::new(argument),
        })
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// Reads a small text file.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let bytes = read_small(path)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text"))
}

/// Reads a small regular file. A larger file is an error, and so is a pipe: reading it would block, and a second read would
/// find nothing.
pub fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let open_at_once = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(open_at_once).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_shown_nowhere() {
        let secret: Secret = "hunter2".parse().unwrap();
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "[hidden] [hidden] Some([hidden])");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn a_file_loses_its_line_end_and_keeps_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, " a\nb \r\n\n").unwrap();
        let secret = Secret::read(&path).unwrap();
        assert_eq!(secret.expose(), " a\nb ");
        assert_eq!(secret.source(), &SecretSource::File(path));
        assert_eq!(secret.clone().into_argument().parse::<Secret>(), Ok(secret));
    }

    #[test]
    fn a_file_that_is_empty_endless_or_binary_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for bytes in [&b"\n"[..], b"a\0b", b"\xff\xfe", &vec![b'a'; (1 << 20) + 1]] {
            std::fs::write(&path, bytes).unwrap();
            assert!(Secret::read(&path).is_err(), "{} bytes", bytes.len());
        }
        assert!(Secret::read(Path::new("/dev/zero")).is_err());
    }

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for path in [&pipe, dir.path(), Path::new("/dev/null")] {
            let error = Secret::read(path).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{}: {error}", path.display());
        }
    }
}
