use std::any::Any;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use std::thread;
use std::time::{Duration, Instant};

use super::{Pool, Worker, threads_to_use};
use crate::shared::SharedSlice;

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
}

/// Waits until the condition holds; returns false if it does not within ten seconds.
fn comes_true(condition: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > Duration::from_secs(10) {
            return false;
        }
        thread::yield_now();
    }
    true
}

/// Runs a phase with one index per thread, in which no index ends before all have begun:
/// afterwards every thread is in the program.
fn gather(worker: &mut Worker<'_>, threads: usize, begun: &AtomicUsize) {
    worker.each(threads, |_| {
        begun.fetch_add(1, SeqCst);
        assert!(comes_true(|| begun.load(SeqCst) >= threads));
    });
}

fn panic_of(pool: &Pool, program: impl Fn(&mut Worker<'_>) + Sync) -> Option<Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(|| pool.run(program))).err()
}

fn message(panic: Option<Box<dyn Any + Send>>) -> String {
    let panic = panic.expect("the program panics");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().expect("a message")).to_owned(),
    }
}

/// Asserts that a pool still completes programs, with all of its threads.
fn assert_usable(pool: &Pool) {
    let begun = AtomicUsize::new(0);
    let sum = AtomicUsize::new(0);
    pool.run(|worker| {
        gather(worker, pool.threads(), &begun);
        worker.each(100, |index| {
            sum.fetch_add(index, SeqCst);
        });
    });
    assert_eq!(begun.into_inner(), pool.threads());
    assert_eq!(sum.into_inner(), 4950);
}

#[test]
fn every_index_of_every_phase_runs_once() {
    let counts = [0, 1, 2, 3, 0, 17, 64, 5];
    for threads in [1, 2, 3, 8] {
        let pool = pool(threads);
        for _ in 0..20 {
            let runs: Vec<Vec<AtomicU32>> = (0..200)
                .map(|phase| counts[phase % counts.len()])
                .map(|count| (0..count).map(|_| AtomicU32::new(0)).collect())
                .collect();
            pool.run(|worker| {
                for phase in &runs {
                    worker.each(phase.len(), |index| {
                        phase[index].fetch_add(1, SeqCst);
                    });
                }
            });
            let mut runs = runs.into_iter().flatten().map(AtomicU32::into_inner);
            assert!(runs.all(|times| times == 1), "{threads} threads");
        }
    }
}

/// Each phase computes one buffer from the neighbouring elements in the other, with no
/// synchronization except that of the pool.
#[test]
fn what_one_phase_writes_the_next_reads() {
    const LENGTH: usize = 24;
    const PHASES: usize = 5_000;
    fn mix(left: u64, right: u64, phase: usize) -> u64 {
        (left.rotate_left(7) ^ right).wrapping_mul(0x9e37_79b9_7f4a_7c15) + phase as u64 % 2
    }

    let mut expected: Vec<u64> = (0..LENGTH as u64).collect();
    for phase in 0..PHASES {
        expected = (0..LENGTH)
            .map(|at| mix(expected[at], expected[(at + 1) % LENGTH], phase))
            .collect();
    }

    for threads in [1, 2, 3, 8] {
        let mut even: Vec<u64> = (0..LENGTH as u64).collect();
        let mut odd = vec![0; LENGTH];
        let mut sum = 0;
        let buffers = [
            SharedSlice::from(even.as_mut_slice()),
            SharedSlice::from(odd.as_mut_slice()),
        ];
        let total = SharedSlice::from(std::slice::from_mut(&mut sum));
        pool(threads).run(|worker| {
            for phase in 0..PHASES {
                let (from, to) = (buffers[phase % 2], buffers[(phase + 1) % 2]);
                worker.each(LENGTH, |at| {
                    // SAFETY: this phase writes only to the other buffer, and each index writes
                    // its own element.
                    let (from, to) = unsafe { (from.slice(0..LENGTH), to.slice_mut(at..at + 1)) };
                    to[0] = mix(from[at], from[(at + 1) % LENGTH], phase);
                });
            }
            worker.each(1, |_| {
                // SAFETY: this is the only index of its phase.
                let (from, to) = unsafe {
                    let last = buffers[PHASES % 2];
                    (last.slice(0..LENGTH), total.slice_mut(0..1))
                };
                to[0] = from.iter().fold(0, |sum: u64, &one| sum.wrapping_add(one));
            });
        });
        assert_eq!([even, odd][PHASES % 2], expected, "{threads} threads");
        let total = expected
            .iter()
            .fold(0, |sum: u64, &one| sum.wrapping_add(one));
        assert_eq!(sum, total, "{threads} threads");
    }
}

#[test]
fn threads_have_numbers_of_their_own() {
    let pool = pool(3);
    assert_eq!(pool.threads(), 3);
    let begun = AtomicUsize::new(0);
    let seen = [const { AtomicU32::new(0) }; 3];
    pool.run(|worker| {
        gather(worker, 3, &begun);
        seen[worker.thread()].fetch_add(1, SeqCst);
    });
    assert_eq!(seen.map(AtomicU32::into_inner), [1, 1, 1]);
}

#[test]
fn a_slow_index_holds_up_its_phase_and_no_other_index() {
    let pool = pool(3);
    let done = AtomicUsize::new(0);
    pool.run(|worker| {
        for phase in 0..10 {
            worker.each(8, |index| {
                if index == phase % 8 {
                    // Longer than any thread spins.
                    thread::sleep(Duration::from_millis(5));
                    assert!(comes_true(|| done.load(SeqCst) == phase * 8 + 7));
                }
                assert_eq!(done.fetch_add(1, SeqCst) / 8, phase);
            });
            assert!(done.load(SeqCst) >= (phase + 1) * 8);
        }
    });
    assert_eq!(done.into_inner(), 80);
}

#[test]
fn a_thread_that_has_claimed_nothing_holds_up_no_phase() {
    let pool = pool(2);
    let begun = AtomicUsize::new(0);
    let (over, was_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let by_the_late = AtomicUsize::new(0);
    pool.run(|worker| {
        gather(worker, 2, &begun);
        let late = worker.thread() == 1;
        if late {
            was_over.store(comes_true(|| over.load(SeqCst)), SeqCst);
        }
        for _ in 0..1000 {
            worker.each(4, |_| {
                by_the_late.fetch_add(usize::from(late), SeqCst);
            });
        }
        if !late {
            over.store(true, SeqCst);
        }
    });
    assert!(was_over.into_inner(), "the phases waited for the thread");
    assert_eq!(by_the_late.into_inner(), 0);
}

#[test]
fn a_program_is_left_by_all_before_it_returns() {
    let pool = pool(3);
    let begun = AtomicUsize::new(0);
    let left = AtomicUsize::new(0);
    pool.run(|worker| {
        gather(worker, 3, &begun);
        if worker.thread() > 0 {
            thread::sleep(Duration::from_millis(20));
        }
        left.fetch_add(1, SeqCst);
    });
    assert_eq!(left.into_inner(), 3);
}

#[test]
fn a_panic_on_any_thread_goes_on_in_the_caller() {
    for threads in [1, 2, 3] {
        let pool = pool(threads);
        for culprit in 0..threads {
            let (first, second) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let panic = panic_of(&pool, |worker| {
                gather(worker, threads, &first);
                let thread = worker.thread();
                worker.each(threads, |_| {
                    second.fetch_add(1, SeqCst);
                    assert!(comes_true(|| second.load(SeqCst) == threads));
                    assert!(thread != culprit, "on thread {thread}");
                });
                worker.each(1, |_| unreachable!("a phase after one that panicked"));
            });
            assert_eq!(message(panic), format!("on thread {culprit}"));
            assert_usable(&pool);
        }
    }
}

#[test]
fn a_panic_between_phases_ends_the_program() {
    let pool = pool(3);
    for culprit in 0..3 {
        let begun = AtomicUsize::new(0);
        let panic = panic_of(&pool, |worker| {
            gather(worker, 3, &begun);
            assert!(worker.thread() != culprit, "not this one");
            // Only the panic ends the other threads.
            loop {
                worker.each(4, |_| {});
            }
        });
        assert_eq!(message(panic), "not this one");
        assert_usable(&pool);
    }
}

#[test]
fn a_phase_is_not_over_when_its_panic_is_caught() {
    let pool = pool(2);
    let panic = panic_of(&pool, |worker| {
        let phase = || worker.each(2, |_| panic!("caught"));
        assert!(catch_unwind(AssertUnwindSafe(phase)).is_err());
    });
    assert!(message(panic).contains("caught the panic"));
    assert_usable(&pool);
}

#[test]
fn a_program_within_a_program_is_refused() {
    for threads in [1, 2] {
        let (outer, inner) = (pool(threads), pool(threads));
        for within in [&outer, &inner] {
            let panic = panic_of(&outer, |worker| worker.each(2, |_| within.run(|_| {})));
            assert!(message(panic).contains("another one within it"));
        }
        assert_usable(&outer);
        assert_usable(&inner);
    }
}

#[test]
fn too_many_indices_are_refused() {
    let panic = panic_of(&pool(2), |worker| worker.each(usize::MAX, |_| {}));
    assert!(message(panic).contains("too many indices"));
}

#[test]
fn programs_of_two_callers_take_turns() {
    let pool = pool(2);
    let running = AtomicBool::new(false);
    let sum = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..500 {
                    pool.run(|worker| {
                        worker.each(1, |_| assert!(!running.swap(true, SeqCst)));
                        worker.each(10, |index| {
                            sum.fetch_add(index, SeqCst);
                        });
                        worker.each(1, |_| assert!(running.swap(false, SeqCst)));
                    });
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), 2 * 500 * 45);
}

#[test]
fn an_idle_pool_ends_when_dropped() {
    for threads in [1, 2, 8] {
        drop(pool(threads));
        let used = pool(threads);
        assert_usable(&used);
        drop(used);
        let asleep = pool(threads);
        assert_usable(&asleep);
        thread::sleep(Duration::from_millis(10));
        assert_usable(&asleep);
    }
}

#[test]
fn many_tiny_phases_end_soon() {
    let pool = pool(2);
    let sum = AtomicUsize::new(0);
    let start = Instant::now();
    for _ in 0..1000 {
        pool.run(|worker| {
            for _ in 0..200 {
                worker.each(2, |index| {
                    sum.fetch_add(index + 1, SeqCst);
                });
            }
        });
    }
    assert_eq!(sum.into_inner(), 3 * 200_000);
    // A hundred microseconds each; an idle machine needs one.
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn as_many_threads_as_asked_for_or_as_there_are() {
    assert_eq!(threads_to_use(Some(3)).get(), 3);
    let all = thread::available_parallelism().unwrap();
    assert_eq!(threads_to_use(None), all);
    assert_eq!(threads_to_use(Some(0)), all);
}
