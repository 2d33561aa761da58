// SPDX-License-Identifier: MIT OR Apache-2.0

//! What was measured, as it is kept: `results.json` and its parts. Knows no peer.

use crate::measure::{Outcome, Summary};
use crate::workload::Shape;
use serde::{Deserialize, Serialize};

/// The names of the two peers that everything is held against.
pub const OURS: &str = "memslots";
pub const LINUX: &str = "linux";

/// One peer's figure in one row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    pub row: String,
    pub layout: Shape,
    pub n: usize,
    pub peer: String,
    /// "ns" an operation, or "bytes" a slot.
    pub unit: String,
    #[serde(flatten)]
    pub summary: Summary,
    /// Over libmemslots' figure in the same rounds.
    pub ratio: f64,
    /// Updates of a large table made one by one by a peer whose cost follows the table: measured
    /// on some, at half the size.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sampled: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub kernel: String,
    pub date: String,
    pub command: String,
    pub library: String,
    pub linux_source: Option<String>,
    pub compiler: String,
    pub flags: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    pub machine: Machine,
    pub cells: Vec<Cell>,
    #[serde(default)]
    pub concurrency: Option<crate::concurrency::Concurrency>,
    #[serde(default)]
    pub kvm: Vec<crate::kvm::KvmCell>,
    /// What was left out, and why.
    #[serde(default)]
    pub left_out: Vec<String>,
}

impl Results {
    pub fn find(&self, row: &str, layout: Shape, n: usize, peer: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.row == row && cell.layout == layout && cell.n == n && cell.peer == peer)
    }

    pub fn add(&mut self, row: &str, layout: Shape, n: usize, outcomes: Vec<Outcome>) {
        self.cells.extend(outcomes.into_iter().map(|outcome| Cell {
            row: row.into(),
            layout,
            n,
            peer: outcome.name.into(),
            unit: "ns".into(),
            summary: outcome.summary,
            ratio: outcome.ratio,
            sampled: outcome.sampled,
        }));
    }
}

fn first_line(command: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(command).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.ok().and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_default()
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let model = line.and_then(|line| line.split_once(':')).map(|(_, model)| model.trim());
    model.unwrap_or("unknown").to_owned()
}

impl Machine {
    pub fn this(library: String, linux_source: Option<String>) -> Self {
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        Self {
            cpu: cpu_model(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: first_line("uname", &["-sr"]),
            date: first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            command: format!("memslots-bench {}", arguments.join(" ")).trim().to_owned(),
            library,
            linux_source,
            compiler: first_line(&compiler, &["--version"]),
            flags: crate::build_peers::FLAGS.join(" "),
        }
    }
}
