//! Text that is not JSON, or too deeply nested, is rejected with a reason that gives the position and nothing else.

use proptest::prelude::*;

use super::*;
use crate::record::json::{MAX_DEPTH, Members};

/// Whether our parser accepts a text as one JSON object.
fn is_object(text: &str) -> bool {
    Members::of(text).is_ok_and(|members| members.collect::<Result<Vec<_>, _>>().is_ok())
}

/// Whether another parser accepts it, without a limit on nesting.
fn is_object_to_serde(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok_and(|value| value.get().starts_with('{'))
}

#[test]
fn the_reason_names_the_place() {
    for (message, reason) in [
        ("", "not JSON: cut off at byte 0"),
        (" \n", "not JSON: cut off at byte 2"),
        ("{", "not JSON: cut off at byte 1"),
        (r#"{"a"#, "not JSON: cut off at byte 3"),
        (r#"{"a":1"#, "not JSON: cut off at byte 6"),
        (r#"{"a":1,"#, "not JSON: cut off at byte 7"),
        (r#"{"a":"\u12"#, "not JSON: cut off at byte 10"),
        (r#"{"a":1}}"#, "not JSON: trailing data at byte 7"),
        (r#"{"a":1} {"a":1}"#, "not JSON: trailing data at byte 8"),
        (r#"{"a":1,}"#, "not JSON: expected a name in double quotes at byte 7"),
        (r"{'a':1}", "not JSON: expected a name in double quotes at byte 1"),
        (r"{a:1}", "not JSON: expected a name in double quotes at byte 1"),
        (r#"{"a" 1}"#, "not JSON: expected a colon at byte 5"),
        (r#"{"a":1 "b":2}"#, "not JSON: expected a comma or a closing brace at byte 7"),
        (r#"{"a":[1 2]}"#, "not JSON: expected a comma or a closing bracket at byte 8"),
        (r#"{"a":[1,]}"#, "not JSON: expected a value at byte 8"),
        (r#"{"a":NaN}"#, "not JSON: expected a value at byte 5"),
        (r#"{"a":01}"#, "not JSON: expected a comma or a closing brace at byte 6"),
        (r#"{"a":-}"#, "not JSON: expected a digit at byte 6"),
        (r#"{"a":1.}"#, "not JSON: expected a digit at byte 7"),
        (r#"{"a":"\x"}"#, "not JSON: unknown escape at byte 7"),
        (r#"{"a":"\u12G4"}"#, "not JSON: expected four hexadecimal digits after \\u at byte 10"),
        ("{\"a\":\"\n\"}", "not JSON: control character in a string at byte 6"),
        ("{\"a\":\"\0\"}", "not JSON: control character in a string at byte 6"),
        ("{\"a\":1}\0", "not JSON: trailing data at byte 7"),
        ("\u{feff}{}", "not JSON: starts with a byte order mark"),
        ("{\u{a0}}", "not JSON: expected a name in double quotes at byte 1"),
        ("[{}]", "must be a JSON object, found an array"),
        ("\"{}\"", "must be a JSON object, found a string"),
        ("-1.5e3", "must be a JSON object, found a number"),
        ("null", "must be a JSON object, found null"),
        (" true ", "must be a JSON object, found a boolean"),
        ("[", "not JSON: cut off at byte 1"),
    ] {
        for queue in Queue::ALL {
            assert_eq!(rejected(queue, message), reason, "{message:?}");
        }
    }
    assert_eq!(rejected(Queue::Usage, b"{\"a\":\"\xff\"}"), "not UTF-8: invalid byte at 6");
    assert_eq!(
        rejected(Queue::Usage, b"{\"a\":\"\xed\xa0\x80\"}"),
        "not UTF-8: invalid byte at 6",
        "a surrogate"
    );
    assert_eq!(rejected(Queue::Usage, b"{\"a\":\"\xc3"), "not UTF-8: invalid byte at 6", "half a character");
    assert_eq!(rejected(Queue::Usage, b"\xff\xfe{\0}\0"), "not UTF-8: invalid byte at 0", "UTF-16");
}

#[test]
fn a_message_cut_off_anywhere_is_said_to_be_so() {
    let message = with(USAGE, "more", r#"[{"a":"é\u00e9"},-1.5e-3,true,false,null]"#);
    for end in (0..message.len()).filter(|end| message.is_char_boundary(*end)) {
        let reason = rejected(Queue::Usage, &message[..end]);
        // Half a literal is not a value, whatever might follow.
        assert!(
            reason.starts_with("not JSON: cut off at byte ")
                || reason.starts_with("not JSON: expected a value at byte"),
            "{end}: {reason}"
        );
    }
}

#[test]
fn sixty_four_levels_are_accepted_and_one_more_is_not() {
    let nested = |levels: usize, open: &str, close: &str| {
        with(USAGE, "deep", &format!("{}0{}", open.repeat(levels - 1), close.repeat(levels - 1)))
    };
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}"), ("[ ", " ]")] {
        let message = nested(MAX_DEPTH as usize, open, close);
        let record = accepted(Queue::Usage, &message);
        assert_eq!(record.original(), message.as_bytes());
        assert_eq!(
            rejected(Queue::Usage, nested(MAX_DEPTH as usize + 1, open, close)),
            "nested deeper than 64 levels"
        );
    }
    let mixed = with(USAGE, "deep", &format!("{}[]{}", r#"[{"a":"#.repeat(31), "}]".repeat(31)));
    accepted(Queue::Usage, &mixed);
    assert_eq!(rejected(Queue::Usage, "{\"a\":".repeat(100_000 / 5)), "nested deeper than 64 levels");
    assert_eq!(rejected(Queue::Usage, "[".repeat(100_000)), "nested deeper than 64 levels");
    let metadata = format!(r#"{{"client_info":{}0{}}}"#, "[".repeat(62), "]".repeat(62));
    accepted(Queue::Lifecycle, &with(STARTED, "metadata", &metadata));
}

/// The error classes of the JSON test suite, each as the value of an unknown field.
#[test]
#[rustfmt::skip]
fn values_that_are_json_pass_untouched_and_others_are_rejected() {
    for value in [
        "0", "-0", "1E400", "-1e-9999", "123456789012345678901234567890", "0.1e+1", "true", "[]", "{}",
        "[[],[]]", r#"{"":0}"#, r#"{"a":1,"a":2}"#, "\"\u{7f}\"", "\"\u{2028}\"", r#""\u0000""#,
        r#""\ud800""#, r#""\udc00\ud800""#, r#""\uD83D\uDE00""#, r#""\\u0022""#, r#""\"\\\/\b\f\n\r\t""#,
        "\"\u{10ffff}\"", "[ 1 ,\t2\r\n]", r#"{"\ud800":0}"#,
    ] {
        let message = with(USAGE, "x", value);
        let record = accepted(Queue::Usage, &message);
        assert!(body(&record).starts_with(&message[..message.len() - 1]), "{value}");
    }
    for value in [
        "", "+1", ".5", "1.", "00", "-01", "1e", "1e+", "1.e1", "0x1", "1 000", "--1", "-", "Infinity",
        "-Infinity", "nan", "nul", "nulll", "True", "undefined", "'a'", "\"", "\"a", "\"\\\"", "\"\t\"",
        r#""\a""#, r#""\u""#, r#""\u00A""#, r#""\u{1}""#, r#""\UD800""#, "[", "]", "[1", "[,1]", "[1,,2]",
        "[1,]", "[1:2]", "[1}", "{", "{1:1}", "{a:1}", r#"{"a"}"#, r#"{"a":}"#, r#"{"a":1,}"#,
        r#"{"a":1;"b":2}"#, r#"{"a":1]"#, "{:1}", r#"{"a"::1}"#, "// 1\n1", "/**/1", "1 2", "\u{a0}1",
        "\u{2003}1", "\u{c}1", "\u{b}1",
    ] {
        let reason = rejected(Queue::Usage, with(USAGE, "x", value));
        assert!(reason.starts_with("not JSON: "), "{value}: {reason}");
    }
}

/// JSON that usually contains an error.
fn nearly_json() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just(r#""a""#),
        Just(":"),
        Just(","),
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just(" "),
        Just("\n"),
        Just("\t"),
        Just("0"),
        Just("-"),
        Just("1"),
        Just("."),
        Just("e"),
        Just("+"),
        Just("true"),
        Just("null"),
        Just("fals"),
        Just("\""),
        Just("\\"),
        Just("\\u00e9"),
        Just("\\ud800"),
        Just("é"),
        Just("\u{1}"),
        Just(r#""b":[1,{"c":2}]"#),
        Just(r#"{"a":1}"#),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn two_parsers_agree_on_what_is_json(text in nearly_json(), inside in any::<bool>()) {
        let text = if inside { format!(r#"{{"k":{text}}}"#) } else { text };
        prop_assert_eq!(is_object(&text), is_object_to_serde(&text), "{:?}", text);
    }

    #[test]
    fn one_changed_byte_changes_the_verdict_of_both_parsers_or_of_none(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), remove in any::<bool>()
    ) {
        let message = with(USAGE, "more", r#"[{"a":"é\u00e9\n"},-1.5e-3,true,null,{}]"#);
        let mut bytes = message.into_bytes();
        let at = at.index(bytes.len());
        if remove { bytes.remove(at); } else { bytes[at] = byte; }
        let verdict = accept(Queue::Usage, &bytes);
        match std::str::from_utf8(&bytes) {
            Err(_) => prop_assert!(verdict.unwrap_err().detail.starts_with("not UTF-8: invalid byte at ")),
            Ok(text) if is_object_to_serde(text) => prop_assert!(is_object(text), "{}", text),
            Ok(text) => prop_assert!(!is_object(text) && verdict.is_err(), "{}", text),
        }
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), prefix in 0..USAGE.len()) {
        let spliced = [&USAGE.as_bytes()[..prefix], &bytes].concat();
        for queue in Queue::ALL {
            let _ = accept(queue, &bytes);
            let _ = accept(queue, &spliced);
        }
    }
}
