// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real VM behind a table: repeats a commit's changes on it, and undoes them where the kernel refuses one.
//!
//! Knows regions and steps; not tables, trees or hooks. One ioctl on one struct, which is the kernel's byte for byte
//! (a test holds both against kvm-bindings).

use crate::error::{Errno, Result};
use crate::plan::Step;
use crate::slot::Region;
use std::io::Write;
use std::os::fd::RawFd;

/// `KVM_CHECK_EXTENSION`: `_IO(KVMIO, 0x03)`.
pub const KVM_CHECK_EXTENSION: u64 = 0xae03;
/// `KVM_CAP_USER_MEMORY2`.
pub const KVM_CAP_USER_MEMORY2: u64 = 231;
/// `KVM_SET_USER_MEMORY_REGION`: `_IOW(KVMIO, 0x46, struct kvm_userspace_memory_region)`, the first 32 bytes of
/// [`Region`].
pub const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
/// `KVM_SET_USER_MEMORY_REGION2`: `_IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)`.
pub const KVM_SET_USER_MEMORY_REGION2: u64 = 0x40a0_ae49;

/// An undo that the kernel refused: from here on the VM has other slots than the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutOfStep {
    /// The call that failed.
    pub(crate) undo: Region,
    pub(crate) errno: Errno,
    /// How many calls have failed so, ever.
    pub(crate) count: u64,
}

/// A VM that follows a table. The file descriptor stays the caller's.
pub(crate) struct Backend {
    fd: RawFd,
    /// `KVM_SET_USER_MEMORY_REGION2`, or the first form where the kernel lacks it.
    request: u64,
}

impl Backend {
    /// # Errors
    /// `EBADF` where `fd` is not open, `ENOTTY` where it is no VM.
    pub(crate) fn new(fd: RawFd) -> Result<Backend> {
        check_is_vm(fd)?;
        // SAFETY: the call takes a number.
        let has_region2 = unsafe { libc::ioctl(fd, KVM_CHECK_EXTENSION as _, KVM_CAP_USER_MEMORY2) };
        let request = match has_region2 {
            ..0 => return Err(Errno::last()),
            0 => KVM_SET_USER_MEMORY_REGION,
            _ => KVM_SET_USER_MEMORY_REGION2,
        };
        Ok(Backend { fd, request })
    }

    /// Makes all steps, or none: where the kernel refuses one, those before it are undone, and its errno is given
    /// with the step's index.
    /// What could not be undone is noted in `out_of_step`.
    pub(crate) fn run(&self, steps: &[Step], out_of_step: &mut Option<OutOfStep>) -> Result<(), (Errno, usize)> {
        for (index, step) in steps.iter().enumerate() {
            if let Err(errno) = self.set_region(&step.region()) {
                self.undo(&steps[..index], out_of_step);
                return Err((errno, index));
            }
        }
        Ok(())
    }

    fn undo(&self, steps: &[Step], out_of_step: &mut Option<OutOfStep>) {
        for step in steps.iter().rev() {
            let undo = step.undo();
            let Err(errno) = self.set_region(&undo) else { continue };
            let count = out_of_step.map_or(0, |earlier| earlier.count) + 1;
            *out_of_step = Some(OutOfStep { undo, errno, count });
        }
    }

    fn set_region(&self, region: &Region) -> Result<()> {
        // SAFETY: the kernel reads a struct of the request's size, and Region is one (or has one at its start).
        match unsafe { libc::ioctl(self.fd, self.request as _, region as *const Region) } {
            0.. => Ok(()),
            _ => Err(Errno::last()),
        }
    }
}

/// KVM's own files answer some calls of each other, so that only the file's name says what it is.
fn check_is_vm(fd: RawFd) -> Result<()> {
    // SAFETY: the call only looks the number up.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(Errno::last());
    }
    let mut path = [0u8; 32];
    let mut name = [0u8; 64];
    // The last byte stays 0, and the number has at most ten digits.
    let _ = write!(&mut path[..31], "/proc/self/fd/{fd}");
    // SAFETY: a NUL-terminated path, and a buffer with its size.
    let len = unsafe { libc::readlink(path.as_ptr().cast(), name.as_mut_ptr().cast(), name.len()) };
    match usize::try_from(len).map(|len| &name[..len]) {
        Ok(b"anon_inode:kvm-vm") => Ok(()),
        Ok(_) => Err(Errno::ENOTTY),
        // Without /proc nothing can be said; the first call will tell.
        Err(_) => Ok(()),
    }
}
