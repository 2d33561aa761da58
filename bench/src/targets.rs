// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the design promises: for each row the ratio to another structure that libmemslots must
//! reach (floor) and is going for (goal), by table size. A ratio is theirs over ours; larger is
//! better. Data only.

/// Table sizes for which something is promised.
pub const SIZES: [usize; 5] = [10, 50, 509, 8194, 32764];

/// A promise for one row against one peer, by size: as [`SIZES`].
pub struct Target {
    pub row: &'static str,
    pub peer: &'static str,
    floors: [f64; SIZES.len()],
    goals: [f64; SIZES.len()],
}

impl Target {
    /// The sizes with a floor: (n, floor, goal). The goal is NaN where there is none.
    pub fn promises(&self) -> impl Iterator<Item = (usize, f64, f64)> + '_ {
        let all = (0..SIZES.len()).map(|i| (SIZES[i], self.floors[i], self.goals[i]));
        all.filter(|(_, floor, _)| !floor.is_nan())
    }
}

const fn target(
    row: &'static str,
    peer: &'static str,
    floors: [f64; SIZES.len()],
    goals: [f64; SIZES.len()],
) -> Target {
    Target { row, peer, floors, goals }
}

/// No floor, or no goal.
const NONE: f64 = f64::NAN;
const NO_GOALS: [f64; SIZES.len()] = [NONE; SIZES.len()];

#[rustfmt::skip]
pub const TARGETS: &[Target] = &[
    // Linux's trees without grace periods.
    target("gfn random", "linux", [3.0, 2.2, 4.0, 5.0, 5.0], [4.0, 4.0, 7.0, 9.0, 10.0]),
    target("gfn in a hole", "linux", [3.5, 3.6, 5.8, 6.2, 6.5], [4.0, 5.4, 9.0, 10.0, 12.0]),
    target("gfn dependent", "linux", [1.3, 0.9, 1.7, 2.2, 2.5], [2.0, 1.5, 2.5, 3.0, 4.0]),
    target("gfn last-used hit", "linux", [1.0, 1.0, 1.0, 1.0, 1.0], [1.3, 1.3, 1.3, 1.3, 1.3]),
    target("gfn last-used hit, inline", "linux", [1.2, 1.2, 1.2, 1.2, 1.2], [1.4, 1.4, 1.4, 1.4, 1.4]),
    target("gfn 90 % same slot", "linux", [1.0, 1.05, 1.4, 2.0, 2.1], [1.2, 1.3, 1.8, 2.5, 3.0]),
    target("hva 4 KiB", "linux", [1.3, 1.0, 2.0, 2.6, 3.0], [2.0, 1.7, 3.5, 4.2, 5.0]),
    target("id", "linux", [0.65, 0.65, 3.5, 35.0, 300.0], [0.9, 0.9, 4.0, 40.0, 400.0]),
    target("move", "linux", [2.0, 1.5, 1.5, 2.3, 5.0], [3.0, 3.0, 2.0, 2.8, 6.5]),
    target("flags only", "linux", [1.0, 1.0, 1.3, 2.3, 6.5], [1.7, 2.2, 1.7, 2.8, 8.0]),
    target("create, one transaction", "linux", [0.55, 0.7, 1.4, 2.8, 11.0], [1.0, 1.8, 3.0, 4.0, 15.0]),
    target("create one by one", "linux", [0.36, 0.31, 0.47, 0.9, 5.0], [0.5, 0.5, 1.0, 1.5, 6.0]),
    // At most 0.9 / 0.7 / 0.6 of their bytes; the goal at 32,764 is 0.4.
    target(
        "bytes a slot", "linux",
        [1.0 / 0.9, 1.0 / 0.7, 1.0 / 0.6, 1.0 / 0.6, 1.0 / 0.6], [NONE, NONE, NONE, NONE, 1.0 / 0.4],
    ),
    // With grace periods: liburcu, idle.
    target("move", "linux+urcu", [6.0, 3.8, 3.2, 3.8, 7.0], NO_GOALS),
    target("flags only", "linux+urcu", [4.2, 3.0, 2.8, 3.7, 9.0], NO_GOALS),
    target("create one by one", "linux+urcu", [1.6, 1.5, 1.7, 1.7, 5.5], NO_GOALS),
    // QEMU's array.
    target("gfn random", "qemu", [2.2, 2.6, 8.0, 90.0, 480.0], NO_GOALS),
    target("hva 4 KiB", "qemu", [1.6, 2.4, 13.0, 250.0, 800.0], NO_GOALS),
    // A BTreeMap under an RwLock that is taken for each lookup.
    target("gfn random", "BTreeMap+lock", [NONE, NONE, 4.0, NONE, 4.0], NO_GOALS),
    // vm-memory, its guard held.
    target("gfn random", "vm-memory", [1.6, 1.25, 1.7, 2.6, 4.0], NO_GOALS),
    target("move", "vm-memory", [3.6, 5.3, 30.0, 370.0, 1300.0], NO_GOALS),
];

/// From 509 to 32,764 slots a random lookup costs at most this much more.
pub const GROWTH: f64 = 3.5;
/// Beside a busy reader: linux+urcu's time for a move over ours, at least.
pub const BUSY_WRITER: f64 = 5.0;
/// The reader's p99.9 while transactions commit: linux+urcu's over ours, at least.
pub const TAIL: f64 = 4.0;
/// The table's part of a change on a real VM, at most.
pub const KVM_SHARE: f64 = 0.05;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Goal,
    Floor,
    Missed,
}

pub fn find(row: &str, peer: &str, n: usize) -> Option<(f64, f64)> {
    let target = TARGETS.iter().find(|target| target.row == row && target.peer == peer)?;
    let (_, floor, goal) = target.promises().find(|(size, _, _)| *size == n)?;
    Some((floor, goal))
}

pub fn verdict(ratio: f64, floor: f64, goal: f64) -> Verdict {
    if ratio < floor {
        Verdict::Missed
    } else if goal.is_nan() || ratio >= goal {
        Verdict::Goal
    } else {
        Verdict::Floor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        assert_eq!(find("gfn random", "linux", 509), Some((4.0, 7.0)));
        assert_eq!(find("gfn random", "linux", 30), None);
        assert_eq!(verdict(3.9, 4.0, 7.0), Verdict::Missed);
        assert_eq!(verdict(4.0, 4.0, 7.0), Verdict::Floor);
        assert_eq!(verdict(7.0, 4.0, 7.0), Verdict::Goal);
        assert_eq!(verdict(5.0, 4.0, f64::NAN), Verdict::Goal);
    }
}
