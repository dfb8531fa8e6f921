//! The thread pool of the native executor.
//!
//! A [`Pool`] runs *programs*. A program is one closure that every thread of the pool runs, and
//! consists of *phases*: each call of [`Worker::each`] is a parallel loop, which ends when all
//! its indices are done.
//!
//! A phase waits for its indices, never for a thread. Threads claim indices one by one, so a
//! thread that the system has preempted delays at most the one index that it has claimed; a
//! thread that arrives after the end of a phase continues with the next one. A waiting thread
//! spins only briefly before it sleeps, because the core that it occupies may be the one that a
//! preempted thread needs.

use std::any::Any;
use std::cell::Cell;
use std::io;
use std::mem;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

mod signal;
#[cfg(test)]
mod tests;

use signal::{Signal, lock};

/// The time that a thread spins for the end of a phase before it sleeps: longer than most
/// indices take, so that on idle cores hardly any thread sleeps, and a hundredth of a scheduler
/// time slice.
const PHASE_SPIN: Duration = Duration::from_micros(30);

/// The time that a worker spins for the next program: the next decode step follows as soon as a
/// token is sampled.
const PROGRAM_SPIN: Duration = Duration::from_micros(100);

/// Returns the number of compute threads: the requested number, or without one (`None` or zero)
/// the number of threads that this process may run at once.
///
/// The latter is [`thread::available_parallelism`], which on Linux respects the affinity mask
/// of the process and the CPU quota of its cgroup. It counts hardware threads, so twice the
/// number of cores if each core runs two.
pub fn threads_to_use(requested: Option<usize>) -> NonZeroUsize {
    requested
        .and_then(NonZeroUsize::new)
        .or_else(|| thread::available_parallelism().ok())
        .unwrap_or(NonZeroUsize::MIN)
}

/// Threads that run one program at a time, together with the caller of [`Pool::run`].
///
/// Dropping the pool ends its threads.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    /// One fewer than the pool has threads; the caller of `run` is the other one.
    workers: Vec<JoinHandle<()>>,
    /// Held while a program runs.
    turn: Mutex<()>,
}

impl Pool {
    /// Creates a pool of `threads` threads, including the caller of [`Pool::run`].
    ///
    /// # Errors
    /// A thread cannot be spawned.
    pub fn new(threads: NonZeroUsize) -> io::Result<Pool> {
        let mut pool = Pool {
            shared: Arc::default(),
            workers: Vec::new(),
            turn: Mutex::new(()),
        };
        // If one of them fails, dropping the pool ends the previous ones.
        for number in 1..threads.get() {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new()
                .name(format!("compute-{number}"))
                .spawn(move || shared.work(number))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// The maximum number of threads that run a program; [`Worker::thread`] is less.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs a program on this thread and on the threads of the pool that wake up before it
    /// ends; returns when all of them have left it. While another caller's program runs, this
    /// one waits.
    ///
    /// All threads must call [`Worker::each`] equally often and with the same counts, or the
    /// program may hang. Code between these calls may run late, while other threads are phases
    /// ahead; so it must neither write shared data nor read data that a phase writes, but only
    /// prepare the next call.
    ///
    /// # Panics
    /// If the program panics on any thread: the other threads abandon it at their next call of
    /// [`Worker::each`], and the panic is resumed here. The pool stays usable. Also if called
    /// from within a program of this or another pool. (A program that waits for a thread that
    /// calls `run` is not detected: it waits forever.)
    pub fn run(&self, program: impl Fn(&mut Worker<'_>) + Sync) {
        assert!(
            !IN_PROGRAM.get(),
            "a program must not run another one within it"
        );
        let turn = lock(&self.turn);
        if self.workers.is_empty() {
            let _inside = Inside::enter();
            program(&mut Worker {
                shared: None,
                thread: 0,
                phase: 0,
            });
            return;
        }
        let complete = self.shared.run(&program);
        let panics = mem::take(&mut *lock(&self.shared.panics));
        drop(turn);
        if let Some(first) = panics.into_iter().next() {
            resume_unwind(first);
        }
        assert!(complete, "a program caught the panic of one of its phases");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.door.0.fetch_or(END, SeqCst);
        self.shared.door_changed.notify();
        for worker in self.workers.drain(..) {
            // Workers catch the panics of their programs.
            let _ = worker.join();
        }
    }
}

/// The participation of one thread in a program.
#[derive(Debug)]
pub struct Worker<'pool> {
    /// `None` if there is no other thread.
    shared: Option<&'pool Shared>,
    thread: usize,
    /// The phase of the next call of `each`.
    phase: u32,
}

impl Worker<'_> {
    /// The number of this thread, less than [`Pool::threads`]: unique among the threads of the
    /// program.
    pub fn thread(&self) -> usize {
        self.thread
    }

    /// Runs `work` once for every index below `count`, each on some thread, and returns when
    /// all are done: their writes are then visible here, and to every index of later phases.
    ///
    /// # Panics
    /// If the program has panicked on another thread, or if the count or the number of phases
    /// of the program reaches 2³² − 1.
    pub fn each(&mut self, count: usize, mut work: impl FnMut(usize)) {
        let Some(shared) = self.shared else {
            (0..count).for_each(work);
            return;
        };
        if count == 0 {
            return;
        }
        let phase = self.phase;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        assert!(
            count.max(phase) < u32::MAX,
            "a phase of too many indices, or a program of too many phases"
        );
        self.phase += 1;
        let on_panic = Abandon(shared);
        let mut finished = 0;
        while let Some(index) = shared.claim(phase, count) {
            work(index as usize);
            finished += 1;
        }
        mem::forget(on_panic);
        shared.finish(phase, count, finished);
    }
}

/// A program, as seen by the threads.
type Program<'a> = dyn Fn(&mut Worker<'_>) + Sync + 'a;

/// The state that the threads of a pool share.
#[derive(Debug, Default)]
struct Shared {
    /// The running phase in the upper half, its next unclaimed index in the lower half; or
    /// `ABANDONED`. Each program begins at zero.
    ticket: Line<AtomicU64>,
    /// The number of finished indices of the running phase.
    done: Line<AtomicU32>,
    /// Notified when a phase has ended or the program was abandoned.
    ticket_changed: Signal,
    /// The number of workers in the program, and the bits below.
    door: Line<AtomicU64>,
    /// Notified when a program begins and when the pool ends.
    door_changed: Signal,
    /// Notified when the last worker has left a program.
    empty: Signal,
    /// The running program. It points into the stack of `run`.
    program: AtomicPtr<&'static Program<'static>>,
    /// The payloads of the program's panics.
    panics: Mutex<Vec<Box<dyn Any + Send>>>,
}

/// The ticket of a program that has panicked. It stays until the next program begins, because
/// claims and ends of phases replace only the tickets they expect.
const ABANDONED: u64 = u64::MAX;

/// The bits of the door that count the workers in the program.
const INSIDE: u64 = (1 << 32) - 1;
/// The bit of the door that lets workers into the program.
const OPEN: u64 = 1 << 32;
/// The bit of the door that ends the workers.
const END: u64 = 1 << 33;
/// The remaining bits of the door are the program's number, by which a worker recognizes a new
/// program. They may wrap around: at worst a worker misses a program.
const NUMBER: u64 = 1 << 34;

impl Shared {
    /// Runs a program on this thread and on the workers that join, and returns when they have
    /// left. Returns false if the program was abandoned.
    fn run<'a>(&self, program: &'a Program<'a>) -> bool {
        // No worker is inside and the door is closed, so no thread reads these until the door
        // is open. Opening it releases them; the exchange by which a worker enters acquires
        // them.
        self.ticket.0.store(0, Relaxed);
        self.done.0.store(0, Relaxed);
        let pointer: *const &'a Program<'a> = &program;
        self.program.store(pointer.cast_mut().cast(), Relaxed);
        self.door.0.fetch_add(NUMBER | OPEN, SeqCst);
        self.door_changed.notify();

        // From here until the last worker has left, nothing may return or unwind: `take_part`
        // catches the panics of the program, and the rest cannot panic.
        self.take_part(0, program);
        self.door.0.fetch_and(!OPEN, SeqCst);
        // The count is changed only by read-modify-writes, so reading zero acquires everything
        // that the workers released when they left.
        self.empty
            .wait_until(PHASE_SPIN, || self.door.0.load(SeqCst) & INSIDE == 0);
        self.ticket.0.load(Relaxed) != ABANDONED
    }

    /// The main loop of a worker.
    fn work(&self, thread: usize) {
        let mut last = 0;
        loop {
            self.door_changed.wait_until(PROGRAM_SPIN, || {
                let door = self.door.0.load(SeqCst);
                door & END != 0 || may_enter(door, last)
            });
            if self.door.0.load(SeqCst) & END != 0 {
                return;
            }
            let Some(number) = self.enter(last) else {
                continue;
            };
            last = number;
            // SAFETY: the pointer is that of the program which this thread has entered: `run`
            // writes it before it opens the door, and does not write it again before this
            // thread has left. Until then `run` does not return, so the reference pointed to
            // and everything that the program borrows stay alive. The program is `Sync`.
            let program: &Program<'_> = unsafe { *self.program.load(Relaxed) };
            self.take_part(thread, program);
            if self.door.0.fetch_sub(1, SeqCst) & INSIDE == 1 {
                self.empty.notify();
            }
        }
    }

    /// Enters a program other than the one numbered `last`, unless it has ended, and returns
    /// its number.
    fn enter(&self, last: u64) -> Option<u64> {
        let door = &self.door.0;
        let mut seen = door.load(Relaxed);
        while may_enter(seen, last) {
            match door.compare_exchange_weak(seen, seen + 1, Acquire, Relaxed) {
                Ok(_) => return Some(number(seen)),
                Err(now) => seen = now,
            }
        }
        None
    }

    /// Runs a program as one of its threads and stores the payload of a panic.
    fn take_part(&self, thread: usize, program: &Program<'_>) {
        let _inside = Inside::enter();
        let mut worker = Worker {
            shared: Some(self),
            thread,
            phase: 0,
        };
        // Inconsistent state after a panic is the concern of the caller of `run`, where the
        // panic is resumed.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| program(&mut worker))) {
            if !panic.is::<Abandoned>() {
                lock(&self.panics).push(panic);
            }
            self.abandon();
        }
    }

    /// Claims the next index of the phase, if there is one.
    ///
    /// The exchange succeeds only on the loaded value, hence never in a later phase. It needs
    /// no ordering: the writes of earlier phases are visible since this thread left the
    /// previous phase (see `finish`) or entered the program. But because it is a
    /// read-modify-write, threads that read its ticket acquire what the end of the previous
    /// phase released.
    fn claim(&self, phase: u32, count: u32) -> Option<u32> {
        let ticket = &self.ticket.0;
        let mut seen = ticket.load(Relaxed);
        while phase_of(seen) == phase && index_of(seen) < count {
            match ticket.compare_exchange_weak(seen, seen + 1, Relaxed, Relaxed) {
                Ok(_) => return Some(index_of(seen)),
                Err(now) => seen = now,
            }
        }
        None
    }

    /// Reports how many indices of a phase this thread has finished, and returns when the phase
    /// has ended.
    fn finish(&self, phase: u32, count: u32, finished: u32) {
        // A thread reports once per phase, when no index is left to claim. The report releases
        // the writes of its indices, the last report acquires those of all threads, and then
        // the next phase is opened with a release. Threads that see this phase in the ticket,
        // or a later one, acquire all of this.
        if finished > 0 && self.done.0.fetch_add(finished, AcqRel) + finished == count {
            // All indices are counted, so no thread adds to the sum of this phase any more, and
            // none adds to that of the next phase before its ticket is set.
            self.done.0.store(0, Relaxed);
            let over = ticket(phase, count);
            let next = ticket(phase + 1, 0);
            // Fails only if the program has been abandoned.
            let opened = self.ticket.0.compare_exchange(over, next, SeqCst, Relaxed);
            if opened.is_ok() {
                self.ticket_changed.notify();
            }
        }
        self.ticket_changed
            .wait_until(PHASE_SPIN, || phase_of(self.ticket.0.load(SeqCst)) != phase);
        if self.ticket.0.load(Relaxed) == ABANDONED {
            // Indices may be missing, and the program may rely on all of them, so it must not
            // continue. Resuming does not call the panic hook.
            resume_unwind(Box::new(Abandoned));
        }
    }

    /// Makes all threads leave the program at their next call of `each`.
    fn abandon(&self) {
        self.ticket.0.store(ABANDONED, SeqCst);
        self.ticket_changed.notify();
    }
}

fn ticket(phase: u32, index: u32) -> u64 {
    u64::from(phase) << 32 | u64::from(index)
}

fn phase_of(ticket: u64) -> u32 {
    (ticket >> 32) as u32
}

fn index_of(ticket: u64) -> u32 {
    ticket as u32
}

fn number(door: u64) -> u64 {
    door / NUMBER
}

fn may_enter(door: u64, last: u64) -> bool {
    door & OPEN != 0 && number(door) != last
}

/// The panic payload of a thread that leaves a program because another thread panicked.
struct Abandoned;

/// Abandons the program when dropped. An index that panics is never counted, so its phase
/// cannot end, even if the program catches the panic.
struct Abandon<'a>(&'a Shared);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

thread_local! {
    static IN_PROGRAM: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as being in a program.
struct Inside;

impl Inside {
    fn enter() -> Inside {
        IN_PROGRAM.set(true);
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        IN_PROGRAM.set(false);
    }
}

/// Aligns values that different threads write to separate cache lines, which processors fetch
/// in pairs of 64 bytes.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line<T>(T);
