//! Checks and normalises numbers by their digits, never through a float: money must not be rounded here.

use std::borrow::Cow;

use super::json::{self, Token};

/// Most digits that an exponent may expand a number to. (The largest double has 309.)
const MAX_DIGITS: usize = 400;

/// The JSON to send for a field that accepts numbers of 0 or more; otherwise what was found.
pub(super) fn number(token: Token<'_>) -> Result<Cow<'_, str>, &'static str> {
    let literal = literal(token)?;
    not_negative(&literal)?;
    // Readers will parse it as a double; only an exponent or hundreds of digits can exceed its range.
    if !literal.parse::<f64>().is_ok_and(f64::is_finite) {
        return Err("a number too large for a double");
    }
    Ok(literal)
}

/// The JSON to send for a field that accepts integers of `least` (0 or 1) or more; otherwise what was found.
pub(super) fn integer(token: Token<'_>, least: u8) -> Result<Cow<'_, str>, &'static str> {
    let mut literal = literal(token)?;
    not_negative(&literal)?;
    if !literal.bytes().all(|byte| byte.is_ascii_digit()) {
        literal = Cow::Owned(Decimal::of(&literal).integer()?);
    }
    if least > 0 && literal == "0" {
        return Err("0");
    }
    Ok(literal)
}

/// The number in a token, plain or as a string.
pub(super) fn literal(token: Token<'_>) -> Result<Cow<'_, str>, &'static str> {
    if let Some(b'-' | b'0'..=b'9') = token.raw.as_bytes().first() {
        return Ok(Cow::Borrowed(token.raw));
    }
    let text = token.string()?;
    if json::is_number(&text) {
        Ok(Cow::Owned(text.into_owned()))
    } else {
        Err("a string that is not a number")
    }
}

/// Rejects negative numbers; minus zero is zero.
fn not_negative(literal: &str) -> Result<(), &'static str> {
    if literal.starts_with('-') && !Decimal::of(literal).digits.is_empty() {
        return Err("a negative number");
    }
    Ok(())
}

/// An exact decimal number: `digits` times ten to the power `exponent`. Zero has no digits.
pub(super) struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// Parses a JSON number.
    pub(super) fn of(literal: &str) -> Self {
        let magnitude = literal.trim_start_matches('-');
        let (mantissa, exponent) = magnitude.split_once(['e', 'E']).unwrap_or((magnitude, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let significant = digits.trim_end_matches('0');
        let zeros = digits.len() - significant.len();
        // An exponent beyond i64 is as far out of range as any other beyond this limit, which leaves room for adding
        // lengths.
        let limit = 1i64 << 40;
        let far = if exponent.starts_with('-') { -limit } else { limit };
        let exponent = exponent.parse().unwrap_or(far).clamp(-limit, limit);
        Self {
            negative: literal.starts_with('-'),
            digits: significant.trim_start_matches('0').to_owned(),
            exponent: exponent - fraction.len() as i64 + zeros as i64,
        }
    }

    /// Its digits without a fraction or sign; otherwise what it is instead.
    fn integer(mut self) -> Result<String, &'static str> {
        if self.digits.is_empty() {
            return Ok("0".to_owned());
        }
        let Ok(zeros) = usize::try_from(self.exponent) else { return Err("a fraction") };
        let len = self.digits.len() + zeros;
        if zeros > 0 && len > MAX_DIGITS {
            return Err("a number of more than 400 digits");
        }
        self.digits.extend(std::iter::repeat_n('0', zeros));
        Ok(self.digits)
    }

    /// The number times ten to the power `places`, without its fraction. `None` beyond 36 digits.
    pub(super) fn scaled(&self, places: i64) -> Option<i128> {
        let shift = self.exponent + places;
        let len = self.digits.len() as i64 + shift;
        if self.digits.is_empty() || len <= 0 {
            return Some(0);
        }
        if len > 36 {
            return None;
        }
        let magnitude: i128 = if shift < 0 {
            self.digits[..len as usize].parse().ok()?
        } else {
            self.digits.parse::<i128>().ok()? * 10i128.pow(shift as u32)
        };
        Some(if self.negative { -magnitude } else { magnitude })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(raw: &str) -> Token<'_> {
        Token { raw, at: 0, escaped: raw.contains('\\') }
    }

    #[test]
    fn integers_are_normalised_by_their_digits() {
        for (given, sent) in [
            ("0", "0"),
            ("-0", "0"),
            ("-0.0e7", "0"),
            ("0e999999999999999999999", "0"),
            ("1.0", "1"),
            ("1e3", "1000"),
            ("1E+3", "1000"),
            ("120.00", "120"),
            ("1000e-3", "1"),
            ("0.001e3", "1"),
            ("12.5e1", "125"),
            ("9007199254740993.0", "9007199254740993"),
            ("18446744073709551616", "18446744073709551616"),
            ("\"42\"", "42"),
            ("\"\\u0034\\u0032\"", "42"),
            ("\"4.20e1\"", "42"),
        ] {
            assert_eq!(integer(token(given), 0).as_deref(), Ok(sent), "{given}");
        }
        let long = "7".repeat(5000);
        assert_eq!(integer(token(&long), 1).as_deref(), Ok(long.as_str()));
        assert_eq!(integer(token("1e399"), 1).map(|sent| sent.len()), Ok(400));
    }

    #[test]
    fn a_value_that_is_not_an_integer_is_named() {
        for (given, found) in [
            ("1e400", "a number of more than 400 digits"),
            ("1e99999999999999999999", "a number of more than 400 digits"),
            ("1.5", "a fraction"),
            ("1e-1", "a fraction"),
            ("1e-99999999999999999999", "a fraction"),
            ("-1", "a negative number"),
            ("-1e-99999999999999999999", "a negative number"),
            ("true", "a boolean"),
            ("null", "null"),
            ("[1]", "an array"),
            ("\"\"", "a string that is not a number"),
            ("\" 1\"", "a string that is not a number"),
            ("\"+1\"", "a string that is not a number"),
            ("\"01\"", "a string that is not a number"),
            ("\"0x1\"", "a string that is not a number"),
            ("\"1.\"", "a string that is not a number"),
            ("\"NaN\"", "a string that is not a number"),
            ("\"\u{664}\"", "a string that is not a number"),
        ] {
            assert_eq!(integer(token(given), 0).as_deref(), Err(&found), "{given}");
        }
        assert_eq!(integer(token("0.0"), 1).as_deref(), Err(&"0"));
    }

    #[test]
    fn numbers_keep_their_digits() {
        for given in
            ["0", "-0", "-0.0", "-0e5", "1.50", "1e308", "1e-400", "0.1000000000000000055511151231257827"]
        {
            assert_eq!(number(token(given)).as_deref(), Ok(given));
        }
        assert_eq!(number(token("\"1.50\"")).as_deref(), Ok("1.50"));
        assert_eq!(number(token("1e309")).as_deref(), Err(&"a number too large for a double"));
        assert_eq!(number(token(&"9".repeat(400))).as_deref(), Err(&"a number too large for a double"));
        assert_eq!(number(token("-1e-400")).as_deref(), Err(&"a negative number"));
    }

    #[test]
    fn scaling_is_exact_and_bounded() {
        for (given, places, scaled) in [
            ("1.5", 9, Some(1_500_000_000)),
            ("-1.5", 0, Some(-1)),
            ("1e3", -3, Some(1)),
            ("123.456789", 2, Some(12345)),
            ("0.0000001", 6, Some(0)),
            ("1e35", 0, Some(10i128.pow(35))),
            ("1e36", 0, None),
            ("1e99999999999999999999", 0, None),
            ("1e-99999999999999999999", 9, Some(0)),
        ] {
            assert_eq!(Decimal::of(given).scaled(places), scaled, "{given}");
        }
    }
}
