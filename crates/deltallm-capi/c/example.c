/* Attention over a made-up sequence: dense, hybrid with thresholds of zero (which is the same), hybrid, dense in bf16, and a layer with a
 * mask. In the root:
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

/* The upper half of a float, rounded, and back. */
static uint16_t bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float number(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
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

    /* All of them once more in bf16, as an engine has them that computes in 16 bits. */
    static uint16_t q16[TOKENS * Q], k16[TOKENS * KV], v16[TOKENS * KV], out16[TOKENS * Q];
    for (size_t i = 0; i < TOKENS * Q; i++)
        q16[i] = bf16(q[i]);
    for (size_t i = 0; i < TOKENS * KV; i++)
        k16[i] = bf16(k[i]), v16[i] = bf16(v[i]);
    check(deltallm_kernel_truncate(dense, 0));
    check(deltallm_kernel_forward_half(dense, DELTALLM_HALF_BF16, TOKENS, q16, k16, v16, out16));
    for (size_t i = 0; i < TOKENS * Q; i++)
        out[i] = number(out16[i]);
    printf("bf16:      largest difference from dense %.1e\n", difference());
    expect(difference() > 1e-4 && difference() < 0.1, "16 bits cost some accuracy, and little");

    /* A layer that looks back 64 tokens, has narrower values, and in its softmax a logit for each head. Its sums say what a key weighs. */
    DeltallmKernel *masked = create("{\"kernel\": \"dense\", " SHAPE ", \"value_dim\": 16, \"mask\": \"sliding:64\", "
                                    "\"sink_logits\": [1, 0, 0, -1], \"log_sum_exp\": true}");
    float narrow[TOKENS * HEADS * 16], sums[TOKENS * HEADS];
    check(deltallm_kernel_forward(masked, TOKENS, q, k, v, narrow));
    check(deltallm_kernel_log_sum_exp(masked, sums, TOKENS * HEADS));
    double score = 0.0; /* of the first query, which sees its own key and the logit */
    for (size_t i = 0; i < HEAD_DIM; i++)
        score += (double)q[i] * (double)k[i] / sqrt(HEAD_DIM);
    expect(fabs(sums[0] - log(exp(score) + exp(1.0))) < 1e-4, "the logit counts among the scores");
    expect(fabs(narrow[0] - v[0] * exp(score - sums[0])) < 1e-4, "and takes its share of the weight");

    DeltallmStats stats;
    DeltallmFootprint dense_bytes, bytes, masked_bytes;
    size_t cached;
    check(deltallm_kernel_stats(hybrid, &stats));
    check(deltallm_kernel_footprint(dense, &dense_bytes));
    check(deltallm_kernel_footprint(hybrid, &bytes));
    check(deltallm_kernel_footprint(masked, &masked_bytes));
    expect(2 * masked_bytes.total < dense_bytes.total, "what nobody attends to any more is dropped");
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
    deltallm_kernel_free(masked);
    return 0;
}
