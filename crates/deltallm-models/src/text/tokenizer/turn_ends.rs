//! Tokens that end an answer, known by their text: few files say which they are.

/// Ends of turns, answers and texts in the chat formats that llama.cpp knows.
pub(super) const END_OF_TURN: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<|end|>",
    "</s>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "<end_of_utterance>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<｜end▁of▁sentence｜>",
];

/// Where llama.cpp stops too: padding and ends of files between pieces of code.
pub(super) const END_OF_CODE: &[&str] = &[
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Whether `<|end|>` ends a message and not the turn: in formats with calls of tools (of gpt-oss and Solar), where the turn ends with
/// `<|return|>` or `<|flush|>`.
pub(super) fn end_is_of_message(has: impl Fn(&str) -> bool) -> bool {
    let call = has("<|call|>") || has("<|calls|>");
    call && (has("<|return|>") || has("<|flush|>"))
}
