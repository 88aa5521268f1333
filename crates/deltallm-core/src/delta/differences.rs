//! The codes of an 8-bit block: half a byte for most of what is transmitted.

/// The 8-bit codes of a block: those of its key frame, and for every transmitted channel the difference to its code before.
///
/// A step is a threshold, and a channel is sent when it has moved by little more than one: nearly all differences fit
/// 4 bits (`docs/results/stores.md`). Differences of 8 bits wrap around, so any code can follow any other.
#[derive(Debug)]
pub(super) struct Differences {
    /// The frame, `[channels]`, followed by the differences that take 8 bits.
    pub(super) bytes: Vec<i8>,
    /// All differences, two to a byte, the first one in the low half: -8..=7, and 0 for the next one of 8 bits.
    nibbles: Vec<u8>,
    /// How many there are.
    len: usize,
}

impl Differences {
    /// Room for a frame and so many differences, whatever their size.
    pub(super) fn with_capacity(frame: usize, differences: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(frame + differences),
            nibbles: Vec::with_capacity(differences.div_ceil(2)),
            len: 0,
        }
    }

    /// Forgets everything and begins with a key frame.
    pub(super) fn start(&mut self, frame: &[i8]) {
        self.clear();
        self.bytes.extend_from_slice(frame);
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.nibbles.clear();
        self.len = 0;
    }

    pub(super) fn push(&mut self, differences: &[i8]) {
        for difference in differences {
            let fits = (-8..8).contains(difference) && *difference != 0;
            let nibble = if fits { *difference as u8 & 15 } else { 0 };
            if !fits {
                self.bytes.push(*difference);
            }
            match self.nibbles.last_mut() {
                Some(last) if self.len % 2 == 1 => *last |= nibble << 4,
                _ => self.nibbles.push(nibble),
            }
            self.len += 1;
        }
    }

    /// Differences.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The differences as they are held.
    pub(super) fn nibbles(&self) -> &[u8] {
        &self.nibbles
    }

    /// Keeps the first `len` differences.
    pub(super) fn truncate(&mut self, len: usize) {
        let gone = (len..self.len).filter(|at| nibble(&self.nibbles, *at) == 0).count();
        self.bytes.truncate(self.bytes.len() - gone);
        self.nibbles.truncate(len.div_ceil(2));
        if len % 2 == 1
            && let Some(last) = self.nibbles.last_mut()
        {
            *last &= 15;
        }
        self.len = len;
    }

    /// Becomes those of another block, `len` of them, within the room there is.
    pub(super) fn copy_from(&mut self, frame: &[i8], nibbles: &[u8], wide: &[i8], len: usize) {
        self.start(frame);
        self.bytes.extend_from_slice(wide);
        self.nibbles.extend_from_slice(nibbles);
        self.len = len;
    }

    /// The same, with as much room.
    pub(super) fn copy(&self) -> Self {
        let mut copy = Self {
            bytes: Vec::with_capacity(self.bytes.capacity()),
            nibbles: Vec::with_capacity(self.nibbles.capacity()),
            len: 0,
        };
        copy.copy_from(&self.bytes, &self.nibbles, &[], self.len);
        copy
    }

    /// Whether there is room for anything.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.capacity() > 0
    }

    /// Bytes of all there is room for.
    pub(super) fn room_bytes(&self) -> usize {
        self.bytes.capacity() + self.nibbles.capacity()
    }
}

/// Half a byte of packed differences.
fn nibble(nibbles: &[u8], at: usize) -> u8 {
    nibbles[at / 2] >> (4 * (at % 2)) & 15
}

/// How many of the first `count` packed differences have a byte of their own, because their nibble is 0.
pub(super) fn wide_among(nibbles: &[u8], count: usize) -> usize {
    // Sixteen at a time: every saved cache that is opened comes through here.
    let (words, _) = nibbles[..count / 2].as_chunks();
    let zeros = |word: &[u8; 8]| {
        let word = u64::from_le_bytes(*word);
        let pairs = word | word >> 1;
        16 - ((pairs | pairs >> 2) & 0x1111_1111_1111_1111).count_ones() as usize
    };
    let rest = 16 * words.len()..count;
    words.iter().map(zeros).sum::<usize>() + rest.filter(|at| nibble(nibbles, *at) == 0).count()
}

/// Iterates over packed differences: a nibble each, or, for a nibble of 0, the next byte of `wide`. If their number is odd, one more
/// element follows, which has no meaning.
pub(super) fn read<'a>(nibbles: &'a [u8], wide: &'a [i8]) -> impl Iterator<Item = i8> + 'a {
    let mut wide = wide.iter();
    nibbles.iter().flat_map(|pair| [pair << 4, *pair]).map(move |nibble| match nibble as i8 >> 4 {
        0 => wide.next().copied().unwrap_or(0),
        difference => difference,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_reads_back_from_every_cut() {
        let all: Vec<i8> = (-128..=127).chain([0, 0, 7, -8, 8, -9, 1]).collect();
        let frame = [3, -4, 5];
        let mut whole = Differences::with_capacity(3, all.len());
        whole.start(&frame);
        whole.push(&all);
        for len in 0..=all.len() {
            let mut cut = whole.copy();
            cut.truncate(len);
            let mut fresh = Differences::with_capacity(3, all.len());
            fresh.start(&frame);
            fresh.push(&all[..len]);
            assert_eq!((&cut.bytes, &cut.nibbles, cut.len), (&fresh.bytes, &fresh.nibbles, fresh.len));
            let back = read(&cut.nibbles, &cut.bytes[3..]).take(len);
            assert_eq!(back.collect::<Vec<_>>(), all[..len]);
            assert_eq!(wide_among(&whole.nibbles, len), fresh.bytes.len() - frame.len());
            assert_eq!(fresh.room_bytes(), whole.room_bytes(), "within the room");
        }
    }

    #[test]
    fn small_differences_take_half_a_byte() {
        let mut differences = Differences::with_capacity(0, 100);
        differences.push(&[-8, -1, 1, 7, 2]);
        assert_eq!((differences.bytes.len(), differences.nibbles.len()), (0, 3));
        differences.push(&[8]);
        assert_eq!((differences.bytes.len(), differences.nibbles.len()), (1, 3));
    }
}
