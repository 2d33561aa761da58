// SPDX-License-Identifier: MIT OR Apache-2.0

//! Timing: rounds in which every peer has its turn, medians with quartiles, ratios taken within a
//! round so that a machine that drifts carries all peers along; turns in stretches, so that an
//! interruption spoils one of them and not the turn. Knows no peer and no row.

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

/// One turn, looked at in stretches.
pub struct Turn {
    slice_ns: f64,
    done: Vec<(f64, usize)>,
    open: (f64, usize),
    total_ns: f64,
}

/// Stretches of a turn that takes as long as it should.
pub const STRETCHES: usize = 16;
/// Below this an interrupted stretch cannot be told from the others.
const FEWEST: usize = 3;

impl Turn {
    pub fn new(slice_ns: f64) -> Self {
        Self { slice_ns, done: Vec::new(), open: (0.0, 0), total_ns: 0.0 }
    }

    /// Takes up what was timed between two looks at the clock; short ones make a stretch together.
    pub fn add(&mut self, ns: f64, operations: usize) {
        self.total_ns += ns;
        self.open = (self.open.0 + ns, self.open.1 + operations);
        if self.open.0 >= self.slice_ns / STRETCHES as f64 {
            self.done.push(std::mem::take(&mut self.open));
        }
    }

    pub fn is_over(&self) -> bool {
        self.total_ns >= self.slice_ns && self.done.len() >= FEWEST
    }

    /// Nanoseconds an operation. Each stretch counts with the median of its own cost and its two
    /// neighbours': one that was interrupted counts as they do, and a cost that rises or falls
    /// steadily, as of a table that grows, is not bent.
    pub fn cost(&self) -> f64 {
        let costs: Vec<f64> = self.done.iter().map(|(ns, operations)| ns / *operations as f64).collect();
        let last = costs.len() - 1;
        let calm = |at: usize| {
            let first = at.saturating_sub(1).min(last.saturating_sub(2));
            Summary::of(&costs[first..=(first + 2).min(last)]).median
        };
        let ns: f64 = self.done.iter().enumerate().map(|(at, (_, operations))| calm(at) * *operations as f64).sum();
        ns / self.done.iter().map(|(_, operations)| *operations as f64).sum::<f64>()
    }
}

/// One peer's part in a row: has one turn and tells nanoseconds an operation.
pub struct Contender<'a> {
    pub name: &'static str,
    /// Measured on a part of the work, see `updates.rs`.
    pub sampled: bool,
    pub run: Box<dyn FnMut() -> f64 + 'a>,
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
            samples[index].push((contenders[index].run)());
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
                    step
                }),
            },
            Contender { name: "steady", sampled: false, run: Box::new(|| 2.0) },
        ];
        let outcomes = race(contenders, 3);
        assert_eq!(outcomes[0].summary.median, 2.0);
        assert_eq!(outcomes[1].summary.median, 2.0);
        assert_eq!(outcomes[1].ratio, 1.0);
    }

    fn turn(costs: &[f64]) -> Turn {
        let mut turn = Turn::new(1.0);
        costs.iter().for_each(|&ns| turn.add(ns * 10.0, 10));
        turn
    }

    #[test]
    fn an_interrupted_stretch_does_not_count() {
        assert_eq!(turn(&[2.0, 2.0, 900.0, 2.0]).cost(), 2.0);
        assert_eq!(turn(&[900.0, 2.0, 2.0, 2.0, 2.0, 900.0]).cost(), 2.0);
    }

    #[test]
    fn a_cost_that_rises_is_not_bent() {
        let cost = turn(&(0..64).map(f64::from).collect::<Vec<_>>()).cost();
        assert!((cost - 31.5).abs() < 0.1, "{cost}");
    }

    #[test]
    fn short_pieces_make_a_stretch_together() {
        let mut turn = Turn::new(160.0);
        (0..9).for_each(|_| turn.add(4.0, 2));
        assert_eq!((turn.done.len(), turn.is_over()), (3, false));
        (0..40).for_each(|_| turn.add(4.0, 2));
        assert!(turn.is_over());
        assert_eq!(turn.cost(), 2.0);
    }
}
