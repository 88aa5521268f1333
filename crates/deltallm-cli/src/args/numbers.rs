//! Numbers on the command line. What is no such number is told what one is; the parsers of clap tell of digits and types.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// The most that anything is counted to.
pub(crate) const MOST: usize = u32::MAX as usize;

/// A parser of whole numbers in a range.
pub(crate) fn whole<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("expected a whole number from {} to {}", range.start(), range.end()))
    }
}

/// Any number; whether it fits is found out later, by who takes it.
pub(crate) fn number(text: &str) -> Result<f32, String> {
    text.parse().map_err(|_| "expected a number".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_their_range_and_other_texts_are_told_the_range() {
        let parse = whole(1..=1024_u16);
        assert_eq!((parse("1"), parse("1024")), (Ok(1), Ok(1024)));
        for bad in ["0", "1025", "-1", "1.5", "99999999999999999999", "x", ""] {
            assert_eq!(parse(bad), Err("expected a whole number from 1 to 1024".to_owned()), "{bad}");
        }
        assert_eq!(number("-0.5"), Ok(-0.5));
        assert!(number("0,5").is_err());
    }
}
