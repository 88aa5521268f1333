//! Numbers that look random and are the same everywhere: xorshift (Marsaglia, 2003).

/// A generator of 64 bits.
///
/// ```
/// use deltallm_testing::Random;
///
/// let mut random = Random::new(7);
/// let x = random.number();
/// assert!((-1.0..1.0).contains(&x));
/// assert_eq!(Random::new(7).number(), x);
/// ```
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Seeds that follow each other give numbers that have nothing to do with each other.
    pub fn scattered(seed: u64) -> Self {
        Self::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number in -1..1, in steps of 2^-23.
    pub fn number(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// The next `count` numbers in -1..1.
    pub fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }

    /// A whole number in `0..below`, which is not 0.
    pub fn below(&mut self, below: usize) -> usize {
        (self.bits() % below as u64) as usize
    }
}

/// `count` numbers in -1..1.
pub fn numbers(count: usize, seed: u64) -> Vec<f32> {
    Random::new(seed).numbers(count)
}
