// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every row of KVM's errno table that a userspace table can answer, on the library, the model and a real VM.

use memslots_oracle::compare::{play, say, Player, RealPlayer};
use memslots_oracle::library::Library;
use memslots_oracle::model::{Limits, Model};
use memslots_oracle::op::{Line, Op, Outcome};
use memslots_oracle::real::{kvm_for, Vm};

const TABLE: &str = include_str!("errno-table.txt");
const LAST_ROW: u32 = 151;

struct Case {
    row: u32,
    name: &'static str,
    steps: Vec<Line>,
}

impl Case {
    fn ops(&self) -> Vec<Op> {
        self.steps.iter().map(|step| step.op).collect()
    }
}

/// The cases, and the rows that are said to be none.
fn table() -> (Vec<Case>, Vec<u32>) {
    let (mut cases, mut others, mut setup): (Vec<Case>, Vec<u32>, Vec<Line>) = Default::default();
    let mut in_case = false;
    for line in TABLE.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with("##") {
            setup.clear();
            in_case = false;
        } else if let Some((rows, name)) = line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            let (first, last) = rows.split_once("..").unwrap_or((rows, rows));
            let rows = first.parse().unwrap()..=last.parse().unwrap();
            if name.starts_with("- ") {
                others.extend(rows);
            } else {
                cases.push(Case { row: *rows.start(), name, steps: setup.clone() });
                in_case = true;
            }
        } else if !line.starts_with('#') {
            let step: Line = line.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
            if in_case { &mut cases.last_mut().unwrap().steps } else { &mut setup }.push(step);
        }
    }
    (cases, others)
}

fn expected(step: &Line) -> Outcome {
    match step.result.unwrap_or(0) {
        0 => Ok(0),
        errno => Err(-errno),
    }
}

/// The table was probed with the default limits, so the model must answer as it says.
#[test]
fn model_answers_as_the_table_says() {
    for case in table().0 {
        let mut model = Model::new(Limits::default());
        for step in &case.steps {
            let got = model.apply(&step.op, 0);
            assert_eq!(got, expected(step), "row {} ({}): {}: {}", case.row, case.name, step.op, say(got));
        }
    }
}

#[test]
fn library_answers_as_the_model() {
    for case in table().0 {
        let limits = Limits::default();
        check(&case, &limits, &mut Library::new(&limits));
    }
}

/// On a machine with other limits (two address spaces, 48 gpa bits) some answers are others; the model knows.
#[test]
fn real_vm_answers_as_the_model() {
    let Some(kvm) = kvm_for("errno_table") else { return };
    let limits = Vm::limits(&kvm);
    for case in table().0 {
        check(&case, &limits, &mut RealPlayer { vm: Vm::new(&kvm), pages: 0, ids: 16 });
    }
}

fn check(case: &Case, limits: &Limits, player: &mut dyn Player) {
    let played = play(&case.ops(), &mut Model::new(*limits), &mut [player], 1);
    played.unwrap_or_else(|divergence| panic!("row {} ({}): {divergence}", case.row, case.name));
}

#[test]
fn every_row_is_a_case_or_says_why_not() {
    let (cases, others) = table();
    let mut rows: Vec<u32> = cases.iter().map(|case| case.row).chain(others).collect();
    rows.sort_unstable();
    assert_eq!(rows, (1..=LAST_ROW).collect::<Vec<_>>());
    assert!(cases.iter().all(|case| !case.steps.is_empty()));
}
