// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rust source text as a list of tokens with their line numbers: as much of the language's lexer as the checks need.

/// One token. Comments are left out, `::` is one token, and a string literal is its source text with its quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
}

impl Token {
    /// Whether this is a name or a keyword (a number is neither).
    pub(crate) fn is_name(&self) -> bool {
        self.text.starts_with(|first: char| first.is_alphabetic() || first == '_')
    }
}

/// Splits `source` into tokens.
pub(crate) fn tokens(source: &str) -> Vec<Token> {
    let mut lexer = Lexer { text: source.chars().collect(), at: 0, line: 1, out: Vec::new() };
    while lexer.at < lexer.text.len() {
        lexer.step();
    }
    lexer.out
}

struct Lexer {
    text: Vec<char>,
    at: usize,
    line: usize,
    out: Vec<Token>,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> char {
        self.text.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn step(&mut self) {
        let first = self.peek(0);
        match (first, self.peek(1)) {
            ('/', '/') => self.skip_line_comment(),
            ('/', '*') => self.skip_block_comment(),
            (':', ':') => self.push(2),
            ('"', _) => self.string(0),
            ('\'', _) => self.quote(),
            _ if first.is_whitespace() => self.advance(1),
            _ if is_word(first) => self.word(),
            _ => self.push(1),
        }
    }

    /// Passes over `count` characters.
    fn advance(&mut self, count: usize) {
        let end = (self.at + count).min(self.text.len());
        self.line += self.text[self.at..end].iter().filter(|&&c| c == '\n').count();
        self.at = end;
    }

    /// Makes a token of the next `count` characters. Its line is the one on which it starts.
    fn push(&mut self, count: usize) {
        let end = (self.at + count).min(self.text.len());
        let text = self.text[self.at..end].iter().collect();
        self.out.push(Token { text, line: self.line });
        self.advance(count);
    }

    fn skip_line_comment(&mut self) {
        while self.at < self.text.len() && self.peek(0) != '\n' {
            self.advance(1);
        }
    }

    /// Block comments nest.
    fn skip_block_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.text.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => (depth += 1, self.advance(2)),
                ('*', '/') => (depth -= 1, self.advance(2)),
                _ => ((), self.advance(1)),
            };
            if depth == 0 {
                return;
            }
        }
    }

    /// A string literal whose opening quote is `prefix` characters away, with escapes.
    fn string(&mut self, prefix: usize) {
        let mut len = prefix + 1;
        while self.at + len < self.text.len() && self.peek(len) != '"' {
            len += if self.peek(len) == '\\' { 2 } else { 1 };
        }
        self.push(len + 1);
    }

    /// A raw string literal: `prefix` characters, `hashes` times `#`, a quote. It ends at a quote and as many `#`.
    fn raw_string(&mut self, prefix: usize, hashes: usize) {
        let mut len = prefix + hashes + 1;
        let ends = |lexer: &Self, at: usize| {
            lexer.peek(at) == '"' && (1..=hashes).all(|offset| lexer.peek(at + offset) == '#')
        };
        while self.at + len < self.text.len() && !ends(self, len) {
            len += 1;
        }
        self.push(len + 1 + hashes);
    }

    /// A character literal or a lifetime.
    fn quote(&mut self) {
        if self.peek(1) == '\\' {
            let mut len = 3;
            while self.at + len < self.text.len() && self.peek(len) != '\'' {
                len += 1;
            }
            return self.push(len + 1);
        }
        if self.peek(2) == '\'' {
            return self.push(3);
        }
        let mut len = 1;
        while is_word(self.peek(len)) {
            len += 1;
        }
        self.push(len);
    }

    /// A name, a keyword, a number, or the prefix of a literal (`r"`, `b'`, `c"`, `br#"`) or of a raw name (`r#`).
    fn word(&mut self) {
        let mut len = 1;
        while is_word(self.peek(len)) {
            len += 1;
        }
        let word: String = self.text[self.at..self.at + len].iter().collect();
        let hashes = (0..).take_while(|&offset| self.peek(len + offset) == '#').count();
        let raw = matches!(word.as_str(), "r" | "br" | "cr");
        match self.peek(len + hashes) {
            '"' if raw => self.raw_string(len, hashes),
            '"' if hashes == 0 && matches!(word.as_str(), "b" | "c") => self.string(len),
            '\'' if hashes == 0 && word == "b" => {
                self.advance(1);
                self.quote();
            }
            next if word == "r" && hashes == 1 && is_word(next) => {
                let name = (0..).take_while(|&offset| is_word(self.peek(len + 1 + offset))).count();
                self.push(len + 1 + name);
            }
            _ => self.push(len),
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::tokens;

    fn texts(source: &str) -> Vec<String> {
        tokens(source).into_iter().map(|token| token.text).collect()
    }

    #[test]
    fn names_and_punctuation() {
        assert_eq!(texts("use a::b;\nr#mod 0x1f_u8 {}"), ["use", "a", "::", "b", ";", "r#mod", "0x1f_u8", "{", "}"]);
    }

    #[test]
    fn comments_are_left_out() {
        assert_eq!(texts("a // b\n/* c /* d */ e */ f /// g"), ["a", "f"]);
    }

    #[test]
    fn strings_are_one_token() {
        assert_eq!(texts(r#"a "crate::b \" {" c"#), ["a", r#""crate::b \" {""#, "c"]);
        assert_eq!(texts(r##"r#"a " b"# c b"d" c"e""##), [r##"r#"a " b"#"##, "c", r#"b"d""#, r#"c"e""#]);
    }

    #[test]
    fn characters_are_no_lifetimes() {
        assert_eq!(
            texts(r"'{' '\'' b'}' '\u{7d}' &'a T<'_>"),
            ["'{'", r"'\''", "'}'", r"'\u{7d}'", "&", "'a", "T", "<", "'_", ">"]
        );
    }

    #[test]
    fn lines_are_those_where_tokens_start() {
        let lines: Vec<usize> = tokens("a\n\"b\nc\" d\n/*\n*/ e").iter().map(|token| token.line).collect();
        assert_eq!(lines, [1, 2, 3, 5]);
    }
}
