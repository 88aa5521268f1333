//! Solved examples in front of every question, as lm-evaluation-harness has them.

use anyhow::{bail, ensure};

use super::{Dataset, Examples, LikelihoodExample};

/// Behind each example.
const BLANK_LINE: &str = "\n\n";

/// Takes the solved examples of a prompt from the end of `questions`, which are no questions then, or from the beginning of another
/// file, and returns them as text.
///
/// # Errors
/// For files with too few records, one that has other records than `questions`, and questions that are asked without examples.
pub fn take_shots(
    shots: usize,
    questions: &mut Dataset,
    from: Option<Dataset>,
    delimiter: &str,
) -> anyhow::Result<String> {
    let solved = match from {
        Some(mut from) => {
            ensure!(
                from.sha256 != questions.sha256,
                "--shots-from: expected another file than --data, got the same; leave it out, and the last records of --data are the examples"
            );
            ensure!(
                from.shape == questions.shape,
                "--shots-from: expected records with the fields of --data ({}), got {}",
                questions.shape.fields().join(", "),
                from.shape.fields().join(", ")
            );
            let records = from.examples.len();
            ensure!(
                records >= shots,
                "--shots-from: expected at least {shots} records for --shots {shots}, got {records}"
            );
            from.examples.split_off(shots);
            from.examples
        }
        None => {
            let records = questions.examples.len();
            ensure!(
                records > shots,
                "--data: expected more than {shots} records, of which the last {shots} are the examples of --shots, got {records}; \
                 name another file with --shots-from"
            );
            questions.examples.split_off(records - shots)
        }
    };
    match solved {
        Examples::Choices(examples) => Ok(text(&examples, delimiter)),
        Examples::LastWord(examples) => Ok(text(&examples, delimiter)),
        Examples::Squad(_) => bail!("--shots: expected a task whose answers are scored, got squad"),
    }
}

fn text<E: LikelihoodExample>(examples: &[E], delimiter: &str) -> String {
    let solved = |example: &E| {
        let pair = example.right();
        format!("{}{delimiter}{}{BLANK_LINE}", pair.context, pair.continuation)
    };
    examples.iter().map(solved).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChoiceExample, LastWordExample, Pair, Shape};

    fn pair(context: &str, continuation: &str) -> Pair {
        Pair { context: context.into(), continuation: continuation.into() }
    }

    fn dataset(shape: Shape, sha256: &str, examples: Examples) -> Dataset {
        Dataset { shape, sha256: sha256.into(), examples }
    }

    /// `Is it N?`, answered in turns by no and yes.
    fn choices(sha256: &str, records: usize) -> Dataset {
        let example = |i: usize| ChoiceExample {
            options: ["no", "yes"].map(|choice| pair(&format!("Is it {i}?"), choice)).into(),
            gold: i % 2,
        };
        dataset(Shape::Choices, sha256, Examples::Choices((0..records).map(example).collect()))
    }

    #[test]
    fn the_last_records_are_solved_and_asked_no_more() {
        let mut data = choices("a", 5);
        let text = take_shots(2, &mut data, None, " ").unwrap();
        assert_eq!(text, "Is it 3? yes\n\nIs it 4? no\n\n");
        assert_eq!(data.examples.len(), 3);
    }

    #[test]
    fn the_first_records_of_another_file_are_solved_and_all_questions_stay() {
        let mut data = choices("a", 5);
        let text = take_shots(1, &mut data, Some(choices("b", 3)), "\t").unwrap();
        assert_eq!((text.as_str(), data.examples.len()), ("Is it 0?\tno\n\n", 5));
    }

    #[test]
    fn a_solved_schema_has_the_right_context_and_gsm8k_its_reasoning() {
        let example =
            ChoiceExample { options: vec![pair("He said", "so."), pair("She said", "so.")], gold: 1 };
        let mut schema = dataset(Shape::Schema, "a", Examples::Choices(vec![example; 2]));
        assert_eq!(take_shots(1, &mut schema, None, " ").unwrap(), "She said so.\n\n");
        let example = LastWordExample::from_reasoning("How many?", "Two and two.", "4".into());
        let mut gsm8k = dataset(Shape::Gsm8k, "a", Examples::LastWord(vec![example; 2]));
        let expected = "Question: How many?\nAnswer: Two and two.\n#### 4\n\n";
        assert_eq!(take_shots(1, &mut gsm8k, None, " ").unwrap(), expected);
    }

    #[test]
    fn files_that_do_not_have_the_examples_are_refused() {
        let refused = |shots, from: Option<Dataset>| {
            take_shots(shots, &mut choices("a", 3), from, " ").unwrap_err().to_string()
        };
        assert!(refused(3, None).contains("more than 3 records"), "{}", refused(3, None));
        let few = refused(4, Some(choices("b", 3)));
        assert!(few.contains("at least 4 records") && few.contains("got 3"), "{few}");
        assert!(refused(1, Some(choices("a", 3))).contains("another file than --data"));
        let words = Examples::LastWord(vec![LastWordExample::new("a".into(), "b".into())]);
        let other = refused(1, Some(dataset(Shape::LastWord, "b", words)));
        assert!(other.contains("(query, choices, gold), got context, continuation"), "{other}");
        let mut squad = dataset(Shape::Squad, "a", Examples::Squad(vec![question(), question()]));
        assert!(take_shots(1, &mut squad, None, " ").unwrap_err().to_string().contains("squad"));
    }

    fn question() -> crate::Question {
        crate::Question { title: "t".into(), context: "c".into(), question: "q".into(), golds: Vec::new() }
    }
}
