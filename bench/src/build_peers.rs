// SPDX-License-Identifier: MIT OR Apache-2.0

//! Compiles the C peers, all with the same flags, into shared objects and loads them. At run time
//! and not in a build script: Linux's trees are fetched when somebody wants to measure, and the
//! library under test is whatever stands in its folder by then.

use crate::peer::{Peer, Vtable};
use anyhow::{bail, ensure, Context, Result};
use libloading::Library;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const FLAGS: &[&str] = &["-std=gnu11", "-O2", "-g", "-fPIC", "-fvisibility=hidden"];

/// The folder of this crate: its C files and the script that fetches Linux's.
pub fn crate_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub struct Loaded {
    pub peer: Peer,
    pub library: &'static Library,
}

pub struct Builder {
    out: PathBuf,
    library_dir: PathBuf,
}

impl Builder {
    pub fn new() -> Result<Self> {
        let exe = std::env::current_exe()?;
        let out = exe.parent().context("a folder of this program")?.join("bench-peers");
        std::fs::create_dir_all(&out)?;
        let library_dir = library_dir(&exe)?;
        let builder = Self { out, library_dir };
        builder.link_by_soname()?;
        Ok(builder)
    }

    pub fn library(&self) -> PathBuf {
        self.library_dir.join("libmemslots.so")
    }

    /// The library under its soname, as an installation has it, beside the peers.
    fn link_by_soname(&self) -> Result<()> {
        let link = self.out.join(self.soname()?);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(self.library(), &link).with_context(|| format!("cannot link {}", link.display()))
    }

    /// What a program that is linked against the library asks the dynamic linker for.
    fn soname(&self) -> Result<String> {
        let output = Command::new("readelf").arg("-d").arg(self.library()).output().context("readelf")?;
        let dynamic = String::from_utf8_lossy(&output.stdout);
        let name = dynamic.split_once("soname: [").and_then(|(_, rest)| rest.split(']').next());
        Ok(name.with_context(|| format!("no soname in {}", self.library().display()))?.to_owned())
    }

    pub fn memslots(&self, sync: bool) -> Result<Loaded> {
        let named = std::env::var_os("MEMSLOTS_INCLUDE_DIR").map(PathBuf::from);
        let include = named.unwrap_or_else(|| crate_dir().join("../include"));
        let mut options = vec![
            format!("-I{}", include.display()),
            format!("-L{}", self.library_dir.display()),
            format!("-Wl,-rpath,{}", self.out.display()),
            "-lmemslots".into(),
        ];
        if sync {
            options.push("-DSYNC".into());
        }
        let name = if sync { "memslots_sync" } else { "memslots" };
        let mut loaded = load_peer(&self.compile("peer_memslots.c", name, &options)?)?;
        loaded.peer = loaded.peer.concurrent().transactional();
        Ok(loaded)
    }

    /// Linux's trees; `sources` as printed by `fetch-linux`.
    pub fn linux(&self, sources: &Path, grace: bool) -> Result<Loaded> {
        let mut options = vec![
            "-isystem".into(),
            crate_dir().join("c/shim").display().to_string(),
            "-isystem".into(),
            sources.display().to_string(),
            "-isystem".into(),
            sources.join("include").display().to_string(),
        ];
        if grace {
            options.extend(["-DGRACE".into(), "-lurcu-memb".into()]);
        }
        let name = if grace { "linux_urcu" } else { "linux" };
        let mut loaded = load_peer(&self.compile("peer_linux.c", name, &options)?)?;
        if grace {
            loaded.peer = loaded.peer.concurrent();
        }
        Ok(loaded)
    }

    pub fn plain(&self, source: &str) -> Result<Loaded> {
        load_peer(&self.compile(&format!("{source}.c"), source, &[])?)
    }

    pub fn kvm(&self) -> Result<&'static Library> {
        load(&self.compile("kvm.c", "kvm", &[])?)
    }

    fn compile(&self, source: &str, name: &str, options: &[String]) -> Result<PathBuf> {
        let object = self.out.join(format!("{name}.so"));
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        let folder = crate_dir().join("c");
        let status = Command::new(&compiler)
            .args(FLAGS)
            .args(["-Wall", "-Wextra", "-shared", "-o"])
            .arg(&object)
            .arg(folder.join(source))
            .arg(format!("-I{}", folder.display()))
            .args(options)
            .status()
            .with_context(|| format!("cannot run {compiler}"))?;
        ensure!(status.success(), "{source} does not compile");
        Ok(object)
    }
}

/// Where libmemslots.so is: MEMSLOTS_LIB_DIR, else beside this program, where cargo puts it.
fn library_dir(exe: &Path) -> Result<PathBuf> {
    let named = std::env::var_os("MEMSLOTS_LIB_DIR").map(PathBuf::from);
    let beside = exe.parent().map(Path::to_path_buf);
    let usual = crate_dir().join("../target/release");
    for dir in named.into_iter().chain(beside).chain([usual]) {
        if dir.join("libmemslots.so").exists() {
            return Ok(dir.canonicalize()?);
        }
    }
    bail!("no libmemslots.so: `make lib` first, or name its folder in MEMSLOTS_LIB_DIR")
}

/// Loaded objects stay: peers and their threads outlive any scope here.
fn load(object: &Path) -> Result<&'static Library> {
    // SAFETY: our own object; it has no initialisers.
    let library = unsafe { Library::new(object) }.with_context(|| format!("cannot load {}", object.display()))?;
    Ok(Box::leak(Box::new(library)))
}

fn load_peer(object: &Path) -> Result<Loaded> {
    let library = load(object)?;
    // SAFETY: loops.h exports it with this type, and the library is never unloaded.
    let vtable =
        unsafe { library.get::<*const Vtable>(b"bench_peer\0")?.as_ref() }.context("an exported bench_peer")?;
    Ok(Loaded { peer: Peer::new(vtable), library })
}

/// Fetches Linux's sources; the reason where they cannot be had.
pub fn fetch_linux() -> Result<PathBuf> {
    let output = Command::new(crate_dir().join("fetch-linux"))
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot run bench/fetch-linux")?;
    ensure!(output.status.success(), "bench/fetch-linux: no linux-source package");
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}
