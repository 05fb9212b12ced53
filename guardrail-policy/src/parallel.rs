//! Work on many things that do not depend on each other, on the CPUs that there are.

use std::{num::NonZero, panic, thread};

/// Most threads: what is done here is done beside other work.
const MAX_THREADS: usize = 4;
/// Fewer things than this are not worth a thread each.
const WORTH_A_THREAD: usize = 32;

/// What `work` makes of these, in their order: the same as without threads.
pub(crate) fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
    let share = items.len().div_ceil(threads).max(WORTH_A_THREAD);
    let mut shares = items.chunks(share);
    let Some(first) = shares.next() else { return Vec::new() };
    let work = &work;
    thread::scope(|scope| {
        // Where there is no thread to be had, this one does it.
        let others: Vec<_> =
            shares.map(|share| (share, thread::Builder::new().spawn_scoped(scope, move || work(share)).ok())).collect();
        let mut done = vec![work(first)];
        for (share, thread) in others {
            done.push(match thread.map(thread::ScopedJoinHandle::join) {
                Some(Ok(result)) => result,
                Some(Err(panicked)) => panic::resume_unwind(panicked),
                None => work(share),
            });
        }
        done
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_what_they_are_of() {
        for count in [0, 1, 31, 32, 33, 1_000] {
            let items: Vec<usize> = (0..count).collect();
            let doubled = in_parallel(&items, |share| share.iter().map(|n| n * 2).collect::<Vec<_>>()).concat();
            assert_eq!(doubled, (0..count).map(|n| n * 2).collect::<Vec<_>>());
        }
    }
}
