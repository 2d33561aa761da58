// SPDX-License-Identifier: MIT OR Apache-2.0
//! Replays every operation file in regressions/ on the library, the model and, where it can be, on a real VM.
//!
//! A file is a trace; a first line `# limits: address_spaces=2` says what its table was like. With hooks, every promise
//! to them is looked at.

use std::fs;
use std::path::{Path, PathBuf};

use memslots_oracle::compare::{play, Player, RealPlayer, Recorded};
use memslots_oracle::library::Library;
use memslots_oracle::model::{Limits, Model};
use memslots_oracle::op::{parse, Line, Op};
use memslots_oracle::real::{kvm_for, Vm};
use memslots_oracle::run::say;
use memslots_oracle::watched::{Watch, ALL};

fn files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let entries = fs::read_dir(dir).expect("regressions/");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "trace"));
    files.sort();
    files
}

fn limits_of(text: &str) -> Limits {
    let spaces = text.lines().next().and_then(|line| line.strip_prefix("# limits: address_spaces="));
    let nr_address_spaces = spaces.map_or(1, |n| n.trim().parse().expect("a number of address spaces"));
    Limits { nr_address_spaces, ..Limits::default() }
}

fn read(file: &Path) -> (Limits, Vec<Line>) {
    let text = fs::read_to_string(file).expect("readable");
    let lines = parse(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    (limits_of(&text), lines)
}

#[test]
fn every_file_keeps_the_promises_to_hooks() {
    let mut broken = Vec::new();
    for file in files() {
        let (limits, lines) = read(&file);
        let ops: Vec<Op> = lines.iter().map(|line| line.op).collect();
        let has_sections = ops.iter().any(|op| matches!(op, Op::Lock { .. }));
        // With a flush hook updates wait for readers, and these are on the same thread.
        for flushes in if has_sections { &[false][..] } else { &[false, true] } {
            let watch = Watch { limits, flushes: *flushes, readers: 2, promises: ALL, stride: 1 };
            let played = watch.play(&ops);
            broken.extend(played.err().map(|divergence| format!("{}: {divergence}", file.display())));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_file_replays() {
    let kvm = kvm_for("regressions");
    let files = files();
    assert!(!files.is_empty(), "there are files to replay");
    let (nr_files, mut on_a_vm) = (files.len(), 0);
    for file in files {
        let (limits, lines) = read(&file);
        let ops: Vec<Op> = lines.iter().map(|line| line.op).collect();
        let mut library = Library::new(&limits);
        let mut recorded = Recorded::new(lines);
        let mut players: Vec<&mut dyn Player> = vec![&mut library, &mut recorded];
        let vm_can = |op: &Op| *op != Op::Begin && !op.needs_transaction();
        let mut real = kvm
            .as_ref()
            .filter(|kvm| limits == Vm::limits(kvm) && ops.iter().all(vm_can))
            .map(|kvm| RealPlayer { vm: Vm::new(kvm), pages: 0, ids: 16 });
        if let Some(real) = &mut real {
            players.push(real);
            on_a_vm += 1;
        }
        let played = play(&ops, &mut Model::new(limits), &mut players, 1);
        played.unwrap_or_else(|divergence| panic!("{}: {divergence}", file.display()));
    }
    say(&format!("regressions: {nr_files} files, {on_a_vm} of them also on a real VM"));
}
