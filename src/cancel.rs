// SPDX-License-Identifier: MIT OR Apache-2.0
//! Holding pthread_cancel() back: a thread that is cancelled in the middle of an update would leave the table half-way.
//!
//! Knows nothing. Used where a hook runs, and where the library itself calls something that is a cancellation point.

use std::marker::PhantomData;

/// While it lives, requests to cancel the calling thread wait.
pub(crate) struct NoCancel {
    before: libc::c_int,
    thread: PhantomData<*const ()>,
}

#[cfg(not(miri))]
fn set_state(state: libc::c_int) -> libc::c_int {
    extern "C" {
        fn pthread_setcancelstate(state: libc::c_int, before: *mut libc::c_int) -> libc::c_int;
    }
    let mut before = 0;
    // SAFETY: changes a state of the calling thread's, and writes to `before`.
    unsafe { pthread_setcancelstate(state, &mut before) };
    before
}

#[cfg(miri)]
fn set_state(_state: libc::c_int) -> libc::c_int {
    0
}

/// `PTHREAD_CANCEL_DISABLE` of pthread.h, with glibc as with musl.
const DISABLE: libc::c_int = 1;

impl NoCancel {
    pub(crate) fn begin() -> NoCancel {
        NoCancel { before: set_state(DISABLE), thread: PhantomData }
    }
}

impl Drop for NoCancel {
    fn drop(&mut self) {
        set_state(self.before);
    }
}
