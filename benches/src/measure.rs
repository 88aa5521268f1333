//! Interleaved rounds.

use std::ops::Range;

use anyhow::Context;
use deltallm::{AttentionOptions, AttentionShape, HeadsViewMut, Mask, attend_dense};

use crate::Inputs;
use crate::peak::Peak;
use crate::subject::{Counts, Phase, Place, Subject};
use crate::timing::{median, rotated};

/// What is run, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Prefill or decode.
    pub phase: Phase,
    /// Tokens: those of the prefill; in decoding the length that is reached.
    pub n: usize,
    /// Rounds that count; one more goes before them.
    pub repetitions: usize,
    /// Tokens decoded one after the other by a subject in a round.
    pub steps: usize,
}

impl Plan {
    /// Tokens that the rounds of decoding go through: as many as they need, but at most the last eighth. Where those are
    /// too few, caches are taken back and the same tokens decoded again.
    pub fn decoded(&self) -> Range<usize> {
        let needed = self.steps * (self.repetitions + 1);
        self.n - needed.clamp(1, (self.n / 8).max(1))..self.n
    }

    /// Multiply-adds of dense attention in one layer: two products, of the pairs that its mask allows. In decoding, of one token on
    /// average.
    fn multiply_adds(&self, shape: AttentionShape, mask: Mask) -> f64 {
        let (positions, runs) = match self.phase {
            Phase::Prefill => (0..self.n, 1),
            Phase::Decode => (self.decoded(), self.decoded().len()),
        };
        let pairs = positions.map(|position| position + 1 - mask.first_key(position)).sum::<usize>() as f64
            / runs as f64;
        pairs * (2 * shape.heads() * shape.head_dim()) as f64
    }
}

/// What a subject took.
#[derive(Debug)]
pub struct Measured {
    /// Name of the variant.
    pub name: &'static str,
    /// Seconds, `[round][layer]`, averaged over the windows; in decoding of one token.
    pub rounds: Vec<Vec<f64>>,
    /// Sparsity and bytes.
    pub counts: Option<Counts>,
    /// The largest difference to dense f32, relative to the largest output of the layer.
    pub difference: Option<f64>,
}

/// What all subjects took.
#[derive(Debug)]
pub struct Results {
    /// In the order of the subjects.
    pub subjects: Vec<Measured>,
    /// Multiply-adds a second at most, the median of one measurement a round.
    pub peak: f64,
    /// Multiply-adds of dense attention in one window and all layers; in decoding, of one token.
    pub multiply_adds: f64,
}

/// Runs all subjects in turns, after a round that does not count and in which results are compared with dense attention.
/// `step` is told after every round.
///
/// # Errors
/// A failing subject, and one that is further from dense attention than it may be.
pub fn measure(
    subjects: &mut [Subject],
    inputs: &Inputs,
    plan: &Plan,
    peak: &Peak,
    step: &mut dyn FnMut(usize),
) -> anyhow::Result<Results> {
    let mut rounds = Rounds {
        measured: subjects
            .iter()
            .map(|subject| Measured {
                name: subject.name,
                rounds: Vec::new(),
                counts: None,
                difference: None,
            })
            .collect(),
        subjects,
        inputs,
        plan,
        out: Vec::new(),
        reference: Vec::new(),
    };
    let mut peaks = Vec::new();
    for round in 0..=plan.repetitions {
        peaks.push(peak.measure());
        for (subject, measured) in rounds.subjects.iter().zip(&mut rounds.measured) {
            if round <= subject.rounds {
                measured.rounds.push(vec![0.0; inputs.layers.len()]);
            }
        }
        match plan.phase {
            Phase::Prefill => rounds.prefill(round)?,
            Phase::Decode => rounds.decode(round)?,
        }
        if round == 0 {
            rounds.finish_warm_up()?;
        }
        step(round);
    }
    let Rounds { mut measured, subjects, .. } = rounds;
    for (measured, subject) in measured.iter_mut().zip(subjects) {
        measured.counts = subject.attention.counts();
    }
    let multiply_adds = inputs.masks().map(|mask| plan.multiply_adds(inputs.shape(), mask)).sum();
    Ok(Results { subjects: measured, peak: median(&peaks[1..]), multiply_adds })
}

struct Rounds<'r, 'a> {
    subjects: &'r mut [Subject<'a>],
    measured: Vec<Measured>,
    inputs: &'r Inputs,
    plan: &'r Plan,
    /// Scratch.
    out: Vec<f32>,
    /// What dense f32 answers for the tokens in question: of one place in prefill, of all in decoding.
    reference: Vec<Vec<f32>>,
}

impl Rounds<'_, '_> {
    /// Every layer through all subjects before the next.
    fn prefill(&mut self, round: usize) -> anyhow::Result<()> {
        for window in 0..self.inputs.windows.len() {
            for layer in 0..self.inputs.layers.len() {
                let place = Place { window, layer };
                if round == 0 {
                    self.reference = vec![reference(self.inputs, place, 0..self.plan.n)?];
                }
                for subject in rotated(self.subjects.len(), round + layer) {
                    self.attend(subject, round, place, 0..self.plan.n, (0, 0), 1)?;
                }
            }
        }
        Ok(())
    }

    /// All layers of a token before the next token, some tokens in a row, then the next subject: the cache of the whole
    /// model goes through the CPU for every token.
    fn decode(&mut self, round: usize) -> anyhow::Result<()> {
        let decoded = self.plan.decoded();
        if round == 0 {
            for place in places(self.inputs) {
                self.reference.push(reference(self.inputs, place, decoded.clone())?);
            }
        }
        let steps = self.plan.steps.min(decoded.len());
        let first = decoded.start + round % (decoded.len() / steps) * steps;
        for window in 0..self.inputs.windows.len() {
            for subject in rotated(self.subjects.len(), round) {
                if window == 0 && first == decoded.start {
                    self.subjects[subject].attention.rewind(first)?;
                }
                for token in first..first + steps {
                    for layer in 0..self.inputs.layers.len() {
                        let reference = (window * self.inputs.layers.len() + layer, token - decoded.start);
                        let place = Place { window, layer };
                        self.attend(subject, round, place, token..token + 1, reference, steps)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// One call of one subject, which is one of `calls` whose mean counts. `reference` says which reference to compare
    /// with, from which of its tokens on.
    fn attend(
        &mut self,
        subject: usize,
        round: usize,
        place: Place,
        tokens: Range<usize>,
        reference: (usize, usize),
        calls: usize,
    ) -> anyhow::Result<()> {
        let (subject, measured) = (&mut self.subjects[subject], &mut self.measured[subject]);
        if round > subject.rounds {
            return Ok(());
        }
        let row = self.inputs.shape().heads() * self.inputs.shape().head_dim();
        self.out.clear();
        self.out.resize(tokens.len() * row, 0.0);
        let n = self.plan.n;
        let seconds = subject
            .attention
            .attend(place, tokens, &mut self.out)
            .with_context(|| format!("{} at n = {n}, layer {}", subject.name, place.layer))?;
        measured.rounds[round][place.layer] += seconds / (calls * self.inputs.windows.len()) as f64;
        if round == 0 && subject.compared {
            let (which, token) = reference;
            let expected = &self.reference[which];
            let largest = expected.iter().fold(f32::MIN_POSITIVE, |max, x| max.max(x.abs()));
            let furthest = difference(&expected[token * row..], &self.out) / f64::from(largest);
            measured.difference = Some(measured.difference.map_or(furthest, |other| other.max(furthest)));
        }
        Ok(())
    }

    /// The first round does not count, but its results do.
    fn finish_warm_up(&mut self) -> anyhow::Result<()> {
        for (subject, measured) in self.subjects.iter().zip(&self.measured) {
            if let (Some(most), Some(got)) = (subject.tolerance, measured.difference) {
                anyhow::ensure!(
                    got <= most,
                    "{} at n = {} ({}): expected outputs within {most} of dense attention, relative to its largest, got {got:.2e}; \
                     this is a defect, please report it",
                    subject.name,
                    self.plan.n,
                    self.plan.phase
                );
            }
        }
        self.reference.clear();
        Ok(())
    }
}

impl Measured {
    /// Seconds of every round that counts, all layers together.
    pub fn seconds(&self) -> Vec<f64> {
        self.rounds[1..].iter().map(|layers| layers.iter().sum()).collect()
    }

    /// Median seconds of every layer.
    pub fn layers(&self) -> Vec<f64> {
        let layers = self.rounds.first().map_or(0, Vec::len);
        let rounds = |layer: usize| self.rounds[1..].iter().map(|layers| layers[layer]).collect::<Vec<_>>();
        (0..layers).map(|layer| median(&rounds(layer))).collect()
    }
}

fn places(inputs: &Inputs) -> impl Iterator<Item = Place> {
    let layers = inputs.layers.len();
    (0..inputs.windows.len()).flat_map(move |window| (0..layers).map(move |layer| Place { window, layer }))
}

/// Dense attention of `tokens` to all up to the last of them.
fn reference(inputs: &Inputs, place: Place, tokens: Range<usize>) -> anyhow::Result<Vec<f32>> {
    let layer = &inputs.windows[place.window][place.layer];
    let dims = [tokens.len(), inputs.shape().heads(), inputs.shape().head_dim()];
    let mut out = vec![0.0; dims.iter().product()];
    let (k, v) = (layer.k(0..tokens.end), layer.v(0..tokens.end));
    let options = AttentionOptions::default().mask(inputs.context.mask(inputs.layers[place.layer]));
    attend_dense(inputs.shape(), &options, layer.q(tokens), k, v, HeadsViewMut::new(&mut out, dims)?)?;
    Ok(out)
}

/// The largest difference; infinite where one is not a number.
fn difference(expected: &[f32], got: &[f32]) -> f64 {
    let distance = |(a, b): (&f32, &f32)| f64::from((a - b).abs());
    let distances = expected.iter().zip(got).map(distance);
    distances.fold(0.0, |max, x| if x.is_nan() { f64::INFINITY } else { x.max(max) })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use deltallm::Isa;

    use super::*;
    use crate::inputs::synthetic;
    use crate::subject::Attention;

    /// Who was asked for which tokens.
    type Calls = Vec<(&'static str, Range<usize>)>;

    /// Copies the right answer, or a wrong one, and writes down that it was called.
    struct Fake<'a> {
        name: &'static str,
        inputs: &'a Inputs,
        error: f32,
        calls: Rc<RefCell<Calls>>,
    }

    impl Attention for Fake<'_> {
        fn attend(&mut self, place: Place, tokens: Range<usize>, out: &mut [f32]) -> anyhow::Result<f64> {
            out.copy_from_slice(&reference(self.inputs, place, tokens.clone())?);
            out[0] += self.error;
            self.calls.borrow_mut().push((self.name, tokens));
            Ok(0.25)
        }

        fn rewind(&mut self, _: usize) -> anyhow::Result<()> {
            Ok(())
        }
    }

    fn run(plan: &Plan, error: f32) -> (anyhow::Result<Results>, Calls) {
        let request = synthetic::Request {
            shape: "2,1,8".parse().unwrap(),
            tokens: plan.n,
            layers: 2,
            zero_fraction: 0.5,
            values_skipped: 0.0,
        };
        let inputs = synthetic::synthetic(&request, &Default::default()).unwrap();
        let calls = Rc::default();
        let mut subjects = [("one", 2, 0.0), ("two", 1, error)].map(|(name, rounds, error)| Subject {
            name,
            attention: Box::new(Fake { name, inputs: &inputs, error, calls: Rc::clone(&calls) }),
            rounds,
            tolerance: Some(0.1),
            compared: true,
        });
        let peak = Peak::new(Isa::best(), 1);
        let results = measure(&mut subjects, &inputs, plan, &peak, &mut |_| ());
        drop(subjects);
        (results, calls.take())
    }

    #[test]
    fn prefill_goes_layer_by_layer_in_turns() {
        let plan = Plan { phase: Phase::Prefill, n: 16, repetitions: 2, steps: 1 };
        let (results, calls) = run(&plan, 0.0);
        let names: Vec<_> = calls.iter().map(|(name, _)| *name).collect();
        // Rounds 0 and 1 with both, round 2 with the first alone; two layers each.
        assert_eq!(names, ["one", "two", "two", "one", "two", "one", "one", "two", "one", "one"]);
        let results = results.unwrap();
        assert_eq!(results.subjects[0].seconds(), [0.5, 0.5]);
        assert_eq!(results.subjects[1].seconds(), [0.5]);
        assert_eq!(results.subjects[0].layers(), [0.25, 0.25]);
        assert_eq!(results.multiply_adds, 2.0 * 136.0 * 2.0 * 16.0);
    }

    #[test]
    fn decoding_goes_token_by_token_to_the_last() {
        let plan = Plan { phase: Phase::Decode, n: 64, repetitions: 2, steps: 2 };
        assert_eq!(plan.decoded(), 58..64);
        let (results, calls) = run(&plan, 0.0);
        let tokens: Vec<_> = calls.iter().filter(|call| call.0 == "one").map(|call| call.1.start).collect();
        assert_eq!(tokens, [58, 58, 59, 59, 60, 60, 61, 61, 62, 62, 63, 63]);
        let results = results.unwrap();
        assert_eq!(results.subjects[0].seconds(), [0.5, 0.5], "of one token in two layers");
        assert!(results.subjects[0].difference.unwrap() < 1e-6);
    }

    #[test]
    fn short_inputs_are_decoded_again_and_again() {
        for n in [1, 2, 9, 30] {
            let plan = Plan { phase: Phase::Decode, n, repetitions: 3, steps: 8 };
            let (results, calls) = run(&plan, 0.0);
            assert!(
                results.is_ok() && calls.iter().all(|call| plan.decoded().contains(&call.1.start)),
                "{n}"
            );
        }
    }

    #[test]
    fn a_wrong_result_ends_the_measurement() {
        let plan = Plan { phase: Phase::Decode, n: 16, repetitions: 1, steps: 1 };
        let error = run(&plan, 100.0).0.unwrap_err().to_string();
        assert!(error.starts_with("two at n = 16 (decode)"), "{error}");
        assert!(run(&plan, f32::NAN).0.is_err());
    }
}
