//! The most probable token, and the best of several answers.

/// The index of the largest value; of several, the first. What is no number is left out.
pub(crate) fn argmax<T: PartialOrd>(values: impl IntoIterator<Item = T>) -> Option<usize> {
    let numbers = values.into_iter().enumerate().filter(|(_, value)| value.partial_cmp(value).is_some());
    let best = numbers.reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_wins() {
        assert_eq!(argmax([0.0, 2.0, 2.0, f64::NEG_INFINITY]), Some(1));
        assert_eq!(argmax([f32::NAN, 1.0, f32::NAN]), Some(1));
        assert_eq!(argmax([] as [f32; 0]), None);
    }
}
