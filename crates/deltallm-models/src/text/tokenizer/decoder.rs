//! The decoder of a tokenizer.json: what token strings stand for.

use serde_json::Value;

use super::TokenizerError;
use super::components::DECODER;

/// How token strings spell bytes, as the decoder tells.
#[derive(Clone, Copy)]
pub(super) struct Style {
    pub(super) byte_level: bool,
    pub(super) strips_space: bool,
}

impl Style {
    pub(super) fn of(decoder: &Value) -> Result<Self, TokenizerError> {
        let (mut byte_level, mut pieces, mut strips_space) = (false, false, false);
        for step in DECODER.steps(decoder)? {
            let kind = step["type"].as_str().unwrap_or_default();
            let (is_usual, expected) = match kind {
                "Replace" => {
                    (step["pattern"]["String"] == "▁" && step["content"] == " ", "`▁` replaced with a space")
                }
                "Strip" => {
                    let one_or_none = step["start"] == 0 || step["start"] == 1;
                    let is_usual = step["content"] == " " && one_or_none && step["stop"] == 0;
                    (is_usual, "at most one space stripped, from the start")
                }
                "Metaspace" => (step["replacement"] == "▁", "`▁` for spaces"),
                _ => (true, ""),
            };
            if !is_usual {
                return Err(DECODER.refuse(expected, step));
            }
            match kind {
                "ByteLevel" => byte_level = true,
                "Strip" => strips_space |= step["start"] == 1,
                "Metaspace" => {
                    pieces = true;
                    strips_space |= step["prepend_scheme"] != "never" && step["add_prefix_space"] != false;
                }
                "Fuse" => {}
                _ => pieces = true,
            }
        }
        match byte_level != pieces {
            true => Ok(Self { byte_level, strips_space }),
            false => Err(DECODER.refuse(
                "either ByteLevel or the steps of pieces",
                if byte_level { "both" } else { "neither" },
            )),
        }
    }
}
