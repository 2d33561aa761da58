// SPDX-License-Identifier: MIT OR Apache-2.0

//! Timing: rounds in which every peer has its turn, medians with quartiles, ratios taken within a
//! round so that a machine that drifts carries all peers along. Knows no peer and no row.

use std::time::Instant;

/// What is to be kept of one measured thing.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    pub median: f64,
    /// First and third quartile.
    pub low: f64,
    pub high: f64,
    pub rounds: usize,
}

impl Summary {
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        Self { median: at(0.5), low: at(0.25), high: at(0.75), rounds: sorted.len() }
    }

    /// Half the distance of the quartiles, as a share of the median.
    pub fn spread(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.median
    }
}

/// One peer's part in a row: runs it once and tells (nanoseconds, operations).
pub struct Contender<'a> {
    pub name: &'static str,
    /// Measured on a part of the work, see `updates.rs`.
    pub sampled: bool,
    pub run: Box<dyn FnMut() -> (f64, usize) + 'a>,
}

pub struct Outcome {
    pub name: &'static str,
    pub sampled: bool,
    pub summary: Summary,
    /// This peer's time over the first contender's, median of the rounds' own ratios.
    pub ratio: f64,
}

/// Times all contenders, in turn, `rounds` times; the order rotates.
pub fn race(mut contenders: Vec<Contender<'_>>, rounds: usize) -> Vec<Outcome> {
    let count = contenders.len();
    let mut samples = vec![Vec::with_capacity(rounds); count];
    for round in 0..rounds {
        for turn in 0..count {
            let index = (round + turn) % count;
            let (ns, operations) = (contenders[index].run)();
            samples[index].push(ns / operations as f64);
        }
    }
    let outcome = |(contender, own): (&Contender<'_>, &Vec<f64>)| {
        let ratios: Vec<f64> = own.iter().zip(&samples[0]).map(|(own, first)| own / first).collect();
        Outcome {
            name: contender.name,
            sampled: contender.sampled,
            summary: Summary::of(own),
            ratio: Summary::of(&ratios).median,
        }
    };
    contenders.iter().zip(&samples).map(outcome).collect()
}

/// Nanoseconds that `work` takes, without what asking the clock takes.
pub fn time(work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    (begin.elapsed().as_nanos() as f64 - clock_cost()).max(1.0)
}

/// What two looks at the clock cost, measured once.
fn clock_cost() -> f64 {
    static COST: std::sync::OnceLock<f64> = std::sync::OnceLock::new();
    *COST.get_or_init(|| {
        let samples: Vec<f64> = (0..1001)
            .map(|_| {
                let begin = Instant::now();
                begin.elapsed().as_nanos() as f64
            })
            .collect();
        Summary::of(&samples).median
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_race_tells_medians_and_ratios() {
        let mut step = 0.0;
        let contenders = vec![
            Contender {
                name: "drifting",
                sampled: false,
                run: Box::new(|| {
                    step += 1.0;
                    (step, 1)
                }),
            },
            Contender { name: "steady", sampled: false, run: Box::new(|| (20.0, 10)) },
        ];
        let outcomes = race(contenders, 3);
        assert_eq!(outcomes[0].summary.median, 2.0);
        assert_eq!(outcomes[1].summary.median, 2.0);
        assert_eq!(outcomes[1].ratio, 1.0);
    }
}
