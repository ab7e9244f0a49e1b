//! Every order in which the steps of two or three threads can fall, for the words that decide who leads a worker's loop,
//! who answers a request, and who has a connection when the process crashes. The files under test are compiled here with loom's primitives in place of std's.

#![allow(dead_code)]

pub mod atomics {
    pub use loom::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
    pub use loom::sync::{Condvar, Mutex, MutexGuard};
    pub use loom::thread::yield_now;

    /// Loom's cell reports two threads that use it without an order between them.
    pub struct Cell<T>(loom::cell::UnsafeCell<T>);

    impl<T> Cell<T> {
        pub fn new(value: T) -> Cell<T> {
            Cell(loom::cell::UnsafeCell::new(value))
        }

        pub fn pointer(&self) -> *mut T {
            self.0.with_mut(|pointer| pointer)
        }
    }
}

pub mod sys {
    pub use crate::atomics;
}

#[path = "../src/sys/baton.rs"]
mod baton;
#[path = "../src/exchange/claim.rs"]
mod claim;
#[path = "../src/event_loop/roll.rs"]
mod roll;

use loom::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use loom::sync::Arc;
use loom::thread;

use baton::{Baton, Standing};
use claim::{Claim, Overrun, Stage};

/// What the helper does when it finds the baton lent: takes it over, uses the value, gives it back.
fn rescue(baton: &Baton<u32>, turn: u64) -> bool {
    match baton.seize(turn) {
        Some(mut held) => {
            *held += 100;
            held.restore(turn);
            true
        }
        None => false,
    }
}

fn lend_and_recall(baton: &Baton<u32>, turn: u64) {
    let mut held = baton.take();
    *held += 1;
    let lent = held.lend(turn);
    // Here the application runs.
    let mut held = lent.recall().unwrap_or_else(|lent| lent.wait());
    *held += 1;
}

#[test]
fn the_lender_gets_its_baton_back_from_the_helper() {
    loom::model(|| {
        let baton = Arc::new(Baton::new(0));
        let helper = {
            let baton = baton.clone();
            thread::spawn(move || rescue(&baton, 1))
        };
        lend_and_recall(&baton, 1);
        let rescued = helper.join().unwrap();
        assert_eq!(*baton.take(), if rescued { 102 } else { 2 });
    });
}

#[test]
fn a_helper_that_comes_twice_never_holds_it_beside_the_lender() {
    loom::model(|| {
        let baton = Arc::new(Baton::new(0));
        let helper = {
            let baton = baton.clone();
            thread::spawn(move || u32::from(rescue(&baton, 1)) + u32::from(rescue(&baton, 2)))
        };
        lend_and_recall(&baton, 1);
        lend_and_recall(&baton, 2);
        let rescued = helper.join().unwrap();
        assert_eq!(*baton.take(), 4 + 100 * rescued);
    });
}

#[test]
fn a_parked_thread_is_promoted_and_the_lender_waits_its_turn() {
    // Three threads have too many orders for all of them; three forced switches are enough for every known bug.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let baton = Arc::new(Baton::new(0));
        let follower = {
            let baton = baton.clone();
            thread::spawn(move || *baton.take() += 10)
        };
        let helper = {
            let baton = baton.clone();
            // Promotion: what is seized is passed on.
            thread::spawn(move || drop(baton.seize(1)))
        };
        lend_and_recall(&baton, 1);
        follower.join().unwrap();
        helper.join().unwrap();
        assert_eq!(*baton.take(), 12);
        assert_eq!((baton.standing(), baton.parked()), (Standing::Free, 0));
    });
}

#[test]
fn a_thread_that_returns_while_the_helper_gives_back_is_not_forgotten() {
    loom::model(|| {
        let baton = Arc::new(Baton::new(0));
        let lent = baton.take().lend(1);
        let returning = {
            let baton = baton.clone();
            thread::spawn(move || *baton.take() += 10)
        };
        // Without a second look at who is parked, the thread would sleep on while the lender is in the application.
        let rescued = rescue(&baton, 1);
        assert!(rescued);
        drop(lent.recall().unwrap_or_else(|lent| lent.wait()));
        returning.join().unwrap();
        assert_eq!(*baton.take(), 110);
    });
}

/// The claim of a call whose response has begun.
fn replying(fd: i32) -> Claim {
    let claim = Claim::default();
    claim.open(fd);
    assert!(claim.begin_reply());
    claim
}

#[test]
fn a_request_is_answered_once() {
    loom::model(|| {
        let claim = Arc::new(Claim::default());
        let answers = Arc::new(AtomicUsize::new(0));
        claim.open(7);
        let helper = {
            let (claim, answers) = (claim.clone(), answers.clone());
            thread::spawn(move || {
                if let Overrun::Answer(fd) = claim.overrun(claim.look()) {
                    assert_eq!(fd, 7);
                    answers.fetch_add(1, SeqCst);
                    claim.answered();
                }
            })
        };
        if claim.begin_reply() {
            answers.fetch_add(1, SeqCst);
        }
        let ended = claim.close();
        assert_eq!(answers.load(SeqCst), 1, "{ended:?}");
        helper.join().unwrap();
    });
}

/// An interim response leaves the answer open.
#[test]
fn nobody_answers_inside_an_interim_response() {
    loom::model(|| {
        let claim = Arc::new(Claim::default());
        let inside = Arc::new(AtomicUsize::new(0));
        claim.open(7);
        let helper = {
            let (claim, inside) = (claim.clone(), inside.clone());
            thread::spawn(move || match claim.overrun(claim.look()) {
                Overrun::Answer(_) => {
                    assert_eq!(inside.load(SeqCst), 0);
                    claim.answered();
                    true
                }
                _ => false,
            })
        };
        let mut replied = claim.begin_reply();
        if replied {
            inside.store(1, SeqCst);
            inside.store(0, SeqCst);
            // Otherwise the helper has seen it begin, and has left the answer to this thread.
            replied = !claim.pause_reply() || claim.begin_reply();
        }
        assert_ne!(helper.join().unwrap(), replied);
    });
}

#[test]
fn the_next_call_is_not_answered_for_the_last() {
    loom::model(|| {
        let claim = Arc::new(Claim::default());
        let sockets = Arc::new(AtomicUsize::new(7));
        claim.open(7);
        let helper = {
            let (claim, sockets) = (claim.clone(), sockets.clone());
            let seen = claim.look();
            thread::spawn(move || {
                if let Overrun::Answer(fd) = claim.overrun(seen) {
                    // The thread may not have closed the connection meanwhile.
                    assert_eq!(fd as usize, sockets.load(SeqCst));
                    claim.answered();
                }
            })
        };
        claim.close();
        sockets.store(8, SeqCst);
        claim.open(8);
        assert!(claim.begin_reply());
        helper.join().unwrap();
        assert_eq!(claim.look().stage(), Stage::Sent);
    });
}

#[test]
fn a_call_that_ran_too_long_finds_its_request_answered() {
    loom::model(|| {
        let claim = Claim::default();
        claim.open(7);
        assert_eq!(claim.overrun(claim.look()), Overrun::Answer(7));
        assert!(!claim.begin_reply());
        claim.answered();
        assert!(!claim.begin_reply());
        assert_eq!(claim.close(), Stage::Expired);
    });
}

#[test]
fn a_response_that_has_begun_is_not_answered_again() {
    loom::model(|| {
        let claim = replying(7);
        assert_eq!(claim.overrun(claim.look()), Overrun::TooLate(7));
        assert_eq!(claim.overrun(claim.look()), Overrun::Gone);
        assert_eq!(claim.close(), Stage::Late);
    });
}

#[test]
fn a_crash_answers_only_where_nobody_else_has() {
    loom::model(|| {
        let claim = Arc::new(Claim::default());
        claim.open(7);
        let crashing = claim.clone();
        let crash = thread::spawn(move || (crashing.crash(), crashing.crash()));
        let replied = claim.begin_reply();
        match crash.join().unwrap() {
            (Overrun::Answer(7), Overrun::Answer(7)) => assert!(!replied),
            (Overrun::TooLate(7), Overrun::TooLate(7)) => assert!(replied),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_crash_leaves_a_whole_response_whole() {
    loom::model(|| {
        let claim = Arc::new(replying(7));
        let crashing = claim.clone();
        let crash = thread::spawn(move || (crashing.crash(), crashing.crash()));
        claim.end_reply(false);
        let whole = Overrun::Replied { fd: 7, persists: false };
        let (first, second) = crash.join().unwrap();
        // It may leave between the two, or behind them.
        assert!(first == whole || first == Overrun::TooLate(7), "{first:?}");
        assert!(second == whole || second == first, "{second:?}");
        assert_eq!((claim.crash(), claim.crash()), (whole, whole));
    });
}

#[test]
fn what_has_left_is_known_of_this_call_only() {
    loom::model(|| {
        let claim = replying(7);
        claim.end_reply(false);
        assert_eq!(claim.close(), Stage::Sent);
        claim.open(8);
        assert!(claim.begin_reply());
        assert_eq!(claim.crash(), Overrun::TooLate(8));
        claim.end_reply(true);
        assert_eq!(claim.crash(), Overrun::Replied { fd: 8, persists: true });
    });
}

#[test]
fn what_runs_on_after_its_response_can_run_too_long() {
    loom::model(|| {
        let claim = replying(7);
        claim.end_reply(true);
        assert!(claim.look().is_running());
        assert_eq!(claim.overrun(claim.look()), Overrun::TooLate(7));
        assert!(claim.look().is_overdue());
        assert_eq!(claim.close(), Stage::Late);
    });
}

#[test]
fn a_crash_leaves_whole_what_has_run_too_long_since() {
    loom::model(|| {
        let claim = Arc::new(replying(7));
        let helper = {
            let claim = claim.clone();
            thread::spawn(move || claim.overrun(claim.look()))
        };
        claim.end_reply(true);
        // The mark may come between the helper's look and its swap; then it looks again at its next turn.
        assert!(matches!(helper.join().unwrap(), Overrun::TooLate(7) | Overrun::Gone));
        assert_eq!(claim.crash(), Overrun::Replied { fd: 7, persists: true });
    });
}

#[test]
fn the_helper_and_a_crash_do_not_both_answer() {
    loom::model(|| {
        let claim = Arc::new(Claim::default());
        claim.open(7);
        let crashing = claim.clone();
        let crash = thread::spawn(move || crashing.crash());
        let helper = claim.overrun(claim.look());
        let crash = crash.join().unwrap();
        assert!((helper == Overrun::Answer(7)) != (crash == Overrun::Answer(7)), "{helper:?} {crash:?}");
    });
}

/// Threads of the loop and the handler of a crash, by what the roll says.
mod roll_in_a_crash {
    use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
    use loom::sync::Arc;
    use loom::thread;

    use crate::roll::{Place, Roll, Standing};

    const FD: i32 = 7;

    /// A roll with one connection, which a thread has.
    fn roll() -> Arc<Roll> {
        let roll = Roll::of(1);
        roll.write(0, Place::new(FD, 0, false, true));
        Arc::new(roll)
    }

    /// What the handler of a crash finds, when it has given others so many moments.
    fn found(roll: &Roll, moments: usize) -> Option<Standing> {
        roll.take_all();
        for _ in 0..moments {
            match roll.look(0)?.standing() {
                Standing::Held | Standing::Parting => thread::yield_now(),
                _ => break,
            }
        }
        roll.look(0).map(Place::standing)
    }

    #[test]
    fn a_crash_has_a_waiting_connection_or_its_thread_has() {
        loom::model(|| {
            let roll = roll();
            roll.put(0, Standing::Idle);
            let in_use = Arc::new(AtomicBool::new(false));
            let crash = {
                let (roll, in_use) = (roll.clone(), in_use.clone());
                thread::spawn(move || {
                    let found = found(&roll, 2);
                    // What is idle is passed on: nobody may be using it.
                    assert!(found != Some(Standing::Idle) || !in_use.load(SeqCst));
                    found
                })
            };
            for _ in 0..2 {
                if !roll.try_move(0, Standing::Held) {
                    break;
                }
                in_use.store(true, SeqCst);
                in_use.store(false, SeqCst);
                roll.put(0, Standing::Idle);
            }
            let found = crash.join().unwrap();
            assert!(matches!(found, Some(Standing::Idle | Standing::Held)), "{found:?}");
            assert!(!roll.try_move(0, Standing::Held), "a thread has it after the crash");
        });
    }

    #[test]
    fn a_connection_that_is_left_to_another_worker_is_not_answered_in_a_crash_too() {
        loom::model(|| {
            let roll = roll();
            let served = Arc::new(AtomicUsize::new(0));
            let crash = {
                let (roll, served) = (roll.clone(), served.clone());
                thread::spawn(move || match found(&roll, 2) {
                    // Answered, or passed on.
                    Some(Standing::Held | Standing::Idle) => drop(served.fetch_add(1, SeqCst)),
                    Some(Standing::Parting) | None => {}
                    other => panic!("{other:?}"),
                })
            };
            if roll.try_move(0, Standing::Parting) {
                // The other worker has it from here on, and serves it.
                served.fetch_add(1, SeqCst);
                roll.leave(0);
            }
            crash.join().unwrap();
            assert!(served.load(SeqCst) <= 1, "two processes answer");
        });
    }

    #[test]
    fn a_connection_for_which_the_mailbox_has_no_room_is_the_crash_s_or_the_thread_s() {
        loom::model(|| {
            let roll = roll();
            let crash = {
                let roll = roll.clone();
                thread::spawn(move || found(&roll, 2))
            };
            let parted = roll.try_move(0, Standing::Parting);
            if parted {
                // It was not sent: the thread has it, and lets it wait here again.
                roll.put(0, Standing::Held);
                roll.put(0, Standing::Idle);
            }
            let found = crash.join().unwrap();
            match parted {
                true => assert!(
                    matches!(found, Some(Standing::Idle | Standing::Parting | Standing::Held)),
                    "{found:?}"
                ),
                false => assert_eq!(found, Some(Standing::Held)),
            }
            assert!(!roll.try_move(0, Standing::Held), "a thread has it after the crash");
        });
    }

    #[test]
    fn a_crash_sees_each_connection_that_has_been_taken_from_where_it_waits() {
        loom::model(|| {
            let roll = Arc::new(Roll::of(1));
            let waiting = Arc::new(AtomicBool::new(true));
            let taker = {
                let (roll, waiting) = (roll.clone(), waiting.clone());
                thread::spawn(move || {
                    let expected = roll.expect();
                    let taken = waiting.swap(false, SeqCst);
                    if taken {
                        roll.write(0, Place::new(FD, 0, false, true));
                    }
                    drop(expected);
                    taken
                })
            };
            // The handler first sees to it that nothing can be taken any more; the kernel puts the two in an order.
            waiting.swap(false, SeqCst);
            roll.take_all();
            while roll.is_expecting() {
                thread::yield_now();
            }
            let seen = roll.look(0);
            let taken = taker.join().unwrap();
            assert_eq!(
                seen.map(|place| (place.fd(), place.standing())),
                taken.then_some((FD, Standing::Held))
            );
        });
    }
}
