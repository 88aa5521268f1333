//! The same calls in f16 and bf16.

use ::half::{bf16, f16};

use super::*;

/// A kernel whose values have another width than its keys, and which keeps its sums.
fn kernel() -> Box<DeltallmKernel> {
    let settings = r#""value_dim": 5, "mask": "sliding:30", "log_sum_exp": true, "thresholds": {"theta": 0.2}, "window": 8"#;
    hybrid(&format!(", {settings}")).unwrap()
}

const V: usize = 2 * 5;
const OUT: usize = 4 * 5;
const BOTH: [(DeltallmHalf, Half); 2] = [
    (
        DELTALLM_HALF_F16,
        Half { bits: |x| f16::from_f32(x).to_bits(), number: |bits| f16::from_bits(bits).to_f32() },
    ),
    (
        DELTALLM_HALF_BF16,
        Half { bits: |x| bf16::from_f32(x).to_bits(), number: |bits| bf16::from_bits(bits).to_f32() },
    ),
];

/// How numbers become bits, and bits numbers.
#[derive(Clone, Copy)]
struct Half {
    bits: fn(f32) -> u16,
    number: fn(u16) -> f32,
}

impl Half {
    fn bits(self, numbers: &[f32]) -> Vec<u16> {
        numbers.iter().map(|x| (self.bits)(*x)).collect()
    }

    fn numbers(self, bits: &[u16]) -> Vec<f32> {
        bits.iter().map(|bits| (self.number)(*bits)).collect()
    }

    /// q, k and v of `count` tokens for [`kernel`].
    fn inputs(self, first: usize, count: usize) -> [Vec<u16>; 3] {
        let [q, k, mut v] = tokens(first, count);
        v.truncate(count * V);
        [q, k, v].map(|numbers| self.bits(&numbers))
    }
}

fn half_view(data: &[u16]) -> DeltallmHalfView {
    DeltallmHalfView { data: data.as_ptr(), len: data.len(), token_stride: 0, head_stride: 0 }
}

fn half_view_mut(data: &mut [u16]) -> DeltallmHalfViewMut {
    DeltallmHalfViewMut { data: data.as_mut_ptr(), len: data.len(), token_stride: 0, head_stride: 0 }
}

fn forward_half_views(
    kernel: &DeltallmKernel,
    half: DeltallmHalf,
    tokens: usize,
    [q, k, v]: [DeltallmHalfView; 3],
    out: DeltallmHalfViewMut,
) -> DeltallmStatus {
    let kernel = ptr::from_ref(kernel).cast_mut();
    // SAFETY: every view in these tests is over a vector that outlives the call, or is refused before it is read.
    unsafe { deltallm_kernel_forward_half_views(kernel, half, tokens, &q, &k, &v, &out) }
}

fn log_sums(kernel: &DeltallmKernel, tokens: usize) -> Vec<f32> {
    let mut sums = vec![0.0; tokens * 4];
    // SAFETY: a buffer of that length.
    assert_eq!(unsafe { deltallm_kernel_log_sum_exp(Some(kernel), sums.as_mut_ptr(), sums.len()) }, Ok);
    sums
}

#[test]
fn answers_in_16_bits_are_those_of_the_same_numbers_in_f32_rounded() {
    for (name, half) in BOTH {
        let (narrow, wide) = (kernel(), kernel());
        let [in_half, in_f32] = [&narrow, &wide].map(|kernel| ptr::from_ref(&**kernel).cast_mut());
        for (first, count) in [(0, 70), (70, 1), (71, 3)] {
            let bits = half.inputs(first, count);
            let [q, k, v] = bits.each_ref().map(|bits| half.numbers(bits));
            let (mut got, mut expected) = (vec![0; count * OUT], vec![0.0; count * OUT]);
            let [qb, kb, vb] = bits.each_ref().map(|bits| bits.as_ptr());
            // SAFETY: kernels, and all buffers have `count` tokens.
            unsafe {
                let out = expected.as_mut_ptr();
                let status = deltallm_kernel_forward(in_f32, count, q.as_ptr(), k.as_ptr(), v.as_ptr(), out);
                assert_eq!(status, Ok);
                let status = deltallm_kernel_forward_half(in_half, name, count, qb, kb, vb, got.as_mut_ptr());
                assert_eq!(status, Ok, "{}", last_error());
                assert_eq!(got, half.bits(&expected), "{name}, {count} tokens from {first} on");
                assert_eq!(log_sums(&narrow, count), log_sums(&wide, count));

                // The last query again, without a key.
                let (q, qb) = (&q[(count - 1) * Q..], &bits[0][(count - 1) * Q..]);
                let (mut got, mut expected) = (vec![0; OUT], vec![0.0; OUT]);
                assert_eq!(deltallm_kernel_attend(in_f32, 1, q.as_ptr(), expected.as_mut_ptr()), Ok);
                let status = deltallm_kernel_attend_half(in_half, name, 1, qb.as_ptr(), got.as_mut_ptr());
                assert_eq!(status, Ok, "{}", last_error());
                assert_eq!(got, half.bits(&expected), "{name}, the last of {count} tokens from {first} on");
            }
        }
        assert_eq!((len(&narrow), stats(&narrow)), (74, stats(&wide)));
    }
}

#[test]
fn strided_views_in_16_bits_need_no_copy() {
    for (name, half) in BOTH {
        let [q, k, v] = half.inputs(0, 20);
        let mut expected = vec![0; 20 * OUT];
        let views = [half_view(&q), half_view(&k), half_view(&v)];
        assert_eq!(forward_half_views(&kernel(), name, 20, views, half_view_mut(&mut expected)), Ok);

        const TOKEN: usize = Q + KV + V;
        let rows = q.chunks(Q).zip(k.chunks(KV)).zip(v.chunks(V));
        let fused: Vec<u16> = rows.flat_map(|((q, k), v)| [q, k, v].concat()).collect();
        let views = [0, Q, Q + KV]
            .map(|start| DeltallmHalfView { token_stride: TOKEN, ..half_view(&fused[start..]) });
        let mut wide = vec![7; 20 * (OUT + 3)];
        let out = DeltallmHalfViewMut { token_stride: OUT + 3, ..half_view_mut(&mut wide) };
        assert_eq!(forward_half_views(&kernel(), name, 20, views, out), Ok, "{}", last_error());
        for (row, expected) in wide.chunks(OUT + 3).zip(expected.chunks(OUT)) {
            assert_eq!(row[..OUT], *expected);
            assert_eq!(row[OUT..], [7; 3], "numbers between the rows are left alone");
        }
    }
}

#[test]
fn a_type_of_16_bits_that_is_none_is_refused_by_name() {
    let kernel = kernel();
    let mutable = ptr::from_ref(&*kernel).cast_mut();
    let ([q, k, v], mut out) = (BOTH[0].1.inputs(0, 1), vec![7; OUT]);
    let (q0, k0, v0) = (q.as_ptr(), k.as_ptr(), v.as_ptr());
    for half in [0, 3, -1, i32::MAX] {
        let message = format!("half: expected DELTALLM_HALF_F16, 1, or DELTALLM_HALF_BF16, 2, got {half}");
        // SAFETY: buffers of one token.
        let status = unsafe { deltallm_kernel_forward_half(mutable, half, 1, q0, k0, v0, out.as_mut_ptr()) };
        assert_error(status, InvalidArgument, &message);
        // SAFETY: the same.
        let status = unsafe { deltallm_kernel_attend_half(mutable, half, 1, q0, out.as_mut_ptr()) };
        assert_error(status, InvalidArgument, &message);
        let views = [half_view(&q), half_view(&k), half_view(&v)];
        let status = forward_half_views(&kernel, half, 1, views, half_view_mut(&mut out));
        assert_error(status, InvalidArgument, &message);
    }
    assert_eq!((len(&kernel), out), (0, vec![7; OUT]));
}

#[test]
fn null_is_refused_in_16_bits_too() {
    let kernel = kernel();
    let ([q, k, v], mut out) = (BOTH[0].1.inputs(0, 1), vec![0; OUT]);
    let (mutable, none) = (ptr::from_ref(&*kernel).cast_mut(), ptr::null_mut());
    let (q0, k0, v0, o0) = (q.as_ptr(), k.as_ptr(), v.as_ptr(), out.as_mut_ptr());
    let null = ptr::null();
    let (q, k, v, out) = (half_view(&q), half_view(&k), half_view(&v), half_view_mut(&mut out));
    let (q, k, v, out) = (&raw const q, &raw const k, &raw const v, &raw const out);
    for (name, _) in BOTH {
        // SAFETY: what is not null is right.
        unsafe {
            let forward = |kernel, q, k, v, out| deltallm_kernel_forward_half(kernel, name, 1, q, k, v, out);
            let refused = |status, message| assert_error(status, InvalidArgument, message);
            refused(forward(none, q0, k0, v0, o0), "kernel: expected a kernel from");
            refused(
                forward(mutable, null, k0, v0, o0),
                "q: expected a pointer to 32 floats of 16 bits, got NULL",
            );
            refused(forward(mutable, q0, null, v0, o0), "k: expected a pointer to 16 floats of 16 bits");
            refused(forward(mutable, q0, k0, null, o0), "v: expected a pointer to 10 floats of 16 bits");
            refused(
                forward(mutable, q0, k0, v0, ptr::null_mut()),
                "out: expected a pointer to 20 floats of 16 bits",
            );

            let attend = |kernel, q, out| deltallm_kernel_attend_half(kernel, name, 1, q, out);
            refused(attend(none, q0, o0), "kernel: expected a kernel from");
            refused(attend(mutable, null, o0), "q: expected a pointer to 32 floats of 16 bits");
            refused(attend(mutable, q0, ptr::null_mut()), "out: expected a pointer to 20 floats of 16 bits");

            let views =
                |kernel, q, k, v, out| deltallm_kernel_forward_half_views(kernel, name, 1, q, k, v, out);
            refused(views(none, q, k, v, out), "kernel: expected a kernel from");
            refused(views(mutable, ptr::null(), k, v, out), "q: expected a view, got NULL");
            refused(views(mutable, q, ptr::null(), v, out), "k: expected a view, got NULL");
            refused(views(mutable, q, k, ptr::null(), out), "v: expected a view, got NULL");
            refused(views(mutable, q, k, v, ptr::null()), "out: expected a view, got NULL");

            assert_eq!(
                deltallm_kernel_forward_half(mutable, name, 0, null, null, null, ptr::null_mut()),
                Ok,
                "nothing"
            );
        }
    }
    assert_eq!(len(&kernel), 0);
}

#[test]
fn views_in_16_bits_that_do_not_fit_are_refused_by_name() {
    let kernel = kernel();
    let (name, half) = BOTH[1];
    let ([mut q, mut k, v], mut out) = (half.inputs(0, 2), vec![0; 2 * OUT]);
    let minus_one = usize::MAX; // what -1 becomes on its way into a size_t
    let [a, b, c] = [half_view(&q), half_view(&k), half_view(&v)];
    for (views, message) in [
        ([DeltallmHalfView { len: 63, ..a }, b, c], "q: expected a slice of at least 64 elements"),
        ([DeltallmHalfView { len: minus_one, ..a }, b, c], "q: expected a length of at most "),
        ([a, DeltallmHalfView { head_stride: 7, ..b }, c], "k: expected a head_stride of 0 or at least 8"),
        ([a, b, DeltallmHalfView { token_stride: 4, ..c }], "v: expected a token_stride of 0 or at least 5"),
        (
            [a, b, DeltallmHalfView { data: c.data.wrapping_byte_add(1), ..c }],
            "v: expected an address that is a multiple of 2",
        ),
    ] {
        let status = forward_half_views(&kernel, name, 2, views, half_view_mut(&mut out));
        assert_error(status, InvalidArgument, message);
    }
    let status = forward_half_views(&kernel, name, 2, [a, b, c], half_view_mut(&mut out[1..]));
    assert_error(status, InvalidArgument, "out: expected a slice of at least 40 elements");

    // Results that would begin in the last query, and those that begin after it.
    let mut both = vec![0; 2 * Q + 2 * OUT];
    both[..2 * Q].copy_from_slice(&q);
    let whole = half_view_mut(&mut both);
    let shared = DeltallmHalfView { data: whole.data, len: 2 * Q, token_stride: 0, head_stride: 0 };
    let at =
        |start: usize| DeltallmHalfViewMut { data: whole.data.wrapping_add(start), len: 2 * OUT, ..whole };
    let status = forward_half_views(&kernel, name, 2, [shared, b, c], at(2 * Q - 1));
    assert_error(status, InvalidArgument, "out: expected memory apart from q, got memory that overlaps it");
    assert_eq!(len(&kernel), 0);
    assert_eq!(forward_half_views(&kernel, name, 2, [shared, b, c], at(2 * Q)), Ok, "{}", last_error());

    // The largest f16 is small as a bf16, and infinity is none of both.
    (q[5], k[KV + 11]) = (f16::MAX.to_bits(), bf16::INFINITY.to_bits());
    let views = [half_view(&q), half_view(&k), c];
    let status = forward_half_views(&kernel, name, 2, views, half_view_mut(&mut out));
    assert_error(status, Attention, "k: expected finite numbers, got inf at token 1, head 1, channel 3");
    assert_eq!(len(&kernel), 2);
}
