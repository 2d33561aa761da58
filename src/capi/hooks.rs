// SPDX-License-Identifier: MIT OR Apache-2.0
//! `memslots_ops`: C's hooks.
//!
//! A hook must return. What unwinds through one, a C++ exception or a thread that ends itself, would leave an update
//! half-way: it ends the process here, with a line that names the hook.

use super::memslots_change_kind;
use super::sized::{self, Input};
use crate::error::{Errno, Result};
use crate::hooks::{Change, Hooks, Kind};
use crate::slot::{Hva, Memslot};
use std::ffi::{c_int, c_void};
use std::mem::size_of;
use std::ptr::null;

/// What an update does to one slot, as the hooks see it. Valid during the call, as are the slots; the slots that become
/// or were current live on as long as those that a reader finds.
#[repr(C)]
pub struct memslots_change {
    /// An enum memslots_change_kind.
    pub kind: u32,
    /// The slot before. NULL for CREATE, but where the new slot was cut out of another: that one, as it was before the
    /// update.
    pub old_slot: *const Memslot,
    /// The slot after; for MERGE the one that has its frames. NULL for DELETE.
    pub new_slot: *const Memslot,
}

/// What a table tells its owner of an update. Begin an initializer with MEMSLOTS_OPS_INIT, which sets the size:
/// `{MEMSLOTS_OPS_INIT, .release = my_release}`. All hooks are optional.
///
/// They are called on the updating thread, under the update lock. An update calls `flush` for each slot, then `prepare`
/// for each change, publishes, and calls `commit` for each change; where a `prepare` refuses, `cancel` for those before
/// it, last first. `release` and then `unmap` are called when no reader can see the slot any more: at the end of this
/// update or of a later one, in memslots_reclaim, memslots_synchronize or memslots_free, and never on a thread that
/// only reads. A hook may look things up, and must end the sections that it opens; any other call on the same table is
/// -EDEADLK (or does nothing, where there is no error value). A hook must return: longjmp, a C++ exception or
/// pthread_exit out of one is not allowed (see the head of this file). `ctx` is the configuration's.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct memslots_ops {
    /// sizeof(struct memslots_ops). Smaller than version 0.2's, 0 above all, is -EINVAL at memslots_new: a program for
    /// version 0.1 that was only compiled anew must not lose its hooks. Larger than the library's, and not zero there:
    /// -E2BIG.
    pub size: usize,
    /// Stop the vCPUs, for `why`, which is made of enum memslots_pause_reason. Of updates of an attached table; this
    /// version attaches without it, and never calls it. Where it is set and `resume` is not: -EINVAL at memslots_new.
    pub pause: Option<unsafe extern "C-unwind" fn(ctx: *mut c_void, why: u32) -> c_int>,
    /// Let the vCPUs run again. Likewise never called by this version.
    pub resume: Option<unsafe extern "C-unwind" fn(ctx: *mut c_void)>,
    /// The last bits of a slot's dirty log, one a page. Likewise never called by this version.
    pub dirty: Option<unsafe extern "C-unwind" fn(ctx: *mut c_void, slot: *const Memslot, bitmap: *const u64)>,
    /// For every slot of which a reader may have derived something that stops being true: DELETE, MOVE, and whatever
    /// leaves a frame without memory, with other memory, or with less access (READONLY, guest_memfd) than before. The
    /// slot is INVALID to readers, and none is left that saw it valid. Where this hook is set, such an update waits for
    /// readers. The attached VM still has the slot: do not take pages away here.
    pub flush: Option<unsafe extern "C-unwind" fn(ctx: *mut c_void, invalid: *const Memslot)>,
    /// May refuse, with a negative errno: the update is rolled back and returns it.
    pub prepare: Option<unsafe extern "C-unwind" fn(ctx: *mut c_void, change: *const memslots_change) -> c_int>,
    /// A later change was refused: undo your `prepare`. In reverse order.
    pub cancel: Option<unsafe extern "C-unwind" fn(ctx: *mut c_void, change: *const memslots_change)>,
    /// The new state is published, and the attached VM has it. Readers may still use what was before, unless there is a
    /// `flush` hook or `sync`: take pages away in `unmap` or `release`.
    pub commit: Option<unsafe extern "C-unwind" fn(ctx: *mut c_void, change: *const memslots_change)>,
    /// The end of a slot's life, when no reader can see it any more: once a slot, after DELETE and MERGE. The place to
    /// free `opaque`; its memory may be another slot's by now.
    pub release: Option<unsafe extern "C-unwind" fn(ctx: *mut c_void, gone: *const Memslot)>,
    /// Host memory that no slot maps any more, in any address space, and that no reader can still use: the place to
    /// munmap. Exact pieces of what one slot had: after a MERGE nothing, after a RESIZE that shrinks the tail, after
    /// SPLIT and DELETE the deleted part; aliased memory when the last slot that mapped it is gone and no reader can
    /// still use it through that one. What has been mapped again by then is left out. All releases that are due come
    /// first. With this hook set, the table gives up every slot's memory, at memslots_free what is left; who unmaps
    /// memory on his own leaves it NULL.
    pub unmap: Option<unsafe extern "C-unwind" fn(ctx: *mut c_void, hva: Hva, size: u64)>,
}

// SAFETY: repr(C), the size first; what is read is a caller's, whose words are hooks or NULL.
unsafe impl Input for memslots_ops {
    const SMALLEST: usize = size_of::<memslots_ops>();

    fn defaults() -> memslots_ops {
        memslots_ops {
            size: size_of::<memslots_ops>(),
            pause: None,
            resume: None,
            dirty: None,
            flush: None,
            prepare: None,
            cancel: None,
            commit: None,
            release: None,
            unmap: None,
        }
    }
}

/// The hooks that a caller gives; none for NULL.
///
/// # Safety
/// `ops` is NULL or a struct of the size that it says, whose hooks may be called with `ctx` as the header says.
pub(super) unsafe fn read(ops: *const memslots_ops, ctx: *mut c_void) -> Result<Option<Box<dyn Hooks>>> {
    // SAFETY: the caller's promise.
    let Some(ops) = unsafe { sized::read(ops) }? else { return Ok(None) };
    if ops.pause.is_some() && ops.resume.is_none() {
        return Err(Errno::EINVAL);
    }
    Ok(Some(crate::memory::try_box(Ops { ops, ctx })?))
}

/// C's hooks, as the table calls them.
struct Ops {
    ops: memslots_ops,
    ctx: *mut c_void,
}

// SAFETY: the header says that hooks are called on whichever thread updates, one at a time; functions and ctx are the
// caller's to make fit for that.
unsafe impl Send for Ops {}
// SAFETY: as above.
unsafe impl Sync for Ops {}

/// Ends the process where a hook does not return.
struct MustReturn(&'static str);

impl Drop for MustReturn {
    fn drop(&mut self) {
        for part in ["memslots: an exception left the hook '", self.0, "'; a hook must return\n"] {
            // SAFETY: bytes and their number. What cannot be written is not said.
            unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
        }
        std::process::abort();
    }
}

/// Calls a hook.
fn call<T>(name: &'static str, hook: impl FnOnce() -> T) -> T {
    let must_return = MustReturn(name);
    let result = hook();
    std::mem::forget(must_return);
    result
}

fn kind_of(kind: Kind) -> memslots_change_kind {
    match kind {
        Kind::Create => memslots_change_kind::MEMSLOTS_CREATE,
        Kind::Delete => memslots_change_kind::MEMSLOTS_DELETE,
        Kind::Move => memslots_change_kind::MEMSLOTS_MOVE,
        Kind::FlagsOnly => memslots_change_kind::MEMSLOTS_FLAGS_ONLY,
        Kind::Resize => memslots_change_kind::MEMSLOTS_RESIZE,
        Kind::Split => memslots_change_kind::MEMSLOTS_SPLIT,
        Kind::Merge => memslots_change_kind::MEMSLOTS_MERGE,
    }
}

/// A change as C has it.
fn change_of(change: &Change<'_>) -> memslots_change {
    let slot = |slot: Option<&Memslot>| slot.map_or(null(), std::ptr::from_ref);
    memslots_change {
        kind: kind_of(change.kind) as u32,
        old_slot: slot(change.old_slot),
        new_slot: slot(change.new_slot),
    }
}

impl Hooks for Ops {
    fn wants_flush(&self) -> bool {
        self.ops.flush.is_some()
    }

    fn flush(&self, invalid: &Memslot) {
        if let Some(flush) = self.ops.flush {
            // SAFETY: the caller's function, called as the header says.
            call("flush", || unsafe { flush(self.ctx, invalid) });
        }
    }

    fn prepare(&self, change: &Change<'_>) -> Result<()> {
        let Some(prepare) = self.ops.prepare else { return Ok(()) };
        // SAFETY: as above.
        match call("prepare", || unsafe { prepare(self.ctx, &change_of(change)) }) {
            0 => Ok(()),
            refused => Err(Errno(refused.saturating_abs())),
        }
    }

    fn cancel(&self, change: &Change<'_>) {
        if let Some(cancel) = self.ops.cancel {
            // SAFETY: as above.
            call("cancel", || unsafe { cancel(self.ctx, &change_of(change)) });
        }
    }

    fn commit(&self, change: &Change<'_>) {
        if let Some(commit) = self.ops.commit {
            // SAFETY: as above.
            call("commit", || unsafe { commit(self.ctx, &change_of(change)) });
        }
    }

    fn release(&self, gone: &Memslot) {
        if let Some(release) = self.ops.release {
            // SAFETY: as above.
            call("release", || unsafe { release(self.ctx, gone) });
        }
    }

    fn wants_unmap(&self) -> bool {
        self.ops.unmap.is_some()
    }

    fn unmap(&self, hva: Hva, size: u64) {
        if let Some(unmap) = self.ops.unmap {
            // SAFETY: as above.
            call("unmap", || unsafe { unmap(self.ctx, hva, size) });
        }
    }
}
