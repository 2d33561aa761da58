// SPDX-License-Identifier: MIT OR Apache-2.0
//! Gives the shared object its soname and the linker flags that a library with Rust inside needs.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,{}", soname());
    // Thread-local destructors of std may run after dlclose: never unmap the code under them.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // Nothing undefined may be left; but a sanitizer's runtime is linked into the program, not here.
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if !flags.contains("sanitizer") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,defs");
    }
}

/// Below 1.0 each minor version has a soname of its own, since each may change the ABI. The Makefile installs under the
/// same.
fn soname() -> String {
    let part = |name: &str| std::env::var(name).expect("cargo sets it");
    match part("CARGO_PKG_VERSION_MAJOR").as_str() {
        "0" => format!("libmemslots.so.0.{}", part("CARGO_PKG_VERSION_MINOR")),
        major => format!("libmemslots.so.{major}"),
    }
}
