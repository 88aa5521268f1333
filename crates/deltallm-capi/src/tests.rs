//! The exported functions, called as a C program calls them, and as one that gets it wrong.

use std::{
    ffi::{CStr, CString},
    ptr,
    sync::{Arc, Barrier},
};

use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, DenseAttention, HeadsView,
    HeadsViewMut, Isa, KernelWrapper, KvStore, Mask,
};
use deltallm_core::{Footprint, SparsityStats};

use crate::{DeltallmStatus::*, error::guard, *};

mod batch;
mod half;
mod saved;

const SIZES: &str = r#""heads": 4, "kv_heads": 2, "head_dim": 8"#;
const Q: usize = 4 * 8;
const KV: usize = 2 * 8;

fn dense() -> Box<DeltallmKernel> {
    new(&format!(r#"{{"kernel": "dense", {SIZES}}}"#)).unwrap()
}

fn hybrid(more: &str) -> Result<Box<DeltallmKernel>, (DeltallmStatus, String)> {
    new(&format!(r#"{{"kernel": "hybrid", {SIZES}{more}}}"#))
}

fn new(config: &str) -> Result<Box<DeltallmKernel>, (DeltallmStatus, String)> {
    let config = CString::new(config).unwrap();
    let mut kernel = ptr::dangling_mut();
    // SAFETY: a text with a zero at the end, and a place for the answer.
    let status = unsafe { deltallm_kernel_new(config.as_ptr(), &mut kernel) };
    if status == Ok {
        assert_eq!(last_error(), "");
        // SAFETY: what the library hands out is such a box, and this is its only owner.
        return Result::Ok(unsafe { Box::from_raw(kernel) });
    }
    assert!(kernel.is_null());
    Err((status, last_error()))
}

fn last_error() -> String {
    // SAFETY: never null, always ended by a zero, and copied before the next call.
    unsafe { CStr::from_ptr(deltallm_last_error()) }.to_str().unwrap().to_owned()
}

fn view(data: &[f32]) -> DeltallmView {
    DeltallmView { data: data.as_ptr(), len: data.len(), token_stride: 0, head_stride: 0 }
}

fn view_mut(data: &mut [f32]) -> DeltallmViewMut {
    DeltallmViewMut { data: data.as_mut_ptr(), len: data.len(), token_stride: 0, head_stride: 0 }
}

/// `tokens` made-up tokens of q, k and v from position `first` on.
fn tokens(first: usize, tokens: usize) -> [Vec<f32>; 3] {
    let numbers = |width: usize, speed: f32| -> Vec<f32> {
        (first * width..(first + tokens) * width)
            .map(|i| (speed * (i / width) as f32 + (i % width) as f32).sin())
            .collect()
    };
    [numbers(Q, 0.9), numbers(KV, 0.05), numbers(KV, 0.4)]
}

fn forward_views(
    kernel: &DeltallmKernel,
    tokens: usize,
    [q, k, v]: [DeltallmView; 3],
    out: DeltallmViewMut,
) -> DeltallmStatus {
    let kernel = ptr::from_ref(kernel).cast_mut();
    // SAFETY: every view in these tests is over a vector that outlives the call, or is refused before it is read.
    unsafe { deltallm_kernel_forward_views(kernel, tokens, &q, &k, &v, &out) }
}

fn forward(kernel: &DeltallmKernel, first: usize, count: usize) -> (DeltallmStatus, Vec<f32>) {
    let [q, k, v] = tokens(first, count);
    let (kernel, mut out) = (ptr::from_ref(kernel).cast_mut(), vec![0.0; count * Q]);
    // SAFETY: a kernel, and all four have `count` tokens.
    let status = unsafe {
        deltallm_kernel_forward(kernel, count, q.as_ptr(), k.as_ptr(), v.as_ptr(), out.as_mut_ptr())
    };
    (status, out)
}

fn truncate(kernel: &DeltallmKernel, len: usize) -> DeltallmStatus {
    // SAFETY: a kernel.
    unsafe { deltallm_kernel_truncate(ptr::from_ref(kernel).cast_mut(), len) }
}

fn len(kernel: &DeltallmKernel) -> usize {
    let mut len = usize::MAX;
    // SAFETY: a place for the answer.
    assert_eq!(unsafe { deltallm_kernel_len(Some(kernel), &mut len) }, Ok);
    len
}

fn stats(kernel: &DeltallmKernel) -> DeltallmStats {
    let mut stats = SparsityStats::default().total().into();
    // SAFETY: a place for the answer.
    assert_eq!(unsafe { deltallm_kernel_stats(Some(kernel), &mut stats) }, Ok);
    stats
}

fn footprint(kernel: &DeltallmKernel) -> DeltallmFootprint {
    let mut bytes = Footprint::default().into();
    // SAFETY: a place for the answer.
    assert_eq!(unsafe { deltallm_kernel_footprint(Some(kernel), &mut bytes) }, Ok);
    bytes
}

fn assert_error(status: DeltallmStatus, expected: DeltallmStatus, message: &str) {
    let error = last_error();
    assert_eq!(status, expected, "{error}");
    assert!(error.contains(message), "{message:?} is not in {error:?}");
}

#[test]
fn the_answers_are_those_of_the_kernel_inside() {
    let shape = AttentionShape::new(4, 2, 8).unwrap();
    let options = AttentionOptions::default().store(KvStore::F32).isa(Isa::from_env().unwrap());
    let mut expected_kernel = DenseAttention::new(shape, options).unwrap();
    let kernel = dense();
    for (first, count) in [(0, 70), (70, 1), (71, 3)] {
        let [q, k, v] = tokens(first, count);
        let mut expected = vec![0.0; count * Q];
        expected_kernel
            .forward_heads(
                HeadsView::new(&q, [count, 4, 8]).unwrap(),
                HeadsView::new(&k, [count, 2, 8]).unwrap(),
                HeadsView::new(&v, [count, 2, 8]).unwrap(),
                HeadsViewMut::new(&mut expected, [count, 4, 8]).unwrap(),
            )
            .unwrap();
        assert_eq!(forward(&kernel, first, count), (Ok, expected));
    }
    assert_eq!(len(&kernel), 74);
    assert_eq!(stats(&kernel), expected_kernel.stats().total().into());
    assert_eq!(footprint(&kernel), expected_kernel.footprint().into());
    assert_eq!(footprint(&kernel).total, expected_kernel.footprint().total());
}

#[test]
fn strided_views_need_no_copy() {
    let [q, k, v] = tokens(0, 20);
    // Head after head for k, as some engines keep it, and a buffer of both q and v.
    let by_head: Vec<f32> =
        (0..2).flat_map(|h| k.chunks(KV).flat_map(move |t| t[h * 8..][..8].to_vec())).collect();
    let fused: Vec<f32> = q.chunks(Q).zip(v.chunks(KV)).flat_map(|(q, v)| [q, v].concat()).collect();
    let q = DeltallmView { token_stride: Q + KV, ..view(&fused) };
    let v = DeltallmView { token_stride: Q + KV, ..view(&fused[Q..]) };
    let k = DeltallmView { token_stride: 8, head_stride: 20 * 8, ..view(&by_head) };
    let mut wide = vec![7.0; 20 * (Q + 4)];
    let out = DeltallmViewMut { token_stride: Q + 4, ..view_mut(&mut wide) };
    assert_eq!(forward_views(&dense(), 20, [q, k, v], out), Ok);
    let expected = forward(&dense(), 0, 20).1;
    for (row, expected) in wide.chunks(Q + 4).zip(expected.chunks(Q)) {
        assert_eq!(row[..Q], *expected);
        assert_eq!(row[Q..], [7.0; 4], "numbers between the rows are left alone");
    }
}

#[test]
fn masks_widths_logits_and_sums_are_those_of_the_kernel_inside() {
    let shape = AttentionShape::new(4, 2, 8).unwrap().with_value_dim(5).unwrap();
    let options =
        AttentionOptions::default().store(KvStore::F32).isa(Isa::from_env().unwrap()).log_sum_exp(true);
    let logits: Arc<[f32]> = Arc::from([0.5, -1.0, 2.0, 0.0]);
    let mut inside =
        DenseAttention::new(shape, options.mask(Mask::SlidingWindow(9)).sink_logits(logits)).unwrap();
    let kernel = new(
        r#"{"kernel": "dense", "heads": 4, "kv_heads": 2, "head_dim": 8, "value_dim": 5, "mask": "sliding:9",
            "sink_logits": [0.5, -1, 2, 0], "log_sum_exp": true}"#,
    );
    let kernel = kernel.unwrap();
    let [q, k, _] = tokens(0, 20);
    let v: Vec<f32> = (0..20 * 10).map(|i| (i as f32).sin()).collect();
    let (mut out, mut expected) = (vec![0.0; 20 * 20], vec![0.0; 20 * 20]);
    let views = (
        HeadsView::new(&q, [20, 4, 8]).unwrap(),
        HeadsView::new(&k, [20, 2, 8]).unwrap(),
        HeadsView::new(&v, [20, 2, 5]).unwrap(),
    );
    inside
        .forward_heads(views.0, views.1, views.2, HeadsViewMut::new(&mut expected, [20, 4, 5]).unwrap())
        .unwrap();
    let pointer = ptr::from_ref(&*kernel).cast_mut();
    let (mut sums, mut again) = (vec![0.0; 80], vec![0.0; 20]);
    // SAFETY: buffers of these shapes.
    unsafe {
        let status =
            deltallm_kernel_forward(pointer, 20, q.as_ptr(), k.as_ptr(), v.as_ptr(), out.as_mut_ptr());
        assert_eq!((status, &out), (Ok, &expected));
        assert_eq!(deltallm_kernel_log_sum_exp(Some(&*kernel), sums.as_mut_ptr(), 80), Ok);
        assert_eq!(sums, inside.log_sum_exp().unwrap());
        let status = deltallm_kernel_log_sum_exp(Some(&*kernel), sums.as_mut_ptr(), 79);
        assert_error(status, InvalidArgument, "out: expected a slice of at least 80 elements");
        // The last query again, without a key.
        assert_eq!(deltallm_kernel_attend(pointer, 1, q[19 * Q..].as_ptr(), again.as_mut_ptr()), Ok);
        assert!(again.iter().zip(&out[19 * 20..]).all(|(a, b)| (a - b).abs() < 1e-5));
        let status = deltallm_kernel_attend(pointer, 20, q.as_ptr(), out.as_mut_ptr());
        assert_eq!(status, Ok, "the page of the window is the cache");
        assert_error(
            deltallm_kernel_log_sum_exp(Some(&*dense()), sums.as_mut_ptr(), 80),
            InvalidArgument,
            "log_sum_exp",
        );
    }
    assert_eq!(len(&kernel), 20);
}

#[test]
fn null_is_refused_everywhere() {
    let (kernel, config, mut place) = (dense(), c"{}", ptr::null_mut());
    let [q, k, v] = tokens(0, 1);
    let mut out = vec![0.0; Q];
    let [(q0, k0, v0), null] =
        [(q.as_ptr(), k.as_ptr(), v.as_ptr()), (ptr::null(), ptr::null(), ptr::null())];
    let o0 = out.as_mut_ptr();
    // SAFETY: what is not null is right.
    unsafe {
        for (status, argument) in [
            (deltallm_kernel_new(ptr::null(), &mut place), "config"),
            (deltallm_kernel_new(config.as_ptr(), ptr::null_mut()), "kernel"),
        ] {
            assert_eq!(status, InvalidArgument, "{argument}");
        }
        let forward = |kernel, q, k, v, out| deltallm_kernel_forward(kernel, 1, q, k, v, out);
        assert_error(
            forward(ptr::null_mut(), q0, k0, v0, o0),
            InvalidArgument,
            "kernel: expected a kernel from",
        );
        let (some, mutable) = (Some(&*kernel), ptr::from_ref(&*kernel).cast_mut());
        assert_error(
            forward(mutable, null.0, k0, v0, o0),
            InvalidArgument,
            "q: expected a pointer to 32 floats of 32 bits, got NULL",
        );
        assert_error(
            forward(mutable, q0, null.1, v0, o0),
            InvalidArgument,
            "k: expected a pointer to 16 floats",
        );
        assert_error(
            forward(mutable, q0, k0, null.2, o0),
            InvalidArgument,
            "v: expected a pointer to 16 floats",
        );
        assert_error(
            forward(mutable, q0, k0, v0, ptr::null_mut()),
            InvalidArgument,
            "out: expected a pointer to 32",
        );
        let (q, k, v, out) = (view(&q), view(&k), view(&v), view_mut(&mut out));
        let views = |kernel, q, k, v, out| deltallm_kernel_forward_views(kernel, 1, q, k, v, out);
        let (q, k, v, out) = (&raw const q, &raw const k, &raw const v, &raw const out);
        assert_error(views(ptr::null_mut(), q, k, v, out), InvalidArgument, "kernel: expected a kernel from");
        assert_error(views(mutable, ptr::null(), k, v, out), InvalidArgument, "q: expected a view, got NULL");
        assert_error(views(mutable, q, ptr::null(), v, out), InvalidArgument, "k: expected a view, got NULL");
        assert_error(views(mutable, q, k, ptr::null(), out), InvalidArgument, "v: expected a view, got NULL");
        assert_error(views(mutable, q, k, v, ptr::null()), InvalidArgument, "out: expected a view, got NULL");

        let (mut number, mut counts, mut bytes) = (0, stats(&kernel), footprint(&kernel));
        for status in [
            deltallm_kernel_begin_prompt(ptr::null_mut(), 1),
            deltallm_kernel_truncate(ptr::null_mut(), 0),
            deltallm_kernel_len(None, &mut number),
            deltallm_kernel_stats(None, &mut counts),
            deltallm_kernel_head_stats(None, 0, &mut counts),
            deltallm_kernel_footprint(None, &mut bytes),
        ] {
            assert_error(status, InvalidArgument, "kernel: expected a kernel from");
        }
        for (status, argument) in [
            (deltallm_kernel_len(some, ptr::null_mut()), "len: "),
            (deltallm_kernel_stats(some, ptr::null_mut()), "stats: "),
            (deltallm_kernel_head_stats(some, 0, ptr::null_mut()), "stats: "),
            (deltallm_kernel_footprint(some, ptr::null_mut()), "footprint: "),
        ] {
            assert_eq!(status, InvalidArgument, "{argument}");
        }
        assert_error(
            InvalidArgument,
            InvalidArgument,
            "footprint: expected a pointer to where the answer goes, got NULL",
        );
    }
    deltallm_kernel_free(None);
    assert_eq!(len(&kernel), 0);
}

#[test]
fn buffers_that_are_too_short_are_refused_by_name() {
    let kernel = dense();
    let [q, k, v] = tokens(0, 3);
    let mut out = vec![0.0; 3 * Q];
    let whole = [view(&q), view(&k), view(&v)];
    for (i, name) in ["q", "k", "v"].into_iter().enumerate() {
        let mut views = whole;
        views[i].len -= 1;
        let message = format!("{name}: expected a slice of at least {} elements", views[i].len + 1);
        assert_error(forward_views(&kernel, 3, views, view_mut(&mut out)), InvalidArgument, &message);
    }
    let status = forward_views(&kernel, 3, whole, view_mut(&mut out[1..]));
    assert_error(
        status,
        InvalidArgument,
        "out: expected a slice of at least 96 elements for this shape and strides, got 95",
    );
    assert_eq!(len(&kernel), 0);
    assert_eq!(forward_views(&kernel, 3, whole, view_mut(&mut out)), Ok);
}

#[test]
fn lengths_strides_and_addresses_that_cannot_be_are_refused() {
    let kernel = dense();
    let [q, k, v] = tokens(0, 2);
    let mut out = vec![0.0; 2 * Q];
    let whole = [view(&q), view(&k), view(&v)];
    let [q, k, v] = whole;
    let minus_one = usize::MAX; // what -1 becomes on its way into a size_t
    for (views, message) in [
        ([DeltallmView { len: minus_one, ..q }, k, v], "q: expected a length of at most "),
        (
            [DeltallmView { token_stride: minus_one, ..q }, k, v],
            "q: expected a slice of at least 18446744073709551615",
        ),
        (
            [q, DeltallmView { head_stride: minus_one, ..k }, v],
            "k: expected a slice of at least 18446744073709551615",
        ),
        ([q, DeltallmView { token_stride: 7, ..k }, v], "k: expected a token_stride of 0 or at least 8"),
        ([q, k, DeltallmView { head_stride: 7, ..v }], "v: expected a head_stride of 0 or at least 8"),
        (
            [q, k, DeltallmView { data: v.data.wrapping_byte_add(1), ..v }],
            "v: expected an address that is a multiple of 4",
        ),
    ] {
        assert_error(forward_views(&kernel, 2, views, view_mut(&mut out)), InvalidArgument, message);
    }
    let status = forward_views(&kernel, minus_one, whole, view_mut(&mut out));
    assert_error(status, InvalidArgument, "elements");
    let out = DeltallmViewMut { len: minus_one, ..view_mut(&mut out) };
    assert_error(forward_views(&kernel, 2, whole, out), InvalidArgument, "out: expected a length of at most");
    for tokens in [minus_one, minus_one / Q] {
        let kernel = ptr::from_ref(&*kernel).cast_mut();
        // SAFETY: refused before anything is read.
        let status = unsafe { deltallm_kernel_forward(kernel, tokens, q.data, k.data, v.data, out.data) };
        assert_error(status, InvalidArgument, ": expected ");
    }
    assert_eq!(len(&kernel), 0);
}

#[test]
fn an_output_that_overlaps_an_input_is_refused() {
    let kernel = dense();
    let ([_, k, v], mut q) = (tokens(0, 2), vec![0.5; 2 * Q]);
    let out = view_mut(&mut q);
    let q = DeltallmView { data: out.data, len: out.len, token_stride: 0, head_stride: 0 };
    let message = "out: expected memory apart from q, got memory that overlaps it";
    assert_error(forward_views(&kernel, 2, [q, view(&k), view(&v)], out), InvalidArgument, message);
}

#[test]
fn an_output_whose_rows_overlap_is_refused() {
    let kernel = dense();
    let ([q, k, v], mut out) = (tokens(0, 2), vec![0.0; 4 * Q]);
    let inputs = || [view(&q), view(&k), view(&v)];
    // Tokens of four heads of 8 channels.
    for (token_stride, head_stride, message) in [
        (8, 8, "out: expected head stride (at least) = 16, got 8"),
        (31, 8, "out: expected token stride (at least) = 32, got 31"),
        (9, 10, "out: expected head stride (at least) = 17, got 10"),
    ] {
        let out = DeltallmViewMut { token_stride, head_stride, ..view_mut(&mut out) };
        assert_error(forward_views(&kernel, 2, inputs(), out), InvalidArgument, message);
    }
    assert_eq!(len(&kernel), 0);
    // Head after head, and rows that lie between each other.
    for (token_stride, head_stride) in [(8, 16), (8, 32), (40, 8)] {
        let out = DeltallmViewMut { token_stride, head_stride, ..view_mut(&mut out) };
        assert_eq!(forward_views(&kernel, 2, inputs(), out), Ok);
    }
}

#[test]
fn structs_at_odd_addresses_are_refused() {
    let kernel = dense();
    let mutable = ptr::from_ref(&*kernel).cast_mut();
    let ([q, k, v], mut out) = (tokens(0, 1), vec![0.0; Q]);
    let (q, k, v, out) = (view(&q), view(&k), view(&v), view_mut(&mut out));
    let (mut counts, mut bytes, mut number) = (stats(&kernel), footprint(&kernel), 0_usize);
    let odd = "expected an address that is a multiple of ";
    // SAFETY: refused before anything is read or written.
    unsafe {
        let beside = (&raw const q).wrapping_byte_add(1);
        let status = deltallm_kernel_forward_views(mutable, 1, beside, &k, &v, &out);
        assert_error(status, InvalidArgument, &format!("q: {odd}"));
        let beside = (&raw const out).wrapping_byte_add(4);
        let status = deltallm_kernel_forward_views(mutable, 1, &q, &k, &v, beside);
        assert_error(status, InvalidArgument, &format!("out: {odd}"));
        let beside = (&raw mut counts).wrapping_byte_add(2);
        assert_error(deltallm_kernel_stats(Some(&kernel), beside), InvalidArgument, &format!("stats: {odd}"));
        assert_error(
            deltallm_kernel_head_stats(Some(&kernel), 0, beside),
            InvalidArgument,
            &format!("stats: {odd}"),
        );
        let beside = (&raw mut bytes).wrapping_byte_add(1);
        let status = deltallm_kernel_footprint(Some(&kernel), beside);
        assert_error(status, InvalidArgument, &format!("footprint: {odd}"));
        let beside = (&raw mut number).wrapping_byte_add(1);
        assert_error(deltallm_kernel_len(Some(&kernel), beside), InvalidArgument, &format!("len: {odd}"));
    }
    assert_eq!((len(&kernel), number), (0, 0));
}

#[test]
fn an_instruction_set_that_is_none_is_refused_by_the_name_of_where_it_stands() {
    let (_, error) = hybrid(r#", "simd": "sse9""#).err().unwrap();
    assert!(error.contains(": simd: expected") && error.contains("\"sse9\""), "{error}");

    // The variable of a process can only be set for another one: this test once more.
    const VARIABLE: &str = "DELTALLM_SIMD";
    if std::env::var_os(VARIABLE).is_some_and(|name| name == "sse9") {
        let (status, error) = hybrid("").err().unwrap();
        assert_eq!(status, Config, "{error}");
        assert!(error.contains(": DELTALLM_SIMD: expected") && error.contains("\"sse9\""), "{error}");
        return;
    }
    let name = "tests::an_instruction_set_that_is_none_is_refused_by_the_name_of_where_it_stands";
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    let output = again.args(["--exact", name]).env(VARIABLE, "sse9").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn nothing_is_a_length_too() {
    let kernel = dense();
    let nothing = DeltallmView { data: ptr::null(), len: 0, token_stride: 0, head_stride: 0 };
    let nowhere = DeltallmViewMut { data: ptr::null_mut(), len: 0, token_stride: 0, head_stride: 0 };
    assert_eq!(forward_views(&kernel, 0, [nothing; 3], nowhere), Ok);
    let null = ptr::null();
    // SAFETY: nothing is read.
    let status = unsafe {
        deltallm_kernel_forward(ptr::from_ref(&*kernel).cast_mut(), 0, null, null, null, ptr::null_mut())
    };
    assert_eq!(status, Ok);
    assert_eq!(len(&kernel), 0);
    assert_error(forward_views(&kernel, 1, [nothing; 3], nowhere), InvalidArgument, "at least 32 elements");
}

#[test]
fn a_configuration_is_refused_by_the_name_of_its_field() {
    let json = |text: &str| new(text).err().unwrap();
    for (text, message) in [
        ("", "expected a JSON object, in braces, got \"\""),
        ("{", "EOF while parsing an object"),
        ("[1]", "expected a JSON object, in braces, got \"[1]\""),
        (r#"{"kernel": "dense"}"#, "missing field `heads`"),
        (
            r#"{"kernel": "flash"}"#,
            "kernel: unknown variant `flash`, expected one of `dense`, `delta`, `hybrid`",
        ),
    ] {
        let (status, error) = json(text);
        assert_eq!(status, Config);
        assert!(error.starts_with("configuration: ") && error.contains(message), "{text}: {error}");
    }
    for (more, message) in [
        (r#", "haeds": 4"#, "unknown field `haeds`, expected one of `kernel`, `heads`"),
        (r#", "h\u0000": 4"#, "unknown field `h\\0`"),
        (r#", "heads": 4"#, "duplicate field `heads`"),
        ("} {", "trailing characters"),
        (r#", "store": "q8""#, "store: unknown variant `q8`"),
        (
            r#", "store": "int4""#,
            "store: unknown variant `int4`, expected one of `f32`, `f16`, `bf16`, `int8`, `compact`",
        ),
        (r#", "sinks": -1"#, "sinks: invalid value: integer `-1`"),
        (r#", "scale": 0"#, "scale: expected a finite number > 0, got 0"),
        (r#", "scale": 1e300"#, "scale: expected a finite number > 0, got inf"),
        (r#", "softcap": "no""#, "softcap: invalid type: string \"no\", expected f32"),
        (r#", "window": 0"#, "window: expected a number of keys >= 1, or block:SCALE"),
        (r#", "window": []"#, "window: expected a number or a text"),
        (r#", "skip_margin": "off""#, "skip margin: expected a number of nats > 0"),
        (
            r#", "precision": "f64""#,
            "precision: unknown variant `f64`, expected one of `f32`, `bf16`, `int16`",
        ),
        (r#", "simd": "mmx""#, "simd: expected an instruction set that this machine has, one of scalar"),
        (r#", "budget_bytes": 1.5"#, "budget_bytes: invalid type: floating point `1.5`"),
        (r#", "thresholds": {"beta": 1}"#, "thresholds: unknown variant `beta`, expected one of `theta`"),
        (r#", "thresholds": {"theta": -1}"#, "thresholds.theta: expected a finite number >= 0, got -1"),
        (
            r#", "thresholds": {"target_sparsity": 2}"#,
            "thresholds.target_sparsity: expected a number in 0..=1, got 2",
        ),
        (
            r#", "thresholds": {"channels": [1, 2]}"#,
            "thresholds.channels: expected 16 numbers, layers * kv_heads * head_dim, got 2",
        ),
        (
            r#", "thresholds": {"channels": [1, -2]}"#,
            "thresholds: threshold 1: expected a finite number >= 0",
        ),
        (r#", "thresholds": {"channels": [1, "2"]}"#, "thresholds.channels[1]: invalid type: string \"2\""),
        (r#", "thresholds": {"error_bound": {"nats": 1}}"#, "thresholds: unknown variant `error_bound`"),
        (r#", "profile": {"version": 3}"#, "profile: missing field `model`"),
        (r#", "profile": {"version": 2}"#, "profile.version: expected a profile of version 3, got version 2"),
    ] {
        let (status, error) = hybrid(more).err().unwrap_or_else(|| panic!("{more} has been taken"));
        assert_eq!(status, Config);
        assert!(error.starts_with("configuration: ") && error.contains(message), "{more}: {error}");
    }
    // Sizes that no table could be made for, and stores that are for other kernels.
    for (sizes, message) in [
        (r#""dense", "heads": 0, "kv_heads": 1, "head_dim": 8"#, "heads: expected 1 to 4096, got 0"),
        (r#""dense", "heads": 4, "kv_heads": 3, "head_dim": 8"#, "heads (a multiple of kv_heads) = 6, got 4"),
        (r#""delta", "heads": 4, "kv_heads": 2, "head_dim": 1000000000000"#, "head_dim: expected 1 to 4096"),
        (
            r#""dense", "heads": 4, "kv_heads": 2, "head_dim": 8, "store": "compact""#,
            "store: expected f32, f16, bf16 or int8 for dense attention",
        ),
        (
            r#""delta", "heads": 4, "kv_heads": 2, "head_dim": 8, "store": "int8""#,
            "store: expected f32, f16, bf16 or compact for delta attention",
        ),
    ] {
        let (status, error) = json(&format!(r#"{{"kernel": {sizes}}}"#));
        assert_eq!(status, Config);
        assert!(error.contains(message), "{sizes}: {error}");
    }
    let mut kernel = ptr::null_mut();
    // SAFETY: a text with a zero at the end, and a place for the answer.
    let status = unsafe { deltallm_kernel_new(c"\xff".as_ptr(), &mut kernel) };
    assert_error(status, InvalidArgument, "config: expected a text in UTF-8, got invalid utf-8");
}

#[test]
fn every_setting_is_taken() {
    let sixteen = format!("{:?}", [0.5; 16]);
    for more in [
        r#", "store": "compact", "scale": 0.25, "softcap": 50, "precision": "int16", "simd": "scalar", "parallel": false"#,
        r#", "window": 8, "sinks": 2, "skip_margin": 4.5, "exact_prompt": 10, "budget_bytes": 1000000"#,
        r#", "window": "block:0.1", "skip_margin": "0.6ln+0.5", "thresholds": {"theta": 0.1}"#,
        r#", "window": null, "skip_margin": null, "thresholds": {"target_sparsity": 0.6}, "layer": 7"#,
        &format!(r#", "thresholds": {{"channels": {sixteen}}}"#),
    ] {
        for kernel in ["dense", "delta", "hybrid"] {
            let more = if kernel == "dense" { more.replace("compact", "int8") } else { more.to_owned() };
            let kernel = new(&format!(r#"{{"kernel": "{kernel}", {SIZES}{more}}}"#)).unwrap();
            assert_eq!(forward(&kernel, 0, 100).0, Ok, "{more}: {}", last_error());
            assert_eq!(forward(&kernel, 100, 1).0, Ok, "{more}: {}", last_error());
        }
    }
}

#[test]
fn a_profile_brings_the_settings_of_its_layers() {
    let profile = format!(
        r#", "profile": {{"version": 3, "model": "0000000000000007", "kv_heads": 2, "head_dim": 8, "provenance": null,
        "spec": {{"thresholds": {{"channels": {:?}}}, "window": 16, "sinks": 2, "skip_margin": "ln:3",
        "layers": [{{"dense": true}}, {{"dense": false}}]}}}}"#,
        [0.5; 32]
    );
    for (layer, elements) in [(0, 0), (1, 100 * KV as u64)] {
        let kernel = hybrid(&format!(r#"{profile}, "layer": {layer}"#)).unwrap();
        assert_eq!(forward(&kernel, 0, 100).0, Ok);
        assert_eq!(stats(&kernel).elements, elements, "layer {layer}");
    }
    for (more, message) in [
        ("", "layer: expected the profile's layer that this kernel is, got none"),
        (r#", "layer": 2"#, "layer: expected less than 2, the layers of the profile, got 2"),
        (r#", "layer": 18446744073709551615"#, "layer: expected less than 2"),
    ] {
        let (status, error) = hybrid(&format!("{profile}{more}")).err().unwrap();
        assert_eq!(status, Config);
        assert!(error.contains(message), "{more}: {error}");
    }
    // What a profile has settled is not to be given beside it.
    for (field, value) in [
        ("thresholds", r#"{"theta": 1}"#),
        ("window", "64"),
        ("sinks", "4"),
        ("skip_margin", "3"),
        ("exact_prompt", "0"),
    ] {
        let (status, error) = hybrid(&format!(r#"{profile}, "layer": 1, "{field}": {value}"#)).err().unwrap();
        assert_eq!(status, Config);
        let message = format!("{field}: expected none beside a profile, which has its own, got one");
        assert!(error.contains(&message), "{error}");
    }
    // Dense attention takes a profile, and nothing from it: not its store either.
    let profile = profile.replace(r#""sinks""#, r#""store": "f16", "sinks""#);
    let kernel = new(&format!(r#"{{"kernel": "dense", {SIZES}{profile}, "layer": 1}}"#)).unwrap();
    let without = dense();
    assert_eq!(forward(&kernel, 0, 100), forward(&without, 0, 100));
    assert_eq!(footprint(&kernel), footprint(&without));
}

#[test]
fn a_soft_cap_changes_the_answers_as_it_does_inside() {
    let shape = AttentionShape::new(4, 2, 8).unwrap();
    let options = AttentionOptions::default().store(KvStore::F32).isa(Isa::from_env().unwrap());
    let mut inside = DenseAttention::new(shape, options.softcap(0.5)).unwrap();
    let ([q, k, v], mut expected) = (tokens(0, 20), vec![0.0; 20 * Q]);
    let [q, k, v] =
        [(&q, 4), (&k, 2), (&v, 2)].map(|(data, heads)| HeadsView::new(data, [20, heads, 8]).unwrap());
    inside.forward_heads(q, k, v, HeadsViewMut::new(&mut expected, [20, 4, 8]).unwrap()).unwrap();
    let capped = new(&format!(r#"{{"kernel": "dense", {SIZES}, "softcap": 0.5}}"#)).unwrap();
    let answer = forward(&capped, 0, 20);
    assert_ne!(answer, forward(&dense(), 0, 20));
    assert_eq!(answer, (Ok, expected));
}

#[test]
fn every_field_is_described() {
    let (_, error) = new(r#"{"?": 0}"#).err().unwrap();
    let names = error.split("expected one of ").nth(1).unwrap().split(" at line").next().unwrap();
    let docs = include_str!("lib.rs");
    let missing: Vec<_> =
        names.split(", ").filter(|name| !docs.contains(&format!("//! | {name} |"))).collect();
    assert!(names.contains("budget_bytes") && missing.is_empty(), "{missing:?} of {names}");
}

#[test]
fn numbers_that_attention_cannot_take_change_nothing() {
    let kernel = hybrid(r#", "thresholds": {"theta": 0.1}"#).unwrap();
    assert_eq!(forward(&kernel, 0, 10).0, Ok);
    let ([q, mut k, v], mut out) = (tokens(10, 2), vec![0.0; 2 * Q]);
    k[KV + 11] = f32::NAN;
    let status = forward_views(&kernel, 2, [view(&q), view(&k), view(&v)], view_mut(&mut out));
    assert_error(status, Attention, "k: expected finite numbers, got NaN at token 1, head 1, channel 3");
    assert_eq!(len(&kernel), 10);
    assert_eq!(forward(&kernel, 10, 2), forward_after(10, 2, r#", "thresholds": {"theta": 0.1}"#));
}

/// What a fresh hybrid kernel answers for `count` tokens after `first` others.
fn forward_after(first: usize, count: usize, more: &str) -> (DeltallmStatus, Vec<f32>) {
    let kernel = hybrid(more).unwrap();
    assert_eq!(forward(&kernel, 0, first).0, Ok);
    forward(&kernel, first, count)
}

#[test]
fn a_budget_that_runs_out_keeps_what_is_cached() {
    let kernel = hybrid(r#", "budget_bytes": 30000"#).unwrap();
    let mut held = 0;
    let status = loop {
        match forward(&kernel, held, 1).0 {
            Ok => held += 1,
            status => break status,
        }
        assert!(held < 10_000, "nothing is refused");
    };
    assert_error(status, Budget, "memory budget exhausted");
    assert!(held > 50);
    assert_eq!(len(&kernel), held);
    assert!(footprint(&kernel).total <= 30_000);
    assert_eq!(truncate(&kernel, held / 2), Ok);
    assert_eq!(forward(&kernel, held / 2, 1).0, Ok, "there is room again: {}", last_error());
}

#[test]
fn truncation_takes_tokens_back_and_not_more_than_there_are() {
    let kernel = dense();
    assert_eq!(forward(&kernel, 0, 80).0, Ok);
    let answer = forward(&kernel, 80, 5);
    let status = truncate(&kernel, 86);
    assert_error(status, InvalidArgument, "truncate: expected a length of at most 85, got 86");
    assert_eq!(truncate(&kernel, 80), Ok);
    assert_eq!(last_error(), "");
    assert_eq!(len(&kernel), 80);
    assert_eq!(forward(&kernel, 80, 5), answer);
}

#[test]
fn a_prompt_in_parts_is_one_prompt_once_it_is_announced() {
    let answer = |announced: bool| {
        let kernel =
            hybrid(r#", "exact_prompt": 30, "window": 4, "sinks": 0, "thresholds": {"theta": 1}"#).unwrap();
        if announced {
            // SAFETY: a kernel.
            assert_eq!(unsafe { deltallm_kernel_begin_prompt(ptr::from_ref(&*kernel).cast_mut(), 40) }, Ok);
        }
        assert_eq!(forward(&kernel, 0, 20).0, Ok);
        forward(&kernel, 20, 20);
        stats(&kernel).exact_share
    };
    assert!(
        answer(true) < answer(false),
        "a first part of 20 tokens is within 30, the whole prompt of 40 is not"
    );
}

#[test]
fn heads_add_up_to_the_total() {
    let kernel = hybrid(r#", "thresholds": {"theta": 0.3}, "window": 16"#).unwrap();
    assert_eq!(forward(&kernel, 0, 200).0, Ok);
    let (total, mut elements, mut nonzeros) = (stats(&kernel), 0, 0);
    for head in 0..2 {
        let mut counts = total;
        // SAFETY: a place for the answer.
        assert_eq!(unsafe { deltallm_kernel_head_stats(Some(&kernel), head, &mut counts) }, Ok);
        (elements, nonzeros) = (elements + counts.elements, nonzeros + counts.nonzeros);
    }
    assert_eq!((elements, nonzeros), (total.elements, total.nonzeros));
    assert!(total.zero_fraction > 0.0 && total.sparsity > 0.0 && total.sparsity < total.zero_fraction);
    let mut counts = total;
    // SAFETY: a place for the answer.
    let status = unsafe { deltallm_kernel_head_stats(Some(&kernel), 2, &mut counts) };
    assert_error(status, InvalidArgument, "kv_head: expected less than 2, got 2");
}

#[test]
fn a_panic_becomes_a_status() {
    assert_error(guard(|| panic!("of a test")), Panic, "a bug of the library: of a test");
    assert_error(guard(|| panic!("of test {}", 2)), Panic, "a bug of the library: of test 2");
    assert_eq!(guard(|| Result::Ok(())), Ok);
    assert_eq!(last_error(), "");
}

/// A kernel with a bug, around one without.
struct Broken(DenseAttention);

impl KernelWrapper for Broken {
    type Inner = DenseAttention;

    fn inner(&self) -> &DenseAttention {
        &self.0
    }

    fn inner_mut(&mut self) -> &mut DenseAttention {
        &mut self.0
    }

    fn attend(
        &mut self,
        _: HeadsView,
        _: HeadsView,
        _: HeadsView,
        _: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        panic!("half done")
    }
}

#[test]
fn a_kernel_that_panicked_is_not_used_again() {
    let shape = AttentionShape::new(4, 2, 8).unwrap();
    let whole = DenseAttention::new(shape, AttentionOptions::default()).unwrap();
    let kernel = DeltallmKernel::new(shape, Box::new(Broken(whole)));
    assert_eq!(len(&kernel), 0);
    assert_error(forward(&kernel, 0, 1).0, Panic, "half done");
    assert_error(forward(&kernel, 0, 1).0, Panic, "expected a kernel that never panicked");
    assert_error(forward(&kernel, 0, 0).0, Panic, "free it");
    assert_error(truncate(&kernel, 0), Panic, "free it");
    deltallm_kernel_free(Some(Box::new(kernel)));
    assert!(last_error().contains("free it"), "freeing leaves the last error as it is");
    assert_eq!(forward(&dense(), 0, 1).0, Ok, "other kernels are not concerned");
}

#[test]
fn threads_have_kernels_and_errors_of_their_own() {
    let (expected, both) = (forward(&dense(), 0, 50), Barrier::new(2));
    std::thread::scope(|scope| {
        for thread in 0..2_usize {
            let (expected, both) = (&expected, &both);
            scope.spawn(move || {
                let kernel = dense();
                assert_eq!(forward(&kernel, 0, 50), *expected);
                let status = truncate(&kernel, 51 + thread);
                both.wait(); // now both threads have failed
                assert_error(status, InvalidArgument, &format!("got {}", 51 + thread));
            });
        }
    });
    assert_eq!(last_error(), "", "this thread's last call went well");
}

#[test]
fn calls_on_one_kernel_wait_for_each_other() {
    let kernel = dense();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..50).for_each(|_| assert_eq!(forward(&kernel, 0, 1).0, Ok)));
        }
    });
    assert_eq!(len(&kernel), 100);
}

#[test]
fn versions_are_told() {
    // SAFETY: a text with a zero at the end, for ever.
    let version = unsafe { CStr::from_ptr(deltallm_version()) };
    assert_eq!(version.to_str().unwrap(), env!("CARGO_PKG_VERSION"));
    assert_eq!(deltallm_abi_version(), DELTALLM_ABI_VERSION);
}

#[test]
fn the_configurations_of_the_guide_make_kernels() {
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/c-api.md")).unwrap();
    let (_, json) = guide.split_once("```json\n").unwrap();
    let configs: Vec<_> = json.split("```").next().unwrap().lines().collect();
    assert_eq!(configs.len(), 2);
    configs
        .into_iter()
        .for_each(|config| drop(new(config).unwrap_or_else(|error| panic!("{config}: {error:?}"))));
}
