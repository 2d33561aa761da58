// SPDX-License-Identifier: MIT OR Apache-2.0
//! Plays operations on the model and on others side by side, and says where they part.
//!
//! Knows of the others only that they do operations and can be compared with the model.

use std::collections::BTreeMap;
use std::fmt;

use crate::model::Model;
use crate::op::{Line, Op, Outcome};
use crate::real::Vm;

/// A real kernel takes memory in proportion to a slot (8 bytes a page with shadow paging); no slot larger than
/// this is asked of it.
const LARGEST_REAL_SLOT: u64 = 1 << 36;

/// Something that does operations beside the model.
pub trait Player {
    /// For messages.
    fn name(&self) -> &'static str;
    /// Does an operation; None where it has no such operation, or cannot be asked. `before` is the model as it
    /// stands before the operation.
    fn apply(&mut self, op: &Op, opaque: usize, before: &Model) -> Option<Outcome>;
    /// Compares what it can cheaply compare after every operation.
    fn glance(&mut self, model: &Model) -> Result<(), String>;
    /// Compares everything.
    fn inspect(&mut self, model: &Model) -> Result<(), String>;
    /// A larger slot, where it would come to be, is kept from all players.
    fn largest_slot(&self) -> u64 {
        u64::MAX
    }
}

/// Where two players part.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// Index of the operation.
    pub at: usize,
    /// The operation, in its line form, with what was wrong.
    pub what: String,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operation {}: {}", self.at + 1, self.what)
    }
}

/// What happened over a run: how often each operation came to each answer (0 or errno).
#[derive(Clone, Debug, Default)]
pub struct Tally {
    counts: BTreeMap<(&'static str, i32), u64>,
    /// Operations kept from everybody.
    pub withheld: u64,
}

impl Tally {
    /// How many operations were done.
    pub fn done(&self) -> u64 {
        self.counts.values().sum()
    }

    /// How many operations of that name came to that answer.
    pub fn of(&self, name: &str, answer: i32) -> u64 {
        self.counts.iter().filter(|((n, a), _)| *n == name && *a == answer).map(|(_, count)| count).sum()
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Tally) {
        for (key, count) in &other.counts {
            *self.counts.entry(*key).or_default() += count;
        }
        self.withheld += other.withheld;
    }

    fn count(&mut self, op: &Op, outcome: Outcome) {
        *self.counts.entry((op.name(), outcome.err().unwrap_or(0))).or_default() += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} operations", self.done())?;
        for ((name, answer), count) in &self.counts {
            write!(f, "; {name}")?;
            if *answer != 0 {
                write!(f, " errno {answer}")?;
            }
            write!(f, ": {count}")?;
        }
        Ok(())
    }
}

/// Plays operations on a new model and on the players; all players are inspected every `stride` operations and at
/// the end.
pub fn play(
    ops: &[Op],
    model: &mut Model,
    players: &mut [&mut dyn Player],
    stride: usize,
) -> Result<Tally, Divergence> {
    let mut tally = Tally::default();
    let largest_slot = players.iter().map(|player| player.largest_slot()).min().unwrap_or(u64::MAX);
    for (at, op) in ops.iter().enumerate() {
        let fail = |what| Divergence { at, what: format!("{op}: {what}") };
        if op.fields().size > largest_slot && model.clone().apply(op, at).is_ok() {
            tally.withheld += 1;
            continue;
        }
        let before = model.clone();
        let expected = model.apply(op, at);
        tally.count(op, expected);
        for player in players.iter_mut() {
            step(*player, op, at, &before, expected).map_err(fail)?;
            player.glance(model).map_err(fail)?;
            if at % stride == stride - 1 || at == ops.len() - 1 {
                player.inspect(model).map_err(fail)?;
            }
        }
    }
    Ok(tally)
}

fn step(player: &mut dyn Player, op: &Op, at: usize, before: &Model, expected: Outcome) -> Result<(), String> {
    match player.apply(op, at, before) {
        Some(got) if got != expected => {
            Err(format!("the model says {}, {} {}", say(expected), player.name(), say(got)))
        }
        _ => Ok(()),
    }
}

/// An outcome in words.
pub fn say(outcome: Outcome) -> String {
    match outcome {
        Ok(0) => "ok".into(),
        Ok(id) => format!("ok (id {id})"),
        Err(libc::EINVAL) => "EINVAL".into(),
        Err(libc::EEXIST) => "EEXIST".into(),
        Err(libc::ENOENT) => "ENOENT".into(),
        Err(libc::ENOSPC) => "ENOSPC".into(),
        Err(libc::EDEADLK) => "EDEADLK".into(),
        Err(libc::ENOMEM) => "ENOMEM".into(),
        Err(errno) => format!("errno {errno}"),
    }
}

/// A real VM as a player.
pub struct RealPlayer {
    /// The VM.
    pub vm: Vm,
    /// Gfns that an inspection looks at.
    pub pages: u64,
    /// Slot ids that an inspection looks at.
    pub ids: u16,
}

impl Player for RealPlayer {
    fn name(&self) -> &'static str {
        "the real VM"
    }

    fn apply(&mut self, op: &Op, _opaque: usize, before: &Model) -> Option<Outcome> {
        self.vm.apply(op, before)
    }

    fn glance(&mut self, _model: &Model) -> Result<(), String> {
        Ok(())
    }

    fn inspect(&mut self, model: &Model) -> Result<(), String> {
        self.vm.holds(model.space(0), self.pages, self.ids).map_err(|e| format!("the real VM: {e}"))
    }

    fn largest_slot(&self) -> u64 {
        LARGEST_REAL_SLOT
    }
}

/// What was recorded when the operations were first done, as a player.
pub struct Recorded {
    lines: Vec<Line>,
    at: usize,
    /// The last generation of each address space, recorded and the model's: a record may begin in a table's midlife.
    last: BTreeMap<u16, (u64, u64)>,
}

impl Recorded {
    /// The lines of a trace; where they say nothing, nothing is compared.
    pub fn new(lines: Vec<Line>) -> Recorded {
        Recorded { lines, at: 0, last: BTreeMap::new() }
    }
}

impl Player for Recorded {
    fn name(&self) -> &'static str {
        "the record"
    }

    fn apply(&mut self, op: &Op, opaque: usize, before: &Model) -> Option<Outcome> {
        self.at = opaque;
        let result = self.lines[self.at].result?;
        if result < 0 {
            return Some(Err(-result));
        }
        // A record need not say which id a create chose.
        Some(before.clone().apply(op, 0).or(Ok(0)))
    }

    fn glance(&mut self, model: &Model) -> Result<(), String> {
        let Line { generation, op, .. } = self.lines[self.at];
        let as_id = op.fields().as_id;
        // Lines with generation 0 say what there was when the record began.
        let Some(recorded) = generation.filter(|generation| *generation > 0) else { return Ok(()) };
        let Some(space) = model.spaces().get(usize::from(as_id)) else { return Ok(()) };
        match self.last.insert(as_id, (recorded, space.generation)) {
            Some((was, model_was)) if recorded.wrapping_sub(was) != space.generation - model_was => Err(format!(
                "the model went from generation {model_was} to {}, the record from {was} to {recorded}",
                space.generation
            )),
            _ => Ok(()),
        }
    }

    fn inspect(&mut self, _model: &Model) -> Result<(), String> {
        Ok(())
    }
}
