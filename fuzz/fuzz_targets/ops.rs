// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bytes to operations, operations to the library and to the model: they must answer and look alike.

#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use memslots_oracle::compare::play;
use memslots_oracle::library::Library;
use memslots_oracle::model::{Limits, Model};
use memslots_oracle::op::print;
use memslots_oracle::world::{Choose, World};

const MOST_OPS: usize = 200;

/// Choices out of the fuzzer's bytes; 0 once they are used up.
struct Bytes<'a>(Unstructured<'a>);

impl Choose for Bytes<'_> {
    fn below(&mut self, n: u64) -> u64 {
        self.0.int_in_range(0..=n - 1).unwrap_or(0)
    }
}

fuzz_target!(|data: &[u8]| {
    let mut choose = Bytes(Unstructured::new(data));
    let limits = Limits { nr_address_spaces: choose.one(&[1, 1, 1, 2]), ..Limits::default() };
    let filled = choose.one(&[0, 0, 0, 0, 10, 10, 70, 250]);
    let world = if filled > 12 { World::wide(limits) } else { World::small(limits) }.with_transactions();
    let mut ops = world.fill(filled);
    let mut model = Model::new(limits);
    for op in &ops {
        let _ = model.apply(op, 0);
    }
    while !choose.0.is_empty() && ops.len() < usize::from(filled) + MOST_OPS {
        let op = world.op(&mut choose, &model);
        let _ = model.apply(&op, 0);
        ops.push(op);
    }
    if let Err(divergence) = play(&ops, &mut Model::new(limits), &mut [&mut Library::new(&limits)], 128) {
        panic!("{divergence}\n{}", print(&ops));
    }
});
