//! An object's members as another parser reads them.

use std::fmt;

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A name and its value's own text.
pub(super) type Member = (String, String);

/// The members of the one object that a text holds. A name that is no Unicode text is given as it stands.
pub(super) fn members(text: &str) -> Vec<Member> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let members = match deserializer.deserialize_map(Members) {
        Ok(members) => members,
        Err(error) => panic!("{error}: {text}"),
    };
    assert!(deserializer.end().is_ok(), "something follows the object: {text}");
    members
}

/// The last value of that name.
pub(super) fn last<'a>(members: &'a [Member], name: &str) -> Option<&'a str> {
    members.iter().rfind(|(other, _)| other == name).map(|(_, value)| value.as_str())
}

/// The value of that name, which may be there only once.
pub(super) fn only<'a>(members: &'a [Member], name: &str) -> Option<&'a str> {
    let count = members.iter().filter(|(other, _)| other == name).count();
    assert!(count <= 1, "{name} is there {count} times");
    last(members, name)
}

/// The object of these members.
pub(super) fn object<'a>(members: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let members: Vec<_> = members.into_iter().map(|(name, value)| format!("{name:?}:{value}")).collect();
    format!("{{{}}}", members.join(","))
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<Member>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some((name, value)) = map.next_entry::<Box<RawValue>, Box<RawValue>>()? {
            let name = serde_json::from_str(name.get()).unwrap_or_else(|_| name.get().to_owned());
            members.push((name, value.get().to_owned()));
        }
        Ok(members)
    }
}
