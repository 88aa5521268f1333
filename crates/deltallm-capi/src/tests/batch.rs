//! Several sequences in one call.

use super::*;

/// The batch of `kernels` with `counts` tokens, each from its position on.
fn batch(kernels: &[&DeltallmKernel], firsts: &[usize], counts: &[usize]) -> (DeltallmStatus, Vec<f32>) {
    let mut inputs = [vec![], vec![], vec![]];
    for (first, count) in firsts.iter().zip(counts) {
        inputs.iter_mut().zip(tokens(*first, *count)).for_each(|(all, own)| all.extend(own));
    }
    let [q, k, v] = inputs;
    let pointers: Vec<_> = kernels.iter().map(|kernel| ptr::from_ref(*kernel).cast_mut()).collect();
    let mut out = vec![0.0; counts.iter().sum::<usize>() * Q];
    // SAFETY: as many kernels as lengths, and buffers with the tokens of all.
    let status = unsafe {
        deltallm_forward_batch(
            pointers.as_ptr(),
            counts.as_ptr(),
            kernels.len(),
            q.as_ptr(),
            k.as_ptr(),
            v.as_ptr(),
            out.as_mut_ptr(),
        )
    };
    (status, out)
}

#[test]
fn a_batch_is_what_its_sequences_are_alone() {
    let [one, two, three] = [dense(), hybrid(r#", "window": 16"#).unwrap(), dense()];
    let [one_alone, two_alone] = [dense(), hybrid(r#", "window": 16"#).unwrap()];
    for (firsts, counts) in [([0, 0, 0], [5, 70, 0]), ([5, 70, 0], [1, 1, 0]), ([6, 71, 0], [3, 0, 0])] {
        let expected =
            [forward(&one_alone, firsts[0], counts[0]).1, forward(&two_alone, firsts[1], counts[1]).1];
        assert_eq!(
            batch(&[&one, &two, &three], &firsts, &counts),
            (Ok, expected.concat()),
            "{}",
            last_error()
        );
    }
    assert_eq!([&one, &two, &three].map(|kernel| len(kernel)), [9, 71, 0]);
    assert_eq!(batch(&[], &[], &[]), (Ok, vec![]));
    assert_eq!(batch(&[&one], &[9], &[0]), (Ok, vec![]));
}

#[test]
fn a_sequence_that_fails_takes_nothing_from_the_others() {
    let small = hybrid(r#", "budget_bytes": 20000"#).unwrap();
    let [one, other] = [dense(), hybrid("").unwrap()];
    assert_eq!(batch(&[&one, &small, &other], &[0, 0, 0], &[3, 40, 70]).0, Ok, "{}", last_error());
    let before = footprint(&small);
    let (status, _) = batch(&[&one, &small, &other], &[3, 40, 70], &[2, 500, 1]);
    assert_error(status, Budget, "bytes");
    assert_eq!([&one, &small, &other].map(|kernel| len(kernel)), [3, 40, 70]);
    let after = footprint(&small);
    assert_eq!((after.keys, after.values, after.window), (before.keys, before.values, before.window));
    let alone = dense();
    forward(&alone, 0, 3);
    assert_eq!(batch(&[&one, &small], &[3, 40], &[2, 1]).1[..2 * Q], forward(&alone, 3, 2).1);
}

#[test]
fn a_kernel_twice_and_kernels_of_other_shapes_are_refused() {
    let [one, other] = [dense(), dense()];
    let (status, _) = batch(&[&one, &other, &one], &[0; 3], &[1; 3]);
    assert_error(status, InvalidArgument, "expected every kernel once, got the same for sequences 0 and 2");
    let wide = new(r#"{"kernel": "dense", "heads": 4, "kv_heads": 4, "head_dim": 8}"#).unwrap();
    assert_error(batch(&[&one, &wide], &[0; 2], &[1; 2]).0, InvalidArgument, "kernels of one shape");
    assert_eq!([&one, &other, &wide].map(|kernel| len(kernel)), [0; 3]);
}

#[test]
fn lists_and_buffers_that_are_not_there_are_refused() {
    let kernel = dense();
    let (kernels, counts) = ([ptr::from_ref(&*kernel).cast_mut(), ptr::null_mut()], [1, 1]);
    let (q, kv, mut out) = ([1.0; 2 * Q], [1.0; 2 * KV], [0.0; 2 * Q]);
    let mut call = |kernels, counts, sequences, k| {
        // SAFETY: what is not there is refused before it is read.
        unsafe {
            deltallm_forward_batch(kernels, counts, sequences, q.as_ptr(), k, kv.as_ptr(), out.as_mut_ptr())
        }
    };
    let all = (kernels.as_ptr(), counts.as_ptr(), kv.as_ptr());
    assert_error(
        call(ptr::null(), all.1, 1, all.2),
        InvalidArgument,
        "kernels: expected a list of 1, got NULL",
    );
    assert_error(
        call(all.0, ptr::null(), 1, all.2),
        InvalidArgument,
        "tokens: expected a list of 1, got NULL",
    );
    assert_error(call(all.0, all.1, 2, all.2), InvalidArgument, "kernel: expected a kernel");
    assert_error(call(all.0, all.1, usize::MAX, all.2), InvalidArgument, "a length of at most");
    assert_error(call(all.0, all.1, 1, ptr::null()), InvalidArgument, "k: expected a pointer");
    let many = [usize::MAX];
    assert_error(call(all.0, many.as_ptr(), 1, all.2), InvalidArgument, "tokens");
    assert_eq!(call(all.0, all.1, 1, all.2), Ok);
    assert_eq!(len(&kernel), 1);
}
