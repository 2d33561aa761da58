// SPDX-License-Identifier: MIT OR Apache-2.0

//! The results as `results.md`, for readers of the repository: ratios with libmemslots' own figure, what
//! became of each promise, machine, date and command. Nothing in it is typed by hand.

use crate::print::{busy_promises, number, summary_lines};
use crate::report::{Cell, Results, OURS};
use crate::targets::{self, Verdict, TARGETS};
use crate::workload::Shape;
use std::fmt::Write;

const HEAD: &str = "<!-- Made by `make bench` from results.json; do not edit. -->

# Results

Each figure says how many times as long the other structure takes (or as many bytes), and in brackets what libmemslots
takes. **Bold**: the goal is reached, or the floor where there is no goal. ▼: the floor is not reached. Plain: between
the two, or nothing was promised. The rows and structures, and how they are measured, are in [README.md](README.md).
";

/// Rows with figures of the peer on the layout, in the order measured.
fn rows<'r>(results: &'r Results, layout: Shape, peer: &str) -> Vec<&'r str> {
    let mut rows: Vec<&str> = Vec::new();
    for cell in results.cells.iter().filter(|cell| cell.layout == layout && cell.peer == peer) {
        if !rows.contains(&cell.row.as_str()) {
            rows.push(&cell.row);
        }
    }
    rows
}

fn sizes(results: &Results, layout: Shape, rows: &[&str]) -> Vec<usize> {
    let of = |cell: &&Cell| cell.layout == layout && rows.contains(&cell.row.as_str());
    let mut sizes: Vec<usize> = results.cells.iter().filter(of).map(|cell| cell.n).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

fn figure(results: &Results, layout: Shape, row: &str, n: usize, peer: &str) -> String {
    let find = |peer| results.find(row, layout, n, peer);
    let (Some(theirs), Some(ours)) = (find(peer), find(OURS)) else {
        return String::new();
    };
    let unit = if ours.unit == "ns" { "ns" } else { "B" };
    let ratio = format!("{}{}x", if theirs.sampled { "~" } else { "" }, number(theirs.ratio));
    let promised = targets::find(row, peer, n).filter(|_| layout == Shape::Holes);
    let ratio = match promised.map(|(floor, goal)| targets::verdict(theirs.ratio, floor, goal)) {
        Some(Verdict::Goal) => format!("**{ratio}**"),
        Some(Verdict::Missed) => format!("{ratio} ▼"),
        _ => ratio,
    };
    format!("{ratio} ({} {unit})", number(ours.summary.median))
}

fn versus(out: &mut String, results: &Results, title: &str, layout: Shape, peer: &str, rows: &[&str]) {
    let sizes = sizes(results, layout, rows);
    if rows.is_empty() || sizes.is_empty() {
        return;
    }
    let heads: Vec<String> = sizes.iter().map(|n| format!(" {n} slots |")).collect();
    let _ = writeln!(out, "\n## {title}\n\n| |{}\n|---|{}", heads.concat(), "---:|".repeat(sizes.len()));
    for row in rows {
        let figures: Vec<String> =
            sizes.iter().map(|&n| format!(" {} |", figure(results, layout, row, n, peer))).collect();
        let _ = writeln!(out, "| {row} |{}", figures.concat());
    }
}

/// The rows with a promise against the peer, and a random lookup.
fn promised<'r>(results: &'r Results, peer: &str) -> Vec<&'r str> {
    let mut rows = rows(results, Shape::Holes, peer);
    let is_promised = |row: &str| TARGETS.iter().any(|target| target.peer == peer && target.row == row);
    rows.retain(|row| *row == "gfn random" || is_promised(row));
    rows
}

fn concurrency(out: &mut String, results: &Results) {
    let Some(concurrency) = &results.concurrency else {
        return;
    };
    let _ = writeln!(out, "\n## Readers and a writer at once\n\n509 slots; the writer moves slots and never stops.\n");
    let _ = writeln!(
        out,
        "| | readers | million lookups a second | beside the writer | ns a move |\n|---|---:|---:|---:|---:|"
    );
    for alone in concurrency.throughput.iter().filter(|line| !line.writer) {
        let mut lines = concurrency.throughput.iter();
        let beside = lines.find(|line| line.writer && line.peer == alone.peer && line.threads == alone.threads);
        let lookups = beside.map_or(String::new(), |line| number(line.lookups.median));
        let moves = beside.and_then(|line| line.per_move.as_ref()).map_or(String::new(), |moves| number(moves.median));
        let _ = writeln!(
            out,
            "| {} | {} | {} | {lookups} | {moves} |",
            alone.peer,
            alone.threads,
            number(alone.lookups.median)
        );
    }
    let _ = writeln!(
        out,
        "\nA section with one lookup among 32,764 slots, in ns; the writer commits transactions of 10,000 moves.\n"
    );
    let _ = writeln!(out, "| | writer | p50 | p99 | p99.9 | changes a second |\n|---|---|---:|---:|---:|---:|");
    for line in &concurrency.latency {
        let writer = if line.writer { "yes" } else { "no" };
        let changes = if line.writer { number(line.changes_per_second) } else { String::new() };
        let _ = writeln!(
            out,
            "| {} | {writer} | {} | {} | {} | {changes} |",
            line.peer,
            number(line.p50),
            number(line.p99),
            number(line.p999)
        );
    }
    let _ = writeln!(out);
    for line in busy_promises(concurrency) {
        let _ = writeln!(out, "- {line}");
    }
    let Some(garbage) = &concurrency.garbage else {
        return;
    };
    let (moves, bytes) = garbage.uncapped.last().copied().unwrap_or_default();
    let _ = writeln!(
        out,
        "- garbage while a reader sleeps in its section: {bytes} bytes after {moves} moves, {} after it left; \
         with a cap of {} at most {}, and the writer {}",
        garbage.after,
        garbage.cap,
        garbage.capped_peak,
        if garbage.capped_writer_waited { "waited" } else { "DID NOT WAIT" }
    );
}

fn kvm(out: &mut String, results: &Results) {
    if results.kvm.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\n## On a real VM\n\nMicroseconds a change; share: the table's own part of the change through it.\n"
    );
    let _ = writeln!(
        out,
        "| | slots | raw ioctl | attached table | table without a VM | share |\n|---|---:|---:|---:|---:|---:|"
    );
    for cell in &results.kvm {
        let share = format!("{:.1} %", cell.share * 100.0);
        let share = if cell.share <= targets::KVM_SHARE { format!("**{share}**") } else { format!("{share} ▼") };
        let us = |summary: &crate::measure::Summary| number(summary.median / 1000.0);
        let (raw, through, alone) = (us(&cell.raw), us(&cell.through_table), us(&cell.table_alone));
        let _ = writeln!(out, "| {} | {} | {raw} | {through} | {alone} | {share} |", cell.row, cell.n);
    }
}

pub fn text(results: &Results) -> String {
    let mut out = HEAD.to_owned();
    let machine = &results.machine;
    let _ = writeln!(
        out,
        "\n{}, {} processors, {}; {}; `{}`; {}{}; C: {}, {}; Rust: release with LTO.",
        machine.cpu,
        machine.cpus,
        machine.kernel,
        machine.date,
        machine.command,
        machine.library,
        machine.linux_source.as_ref().map_or(String::new(), |source| format!("; {source}")),
        machine.compiler,
        machine.flags
    );
    let _ = writeln!(out);
    for line in summary_lines(results) {
        let _ = writeln!(out, "- {}", line.trim_start());
    }
    let holes = rows(results, Shape::Holes, "linux");
    versus(&mut out, results, "Linux's trees, without grace periods", Shape::Holes, "linux", &holes);
    let adjacent = rows(results, Shape::Adjacent, "linux").into_iter().filter(|row| !holes.contains(row));
    let (readers, series): (Vec<_>, Vec<_>) = adjacent.partition(|row| row.contains("readers"));
    let title = "The rows of the 2021 series, against Linux since then";
    versus(&mut out, results, title, Shape::Adjacent, "linux", &series);
    let title = "The same against Linux before it (sorted array, copied whole)";
    versus(&mut out, results, title, Shape::Adjacent, "array", &series);
    let title = "A last-used slot for each reader (64 vCPUs, 64 slots), against Linux's trees";
    versus(&mut out, results, title, Shape::Adjacent, "linux", &readers);
    let others = [
        ("Linux's trees with liburcu's grace periods", "linux+urcu"),
        ("QEMU's array", "qemu"),
        ("vm-memory, its guard held", "vm-memory"),
        ("BTreeMap, its RwLock held over all lookups", "BTreeMap"),
        ("BTreeMap, its RwLock taken for each lookup", "BTreeMap+lock"),
    ];
    for (title, peer) in others {
        versus(&mut out, results, title, Shape::Holes, peer, &promised(results, peer));
    }
    concurrency(&mut out, results);
    kvm(&mut out, results);
    out
}
