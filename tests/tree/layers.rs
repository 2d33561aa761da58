// SPDX-License-Identifier: MIT OR Apache-2.0
//! The layers of the library: a module may refer only to lower layers. The list in `src/lib.rs` has them, lowest first.
//!
//! A layer is a module that `lib.rs` declares, with everything in the directory of its name. A reference is a path that
//! is written down, in a `use` or anywhere else in code (comments and doc comments are not code). What goes unseen is a
//! call of a method that a higher layer defines on a lower layer's type, because such a call names no module.

use crate::tokens::{tokens, Token};
use std::collections::{BTreeMap, BTreeSet};

/// A source file. Its path is relative to the repository, as `src/reader/walk.rs`.
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Reads the list of layers, lowest first, from the crate's documentation: the items "- `name`: what it is" below the
/// heading `# Layers`, one layer each. An item may go on in lines that are indented.
///
/// # Errors
/// A sentence, where there is no such list or an item has another form.
pub(crate) fn list(lib: &str) -> Result<Vec<String>, String> {
    let docs = lib.lines().enumerate().filter_map(|(index, line)| Some((index + 1, line.strip_prefix("//!")?)));
    let mut below_heading = docs.skip_while(|(_, line)| line.trim() != "# Layers");
    if below_heading.next().is_none() {
        return Err("src/lib.rs:1: the documentation of the crate has no heading `# Layers`".into());
    }
    let mut layers = Vec::new();
    for (number, line) in below_heading.take_while(|(_, line)| !line.trim().starts_with('#')) {
        let Some(item) = line.strip_prefix(" - ") else { continue };
        let name = item.strip_prefix('`').and_then(|rest| rest.split_once("`:")).map(|(name, _)| name);
        match name.filter(|name| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_')) {
            Some(name) if layers.iter().any(|layer| layer == name) => {
                return Err(format!("src/lib.rs:{number}: `{name}` stands in the list of layers twice"));
            }
            Some(name) => layers.push(name.to_string()),
            None => return Err(format!("src/lib.rs:{number}: a layer is given as \"- `name`: what it is\"")),
        }
    }
    match layers.is_empty() {
        true => Err("src/lib.rs:1: there is no item below the heading `# Layers`".into()),
        false => Ok(layers),
    }
}

/// The modules in the table of layers in `docs/design.md`, in its order.
pub(crate) fn table(design: &str) -> Vec<String> {
    let section = design.lines().skip_while(|line| *line != "## Layers").skip(1);
    let rows = section.take_while(|line| !line.starts_with("## ")).filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| Some(row.split_once('`')?.0.trim_end_matches('/').to_string())).collect()
}

/// Everything in `files` that breaks the order of `layers` (lowest first), as lines that begin with `file:line: `.
pub(crate) fn violations(files: &[File], layers: &[String]) -> Vec<String> {
    let parsed: Vec<(&File, Vec<String>, Parsed)> = files
        .iter()
        .map(|file| {
            let module = module_of(&file.path);
            let parsed = Parser::parse(&file.text, &module);
            (file, module, parsed)
        })
        .collect();
    let root = parsed.iter().find(|(_, module, _)| module.is_empty());
    let root = root.map_or_else(Root::default, |(file, _, parsed)| Root::new(&file.text, parsed));
    let test_modules: Vec<&Vec<String>> = parsed.iter().flat_map(|(_, _, parsed)| &parsed.test_modules).collect();
    let mut out = root.differences(layers);
    for (file, module, parsed) in &parsed {
        let Some(layer) = module.first() else { continue };
        if test_modules.iter().any(|tests| module.starts_with(tests)) {
            continue;
        }
        if !root.modules.contains_key(layer) {
            out.push(format!("{}:1: lib.rs does not declare `{layer}`", file.path));
        }
        for reference in &parsed.references {
            if let Some(problem) = problem(layer, &root.target_of(&reference.path), layers) {
                out.push(format!("{}:{}: {problem} (`{}`)", file.path, reference.line, reference.shown()));
            }
        }
    }
    out
}

/// Why a module of `layer` may not refer to `target`.
fn problem(layer: &str, target: &Target, layers: &[String]) -> Option<String> {
    let target = match target {
        Target::Layer(target) => target,
        Target::Root => return Some(format!("`{layer}` refers to the crate's root, which is above all layers")),
        Target::Unknown => return Some(format!("`{layer}` refers to something that lib.rs does not declare")),
    };
    match (rank(layers, layer), rank(layers, target)) {
        _ if target == layer => None,
        (Some(own), Some(other)) if other < own => None,
        (Some(_), Some(_)) => Some(format!("`{layer}` refers to `{target}`, which is a higher layer")),
        (Some(_), None) => Some(format!("`{layer}` refers to `{target}`, which is not in the list of layers")),
        (None, _) => Some(format!("`{layer}` is not in the list of layers, and refers to `{target}`")),
    }
}

fn rank(layers: &[String], layer: &str) -> Option<usize> {
    layers.iter().position(|other| other == layer)
}

/// The module that a file is: `src/reader/walk.rs` is `["reader", "walk"]`, `src/lib.rs` is the root, `[]`.
fn module_of(path: &str) -> Vec<String> {
    let path = path.strip_prefix("src/").unwrap_or(path);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let mut module: Vec<String> = path.split('/').map(String::from).collect();
    match module.last().map(String::as_str) {
        Some("lib") if module.len() == 1 => module.clear(),
        Some("mod") => drop(module.pop()),
        _ => (),
    }
    module
}

/// What the crate's root declares.
#[derive(Default)]
struct Root {
    /// Modules, tests left out, with the lines of their declarations.
    modules: BTreeMap<String, usize>,
    /// What it imports and re-exports, by name.
    imports: BTreeMap<String, Vec<String>>,
    /// All other names in it: its own items.
    items: BTreeSet<String>,
}

enum Target {
    Layer(String),
    Root,
    Unknown,
}

impl Root {
    fn new(lib: &str, parsed: &Parsed) -> Root {
        let tokens = tokens(lib);
        let keywords = ["fn", "struct", "enum", "union", "trait", "type", "const", "static"];
        let items = tokens
            .windows(2)
            .filter(|pair| keywords.contains(&pair[0].text.as_str()) && pair[1].is_name())
            .map(|pair| pair[1].text.clone());
        let macros = tokens
            .windows(3)
            .filter(|three| three[0].text == "macro_rules" && three[1].text == "!")
            .map(|three| three[2].text.clone());
        Root {
            modules: parsed.modules.iter().cloned().collect(),
            imports: parsed.imports.clone(),
            items: items.chain(macros).collect(),
        }
    }

    /// Modules that are declared and not listed, or listed and not declared.
    fn differences(&self, layers: &[String]) -> Vec<String> {
        let unlisted = self.modules.iter().filter(|(module, _)| !layers.contains(module));
        let undeclared = layers.iter().filter(|layer| !self.modules.contains_key(*layer));
        unlisted
            .map(|(module, line)| format!("src/lib.rs:{line}: `{module}` is declared and not in the list of layers"))
            .chain(undeclared.map(|layer| format!("src/lib.rs:1: `{layer}` is in the list of layers and not declared")))
            .collect()
    }

    /// The layer that a path from the crate's root leads to.
    fn target_of(&self, path: &[String]) -> Target {
        let mut path = path.to_vec();
        // An import may name another import. A cycle would not compile; the bound is for text that does not.
        for _ in 0..8 {
            let Some(first) = path.first().filter(|first| *first != "*") else { return Target::Root };
            if self.modules.contains_key(first) {
                return Target::Layer(first.clone());
            }
            match self.imports.get(first) {
                Some(import) => path = import.iter().chain(&path[1..]).cloned().collect(),
                None if self.items.contains(first) => return Target::Root,
                None => return Target::Unknown,
            }
        }
        Target::Unknown
    }
}

/// A path that a file refers to, from the crate's root.
struct Reference {
    path: Vec<String>,
    line: usize,
}

impl Reference {
    fn shown(&self) -> String {
        std::iter::once("crate").chain(self.path.iter().map(String::as_str)).collect::<Vec<_>>().join("::")
    }
}

/// What a file has to say. Paths are from the crate's root.
#[derive(Default)]
struct Parsed {
    /// References outside of test modules.
    references: Vec<Reference>,
    /// What the file imports outside of test modules, by the name that it has here.
    imports: BTreeMap<String, Vec<String>>,
    /// Modules that the file itself declares, tests left out.
    modules: Vec<(String, usize)>,
    /// Modules that exist only in tests and have a file of their own.
    test_modules: Vec<Vec<String>>,
}

/// A `mod name { ... }` that is open.
struct Scope {
    /// Braces that were open before it.
    depth: usize,
    is_test: bool,
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    /// The module that `at` is in.
    module: Vec<String>,
    depth: usize,
    scopes: Vec<Scope>,
    /// Whether an attribute says that the next item exists only in tests.
    next_is_test: bool,
    out: Parsed,
}

impl Parser<'_> {
    fn parse(source: &str, module: &[String]) -> Parsed {
        let tokens = tokens(source);
        // Names may be used above the line that imports them: the first pass collects them.
        let first = Parser::pass(&tokens, module, Parsed::default());
        Parser::pass(&tokens, module, Parsed { imports: first.imports, ..Parsed::default() })
    }

    fn pass(tokens: &[Token], module: &[String], out: Parsed) -> Parsed {
        let mut parser =
            Parser { tokens, at: 0, module: module.to_vec(), depth: 0, scopes: Vec::new(), next_is_test: false, out };
        while parser.at < tokens.len() {
            parser.step();
        }
        parser.out
    }

    fn text(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |token| token.text.as_str())
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |token| token.line)
    }

    fn in_tests(&self) -> bool {
        self.scopes.iter().any(|scope| scope.is_test)
    }

    fn step(&mut self) {
        match self.text(0) {
            "#" if self.text(1) == "[" => return self.attribute(),
            // Between an attribute and its item.
            "pub" | "unsafe" => return self.visibility(),
            "mod" => self.module_item(),
            "use" if self.text(1) != "<" => self.use_item(),
            "extern" if self.text(1) == "crate" => self.extern_crate(),
            "{" => self.open(),
            "}" => self.close(),
            _ if self.is_inline_path() => self.inline_path(),
            _ => self.at += 1,
        }
        self.next_is_test = false;
    }

    fn attribute(&mut self) {
        let start = self.at;
        let mut depth = 0;
        self.at += 1;
        while self.at < self.tokens.len() {
            match self.text(0) {
                "[" => depth += 1,
                "]" => depth -= 1,
                _ => (),
            }
            self.at += 1;
            if depth == 0 {
                break;
            }
        }
        let names: Vec<&str> = self.tokens[start..self.at].iter().map(|token| token.text.as_str()).collect();
        let is_cfg = names.get(2) == Some(&"cfg");
        self.next_is_test |= is_cfg && names.contains(&"test") && !names.contains(&"not") && !names.contains(&"any");
        let end = self.at;
        self.at = start;
        while self.at < end {
            match self.is_inline_path() {
                true => self.inline_path(),
                false => self.at += 1,
            }
        }
    }

    /// Whether a path begins here that leads to a place in this crate.
    fn is_inline_path(&self) -> bool {
        let is_start = self.at == 0 || self.tokens[self.at - 1].text != "::";
        let first = self.text(0);
        is_start && self.text(1) == "::" && (matches!(first, "crate" | "self" | "super") || self.is_root(first))
    }

    /// `pub`, `pub(crate)`, `pub(in a::b)`, `unsafe`: passed over. A module can be visible only inside of an ancestor.
    fn visibility(&mut self) {
        let is_named = matches!(self.text(2), "crate" | "super" | "self") && self.text(3) == ")";
        if self.text(0) == "pub" && self.text(1) == "(" && (is_named || self.text(2) == "in") {
            while self.at < self.tokens.len() && self.text(0) != ")" {
                self.at += 1;
            }
        }
        self.at += 1;
    }

    fn open(&mut self) {
        self.depth += 1;
        self.at += 1;
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.at += 1;
        if self.scopes.last().is_some_and(|scope| scope.depth == self.depth) {
            self.scopes.pop();
            self.module.pop();
        }
    }

    /// `mod name;` or `mod name {`, where a macro may have `$name`.
    fn module_item(&mut self) {
        let name_at = if self.text(1) == "$" { 2 } else { 1 };
        let (name, line, is_test) = (self.text(name_at).to_string(), self.line(), self.next_is_test);
        self.at += name_at + 1;
        match self.text(0) {
            "{" => {
                self.scopes.push(Scope { depth: self.depth, is_test });
                self.module.push(name);
                self.open();
            }
            ";" if is_test || self.in_tests() => {
                self.module.push(name);
                self.out.test_modules.push(self.module.clone());
                self.module.pop();
            }
            ";" if self.scopes.is_empty() => self.out.modules.push((name, line)),
            _ => (),
        }
    }

    /// Whether a name that the file has imported stands for the crate's root.
    fn is_root(&self, name: &str) -> bool {
        self.out.imports.get(name).is_some_and(Vec::is_empty)
    }

    /// `extern crate self as name;`
    fn extern_crate(&mut self) {
        if self.text(2) == "self" && self.text(3) == "as" {
            self.out.imports.insert(self.text(4).to_string(), Vec::new());
        }
        self.at += 2;
    }

    fn inline_path(&mut self) {
        let line = self.line();
        let mut path = vec![self.text(0).to_string()];
        self.at += 1;
        while self.text(0) == "::" && self.tokens.get(self.at + 1).is_some_and(Token::is_name) {
            path.push(self.text(1).to_string());
            self.at += 2;
        }
        if let Some(path) = self.resolve(&path) {
            self.refer(path, line);
        }
    }

    fn use_item(&mut self) {
        self.at += 1;
        let is_external = self.text(0) == "::";
        let mut leaves = Vec::new();
        self.use_tree(&mut Vec::new(), &mut leaves);
        if is_external {
            return;
        }
        for leaf in leaves {
            let Some(path) = self.resolve(&leaf.path) else { continue };
            if !self.in_tests() {
                self.out.imports.insert(leaf.name, path.clone());
            }
            // The crate's root under another name: its uses are the references.
            if !path.is_empty() {
                self.refer(path, leaf.line);
            }
        }
    }

    fn refer(&mut self, path: Vec<String>, line: usize) {
        if !self.in_tests() {
            self.out.references.push(Reference { path, line });
        }
    }

    /// One tree of a `use`: `a::b`, `a::b as c`, `a::*`, `a::{b, c::{self, d}}`, as the paths it imports.
    fn use_tree(&mut self, prefix: &mut Vec<String>, leaves: &mut Vec<Leaf>) {
        let common = prefix.len();
        let mut line = self.line();
        loop {
            match self.text(0) {
                "::" => self.at += 1,
                "{" => {
                    self.at += 1;
                    while self.at < self.tokens.len() && self.text(0) != "}" {
                        self.use_tree(prefix, leaves);
                        if self.text(0) == "," {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    break prefix.truncate(common);
                }
                "as" => {
                    let name = self.text(1).to_string();
                    self.at += 2;
                    leaves.push(Leaf::new(prefix, Some(name), line));
                    break prefix.truncate(common);
                }
                "*" => {
                    prefix.push("*".into());
                    self.at += 1;
                }
                text if self.tokens.get(self.at).is_some_and(Token::is_name) => {
                    prefix.push(text.to_string());
                    line = self.line();
                    self.at += 1;
                }
                "," | "}" | ";" => {
                    leaves.push(Leaf::new(prefix, None, line));
                    break prefix.truncate(common);
                }
                "" => break,
                // `$` in a macro.
                _ => self.at += 1,
            }
        }
    }

    /// A path as it is written here, from the crate's root. None where it leads out of the crate.
    fn resolve(&self, path: &[String]) -> Option<Vec<String>> {
        let mut segments = path.iter();
        let first = segments.next()?;
        let mut from_root = match first.as_str() {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => self.module[..self.module.len().saturating_sub(1)].to_vec(),
            name if self.is_root(name) => Vec::new(),
            // In the root itself, and where a module names its own children.
            name if self.module.is_empty() || self.out.modules.iter().any(|(module, _)| module == name) => {
                self.module.iter().chain([first]).cloned().collect()
            }
            _ => return None,
        };
        for segment in segments {
            match segment.as_str() {
                "super" => drop(from_root.pop()),
                "self" => (),
                _ => from_root.push(segment.clone()),
            }
        }
        Some(from_root)
    }
}

/// One name that a `use` imports.
struct Leaf {
    path: Vec<String>,
    name: String,
    line: usize,
}

impl Leaf {
    fn new(path: &[String], name: Option<String>, line: usize) -> Leaf {
        let last = path.iter().rfind(|segment| *segment != "self").cloned().unwrap_or_default();
        Leaf { path: path.to_vec(), name: name.unwrap_or(last), line }
    }
}

#[cfg(test)]
mod tests {
    use super::{list, table, violations, File};

    const LIB: &str = "
        mod low;
        mod middle;
        pub mod high;
        pub use high::{Table, self as top};
        #[cfg(test)]
        mod fixtures;
        struct Readme;
    ";

    /// What is found in a crate of three layers, of which `path` has this text.
    fn found(path: &str, text: &str) -> Vec<String> {
        let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
        let layers = ["low", "middle", "high"].map(String::from);
        violations(&[file("src/lib.rs", LIB), file(path, text)], &layers)
    }

    /// Asserts that a text in `low` is refused on exactly these lines.
    fn refused(path: &str, text: &str, lines: &[usize]) {
        let found = found(path, text);
        let expected: Vec<String> = lines.iter().map(|line| format!("{path}:{line}: ")).collect();
        assert_eq!(found.len(), lines.len(), "{found:?}");
        assert!(found.iter().zip(&expected).all(|(found, expected)| found.starts_with(expected)), "{found:?}");
    }

    #[test]
    fn what_stands_below_may_be_used() {
        refused("src/high.rs", "use crate::low::A;\nuse super::middle::{self, B};\nfn f() { crate::low::g(); }", &[]);
        refused("src/middle/part.rs", "use super::other::A;\nuse super::super::low;\nuse std::high::B;", &[]);
        refused("src/low.rs", "pub(crate) fn f() {}\npub(super) struct A(pub(in crate::low) u8);\nuse ::high::B;", &[]);
    }

    #[test]
    fn a_use_of_what_stands_above() {
        refused("src/low.rs", "use std::fmt;\nuse crate::high::A;\npub(crate) use crate::middle;", &[2, 3]);
        refused("src/low/part.rs", "use crate::middle::A as B;\nuse crate::high::*;", &[1, 2]);
        assert_eq!(
            found("src/low.rs", "use crate::high::A;"),
            ["src/low.rs:1: `low` refers to `high`, which is a higher layer (`crate::high::A`)"]
        );
    }

    #[test]
    fn a_nested_use_is_reported_where_the_name_stands() {
        refused(
            "src/low.rs",
            "use crate::{\n    low::B,\n    high::{\n        self,\n        a::C as D,\n    },\n};",
            &[4, 5],
        );
        refused("src/low.rs", "use {crate::middle::A, std::{fmt, io}};", &[1]);
        refused("src/middle.rs", "use crate::{high::{A},\nlow::{B, C},\nlow::D};", &[1]);
    }

    #[test]
    fn a_path_by_super() {
        refused("src/low.rs", "use super::middle::A;\nfn f() -> super::high::B { super::low::g() }", &[1, 2]);
        refused("src/low/part.rs", "use super::super::high::A;\nuse super::high::B;", &[1]);
        refused(
            "src/low.rs",
            "mod inner {\n    use super::high::A;\n    use super::super::high::A;\n}\nuse super::high::B;",
            &[3, 5],
        );
    }

    #[test]
    fn an_inline_path() {
        refused("src/low.rs", "fn f(a: &crate::high::A) {\n    <crate::middle::B as Clone>::clone(a);\n}", &[1, 2]);
        refused("src/low.rs", "macro_rules! m { () => {\n    $crate::high::f()\n}; }", &[2]);
        refused("src/low.rs", "#[derive(crate::high::Debug)]\nstruct A(pub (crate::middle::B));", &[1, 2]);
        refused("src/low.rs", "fn f<'a>() {\n    let _ = ('\\'', b'{', \"}\");\n    crate::high::g();\n}", &[3]);
    }

    #[test]
    fn a_path_by_another_name_of_the_root() {
        refused("src/low.rs", "use crate as root;\nuse root::high::A;\nfn f() { root::middle::g() }", &[2, 3]);
        refused("src/low.rs", "fn f() { up::high::g() }\nuse super as up;", &[1]);
        refused("src/low.rs", "use crate::{self as root};\nfn f() { root::low::g(); root::high::g() }", &[2]);
    }

    #[test]
    fn what_the_root_exports_belongs_to_its_layer() {
        refused("src/middle.rs", "use crate::Table;\nfn f() { crate::top::g() }", &[1, 2]);
        refused("src/high/part.rs", "use crate::Table;", &[]);
        refused("src/low.rs", "use crate::*;\nuse crate::Readme;\nuse crate::Unknown;", &[1, 2, 3]);
    }

    #[test]
    fn tests_may_use_everything() {
        refused(
            "src/low.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::high::A;\n    fn f() { crate::high::g() }\n}",
            &[],
        );
        refused("src/low.rs", "#[cfg(test)]\nmod tests { mod a { use crate::high::A; } }\nuse crate::high::B;", &[3]);
        refused("src/low.rs", "#[cfg(not(test))]\nmod code {\n    use crate::high::A;\n}", &[3]);
        refused("src/fixtures.rs", "use crate::high::A;", &[]);
    }

    #[test]
    fn comments_and_strings_are_no_references() {
        refused(
            "src/low.rs",
            "//! [`crate::high::A`]\n/* use crate::high::B; */\nconst A: &str = \"crate::high::C\";",
            &[],
        );
    }

    #[test]
    fn modules_and_list_are_the_same() {
        let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
        let files = [file("src/lib.rs", "mod a;\nmod b;"), file("src/a.rs", "use crate::b;"), file("src/d.rs", "")];
        assert_eq!(
            violations(&files, &["a".into(), "c".into()]),
            [
                "src/lib.rs:2: `b` is declared and not in the list of layers",
                "src/lib.rs:1: `c` is in the list of layers and not declared",
                "src/a.rs:1: `a` refers to `b`, which is not in the list of layers (`crate::b`)",
                "src/d.rs:1: lib.rs does not declare `d`",
            ]
        );
    }

    #[test]
    fn the_table_is_read_from_the_design() {
        let design =
            "| `x` | other |\n## Layers\n| module | what |\n|---|---|\n| `a` | A |\n| `b/` | `B` |\n## C\n| `y` |";
        assert_eq!(table(design), ["a", "b"]);
    }

    #[test]
    fn the_list_is_read_from_the_documentation() {
        let docs =
            "//! Words.\n//!\n//! # Layers\n//!\n//! Lowest first:\n//!\n//! - `a`: what it is,\n//!   at length\n\
                    //! - `b_c`: more\n//!\n//! # Else\n//! - `d`: no layer\n\nmod a;";
        assert_eq!(list(docs), Ok(vec!["a".to_string(), "b_c".to_string()]));
        assert!(list("//! - `a`: no heading").is_err());
        assert!(list("//! # Layers\n//! nothing").is_err());
        assert!(list("//! # Layers\n//! - `a`, `b`: two in one").is_err());
        assert!(list("//! # Layers\n//! - `a`: one\n//! - `a`: again").is_err());
    }
}
