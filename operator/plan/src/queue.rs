//! Which cluster or job is looked at next. Knows no clock and runs nothing.
//!
//! Namespaces take turns, and one may have another look under way only while it has fewer than are
//! free: alone it gets half of them, two get a third each. However many clusters a namespace has, and
//! however long each of them takes, it alone leaves room for others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

/// What is looked at.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// A cluster.
    Cluster,
    /// A job on a cluster.
    ClusterJob,
}

/// A cluster or a job, by its namespace and name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// `metadata.namespace`.
    pub namespace: String,
    /// Which of the two.
    pub kind: Kind,
    /// `metadata.name`.
    pub name: String,
}

/// Clusters and jobs that wait for a look, are looked at, or will be. Times are those since any one moment.
#[derive(Clone, Debug)]
pub struct Queue {
    slots: usize,
    /// Since when each waits that is due, by namespace and in order.
    due: BTreeMap<String, VecDeque<(Key, Duration)>>,
    /// Namespaces with clusters that are due, the next first.
    turns: VecDeque<String>,
    /// What is due, to find it.
    is_due: BTreeSet<Key>,
    /// What is looked at, and since when it is to be looked at again.
    under_way: BTreeMap<Key, Option<Duration>>,
    /// How many of a namespace are looked at.
    busy: BTreeMap<String, usize>,
    /// What is not looked at before then, whatever happens.
    held: BTreeMap<Key, Duration>,
    later: BTreeSet<(Duration, Key)>,
    later_of: BTreeMap<Key, Duration>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Cluster => write!(f, "{}/{}", self.namespace, self.name),
            Kind::ClusterJob => write!(f, "{}/{} (job)", self.namespace, self.name),
        }
    }
}

impl Queue {
    /// An empty queue, of which so many clusters are looked at at once.
    pub fn new(slots: usize) -> Self {
        Self {
            slots: slots.max(1),
            due: BTreeMap::new(),
            turns: VecDeque::new(),
            is_due: BTreeSet::new(),
            under_way: BTreeMap::new(),
            busy: BTreeMap::new(),
            held: BTreeMap::new(),
            later: BTreeSet::new(),
            later_of: BTreeMap::new(),
        }
    }

    /// Something happened to a cluster. However often before its next look: it is one look.
    pub fn add(&mut self, key: &Key, now: Duration) {
        if let Some(again) = self.under_way.get_mut(key) {
            again.get_or_insert(now);
            return;
        }
        if let Some(until) = self.held.get(key).copied() {
            if until > now {
                return self.add_later(key, until);
            }
            self.held.remove(key);
        }
        if !self.is_due.insert(key.clone()) {
            return;
        }
        let of_namespace = self.due.entry(key.namespace.clone()).or_default();
        if of_namespace.is_empty() {
            self.turns.push_back(key.namespace.clone());
        }
        of_namespace.push_back((key.clone(), now));
    }

    /// A look went wrong: whatever happens to the cluster, there is no other one before then.
    pub fn hold(&mut self, key: &Key, until: Duration) {
        self.held.insert(key.clone(), until);
    }

    /// A cluster is to be looked at by then, if nothing happens before.
    pub fn add_later(&mut self, key: &Key, at: Duration) {
        if self.later_of.get(key).is_some_and(|there| *there <= at) {
            return;
        }
        if let Some(there) = self.later_of.insert(key.clone(), at) {
            self.later.remove(&(there, key.clone()));
        }
        self.later.insert((at, key.clone()));
    }

    /// Begins a look at the cluster whose turn it is. Gives also how long it waited.
    pub fn next(&mut self, now: Duration) -> Option<(Key, Duration)> {
        while let Some((at, key)) = self.later.first().cloned()
            && at <= now
        {
            self.forget_later(&key);
            self.add(&key, at);
        }
        let free = self.slots.saturating_sub(self.under_way.len());
        let busy = |namespace: &String| self.busy.get(namespace).copied().unwrap_or_default();
        let turn = self.turns.iter().position(|namespace| busy(namespace) < free)?;
        let namespace = self.turns.remove(turn)?;
        let of_namespace = self.due.get_mut(&namespace)?;
        let (key, since) = of_namespace.pop_front()?;
        if of_namespace.is_empty() {
            self.due.remove(&namespace);
        } else {
            self.turns.push_back(namespace);
        }
        self.is_due.remove(&key);
        // It is looked at now, and says itself when to look again.
        self.forget_later(&key);
        *self.busy.entry(key.namespace.clone()).or_default() += 1;
        self.under_way.insert(key.clone(), None);
        Some((key, now.saturating_sub(since)))
    }

    /// A look has ended.
    pub fn done(&mut self, key: &Key) {
        let Some(again) = self.under_way.remove(key) else { return };
        if let Some(busy) = self.busy.get_mut(&key.namespace) {
            *busy -= 1;
            if *busy == 0 {
                self.busy.remove(&key.namespace);
            }
        }
        if let Some(since) = again {
            self.add(key, since);
        }
    }

    /// When [`Self::next`] may have something though nothing happens.
    pub fn wake_at(&self) -> Option<Duration> {
        self.later.first().map(|(at, _)| *at)
    }

    /// How many clusters wait that are due.
    pub fn depth(&self) -> usize {
        self.is_due.len()
    }

    /// How many clusters are looked at.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    fn forget_later(&mut self, key: &Key) {
        if let Some(at) = self.later_of.remove(key) {
            self.later.remove(&(at, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Key, Kind, Queue};

    fn key(namespace: &str, name: u32) -> Key {
        let namespace = namespace.to_owned();
        Key { namespace, kind: Kind::Cluster, name: format!("c{name:04}") }
    }

    /// Those that are begun until there is no room.
    fn begin(queue: &mut Queue, now: Duration) -> Vec<Key> {
        std::iter::from_fn(|| queue.next(now)).map(|(key, _)| key).collect()
    }

    #[test]
    fn a_cluster_is_looked_at_once_for_all_that_happened_and_again_for_what_happens_meanwhile() {
        let now = Duration::ZERO;
        let mut queue = Queue::new(8);
        (0..3).for_each(|_| queue.add(&key("a", 1), now));
        assert_eq!(begin(&mut queue, now), [key("a", 1)]);
        (0..3).for_each(|_| queue.add(&key("a", 1), now));
        assert_eq!(begin(&mut queue, now), [], "never twice at once");
        queue.done(&key("a", 1));
        assert_eq!(begin(&mut queue, now), [key("a", 1)]);
        queue.done(&key("a", 1));
        assert_eq!((begin(&mut queue, now), queue.depth(), queue.under_way()), (vec![], 0, 0));
    }

    #[test]
    fn namespaces_take_turns_whatever_each_of_them_has() {
        let now = Duration::ZERO;
        let mut queue = Queue::new(4);
        (0..5000).for_each(|it| queue.add(&key("crowd", it), now));
        queue.add(&key("few", 1), now);
        queue.add(&key("few", 2), now);
        let mut order = Vec::new();
        for _ in 0..4 {
            let (begun, _) = queue.next(now).unwrap();
            queue.done(&begun);
            order.push(begun.namespace);
        }
        assert_eq!(order, ["crowd", "few", "crowd", "few"]);
    }

    #[test]
    fn whoever_takes_long_leaves_room_for_somebody_else() {
        let now = Duration::ZERO;
        let mut queue = Queue::new(32);
        (0..100).for_each(|it| queue.add(&key("slow", it), now));
        assert_eq!(begin(&mut queue, now).len(), 16, "alone it has half");
        (0..100).for_each(|it| queue.add(&key("slower", it), now));
        let begun = begin(&mut queue, now);
        assert!(begun.len() == 8 && begun.iter().all(|it| it.namespace == "slower"));
        queue.add(&key("quick", 1), now);
        assert_eq!(begin(&mut queue, now), [key("quick", 1)]);
        // What waits is not lost when there is room again.
        (0..16).for_each(|it| queue.done(&key("slow", it)));
        assert!(begin(&mut queue, now).contains(&key("slow", 16)));
    }

    #[test]
    fn one_slot_is_enough_for_everybody_in_turn() {
        let now = Duration::ZERO;
        let mut queue = Queue::new(1);
        queue.add(&key("a", 1), now);
        queue.add(&key("b", 1), now);
        assert_eq!(begin(&mut queue, now), [key("a", 1)]);
        queue.done(&key("a", 1));
        assert_eq!(begin(&mut queue, now), [key("b", 1)]);
    }

    #[test]
    fn what_goes_wrong_is_not_tried_more_often_because_much_happens() {
        let after = Duration::from_secs;
        let mut queue = Queue::new(8);
        queue.add(&key("a", 1), after(0));
        assert_eq!(begin(&mut queue, after(0)), [key("a", 1)]);
        queue.add(&key("a", 1), after(1));
        queue.hold(&key("a", 1), after(5));
        queue.done(&key("a", 1));
        (1..5).for_each(|it| queue.add(&key("a", 1), after(it)));
        assert_eq!((begin(&mut queue, after(4)), queue.wake_at()), (vec![], Some(after(5))));
        assert_eq!(begin(&mut queue, after(5)), [key("a", 1)]);
        queue.done(&key("a", 1));
        queue.add(&key("a", 1), after(6));
        assert_eq!(begin(&mut queue, after(6)), [key("a", 1)], "it went well");
    }

    #[test]
    fn of_several_times_the_first_counts_and_a_look_before_it_is_that_look() {
        let now = Duration::ZERO;
        let after = |seconds| now + Duration::from_secs(seconds);
        let mut queue = Queue::new(8);
        queue.add_later(&key("a", 1), after(20));
        queue.add_later(&key("a", 1), after(10));
        queue.add_later(&key("a", 1), after(30));
        assert_eq!(queue.wake_at(), Some(after(10)));
        assert_eq!(begin(&mut queue, after(9)), []);
        let (_, waited) = queue.next(after(12)).unwrap();
        assert_eq!(waited, Duration::from_secs(2));
        queue.add_later(&key("a", 1), after(40));
        queue.done(&key("a", 1));
        queue.add(&key("a", 1), after(15));
        assert_eq!(begin(&mut queue, after(15)), [key("a", 1)]);
        queue.done(&key("a", 1));
        assert_eq!((begin(&mut queue, after(60)), queue.wake_at()), (vec![], None));
    }
}
