//! The threads that a call of the model runs on: those of the rayon pool, which spin between the products of a token instead of sleeping.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use deltallm_simd::tuning::SPIN_PAUSE;
use rayon::Yield;

/// Does `work` on a thread of the current rayon pool. From any other thread each of a few hundred products would be handed over and waited
/// for: on two threads that takes as long as the products of a small model.
pub(crate) fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    if rayon::current_num_threads() == 1 || rayon::current_thread_index().is_some() {
        return work();
    }
    rayon::scope(|_| work())
}

/// How the threads of this process spin.
static SPINNING: Spinning = Spinning::new(Duration::from_millis(1));

/// Does `work`, and until it ends the other threads of the current rayon pool spin: they look for its tasks without pause. Nobody waits for a
/// thread that is busy with something else: once it comes, the work is done.
///
/// A token goes through a few hundred products of some ten microseconds each. A thread that falls asleep between them takes longer
/// than that to wake up. Beside other work, though, one that never sleeps loses its core in the middle of a task for which the others wait: once
/// a core is lost, [`SPIN_PAUSE`] calls do without spinning.
pub(crate) fn with_spinning_threads<R>(work: impl FnOnce() -> R) -> R {
    SPINNING.during(work)
}

struct Spinning {
    /// Whether threads are spinning: one call at a time is enough, and a thread that served two would let the first wait for the second.
    now: AtomicBool,
    /// Calls that are to do without.
    paused: AtomicUsize,
    /// A thread that does not get to run for so long while it spins has lost its core.
    lost: Duration,
}

impl Spinning {
    const fn new(lost: Duration) -> Self {
        Self { now: AtomicBool::new(false), paused: AtomicUsize::new(0), lost }
    }

    fn during<R>(&'static self, work: impl FnOnce() -> R) -> R {
        if rayon::current_num_threads() == 1 || self.now.swap(true, Ordering::Acquire) {
            return work();
        }
        let done = Arc::new(AtomicBool::new(false));
        let end = End { spinning: self, done: Arc::clone(&done) };
        let countdown = |calls: usize| calls.checked_sub(1);
        if self.paused.fetch_update(Ordering::Relaxed, Ordering::Relaxed, countdown).is_err() {
            let this = rayon::current_thread_index();
            rayon::spawn_broadcast(move |context| {
                // This thread has work to do.
                if Some(context.index()) != this {
                    self.until(&done);
                }
            });
        }
        let result = work();
        drop(end);
        result
    }

    /// Looks for tasks until it is `done`, or the core is lost.
    fn until(&self, done: &AtomicBool) {
        let mut here = Instant::now();
        while !done.load(Ordering::Acquire) {
            if rayon::yield_now() != Some(Yield::Executed) {
                if here.elapsed() > self.lost {
                    return self.paused.store(SPIN_PAUSE, Ordering::Relaxed);
                }
                spin_loop();
            }
            here = Instant::now();
        }
    }
}

/// Lets the threads go, also when the work panics.
struct End {
    spinning: &'static Spinning,
    done: Arc<AtomicBool>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        self.spinning.now.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rayon::prelude::*;

    use super::*;

    fn sum() -> u64 {
        (0..100_000_u64).into_par_iter().sum()
    }

    #[test]
    fn work_from_outside_is_done_in_the_pool() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let index = || in_pool(rayon::current_thread_index);
        assert!(pool.install(index).is_some());
        assert!(rayon::current_thread_index().is_none());
        assert_eq!(index().is_some(), rayon::current_num_threads() > 1);
    }

    #[test]
    fn work_is_done_inside_and_outside_of_the_pool_by_several_at_once() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let ten = || (0..10).map(|_| with_spinning_threads(sum)).sum::<u64>();
        std::thread::scope(|scope| {
            for inside in [true, false, true] {
                let pool = &pool;
                scope.spawn(move || {
                    let got = if inside { pool.install(ten) } else { ten() };
                    assert_eq!(got, 10 * 4_999_950_000);
                });
            }
        });
    }

    #[test]
    fn nobody_waits_for_a_thread_that_is_busy() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let (go, wait) = std::sync::mpsc::channel();
        pool.spawn(move || wait.recv().unwrap());
        for _ in 0..10 {
            assert_eq!(pool.install(|| with_spinning_threads(sum)), 4_999_950_000);
        }
        go.send(()).unwrap();
    }

    #[test]
    fn a_thread_that_loses_its_core_stops_all_for_some_calls() {
        // Any time at all is too long here.
        static SPINNING: Spinning = Spinning::new(Duration::ZERO);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let paused = || SPINNING.paused.load(Ordering::Acquire);
        let wait = || {
            while paused() == 0 {
                std::thread::yield_now();
            }
        };
        pool.install(|| SPINNING.during(wait));
        assert_eq!(paused(), SPIN_PAUSE);
        for _ in 0..10 {
            assert_eq!(pool.install(|| SPINNING.during(sum)), 4_999_950_000);
        }
        assert_eq!(paused(), SPIN_PAUSE - 10);
    }

    #[test]
    fn a_panic_passes_through_and_lets_the_threads_go() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let call = || with_spinning_threads(|| -> u64 { panic!("on purpose") });
        assert!(catch_unwind(AssertUnwindSafe(|| pool.install(call))).is_err());
        assert_eq!(pool.install(|| with_spinning_threads(sum)), 4_999_950_000);
    }
}
