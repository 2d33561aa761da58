// SPDX-License-Identifier: MIT OR Apache-2.0
//! The source tree itself: the order of the library's layers, and limits of style. What is checked, and why, stands at
//! the head of `tree/layers.rs` and `tree/style.rs`.

#[path = "tree/layers.rs"]
mod layers;
#[path = "tree/style.rs"]
mod style;
#[path = "tree/tokens.rs"]
mod tokens;

use layers::File;
use std::path::Path;
use std::process::Command;

/// Bytes of a file from which on the repository does not take it.
const MAX_FILE_BYTES: u64 = 200 << 10;

/// Files that may be larger, each with the reason.
const LARGE_FILES: [(&str, &str); 1] =
    [("bench/results.json", "every figure of the last run, from which results.md and the plots are made anew")];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files that git tracks or, where this is no checkout, all files but those in `target/` and hidden directories. A
/// tracked file that is deleted is left out.
fn tracked() -> Vec<String> {
    let git = Command::new("git").arg("-C").arg(repository()).args(["ls-files", "-z"]).output();
    let mut files = match git {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            String::from_utf8(output.stdout).expect("paths in UTF-8").split_terminator('\0').map(String::from).collect()
        }
        _ => {
            let mut files = Vec::new();
            walk(repository(), "", &mut files);
            files
        }
    };
    files.retain(|path| repository().join(path).is_file());
    files
}

fn walk(root: &Path, below: &str, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(root.join(below)).expect("a directory that can be read") {
        let entry = entry.expect("an entry that can be read");
        let name = entry.file_name().into_string().expect("a name in UTF-8");
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        match entry.file_type().expect("a type that can be read").is_dir() {
            true if name.starts_with('.') || name == "target" => (),
            true => walk(root, &path, files),
            false => files.push(path),
        }
    }
}

/// A file's text; nothing where it is not text.
fn read(path: &str) -> String {
    let bytes = std::fs::read(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    String::from_utf8(bytes).unwrap_or_default()
}

fn none(violations: &[String]) {
    assert!(violations.is_empty(), "{} violations\n{}\n", violations.len(), violations.join("\n"));
}

/// The files below `root` (`src` in this repository), with paths that begin with `src/`.
fn sources(root: &Path) -> Vec<File> {
    let mut paths = Vec::new();
    walk(root, "", &mut paths);
    paths.retain(|path| path.ends_with(".rs"));
    paths.sort();
    let read = |path: &String| std::fs::read_to_string(root.join(path)).expect("source text");
    paths.iter().map(|path| File { path: format!("src/{path}"), text: read(path) }).collect()
}

/// What in the sources below `root` breaks the order of `layers`, lowest first.
fn check_layers(root: &Path, layers: &[String]) -> Vec<String> {
    layers::violations(&sources(root), layers)
}

#[test]
fn modules_refer_only_to_lower_layers() {
    let layers = layers::list(&read("src/lib.rs")).unwrap_or_else(|problem| panic!("{problem}"));
    none(&check_layers(&repository().join("src"), &layers));
    assert_eq!(
        layers,
        layers::table(&read("docs/design.md")),
        "the list in src/lib.rs, and the table in docs/design.md"
    );
}

#[test]
fn lines_are_not_too_long() {
    let files = tracked();
    let texts = files.iter().map(|path| (path, read(path))).filter(|(path, text)| style::is_source(path, text));
    none(&texts.flat_map(|(path, text)| style::long_lines(path, &text)).collect::<Vec<_>>());
}

#[test]
fn functions_are_not_too_long() {
    let sources = sources(&repository().join("src"));
    none(&sources.iter().flat_map(|file| style::long_functions(&file.path, &file.text)).collect::<Vec<_>>());
}

#[test]
fn files_are_not_too_large() {
    let large = tracked().into_iter().filter_map(|path| {
        let bytes = std::fs::metadata(repository().join(&path)).expect("a tracked file").len();
        let may = LARGE_FILES.iter().any(|(large, _)| *large == path);
        (bytes > MAX_FILE_BYTES && !may).then(|| format!("{path}:1: {bytes} bytes, more than {MAX_FILE_BYTES}"))
    });
    none(&large.collect::<Vec<_>>());
}

#[test]
fn every_rust_file_is_compiled() {
    none(&style::dead_files(&tracked(), &read));
}
