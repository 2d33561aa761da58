// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a randomised test runs: where its seed and size come from, and what it leaves behind when it fails.

use std::env;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::compare::{Divergence, Tally};
use crate::op::{self, Op};
use crate::shrink::shrink;
use crate::world::Seed;

/// How long a failure may be shrunk; what there is by then is good enough.
const SHRINKING: Duration = Duration::from_secs(60);

/// The seed of a run: `MEMSLOTS_SEED`, or a new one each time; said on the real stderr, past the test harness's
/// capture, so that a run can be had again.
pub fn seed(test: &str) -> u64 {
    let seed = number("MEMSLOTS_SEED").unwrap_or_else(|| RandomState::new().hash_one(test));
    say(&format!("{test}: MEMSLOTS_SEED={seed:#x}"));
    seed
}

/// How many operations a run does: `MEMSLOTS_OPS`, or the test's own number.
pub fn size(usual: u64) -> u64 {
    number("MEMSLOTS_OPS").unwrap_or(usual)
}

/// How many cases a property is tried on: `MEMSLOTS_CASES`, or the test's own number.
pub fn cases(usual: u64) -> u64 {
    number("MEMSLOTS_CASES").unwrap_or(usual)
}

/// Tries a property on so many cases, each with choices of its own.
pub fn each_case(test: &str, usual: u64, mut case: impl FnMut(&mut Seed)) {
    let mut seeds = Seed(seed(test));
    (0..cases(usual)).for_each(|_| case(&mut Seed(seeds.draw())));
}

/// A line on the real stderr.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Plays operations; where the players part, shrinks the operations, leaves them as a trace file in `dir`, and
/// fails the test with their text.
pub fn agree(test: &str, dir: &Path, ops: &[Op], play: impl Fn(&[Op]) -> Result<Tally, Divergence>) -> Tally {
    let first = match play(ops) {
        Ok(tally) => return tally,
        Err(divergence) => divergence,
    };
    let begun = Instant::now();
    let short = shrink(&ops[..=first.at], |ops| begun.elapsed() < SHRINKING && play(ops).is_err());
    let divergence = play(&short).expect_err("what was shrunk still fails");
    let text = op::print(&short);
    let file = dir.join(format!("{test}.trace"));
    fs::write(&file, format!("# {divergence}\n{text}")).expect("a place for the trace");
    panic!("{test}: {divergence}\n{text}\nkept as {}; a find belongs into oracle/regressions/", file.display());
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}
