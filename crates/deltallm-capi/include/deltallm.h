/* The C ABI of deltallm: attention kernels with their key-value caches. docs/c-api.md describes it. */

#ifndef DELTALLM_H
#define DELTALLM_H

/* Made from crates/deltallm-capi/src, so edit it there, and then:
 * DELTALLM_WRITE_HEADER=1 cargo test -p deltallm-capi --test header */

#include <stddef.h>
#include <stdint.h>

/**
 * Version of this interface. It changes when a program that was compiled with an older header must be compiled again.
 */
#define DELTALLM_ABI_VERSION 1

/**
 * What came of a call. Later versions may add more.
 */
enum DeltallmStatus
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Done.
     */
    DELTALLM_STATUS_OK = 0,
    /**
     * A pointer, length, stride or index does not fit.
     */
    DELTALLM_STATUS_INVALID_ARGUMENT = 1,
    /**
     * The configuration is no JSON, names an unknown field, or has a setting that no kernel takes.
     */
    DELTALLM_STATUS_CONFIG = 2,
    /**
     * Numbers that attention cannot take: NaN, infinite, too large for the store, or scores that leave f32.
     */
    DELTALLM_STATUS_ATTENTION = 3,
    /**
     * The cache would outgrow `budget_bytes`.
     */
    DELTALLM_STATUS_BUDGET = 4,
    /**
     * The library has a bug and panicked. The kernel, or all kernels of a batch, answer this from now on: free them.
     */
    DELTALLM_STATUS_PANIC = 5,
    /**
     * A file cannot be read or written, or what is in it is damaged, or of a kernel with other settings.
     */
    DELTALLM_STATUS_FILE = 6,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum DeltallmStatus DeltallmStatus;
#else
typedef int32_t DeltallmStatus;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The attention of one layer together with its key-value cache.
 *
 * Calls on one kernel wait for each other. After a panic in one of them the rest are refused, on all kernels of a batch.
 */
typedef struct DeltallmKernel DeltallmKernel;

/**
 * What delta coding and value skipping save. The counts are of the keys in the cache (`elements`, `nonzeros`) and of all
 * pairs attended since the kernel was made; the shares follow from them and are 0 where there is nothing to count.
 */
typedef struct DeltallmStats {
    /**
     * Entries of the delta matrix: tokens times channels times kv heads. 0 where keys are not delta-coded.
     */
    uint64_t elements;
    /**
     * Entries that are not zero.
     */
    uint64_t nonzeros;
    /**
     * Pairs of a query and a key that it attends to, counted once per query head.
     */
    uint64_t pairs;
    /**
     * Pairs scored with the exact key.
     */
    uint64_t exact_pairs;
    /**
     * Pairs whose value was skipped.
     */
    uint64_t skipped_values;
    /**
     * Share of `elements` that are zero.
     */
    double zero_fraction;
    /**
     * Share of `pairs` that are exact.
     */
    double exact_share;
    /**
     * Sparsity as the paper counts it: `zero_fraction` times the share of pairs that are not exact.
     */
    double sparsity;
    /**
     * Share of the pairs that are not exact whose value was skipped.
     */
    double values_skipped;
} DeltallmStats;

/**
 * Bytes that a cache holds. Room that is allocated and not filled yet counts.
 */
typedef struct DeltallmFootprint {
    /**
     * Keys of the whole history, coded or not.
     */
    size_t keys;
    /**
     * Values of the whole history.
     */
    size_t values;
    /**
     * The exact window and the sinks.
     */
    size_t window;
    /**
     * Tables of pages and blocks.
     */
    size_t bookkeeping;
    /**
     * All of these.
     */
    size_t total;
} DeltallmFootprint;

/**
 * Numbers of shape [tokens, heads, head_dim] that a call reads: `len` floats from `data` on. Head `h` of token `t`
 * starts at `data[t * token_stride + h * head_stride]`, and its channels are adjacent. A stride of 0 stands for
 * contiguous data: `head_dim` between heads, `heads` times that between tokens. So q, k and v can be parts of one
 * buffer. `data` can be NULL if `len` is 0.
 */
typedef struct DeltallmView {
    /**
     * The first number.
     */
    const float *data;
    /**
     * Numbers that can be read from `data` on.
     */
    size_t len;
    /**
     * Numbers from one token to the next, or 0.
     */
    size_t token_stride;
    /**
     * Numbers from one head to the next, or 0.
     */
    size_t head_stride;
} DeltallmView;

/**
 * The same for what a call writes. Numbers between the rows are left as they are.
 */
typedef struct DeltallmViewMut {
    /**
     * The first number.
     */
    float *data;
    /**
     * Numbers that can be written from `data` on.
     */
    size_t len;
    /**
     * Numbers from one token to the next, or 0.
     */
    size_t token_stride;
    /**
     * Numbers from one head to the next, or 0.
     */
    size_t head_stride;
} DeltallmViewMut;

/**
 * Which floats of 16 bits a call takes and gives: DELTALLM_HALF_F16 or DELTALLM_HALF_BF16.
 */
typedef int32_t DeltallmHalf;

/**
 * The same as DeltallmView for numbers of 16 bits: f16 or bf16, as the call says.
 */
typedef struct DeltallmHalfView {
    /**
     * The bits of the first number.
     */
    const uint16_t *data;
    /**
     * Numbers that can be read from `data` on.
     */
    size_t len;
    /**
     * Numbers from one token to the next, or 0.
     */
    size_t token_stride;
    /**
     * Numbers from one head to the next, or 0.
     */
    size_t head_stride;
} DeltallmHalfView;

/**
 * The same for what a call writes. Numbers between the rows are left as they are.
 */
typedef struct DeltallmHalfViewMut {
    /**
     * The bits of the first number.
     */
    uint16_t *data;
    /**
     * Numbers that can be written from `data` on.
     */
    size_t len;
    /**
     * Numbers from one token to the next, or 0.
     */
    size_t token_stride;
    /**
     * Numbers from one head to the next, or 0.
     */
    size_t head_stride;
} DeltallmHalfViewMut;

/**
 * IEEE 754 binary16: 5 bits of exponent, 10 of fraction.
 */
#define DELTALLM_HALF_F16 1

/**
 * The upper half of a float: 8 bits of exponent, 7 of fraction.
 */
#define DELTALLM_HALF_BF16 2

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * What went wrong in this thread's last call of a function that returns a status, in UTF-8: what was expected and
 * what came. Empty if nothing did; never NULL. The text stays as it is until the thread calls such a function again.
 */
const char *deltallm_last_error(void);

/**
 * DELTALLM_ABI_VERSION of the library, to be compared with that of the header.
 */
uint32_t deltallm_abi_version(void);

/**
 * Version of the library, such as "0.1.0".
 */
const char *deltallm_version(void);

/**
 * Makes a kernel with an empty cache from `config`, a JSON object in UTF-8 whose fields are listed in docs/c-api.md, and
 * writes it to `*kernel`. It must be given back with deltallm_kernel_free. After an error `*kernel` is NULL.
 *
 * # Safety
 * `config` points to a text that ends with a zero byte, and `kernel` to a pointer that can be written.
 */
DeltallmStatus deltallm_kernel_new(const char *config,
                                   struct DeltallmKernel **kernel);

/**
 * Frees a kernel and its cache; NULL is nothing. The last error stays as it is. The kernel must not be used again, nor by
 * another thread while this runs.
 */
void deltallm_kernel_free(struct DeltallmKernel *kernel);

/**
 * Announces that the next `tokens` tokens are one prompt, however many calls bring them. A window of blocks and
 * `exact_prompt` depend on its length; without this every call of more than one token counts as a whole prompt.
 *
 * # Safety
 * `kernel` is NULL or comes from deltallm_kernel_new and has not been freed.
 */
DeltallmStatus deltallm_kernel_begin_prompt(struct DeltallmKernel *kernel,
                                            size_t tokens);

/**
 * Writes the number of tokens in the cache to `*len`. Those that were dropped because nobody attends to them any more count.
 *
 * # Safety
 * `kernel` is NULL or has not been freed, and `len` points to a number that can be written.
 */
DeltallmStatus deltallm_kernel_len(const struct DeltallmKernel *kernel,
                                   size_t *len);

/**
 * Forgets every token from `len` on; more than there are is an error, and under a mask a cut so far back that the next query would miss
 * what has been dropped. Exact copies of keys that had left the window of
 * hybrid attention by more tokens than `exact_rewind` says do not come back: the last keys before the cut are seen through their deltas until
 * it fills up again.
 *
 * # Safety
 * `kernel` is NULL or comes from deltallm_kernel_new and has not been freed.
 */
DeltallmStatus deltallm_kernel_truncate(struct DeltallmKernel *kernel,
                                        size_t len);

/**
 * Writes what delta coding and value skipping save, over all heads, to `*stats`.
 *
 * # Safety
 * `kernel` is NULL or has not been freed, and `stats` points to a DeltallmStats that can be written.
 */
DeltallmStatus deltallm_kernel_stats(const struct DeltallmKernel *kernel, struct DeltallmStats *stats);

/**
 * The same for one kv head, counted from 0, and the query heads that share it.
 *
 * # Safety
 * `kernel` is NULL or has not been freed, and `stats` points to a DeltallmStats that can be written.
 */
DeltallmStatus deltallm_kernel_head_stats(const struct DeltallmKernel *kernel,
                                          size_t kv_head,
                                          struct DeltallmStats *stats);

/**
 * Writes the bytes that the cache holds to `*footprint`.
 *
 * # Safety
 * `kernel` is NULL or has not been freed, and `footprint` points to a DeltallmFootprint that can be written.
 */
DeltallmStatus deltallm_kernel_footprint(const struct DeltallmKernel *kernel,
                                         struct DeltallmFootprint *footprint);

/**
 * Appends `tokens` tokens to the cache and attends their queries to it, as the mask says. `q` is [tokens, heads, head_dim], `k`
 * [tokens, kv_heads, head_dim], `v` [tokens, kv_heads, value_dim] and `out` [tokens, heads, value_dim], contiguous. Queries and keys come after rotary embedding;
 * positions are implied, the first token ever appended being 0. With 0 tokens nothing happens.
 *
 * After an error the cache holds the tokens it held before, and `out` may have been written in part.
 *
 * # Safety
 * `kernel` is NULL or comes from deltallm_kernel_new and has not been freed. The four buffers have that many floats,
 * nobody else uses `out` during the call or writes the others, and `out` does not overlap them.
 */
DeltallmStatus deltallm_kernel_forward(struct DeltallmKernel *kernel,
                                       size_t tokens,
                                       const float *q,
                                       const float *k,
                                       const float *v,
                                       float *out);

/**
 * Attends the queries of the last `tokens` tokens in the cache, and appends nothing: for layers that share the cache of another one.
 * `q` is [tokens, heads, head_dim] and `out` [tokens, heads, value_dim], contiguous. With 0 tokens nothing happens. More queries than
 * there are tokens are an error, and under a mask those that would miss what has been dropped.
 *
 * # Safety
 * As deltallm_kernel_forward.
 */
DeltallmStatus deltallm_kernel_attend(struct DeltallmKernel *kernel,
                                      size_t tokens,
                                      const float *q,
                                      float *out);

/**
 * Copies the logarithm of the sum of the exponentials of each query's scores in the latest call, in nats, [tokens, heads], to `out`,
 * which has room for `len` numbers. A sink logit counts, values that were skipped do not. The configuration must ask for it with `log_sum_exp`.
 *
 * # Safety
 * `kernel` is NULL or has not been freed, and `len` numbers can be written from `out` on.
 */
DeltallmStatus deltallm_kernel_log_sum_exp(const struct DeltallmKernel *kernel,
                                           float *out,
                                           size_t len);

/**
 * The same as deltallm_kernel_forward with lengths, which are checked, and with strides.
 *
 * # Safety
 * `kernel` is NULL or comes from deltallm_kernel_new and has not been freed. Each view's `data` has `len` floats, nobody
 * else uses those of `out` during the call or writes the others, and those of `out` do not overlap the others, not even
 * between the rows.
 */
DeltallmStatus deltallm_kernel_forward_views(struct DeltallmKernel *kernel,
                                             size_t tokens,
                                             const struct DeltallmView *q,
                                             const struct DeltallmView *k,
                                             const struct DeltallmView *v,
                                             const struct DeltallmViewMut *out);

/**
 * The same as deltallm_kernel_forward for a batch: `sequences` kernels, of which sequence `i` gets the next `tokens[i]` tokens.
 * That may be none: nothing happens to such a sequence. `q`, `k`, `v` and `out` have the tokens of all sequences one after the other, contiguous. The
 * kernels are of one shape, and no kernel is there twice. Sequences are spread over threads, whatever `parallel` says. The call waits for all of its kernels.
 *
 * After an error every cache holds the tokens it held before, and `out` may have been written in part. After a panic all kernels of the call answer
 * that.
 *
 * # Safety
 * `kernels` points to `sequences` kernels, each of which is NULL or comes from deltallm_kernel_new and has not been freed, and `tokens` to as many
 * numbers; both can be NULL if `sequences` is 0. The four buffers are as in deltallm_kernel_forward, with the tokens of all sequences. Nobody writes the
 * lists during the call, and `out` does not overlap them.
 */
DeltallmStatus deltallm_forward_batch(struct DeltallmKernel *const *kernels,
                                      const size_t *tokens,
                                      size_t sequences,
                                      const float *q,
                                      const float *k,
                                      const float *v,
                                      float *out);

/**
 * The same as deltallm_kernel_forward for numbers of 16 bits, of which the buffers have the bits: q, k, v and out are f16 or bf16, as
 * `half` says. Arithmetic and cache are those of the kernel, whatever the numbers are; results are rounded to the nearest.
 *
 * # Safety
 * As deltallm_kernel_forward.
 */
DeltallmStatus deltallm_kernel_forward_half(struct DeltallmKernel *kernel,
                                            DeltallmHalf half,
                                            size_t tokens,
                                            const uint16_t *q,
                                            const uint16_t *k,
                                            const uint16_t *v,
                                            uint16_t *out);

/**
 * The same as deltallm_kernel_attend for numbers of 16 bits.
 *
 * # Safety
 * As deltallm_kernel_forward.
 */
DeltallmStatus deltallm_kernel_attend_half(struct DeltallmKernel *kernel,
                                           DeltallmHalf half,
                                           size_t tokens,
                                           const uint16_t *q,
                                           uint16_t *out);

/**
 * The same as deltallm_kernel_forward_views for numbers of 16 bits.
 *
 * # Safety
 * As deltallm_kernel_forward_views.
 */
DeltallmStatus deltallm_kernel_forward_half_views(struct DeltallmKernel *kernel,
                                                  DeltallmHalf half,
                                                  size_t tokens,
                                                  const struct DeltallmHalfView *q,
                                                  const struct DeltallmHalfView *k,
                                                  const struct DeltallmHalfView *v,
                                                  const struct DeltallmHalfViewMut *out);

/**
 * Makes a kernel with the same tokens, which goes its own way from here: for several samples from one prompt. It shares what is cached, and the
 * budget, and copies what either of them changes. It is written to `*fork` and must be given back with deltallm_kernel_free. After an
 * error `*fork` is NULL.
 *
 * # Safety
 * `kernel` is NULL or has not been freed, and `fork` points to a pointer that can be written.
 */
DeltallmStatus deltallm_kernel_fork(const struct DeltallmKernel *kernel,
                                    struct DeltallmKernel **fork);

/**
 * Writes the cache to the file `path`, a name in UTF-8 that ends with a zero byte. It gets its name once it is whole: whatever happens
 * meanwhile, there is the old file of that name, or none.
 *
 * # Safety
 * `kernel` is NULL or has not been freed, and `path` points to a text that ends with a zero byte.
 */
DeltallmStatus deltallm_kernel_save(const struct DeltallmKernel *kernel,
                                    const char *path);

/**
 * Takes over the cache that was saved to the file `path`. The kernel must be empty, and have the configuration of the one that was saved; what
 * follows is what that one would have answered, bit for bit. After an error it is still empty.
 *
 * # Safety
 * `kernel` is NULL or comes from deltallm_kernel_new and has not been freed, and `path` points to a text that ends with a zero byte.
 */
DeltallmStatus deltallm_kernel_load(struct DeltallmKernel *kernel,
                                    const char *path);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* DELTALLM_H */
