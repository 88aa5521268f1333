//! The rotations of a `config.json`.

use super::json_defaults::Defaults;
use super::json_fields::Fields;
use super::rope::yarn_attention_factor;
use super::sizes::checked_size;
use super::{Architecture, ConfigError, RopeConfig, RopeScaling};

/// What a file says beside its `rope_parameters`.
struct Beside {
    theta: Option<f32>,
    context_length: u64,
}

/// The rotation of all layers, and that of layers with a window where it is another. The classes of these families rotate all channels,
/// and `transformers` passes over a `partial_rotary_factor` that says otherwise: it is refused.
///
/// Older files have `rope_theta` beside `rope_scaling`, newer ones `rope_parameters` with both. Of a file that has it all,
/// `transformers` takes `rope_scaling`, and what stands within before what stands beside it.
pub(super) fn read_rope(
    fields: &mut Fields<'_>,
    architecture: Architecture,
    context_length: u64,
) -> Result<(RopeConfig, Option<RopeConfig>), ConfigError> {
    let default = Defaults::of(architecture).theta;
    fields.one("partial_rotary_factor")?;
    let beside = Beside { theta: fields.float("rope_theta")?, context_length };
    let old = fields.object("rope_scaling")?.filter(|object| !object.is_empty());
    let new = fields.object("rope_parameters")?;
    if architecture != Architecture::Gemma3 {
        return Ok((beside.read(old.or(new), default)?, None));
    }
    // Here `rope_parameters` has one object for each kind of layer, and older files a second base.
    let (mut global, mut local) = (None, None);
    if let Some(mut new) = new {
        global = new.object("full_attention")?;
        local = new.object("sliding_attention")?;
        new.refuse_others()?;
    }
    let local_theta = fields.float("rope_local_base_freq")?;
    let local_beside = Beside { theta: local_theta, context_length };
    let global = match (old, global) {
        (Some(_), Some(_)) => {
            return Err(fields.unsupported("rope_scaling", "nothing beside `rope_parameters`", "both"));
        }
        (old, global) => beside.read(old.or(global), default)?,
    };
    Ok((global, Some(local_beside.read(local, 10_000.0)?)))
}

impl Beside {
    fn read(&self, within: Option<Fields<'_>>, default_theta: f32) -> Result<RopeConfig, ConfigError> {
        let theta = self.theta.unwrap_or(default_theta);
        let Some(mut rope) = within else {
            return Ok(RopeConfig { theta, rotated_channels: None, scaling: RopeScaling::None });
        };
        rope.one("partial_rotary_factor")?;
        let theta = rope.float("rope_theta")?.unwrap_or(theta);
        let scaling = read_scaling(&mut rope, self.context_length)?;
        rope.refuse_others()?;
        Ok(RopeConfig { theta, rotated_channels: None, scaling })
    }
}

fn read_scaling(rope: &mut Fields<'_>, context_length: u64) -> Result<RopeScaling, ConfigError> {
    let (kind, old) = (rope.string("rope_type")?, rope.string("type")?);
    if let (Some(kind), Some(old)) = (kind, old)
        && kind != old
    {
        // Which of them counts differs between versions of transformers.
        return Err(rope.unsupported(
            "type",
            "the same as `rope_type`, or nothing",
            format!("`{old}` and `{kind}`"),
        ));
    }
    // Of the kinds that are supported, only llama3 and yarn look at it.
    let original_context = rope.integer("original_max_position_embeddings")?;
    match kind.or(old) {
        None | Some("default") => {
            rope.one("factor")?;
            Ok(RopeScaling::None)
        }
        Some("linear") => Ok(RopeScaling::Linear { factor: rope.required_float("factor")? }),
        Some("dynamic") => {
            // Beyond the context, where a model with this scaling ends.
            rope.required_float("factor")?;
            Ok(RopeScaling::Dynamic)
        }
        Some("yarn") => read_yarn(rope, original_context.unwrap_or(context_length)),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: rope.required_float("factor")?,
            low_freq_factor: rope.required_float("low_freq_factor")?,
            high_freq_factor: rope.required_float("high_freq_factor")?,
            original_context: checked_size(
                "RoPE original context",
                original_context.ok_or_else(|| ConfigError::Missing {
                    key: "original_max_position_embeddings".to_owned(),
                })?,
            )?,
        }),
        Some(got) => Err(ConfigError::RopeScaling { got: got.to_owned() }),
    }
}

fn read_yarn(rope: &mut Fields<'_>, original_context: u64) -> Result<RopeScaling, ConfigError> {
    let factor = rope.required_float("factor")?;
    let multipliers = (rope.float("mscale")?, rope.float("mscale_all_dim")?);
    let usual = match multipliers {
        (Some(one), Some(all)) if one != 0.0 && all != 0.0 => {
            yarn_attention_factor(factor, one) / yarn_attention_factor(factor, all)
        }
        _ => yarn_attention_factor(factor, 1.0),
    };
    // `transformers` takes 0 for nothing.
    let or = |value: Option<f32>, usual| value.filter(|&value| value != 0.0).unwrap_or(usual);
    Ok(RopeScaling::Yarn {
        factor,
        original_context: checked_size("RoPE original context", original_context)?,
        beta_fast: or(rope.float("beta_fast")?, 32.0),
        beta_slow: or(rope.float("beta_slow")?, 1.0),
        attention_factor: rope.float("attention_factor")?.unwrap_or(usual),
        truncate: rope.boolean("truncate")?.unwrap_or(true),
    })
}
