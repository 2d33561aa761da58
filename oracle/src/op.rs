// SPDX-License-Identifier: MIT OR Apache-2.0
//! The operations on a memslot table, as plain data, and their readable line.
//!
//! Everything that drives a table here (property tests, the KVM oracle, the fuzz target, replay of recorded
//! files) speaks this one type. Knows nothing of the library, of the model, or of how operations are chosen.
//!
//! A line is what the library's trace writes, one change each:
//!
//! ```text
//! gen=2 op=set as=0 slot=1 gpa=0x1000 size=0x2000 hva=0x7000 flags=0x1 memfd=-1 offset=0x0 result=0
//! ```
//!
//! `gen` and `result` are what was observed; a file written by hand may leave them out, as it may leave out any
//! field that is zero. For `split`, `gpa` is the cut and `hva` the new id; for `merge`, `hva` is the upper id; for
//! `lock` and `unlock`, `slot` is the reader.

use std::fmt;

/// Log the pages that the guest writes.
pub const LOG_DIRTY_PAGES: u32 = 1;
/// The guest may not write.
pub const READONLY: u32 = 2;
/// Backed by a guest_memfd.
pub const GUEST_MEMFD: u32 = 4;
/// Stands for "the lowest free id" where an id is asked for.
pub const ID_ANY: u16 = 0xffff;

/// What an operation answered: the id for a create, 0 for the others, or a positive errno.
pub type Outcome = Result<u16, i32>;

/// The arguments of `KVM_SET_USER_MEMORY_REGION2`, with the slot field taken apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the kernel's own names
pub struct Request {
    pub as_id: u16,
    pub id: u16,
    pub flags: u32,
    pub gpa: u64,
    pub size: u64,
    pub hva: u64,
    pub memfd: i32,
    pub offset: u64,
}

/// One operation on a table. A `Commit` or `Abort` with nothing open is nothing at all, and so are a `Lock` of what is
/// open and an `Unlock` of what is not, so that any subsequence of operations is a sequence of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // one field list for all: address space, id, bytes
pub enum Op {
    /// Create, delete, move or change flags, as the kernel decides.
    Set(Request),
    /// Only ever create.
    Create(Request),
    Delete {
        as_id: u16,
        id: u16,
    },
    Move {
        as_id: u16,
        id: u16,
        gpa: u64,
    },
    Flags {
        as_id: u16,
        id: u16,
        flags: u32,
    },
    /// Cut a slot in two at a guest physical address; the upper part gets `new_id`.
    Split {
        as_id: u16,
        id: u16,
        at: u64,
        new_id: u16,
    },
    /// Make one slot of two neighbours; the lower keeps its id.
    Merge {
        as_id: u16,
        lower: u16,
        upper: u16,
    },
    Resize {
        as_id: u16,
        id: u16,
        size: u64,
    },
    Begin,
    Commit,
    Abort,
    /// Begin a read-side section. No trace has these: they are for players that have readers of their own.
    Lock {
        reader: u16,
    },
    /// End it.
    Unlock {
        reader: u16,
    },
}

/// An operation with what was seen when it was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The generation of the operation's address space afterwards.
    pub generation: Option<u64>,
    /// What was asked.
    pub op: Op,
    /// 0 (or an id) or a negative errno.
    pub result: Option<i32>,
}

impl Op {
    /// The operation's name in a line.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Set(_) => "set",
            Op::Create(_) => "create",
            Op::Delete { .. } => "delete",
            Op::Move { .. } => "move",
            Op::Flags { .. } => "flags",
            Op::Split { .. } => "split",
            Op::Merge { .. } => "merge",
            Op::Resize { .. } => "resize",
            Op::Begin => "begin",
            Op::Commit => "commit",
            Op::Abort => "abort",
            Op::Lock { .. } => "lock",
            Op::Unlock { .. } => "unlock",
        }
    }

    /// Whether it only exists inside a transaction.
    pub fn needs_transaction(&self) -> bool {
        matches!(self, Op::Split { .. } | Op::Merge { .. } | Op::Resize { .. })
    }

    /// Whether it changes slots, or stages a change.
    pub fn is_change(&self) -> bool {
        !matches!(self, Op::Begin | Op::Commit | Op::Abort | Op::Lock { .. } | Op::Unlock { .. })
    }

    /// All fields in one shape, unused ones zero: what a line prints.
    pub fn fields(&self) -> Request {
        let zero = Request { memfd: -1, ..Request::default() };
        match *self {
            Op::Set(r) | Op::Create(r) => r,
            Op::Delete { as_id, id } => Request { as_id, id, ..zero },
            Op::Move { as_id, id, gpa } => Request { as_id, id, gpa, ..zero },
            Op::Flags { as_id, id, flags } => Request { as_id, id, flags, ..zero },
            Op::Split { as_id, id, at, new_id } => Request { as_id, id, gpa: at, hva: new_id.into(), ..zero },
            Op::Merge { as_id, lower, upper } => Request { as_id, id: lower, hva: upper.into(), ..zero },
            Op::Resize { as_id, id, size } => Request { as_id, id, size, ..zero },
            Op::Lock { reader } | Op::Unlock { reader } => Request { id: reader, ..zero },
            Op::Begin | Op::Commit | Op::Abort => zero,
        }
    }

    /// The operation of that name with these fields; the inverse of [`Op::fields`].
    pub fn from_fields(name: &str, r: Request) -> Result<Op, String> {
        let Request { as_id, id, .. } = r;
        let other_id = || u16::try_from(r.hva).map_err(|_| format!("hva={:#x} is no slot id", r.hva));
        Ok(match name {
            "set" => Op::Set(r),
            "create" => Op::Create(r),
            "delete" => Op::Delete { as_id, id },
            "move" => Op::Move { as_id, id, gpa: r.gpa },
            "flags" => Op::Flags { as_id, id, flags: r.flags },
            "split" => Op::Split { as_id, id, at: r.gpa, new_id: other_id()? },
            "merge" => Op::Merge { as_id, lower: id, upper: other_id()? },
            "resize" => Op::Resize { as_id, id, size: r.size },
            "begin" => Op::Begin,
            "commit" => Op::Commit,
            "abort" => Op::Abort,
            "lock" => Op::Lock { reader: id },
            "unlock" => Op::Unlock { reader: id },
            _ => return Err(format!("unknown op={name}")),
        })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self.fields();
        write!(
            f,
            "op={} as={} slot={} gpa={:#x} size={:#x} hva={:#x} flags={:#x} memfd={} offset={:#x}",
            self.name(),
            r.as_id,
            r.id,
            r.gpa,
            r.size,
            r.hva,
            r.flags,
            r.memfd,
            r.offset
        )
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(generation) = self.generation {
            write!(f, "gen={generation} ")?;
        }
        write!(f, "{}", self.op)?;
        match self.result {
            Some(result) => write!(f, " result={result}"),
            None => Ok(()),
        }
    }
}

impl std::str::FromStr for Line {
    type Err = String;

    fn from_str(text: &str) -> Result<Line, String> {
        let mut request = Request { memfd: -1, ..Request::default() };
        let (mut name, mut generation, mut result) = (None, None, None);
        for word in text.split_whitespace() {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is no key=value"))?;
            match key {
                "op" => name = Some(value),
                "gen" => generation = Some(number(key, value)?),
                "result" => result = Some(number(key, value)?),
                "as" => request.as_id = number(key, value)?,
                "slot" => request.id = number(key, value)?,
                "gpa" => request.gpa = number(key, value)?,
                "size" => request.size = number(key, value)?,
                "hva" => request.hva = number(key, value)?,
                "flags" => request.flags = number(key, value)?,
                "memfd" => request.memfd = number(key, value)?,
                "offset" => request.offset = number(key, value)?,
                _ => return Err(format!("unknown field {key}=")),
            }
        }
        let op = Op::from_fields(name.ok_or("no op=")?, request)?;
        Ok(Line { generation, op, result })
    }
}

/// Reads a whole file of lines; blank lines and what follows a `#` are for people.
pub fn parse(text: &str) -> Result<Vec<Line>, String> {
    text.lines()
        .enumerate()
        .map(|(at, line)| (at, line.split('#').next().unwrap_or("").trim()))
        .filter(|(_, line)| !line.is_empty())
        .map(|(at, line)| line.parse().map_err(|e| format!("line {}: {e}", at + 1)))
        .collect()
}

/// Writes operations as a file of lines.
pub fn print(ops: &[Op]) -> String {
    ops.iter().map(|op| format!("{op}\n")).collect()
}

fn number<T: TryFrom<i128>>(key: &str, text: &str) -> Result<T, String> {
    let value = match text.strip_prefix("0x") {
        Some(hex) => i128::from_str_radix(hex, 16),
        None => text.parse(),
    };
    let value = value.map_err(|e| format!("{key}={text}: {e}"))?;
    T::try_from(value).map_err(|_| format!("{key}={text} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back_as_it_was_written() {
        let text = "gen=18446744073709551615 op=set as=1 slot=7 gpa=0xfffffffffffff000 size=0x2000 hva=0x7000 \
                    flags=0x3 memfd=-1 offset=0x0 result=-17";
        let line: Line = text.parse().unwrap();
        assert_eq!(line.to_string(), text);
        assert_eq!(line.result, Some(-17));
    }

    #[test]
    fn comments_and_left_out_fields_are_fine() {
        let lines = parse("# a file\n\nop=delete slot=3 # the third\n").unwrap();
        assert_eq!(lines, [Line { generation: None, op: Op::Delete { as_id: 0, id: 3 }, result: None }]);
    }

    #[test]
    fn nonsense_is_refused_with_its_line_number() {
        for (bad, why) in [
            ("op=fly slot=1", "unknown op"),
            ("slot=1", "no op="),
            ("op=set slot=70000", "out of range"),
            ("op=set gpa=0xzz", "gpa=0xzz"),
            ("op=merge hva=0x10000", "no slot id"),
            ("op", "key=value"),
        ] {
            let error = parse(&format!("\n{bad}")).unwrap_err();
            assert!(error.starts_with("line 2: ") && error.contains(why), "{bad:?}: {error}");
        }
    }
}
