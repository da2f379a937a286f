//! Messages of any kind: fields in any order, spelling and repetition, against an oracle that knows the result for each
//! value.

use proptest::prelude::*;

use super::*;

/// A value as pushed, and as it must be sent; `None` if the field rejects it.
type Fate = (&'static str, Option<&'static str>);

const IDS: &[Fate] = &[
    (r#""id-SECRET""#, Some(r#""id-SECRET""#)),
    (r#""a\u002fb ü""#, Some(r#""a\u002fb ü""#)),
    (r#""""#, None),
    (r#""\ud800""#, None),
    ("7", None),
    ("null", None),
];
const CODES: &[Fate] = &[
    (r#""speech_synthesis""#, Some(r#""speech_synthesis""#)),
    (r#""speech\u005fsynthesis""#, Some(r#""speech\u005fsynthesis""#)),
    (r#""SECRET""#, None),
    ("null", None),
];
const NUMBERS: &[Fate] = &[
    ("0", Some("0")),
    ("-0.0", Some("-0.0")),
    ("12.50", Some("12.50")),
    ("18446744073709551616", Some("18446744073709551616")),
    (r#""1.5""#, Some("1.5")),
    ("1e400", None),
    ("-1", None),
    (r#""1,5""#, None),
    ("{}", None),
];
const INTEGERS: &[Fate] = &[
    ("1", Some("1")),
    ("18446744073709551616", Some("18446744073709551616")),
    ("12.0", Some("12")),
    (r#""12""#, Some("12")),
    ("1e3", Some("1000")),
    ("1.5", None),
    ("-3", None),
    (r#""0x1""#, None),
    ("[]", None),
];
const REQUESTED: &[Fate] = &[
    (r#""2026-01-31T10:00:00Z""#, Some(r#""2026-01-31T10:00:00Z""#)),
    (r#""2026-01-31T10:00:00""#, Some(r#""2026-01-31T10:00:00Z""#)),
    ("1769853600", Some(r#""2026-01-31T10:00:00.000000Z""#)),
    (r#""SECRET""#, None),
    ("true", None),
];
const RESPONDED: &[Fate] = &[
    (r#""2026-01-31T11:00:00+01:00""#, Some(r#""2026-01-31T11:00:00+01:00""#)),
    ("1769853600001", Some(r#""2026-01-31T10:00:00.001000Z""#)),
    (r#""2026-01-31""#, None),
];

/// A field, its values, and the default sent if it is absent.
const FIELDS: [(&str, &[Fate], Option<&str>); 10] = [
    ("transaction_id", IDS, None),
    ("api_session_id", IDS, None),
    ("customer_id", IDS, None),
    ("product_code", CODES, Some(r#""speech_transcription""#)),
    ("connection_duration_seconds", NUMBERS, None),
    ("data_bytes_processed", INTEGERS, None),
    ("audio_duration_seconds", NUMBERS, None),
    ("request_count", INTEGERS, Some("1")),
    ("request_timestamp", REQUESTED, None),
    ("response_timestamp", RESPONDED, None),
];
const UNKNOWN: [(&str, &str); 6] = [
    ("more", "1.0e0"),
    (r"m\u006fre", r#"{"a" : [1, 2]}"#),
    ("", "null"),
    ("metadata", r#"{"transaction_id":"inner"}"#),
    ("Customer_id", "\"SECRET\""),
    ("timestamp", "0"),
];

/// One member of a message.
#[derive(Clone, Debug)]
struct AnyMember {
    /// The field's number, or `None` for an unknown field.
    field: Option<usize>,
    name: String,
    value: &'static str,
    fate: Option<&'static str>,
}

fn known(field: usize, valid: bool) -> impl Strategy<Value = AnyMember> {
    let (name, fates, _) = FIELDS[field];
    let fates: Vec<Fate> = fates.iter().filter(|(_, fate)| fate.is_some() || !valid).copied().collect();
    (prop::sample::select(fates), prop::bool::weighted(0.1)).prop_map(move |((value, fate), escape)| {
        let name = if escape { name.replacen('_', r"\u005f", 1) } else { name.to_owned() };
        AnyMember { field: Some(field), name, value, fate }
    })
}

fn unknown() -> impl Strategy<Value = AnyMember> {
    prop::sample::select(&UNKNOWN[..]).prop_map(|(name, value)| AnyMember {
        field: None,
        name: name.to_owned(),
        value,
        fate: Some(value),
    })
}

fn space() -> impl Strategy<Value = &'static str> {
    prop_oneof![6 => Just(""), 1 => Just(" "), 1 => Just("\r\n\t ")]
}

/// A message's members in any order, and the white space between them.
fn message() -> impl Strategy<Value = (Vec<AnyMember>, [&'static str; 5])> {
    // Half of the messages are valid, so both results are common.
    let members = any::<bool>().prop_flat_map(|valid| {
        let there = move |field: usize| {
            let required = valid && FIELDS[field].2.is_none();
            let known = known(field, valid);
            if required { known.prop_map(Some).boxed() } else { prop::option::weighted(0.9, known).boxed() }
        };
        let fields: Vec<_> = (0..FIELDS.len()).map(there).collect();
        let again =
            prop::collection::vec((0..FIELDS.len()).prop_flat_map(move |field| known(field, valid)), 0..2);
        (fields, again, prop::collection::vec(unknown(), 0..4))
    });
    let shuffled = members
        .prop_map(|(fields, again, unknown)| {
            fields.into_iter().flatten().chain(again).chain(unknown).collect::<Vec<_>>()
        })
        .prop_shuffle();
    (shuffled, [space(), space(), space(), space(), space()])
}

fn text(members: &[AnyMember], [outer, open, colon, comma, close]: [&str; 5]) -> String {
    let members: Vec<_> =
        members.iter().map(|m| format!("{open}\"{}\"{colon}:{close}{}", m.name, m.value)).collect();
    format!("{outer}{{{}{comma}}}{outer}", members.join(&format!("{comma},")))
}

/// The value that counts for each field: the last one.
fn last(members: &[AnyMember]) -> [Option<&AnyMember>; FIELDS.len()] {
    std::array::from_fn(|field| members.iter().rev().find(|member| member.field == Some(field)))
}

/// The members to be sent, in order, before those the agent adds; or the wrong field.
fn oracle(members: &[AnyMember], drop_unknown: bool) -> Result<Vec<(String, String)>, &'static str> {
    let last = last(members);
    for (member, (name, _, default)) in last.iter().zip(FIELDS) {
        if member.map_or(default, |member| member.fate).is_none() {
            return Err(name);
        }
    }
    let plain = |name: &str| serde_json::from_str::<String>(&format!("\"{name}\"")).unwrap();
    let counts = |member: &&AnyMember| match member.field {
        Some(field) => last[field].is_some_and(|last| std::ptr::eq(last, *member)),
        None => !drop_unknown,
    };
    let given = members.iter().filter(counts).map(|m| (plain(&m.name), m.fate.unwrap().to_owned()));
    let missing = last.iter().zip(FIELDS).filter(|(member, _)| member.is_none());
    Ok(given
        .chain(missing.map(|(_, (name, _, default))| (name.to_owned(), default.unwrap().to_owned())))
        .collect())
}

proptest! {
    #[test]
    fn a_usage_record_gets_the_verdict_and_the_body_that_the_contract_gives_it(
        (members, spaces) in message(), drop_unknown in any::<bool>()
    ) {
        let message = text(&members, spaces);
        let unknown_fields = if drop_unknown { UnknownFields::Drop } else { UnknownFields::Forward };
        let acceptor = acceptor(unknown_fields);
        let verdict = acceptor.at(ACCEPTED).accept(Queue::Usage, message.as_bytes());
        let expected = match oracle(&members, drop_unknown) {
            Ok(expected) => expected,
            Err(field) => {
                let rejection = verdict.unwrap_err();
                prop_assert!(rejection.detail.starts_with(&format!("{field}: ")), "{}: {}", message, rejection);
                prop_assert!(!rejection.detail.contains("SECRET"), "a customer's data: {}", rejection);
                return Ok(());
            }
        };
        let record = match verdict {
            Ok(record) => record,
            Err(rejection) => return Err(TestCaseError::fail(format!("{message}: {rejection}"))),
        };
        let body = body(&record);
        let enrichment = super::members(&format!("{{{}", &ENRICHMENT[1..]));
        prop_assert_eq!(super::members(body), [expected, enrichment].concat(), "{}", message);
        prop_assert_eq!(record.original().into_owned(), message.as_bytes());

        let last = last(&members);
        let normalised = last.iter().flatten().any(|member| member.fate != Some(member.value));
        let surplus = members.iter().filter(|m| m.field.is_some()).count() > last.iter().flatten().count();
        let dropped = drop_unknown && members.iter().any(|member| member.field.is_none());
        if !normalised && !surplus && !dropped {
            let object = message.trim();
            prop_assert!(body.starts_with(&object[..object.len() - 1]), "{} became {}", object, body);
        }

        let string = |field: usize| serde_json::from_str::<String>(last[field].unwrap().value).unwrap();
        prop_assert_eq!((record.transaction().to_owned(), record.session().to_owned()), (string(0), string(1)));
        let again = acceptor.at(ACCEPTED).accept(Queue::Usage, message.as_bytes()).unwrap();
        prop_assert_eq!(&again, &record);
        let later = acceptor.at(Timestamp(0)).accept(Queue::Usage, message.as_bytes()).unwrap();
        prop_assert_eq!(later.key(), record.key());
        let (kind, at, data, layout) = again.into_parts();
        prop_assert_eq!(Record::from_parts(kind, at, data, layout), Ok(record));
    }
}
