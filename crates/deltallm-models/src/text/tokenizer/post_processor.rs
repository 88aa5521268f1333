//! The post-processor of a tokenizer.json: tokens that stand before and after every text.

use serde_json::Value;

use super::TokenizerError;
use super::components::POST_PROCESSOR;

/// What a post-processor may put beside a text, in tokens. Published ones put one or two.
const MAX_SURROUNDINGS: usize = 64;

/// What the post-processor puts before and after a text.
pub(super) fn surroundings(post_processor: &Value) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    let mut steps = POST_PROCESSOR.steps(post_processor)?;
    // It only changes where tokens are said to stand in the text.
    steps.retain(|step| step["type"] != "ByteLevel");
    let step = match steps[..] {
        [] => return Ok(Default::default()),
        [step] => step,
        _ => return Err(POST_PROCESSOR.refuse("one step that puts tokens around a text", "several")),
    };
    match step["type"].as_str() {
        Some("TemplateProcessing") => around_template(step),
        _ => Ok((vec![id_in(&step["cls"][1])?], vec![id_in(&step["sep"][1])?])),
    }
}

/// What stands around the text in the template `single`; `pair` is never used.
fn around_template(step: &Value) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    let (mut before, mut after, mut texts) = (Vec::new(), Vec::new(), 0);
    for piece in step["single"].as_array().into_iter().flatten() {
        if let Some(name) = piece["SpecialToken"]["id"].as_str() {
            let Some(ids) = step["special_tokens"][name]["ids"].as_array() else {
                let expected = "a template whose special tokens all stand in `special_tokens`";
                return Err(POST_PROCESSOR.refuse(expected, format_args!("`{name}`, which does not")));
            };
            let side = if texts == 0 { &mut before } else { &mut after };
            if side.len() + ids.len() > MAX_SURROUNDINGS {
                return Err(POST_PROCESSOR.refuse("at most 64 tokens beside a text", "more"));
            }
            for id in ids {
                side.push(id_in(id)?);
            }
        } else if piece["Sequence"]["id"] == "A" {
            texts += 1;
        } else {
            return Err(POST_PROCESSOR.refuse("special tokens and the sequence A in `single`", piece));
        }
    }
    match texts {
        1 => Ok((before, after)),
        got => Err(POST_PROCESSOR.refuse("the sequence A once in `single`", got)),
    }
}

fn id_in(value: &Value) -> Result<u32, TokenizerError> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| POST_PROCESSOR.refuse("the ids of tokens", value))
}
