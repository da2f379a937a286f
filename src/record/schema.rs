//! Defines a message's fields as a table, and applies such tables.

use std::borrow::Cow;

use super::json::{self, Malformed, Members, Token};
use super::{number, time};

/// A known field.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) rule: FieldRule,
    pub(super) absent: Absent,
}

/// What a field's value must be.
pub(super) enum FieldRule {
    /// A string that is not empty.
    Id,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// A number of 0 or more within the range of a double.
    Number,
    /// An integer of any length, at least this (0 or 1).
    Integer(u8),
    /// RFC 3339, or a Unix time.
    Time,
    /// Any object.
    Object,
}

/// What an absent field means.
pub(super) enum Absent {
    /// The message is rejected.
    Rejected,
    /// This JSON is sent instead.
    Default(&'static str),
    /// The time of acceptance is sent instead.
    Now,
    /// Nothing is sent; `null` counts as absent.
    Fine,
}

impl Field {
    pub(super) const fn required(name: &'static str, rule: FieldRule) -> Self {
        Self { name, rule, absent: Absent::Rejected }
    }

    pub(super) const fn optional(name: &'static str, rule: FieldRule) -> Self {
        Self { name, rule, absent: Absent::Fine }
    }

    /// The JSON to send for a value; otherwise what was found.
    fn normalised<'a>(&self, value: Token<'a>) -> Result<Cow<'a, str>, &'static str> {
        let as_it_stands = Ok(Cow::Borrowed(value.raw));
        match self.rule {
            FieldRule::Id if value.string()?.is_empty() => Err("an empty string"),
            FieldRule::Id => as_it_stands,
            FieldRule::OneOf(options) if options.contains(&&*value.string()?) => as_it_stands,
            FieldRule::OneOf(_) => Err("another string"),
            FieldRule::Number => number::number(value),
            FieldRule::Integer(least) => number::integer(value, least),
            FieldRule::Time => time::moment(value).map(|moment| moment.sent),
            FieldRule::Object if value.raw.starts_with('{') => as_it_stands,
            FieldRule::Object => Err(value.what()),
        }
    }

    fn complaint(&self, found: &str) -> String {
        let must = match self.rule {
            FieldRule::Id => "a string that is not empty".to_owned(),
            FieldRule::OneOf(options) => format!("one of {}", options.join(", ")),
            FieldRule::Number => "a number of 0 or more".to_owned(),
            FieldRule::Integer(least) => format!("an integer of {least} or more"),
            FieldRule::Time => "a time in RFC 3339 or as Unix seconds".to_owned(),
            FieldRule::Object => "an object".to_owned(),
        };
        format!("{}: must be {must}, found {found}", self.name)
    }
}

/// The known fields of a kind of message.
pub(super) struct Schema<const N: usize> {
    pub(super) fields: [Field; N],
    /// Fields that the agent writes: a producer's values are dropped.
    pub(super) ours: &'static [&'static str],
}

/// The values found for a schema's fields; the last one given for each.
pub(super) struct FieldValues<'a, const N: usize> {
    pub(super) values: [Option<Token<'a>>; N],
    pub(super) correlation: Option<Token<'a>>,
    pub(super) traceparent: Option<Token<'a>>,
    /// Something must not be sent unchanged: a repeated field, or a field that the agent writes.
    surplus: bool,
    unknown: bool,
}

impl<const N: usize> FieldValues<'_, N> {
    /// Whether the checked message can be sent with its own bytes.
    pub(super) fn stands(&self, values: &Values<'_, N>, drop_unknown: bool) -> bool {
        let left_out = self.surplus || (self.unknown && drop_unknown);
        let normalised = self
            .values
            .iter()
            .zip(values)
            .any(|(given, sent)| given.is_some() && matches!(sent, Some(Cow::Owned(_))));
        !left_out && !normalised
    }
}

/// The checked value, or all of its faults together with those in `beside`.
pub(super) fn unless_faulty<T>(checked: Result<T, Vec<String>>, beside: Vec<String>) -> Result<T, String> {
    match checked {
        Ok(checked) if beside.is_empty() => Ok(checked),
        checked => {
            let faults = checked.err().into_iter().flatten().chain(beside);
            Err(faults.collect::<Vec<_>>().join("; "))
        }
    }
}

/// The JSON to send for each field of a schema, given or default.
pub(super) type Values<'a, const N: usize> = [Option<Cow<'a, str>>; N];

impl<const N: usize> Schema<N> {
    /// Parses a text, which must be one JSON object, and sorts its members.
    pub(super) fn find<'a>(&self, text: &'a str) -> Result<FieldValues<'a, N>, Malformed> {
        let mut found = FieldValues {
            values: [None; N],
            correlation: None,
            traceparent: None,
            surplus: false,
            unknown: false,
        };
        for member in Members::of(text)? {
            let member = member?;
            let name = member.name();
            if let Some(field) = self.position(&name) {
                found.surplus |= found.values[field].replace(member.value).is_some();
            } else if self.ours.contains(&&*name) {
                found.surplus = true;
            } else {
                found.unknown = true;
                match &*name {
                    "correlation_id" => found.correlation = Some(member.value),
                    "traceparent" => found.traceparent = Some(member.value),
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| field.name == name)
    }

    /// The value of a required field.
    pub(super) fn required<'a>(&self, found: &FieldValues<'a, N>, field: usize) -> Result<Token<'a>, String> {
        found.values[field].ok_or_else(|| format!("{}: missing", self.fields[field].name))
    }

    /// Checks every field and normalises its value; otherwise returns all faults, one per field. `now` is the time of
    /// acceptance as JSON.
    pub(super) fn check<'a>(
        &self,
        found: &FieldValues<'a, N>,
        now: &'a str,
    ) -> Result<Values<'a, N>, Vec<String>> {
        let mut values = [const { None }; N];
        let mut faults = Vec::new();
        for (i, field) in self.fields.iter().enumerate() {
            values[i] = match (&field.absent, found.values[i]) {
                (Absent::Fine, None) => None,
                (Absent::Fine, Some(value)) if value.is_null() => None,
                (Absent::Default(json), None) => Some(Cow::Borrowed(*json)),
                (Absent::Now, None) => Some(Cow::Borrowed(now)),
                (Absent::Rejected, None) => {
                    faults.push(format!("{}: missing", field.name));
                    None
                }
                (_, Some(value)) => match field.normalised(value) {
                    Ok(sent) => Some(sent),
                    Err(found) => {
                        faults.push(field.complaint(found));
                        None
                    }
                },
            };
        }
        if faults.is_empty() { Ok(values) } else { Err(faults) }
    }

    /// Rewrites a checked message in its own order, without the closing brace and without defaults.
    pub(super) fn rewrite(
        &self,
        text: &str,
        found: &FieldValues<'_, N>,
        values: &Values<'_, N>,
        drop_unknown: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        out.push(b'{');
        for member in Members::of(text)? {
            let member = member?;
            let name = member.name();
            if let Some(field) = self.position(&name) {
                let last = found.values[field].is_some_and(|value| value.at == member.value.at);
                if let (true, Some(value)) = (last, &values[field]) {
                    json::write_member(out, self.fields[field].name, value);
                }
            } else if !drop_unknown && !self.ours.contains(&&*name) {
                json::copy_member(out, member.key, member.value.raw);
            }
        }
        Ok(())
    }

    /// The absent fields, with the values sent for them.
    pub(super) fn defaults<'v>(
        &self,
        found: &FieldValues<'_, N>,
        values: &'v Values<'_, N>,
    ) -> impl Iterator<Item = (&'static str, &'v str)> {
        self.fields.iter().zip(found.values).zip(values).filter_map(|((field, given), value)| {
            if given.is_some() { None } else { Some((field.name, value.as_deref()?)) }
        })
    }
}
