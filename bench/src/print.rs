// SPDX-License-Identifier: MIT OR Apache-2.0

//! The results for a person at a terminal: ratios first, nanoseconds second, medians with their
//! spread, each promised ratio with what became of it; and the comparison with an older run.

use crate::concurrency::Concurrency;
use crate::kvm::KvmCell;
use crate::report::{Cell, Results, LINUX, OURS};
use crate::targets::{self, Verdict, TARGETS};
use crate::workload::Shape;

pub fn number(value: f64) -> String {
    match value {
        v if v >= 99_950_000.0 => format!("{:.0}M", v / 1e6),
        v if v >= 99_950.0 => format!("{:.0}k", v / 1000.0),
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// The promises of a row at a size, against each peer, as "peer floor/goal verdict".
fn promises(results: &Results, cell: &Cell) -> String {
    let mut parts = Vec::new();
    for target in TARGETS.iter().filter(|target| target.row == cell.row) {
        let Some((floor, goal)) = targets::find(target.row, target.peer, cell.n) else {
            continue;
        };
        let Some(theirs) = results.find(&cell.row, cell.layout, cell.n, target.peer) else {
            continue;
        };
        let bar = match goal.is_nan() {
            true => number(floor),
            false => format!("{}/{}", number(floor), number(goal)),
        };
        let word = match (targets::verdict(theirs.ratio, floor, goal), goal.is_nan()) {
            (Verdict::Missed, _) => "NOT MET",
            (Verdict::Floor, _) => "floor met",
            (Verdict::Goal, true) => "met",
            (Verdict::Goal, false) => "goal met",
        };
        parts.push(format!("{} {bar} {word}", target.peer));
    }
    parts.join("; ")
}

fn rows(results: &Results) -> Vec<(String, Shape)> {
    let mut rows: Vec<(String, Shape)> = Vec::new();
    for cell in &results.cells {
        let row = (cell.row.clone(), cell.layout);
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    rows
}

pub fn table(results: &Results) {
    for (row, layout) in rows(results) {
        let of_row = |cell: &&Cell| cell.row == row && cell.layout == layout;
        let cells: Vec<&Cell> = results.cells.iter().filter(of_row).collect();
        let mut peers: Vec<&str> = Vec::new();
        for cell in &cells {
            if !peers.contains(&cell.peer.as_str()) {
                peers.push(&cell.peer);
            }
        }
        println!("\n{row} ({}, {})", layout.name(), cells[0].unit);
        print!("{:>7}  {:>16}", "n", OURS);
        for peer in peers.iter().filter(|peer| **peer != OURS) {
            print!("  {peer:>16}");
        }
        println!("  promised (floor/goal)");
        for ours in cells.iter().filter(|cell| cell.peer == OURS) {
            let spread = format!("±{}", percent(ours.summary.spread()));
            print!("{:>7}  {:>10} {spread:>5}", ours.n, number(ours.summary.median));
            for peer in peers.iter().filter(|peer| **peer != OURS) {
                let cell = results.find(&row, layout, ours.n, peer);
                let text = cell.map_or("-".into(), |cell| {
                    let mark = if cell.sampled { "~" } else { "" };
                    format!("{mark}{}x {:>7}", number(cell.ratio), number(cell.summary.median))
                });
                print!("  {text:>16}");
            }
            println!("  {}", promises(results, ours));
        }
    }
}

/// How many promises were kept, and each that was not.
pub fn summary(results: &Results) {
    println!();
    summary_lines(results).iter().for_each(|line| println!("{line}"));
}

pub fn summary_lines(results: &Results) -> Vec<String> {
    let (mut floors, mut goals, mut all, mut with_goal) = (0, 0, 0, 0);
    let mut missed = Vec::new();
    for target in TARGETS {
        for (n, floor, goal) in target.promises() {
            let Some(cell) = results.find(target.row, Shape::Holes, n, target.peer) else {
                continue;
            };
            let verdict = targets::verdict(cell.ratio, floor, goal);
            all += 1;
            with_goal += usize::from(!goal.is_nan());
            floors += usize::from(verdict != Verdict::Missed);
            goals += usize::from(!goal.is_nan() && verdict == Verdict::Goal);
            if verdict == Verdict::Missed {
                let ratio = number(cell.ratio);
                missed.push(format!("{} n={n}: {ratio}x {}, floor {floor:.2}", target.row, target.peer));
            }
        }
    }
    let mut lines = vec![format!("floors met: {floors} of {all}; goals met: {goals} of {with_goal}")];
    lines.extend(missed.iter().map(|line| format!("  floor NOT met: {line}")));
    let at = |n| results.find("gfn random", Shape::Holes, n, OURS);
    if let (Some(small), Some(large)) = (at(509), at(32_764)) {
        let growth = large.summary.median / small.summary.median;
        let word = if growth <= targets::GROWTH { "met" } else { "NOT met" };
        let most = targets::GROWTH;
        lines.push(format!("growth of a random lookup, 509 to 32,764: {growth:.2}x, at most {most} {word}"));
    }
    lines.extend(results.left_out.iter().map(|line| format!("left out: {line}")));
    lines
}

pub fn concurrency(concurrency: &Concurrency) {
    println!("\nreaders and a writer at once (509 slots): million lookups a second, all threads; ns a move");
    println!("{:>12} {:>8} {:>7} {:>14} {:>12}", "peer", "readers", "writer", "Mlookups/s", "ns/move");
    for line in &concurrency.throughput {
        let per_move = line.per_move.as_ref().map_or("-".into(), |moves| number(moves.median));
        println!(
            "{:>12} {:>8} {:>7} {:>8} {:>5} {:>12}",
            line.peer,
            line.threads,
            if line.writer { "yes" } else { "no" },
            number(line.lookups.median),
            format!("±{}", percent(line.lookups.spread())),
            per_move
        );
    }
    println!("\na section with one lookup, 32,764 slots; the writer: transactions of 10,000 moves (ns)");
    println!(
        "{:>12} {:>7} {:>9} {:>9} {:>9} {:>12} {:>14}",
        "peer", "writer", "p50", "p99", "p99.9", "lookups", "changes/s"
    );
    for line in &concurrency.latency {
        println!(
            "{:>12} {:>7} {:>9} {:>9} {:>9} {:>12} {:>14}",
            line.peer,
            if line.writer { "yes" } else { "no" },
            number(line.p50),
            number(line.p99),
            number(line.p999),
            line.lookups,
            number(line.changes_per_second)
        );
    }
    busy_promises(concurrency).iter().for_each(|line| println!("{line}"));
    if let Some(garbage) = &concurrency.garbage {
        println!("\ngarbage while a reader sleeps in its section (509 slots):");
        for (moves, bytes) in &garbage.uncapped {
            println!("  after {moves:>6} moves {:>10} bytes", bytes);
        }
        println!("  after it left and a synchronize: {} bytes", garbage.after);
        println!(
            "  with a cap of {} bytes: peak {}, the writer {} after {} moves; in the end {} bytes",
            garbage.cap,
            garbage.capped_peak,
            if garbage.capped_writer_waited { "waited" } else { "DID NOT WAIT" },
            garbage.capped_moves,
            garbage.capped_after
        );
    }
}

pub fn busy_promises(concurrency: &Concurrency) -> Vec<String> {
    let moves = |peer: &str| {
        let mut lines = concurrency.throughput.iter();
        let line = lines.find(|line| line.peer == peer && line.threads == 1 && line.writer)?;
        line.per_move.as_ref().map(|moves| moves.median)
    };
    let tail = |peer: &str| {
        let mut lines = concurrency.latency.iter();
        lines.find(|line| line.peer == peer && line.writer).map(|line| line.p999)
    };
    let judge = |what: &str, ours: Option<f64>, theirs: Option<f64>, least: f64| {
        let ratio = theirs? / ours?;
        let word = if ratio >= least { "met" } else { "NOT met" };
        Some(format!("{what}: linux+urcu takes {}x as long, floor {least} {word}", number(ratio)))
    };
    let writer = judge("writer beside a busy reader", moves(OURS), moves("linux+urcu"), targets::BUSY_WRITER);
    let reader = judge("reader's p99.9 beside transactions", tail(OURS), tail("linux+urcu"), targets::TAIL);
    [writer, reader].into_iter().flatten().collect()
}

pub fn kvm(cells: &[KvmCell]) {
    println!("\non a real VM: microseconds a change; share: the table's own part, promised under 5%");
    println!("{:>26} {:>7} {:>9} {:>9} {:>9} {:>7}", "row", "n", "raw ioctl", "attached", "no VM", "share");
    for cell in cells {
        println!(
            "{:>26} {:>7} {:>9} {:>9} {:>9} {:>7} {}",
            cell.row,
            cell.n,
            number(cell.raw.median / 1000.0),
            number(cell.through_table.median / 1000.0),
            number(cell.table_alone.median / 1000.0),
            format!("{:.1}%", cell.share * 100.0),
            if cell.share <= targets::KVM_SHARE { "met" } else { "NOT MET" }
        );
    }
}

/// What libmemslots got slower (or faster) at, by more than the noise of both runs. Held against
/// Linux's trees of the same run where those were measured, so that another machine does not count.
pub fn compare(old: &Results, new: &Results) -> usize {
    let mut slower = 0;
    let mut compared = 0;
    println!("\ncompared with the run of {} on {}:", old.machine.date, old.machine.cpu);
    for cell in new.cells.iter().filter(|cell| cell.peer == OURS) {
        let find = |results: &Results, peer| results.find(&cell.row, cell.layout, cell.n, peer).cloned();
        let Some(before) = find(old, OURS) else { continue };
        let change = match (find(old, LINUX), find(new, LINUX)) {
            (Some(before), Some(now)) => before.ratio / now.ratio,
            _ => cell.summary.median / before.summary.median,
        };
        let noise = 0.05_f64.max(cell.summary.spread() + before.summary.spread());
        compared += 1;
        let word = match change {
            change if change > 1.0 + noise => "SLOWER",
            change if change < 1.0 / (1.0 + noise) => "faster",
            _ => continue,
        };
        slower += usize::from(word == "SLOWER");
        println!(
            "  {word} {} ({}) n={}: {} -> {} {}, {:+.0}% (noise {})",
            cell.row,
            cell.layout.name(),
            cell.n,
            number(before.summary.median),
            number(cell.summary.median),
            cell.unit,
            (change - 1.0) * 100.0,
            percent(noise)
        );
    }
    println!("  {compared} figures compared, {slower} slower by more than the noise");
    slower
}
