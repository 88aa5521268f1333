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
    assert_eq!(batch(&[&one], &[9], &[0]), (Ok, vec![]));
    // SAFETY: of no sequences nothing is read.
    let nothing = unsafe {
        deltallm_forward_batch(
            ptr::null(),
            ptr::null(),
            0,
            ptr::null(),
            ptr::null(),
            ptr::null(),
            ptr::null_mut(),
        )
    };
    assert_eq!(nothing, Ok);
}

#[test]
fn a_sequence_that_fails_takes_nothing_from_the_others() {
    // A window of 16: a cut would lose what the next queries see exactly, a step taken back does not.
    let coded = || hybrid(r#", "window": 16, "log_sum_exp": true"#).unwrap();
    let small = || hybrid(r#", "budget_bytes": 20000"#).unwrap();
    let (together, alone) = ([coded(), dense(), small()], [coded(), dense(), small()]);
    let (firsts, counts) = ([0; 3], [90, 3, 40]);
    let all = together.each_ref().map(|kernel| &**kernel);
    assert_eq!(batch(&all, &firsts, &counts).0, Ok, "{}", last_error());
    for (kernel, count) in alone.iter().zip(counts) {
        assert_eq!(forward(kernel, 0, count).0, Ok);
    }
    // Tokens that are not those that come afterwards.
    let (status, _) = batch(&all, &[500, 500, 500], &[40, 2, 500]);
    assert_error(status, Budget, "bytes");
    assert_eq!(all.map(len), counts);
    let mut sums = [0.0; 4];
    // SAFETY: a kernel, and room for four numbers.
    let status = unsafe { deltallm_kernel_log_sum_exp(Some(all[0]), sums.as_mut_ptr(), 4) };
    assert_error(status, InvalidArgument, "a call before");
    let (status, out) = batch(&all, &counts, &[30, 2, 1]);
    let expected = alone.iter().zip(counts).zip([30, 2, 1]);
    let expected = expected.map(|((kernel, first), count)| forward(kernel, first, count).1);
    assert_eq!((status, out), (Ok, expected.collect::<Vec<_>>().concat()));
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
    assert_error(call(all.0, all.1, 2, all.2), InvalidArgument, "NULL for sequence 1");
    assert_error(call(all.0, all.1, usize::MAX, all.2), InvalidArgument, "a length of at most");
    assert_error(call(all.0, all.1, 1, ptr::null()), InvalidArgument, "k: expected a pointer");
    assert_eq!(call(all.0, all.1, 1, all.2), Ok);
    assert_eq!(len(&kernel), 1);
}

#[test]
fn lengths_whose_sum_overflows_and_outputs_that_overlap_are_refused() {
    let [one, other] = [dense(), dense()];
    let kernels = [&one, &other].map(|kernel| ptr::from_ref(&**kernel).cast_mut());
    let mut numbers = [1.0; 2 * Q];
    let (numbers, counts) = (numbers.as_mut_ptr(), [[usize::MAX, 1], [1, 1]]);
    // SAFETY: what does not fit is refused before it is read.
    let call = |counts: &[usize; 2]| unsafe {
        deltallm_forward_batch(kernels.as_ptr(), counts.as_ptr(), 2, numbers, numbers, numbers, numbers)
    };
    assert_error(call(&counts[0]), InvalidArgument, "q: expected at most");
    assert_error(call(&counts[1]), InvalidArgument, "out: expected memory apart from q");
    assert_eq!([len(&one), len(&other)], [0, 0]);
}

#[test]
fn a_panic_in_one_sequence_ends_all_kernels_of_the_call() {
    let shape = AttentionShape::new(4, 2, 8).unwrap();
    let whole = DenseAttention::new(shape, AttentionOptions::default()).unwrap();
    let (broken, one) = (DeltallmKernel::new(shape, Box::new(Broken(whole))), dense());
    assert_error(batch(&[&one, &broken], &[0; 2], &[1; 2]).0, Panic, "half done");
    for count in [0, 1] {
        assert_error(batch(&[&one], &[0], &[count]).0, Panic, "free it");
    }
}

#[test]
fn batches_in_another_order_do_not_wait_for_each_other_forever() {
    let [one, other] = [dense(), dense()];
    let orders = [[&*one, &*other], [&*other, &*one]];
    std::thread::scope(|scope| {
        for kernels in orders {
            scope.spawn(move || (0..50).for_each(|_| assert_eq!(batch(&kernels, &[0; 2], &[1; 2]).0, Ok)));
        }
    });
    assert_eq!([len(&one), len(&other)], [100; 2]);
}
