// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hva cache of a device: a range of guest memory that it keeps coming back to.
//!
//! Knows sections and publication numbers.

use super::section::Section;
use crate::error::{Errno, Result};
use crate::published::settled;
use crate::slot::{Access, AsId, Gpa, Hva};

/// A range of guest memory that a device keeps coming back to, such as a ring: one compare while the table is what it
/// was.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HvaCache {
    seq: u64,
    hva: u64,
    gpa: u64,
    len: u64,
    as_id: u32,
    /// Not a bool: C may hand in a cache that was never filled.
    write: u32,
}

impl HvaCache {
    /// Looks `gpa..gpa + len` up, for the access given.
    ///
    /// # Errors
    /// `ERANGE` where it is not within one slot, `EINVAL` where it is empty or wraps, otherwise as `gpa_to_hva`.
    pub fn new(section: &Section, as_id: AsId, gpa: Gpa, len: u64, access: Access) -> Result<HvaCache> {
        if len == 0 || gpa.0.checked_add(len - 1).is_none() {
            return Err(Errno::EINVAL);
        }
        let mut cache = HvaCache {
            seq: 0,
            hva: 0,
            gpa: gpa.0,
            len,
            as_id: as_id.0 as u32,
            write: (access == Access::Write) as u32,
        };
        cache.refill(section)?;
        Ok(cache)
    }

    /// Where the range is in this process; looked up again where the table has changed.
    ///
    /// # Errors
    /// As `new`; the next call looks again.
    #[inline]
    pub fn get(&mut self, section: &Section) -> Result<Hva> {
        if self.seq != section.reader.seq() {
            self.refill(section)?;
        }
        Ok(Hva(self.hva))
    }

    fn refill(&mut self, section: &Section) -> Result<()> {
        // The number before the lookup: what was published in between makes the entry old at once.
        let seq = section.reader.seq();
        self.seq = 0;
        let access = if self.write != 0 { Access::Write } else { Access::Read };
        let (hva, len) = section.gpa_to_hva(AsId(self.as_id as u16), Gpa(self.gpa), access)?;
        if len < self.len {
            return Err(Errno::ERANGE);
        }
        // In the middle of a publication: an answer that is good now, and not kept.
        (self.seq, self.hva) = (if seq == settled(seq) { seq } else { 0 }, hva.0);
        Ok(())
    }
}
