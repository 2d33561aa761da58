// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the design promises: for each row the ratio to another structure that libmemslots must
//! reach (floor) and is going for (goal), by table size. A ratio is theirs over ours; larger is
//! better. Data only.

/// A promise for one row against one peer: (n, floor, goal).
pub struct Target {
    pub row: &'static str,
    pub peer: &'static str,
    pub sizes: &'static [(usize, f64, f64)],
}

/// A floor without a goal of its own.
const NONE: f64 = f64::NAN;

#[rustfmt::skip]
pub const TARGETS: &[Target] = &[
    // Linux's trees without grace periods.
    Target { row: "gfn random", peer: "linux", sizes: &[(10, 3.0, 4.0), (50, 2.2, 4.0), (509, 4.0, 7.0), (8194, 5.0, 9.0), (32764, 5.0, 10.0)] },
    Target { row: "gfn in a hole", peer: "linux", sizes: &[(10, 3.5, 4.0), (50, 3.6, 5.4), (509, 5.8, 9.0), (8194, 6.2, 10.0), (32764, 6.5, 12.0)] },
    Target { row: "gfn dependent", peer: "linux", sizes: &[(10, 1.3, 2.0), (50, 0.9, 1.5), (509, 1.7, 2.5), (8194, 2.2, 3.0), (32764, 2.5, 4.0)] },
    Target { row: "gfn last-used hit", peer: "linux", sizes: &[(10, 1.0, 1.3), (50, 1.0, 1.3), (509, 1.0, 1.3), (8194, 1.0, 1.3), (32764, 1.0, 1.3)] },
    Target { row: "gfn last-used hit, inline", peer: "linux", sizes: &[(10, 1.2, 1.4), (50, 1.2, 1.4), (509, 1.2, 1.4), (8194, 1.2, 1.4), (32764, 1.2, 1.4)] },
    Target { row: "gfn 90 % same slot", peer: "linux", sizes: &[(10, 1.0, 1.2), (50, 1.05, 1.3), (509, 1.4, 1.8), (8194, 2.0, 2.5), (32764, 2.1, 3.0)] },
    Target { row: "hva 4 KiB", peer: "linux", sizes: &[(10, 1.3, 2.0), (50, 1.0, 1.7), (509, 2.0, 3.5), (8194, 2.6, 4.2), (32764, 3.0, 5.0)] },
    Target { row: "id", peer: "linux", sizes: &[(10, 0.65, 0.9), (50, 0.65, 0.9), (509, 3.5, 4.0), (8194, 35.0, 40.0), (32764, 300.0, 400.0)] },
    Target { row: "move", peer: "linux", sizes: &[(10, 2.0, 3.0), (50, 1.5, 3.0), (509, 1.5, 2.0), (8194, 2.3, 2.8), (32764, 5.0, 6.5)] },
    Target { row: "flags only", peer: "linux", sizes: &[(10, 1.0, 1.7), (50, 1.0, 2.2), (509, 1.3, 1.7), (8194, 2.3, 2.8), (32764, 6.5, 8.0)] },
    Target { row: "create, one transaction", peer: "linux", sizes: &[(10, 0.55, 1.0), (50, 0.7, 1.8), (509, 1.4, 3.0), (8194, 2.8, 4.0), (32764, 11.0, 15.0)] },
    Target { row: "create one by one", peer: "linux", sizes: &[(10, 0.36, 0.5), (50, 0.31, 0.5), (509, 0.47, 1.0), (8194, 0.9, 1.5), (32764, 5.0, 6.0)] },
    // At most 0.9 / 0.7 / 0.6 of their bytes; the goal at 32,764 is 0.4.
    Target { row: "bytes a slot", peer: "linux", sizes: &[(10, 1.0 / 0.9, NONE), (50, 1.0 / 0.7, NONE), (509, 1.0 / 0.6, NONE), (8194, 1.0 / 0.6, NONE), (32764, 1.0 / 0.6, 1.0 / 0.4)] },
    // With grace periods: liburcu, idle.
    Target { row: "move", peer: "linux+urcu", sizes: &[(10, 6.0, NONE), (50, 3.8, NONE), (509, 3.2, NONE), (8194, 3.8, NONE), (32764, 7.0, NONE)] },
    Target { row: "flags only", peer: "linux+urcu", sizes: &[(10, 4.2, NONE), (50, 3.0, NONE), (509, 2.8, NONE), (8194, 3.7, NONE), (32764, 9.0, NONE)] },
    Target { row: "create one by one", peer: "linux+urcu", sizes: &[(10, 1.6, NONE), (50, 1.5, NONE), (509, 1.7, NONE), (8194, 1.7, NONE), (32764, 5.5, NONE)] },
    // QEMU's array.
    Target { row: "gfn random", peer: "qemu", sizes: &[(10, 2.2, NONE), (50, 2.6, NONE), (509, 8.0, NONE), (8194, 90.0, NONE), (32764, 480.0, NONE)] },
    Target { row: "hva 4 KiB", peer: "qemu", sizes: &[(10, 1.6, NONE), (50, 2.4, NONE), (509, 13.0, NONE), (8194, 250.0, NONE), (32764, 800.0, NONE)] },
    // A BTreeMap under an RwLock that is taken for each lookup.
    Target { row: "gfn random", peer: "BTreeMap+lock", sizes: &[(509, 4.0, NONE), (32764, 4.0, NONE)] },
    // vm-memory, its guard held.
    Target { row: "gfn random", peer: "vm-memory", sizes: &[(10, 1.6, NONE), (50, 1.25, NONE), (509, 1.7, NONE), (8194, 2.6, NONE), (32764, 4.0, NONE)] },
    Target { row: "move", peer: "vm-memory", sizes: &[(10, 3.6, NONE), (50, 5.3, NONE), (509, 30.0, NONE), (8194, 370.0, NONE), (32764, 1300.0, NONE)] },
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
    let (_, floor, goal) = target.sizes.iter().find(|(size, _, _)| *size == n)?;
    Some((*floor, *goal))
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
