// SPDX-License-Identifier: MIT OR Apache-2.0

//! The histogram that `c/loops.h` and `loops.rs` fill: 64 exact buckets, then 32 for each doubling.

use crate::peer::HISTOGRAM_BUCKETS;

pub fn bucket(ticks: u64) -> usize {
    if ticks < 64 {
        return ticks as usize;
    }
    let shift = 58 - ticks.leading_zeros() as usize;
    let bucket = 64 + (shift - 1) * 32 + ((ticks >> shift) as usize - 32);
    bucket.min(HISTOGRAM_BUCKETS - 1)
}

/// The lowest value that falls into a bucket.
pub fn lowest(bucket: usize) -> u64 {
    if bucket < 64 {
        return bucket as u64;
    }
    let shift = (bucket - 64) / 32 + 1;
    (((bucket - 64) % 32 + 32) as u64) << shift
}

/// The value below which `share` of all counts lie; None where there are none.
pub fn quantile(histogram: &[u64], share: f64) -> Option<u64> {
    let total: u64 = histogram.iter().sum();
    let wanted = (total as f64 * share).ceil() as u64;
    let mut seen = 0;
    for (index, count) in histogram.iter().enumerate() {
        seen += count;
        if seen >= wanted && total > 0 {
            return Some(lowest(index));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_lowest_value() {
        for index in 0..HISTOGRAM_BUCKETS {
            assert_eq!(bucket(lowest(index)), index);
        }
    }

    #[test]
    fn quantiles_of_a_plain_count() {
        let mut histogram = vec![0; HISTOGRAM_BUCKETS];
        histogram[1] = 99;
        histogram[50] = 1;
        assert_eq!(quantile(&histogram, 0.5), Some(1));
        assert_eq!(quantile(&histogram, 0.99), Some(1));
        assert_eq!(quantile(&histogram, 1.0), Some(50));
        assert_eq!(quantile(&[0; HISTOGRAM_BUCKETS], 0.5), None);
    }
}
