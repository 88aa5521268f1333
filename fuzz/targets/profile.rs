//! Bytes as a threshold profile: reading, writing it again, and making its kernels.
#![no_main]

use deltallm_attn::{AttentionProfile, AttentionShape, KernelContext, KernelKind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(profile) = serde_json::from_slice::<AttentionProfile>(bytes) else { return };
    let text = serde_json::to_string(&profile).expect("a profile can be written");
    let again: AttentionProfile = serde_json::from_str(&text).expect("what is written can be read");
    assert_eq!(again, profile);

    let shape @ [layers, kv_heads, head_dim] = profile.thresholds().shape();
    assert!([0, layers].contains(&profile.spec().layers.len()));
    profile.check(profile.thresholds().model(), shape).expect("its own model");
    let shape = AttentionShape::new(2 * kv_heads, kv_heads, head_dim).expect("sizes above 0");
    let context = KernelContext::new(shape);
    // Scores that are too large are errors, and not what is looked for here.
    let spec = profile.spec().clone().scale(None);
    spec.validate(shape, layers).expect("settings that have been checked");
    for layer in 0..layers {
        let mut kernel = spec.build(layer, &context).expect("settings that have been checked");
        let (q, kv) = (vec![0.5; 2 * kv_heads * head_dim], vec![0.25; kv_heads * head_dim]);
        let (of_queries, of_keys) = ([1, 2 * kv_heads, head_dim], [1, kv_heads, head_dim]);
        let mut out = vec![0.0; q.len()];
        let view = |data, shape| deltallm_attn::HeadsView::new(data, shape).expect("as long as its shape");
        let into = deltallm_attn::HeadsViewMut::new(&mut out, of_queries).expect("as long as its shape");
        let kv = view(&kv, of_keys);
        kernel.forward_heads(view(&q, of_queries), kv, kv, into).expect("ordinary numbers");
        assert!(out.iter().all(|x| (x - 0.25).abs() < 1e-3), "{out:?}");
    }
    let dense = spec.kernel == KernelKind::Dense && spec.layers.is_empty();
    assert!(dense || spec.build(layers, &context).is_err());
});
