//! Reading task files: JSON lines, and SQuAD's JSON.

use std::path::Path;

use crate::{read_text, sha256_hex};
use anyhow::{Context, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ChoiceExample, LastWordExample, Pair, Question};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// How well a text is predicted.
    Perplexity,
    /// Which continuation of a context is the most probable.
    Choices,
    /// Which context makes a continuation the most probable.
    Schema,
    /// Whether greedy decoding writes the continuation.
    LastWord,
    /// Answers to questions about a paragraph.
    Squad,
}

impl std::fmt::Display for TaskKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Perplexity => "perplexity",
            Self::Choices => "choices",
            Self::Schema => "schema",
            Self::LastWord => "last-word",
            Self::Squad => "squad",
        })
    }
}

/// The fields of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// `query`, `choices`, `gold`
    Choices,
    /// `context_options`, `continuation`, `gold`
    Schema,
    /// `context`, `continuation`
    LastWord,
    /// `context`, `chain_of_thought`, `answer`: the answer after the reference reasoning
    Gsm8k,
    /// SQuAD 2.0: one JSON object with `data`
    Squad,
}

impl Shape {
    const ALL: [Self; 5] = [Self::Choices, Self::Schema, Self::LastWord, Self::Gsm8k, Self::Squad];

    pub(super) fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Choices => &["query", "choices", "gold"],
            Self::Schema => &["context_options", "continuation", "gold"],
            Self::LastWord => &["context", "continuation"],
            Self::Gsm8k => &["context", "chain_of_thought", "answer"],
            Self::Squad => &["data"],
        }
    }

    fn task(self) -> TaskKind {
        match self {
            Self::Choices => TaskKind::Choices,
            Self::Schema => TaskKind::Schema,
            Self::LastWord | Self::Gsm8k => TaskKind::LastWord,
            Self::Squad => TaskKind::Squad,
        }
    }

    fn of(record: &Map<String, Value>) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.fields().iter().all(|field| record.contains_key(*field)))
    }
}

/// The examples of a task file.
#[derive(Debug)]
pub struct Dataset {
    /// What the file's records look like.
    pub shape: Shape,
    /// Of the file's bytes.
    pub sha256: String,
    /// In the order of the file.
    pub examples: Examples,
}

/// Examples, by how they are run.
#[derive(Debug)]
pub enum Examples {
    /// Of the tasks `choices` and `schema`.
    Choices(Vec<ChoiceExample>),
    /// Of the task `last-word`.
    LastWord(Vec<LastWordExample>),
    /// Of the task `squad`.
    Squad(Vec<Question>),
}

impl Examples {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Choices(examples) => examples.len(),
            Self::LastWord(examples) => examples.len(),
            Self::Squad(questions) => questions.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes those from `at` on, which is at most their number.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        match self {
            Self::Choices(examples) => Self::Choices(examples.split_off(at)),
            Self::LastWord(examples) => Self::LastWord(examples.split_off(at)),
            Self::Squad(questions) => Self::Squad(questions.split_off(at)),
        }
    }
}

/// Reads the examples of a task (one other than perplexity); `option` is the option that named the file.
///
/// # Errors
/// As [`read_text`](crate::read_text); for a file whose records do not fit the task, with the task that they fit; and for the first record
/// that is broken, with its line.
pub fn read_dataset(option: &str, path: &Path, task: TaskKind) -> anyhow::Result<Dataset> {
    let text = read_text(option, path)?;
    let name = format!("{option} {}", path.display());
    let (shape, examples) = match task {
        TaskKind::Squad => (Shape::Squad, Examples::Squad(read_squad(&name, &text)?)),
        _ => read_lines(&name, &text, task)?,
    };
    Ok(Dataset { shape, sha256: sha256_hex(text.as_bytes()), examples })
}

fn read_lines(name: &str, text: &str, task: TaskKind) -> anyhow::Result<(Shape, Examples)> {
    // SQuAD's file may be spread over many lines.
    if let Ok(record) = serde_json::from_str(text) {
        check_shape(&record, task).with_context(|| name.to_owned())?;
    }
    let mut shape = None;
    let (mut choices, mut last_words) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let mut read = || {
            let record = parse_record(line)?;
            let own = check_shape(&record, task)?;
            let first = *shape.get_or_insert(own);
            ensure!(
                own == first,
                "expected the fields of the lines before ({}), got those of another kind of record ({})",
                first.fields().join(", "),
                own.fields().join(", ")
            );
            match own {
                Shape::Choices | Shape::Schema => choices.push(choice_example(&record, own)?),
                _ => last_words.push(last_word_example(&record, own)?),
            }
            Ok(())
        };
        read().map_err(|error: anyhow::Error| anyhow!("{name}, line {}: {error:#}", index + 1))?;
    }
    let shape = shape.with_context(|| format!("{name}: expected at least one record"))?;
    Ok((shape, if choices.is_empty() { Examples::LastWord(last_words) } else { Examples::Choices(choices) }))
}

fn parse_record(line: &str) -> anyhow::Result<Map<String, Value>> {
    let value: Value = serde_json::from_str(line).map_err(|error| {
        anyhow!("expected a JSON object, got text that is not JSON from column {} on", error.column())
    })?;
    match value {
        Value::Object(record) => Ok(record),
        other => bail!("expected a JSON object, got {}", brief(&other)),
    }
}

/// The record's shape, if it is one of the task's.
fn check_shape(record: &Map<String, Value>, task: TaskKind) -> anyhow::Result<Shape> {
    let shape = Shape::of(record);
    if let Some(shape) = shape.filter(|shape| shape.task() == task) {
        return Ok(shape);
    }
    let expected = Shape::ALL.into_iter().filter(|shape| shape.task() == task);
    let expected: Vec<String> = expected.map(|shape| shape.fields().join(", ")).collect();
    let found: Vec<&str> = record.keys().map(String::as_str).collect();
    let found = if found.is_empty() { "none".into() } else { shorten(&found.join(", "), 100) };
    let advice = match shape {
        Some(shape) => format!("use --task {}", shape.task()),
        None => "no task reads these".into(),
    };
    bail!("--task {task} expects the fields {}; found {found}: {advice}", expected.join(", or "))
}

fn choice_example(record: &Map<String, Value>, shape: Shape) -> anyhow::Result<ChoiceExample> {
    let (options, what) = match shape {
        Shape::Schema => {
            let continuation = text_field(record, "continuation")?;
            ensure!(!continuation.is_empty(), "expected a `continuation`, got an empty text");
            let pair = |context| Pair { context, continuation: continuation.clone() };
            (
                list_field(record, "context_options")?.into_iter().map(pair).collect::<Vec<_>>(),
                "context_options",
            )
        }
        _ => {
            let query = text_field(record, "query")?;
            let choices = list_field(record, "choices")?;
            if let Some(empty) = choices.iter().position(String::is_empty) {
                bail!("expected `choices` that are not empty, got an empty text at index {empty}");
            }
            let pair = |continuation| Pair { context: query.clone(), continuation };
            (choices.into_iter().map(pair).collect::<Vec<_>>(), "choices")
        }
    };
    ensure!(!options.is_empty(), "expected at least one of `{what}`, got none");
    let gold = &record["gold"];
    let index =
        gold.as_u64().and_then(|gold| usize::try_from(gold).ok()).filter(|gold| *gold < options.len());
    let gold = index.with_context(|| {
        format!("expected `gold` to be an index from 0 to {}, got {}", options.len() - 1, brief(gold))
    })?;
    Ok(ChoiceExample { options, gold })
}

fn last_word_example(record: &Map<String, Value>, shape: Shape) -> anyhow::Result<LastWordExample> {
    let context = text_field(record, "context")?;
    let name = if shape == Shape::Gsm8k { "answer" } else { "continuation" };
    let continuation = text_field(record, name)?;
    ensure!(!continuation.is_empty(), "expected a `{name}`, got an empty text");
    Ok(match shape {
        Shape::Gsm8k => {
            let reasoning = text_field(record, "chain_of_thought")?;
            LastWordExample::from_reasoning(&context, &reasoning, continuation)
        }
        _ => LastWordExample::new(context, continuation),
    })
}

fn text_field(record: &Map<String, Value>, name: &str) -> anyhow::Result<String> {
    let value = record.get(name).unwrap_or(&Value::Null);
    let text =
        value.as_str().with_context(|| format!("expected `{name}` to be a text, got {}", brief(value)))?;
    Ok(text.to_owned())
}

fn list_field(record: &Map<String, Value>, name: &str) -> anyhow::Result<Vec<String>> {
    let value = record.get(name).unwrap_or(&Value::Null);
    let texts = value.as_array().and_then(|values| {
        values.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    texts.with_context(|| format!("expected `{name}` to be a list of texts, got {}", brief(value)))
}

/// A value as JSON, cut short.
fn brief(value: &Value) -> String {
    shorten(&value.to_string(), 40)
}

fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[derive(Deserialize)]
struct SquadFile {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    title: String,
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<SquadQuestion>,
}

#[derive(Deserialize)]
struct SquadQuestion {
    question: String,
    answers: Vec<Gold>,
}

#[derive(Deserialize)]
struct Gold {
    text: String,
}

fn read_squad(name: &str, text: &str) -> anyhow::Result<Vec<Question>> {
    let file: SquadFile = match serde_json::from_str(text) {
        Ok(file) => file,
        Err(error) => {
            // A file of records, one a line, or a single one?
            let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            for record in [text, first] {
                if let Ok(record) = serde_json::from_str(record) {
                    check_shape(&record, TaskKind::Squad).with_context(|| name.to_owned())?;
                }
            }
            bail!("{name}: expected the JSON of SQuAD 2.0, got {error}");
        }
    };
    let mut questions = Vec::new();
    for article in file.data {
        for paragraph in article.paragraphs {
            for question in paragraph.qas {
                questions.push(Question {
                    title: article.title.clone(),
                    context: paragraph.context.clone(),
                    question: question.question,
                    golds: question.answers.into_iter().map(|gold| gold.text).collect(),
                });
            }
        }
    }
    ensure!(!questions.is_empty(), "{name}: expected at least one question, got none");
    Ok(questions)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHOICES: &str = r#"{"query": "a", "choices": ["b", "c"], "gold": 1}"#;
    const SCHEMA: &str = r#"{"context_options": ["a", "b"], "continuation": "c", "gold": 0}"#;
    const LAST_WORD: &str = r#"{"context": "a", "continuation": "b"}"#;
    const GSM8K: &str = r#"{"context": "a", "chain_of_thought": "b", "answer": "4"}"#;
    const SQUAD: &str = r#"{"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "c", "qas": [
        {"question": "q", "id": "1", "answers": [{"text": "x", "answer_start": 0}], "is_impossible": false},
        {"question": "r", "id": "2", "answers": [], "is_impossible": true}]}]}]}"#;

    fn error(text: &str, task: TaskKind) -> String {
        let error = match task {
            TaskKind::Squad => read_squad("f", text).unwrap_err(),
            _ => read_lines("f", text, task).unwrap_err(),
        };
        format!("{error:#}")
    }

    #[test]
    fn every_shape_is_read() {
        let pair = |context: &str, continuation: &str| Pair {
            context: context.into(),
            continuation: continuation.into(),
        };
        let (shape, examples) =
            read_lines("f", &format!("{CHOICES}\n\n{CHOICES}\r\n"), TaskKind::Choices).unwrap();
        let Examples::Choices(choices) = examples else { panic!("{examples:?}") };
        assert_eq!((shape, choices.len()), (Shape::Choices, 2));
        assert_eq!(choices[1], ChoiceExample { options: vec![pair("a", "b"), pair("a", "c")], gold: 1 });

        let (shape, examples) = read_lines("f", SCHEMA, TaskKind::Schema).unwrap();
        let Examples::Choices(choices) = examples else { panic!("{examples:?}") };
        assert_eq!(shape, Shape::Schema);
        assert_eq!(choices[0], ChoiceExample { options: vec![pair("a", "c"), pair("b", "c")], gold: 0 });

        for (text, expected) in [(LAST_WORD, Shape::LastWord), (GSM8K, Shape::Gsm8k)] {
            let (shape, examples) = read_lines("f", text, TaskKind::LastWord).unwrap();
            assert!(matches!(examples, Examples::LastWord(examples) if examples.len() == 1));
            assert_eq!(shape, expected);
        }
        let questions = read_squad("f", SQUAD).unwrap();
        assert_eq!(questions[0].golds, ["x"]);
        assert!(questions[1].golds.is_empty());
    }

    #[test]
    fn a_task_that_does_not_fit_the_file_is_told_which_does() {
        let shapes = [
            (CHOICES, TaskKind::Choices),
            (SCHEMA, TaskKind::Schema),
            (LAST_WORD, TaskKind::LastWord),
            (GSM8K, TaskKind::LastWord),
            (SQUAD, TaskKind::Squad),
        ];
        for (text, fitting) in shapes {
            for (_, task) in shapes.into_iter().filter(|(_, task)| *task != fitting) {
                let error = error(text, task);
                assert!(error.contains(&format!("--task {task} expects the fields")), "{error}");
                assert!(error.contains(&format!("use --task {fitting}")), "{error}");
            }
        }
        let both = error(CHOICES, TaskKind::LastWord);
        let expected =
            "fields context, continuation, or context, chain_of_thought, answer; found choices, gold, query";
        assert!(both.contains(expected), "{both}");
        assert!(error("{\"text\": 1}", TaskKind::Choices).contains("found text: no task reads these"));
        assert!(error("{}", TaskKind::Choices).contains("found none"));
    }

    #[test]
    fn broken_records_are_named_by_their_line() {
        let choices = |query: &str, choices: &str, gold: &str| {
            format!("{CHOICES}\n\n{{\"query\": {query}, \"choices\": {choices}, \"gold\": {gold}}}\n")
        };
        for (text, task, expected) in [
            (choices("\"a\"", "[\"b\"]", "1"), TaskKind::Choices, "`gold` to be an index from 0 to 0, got 1"),
            (choices("\"a\"", "[\"b\"]", "-1"), TaskKind::Choices, "got -1"),
            (choices("\"a\"", "[\"b\"]", "\"0\""), TaskKind::Choices, "got \"0\""),
            (choices("\"a\"", "[]", "0"), TaskKind::Choices, "at least one of `choices`"),
            (choices("\"a\"", "[\"b\", \"\"]", "0"), TaskKind::Choices, "empty text at index 1"),
            (choices("\"a\"", "\"b\"", "0"), TaskKind::Choices, "`choices` to be a list of texts, got \"b\""),
            (choices("7", "[\"b\"]", "0"), TaskKind::Choices, "`query` to be a text, got 7"),
            (format!("{CHOICES}\n\n{{\"query\": "), TaskKind::Choices, "not JSON from column 10"),
            (format!("{CHOICES}\n\n[1]"), TaskKind::Choices, "JSON object, got [1]"),
            (format!("{LAST_WORD}\n\n{GSM8K}"), TaskKind::LastWord, "another kind of record"),
            (
                format!("{LAST_WORD}\n\n{{\"context\": \"a\", \"continuation\": \"\"}}"),
                TaskKind::LastWord,
                "`continuation`, got an empty text",
            ),
            (
                format!("{SCHEMA}\n\n{{\"context_options\": [], \"continuation\": \"b\", \"gold\": 0}}"),
                TaskKind::Schema,
                "at least one of `context_options`",
            ),
        ] {
            let error = error(&text, task);
            assert!(error.contains("f, line 3: ") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_broken_squad_file_is_named() {
        assert!(error("{\"data\": [", TaskKind::Squad).contains("expected the JSON of SQuAD 2.0"));
        assert!(error("{\"data\": [{\"title\": 1}]}", TaskKind::Squad).contains("expected a string"));
        assert!(error("{\"data\": []}", TaskKind::Squad).contains("at least one question"));
        assert!(error("Once upon a time", TaskKind::Squad).contains("expected the JSON of SQuAD 2.0"));
    }
}
