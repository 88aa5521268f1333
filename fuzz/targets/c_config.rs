//! Bytes as the configuration of a kernel for C programs: making it, and its whole life through the exported functions.
#![no_main]

use std::{ffi::CString, ptr};

use deltallm_capi::{
    DeltallmFootprint, DeltallmStatus, deltallm_kernel_attend, deltallm_kernel_footprint,
    deltallm_kernel_forward, deltallm_kernel_free, deltallm_kernel_len, deltallm_kernel_new,
    deltallm_kernel_truncate, deltallm_last_error,
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// Most numbers in the queries of a token that are attended: shapes themselves may be larger.
const MOST: u64 = 1 << 12;

fuzz_target!(|bytes: &[u8]| {
    // A text in C ends with its first zero.
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let config = CString::new(bytes).expect("no zero within");
    let mut kernel = ptr::null_mut();
    // SAFETY: a text that ends with a zero, and a place for the answer.
    let status = unsafe { deltallm_kernel_new(config.as_ptr(), &mut kernel) };
    if status != DeltallmStatus::Ok {
        let text = std::str::from_utf8(bytes).is_ok();
        assert_eq!(status, if text { DeltallmStatus::Config } else { DeltallmStatus::InvalidArgument });
        assert!(kernel.is_null());
        // SAFETY: the message of this thread, which no call changes meanwhile.
        let message = unsafe { std::ffi::CStr::from_ptr(deltallm_last_error()) };
        assert!(!message.is_empty(), "an error says something");
        return;
    }
    let config: Value = serde_json::from_slice(bytes).expect("what made a kernel is JSON");
    let size = |name: &str| config[name].as_u64().expect("what made a kernel has its sizes");
    let (heads, kv_heads, head_dim) = (size("heads"), size("kv_heads"), size("head_dim"));
    let value_dim = config["value_dim"].as_u64().unwrap_or(head_dim);
    let (q, k, v, out) = (heads * head_dim, kv_heads * head_dim, kv_heads * value_dim, heads * value_dim);
    let plain = config["sink_logits"].is_null();
    // SAFETY: a kernel that has not been freed, and buffers of its shape.
    unsafe {
        if q.max(out) <= MOST {
            for (tokens, held) in [(3_usize, 3), (1, 4)] {
                let numbers = |row: u64, number: f32| vec![number; tokens * row as usize];
                let (q, k, v, mut out) =
                    (numbers(q, 0.5), numbers(k, 0.25), numbers(v, 0.25), numbers(out, f32::NAN));
                let (q, k, v) = (q.as_ptr(), k.as_ptr(), v.as_ptr());
                let status = deltallm_kernel_forward(kernel, tokens, q, k, v, out.as_mut_ptr());
                let mut len = usize::MAX;
                assert_eq!(deltallm_kernel_len(kernel.as_ref(), &mut len), DeltallmStatus::Ok);
                match status {
                    DeltallmStatus::Ok => {
                        let right = |x: &f32| (x - 0.25).abs() < 1e-2 || !plain && (-1e-2..0.26).contains(x);
                        assert!(len == held && out.iter().all(right), "{out:?}");
                        // The last query again, without a key.
                        let status = deltallm_kernel_attend(kernel, 1, q, out.as_mut_ptr());
                        assert!(status == DeltallmStatus::Ok && out.iter().all(right), "{status:?}, {out:?}");
                    }
                    // A scale of 1e38, or a budget of 1 byte.
                    DeltallmStatus::Attention | DeltallmStatus::Budget => break,
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(deltallm_kernel_truncate(kernel, 0), DeltallmStatus::Ok);
        }
        let mut bytes = DeltallmFootprint { keys: 0, values: 0, window: 0, bookkeeping: 0, total: 0 };
        assert_eq!(deltallm_kernel_footprint(kernel.as_ref(), &mut bytes), DeltallmStatus::Ok);
        if let Some(budget) = config["budget_bytes"].as_u64() {
            assert!(bytes.total as u64 <= budget);
        }
        deltallm_kernel_free(Some(Box::from_raw(kernel)));
    }
});
