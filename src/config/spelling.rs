//! Suggests the setting that a misspelt name was meant to be.

use std::collections::BTreeSet;

/// The minimum length: shorter names resemble each other by chance.
const SHORTEST: usize = 6;
/// From this length on, a name may have two errors.
const LONG: usize = 9;

/// The known name closest to this one, if close enough: one or two typing errors, or a truncated end.
pub(super) fn nearest<'a>(name: &str, known: &'a BTreeSet<String>) -> Option<&'a str> {
    let length = name.chars().count();
    if length < SHORTEST {
        return None;
    }
    let slips = if length < LONG { 1 } else { 2 };
    let near = known
        .iter()
        .map(|known| (strsim::osa_distance(name, known), known))
        .filter(|(slips_of, _)| *slips_of <= slips);
    let cut = || known.iter().find(|known| length >= LONG && known.starts_with(&format!("{name}_")));
    near.min().map(|(_, known)| known).or_else(cut).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_setting_is_recognised_and_a_foreign_name_is_not() {
        let known: BTreeSet<String> = [
            "DRAIN_RATE_LIMIT",
            "REDIS_PORT",
            "REDIS_HOST",
            "SERVER_ID",
            "DEBUG",
            "DATAPLANE_PORT",
            "OUTBOX_MAX_BYTES",
        ]
        .map(str::to_owned)
        .into();
        for (name, meant) in [
            ("DRAIN_RATE_LIMT", "DRAIN_RATE_LIMIT"),
            ("DRIAN_RATE_LMIIT", "DRAIN_RATE_LIMIT"),
            ("REDIS_PROT", "REDIS_PORT"),
            ("SERVERID", "SERVER_ID"),
            ("OUTBOX_MAX", "OUTBOX_MAX_BYTES"),
        ] {
            assert_eq!(nearest(name, &known), Some(meant), "{name}");
        }
        for name in
            ["", "DEBUF", "PATH", "REDIS_USER", "DATABASE_PORT", "HTTP_PROXY", "SERVER_NAME", "POSTGRES_PORT"]
        {
            assert_eq!(nearest(name, &known), None, "{name}");
        }
    }
}
