// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes a failing sequence of operations short: first fewer operations, then simpler ones.
//!
//! Knows nothing of why it fails.

use crate::op::{Op, Request};

/// The shortest sequence found for which `fails` still says true. `ops` must be one.
pub fn shrink(ops: &[Op], mut fails: impl FnMut(&[Op]) -> bool) -> Vec<Op> {
    let mut ops = ops.to_vec();
    loop {
        let before = ops.clone();
        drop_some(&mut ops, &mut fails);
        simplify(&mut ops, &mut fails);
        if ops == before {
            return ops;
        }
    }
}

/// Leaves out chunks, from halves down to single operations.
fn drop_some(ops: &mut Vec<Op>, fails: &mut impl FnMut(&[Op]) -> bool) {
    let mut chunk = ops.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        while at < ops.len() {
            let without = [&ops[..at], &ops[(at + chunk).min(ops.len())..]].concat();
            if fails(&without) {
                *ops = without;
            } else {
                at += chunk;
            }
        }
        chunk /= 2;
    }
}

fn simplify(ops: &mut [Op], fails: &mut impl FnMut(&[Op]) -> bool) {
    for at in 0..ops.len() {
        for simpler in simpler(&ops[at]) {
            let kept = std::mem::replace(&mut ops[at], simpler);
            if !fails(ops) {
                ops[at] = kept;
            }
        }
    }
}

/// The operation with one field or another made plainer.
fn simpler(op: &Op) -> Vec<Op> {
    let fields = op.fields();
    let changes = [
        Request { as_id: 0, ..fields },
        Request { flags: 0, ..fields },
        Request { flags: 0, memfd: -1, offset: 0, ..fields },
        Request { gpa: 0, ..fields },
        Request { size: 0x1000, ..fields },
        Request { hva: 0, ..fields },
        Request { id: 0, ..fields },
        Request { id: 1, ..fields },
    ];
    let made = changes.into_iter().filter_map(|fields| Op::from_fields(op.name(), fields).ok());
    made.filter(|simpler| simpler != op).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Limits;
    use crate::world::{Seed, World};

    #[test]
    fn two_operations_that_matter_are_found_among_many() {
        let mut ops = World::small(Limits::default()).ops(&mut Seed(1), 200);
        let create = Op::Create(Request { id: 5, gpa: 0x3000, size: 0x2000, hva: 0x9000, ..Request::default() });
        ops[20] = create;
        ops[150] = Op::Delete { as_id: 0, id: 77 };
        let fails = |ops: &[Op]| {
            let creates = |op: &Op| matches!(op, Op::Create(r) if r.id == 5 && r.size >= 0x2000);
            let created = ops.iter().position(creates);
            let deleted = ops.iter().position(|op| *op == Op::Delete { as_id: 0, id: 77 });
            created.is_some() && deleted.is_some() && created < deleted
        };
        let short = shrink(&ops, fails);
        let plain = Request { id: 5, size: 0x2000, ..Request::default() };
        assert_eq!(short.len(), 2);
        assert!(matches!(short[0], Op::Create(r) if Request { memfd: 0, size: 0x2000, offset: 0, ..r } == plain));
    }
}
