//! The tasks of `evaluate`, one file per subject.
//!
//! A file of [`records`](read_dataset) becomes examples; an example of a log-likelihood task becomes
//! [`Request`]s, which are [scored in batches](Scorer); a question is [answered greedily](answer_all). Each
//! example ends as an [`ExampleResult`], which a [`ResumeLog`] can keep, and all of them as a [`Summary`].

mod answers;
mod batch;
mod choices;
mod example;
mod last_word;
mod likelihood;
mod metrics;
mod pair;
mod reader;
mod records;
mod resume;
mod setup;
mod shots;
mod squad;
mod squad_metric;
mod summary;
mod windows;

pub use answers::{ANSWER_TOKENS, Answer, answer_all};
pub use choices::ChoiceExample;
pub use example::{ExampleResult, Lengths, LikelihoodExample, Outcome, Scored, score_examples};
pub use last_word::LastWordExample;
pub use likelihood::{ExampleScores, RequestScore, Scorer};
pub use metrics::Estimate;
pub(crate) use pair::Request;
pub use pair::{Pair, Unscorable};
pub use records::{Dataset, Examples, Shape, TaskKind, read_dataset};
pub use resume::{Plan, ResumeLog, Resumed, Score, run_windows};
pub use setup::Setup;
pub use shots::take_shots;
pub use squad::{Question, answer_questions};
pub use squad_metric::{exact_match, f1, normalise};
pub use summary::Summary;
pub use windows::{WindowResult, score_window, sum_windows};
