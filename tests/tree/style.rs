// SPDX-License-Identifier: MIT OR Apache-2.0
//! Limits that every file in the repository keeps: the length of lines and functions, the size of files, and no Rust
//! file that nothing compiles.

use crate::tokens::{tokens, Token};
use std::collections::BTreeSet;

/// Columns of a line.
pub(crate) const MAX_COLUMNS: usize = 120;
/// Lines of a function, from `fn` to its closing brace.
pub(crate) const MAX_FUNCTION_LINES: usize = 40;
/// Columns from one tab stop to the next.
const TAB: usize = 8;
/// Between these two a program has written the text of a Markdown file.
const FIGURES_BEGIN: &str = "<!-- figures: begin -->";
const FIGURES_END: &str = "<!-- figures: end -->";

/// Whether a file is written by hand and read as text. `text` is what is in it. A Markdown file that a program has
/// written says so in its first line.
pub(crate) fn is_source(path: &str, text: &str) -> bool {
    if text.starts_with("<!-- Made by ") {
        return false;
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rsplit_once('.') {
        Some((_, "rs" | "c" | "cc" | "h" | "S" | "sh" | "py" | "md")) => true,
        Some(_) => false,
        None => name == "Makefile" || text.starts_with("#!"),
    }
}

/// The lines that are too long, as `file:line: ...`. Of a Markdown file, tables and code do not count, nor the targets
/// of links, nor what a program has written between two marks.
pub(crate) fn long_lines(path: &str, text: &str) -> Vec<String> {
    let is_prose = path.ends_with(".md");
    let (mut in_code, mut in_figures) = (false, false);
    let mut out = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        in_code ^= is_prose && trimmed.starts_with("```");
        in_figures = is_prose && (in_figures || trimmed == FIGURES_BEGIN) && trimmed != FIGURES_END;
        if in_code || in_figures || (is_prose && trimmed.starts_with('|')) {
            continue;
        }
        let columns = if is_prose { columns(&without_links(line)) } else { columns(line) };
        if columns > MAX_COLUMNS {
            out.push(format!("{path}:{}: {columns} columns, more than {MAX_COLUMNS}", index + 1));
        }
    }
    out
}

fn columns(line: &str) -> usize {
    line.chars().fold(0, |column, c| if c == '\t' { (column / TAB + 1) * TAB } else { column + 1 })
}

/// A line of Markdown without the targets of its links.
fn without_links(line: &str) -> String {
    let mut pieces = line.split("](");
    let mut out = pieces.next().unwrap_or_default().to_string();
    for piece in pieces {
        out.push(']');
        out.push_str(piece.split_once(')').map_or("", |(_, rest)| rest));
    }
    let words = out.split(' ').filter(|word| !word.contains("://"));
    words.collect::<Vec<_>>().join(" ")
}

/// The functions that are too long, as `file:line: ...`.
pub(crate) fn long_functions(path: &str, text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let starts = (0..tokens.len()).filter(|&at| {
        let is_function = tokens[at].text == "fn" && tokens.get(at + 1).is_some_and(Token::is_name);
        is_function || (tokens[at].text == "fn" && tokens.get(at + 1).is_some_and(|next| next.text == "$"))
    });
    let too_long = starts.filter_map(|at| {
        let lines = last_line(&tokens[at..])? - tokens[at].line + 1;
        let name = tokens[at + 1..].iter().find(|token| token.is_name()).map_or("", |token| token.text.as_str());
        let message = format!("{path}:{}: `{name}` has {lines} lines", tokens[at].line);
        (lines > MAX_FUNCTION_LINES).then(|| format!("{message}, more than {MAX_FUNCTION_LINES}"))
    });
    too_long.collect()
}

/// The line of the brace that closes a function whose `fn` comes first. None for one without a body.
fn last_line(function: &[Token]) -> Option<usize> {
    let mut brackets = 0usize;
    let mut braces = 0usize;
    for token in function {
        match token.text.as_str() {
            "(" | "[" => brackets += 1,
            ")" | "]" => brackets = brackets.saturating_sub(1),
            ";" if brackets == 0 && braces == 0 => return None,
            "{" => braces += 1,
            "}" => {
                braces = braces.saturating_sub(1);
                if braces == 0 && brackets == 0 {
                    return Some(token.line);
                }
            }
            _ => (),
        }
    }
    None
}

/// The `.rs` files among `files` that no target of a package among them compiles. `read` gives a file's text.
pub(crate) fn dead_files(files: &[String], read: &dyn Fn(&str) -> String) -> Vec<String> {
    let all: BTreeSet<&str> = files.iter().map(String::as_str).filter(|path| path.ends_with(".rs")).collect();
    let manifests = files.iter().filter(|path| path.rsplit('/').next() == Some("Cargo.toml"));
    let roots: Vec<String> = manifests.flat_map(|manifest| targets(manifest, &all, &read(manifest))).collect();
    let mut live = BTreeSet::new();
    let mut to_do = roots.iter().map(|root| (root.clone(), true)).collect::<Vec<_>>();
    while let Some((path, is_root)) = to_do.pop() {
        if live.insert(path.clone()) {
            let children = children(&path, is_root, &read(&path)).into_iter();
            to_do.extend(children.filter(|child| all.contains(child.as_str())).map(|child| (child, false)));
        }
    }
    let dead = all.into_iter().filter(|path| !live.contains(*path));
    dead.map(|path| format!("{path}:1: no `mod` and no manifest leads here")).collect()
}

/// The root files of a package: those at the usual places, and those that its manifest names.
fn targets(manifest: &str, all: &BTreeSet<&str>, text: &str) -> Vec<String> {
    let package = manifest.strip_suffix("Cargo.toml").unwrap_or_default();
    let named: Vec<String> =
        text.split('"').filter(|word| word.ends_with(".rs")).map(|name| format!("{package}{name}")).collect();
    let is_usual = |path: &str| {
        let Some(inside) = path.strip_prefix(package) else { return false };
        let inside = inside.strip_suffix("/main.rs").unwrap_or(inside);
        matches!(
            inside.split('/').collect::<Vec<_>>()[..],
            ["build.rs"] | ["src"] | ["src", "lib.rs"] | ["src", "bin", _] | ["tests" | "benches" | "examples", _]
        )
    };
    let usual = all.iter().filter(|path| is_usual(path)).map(|path| path.to_string());
    usual.chain(named.iter().filter(|path| all.contains(path.as_str())).cloned()).collect()
}

/// The files that the modules which `text` declares may be, and those that it includes.
fn children(path: &str, is_root: bool, text: &str) -> Vec<String> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = name.strip_suffix(".rs").unwrap_or(name);
    let mut inside: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    if !is_root && stem != "mod" {
        inside.push(stem);
    }
    let tokens = tokens(text);
    let mut out = Vec::new();
    // The inline modules that are open, with the braces that were open before each.
    let mut open: Vec<(usize, &str)> = Vec::new();
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate() {
        let next = |ahead: usize| tokens.get(at + ahead).map_or("", |token| token.text.as_str());
        match token.text.as_str() {
            "mod" if next(2) == "{" => open.push((depth, next(1))),
            "mod" if next(2) == ";" => {
                let names = open.iter().map(|(_, name)| *name).chain([next(1)]);
                let module = inside.iter().copied().chain(names).collect::<Vec<_>>().join("/");
                out.extend([format!("{module}.rs"), format!("{module}/mod.rs")]);
            }
            // An attribute `#[path = "..."]`, or `include!("...")`.
            "path" if next(1) == "=" => out.push(joined(directory, next(2))),
            "include" if next(1) == "!" => out.push(joined(directory, next(3))),
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                open.pop_if(|(before, _)| *before == depth);
            }
            _ => (),
        }
    }
    out
}

/// The path that a string literal in a file of `directory` names.
fn joined(directory: &str, literal: &str) -> String {
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for part in literal.trim_matches('"').split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." => (),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::{dead_files, is_source, long_functions, long_lines, MAX_COLUMNS, MAX_FUNCTION_LINES};

    #[test]
    fn what_is_source() {
        assert!(["a/b.rs", "Makefile", "a/Makefile", "README.md", "x.S"].iter().all(|path| is_source(path, "")));
        assert!(!["a.json", "LICENSE-MIT", "a.patch", ".gitignore"].iter().any(|path| is_source(path, "")));
        assert!(is_source("scripts/deps", "#!/bin/sh\n"));
        assert!(!is_source("results.md", "<!-- Made by `make bench`. -->\n"));
    }

    #[test]
    fn lines() {
        let fits = "\u{e4}".repeat(MAX_COLUMNS);
        assert!(long_lines("a.rs", &format!("{fits}\n{fits}")).is_empty());
        assert_eq!(long_lines("a.rs", &format!("{fits}\n{fits}b")), ["a.rs:2: 121 columns, more than 120"]);
        assert_eq!(
            long_lines("Makefile", &format!("\t{}", &fits[..2 * 113])),
            ["Makefile:1: 121 columns, more than 120"]
        );
    }

    #[test]
    fn lines_of_prose() {
        let long = "a ".repeat(MAX_COLUMNS);
        let text = format!("| {long}\n```sh\n{long}\n```\n[text](https://{})\n{long}", "a".repeat(MAX_COLUMNS));
        assert_eq!(long_lines("a.md", &text), ["a.md:6: 240 columns, more than 120"]);
        let text = format!("<!-- figures: begin -->\n{long}\n<!-- figures: end -->\n{long}");
        assert_eq!(long_lines("a.md", &text), ["a.md:4: 240 columns, more than 120"]);
    }

    #[test]
    fn functions() {
        let lines = |lines: usize| format!("fn f(a: [u8; 2]) {{{}}}", "\n".repeat(lines - 1));
        assert!(long_functions("a.rs", &lines(MAX_FUNCTION_LINES)).is_empty());
        let long = format!("trait T {{\n fn g() -> [u8; 1];\n}}\n{}", lines(MAX_FUNCTION_LINES + 1));
        assert_eq!(long_functions("a.rs", &long), ["a.rs:4: `f` has 41 lines, more than 40"]);
        assert!(long_functions("a.rs", &format!("type F = fn(u8);\nstruct S {{ {} }}", "\n".repeat(50))).is_empty());
    }

    #[test]
    fn dead_files_are_found() {
        let texts = [
            ("Cargo.toml", "[package]\n[[bin]]\npath = \"tool/go.rs\""),
            ("src/lib.rs", "mod a; #[path = \"odd/../strange.rs\"] mod s; include!(\"inc.rs\"); mod e { mod f; }"),
            ("src/a/mod.rs", "mod b;"),
            ("src/a/b.rs", "// mod dead;\n#[cfg(test)] mod c;"),
            ("src/a/b/c.rs", ""),
            ("src/strange.rs", ""),
            ("src/inc.rs", ""),
            ("src/e/f.rs", ""),
            ("src/dead.rs", ""),
            ("src/a/c.rs", ""),
            ("tests/t.rs", ""),
            ("tests/t/dead.rs", ""),
            ("tool/go.rs", ""),
        ];
        let files: Vec<String> = texts.iter().map(|(path, _)| path.to_string()).collect();
        let read = |path: &str| texts.iter().find(|(file, _)| *file == path).expect("a file").1.to_string();
        let dead = ["src/a/c.rs", "src/dead.rs", "tests/t/dead.rs"];
        assert_eq!(
            dead_files(&files, &read),
            dead.map(|path| format!("{path}:1: no `mod` and no manifest leads here"))
        );
    }
}
