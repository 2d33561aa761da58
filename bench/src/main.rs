// SPDX-License-Identifier: MIT OR Apache-2.0

//! `make bench`: libmemslots, through its C ABI, beside Linux's trees, arrays, rust-vmm's vm-memory
//! and a `BTreeMap`, in one process and in turns. See README.md of this folder.

mod build_peers;
mod concurrency;
mod histogram;
mod kvm;
mod lookups;
mod loops;
mod markdown;
mod measure;
mod peer;
mod plots;
mod print;
mod report;
mod rust_peers;
mod targets;
mod updates;
mod workload;

use anyhow::{Context, Result};
use build_peers::{Builder, Loaded};
use clap::Parser;
use loops::Loops;
use peer::{Peer, Vtable};
use report::{Machine, Results};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use workload::{Layout, Shape};

/// Measures libmemslots against the structures it replaces.
#[derive(Parser)]
struct Options {
    /// About a minute: fewer sizes, fewer rounds.
    #[arg(long)]
    quick: bool,
    /// Sizes of the tables.
    #[arg(long, value_delimiter = ',')]
    n: Vec<usize>,
    /// Only rows whose name contains this; "concurrency" and "kvm" are names, too.
    #[arg(long)]
    rows: Option<String>,
    /// Only these peers besides libmemslots.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Also the same changes on a real VM (needs /dev/kvm).
    #[arg(long)]
    kvm: bool,
    /// Say what got slower than in this older results.json; exit 1 if anything did.
    #[arg(long)]
    compare: Option<PathBuf>,
    /// Where the results go.
    #[arg(long, default_value_os_t = build_peers::crate_dir().join("results.json"))]
    out: PathBuf,
    /// What QEMU's bench left, for a plot of before and after.
    #[arg(long, default_value_os_t = build_peers::crate_dir().join("../qemu-patch/results.json"))]
    qemu: PathBuf,
    /// Time nothing: run this row's loop once on memslots or linux (--peers) at the first of --n, for an
    /// instruction counter or a profiler. See count-instructions.
    #[arg(long)]
    once: Option<String>,
    /// Operations of --once.
    #[arg(long, default_value_t = 10_000)]
    operations: usize,
    /// Measure nothing: tables and plots of the results that are there.
    #[arg(long)]
    show: bool,
}

const SIZES: [usize; 7] = [10, 30, 50, 100, 509, 8_194, 32_764];
const QUICK_SIZES: [usize; 3] = [10, 509, 32_764];

static VM_MEMORY: Vtable = Loops::<rust_peers::VmMemory>::VTABLE;
static MAPS: Vtable = Loops::<rust_peers::Maps>::VTABLE;

/// Everything under measurement.
struct Field {
    memslots: Loaded,
    sync: Loaded,
    others: Vec<Peer>,
    linux_source: Option<String>,
    left_out: Vec<String>,
}

impl Field {
    fn new(builder: &Builder, only: &[String]) -> Result<Self> {
        let mut others = Vec::new();
        let mut left_out = Vec::new();
        let mut linux_source = None;
        match build_peers::fetch_linux() {
            Ok(sources) => {
                others.push(builder.linux(&sources, false)?.peer);
                match builder.linux(&sources, true) {
                    Ok(loaded) => others.push(loaded.peer),
                    Err(error) => left_out.push(format!("linux+urcu (liburcu-dev?): {error:#}")),
                }
                linux_source = std::fs::read_to_string(sources.join("complete")).ok();
            }
            Err(error) => left_out.push(format!("Linux's trees: {error:#}")),
        }
        others.push(builder.plain("peer_array")?.peer.linear());
        others.push(builder.plain("peer_qemu")?.peer.linear());
        others.push(Peer::new(&VM_MEMORY).linear().concurrent());
        others.push(Peer::new(&MAPS).concurrent().transactional().locked("BTreeMap+lock"));
        others.retain(|peer| only.is_empty() || only.iter().any(|name| name == peer.name()));
        Ok(Self {
            memslots: builder.memslots(false)?,
            sync: builder.memslots(true)?,
            others,
            linux_source: linux_source.map(|text| text.trim().to_owned()),
            left_out,
        })
    }

    fn for_lookups(&self) -> Vec<Peer> {
        [&[self.memslots.peer], &self.others[..]].concat()
    }

    /// With the table in the mode in which an update waits for readers, as KVM's ioctl does.
    fn for_updates(&self) -> Vec<Peer> {
        [&[self.memslots.peer, self.sync.peer], &self.others[..]].concat()
    }
}

/// A line that says where the run is, written over itself on a terminal.
struct Progress {
    begin: Instant,
}

impl Progress {
    fn say(&self, what: &str) {
        use std::io::IsTerminal;
        let seconds = self.begin.elapsed().as_secs();
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K[{seconds:>4} s] {what}");
        } else {
            eprintln!("[{seconds:>4} s] {what}");
        }
    }
}

fn library_version(loaded: &Loaded) -> Result<String> {
    type Version = unsafe extern "C" fn() -> *const std::ffi::c_char;
    // SAFETY: peer_memslots.c exports it with this type; the answer is a literal of the library.
    let version = unsafe {
        let version = loaded.library.get::<Version>(b"bench_memslots_version\0")?;
        std::ffi::CStr::from_ptr(version())
    };
    Ok(version.to_str()?.to_owned())
}

fn run(options: &Options) -> Result<Results> {
    let progress = Progress { begin: Instant::now() };
    progress.say("compiling the peers");
    let builder = Builder::new()?;
    let field = Field::new(&builder, &options.peers)?;
    let library = format!("libmemslots {}", library_version(&field.memslots)?);
    let mut results = Results {
        machine: Machine::this(library, field.linux_source.clone()),
        cells: Vec::new(),
        concurrency: None,
        kvm: Vec::new(),
        left_out: field.left_out.clone(),
    };
    let wanted = |name: &str| options.rows.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let sizes = match (options.n.is_empty(), options.quick) {
        (false, _) => options.n.clone(),
        (true, true) => QUICK_SIZES.to_vec(),
        (true, false) => SIZES.to_vec(),
    };
    let (rounds, slice_ms) = if options.quick { (5, 0.5) } else { (15, 3.0) };
    for &n in &sizes {
        for shape in [Shape::Holes, Shape::Adjacent] {
            let layout = Layout::new(shape, n);
            progress.say(&format!("{n} slots, {}: lookups", shape.name()));
            let settings = lookups::Settings { rounds, slice_ns: slice_ms * 1e6, wanted: &wanted };
            lookups::measure(&field.for_lookups(), &layout, &settings, &mut results)?;
            progress.say(&format!("{n} slots, {}: updates", shape.name()));
            updates::measure(&field.for_updates(), &layout, &settings, &mut results)?;
        }
    }
    let settings = lookups::Settings { rounds, slice_ns: slice_ms * 1e6, wanted: &wanted };
    lookups::measure_many_readers(&field.for_lookups(), &settings, &mut results)?;
    if wanted("concurrency") {
        let settings = match options.quick {
            true => concurrency::Settings { rounds: 1, duration: Duration::from_millis(50), max_threads: 2 },
            false => concurrency::Settings { rounds: 3, duration: Duration::from_millis(300), max_threads: 8 },
        };
        let say = |what: &str| progress.say(what);
        let peers = field.for_lookups();
        let measured = concurrency::measure(&peers, field.memslots.library, settings, &say)?;
        results.concurrency = Some(measured);
    }
    if options.kvm && wanted("kvm") {
        let say = |what: &str| progress.say(what);
        let slots = if options.quick { &kvm::SLOTS[..2] } else { &kvm::SLOTS[..] };
        match kvm::measure(&field.memslots, builder.kvm()?, slots, 3, &say) {
            Ok(cells) => results.kvm = cells,
            Err(error) => results.left_out.push(format!("a real VM: {error:#}")),
        }
    }
    progress.say("done\n");
    Ok(results)
}

fn once(options: &Options, row: &str) -> Result<()> {
    let builder = Builder::new()?;
    let peer = &match options.peers.first().map(String::as_str) {
        None | Some(report::OURS) => builder.memslots(false)?.peer,
        Some(report::LINUX) => builder.linux(&build_peers::fetch_linux()?, false)?.peer,
        Some(name) => anyhow::bail!("{name}: only {} and {}", report::OURS, report::LINUX),
    };
    let layout = Layout::new(Shape::Holes, options.n.first().copied().unwrap_or(509));
    let done = match lookups::once(peer, &layout, row, options.operations)? {
        Some(done) => done,
        None => updates::once(peer, &layout, row, options.operations)?.context("no such row")?,
    };
    println!("{done}");
    Ok(())
}

fn load(path: &Path) -> Result<Results> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no result", path.display()))
}

fn show(results: &Results, out: &Path, qemu: &Path) -> Result<()> {
    print::table(results);
    if let Some(concurrency) = &results.concurrency {
        print::concurrency(concurrency);
    }
    if !results.kvm.is_empty() {
        print::kvm(&results.kvm);
    }
    print::summary(results);
    let machine = &results.machine;
    println!(
        "{}; {} x{}; {}; {}; `{}`",
        machine.date, machine.cpu, machine.cpus, machine.kernel, machine.library, machine.command
    );
    let table = out.with_extension("md");
    std::fs::write(&table, markdown::text(results)).with_context(|| format!("cannot write {}", table.display()))?;
    let folder = out.with_file_name("plots");
    match plots::draw(results, &folder, qemu) {
        Ok(count) => println!("{}, {count} plots in {}", table.display(), folder.display()),
        Err(error) => println!("left out: plots: {error:#}"),
    }
    Ok(())
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(row) = &options.once {
        return once(&options, row);
    }
    let old = options.compare.as_deref().map(load).transpose()?;
    let results = if options.show { load(&options.out)? } else { run(&options)? };
    if !options.show {
        std::fs::write(&options.out, serde_json::to_string_pretty(&results)? + "\n")
            .with_context(|| format!("cannot write {}", options.out.display()))?;
    }
    show(&results, &options.out, &options.qemu)?;
    if let Some(old) = old {
        let slower = print::compare(&old, &results);
        std::process::exit(i32::from(slower > 0));
    }
    Ok(())
}
