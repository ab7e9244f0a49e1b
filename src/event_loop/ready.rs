//! Owns: the order in which what is ready has its turn, once it cannot be served as it is found.
//! Rule: first come, first served, each at most once in the queue. What has had its share of a thread (`give_way`) comes
//! behind all that is ready at the next look at the poller, though nobody has seen that yet.
//! Never: knows what a token stands for.

use std::collections::{HashSet, VecDeque};

#[derive(Default)]
pub(super) struct ReadyQueue {
    order: VecDeque<u64>,
    /// These follow what the next look at the poller finds.
    yielded: Vec<u64>,
    members: HashSet<u64>,
}

impl ReadyQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn contains(&self, token: u64) -> bool {
        self.members.contains(&token)
    }

    /// At the end, unless it is in the queue already.
    pub(super) fn push(&mut self, token: u64) {
        if self.members.insert(token) {
            self.order.push_back(token);
        }
    }

    /// Behind all that is ready now.
    pub(super) fn give_way(&mut self, token: u64) {
        if self.members.insert(token) {
            self.yielded.push(token);
        }
    }

    /// After a look at the poller whose finds have been pushed; returns how many have their turn before the next look.
    pub(super) fn begin_round(&mut self) -> usize {
        self.order.extend(self.yielded.drain(..));
        self.order.len()
    }

    pub(super) fn pop(&mut self) -> Option<u64> {
        let token = self.order.pop_front()?;
        self.members.remove(&token);
        Some(token)
    }

    /// All that wait, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.order.iter().chain(&self.yielded).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLIENTS: usize = 8;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// A client asks, if it does not wait already.
        Ask(usize),
        /// The helper looks at the poller.
        Look,
        /// The leader serves the next, which then asks again at once, or has asked already and gives way, or is content.
        Serve(After),
    }

    #[derive(Clone, Copy, Debug)]
    enum After {
        AsksAgain,
        GivesWay,
        Content,
    }

    fn step() -> impl Strategy<Value = Step> {
        let after = prop_oneof![Just(After::AsksAgain), Just(After::GivesWay), Just(After::Content)];
        prop_oneof![
            (0..CLIENTS).prop_map(Step::Ask),
            Just(Step::Look),
            after.clone().prop_map(Step::Serve),
            after.prop_map(Step::Serve),
        ]
    }

    /// A loop of which only the order is left. The poller may tell what is ready in any order.
    #[derive(Default)]
    struct Model {
        queue: ReadyQueue,
        round: usize,
        ready: [bool; CLIENTS],
        /// Of each client that waits: how often each other has been served meanwhile.
        passed: [[u32; CLIENTS]; CLIENTS],
        rounds_waited: [u32; CLIENTS],
    }

    impl Model {
        fn ask(&mut self, client: usize) {
            if !self.ready[client] {
                (self.ready[client], self.passed[client], self.rounds_waited[client]) =
                    (true, [0; CLIENTS], 0);
            }
        }

        fn look(&mut self, first: usize) {
            let all = (0..CLIENTS).map(|n| (n + first) % CLIENTS);
            all.filter(|client| self.ready[*client]).for_each(|client| self.queue.push(client as u64));
        }

        fn serve(&mut self, after: After, first: usize) {
            if self.round == 0 {
                self.look(first);
                self.round = self.queue.begin_round();
                self.rounds_waited.iter_mut().for_each(|rounds| *rounds += 1);
            }
            self.round = self.round.saturating_sub(1);
            let Some(client) = self.queue.pop() else { return };
            let client = client as usize;
            assert!(self.ready[client], "served without a request");
            self.ready[client] = false;
            for other in (0..CLIENTS).filter(|other| self.ready[*other]) {
                self.passed[other][client] += 1;
            }
            match after {
                After::AsksAgain => self.ask(client),
                After::GivesWay => {
                    self.ask(client);
                    self.queue.give_way(client as u64);
                }
                After::Content => {}
            }
        }
    }

    proptest! {
        /// Whoever waits is passed over by each other once in the turn in which it became ready, and once in the next, in
        /// which it is served.
        #[test]
        fn nobody_is_passed_over_more_than_once_per_turn(
            steps in prop::collection::vec((step(), 0..CLIENTS), 0..400),
        ) {
            let mut model = Model::default();
            for (step, first) in steps {
                match step {
                    Step::Ask(client) => model.ask(client),
                    Step::Look => model.look(first),
                    Step::Serve(after) => model.serve(after, first),
                }
                for client in (0..CLIENTS).filter(|client| model.ready[*client]) {
                    prop_assert!(model.passed[client].iter().all(|passed| *passed <= 2), "{:?}", model.passed);
                    prop_assert!(model.rounds_waited[client] <= 2);
                }
            }
        }

        /// Where each is seen when it becomes ready, the order is that.
        #[test]
        fn what_is_seen_at_once_is_served_in_its_order(
            steps in prop::collection::vec((0..CLIENTS, any::<bool>()), 0..200),
        ) {
            let (mut queue, mut expected) = (ReadyQueue::default(), VecDeque::new());
            for (client, serves) in steps {
                let client = client as u64;
                if !expected.contains(&client) {
                    expected.push_back(client);
                }
                queue.push(client);
                prop_assert!(queue.contains(client));
                if serves {
                    prop_assert_eq!(queue.pop(), expected.pop_front());
                }
                prop_assert_eq!(queue.iter().collect::<Vec<_>>(), Vec::from(expected.clone()));
            }
        }
    }

    #[test]
    fn who_gives_way_comes_behind_those_whom_nobody_has_seen_yet() {
        let mut queue = ReadyQueue::default();
        queue.give_way(1);
        assert!(!queue.is_empty());
        assert_eq!(queue.pop(), None);
        queue.push(2);
        queue.push(1);
        assert_eq!(queue.begin_round(), 2);
        assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some(2), Some(1), None));
        assert!(queue.is_empty());
    }
}
