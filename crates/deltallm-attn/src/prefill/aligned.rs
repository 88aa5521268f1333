//! Working memory that starts on a cache line: a vector that crosses lines costs two accesses, and of 64-byte vectors that do not
//! start on a line every one does.

use deltallm_simd::prefetch::LINE;

/// A reusable buffer of f32 whose first element stands at the start of a cache line.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    memory: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Makes the buffer `len` elements long; what they hold is whatever was there before.
    pub(crate) fn resize(&mut self, len: usize) {
        let spare = LINE / size_of::<f32>();
        if self.memory.len() < len + spare {
            self.memory.resize(len + spare, 0.0);
            // May decline, by answering a huge number: then the buffer is merely slower.
            self.start = self.memory.as_ptr().align_offset(LINE).min(spare);
        }
        self.len = len;
    }

    /// `len` elements, all `value`.
    pub(crate) fn reset(&mut self, len: usize, value: f32) {
        self.resize(len);
        self.fill(value);
    }
}

impl std::ops::Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[self.start..][..self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_starts_on_a_line() {
        let mut buffer = Aligned::default();
        for len in [1, 100, 7, 5000, 64, 100_000] {
            buffer.reset(len, 2.0);
            assert_eq!(buffer.as_ptr().addr() % LINE, 0);
            assert_eq!((buffer.len(), buffer[0], buffer[len - 1]), (len, 2.0, 2.0));
        }
    }
}
