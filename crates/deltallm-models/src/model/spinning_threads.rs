//! Threads that wait for the next product of a token by spinning instead of sleeping.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use deltallm_simd::tuning::SPIN_PAUSE;
use rayon::Yield;

/// Whether threads are spinning: one call at a time is enough, and a thread that served two would let the first wait for the second.
static SPINNING: AtomicBool = AtomicBool::new(false);

/// Calls that go without spinning, because other work wants the cores.
static CALLS_WITHOUT: AtomicUsize = AtomicUsize::new(0);

/// A thread that spins and comes to nothing for so long has lost its core to other work.
const LOST: Duration = Duration::from_millis(1);

/// Does `work`, and until it ends the other threads of the current rayon pool spin: they look for its tasks without pause. Nobody waits for a
/// thread that is busy with something else: once it comes, the work is done.
///
/// A token goes through a few hundred products of some ten microseconds each. A thread that falls asleep between them takes longer
/// than that to wake up. Beside other work, though, one that never sleeps loses its core in the middle of a task for which the others wait: once
/// a core is lost, [`SPIN_PAUSE`] calls do without spinning.
pub(crate) fn with_spinning_threads<R>(work: impl FnOnce() -> R) -> R {
    let countdown = |calls: usize| calls.checked_sub(1);
    let pause = || CALLS_WITHOUT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, countdown).is_ok();
    if rayon::current_num_threads() == 1 || pause() || SPINNING.swap(true, Ordering::Acquire) {
        return work();
    }
    let this = rayon::current_thread_index();
    let done = Arc::new(AtomicBool::new(false));
    let end = End(Arc::clone(&done));
    rayon::spawn_broadcast(move |context| {
        // This thread has work to do.
        if Some(context.index()) != this {
            spin_until(&done);
        }
    });
    let result = work();
    drop(end);
    result
}

/// Looks for tasks until it is `done`, or the core is lost.
fn spin_until(done: &AtomicBool) {
    let mut here = Instant::now();
    while !done.load(Ordering::Acquire) {
        if rayon::yield_now() != Some(Yield::Executed) {
            if here.elapsed() > LOST {
                return CALLS_WITHOUT.store(SPIN_PAUSE, Ordering::Relaxed);
            }
            spin_loop();
        }
        here = Instant::now();
    }
}

/// Lets the threads go, also when the work panics.
struct End(Arc<AtomicBool>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        SPINNING.store(false, Ordering::Release);
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
    fn calls_without_spinning_count_down() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        CALLS_WITHOUT.store(10 * SPIN_PAUSE, Ordering::Relaxed);
        for _ in 0..10 {
            assert_eq!(pool.install(|| with_spinning_threads(sum)), 4_999_950_000);
        }
        // Other tests count, too.
        assert!(CALLS_WITHOUT.swap(0, Ordering::Relaxed) <= 10 * SPIN_PAUSE - 10);
    }

    #[test]
    fn a_panic_passes_through_and_lets_the_threads_go() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let call = || with_spinning_threads(|| -> u64 { panic!("on purpose") });
        assert!(catch_unwind(AssertUnwindSafe(|| pool.install(call))).is_err());
        assert_eq!(pool.install(|| with_spinning_threads(sum)), 4_999_950_000);
    }
}
