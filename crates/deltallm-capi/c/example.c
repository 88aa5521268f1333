/* Attention over a made-up sequence: dense, hybrid with thresholds of zero (which is the same), and hybrid. In the root:
 *   cargo build --release -p deltallm-capi
 *   cc -I crates/deltallm-capi/include crates/deltallm-capi/c/example.c target/release/libdeltallm_capi.a \
 *      -lpthread -ldl -lm -o /tmp/example && /tmp/example
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "deltallm.h"

enum { HEADS = 4, KV_HEADS = 2, HEAD_DIM = 32, PROMPT = 160, TOKENS = 200 };
enum { Q = HEADS * HEAD_DIM, KV = KV_HEADS * HEAD_DIM, QKV = Q + 2 * KV }; /* numbers of one token */

#define SHAPE "\"heads\": 4, \"kv_heads\": 2, \"head_dim\": 32"

static float q[TOKENS * Q], k[TOKENS * KV], v[TOKENS * KV], qkv[TOKENS * QKV];
static float exact[TOKENS * Q], out[TOKENS * Q];

static void check(DeltallmStatus status)
{
    if (status != DELTALLM_STATUS_OK) {
        fprintf(stderr, "deltallm, status %d: %s\n", (int)status, deltallm_last_error());
        exit(1);
    }
}

static void expect(int right, const char *what)
{
    if (!right) {
        fprintf(stderr, "not as it should be: %s\n", what);
        exit(1);
    }
}

/* A prompt in one call, then token by token, as an engine does for each of its layers. */
static void run(DeltallmKernel *kernel)
{
    check(deltallm_kernel_forward(kernel, PROMPT, q, k, v, out));
    for (size_t t = PROMPT; t < TOKENS; t++)
        check(deltallm_kernel_forward(kernel, 1, q + t * Q, k + t * KV, v + t * KV, out + t * Q));
}

static double difference(void)
{
    double largest = 0.0;
    for (size_t i = 0; i < TOKENS * Q; i++)
        largest = fmax(largest, fabs((double)out[i] - (double)exact[i]));
    return largest;
}

static DeltallmKernel *create(const char *config)
{
    DeltallmKernel *kernel = NULL;
    check(deltallm_kernel_new(config, &kernel));
    return kernel;
}

int main(void)
{
    expect(deltallm_abi_version() == DELTALLM_ABI_VERSION, "the library has the version of its header");
    for (size_t t = 0; t < TOKENS; t++) { /* keys that change slowly, as in a language model */
        for (size_t i = 0; i < Q; i++)
            qkv[t * QKV + i] = q[t * Q + i] = (float)sin(0.7 * (double)t + (double)(i * i));
        for (size_t i = 0; i < KV; i++) {
            qkv[t * QKV + Q + i] = k[t * KV + i] = (float)(2.0 * sin(0.02 * (double)(t * (i % HEAD_DIM)) + (double)i));
            qkv[t * QKV + Q + KV + i] = v[t * KV + i] = (float)cos(0.2 * (double)t * (double)(i + 1));
        }
    }

    DeltallmKernel *dense = create("{\"kernel\": \"dense\", " SHAPE "}");
    run(dense);
    memcpy(exact, out, sizeof out);

    DeltallmKernel *zero = create("{\"kernel\": \"hybrid\", " SHAPE ", \"thresholds\": {\"theta\": 0}, \"window\": 16}");
    run(zero);
    printf("theta 0:   largest difference from dense %.1e\n", difference());
    expect(difference() < 1e-5, "without thresholds hybrid attention is exact");

    DeltallmKernel *hybrid = create("{\"kernel\": \"hybrid\", " SHAPE ", \"thresholds\": {\"theta\": 0.5}, "
                                    "\"window\": 16, \"sinks\": 4, \"store\": \"f16\", \"budget_bytes\": 1000000}");
    run(hybrid);
    printf("theta 0.5: largest difference from dense %.1e\n", difference());
    expect(difference() > 1e-4 && difference() < 0.5, "thresholds cost some accuracy, and not much");

    /* The last tokens once more, out of a buffer in which q, k and v of a token lie side by side. */
    check(deltallm_kernel_truncate(dense, PROMPT));
    const float *fused = qkv + PROMPT * QKV;
    const size_t tokens = TOKENS - PROMPT, len = (TOKENS - PROMPT) * QKV;
    DeltallmView q_view = {.data = fused, .len = len, .token_stride = QKV};
    DeltallmView k_view = {.data = fused + Q, .len = len - Q, .token_stride = QKV};
    DeltallmView v_view = {.data = fused + Q + KV, .len = len - Q - KV, .token_stride = QKV};
    DeltallmViewMut out_view = {.data = out + PROMPT * Q, .len = tokens * Q};
    memcpy(out, exact, PROMPT * Q * sizeof *out);
    check(deltallm_kernel_forward_views(dense, tokens, &q_view, &k_view, &v_view, &out_view));
    expect(difference() < 1e-5, "the same tokens after a cut give the same");

    DeltallmStats stats;
    DeltallmFootprint dense_bytes, bytes;
    size_t cached;
    check(deltallm_kernel_stats(hybrid, &stats));
    check(deltallm_kernel_footprint(dense, &dense_bytes));
    check(deltallm_kernel_footprint(hybrid, &bytes));
    check(deltallm_kernel_len(hybrid, &cached));
    printf("%zu tokens: %.0f %% of the key deltas are zero, sparsity %.0f %%; %zu bytes (keys %zu), dense f32 %zu\n",
           cached, 100.0 * stats.zero_fraction, 100.0 * stats.sparsity, bytes.total, bytes.keys, dense_bytes.total);
    expect(cached == TOKENS && stats.zero_fraction > 0.5 && bytes.total < dense_bytes.total, "zeros and bytes");

    DeltallmKernel *none = NULL;
    expect(deltallm_kernel_new("{\"kernel\": \"hybrid\", \"haeds\": 4}", &none) == DELTALLM_STATUS_CONFIG, "a slip");
    printf("an error:  %s\n", deltallm_last_error());

    deltallm_kernel_free(dense);
    deltallm_kernel_free(zero);
    deltallm_kernel_free(hybrid);
    return 0;
}
