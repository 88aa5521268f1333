//! Constants that were fitted by measuring, each with the machine and the day. Whoever measures again on another machine changes
//! them here.
//!
//! *Xeon* is an Intel Xeon with AVX-512 and AMX (Sapphire Rapids; L1 48 KiB, L2 2 MiB), *EPYC* an AMD EPYC of the Zen 4 generation
//! (L1 32 KiB, L2 1 MiB), both virtual machines with two cores. What the measurements were is in `docs/results`.
//!
//! Most constants change the time and nothing else. Those that change the order of sums, and with it the last bits of results, say
//! so: they are the same on every machine, for the same inputs must give the same bits.

// Attention: prompts.

/// Keys whose scores are computed before they are tested: few enough that their scores are still in the L1 cache then, and a multiple
/// of the rows of every tile of the product. EPYC, 23 November 2026.
pub const TESTED_KEYS: usize = 24;

/// Keys whose values are added together, if there are as many: the sums are read and written once for all of them. With as many as
/// come of one block of 64 more they are still about a block. Changes the order of sums. EPYC, 23 November 2026.
pub const ENOUGH_VALUES: usize = 40;

/// With fewer tokens than this, handing them to other threads costs more than coding them. Xeon, 22 November 2026.
pub const LEAST_CODED_TOKENS: usize = 64;

/// With fewer tokens than this, handing them to other threads costs more than storing them uncoded. EPYC, 23 November 2026.
pub const LEAST_STORED_TOKENS: usize = 256;

/// Keys that are brought at a time into the form in which tiles read them: what that takes does not grow with the history. With 4096 a
/// call of 8000 tokens took 7 % longer, because a tile codes its queries for each round. Changes the
/// order of sums. EPYC, 29 November 2026.
pub const PREPARED_KEYS: usize = 8192;

// Attention: single tokens.

/// Multiplications by keys and values that one thread does at a stretch: 1024 keys of 64 channels with 3 query heads to a kv head (Xeon, 22
/// November 2026), 256 keys of 128 channels with 6. With 1024 of the latter one thread waited for the other, and a token of Qwen 1.5B behind
/// 4096 took 4 to 15 % longer (EPYC, 30 November 2026). Changes the order of sums.
pub const DECODE_CHUNK: usize = 1024 * 384;

/// Multiplications by keys and values below which waking other threads costs more than they bring. Xeon, 22 November 2026.
pub const LEAST_DECODED: usize = 4096 * 384;

/// Bytes of a block that may be asked for into the L1 cache; more goes into the L2 cache. EPYC, 23 November 2026.
pub const NEAR_BYTES: usize = 4096;

// Linear layers.

/// Multiplications of a thread's share that are worth its hand-over. Xeon, 23 November 2026.
pub const LEAST_WORK: usize = 1 << 17;

/// Pages that weights are asked for in turn from, where that is the faster [order](crate::weight_order). A loop that only reads took 10
/// GB/s in order, 12 to 14 with 4 pages, 13 to 15 with 8. Xeon, 23 November 2026.
pub const PAGES_IN_TURN: usize = 8;

/// Tokens that try each order of asking for weights: the shortest of so many passes is one that nothing disturbed. Xeon, 28 November
/// 2026.
pub const ORDER_TRIALS: usize = 8;

/// Numbers that are worth sharing among threads in an operation that reads and writes each once. Xeon, 23 November 2026.
pub const LEAST_NUMBERS: usize = 1 << 16;

/// Numbers of a thread's share in the gate of a feed-forward layer. Xeon, 23 November 2026.
pub const GATE_PART: usize = 1 << 14;

/// Tokens of a call whose products are so short that threads should spin until the next one. EPYC, 23 November 2026.
pub const SPIN_TOKENS: usize = 16;

/// Calls without spinning once a thread has lost its core. SmolLM2-135M on two threads, beside one busy thread of another program: 92 to 113
/// tokens/s with spinning, 104 to 177 without, 170 to 182 with pauses of 2000 calls, 134 to 166 with pauses of 100. Alone spinning brings
/// 5 to 11 %. EPYC, 30 November 2026.
pub const SPIN_PAUSE: usize = 2000;

/// Tokens that go through a quantised feed-forward layer together: `gate` and `up` of so many stay in the L2 cache. Xeon, 23 November
/// 2026.
pub const MLP_TOKENS: usize = 128;

/// Tokens whose sums of a panel of quantised weights stay in the L1 cache beside the codes of a block. Xeon, 23 November 2026.
pub const QUANTISED_BATCH: usize = 64;

/// Tokens that are worth unpacking ternary weights for. Xeon, 23 November 2026.
pub const LEAST_UNPACKED_TOKENS: usize = 4;

/// Up to so many tokens rows of 16-bit floats are converted for every few tokens anew; beyond, once, and multiplied as f32. Changes the
/// order of sums. Xeon, 23 November 2026.
pub const HALF_TOKENS: usize = 32;

/// Rows of 16-bit floats of a task: with up to [`HALF_TOKENS`] tokens, and with more. Xeon, 23 November 2026.
pub const HALF_ROWS: [usize; 2] = [64, 256];
