//! Marks what an expression works on, so that the work is paid for.
//!
//! minijinja walks through lists within single instructions, and a list that holds another twice, which holds a third twice,
//! is far longer than what was done to make it. Its operators cannot be replaced, so their operands go through the filters of
//! [`cost`](super::cost): `a == b` becomes `a|operand_walked == b|operand_walked`. A filter binds closer than any operator,
//! so all that has to be known of an operand is where it ends.

use super::cost::{FACTOR, FLAT, INDEXED, KEY, TEXT, WALKED};
use super::words::{is_word, string_length};

/// The tag, with its operands marked. What is not Jinja stays so: the compiler says what is wrong with it.
pub(super) fn mark(tag: &str) -> String {
    let start = 2 + usize::from(tag[2..].starts_with(['-', '+']));
    let close = if tag.starts_with("{{") { "}}" } else { "%}" };
    let Some(body) = tag.strip_suffix(close) else { return tag.to_owned() };
    let end = body.strip_suffix(['-', '+']).unwrap_or(body).len();
    if start > end {
        return tag.to_owned();
    }
    let mut marker =
        Marker { tag, at: start, end, groups: vec![Group::new(Kind::Plain, start)], marks: Vec::new() };
    marker.run(tag.starts_with("{%"));
    let mut marks = marker.marks;
    // Marks at the same place stay in the order in which they were made.
    marks.sort_by_key(|(at, _)| *at);
    let (mut marked, mut from) = (String::with_capacity(tag.len() + 16 * marks.len()), 0);
    for (at, text) in &marks {
        marked.push_str(&tag[from..*at]);
        marked.push_str(text);
        from = *at;
    }
    marked.push_str(&tag[from..]);
    marked
}

/// What a pair of brackets is.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Around an expression, a tuple or a list; also a whole tag.
    Plain,
    /// Around the arguments of a call, a filter or a test.
    Call,
    /// The arguments of `loop.changed`, which compares them with those of the last time.
    Changed,
    /// `a[…]`
    Subscript,
    /// `{…}`
    Dictionary,
}

/// What is known within a pair of brackets.
struct Group {
    kind: Kind,
    /// Where it starts, after the bracket.
    start: usize,
    /// Where the next key starts.
    key_start: usize,
    is_slice: bool,
    operand: Option<Operand>,
    /// How the operator in front wants the next operand.
    wanted: Option<&'static str>,
    /// Ends of the operands since the last operator that binds less than a comparison.
    ends: Vec<usize>,
    /// A comparison is among their operators.
    compared: bool,
}

#[derive(Clone, Copy)]
struct Operand {
    /// Where that starts which an index at the end would be of.
    start: usize,
    end: usize,
    /// A string or a number: there is nothing to pay for.
    is_literal: bool,
    last: Last,
}

/// What an operand has last, which says what may follow.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    Value,
    /// `.` or `|`
    Joint,
    /// `is`
    Is,
    /// The name of a test: its argument may follow without brackets.
    Test,
}

impl Group {
    fn new(kind: Kind, start: usize) -> Self {
        Self {
            kind,
            start,
            key_start: start,
            is_slice: false,
            operand: None,
            wanted: None,
            ends: Vec::new(),
            compared: false,
        }
    }
}

struct Marker<'a> {
    tag: &'a str,
    at: usize,
    end: usize,
    groups: Vec<Group>,
    marks: Vec<(usize, String)>,
}

impl Marker<'_> {
    fn run(&mut self, is_block: bool) {
        let mut is_for = false;
        let mut is_named = !is_block;
        // Where what a `for` goes through starts.
        let mut iterated = None;
        while self.at < self.end {
            let (start, rest) = (self.at, &self.tag[self.at..self.end]);
            let bytes = rest.as_bytes();
            let length = match bytes[0] {
                b'\'' | b'"' => string_length(bytes),
                byte if is_word(byte) => word_length(bytes),
                _ => sign_length(rest),
            };
            let token = &rest[..length.min(rest.len())];
            self.at += token.len();
            match bytes[0] {
                byte if byte.is_ascii_whitespace() => {}
                b'\'' | b'"' => self.value(start, true),
                byte if is_word(byte) && !is_named => {
                    is_named = true;
                    is_for = token == "for";
                }
                byte if is_word(byte) => {
                    let outside = is_for && self.groups.len() == 1;
                    match token {
                        "in" if outside && iterated.is_none() => {
                            // What is in front are the names of the loop.
                            self.groups[0] = Group::new(Kind::Plain, self.at);
                            iterated = Some(self.at);
                        }
                        "if" | "recursive" if outside => {
                            self.boundary();
                            if let Some(from) = iterated.take() {
                                self.wrap(from, start, INDEXED);
                            }
                            is_for = false;
                        }
                        _ => self.word(start, token),
                    }
                }
                _ => self.sign(start, token),
            }
        }
        self.boundary();
        if let Some(from) = iterated {
            self.wrap(from, self.end, INDEXED);
        }
    }

    fn group(&mut self) -> &mut Group {
        if self.groups.is_empty() {
            self.groups.push(Group::new(Kind::Plain, self.at));
        }
        let last = self.groups.len() - 1;
        &mut self.groups[last]
    }

    /// A string, a number or a name.
    fn value(&mut self, start: usize, is_literal: bool) {
        let end = self.at;
        match self.group().operand {
            // A part of the operand: `.name`, `|filter`, the argument of a test, or a second string.
            Some(mut operand) if operand.last != Last::Value || is_literal => {
                if operand.last == Last::Test {
                    operand.start = start;
                }
                operand.last = match operand.last {
                    Last::Is => Last::Test,
                    _ => Last::Value,
                };
                operand.end = end;
                operand.is_literal &= is_literal;
                self.group().operand = Some(operand);
            }
            Some(_) => {
                self.boundary();
                self.value(start, is_literal);
            }
            None => self.group().operand = Some(Operand { start, end, is_literal, last: Last::Value }),
        }
    }

    fn word(&mut self, start: usize, word: &str) {
        let operand = self.group().operand;
        let last = operand.map(|operand| operand.last);
        let is_number = word.as_bytes()[0].is_ascii_digit();
        match word {
            _ if last == Some(Last::Joint) => {
                if is_number {
                    // `a.0` is `a[0]`.
                    let dot = self.tag[..start].rfind('.').unwrap_or(start);
                    self.wrap_operand(INDEXED, dot);
                }
                self.value(start, false);
            }
            "not" if last == Some(Last::Is) => {}
            _ if last == Some(Last::Is) => self.value(start, false),
            "and" | "or" | "if" | "else" => self.boundary(),
            "not" if operand.is_none() => self.boundary(),
            // `not in`: what follows counts.
            "not" => {}
            "is" => {
                if let Some(operand) = &mut self.group().operand {
                    operand.last = Last::Is;
                }
            }
            "in" if last != Some(Last::Test) => self.operator(WALKED),
            _ => self.value(start, is_number),
        }
    }

    fn sign(&mut self, start: usize, sign: &str) {
        let operand = self.group().operand;
        match sign {
            "." | "|" => {
                if let Some(operand) = &mut self.group().operand {
                    operand.last = Last::Joint;
                }
            }
            "(" | "[" | "{" => self.open(start, sign, operand),
            ")" | "]" | "}" => self.close(start),
            "==" | "!=" | "<" | ">" | "<=" | ">=" => self.operator(WALKED),
            "+" if operand.is_some() => self.operator(FLAT),
            "*" if operand.is_some() => self.operator(FACTOR),
            "~" => self.operator(TEXT),
            "-" | "/" | "%" | "**" | "//" if operand.is_some() => {
                self.finish();
            }
            ":" => {
                self.boundary();
                match self.group().kind {
                    Kind::Dictionary => {
                        let key_start = self.group().key_start;
                        self.wrap_key(key_start, start);
                    }
                    Kind::Subscript => self.group().is_slice = true,
                    _ => {}
                }
            }
            "," | "=" => {
                self.boundary();
                let at = self.at;
                self.group().key_start = at;
            }
            _ => {}
        }
    }

    fn open(&mut self, start: usize, sign: &str, operand: Option<Operand>) {
        let last = operand.map(|operand| operand.last);
        let before = self.tag[..start].trim_end();
        let kind = match (sign, last) {
            ("(", Some(_)) if before.ends_with(".changed") => Kind::Changed,
            ("(", Some(_)) => Kind::Call,
            ("[", Some(Last::Value)) => Kind::Subscript,
            ("{", _) => Kind::Dictionary,
            _ => Kind::Plain,
        };
        match &mut self.group().operand {
            Some(operand) if operand.last == Last::Test => operand.start = start,
            Some(_) => {}
            none => *none = Some(Operand { start, end: start, is_literal: false, last: Last::Value }),
        }
        self.groups.push(Group::new(kind, self.at));
    }

    fn close(&mut self, start: usize) {
        self.boundary();
        let Some(closed) = self.groups.pop() else { return };
        match closed.kind {
            Kind::Subscript if closed.is_slice => self.wrap_operand(FLAT, closed.start - 1),
            Kind::Subscript if self.wrap_key(closed.start, start) => {
                self.wrap_operand(INDEXED, closed.start - 1);
            }
            Kind::Changed if !self.tag[closed.start..start].trim().is_empty() => {
                self.wrap(closed.start, start, WALKED);
            }
            _ => {}
        }
        let end = self.at;
        if let Some(operand) = &mut self.group().operand {
            operand.end = end;
            operand.is_literal = false;
            operand.last = Last::Value;
        }
    }

    /// An operator between two operands.
    fn operator(&mut self, mark: &'static str) {
        let end = self.finish();
        if mark != WALKED {
            self.marks.extend(end.map(|end| (end, format!("|{mark}"))));
            self.group().wanted = Some(mark);
        } else if !self.group().compared {
            // What is compared may be the sum of several.
            self.group().compared = true;
            let ends = self.group().ends.clone();
            self.marks.extend(ends.into_iter().map(|end| (end, format!("|{WALKED}"))));
        }
    }

    /// Ends an operand. Where that is, if there is something to pay for.
    fn finish(&mut self) -> Option<usize> {
        let group = self.group();
        let wanted = group.wanted.take();
        let operand = group.operand.take().filter(|operand| !operand.is_literal)?;
        let compared = group.compared.then_some(WALKED);
        group.ends.push(operand.end);
        let marks = wanted.into_iter().chain(compared);
        self.marks.extend(marks.map(|mark| (operand.end, format!("|{mark}"))));
        Some(operand.end)
    }

    /// What binds less than any comparison.
    fn boundary(&mut self) {
        self.finish();
        let group = self.group();
        group.ends.clear();
        group.compared = false;
        group.wanted = None;
    }

    /// Marks the operand so far, which takes an index at `end`.
    fn wrap_operand(&mut self, mark: &str, end: usize) {
        if let Some(operand) = self.group().operand.filter(|operand| !operand.is_literal) {
            self.marks.push((operand.start, "(".to_owned()));
            self.marks.push((end, format!("|{mark})")));
        }
    }

    /// Marks a key, unless it stands there as a string or a number. Whether it may be a number.
    fn wrap_key(&mut self, start: usize, end: usize) -> bool {
        let key = self.tag[start..end].trim();
        let is_string = key.starts_with(['\'', '"']) && string_length(key.as_bytes()) == key.len();
        let is_number = key.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
        if !is_string && !is_number {
            self.wrap(start, end, KEY);
        }
        !is_string
    }

    /// Marks an expression.
    fn wrap(&mut self, start: usize, end: usize, mark: &str) {
        let end = start + self.tag[start..end].trim_end().len();
        self.marks.push((start, "(".to_owned()));
        self.marks.push((end, format!(")|{mark}")));
    }
}

/// A name or a number, with the sign of its exponent.
fn word_length(bytes: &[u8]) -> usize {
    let word = |from: usize| bytes[from..].iter().take_while(|byte| is_word(**byte)).count();
    let length = word(0);
    let has_exponent = bytes[0].is_ascii_digit() && matches!(bytes[length - 1], b'e' | b'E');
    match bytes.get(length) {
        Some(b'+' | b'-') if has_exponent && !bytes.starts_with(b"0x") => length + 1 + word(length + 1),
        _ => length,
    }
}

fn sign_length(text: &str) -> usize {
    const PAIRS: [&str; 6] = ["==", "!=", "<=", ">=", "**", "//"];
    match PAIRS.iter().any(|pair| text.starts_with(pair)) {
        true => 2,
        false => text.chars().next().map_or(1, char::len_utf8),
    }
}
