//! The thread pool that kernels run on.
//!
//! A [`Pool`] runs *programs*. A program is one closure that every thread of
//! the pool runs, and consists of *phases*: each call of [`Crew::each`] is a
//! parallel loop, and is over when all its indices are done.
//!
//! A phase waits for its work, never for a thread. Threads claim indices one
//! by one, so a thread that the system has taken off its core holds up at most
//! the one index that it has claimed; whoever comes late to a phase that is
//! over goes on to the next. And a thread that waits spins only briefly before
//! it sleeps, for the core that it leaves may be the one that is missing.

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

/// How long a thread spins for the end of a phase before it sleeps: longer than
/// most indices take, so that on idle cores hardly any thread sleeps, and a
/// hundredth of what the system lets another process run.
const PHASE_SPIN: Duration = Duration::from_micros(30);

/// How long a worker spins for the next program: one decode step follows
/// another after a token is sampled.
const PROGRAM_SPIN: Duration = Duration::from_micros(100);

/// How many threads to compute with: as many as are asked for, or else (`None`
/// or zero) as many as this process may run at once.
///
/// The latter is [`thread::available_parallelism`], which on Linux honours the
/// process's affinity mask and its cgroup's CPU quota. It counts hardware
/// threads, so twice the cores where a core runs two.
pub fn threads_to_use(requested: Option<usize>) -> NonZeroUsize {
    requested
        .and_then(NonZeroUsize::new)
        .or_else(|| thread::available_parallelism().ok())
        .unwrap_or(NonZeroUsize::MIN)
}

/// Threads that run one program at a time, together with the caller of
/// [`Pool::run`].
///
/// Dropping the pool ends its threads.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    /// One fewer than the pool has threads; the caller of `run` is the other.
    workers: Vec<JoinHandle<()>>,
    /// Held while a program runs.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool of that many threads, the caller of [`Pool::run`] among them.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(threads: NonZeroUsize) -> io::Result<Pool> {
        let mut pool = Pool {
            shared: Arc::default(),
            workers: Vec::new(),
            turn: Mutex::new(()),
        };
        // Should one of them fail, dropping the pool ends those before it.
        for number in 1..threads.get() {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new()
                .name(format!("compute-{number}"))
                .spawn(move || shared.work(number))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// How many threads run a program at most: [`Crew::thread`] is below it.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs a program on this thread and on those of the pool that are awake
    /// before it is over; returns when all of them have left it. While another
    /// caller's program runs, this one waits.
    ///
    /// All threads must call [`Crew::each`] equally often and with the same
    /// counts, or the program may hang. What stands between these calls may
    /// run late, while other threads are phases ahead; so it must neither
    /// write what is shared nor read what a phase writes, but only prepare the
    /// next call.
    ///
    /// # Panics
    /// When the program panics on any thread: the others abandon it at their
    /// next call of [`Crew::each`], and the panic goes on here. The pool stays
    /// usable. Also when called from within a program, this pool's or
    /// another's. (A program that waits for a thread which calls `run` is not
    /// detected: it waits forever.)
    pub fn run(&self, program: impl Fn(&mut Crew<'_>) + Sync) {
        assert!(
            !IN_PROGRAM.get(),
            "a program must not run another one within it"
        );
        let turn = lock(&self.turn);
        if self.workers.is_empty() {
            let _inside = Inside::enter();
            program(&mut Crew {
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
            // A worker catches the panics of its programs.
            let _ = worker.join();
        }
    }
}

/// One thread's part in a program.
#[derive(Debug)]
pub struct Crew<'pool> {
    /// None when there is no other thread.
    shared: Option<&'pool Shared>,
    thread: usize,
    /// The phase that the next call of `each` is.
    phase: u32,
}

impl Crew<'_> {
    /// This thread's number, from 0 up to [`Pool::threads`]: no two threads
    /// have the same at once.
    pub fn thread(&self) -> usize {
        self.thread
    }

    /// Runs `work` once for every index below `count`, each on some thread,
    /// and returns when all are done: what they wrote is then visible here,
    /// and to every index of later phases.
    ///
    /// # Panics
    /// When the program has panicked on another thread, and when the count or
    /// the number of the program's phases reaches 2³² − 1.
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

/// A program as the threads see it.
type Program<'a> = dyn Fn(&mut Crew<'_>) + Sync + 'a;

/// What the threads of a pool share.
#[derive(Debug, Default)]
struct Shared {
    /// The running phase in the upper half, its next unclaimed index in the
    /// lower; or `ABANDONED`. Each program begins at zero.
    ticket: Line<AtomicU64>,
    /// How many of the running phase's indices are done.
    done: Line<AtomicU32>,
    /// Notified when a phase is over or the program abandoned.
    ticket_changed: Signal,
    /// How many workers are in the program, and the bits below.
    door: Line<AtomicU64>,
    /// Notified when a program begins and when the pool ends.
    door_changed: Signal,
    /// Notified when the last worker has left a program.
    empty: Signal,
    /// The running program. It points into the stack of `run`.
    program: AtomicPtr<&'static Program<'static>>,
    /// What the program panicked with.
    panics: Mutex<Vec<Box<dyn Any + Send>>>,
}

/// The ticket of a program that has panicked. It stays until the next program
/// begins, as claims and ends of phases only replace tickets that they expect.
const ABANDONED: u64 = u64::MAX;

/// The part of the door that counts the workers in the program.
const INSIDE: u64 = (1 << 32) - 1;
/// The door's bit that lets workers into the program.
const OPEN: u64 = 1 << 32;
/// The door's bit that sends the workers home.
const END: u64 = 1 << 33;
/// The rest of the door is the program's number, by which a worker knows that
/// it has not been in it yet. It may wrap: at worst a worker misses a program.
const NUMBER: u64 = 1 << 34;

impl Shared {
    /// Runs a program on this thread and on the workers that come, and returns
    /// when they have left: whether it was not abandoned.
    fn run<'a>(&self, program: &'a Program<'a>) -> bool {
        // No worker is inside and the door is closed, so nobody looks at these
        // until the door is open. Opening it releases them; the exchange by
        // which a worker comes in acquires them.
        self.ticket.0.store(0, Relaxed);
        self.done.0.store(0, Relaxed);
        let pointer: *const &'a Program<'a> = &program;
        self.program.store(pointer.cast_mut().cast(), Relaxed);
        self.door.0.fetch_add(NUMBER | OPEN, SeqCst);
        self.door_changed.notify();

        // From here until the last worker has left, nothing may return or
        // unwind: `take_part` catches the program's panics, and the rest has
        // none.
        self.take_part(0, program);
        self.door.0.fetch_and(!OPEN, SeqCst);
        // The count is changed by read-modify-writes only, so to see it at
        // zero acquires what every worker released when it left.
        self.empty
            .wait_until(PHASE_SPIN, || self.door.0.load(SeqCst) & INSIDE == 0);
        self.ticket.0.load(Relaxed) != ABANDONED
    }

    /// A worker's life.
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
            // SAFETY: the pointer is that of the program which this thread has
            // entered: `run` writes it before it opens the door, and not again
            // before this thread has left. Until then `run` does not return,
            // and so keeps alive both the reference pointed to and all that
            // the program borrows. The program is `Sync`.
            let program: &Program<'_> = unsafe { *self.program.load(Relaxed) };
            self.take_part(thread, program);
            if self.door.0.fetch_sub(1, SeqCst) & INSIDE == 1 {
                self.empty.notify();
            }
        }
    }

    /// Enters a program other than the one numbered `last`, unless it is over,
    /// and returns its number.
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

    /// Runs a program as one of its threads; keeps what it panics with.
    fn take_part(&self, thread: usize, program: &Program<'_>) {
        let _inside = Inside::enter();
        let mut crew = Crew {
            shared: Some(self),
            thread,
            phase: 0,
        };
        // Whatever a panic leaves half-done is for the caller of `run` to
        // judge, which sees the panic as if it were its own.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| program(&mut crew))) {
            if !panic.is::<Abandoned>() {
                lock(&self.panics).push(panic);
            }
            self.abandon();
        }
    }

    /// Takes the phase's next index, if there is one.
    ///
    /// The exchange succeeds only on what was loaded, hence never in a later
    /// phase. It orders nothing: what earlier phases wrote is visible since
    /// this thread left the one before (see `finish`) or entered the program.
    /// But being a read-modify-write, it lets those who read its ticket acquire
    /// what the end of the phase before released.
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

    /// Reports how many of a phase's indices this thread has finished, and
    /// returns when the phase is over.
    fn finish(&self, phase: u32, count: u32, finished: u32) {
        // A thread reports once in a phase, when nothing is left to claim. The
        // report releases what its indices wrote, the last one acquires what
        // all have, and then the next phase is opened with a release. Those who
        // see that phase in the ticket, or a later one, acquire all of this.
        if finished > 0 && self.done.0.fetch_add(finished, AcqRel) + finished == count {
            // All are counted, so nobody adds to this phase's sum any more,
            // and nobody to the next one's before its ticket is there.
            self.done.0.store(0, Relaxed);
            let over = ticket(phase, count);
            let next = ticket(phase + 1, 0);
            // Fails only when the program has been abandoned.
            let opened = self.ticket.0.compare_exchange(over, next, SeqCst, Relaxed);
            if opened.is_ok() {
                self.ticket_changed.notify();
            }
        }
        self.ticket_changed
            .wait_until(PHASE_SPIN, || phase_of(self.ticket.0.load(SeqCst)) != phase);
        if self.ticket.0.load(Relaxed) == ABANDONED {
            // Indices may be missing, and a program may rely on all of them,
            // so it must not go on. This does not call the panic hook.
            resume_unwind(Box::new(Abandoned));
        }
    }

    /// Lets all threads leave the program at their next call of `each`.
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

/// What a thread unwinds with that leaves a program because another panicked.
struct Abandoned;

/// Abandons the program when dropped. An index that panics is never counted,
/// so its phase cannot end, even if the program catches the panic.
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

/// Keeps what different threads write out of each other's cache lines, which
/// processors fetch in pairs of 64 bytes.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line<T>(T);
