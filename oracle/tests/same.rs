// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ways that come to the same: a single update without a journal, and one that is a transaction of one (where there are
//! hooks, `sync` or `max_garbage`).

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, FromRawFd};

use memslots::{Config, Hooks, Memslots};
use memslots_oracle::compare::Player;
use memslots_oracle::library::{config, Library};
use memslots_oracle::model::{Limits, Model};
use memslots_oracle::run::each_case;
use memslots_oracle::world::{Choose, World};

const UPDATES: usize = 500;

struct AgreesToAll;

impl Hooks for AgreesToAll {}

/// One table for each reason to make a transaction of a single update, after one that has none.
fn tables(limits: &Limits) -> [Library; 4] {
    [
        config(limits),
        Config { hooks: Some(Box::new(AgreesToAll)), ..config(limits) },
        Config { sync: true, ..config(limits) },
        Config { max_garbage: 20_000, ..config(limits) },
    ]
    .map(|config| Library::with(Memslots::new(config).expect("a table"), limits))
}

fn traced(library: &Library) -> File {
    // SAFETY: a name, and a file descriptor that is the file's from here on.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"trace".as_ptr(), 0)) };
    library.table().trace_start(file.as_raw_fd()).expect("a trace");
    file
}

fn text(file: &mut File) -> String {
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("a trace");
    text
}

#[test]
fn a_single_update_is_a_transaction_of_one() {
    each_case("same", 16, |choose| {
        let nr_ids = choose.one(&[5, 30, 200, 900]);
        let limits = Limits { nr_address_spaces: 2, max_slots: nr_ids.into(), ..Limits::default() };
        let world = World { ids: nr_ids, pages: u64::from(nr_ids) * 3, largest: 3, ..World::small(limits) };
        let (mut model, mut tables) = (Model::new(limits), tables(&limits));
        let mut traces = tables.each_ref().map(traced);
        for step in 0..UPDATES {
            let op = world.op(choose, &model);
            let answers = tables.each_mut().map(|table| table.apply(&op, step, &model));
            let expected = model.apply(&op, step);
            let publications = tables.each_ref().map(|table| table.table().stats().publications);
            assert_eq!(answers, [Some(expected); 4], "step {step}: {op}");
            assert_eq!(publications, [publications[0]; 4], "step {step}: {op}");
            if step % 10 == 0 {
                let same = tables.iter_mut().try_for_each(|table| table.glance(&model).and(table.inspect(&model)));
                same.unwrap_or_else(|error| panic!("step {step}: {op}: {error}"));
            }
        }
        let traces = traces.each_mut().map(text);
        assert_eq!(traces[0].lines().count(), UPDATES);
        assert!(traces.iter().all(|trace| *trace == traces[0]), "the traces");
    });
}
