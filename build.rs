// SPDX-License-Identifier: MIT OR Apache-2.0
//! Gives the shared object its soname and the linker flags that a library with Rust inside needs.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    let major = std::env::var("CARGO_PKG_VERSION_MAJOR").expect("cargo sets it");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libmemslots.so.{major}");
    // Thread-local destructors of std may run after dlclose: never unmap the code under them.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // Nothing undefined may be left; but a sanitizer's runtime is linked into the program, not here.
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if !flags.contains("sanitizer") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,defs");
    }
}
