//! Means and how sure they are.

/// A mean over examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error: the sample's standard deviation over the root of its size (for values of 0 and 1 the
    /// binomial one, `sqrt(p (1 - p) / (n - 1))`). Not a number for a single example.
    pub standard_error: f64,
}

impl Estimate {
    /// Of these values; of paired differences it is the difference of the means with the error of the pairing.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
        Self { mean, standard_error: (squares / (n - 1.0) / n).sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_the_binomial_error() {
        let estimate = Estimate::of(&[1.0, 0.0, 1.0, 1.0]);
        assert_eq!(estimate.mean, 0.75);
        assert!((estimate.standard_error - (0.75_f64 * 0.25 / 3.0).sqrt()).abs() < 1e-15);
        assert!(Estimate::of(&[1.0]).standard_error.is_nan());
        assert_eq!(Estimate::of(&[0.0, 0.0]), Estimate { mean: 0.0, standard_error: 0.0 });
    }
}
