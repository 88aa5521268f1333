//! Memory for packed weights, in large pages where the system has them.
//!
//! A decoded token reads every weight once. In pages of 4 kB every 64th cache line needs another translation of its address,
//! and the hardware's prefetching stops at the end of each page. The matrices of a small model are smaller than a large page
//! (2 MB on x86-64), so they lie side by side in regions, for which Linux is asked to use large pages.

use std::{
    fmt,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use memmap2::{MmapMut, MmapRaw};

/// Bytes of a region, unless something larger is asked for. Of what is not used only addresses are taken.
const REGION: usize = 64 << 20;

/// What a region's first byte is a multiple of: the size of a large page.
const LARGE_PAGE: usize = 2 << 20;

/// What the first byte of a slice is a multiple of: a cache line.
const LINE: usize = 64;

/// A number, or an array of numbers, whose zero is all bits zero.
///
/// # Safety
/// All bytes zero are [`ZERO`](Self::ZERO), the type needs no more alignment than a cache line, and nothing is done when it
/// is dropped.
#[allow(unsafe_code, reason = "a promise about a type")]
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {
    const ZERO: Self;
}

/// A slice of fixed length in large pages, or on the heap where the system has no more memory to map.
pub(crate) struct LargePages<T: Plain>(Place<T>);

enum Place<T: Plain> {
    /// The bytes of `len` of `T` from `start` on belong to this value alone.
    Region {
        region: Arc<MmapRaw>,
        start: usize,
        len: usize,
        of: PhantomData<T>,
    },
    Heap(Vec<T>),
}

impl<T: Plain> LargePages<T> {
    /// `len` zeros; `None` where there is no memory for them.
    pub(crate) fn zeros(len: usize) -> Option<Self> {
        const { assert!(align_of::<T>() <= LINE) }
        Some(Self(match reserve(len.checked_mul(size_of::<T>())?) {
            Some((region, start)) => Place::Region { region, start, len, of: PhantomData },
            None => {
                let mut numbers = Vec::new();
                numbers.try_reserve_exact(len).ok()?;
                numbers.resize(len, T::ZERO);
                Place::Heap(numbers)
            }
        }))
    }
}

#[allow(unsafe_code, reason = "memory is seen as numbers")]
impl<T: Plain> Deref for LargePages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            // SAFETY: the bytes are within the mapping, which lives as long as `region`, start at a multiple of a cache line, and are
            // zero, a number, or what was written through `deref_mut`. `reserve` hands out no byte twice, so nobody else writes.
            Place::Region { region, start, len, .. } => unsafe {
                std::slice::from_raw_parts(region.as_ptr().add(*start).cast(), *len)
            },
            Place::Heap(numbers) => numbers,
        }
    }
}

#[allow(unsafe_code, reason = "memory is seen as numbers")]
impl<T: Plain> DerefMut for LargePages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.0 {
            // SAFETY: the bytes are valid and aligned for the reasons that `deref` gives, and belong to this value alone, which is borrowed
            // for writing: nobody else reads or writes them meanwhile.
            Place::Region { region, start, len, .. } => unsafe {
                std::slice::from_raw_parts_mut(region.as_mut_ptr().add(*start).cast(), *len)
            },
            Place::Heap(numbers) => numbers,
        }
    }
}

impl<T: Plain> Clone for LargePages<T> {
    fn clone(&self) -> Self {
        match Self::zeros(self.len()) {
            Some(mut copy) => {
                copy.copy_from_slice(self);
                copy
            }
            None => Self(Place::Heap(self.to_vec())),
        }
    }
}

impl<T: Plain + PartialEq> PartialEq for LargePages<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for LargePages<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The region that is being filled, and what of it is taken. It is given back when the last of its slices is dropped.
static OPEN: Mutex<(Weak<MmapRaw>, usize)> = Mutex::new((Weak::new(), 0));

/// `bytes` of some region that nobody else has, and where they start; `None` where there are no more to be had.
fn reserve(bytes: usize) -> Option<(Arc<MmapRaw>, usize)> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let (region, taken) = &mut *open;
    if let Some(region) = region.upgrade()
        && let Some(end) = taken.checked_add(bytes)
        && end <= region.len()
    {
        let start = std::mem::replace(taken, end.next_multiple_of(LINE));
        return Some((region, start));
    }
    let memory = MmapMut::map_anon(bytes.max(REGION).checked_add(LARGE_PAGE)?).ok()?;
    // Advice that is not taken costs time, no more.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    let start = memory.as_ptr().addr().next_multiple_of(LARGE_PAGE) - memory.as_ptr().addr();
    let new = Arc::new(MmapRaw::from(memory));
    (*region, *taken) = (Arc::downgrade(&new), (start + bytes).next_multiple_of(LINE));
    Some((new, start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::kernels::Line;

    #[test]
    fn slices_are_zero_and_apart() {
        let mut slices: Vec<LargePages<Line>> =
            [0, 1, 100, 7, 1_200_000, 5].map(|len| LargePages::zeros(len).unwrap()).into();
        for (i, slice) in slices.iter_mut().enumerate() {
            assert_eq!(slice.as_ptr().addr() % LINE, 0);
            assert!(slice.iter().all(|line| *line == Line::ZERO), "slice {i}");
            slice.fill(Line([i as u8 + 1; 64]));
        }
        let copy = slices[2].clone();
        for (i, slice) in slices.iter().enumerate() {
            assert!(slice.iter().all(|line| *line == Line([i as u8 + 1; 64])), "slice {i}");
        }
        slices[2].fill(Line::ZERO);
        assert!(copy != slices[2] && copy[99] == Line([3; 64]));
        drop(slices);
        assert_eq!(copy[..], [Line([3; 64]); 100]);
    }

    #[test]
    fn slices_of_many_threads_are_apart() {
        let fill = |i: u8| {
            let mut slices: Vec<_> = (0..200).map(|len| LargePages::<Line>::zeros(len).unwrap()).collect();
            slices.iter_mut().for_each(|slice| slice.fill(Line([i; 64])));
            slices
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (1..5).map(|i| (i, scope.spawn(move || fill(i)))).collect();
            for (i, thread) in threads {
                let slices = thread.join().unwrap();
                assert!(slices.iter().flat_map(|slice| slice.iter()).all(|line| *line == Line([i; 64])));
            }
        });
    }

    #[test]
    fn more_than_there_is_cannot_be_reserved() {
        assert!(reserve(usize::MAX).is_none() && reserve(usize::MAX / 2).is_none());
        assert!(
            LargePages::<Line>::zeros(usize::MAX).is_none() && LargePages::<Line>::zeros(1 << 56).is_none()
        );
    }
}
