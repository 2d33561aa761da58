// SPDX-License-Identifier: MIT OR Apache-2.0
//! Plays a trace file against the library, the naive model and, with --kvm, a real VM, and says where they part.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kvm_ioctls::Kvm;
use memslots_oracle::compare::{play, Player, RealPlayer, Recorded, Tally};
use memslots_oracle::library::Library;
use memslots_oracle::model::{Limits, Model};
use memslots_oracle::op::{self, Line, Op};
use memslots_oracle::real::Vm;

/// Plays a trace of memslot changes against the library and a model of KVM, and says where they differ.
///
/// A trace is what memslots_trace_start() writes. Exit status: 0 where all agree, 1 where they differ, 2 where the
/// trace cannot be played.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The trace file.
    file: PathBuf,
    /// Play it on a real VM of this machine, too (changes outside transactions).
    #[arg(long)]
    kvm: bool,
    /// Address spaces of the table.
    #[arg(long, default_value_t = 1)]
    address_spaces: u16,
    /// Do not hold the outcome against the results in the file.
    #[arg(long)]
    ignore_results: bool,
}

fn main() -> ExitCode {
    match replay(&Arguments::parse()) {
        Ok(Ok(tally)) => {
            println!("all agree: {tally}");
            ExitCode::SUCCESS
        }
        Ok(Err(difference)) => {
            println!("they differ: {difference}");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("memslots-replay: {error}");
            ExitCode::from(2)
        }
    }
}

/// The outer error: it could not be played; the inner: they differ.
fn replay(arguments: &Arguments) -> Result<Result<Tally, String>, String> {
    let file = arguments.file.display();
    let text = fs::read_to_string(&arguments.file).map_err(|e| format!("{file}: {e}"))?;
    let lines = op::parse(&text).map_err(|e| format!("{file}: {e}"))?;
    let ops: Vec<Op> = lines.iter().map(|line| line.op).collect();

    let mut real = None;
    let mut limits = Limits { nr_address_spaces: arguments.address_spaces, ..Limits::default() };
    if arguments.kvm {
        let kvm = Kvm::new().map_err(|e| format!("/dev/kvm: {e}"))?;
        limits = Vm::limits(&kvm);
        real = Some(RealPlayer { vm: Vm::new(&kvm), pages: 0, ids: 0 });
        if ops.contains(&Op::Begin) {
            return Err(format!("{file}: has transactions, which no VM has; play it without --kvm"));
        }
    }
    let mut library = Library::new(&limits);
    let mut recorded = Recorded::new(if arguments.ignore_results { without_results(&lines) } else { lines });
    let mut players: Vec<&mut dyn Player> = vec![&mut library, &mut recorded];
    if let Some(real) = &mut real {
        players.push(real);
    }
    let played = play(&ops, &mut Model::new(limits), &mut players, 64);
    Ok(played.map_err(|divergence| format!("{file}: {divergence}")))
}

fn without_results(lines: &[Line]) -> Vec<Line> {
    lines.iter().map(|line| Line { generation: None, result: None, ..*line }).collect()
}
