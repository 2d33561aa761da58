// SPDX-License-Identifier: MIT OR Apache-2.0
//! `memslots_config`, `memslots_ops`, and the life of a table.

use super::hooks::{self, memslots_ops};
use super::sized::{self, Input as _};
use super::txn::{Transactions, BLOCK};
use super::{answer, given, value};
use crate::error::{Errno, Result};
use crate::table::{Config, Memslots};
use std::ffi::{c_char, c_int, c_void};
use std::mem::{align_of, offset_of, size_of};
use std::ptr::null;

/// One VM's memslot table: all of its address spaces.
#[repr(C, align(2048))]
pub struct memslots {
    /// First: a handle's address says where the table is.
    pub(super) txns: Transactions,
    pub(super) table: Memslots,
}

const _: () = assert!(align_of::<memslots>() == BLOCK && size_of::<memslots>() == BLOCK);

/// How a table is made. memslots_config_init() fills in the defaults: set what is to be different afterwards.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct memslots_config {
    /// sizeof(struct memslots_config), so that it can grow. The fields up to `ctx` must be there; those after it that
    /// are not have their defaults. Bytes beyond what the library knows must be zero.
    pub size: usize,
    /// 1 to 64; default 1.
    pub nr_address_spaces: u32,
    /// In each address space: 1 to 65535; default 32764, as KVM's on x86. Ids are below this.
    pub max_slots: u32,
    /// log2 of the host's page size in bytes: 12 to 30; the default is this machine's.
    pub page_shift: u32,
    /// What the real KVM would take; other flags are -EINVAL. Default: all three.
    pub supported_flags: u32,
    /// 0: an update returns once it is published. 1: as KVM's ioctl does, once no reader is left that could still use
    /// what was before.
    pub sync: u32,
    /// NULL: no hooks. Copied.
    pub ops: *const memslots_ops,
    /// Given to every hook.
    pub ctx: *mut c_void,
    /// Where usable host addresses end, in bytes. Default on x86-64: 2^47 - 4096, the kernel's with four-level page
    /// tables; elsewhere none.
    pub hva_limit: u64,
    /// Bits of a guest physical address: more than page_shift, up to 64; default 52. KVM refuses slots beyond the
    /// host's.
    pub gpa_bits: u32,
    /// Bytes of garbage past which an update waits for readers, as with sync; 0, the default: none.
    pub max_garbage: usize,
    /// 1: never call membarrier(); readers take a memory fence in each section instead. 0, the default: memslots_new
    /// registers for membarrier(), and updates call it unless the kernel refused that; memslots_stats.kept_pins says
    /// which it is.
    pub no_membarrier: u32,
}

/// The struct that memslots_config_init, the function, fills in: that of version 0.2.0, whatever is added later.
const FIRST_CONFIG: usize = offset_of!(memslots_config, no_membarrier) + size_of::<u64>();

// SAFETY: repr(C), the size first; numbers and pointers are good whatever their bits.
unsafe impl sized::Input for memslots_config {
    const SMALLEST: usize = offset_of!(memslots_config, hva_limit);

    fn defaults() -> memslots_config {
        let Config { nr_address_spaces, max_slots, supported_flags, hva_limit, gpa_bits, max_garbage, .. } =
            Config::default();
        memslots_config {
            size: size_of::<memslots_config>(),
            nr_address_spaces,
            max_slots,
            page_shift: host_page_shift(),
            supported_flags,
            sync: 0,
            ops: null(),
            ctx: std::ptr::null_mut(),
            hva_limit,
            gpa_bits,
            max_garbage,
            no_membarrier: 0,
        }
    }
}

impl memslots_config {
    /// # Safety
    /// `ops` is NULL, or a struct of the size that it says.
    unsafe fn into_config(self) -> Result<Config> {
        // SAFETY: the caller's promise.
        let hooks = unsafe { hooks::read(self.ops, self.ctx) }?;
        if self.sync > 1 || self.no_membarrier > 1 {
            return Err(Errno::EINVAL);
        }
        Ok(Config {
            nr_address_spaces: self.nr_address_spaces,
            max_slots: self.max_slots,
            page_shift: self.page_shift,
            supported_flags: self.supported_flags,
            sync: self.sync == 1,
            hooks,
            hva_limit: self.hva_limit,
            gpa_bits: self.gpa_bits,
            max_garbage: self.max_garbage,
            no_membarrier: self.no_membarrier == 1,
        })
    }
}

fn host_page_shift() -> u32 {
    // SAFETY: sysconf() has no conditions.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).ok().and_then(u64::checked_ilog2).unwrap_or(12)
}

/// Fills in the defaults, and the size. Does not block; any thread. NULL: nothing happens.
///
/// In C this is a macro that passes the size of the caller's struct along (memslots_config_init_sized), so that a
/// program built with an older header is not written beyond its struct. The function fills in the struct of version
/// 0.2.0.
#[no_mangle]
pub unsafe extern "C" fn memslots_config_init(config: *mut memslots_config) {
    // SAFETY: the caller's struct, of at least this size.
    unsafe { memslots_config_init_sized(config, FIRST_CONFIG) };
}

/// Fills in the defaults of as much of the struct as there is in `size` bytes, zero for what is beyond the library's,
/// and the size. Otherwise as memslots_config_init. Where there is no room for the fields up to `ctx`, nothing happens.
#[no_mangle]
pub unsafe extern "C" fn memslots_config_init_sized(config: *mut memslots_config, size: usize) {
    // SAFETY: the caller says that so many bytes are there.
    unsafe { sized::fill(config, size) };
}

/// Makes an empty table. `config` NULL: the defaults. Does not block; any thread. On success `*out` is the table, until
/// memslots_free.
///
/// Errors: -EINVAL (a NULL `out`, a number outside of its range, a size that has no room for the fields up to `ctx`,
/// `ops` smaller than those of version 0.2, a `pause` without `resume`), -E2BIG (config or ops: a size above 4096, or
/// bytes that this library does not know and that are not zero), -ENOMEM.
#[no_mangle]
pub unsafe extern "C" fn memslots_new(config: *const memslots_config, out: *mut *mut memslots) -> c_int {
    answer(|| {
        if out.is_null() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: the caller's struct and hooks.
        let config = unsafe { sized::read(config)?.unwrap_or_else(memslots_config::defaults).into_config()? };
        let table = Memslots::new(config)?;
        let handle = crate::memory::try_box(memslots { txns: Transactions::new(), table })?;
        // SAFETY: not NULL, and the caller's.
        unsafe { out.write(Box::into_raw(handle)) };
        Ok(())
    })
}

/// Ends a table: aborts a transaction that is open, ends every slot, runs all releases and unmaps before it returns,
/// and frees everything. Whether there is memory makes no difference, nor does an earlier panic. Other hooks are not
/// called. An attached VM keeps the slots that it has: it must not run any more, since their memory is given up. NULL,
/// and from inside a hook of the table: nothing happens. No other thread may be inside an update, or begin one. In a
/// forked child memory is freed and no hook is called.
///
/// Readers should be freed before. Those that are left find nothing any more; where one of another thread is in a
/// section, this waits for it to end. From inside a section of the calling thread everything, releases included, is
/// put off until the last reader is freed, and readers find the slots until then.
#[no_mangle]
pub unsafe extern "C" fn memslots_free(table: *mut memslots) {
    // SAFETY: the caller's table, or NULL.
    let Some(memslots { txns, table: shared }) = (unsafe { table.as_ref() }) else { return };
    value((), || {
        if !txns.is_in_hook(shared) {
            txns.end(shared);
            // SAFETY: from memslots_new, and given up here.
            drop(unsafe { Box::from_raw(table) });
        }
    });
}

/// Begins to repeat every committed change on a real VM, through KVM_SET_USER_MEMORY_REGION2 (or the first form where
/// the kernel lacks it), in an order that the kernel accepts. Where the kernel refuses one, what was made is undone,
/// the table stays as it was, and the kernel's errno comes out. Slots that exist are registered first. `vm_fd` stays
/// the caller's and must stay open, as must the guest_memfd of every slot; -1 detaches, and the VM keeps the slots that
/// it has.
///
/// An undo that the kernel refuses too leaves the VM out of step: memslots_get_stats counts it, memslots_dump names it.
///
/// Waits for other threads' updates; any thread. Errors: -EINVAL (NULL), -EBADF, -ENOTTY (no VM), the kernel's for a
/// slot that exists (then none of them is left there), -ENOMEM, -EDEADLK (inside an update of this thread),
/// -ENOTRECOVERABLE.
#[no_mangle]
pub unsafe extern "C" fn memslots_attach_kvm(table: *mut memslots, vm_fd: c_int) -> c_int {
    // SAFETY: a table of the caller's, or NULL.
    answer(|| unsafe { given(table) }?.table.attach_kvm(vm_fd))
}

/// Begins to write every change to `fd`, one readable line each, preceded by lines that make the slots that exist. The
/// lines are what `memslots-replay` plays. `fd` stays the caller's; when it cannot be written to, the trace ends.
///
/// Waits for other threads' updates, and updates then wait for the write; any thread. Errors: -EINVAL (NULL), -EBADF,
/// -EDEADLK (inside an update of this thread), -ENOTRECOVERABLE.
#[no_mangle]
pub unsafe extern "C" fn memslots_trace_start(table: *mut memslots, fd: c_int) -> c_int {
    // SAFETY: a table of the caller's, or NULL.
    answer(|| unsafe { given(table) }?.table.trace_start(fd))
}

/// Ends the trace. Where there is none, nothing happens. Waits for other threads' updates; any thread.
///
/// Errors: -EINVAL (NULL), -EDEADLK (inside an update of this thread), -ENOTRECOVERABLE.
#[no_mangle]
pub unsafe extern "C" fn memslots_trace_stop(table: *mut memslots) -> c_int {
    // SAFETY: a table of the caller's, or NULL.
    answer(|| unsafe { given(table) }?.table.trace_stop())
}

/// The version of the library that is linked, as in "0.2.0". Never NULL; valid for ever. Does not block; any thread.
#[no_mangle]
pub extern "C" fn memslots_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
