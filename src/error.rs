// SPDX-License-Identifier: MIT OR Apache-2.0
//! Errors: the kernel's error numbers, and which entry of a list was refused.
//!
//! Knows nothing else. The C functions turn an error into a negative number in one place, `capi/mod.rs`.

use std::fmt;

/// An error number of the kernel's, positive. The C functions return it negated.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

/// `Result` with an [`Errno`].
pub type Result<T, E = Errno> = std::result::Result<T, E>;

macro_rules! errnos {
    ($($name:ident),* $(,)?) => {
        impl Errno {
            $(#[doc = concat!("`", stringify!($name), "`.")]
              pub const $name: Errno = Errno(libc::$name);)*

            fn name(self) -> Option<&'static str> {
                match self.0 {
                    $(libc::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos!(
    EPERM,
    ENOENT,
    EINTR,
    EIO,
    E2BIG,
    EBADF,
    EAGAIN,
    ENOMEM,
    EFAULT,
    EBUSY,
    EEXIST,
    EINVAL,
    ENOTTY,
    ENOSPC,
    EROFS,
    ERANGE,
    EDEADLK,
    ENOTRECOVERABLE,
    ENXIO,
    EPIPE,
);

impl Errno {
    /// The calling thread's `errno`.
    pub fn last() -> Errno {
        Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }

    /// As the C functions return it.
    pub fn negated(self) -> i32 {
        -self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

impl std::error::Error for Errno {}

/// What was refused in a list of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub errno: Errno,
    /// Which entry. None where it was none in particular.
    pub at: Option<usize>,
}

impl Refused {
    /// An entry of the list.
    pub(crate) fn entry(index: usize) -> impl Fn(Errno) -> Refused {
        move |errno| Refused { errno, at: Some(index) }
    }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Refused {
        Refused { errno, at: None }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(index) => write!(f, "entry {index}: {}", self.errno),
            None => self.errno.fmt(f),
        }
    }
}

impl std::error::Error for Refused {}
