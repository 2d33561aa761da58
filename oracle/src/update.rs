// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the hooks of a table are told of an update, said as simply as it can be said.
//!
//! It follows from the content before, the content after, and which slot was cut from which or ended by a merge. Slot
//! by slot and frame by frame, without a thought to speed, and without a word of how the library does it.

use std::collections::{HashMap, HashSet};

use crate::model::{Slot, Space};
use crate::op::{GUEST_MEMFD, READONLY};

/// What an update does to a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // the library's names
pub enum Kind {
    Create,
    Delete,
    Move,
    FlagsOnly,
    Resize,
    Split,
    Merge,
}

/// One slot's part of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// What happens.
    pub kind: Kind,
    /// The slot before; of a new one, the slot that it was cut from.
    pub old: Option<Slot>,
    /// The slot after; of one that was merged, the slot that has its frames.
    pub new: Option<Slot>,
}

impl Change {
    /// The same with slots as the library has them.
    pub fn bare(&self) -> Change {
        let bare = |slot: Option<Slot>| slot.map(|slot| slot.bare());
        Change { kind: self.kind, old: bare(self.old), new: bare(self.new) }
    }

    /// The slot before, of the slot that the change is about.
    pub fn own_old(&self) -> Option<Slot> {
        self.old.filter(|_| !matches!(self.kind, Kind::Create | Kind::Split))
    }

    /// The slot after, of the slot that the change is about.
    pub fn own_new(&self) -> Option<Slot> {
        self.new.filter(|_| !matches!(self.kind, Kind::Delete | Kind::Merge))
    }
}

/// Where slots come from and go to, by their births.
#[derive(Clone, Debug, Default)]
pub struct Lineage {
    /// A slot that a split made, and the slot that was split.
    pub cut_from: HashMap<u64, u64>,
    /// Slots that a merge ended.
    pub absorbed: HashSet<u64>,
}

/// An update that was published.
#[derive(Clone, Debug)]
pub struct Update {
    /// All address spaces before.
    pub before: Vec<Space>,
    /// All address spaces after; only their slots count.
    pub after: Vec<Space>,
    /// What the slots went through in between.
    pub lineage: Lineage,
    /// log2 of the page size.
    pub page_shift: u32,
}

impl Update {
    /// Whether nobody is to be told of anything.
    pub fn changes_nothing(&self) -> bool {
        self.before.iter().zip(&self.after).all(|(before, after)| before.slots == after.slots)
    }

    /// What the hooks are told, in no particular order.
    pub fn changes(&self) -> Vec<Change> {
        let old = slots(&self.before).filter_map(|old| self.change_of_old(old));
        let new = slots(&self.after).filter(|new| self.was(new.birth).is_none());
        old.chain(new.map(|new| self.change_of_new(new))).collect()
    }

    /// The slots of which a reader may have derived something that stops being true.
    pub fn flushed(&self) -> Vec<Slot> {
        slots(&self.before).filter(|old| self.is_flushed(old)).copied().collect()
    }

    /// The address spaces of those.
    pub fn spaces_flushed(&self) -> impl Iterator<Item = u16> {
        let of: HashSet<u16> = self.flushed().iter().map(|slot| slot.as_id).collect();
        of.into_iter()
    }

    fn change_of_old(&self, old: &Slot) -> Option<Change> {
        let change = |kind, new| Some(Change { kind, old: Some(*old), new });
        match (self.is(old.birth), self.heir(old)) {
            (Some(new), _) if new == *old => None,
            (Some(new), _) if new.npages != old.npages => change(Kind::Resize, Some(new)),
            (Some(new), _) if new.base_gfn != old.base_gfn => change(Kind::Move, Some(new)),
            (Some(new), _) => change(Kind::FlagsOnly, Some(new)),
            (None, Some(heir)) => change(Kind::Merge, Some(heir)),
            (None, None) => change(Kind::Delete, None),
        }
    }

    fn change_of_new(&self, new: &Slot) -> Change {
        let change = |kind, old| Change { kind, old, new: Some(*new) };
        match self.origin(new) {
            None => change(Kind::Create, None),
            Some(origin) if self.is_resized(&origin) && self.covers(&origin, new) => change(Kind::Split, Some(origin)),
            Some(origin) => change(Kind::Create, Some(origin)),
        }
    }

    /// The slot that has all frames of one that a merge ended, and is told to have grown.
    fn heir(&self, old: &Slot) -> Option<Slot> {
        let fits = |heir: &&Slot| heir.flags == old.flags && self.is_resized(heir) && self.covers(heir, old);
        let merged = self.lineage.absorbed.contains(&old.birth);
        merged.then(|| slots(&self.after).find(fits).copied()).flatten()
    }

    /// The slot that there was before, and that a new one was cut from, at once or by and by.
    fn origin(&self, new: &Slot) -> Option<Slot> {
        let parent = *self.lineage.cut_from.get(&new.birth)?;
        self.was(parent).or_else(|| self.origin(&Slot { birth: parent, ..*new }))
    }

    fn is_flushed(&self, old: &Slot) -> bool {
        let now = &self.after[usize::from(old.as_id)];
        let kept = |gfn: u64| now.by_gfn(gfn).is_some_and(|slot| self.is_no_less(old, slot, gfn));
        match self.change_of_old(old).map(|change| change.kind) {
            None => false,
            Some(Kind::Delete | Kind::Move) => true,
            Some(_) => !(old.base_gfn..old.end_gfn()).all(kept),
        }
    }

    /// Whether a frame has the same memory, and may be used for all that it could be used for.
    fn is_no_less(&self, old: &Slot, now: &Slot, gfn: u64) -> bool {
        let taken = now.flags & !old.flags & (READONLY | GUEST_MEMFD);
        self.memory(old, gfn) == self.memory(now, gfn) && taken == 0
    }

    /// Whether all frames of a slot are another's, too, with the same memory.
    fn covers(&self, whole: &Slot, part: &Slot) -> bool {
        let has = |gfn: u64| whole.holds(gfn) && self.memory(whole, gfn) == self.memory(part, gfn);
        whole.as_id == part.as_id && (part.base_gfn..part.end_gfn()).all(has)
    }

    fn memory(&self, slot: &Slot, gfn: u64) -> u64 {
        slot.hva_of(gfn, self.page_shift)
    }

    /// Whether a slot that there was lives on with another size.
    fn is_resized(&self, slot: &Slot) -> bool {
        let sizes = self.was(slot.birth).zip(self.is(slot.birth));
        sizes.is_some_and(|(was, is)| was.npages != is.npages)
    }

    fn was(&self, birth: u64) -> Option<Slot> {
        slots(&self.before).find(|slot| slot.birth == birth).copied()
    }

    fn is(&self, birth: u64) -> Option<Slot> {
        slots(&self.after).find(|slot| slot.birth == birth).copied()
    }
}

fn slots(spaces: &[Space]) -> impl Iterator<Item = &Slot> {
    spaces.iter().flat_map(|space| &space.slots)
}
