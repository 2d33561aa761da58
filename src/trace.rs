// SPDX-License-Identifier: MIT OR Apache-2.0
//! The trace of a table: a readable line for every change, in the form that `memslots-replay` plays again.
//!
//! Knows requests and results; not tables. Allocates nothing. A line that cannot be written ends the trace: it must not
//! disturb the table.

use crate::error::{Errno, Result};
use crate::slot::{AsId, Region, SlotId};
use std::fmt;
use std::io::Write;
use std::os::fd::RawFd;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Set,
    Create,
    Delete,
    Move,
    Flags,
    Resize,
    /// `gpa` is where it is cut, `hva` the new id.
    Split,
    /// `hva` is the upper slot's id.
    Merge,
    Begin,
    Commit,
    Abort,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Set => "set",
            Op::Create => "create",
            Op::Delete => "delete",
            Op::Move => "move",
            Op::Flags => "flags",
            Op::Resize => "resize",
            Op::Split => "split",
            Op::Merge => "merge",
            Op::Begin => "begin",
            Op::Commit => "commit",
            Op::Abort => "abort",
        })
    }
}

/// A region that names a slot and says nothing else.
pub(crate) fn named(as_id: AsId, id: SlotId) -> Region {
    Region { slot: Region::slot_of(as_id, id), ..Region::default() }
}

/// An open trace. The file descriptor stays the caller's.
pub(crate) struct Trace {
    fd: RawFd,
    failed: bool,
}

impl Trace {
    pub(crate) fn new(fd: RawFd) -> Self {
        Trace { fd, failed: false }
    }

    pub(crate) fn line(&mut self, generation: u64, op: Op, region: &Region, result: Result<()>) {
        if self.failed {
            return;
        }
        let mut text = [0u8; 384];
        let mut rest = &mut text[..];
        let errno = result.err().map_or(0, |errno| errno.negated());
        let Region { flags, guest_phys_addr: gpa, memory_size: size, userspace_addr: hva, .. } = *region;
        let (memfd, offset) = (region.guest_memfd as i32, region.guest_memfd_offset);
        let (as_id, id) = (region.as_id(), region.id());
        let written = writeln!(
            rest,
            "gen={generation} op={op} as={as_id} slot={id} gpa={gpa:#x} size={size:#x} hva={hva:#x} flags={flags:#x} \
             memfd={memfd} offset={offset:#x} result={errno}"
        );
        let len = 384 - rest.len();
        self.failed = written.is_err() || write_all(self.fd, &text[..len]).is_err();
    }
}

/// Writes to a file descriptor that is not ours. A pipe that nobody reads is an error like any other: no signal.
pub(crate) fn write_all(fd: RawFd, mut bytes: &[u8]) -> Result<()> {
    let _blocked = SigpipeBlocked::new();
    while !bytes.is_empty() {
        // SAFETY: a buffer with its size.
        let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(written) {
            Ok(0) => return Err(Errno::EIO),
            Ok(written) => bytes = &bytes[written..],
            Err(_) if Errno::last() == Errno::EINTR => {}
            Err(_) => return Err(Errno::last()),
        }
    }
    Ok(())
}

/// Keeps SIGPIPE from this thread, and takes one that came meanwhile.
struct SigpipeBlocked {
    before: libc::sigset_t,
    only: libc::sigset_t,
    /// One was pending already: it is not ours to take.
    pending: bool,
}

impl SigpipeBlocked {
    fn new() -> Self {
        // SAFETY: sets are plain data, filled in by the calls, which change this thread's mask and nothing else.
        unsafe {
            let (mut only, mut before, mut pending) = std::mem::zeroed();
            libc::sigemptyset(&mut only);
            libc::sigaddset(&mut only, libc::SIGPIPE);
            libc::sigpending(&mut pending);
            libc::pthread_sigmask(libc::SIG_BLOCK, &only, &mut before);
            SigpipeBlocked { before, only, pending: libc::sigismember(&pending, libc::SIGPIPE) == 1 }
        }
    }
}

impl Drop for SigpipeBlocked {
    fn drop(&mut self) {
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: as above; without one that waits, sigtimedwait() returns at once.
        unsafe {
            if !self.pending {
                libc::sigtimedwait(&self.only, std::ptr::null_mut(), &at_once);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no signals")]
    fn a_pipe_that_nobody_reads_is_an_errno() {
        let mut ends = [0; 2];
        // SAFETY: room for two; SIGPIPE ends the process, as it does unless one says otherwise (Rust's runtime does).
        unsafe {
            assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
            libc::close(ends[0]);
            let before = libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            assert_eq!(write_all(ends[1], b"line\n"), Err(Errno::EPIPE));
            libc::signal(libc::SIGPIPE, before);
            libc::close(ends[1]);
        }
    }
}
