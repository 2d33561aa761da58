// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the library records can be read, is what was done, and plays again to the same end.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use memslots_oracle::compare::{play, Recorded};
use memslots_oracle::library::Library;
use memslots_oracle::model::{Limits, Model};
use memslots_oracle::op::{parse, Line, Op};
use memslots_oracle::real::kvm_for;
use memslots_oracle::run::seed;
use memslots_oracle::world::{Seed, World};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Does operations on a table that is traced from the `from`-th on; gives the trace.
fn record(file: &Path, limits: &Limits, ops: &[Op], from: usize) -> String {
    let output = File::create(file).expect("a file");
    let mut library = Library::new(limits);
    let mut model = Model::new(*limits);
    play(&ops[..from], &mut model, &mut [&mut library], 100).expect("they agree");
    library.table().trace_start(output.as_raw_fd()).expect("a trace");
    play(&ops[from..], &mut model, &mut [&mut library], 100).expect("they agree");
    drop(library);
    fs::read_to_string(file).expect("the trace")
}

fn replays(lines: Vec<Line>, limits: &Limits) {
    let ops: Vec<Op> = lines.iter().map(|line| line.op).collect();
    let (mut library, mut recorded) = (Library::new(limits), Recorded::new(lines));
    let played = play(&ops, &mut Model::new(*limits), &mut [&mut library, &mut recorded], 100);
    played.unwrap_or_else(|divergence| panic!("{divergence}"));
}

fn is_change(op: &&Op) -> bool {
    op.is_change()
}

#[test]
fn a_trace_holds_every_operation_and_replays() {
    let mut seeds = Seed(seed("trace"));
    for (round, spaces) in [1, 1, 2, 3].into_iter().cycle().take(40).enumerate() {
        let limits = Limits { nr_address_spaces: spaces, ..Limits::default() };
        let ops = World::small(limits).with_transactions().ops(&mut Seed(seeds.draw()), 200);
        let text = record(&path(&format!("trace-{round}")), &limits, &ops, 0);
        let lines = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert!(lines.iter().all(|line| line.generation.is_some() && line.result.is_some()));
        let traced: Vec<&Op> = lines.iter().map(|line| &line.op).filter(is_change).collect();
        let done: Vec<&Op> = ops.iter().filter(is_change).collect();
        assert_eq!(traced, done);
        replays(lines, &limits);
    }
}

#[test]
fn a_trace_may_begin_in_a_tables_midlife() {
    let mut seeds = Seed(seed("trace_midlife"));
    let limits = Limits::default();
    for round in 0..20 {
        let ops = World::small(limits).ops(&mut Seed(seeds.draw()), 200);
        let text = record(&path(&format!("midlife-{round}")), &limits, &ops, 100);
        replays(parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}")), &limits);
    }
}

struct Said {
    status: Option<i32>,
    text: String,
}

fn replay(arguments: &[&str], file: &Path) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memslots-replay"));
    let output = command.args(arguments).arg(file).output().expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    Said { status: output.status.code(), text: String::from_utf8_lossy(&text).into_owned() }
}

#[test]
fn memslots_replay_says_whether_all_agree() {
    let (limits, file) = (Limits::default(), path("replayed"));
    let ops = World::small(limits).with_transactions().ops(&mut Seed(7), 200);
    let text = record(&file, &limits, &ops, 0);
    let same = replay(&[], &file);
    let all = format!("all agree: {} operations", text.lines().count());
    assert!(same.status == Some(0) && same.text.starts_with(&all), "{}", same.text);

    let (wrong, tampered) = (path("tampered"), text.replacen("result=0", "result=-17", 1));
    fs::write(&wrong, tampered).expect("a file");
    let differs = replay(&[], &wrong);
    assert!(differs.status == Some(1) && differs.text.contains("the record EEXIST"), "{}", differs.text);
    assert_eq!(replay(&["--ignore-results"], &wrong).status, Some(0));

    let nonsense = path("nonsense");
    fs::write(&nonsense, "op=fly\n").expect("a file");
    for file in [&nonsense, &path("that-is-not-there")] {
        let said = replay(&[], file);
        assert!(said.status == Some(2) && said.text.starts_with("memslots-replay: "), "{}", said.text);
    }
}

#[test]
fn memslots_replay_plays_on_a_real_vm() {
    if kvm_for("replay").is_none() {
        return;
    }
    let limits = Limits::default();
    let file = path("replayed-on-kvm");
    // Sets and nothing else: the results are the kernel's own.
    let ops = World::small(limits).set_only().ops(&mut Seed(8), 200);
    record(&file, &limits, &ops, 0);
    let said = replay(&["--kvm", "--ignore-results"], &file);
    assert_eq!(said.status, Some(0), "{}", said.text);
}
