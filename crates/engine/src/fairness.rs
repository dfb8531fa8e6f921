//! Fair scheduling among clients, and among the requests of one client.
//!
//! Slots are shared evenly among those that want some, regardless of the number of their
//! sequences. If two hold equally many slots, the one that was served less goes first, measured
//! by the rows that were computed for it (the virtual token counter, VTC, of Sheng et al. 2024,
//! <https://arxiv.org/abs/2401.00588>). A new or returning client begins at the level of the
//! least served one, or at the service that each client would have received by now with even
//! shares, if that is more: no client accumulates credit while it is idle, and none waits
//! behind newcomers forever (no starvation).
//!
//! A held slot can move to a waiting sequence, but only from an owner that holds at least two
//! more: then neither would take it back.

use std::collections::HashMap;

use super::client::{Client, Owner};

/// The service accounts of the clients that have something to do, and of those that have
/// received more than their share.
#[derive(Debug, Default)]
pub(super) struct Fairness {
    clients: HashMap<Client, Account>,
    /// The number of clients that have something to do.
    active: usize,
    /// The service that a permanently active client would have received with even shares.
    clock: u64,
    /// Rows that the clock does not include yet: fewer than the number of active clients.
    rest: u64,
}

#[derive(Debug, Default)]
struct Account {
    /// The rows computed, approximately: see [`Fairness::charge`].
    served: u64,
    requests: HashMap<u64, RequestAccount>,
}

#[derive(Debug)]
struct RequestAccount {
    served: u64,
    /// The number of its sequences that have not ended.
    sequences: usize,
}

impl Account {
    fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }
}

/// The priority among those that want a slot: the smallest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    client_slots: usize,
    client_served: u64,
    request_slots: usize,
    is_new: bool,
    request_served: u64,
}

impl Fairness {
    /// Records that a sequence has arrived.
    pub(super) fn enter(&mut self, owner: Owner) {
        let level = self.level();
        let account = self.clients.entry(owner.client).or_default();
        if account.is_idle() {
            account.served = account.served.max(level);
            self.active += 1;
        }
        let requests = account.requests.values();
        let least = requests.map(|request| request.served).min().unwrap_or(0);
        let request = account.requests.entry(owner.request);
        let request = request.or_insert(RequestAccount {
            served: least,
            sequences: 0,
        });
        request.sequences += 1;
    }

    /// Records that a sequence has ended, in any state.
    pub(super) fn leave(&mut self, owner: Owner) {
        let Some(account) = self.clients.get_mut(&owner.client) else {
            return;
        };
        if let Some(request) = account.requests.get_mut(&owner.request) {
            request.sequences -= 1;
            if request.sequences == 0 {
                account.requests.remove(&owner.request);
                self.active -= usize::from(account.is_idle());
            }
        }
        if account.is_idle() {
            // A client that would begin at this level anyway need not be remembered.
            let level = self.level();
            self.clients
                .retain(|_, account| !account.is_idle() || account.served > level);
        }
    }

    /// The level at which a new client begins: that of the least served active client, or
    /// without active clients that of the most served one; but never below the clock.
    fn level(&self) -> u64 {
        let served = |idle| {
            let accounts = self.clients.values();
            let those = accounts.filter(move |account| account.is_idle() == idle);
            those.map(|account| account.served)
        };
        let least = served(false).min();
        let level = least.or_else(|| served(true).max()).unwrap_or(0);
        level.max(self.clock)
    }

    /// Records work for a sequence, in prompt rows.
    pub(super) fn charge(&mut self, owner: Owner, work: usize) {
        if let Some(account) = self.clients.get_mut(&owner.client) {
            account.served += work as u64;
            self.rest += work as u64;
            let active = self.active.max(1) as u64;
            self.clock += self.rest / active;
            self.rest %= active;
            if let Some(request) = account.requests.get_mut(&owner.request) {
                request.served += work as u64;
            }
        }
    }

    /// Whether `one` was served at least `rows` rows more than `other`; if both belong to one
    /// client, its requests are compared. Always true for zero rows.
    pub(super) fn is_ahead(&self, one: Owner, other: Owner, rows: u64) -> bool {
        let account = |owner: Owner| self.clients.get(&owner.client);
        let served = |owner: Owner| {
            if one.client == other.client {
                account(owner)
                    .and_then(|account| account.requests.get(&owner.request))
                    .map_or(0, |request| request.served)
            } else {
                account(owner).map_or(0, |account| account.served)
            }
        };
        rows == 0 || served(one) >= served(other) + rows
    }

    /// The rank of a sequence that wants a slot. Among the sequences of one request, those that
    /// have begun come first.
    pub(super) fn rank(&self, holders: &Holders, owner: Owner, is_new: bool) -> Rank {
        let account = self.clients.get(&owner.client);
        let request = account.and_then(|account| account.requests.get(&owner.request));
        Rank {
            client_slots: holders.of_client(owner.client),
            client_served: account.map_or(0, |account| account.served),
            request_slots: holders.of_request(owner.request),
            is_new,
            request_served: request.map_or(0, |request| request.served),
        }
    }
}

/// The number of slots of each client and request.
#[derive(Debug, Default)]
pub(super) struct Holders {
    clients: HashMap<Client, usize>,
    requests: HashMap<u64, usize>,
    /// The maximum number of slots of a client, and of a request.
    most: (usize, usize),
}

impl Holders {
    /// Counts the owners of the sequences that hold slots.
    pub(super) fn count(owners: impl Iterator<Item = Owner>) -> Holders {
        let (mut clients, mut requests) = (HashMap::new(), HashMap::new());
        for owner in owners {
            *clients.entry(owner.client).or_default() += 1;
            *requests.entry(owner.request).or_default() += 1;
        }
        let most = |counts: Option<&usize>| counts.copied().unwrap_or(0);
        Holders {
            most: (most(clients.values().max()), most(requests.values().max())),
            clients,
            requests,
        }
    }

    fn of_client(&self, client: Client) -> usize {
        self.clients.get(&client).copied().unwrap_or(0)
    }

    fn of_request(&self, request: u64) -> usize {
        self.requests.get(&request).copied().unwrap_or(0)
    }

    /// The key by which sequences that hold slots give way: the largest gives way first.
    pub(super) fn excess(&self, owner: Owner) -> (usize, usize) {
        let (client, request) = (owner.client, owner.request);
        (self.of_client(client), self.of_request(request))
    }

    /// Whether any owner has a slot that may move to this one: a quick check that fails for
    /// most.
    pub(super) fn may_move_to(&self, to: Owner) -> bool {
        let (client, request) = self.excess(to);
        self.most.0 >= client + 2 || self.most.1 >= request + 2
    }

    /// Whether a slot may move from one owner to another.
    pub(super) fn may_move(&self, from: Owner, to: Owner) -> bool {
        if from.client == to.client {
            self.of_request(from.request) >= self.of_request(to.request) + 2
        } else {
            self.of_client(from.client) >= self.of_client(to.client) + 2
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(client: &str, request: u64) -> Owner {
        Owner {
            client: Client::named(client.as_bytes()),
            request,
        }
    }

    /// Serves the waiting sequences, each of which takes the given number of rows and ends,
    /// with `slots` slots; returns the order.
    fn served(slots: usize, waiting: &[(Owner, usize)]) -> Vec<Owner> {
        let mut fairness = Fairness::default();
        for (owner, _) in waiting {
            fairness.enter(*owner);
        }
        let mut waiting = waiting.to_vec();
        let (mut running, mut order) = (Vec::<(Owner, usize)>::new(), Vec::new());
        while !(waiting.is_empty() && running.is_empty()) {
            while running.len() < slots && !waiting.is_empty() {
                let holders = Holders::count(running.iter().map(|(owner, _)| *owner));
                let rank = |at: &usize| fairness.rank(&holders, waiting[*at].0, true);
                let next = (0..waiting.len()).min_by_key(rank).expect("one waits");
                let next = waiting.remove(next);
                order.push(next.0);
                running.push(next);
            }
            for (owner, left) in &mut running {
                fairness.charge(*owner, 1);
                *left -= 1;
                if *left == 0 {
                    fairness.leave(*owner);
                }
            }
            running.retain(|(_, left)| *left > 0);
        }
        order
    }

    #[test]
    fn who_has_little_to_do_is_not_behind_who_has_much() {
        let (big, small) = (owner("a", 1), owner("b", 2));
        let mut waiting = vec![(big, 10); 20];
        waiting.push((small, 10));
        for slots in [1, 2, 4] {
            let order = served(slots, &waiting);
            let place = order.iter().position(|owner| *owner == small);
            assert!(place.expect("it was served") <= 1, "{slots}: {order:?}");
        }
        // The same applies to the requests of one client.
        let same = owner("a", 3);
        waiting.push((same, 10));
        let order = served(2, &waiting);
        let place = order.iter().position(|owner| *owner == same);
        assert!(place.expect("it was served") <= 2, "{order:?}");
    }

    #[test]
    fn a_request_that_comes_in_order_is_served_in_order() {
        let requests: Vec<_> = (0..20).map(|at| (owner("a", at), 5)).collect();
        let order = served(3, &requests);
        let in_order = requests.iter().map(|(owner, _)| *owner);
        assert!(order.iter().copied().eq(in_order), "{order:?}");
    }

    #[test]
    fn work_counts_and_not_the_number_of_requests() {
        let mut waiting = Vec::new();
        for at in 0..30 {
            waiting.push((owner("long", at), 30));
            waiting.push((owner("short", 100 + at), 10));
        }
        let order = served(1, &waiting);
        let short = owner("short", 0).client;
        let count = order[..20].iter().filter(|owner| owner.client == short);
        let count = count.count();
        assert!((14..=16).contains(&count), "{count} of 20");
    }

    #[test]
    fn nobody_saves_up_a_claim_by_staying_away_or_gets_one_by_coming_back() {
        let (a, b) = (owner("a", 1), owner("b", 2));
        let mut fairness = Fairness::default();
        fairness.enter(a);
        fairness.charge(a, 1000);
        fairness.enter(b);
        let none = Holders::default();
        let served = |fairness: &Fairness, owner| fairness.rank(&none, owner, true).client_served;
        assert_eq!(served(&fairness, b), 1000, "it comes new");
        fairness.charge(b, 500);
        fairness.leave(b);
        fairness.enter(b);
        assert_eq!(served(&fairness, b), 1500, "it was away for a moment");
        fairness.leave(b);
        fairness.charge(a, 5000);
        fairness.enter(b);
        let even = 1000 + 500 / 2 + 5000;
        assert_eq!(served(&fairness, b), even, "it was away for long");
        fairness.leave(a);
        fairness.leave(b);
        assert!(fairness.clients.is_empty(), "{fairness:?}");
    }

    #[test]
    fn who_comes_back_is_served_however_many_come_new() {
        let mut fairness = Fairness::default();
        let back = owner("back", 0);
        fairness.enter(back);
        fairness.charge(back, 500);
        fairness.leave(back);
        let none = Holders::default();
        let mut waiting = vec![];
        let enter = |fairness: &mut Fairness, owner| {
            fairness.enter(owner);
            owner
        };
        // One slot; new clients are always waiting, before and after the returning one.
        waiting.push(enter(&mut fairness, owner("new 0", 1)));
        waiting.push(enter(&mut fairness, back));
        for at in 1..100 {
            waiting.push(enter(&mut fairness, owner(&format!("new {at}"), 1 + at)));
            let rank = |at: &usize| fairness.rank(&none, waiting[*at], true);
            let next = (0..waiting.len()).min_by_key(rank).expect("one waits");
            let next = waiting.remove(next);
            if next == back {
                return;
            }
            fairness.charge(next, 100);
            fairness.leave(next);
        }
        panic!("it was never served");
    }

    #[test]
    fn a_slot_moves_only_to_who_would_not_have_to_give_it_back() {
        let (a, b, other) = (owner("a", 1), owner("b", 2), owner("a", 3));
        let moves = |held: &[Owner], from, to| {
            let holders = Holders::count(held.iter().copied());
            let moves = holders.may_move(from, to);
            assert!(!moves || holders.may_move_to(to));
            moves
        };
        assert!(moves(&[a, a], a, b));
        assert!(!moves(&[a], a, b), "it would be the other way round");
        assert!(!moves(&[a, a, b], a, b));
        assert!(moves(&[a, a, a, b], a, b));
        assert!(moves(&[a, a], a, other));
        assert!(!moves(&[a, other], a, other));
        assert!(!moves(&[a, a, a], a, a));
        // The requests of a client count together against another client.
        assert!(moves(&[a, other], a, b));
    }
}
