// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes a failing sequence of operations short: first fewer operations, then simpler ones.
//!
//! Knows nothing of why it fails.

use crate::op::{Op, Request, ID_ANY};

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
        for change in CHANGES {
            let plainer = Op::from_fields(ops[at].name(), change(ops[at].fields()));
            plainer.into_iter().for_each(|plainer| try_out(ops, at, plainer, fails));
        }
        (0..16).for_each(|id| name(ops, at, id, fails));
    }
}

/// Puts a plainer operation in the place of one, if it still fails.
fn try_out(ops: &mut [Op], at: usize, plainer: Op, fails: &mut impl FnMut(&[Op]) -> bool) {
    if size(&plainer) < size(&ops[at]) {
        let kept = std::mem::replace(&mut ops[at], plainer);
        if !fails(ops) {
            ops[at] = kept;
        }
    }
}

/// Gives a slot an id by name that has had the lowest free one: then those with lower ids may not be needed.
fn name(ops: &mut [Op], at: usize, id: u16, fails: &mut impl FnMut(&[Op]) -> bool) {
    match ops[at] {
        Op::Create(r) if r.id == ID_ANY => try_out(ops, at, Op::Create(Request { id, ..r }), fails),
        Op::Split { as_id, id: lower, at: cut, new_id: ID_ANY } => {
            try_out(ops, at, Op::Split { as_id, id: lower, at: cut, new_id: id }, fails);
        }
        _ => {}
    }
}

/// One field or another made plainer.
const CHANGES: [fn(Request) -> Request; 8] = [
    |r| Request { as_id: 0, ..r },
    |r| Request { flags: 0, ..r },
    |r| Request { flags: 0, memfd: -1, offset: 0, ..r },
    |r| Request { gpa: 0, ..r },
    |r| Request { size: 0x1000, ..r },
    |r| Request { hva: 0, ..r },
    |r| Request { id: 0, ..r },
    |r| Request { id: 1, ..r },
];

/// What gets smaller with each change that is kept, so that there is an end.
fn size(op: &Op) -> u128 {
    let Request { as_id, id, flags, gpa, size, hva, memfd, offset } = op.fields();
    let memfd = u64::try_from(i64::from(memfd) + 1).unwrap_or(0);
    [as_id.into(), id.into(), flags.into(), gpa, size, hva, memfd, offset].into_iter().map(u128::from).sum()
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
        let plain = Request { id: 5, size: 0x2000, memfd: -1, ..Request::default() };
        assert_eq!(short.len(), 2);
        assert!(matches!(short[0], Op::Create(r) if r == plain), "{short:x?}");
    }
}
