//! The kernel of the example `custom_kernel` keeps what the trait promises.

mod common;
#[path = "../custom_kernel.rs"]
#[allow(dead_code, reason = "the program's main is not called")]
mod program;

use std::sync::Arc;

use deltallm::models::{Model, ModelFile, Session, Tokenizer};
use deltallm::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, CoreError, DenseAttention, Isa,
    KvStore,
};
use ndarray::{Array3, Axis, concatenate, s};
use program::{MODEL, Streaming};

const SINKS: usize = 2;

fn shape() -> AttentionShape {
    AttentionShape::new(4, 2, 8).unwrap()
}

fn options() -> AttentionOptions {
    AttentionOptions::default().store(KvStore::F32).isa(Isa::from_env().unwrap())
}

fn streaming(window: usize) -> Streaming {
    Streaming { shape: shape(), options: options(), sinks: SINKS, window, rows: Vec::new() }
}

fn input(tokens: usize, heads: usize, phase: f32) -> Array3<f32> {
    Array3::from_shape_fn((tokens, heads, 8), |(t, h, c)| {
        ((t * 31 + h * 7 + c) as f32 * 0.37 + phase).sin() * 2.0
    })
}

/// Feeds the tokens `from..to` in one call.
fn feed(kernel: &mut dyn AttentionKernel, from: usize, to: usize) -> Result<Array3<f32>, AttentionError> {
    let [q, k, v] = [(4, 0.1), (2, 0.2), (2, 0.3)].map(|(heads, phase)| input(to, heads, phase));
    let tokens = s![from.., .., ..];
    let mut out = Array3::zeros((to - from, 4, 8));
    kernel.forward(q.slice(tokens), k.slice(tokens), v.slice(tokens), out.view_mut()).map(|()| out)
}

fn assert_close(a: &Array3<f32>, b: &Array3<f32>) {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{a} {b}"));
}

#[test]
fn a_window_of_the_whole_text_is_dense_attention() {
    for window in [24, usize::MAX] {
        let (mut own, mut dense) = (streaming(window), DenseAttention::new(shape(), options()).unwrap());
        for (from, to) in [(0, 16), (16, 17), (17, 24)] {
            assert_close(&feed(&mut own, from, to).unwrap(), &feed(&mut dense, from, to).unwrap());
        }
    }
}

#[test]
fn a_query_sees_sinks_and_window_alone_and_chunks_do_not_matter() {
    let window = 5;
    let (mut whole, mut parts) = (streaming(window), streaming(window));
    let all = feed(&mut whole, 0, 24).unwrap();
    let pieces: Vec<_> = (0..24).map(|t| feed(&mut parts, t, t + 1).unwrap()).collect();
    let views: Vec<_> = pieces.iter().map(|piece| piece.view()).collect();
    assert_close(&all, &concatenate(Axis(0), &views).unwrap());

    // The last query of a text in which only what it sees is there.
    let [q, k, v] = [(4, 0.1), (2, 0.2), (2, 0.3)].map(|(heads, phase)| input(24, heads, phase));
    let pick =
        |x: &Array3<f32>| concatenate![Axis(0), x.slice(s![..SINKS, .., ..]), x.slice(s![19.., .., ..])];
    let (q, k, v) = (pick(&q), pick(&k), pick(&v));
    let mut out = Array3::zeros(q.dim());
    let mut dense = DenseAttention::new(shape(), options()).unwrap();
    dense.forward(q.view(), k.view(), v.view(), out.view_mut()).unwrap();
    assert_close(&out.slice(s![6.., .., ..]).to_owned(), &all.slice(s![23.., .., ..]).to_owned());
}

#[test]
fn memory_stays_constant_in_decoding() {
    let mut kernel = streaming(5);
    feed(&mut kernel, 0, 10).unwrap();
    let bytes: Vec<_> =
        (10..60).map(|t| feed(&mut kernel, t, t + 1).map(|_| kernel.footprint().total()).unwrap()).collect();
    assert!(bytes.iter().all(|b| *b == bytes[0]), "{bytes:?}");
    assert_eq!(bytes[0], (SINKS + 5 + 1) * 2 * 2 * 8 * 4);
    assert_eq!(kernel.len(), 60);
}

#[test]
fn the_latest_call_can_be_taken_back_and_older_ones_only_as_far_as_tokens_are_held() {
    let mut kernel = streaming(5);
    feed(&mut kernel, 0, 20).unwrap();
    feed(&mut kernel, 20, 23).unwrap();
    let after = feed(&mut kernel, 23, 24).unwrap();
    let beyond = CoreError::TruncateBeyondEnd { len: 24, got: 25 };
    assert_eq!(kernel.truncate(25), Err(beyond.into()));
    let error = kernel.truncate(22).unwrap_err();
    assert_eq!(error, AttentionError::Dropped { expected: 23, got: 22 });
    assert_eq!(kernel.len(), 24, "nothing has changed");
    kernel.truncate(23).unwrap();
    assert_eq!(kernel.len(), 23);
    assert_close(&feed(&mut kernel, 23, 24).unwrap(), &after);
    // The sinks are always there, and an empty cache needs nothing.
    kernel.truncate(SINKS).unwrap();
    assert_eq!(kernel.len(), SINKS);
    kernel.truncate(0).unwrap();
    assert!(kernel.is_empty());
    assert_close(&feed(&mut kernel, 0, 7).unwrap(), &feed(&mut streaming(5), 0, 7).unwrap());
}

#[test]
fn a_refused_call_leaves_everything_as_it_was() {
    let mut kernel = streaming(5);
    feed(&mut kernel, 0, 20).unwrap();
    feed(&mut kernel, 20, 21).unwrap();
    let rows = kernel.rows.clone();
    let good = input(3, 2, 0.2);
    let mut refuse = |q: &Array3<f32>, k: &Array3<f32>| {
        let mut out = Array3::zeros((3, 4, 8));
        let error = kernel.forward(q.view(), k.view(), good.view(), out.view_mut()).unwrap_err();
        assert!(kernel.rows == rows, "{error}");
        error
    };
    let q = input(3, 4, 0.1);
    assert!(matches!(refuse(&input(2, 4, 0.1), &good), AttentionError::Shape { .. }));
    assert!(matches!(refuse(&input(3, 2, 0.1), &good), AttentionError::Shape { .. }));
    assert!(matches!(refuse(&q, &input(3, 2, f32::NAN)), AttentionError::NotFinite { input: "k", .. }));
    assert_eq!(refuse(&(q * 1e30), &(good.clone() * 1e30)), AttentionError::Overflow);
}

#[test]
fn a_session_with_a_long_window_chooses_as_dense_attention_does() {
    let file = ModelFile::from_gguf_bytes("fairy-tales", MODEL).unwrap().with_isa(Isa::from_env().unwrap());
    let model = Arc::new(Model::load(&file).unwrap());
    let shape = model.attention_shape();
    let options = AttentionOptions::default().store(KvStore::F32).isa(model.isa());
    let own = |_| {
        Ok(Box::new(Streaming { shape, options: options.clone(), sinks: 0, window: 1024, rows: vec![] }) as _)
    };
    let dense = |_| Ok(Box::new(DenseAttention::new(shape, options.clone())?) as _);
    let tokenizer = Tokenizer::from_model(&file).unwrap();
    let prompt = tokenizer.encode_beginning("Once upon a time there was a king").unwrap();
    let (mut own, mut dense) =
        (Session::new(model.clone(), own).unwrap(), Session::new(model, dense).unwrap());
    let mut logits = dense.prefill(&prompt).unwrap();
    let mut ours = own.prefill(&prompt).unwrap();
    for _ in 0..32 {
        let best =
            |x: &ndarray::Array1<f32>| (0..x.len()).max_by(|a, b| x[*a].total_cmp(&x[*b])).unwrap() as u32;
        assert_eq!(best(&ours), best(&logits));
        (logits, ours) = (dense.decode(best(&logits)).unwrap(), own.decode(best(&ours)).unwrap());
    }
}

#[test]
fn the_program_prints_both_texts_and_fewer_bytes_for_its_own() {
    let output = common::run("custom_kernel", &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let bytes = |name: &str| -> usize {
        let line = stdout.lines().find_map(|line| line.strip_prefix(name)).expect("the line of the kernel");
        let bytes = line.strip_suffix(" bytes").and_then(|line| line.rsplit(' ').next()).expect("bytes");
        bytes.parse().expect("a number")
    };
    assert!(bytes("sinks and window: ") * 2 < bytes("dense: "), "{stdout}");
    assert!(stdout.len() > 800, "{stdout}");
}
