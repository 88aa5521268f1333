//! Which layers of a `config.json` attend within a window, and which rotate nothing, as the family's class in `transformers`
//! reads them.

use super::json_defaults::Defaults;
use super::json_fields::Fields;
use super::{Architecture, ConfigError, LayerSet};

/// Layers that are not rotated.
pub(super) fn read_unrotated(
    fields: &mut Fields<'_>,
    architecture: Architecture,
    layers: u64,
) -> Result<LayerSet, ConfigError> {
    if architecture != Architecture::SmolLM3 {
        return Ok(LayerSet::Empty);
    }
    let interval = fields.integer("no_rope_layer_interval")?.unwrap_or(4);
    let Some(rotated) = fields.array("no_rope_layers")? else {
        return period(fields, "no_rope_layer_interval", interval).map(LayerSet::Every);
    };
    check_length(fields, "no_rope_layers", rotated.len(), layers)?;
    let unrotated = rotated.iter().map(|rotated| match rotated.as_u64() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(fields.unsupported("no_rope_layers", "1 for layers that are rotated, else 0", rotated)),
    });
    unrotated.collect::<Result<_, _>>().map(LayerSet::Listed)
}

/// The tokens that windows reach back to, and the layers that have one.
pub(super) fn read_windows(
    fields: &mut Fields<'_>,
    architecture: Architecture,
    layers: u64,
    unrotated: &LayerSet,
) -> Result<(Option<u64>, LayerSet), ConfigError> {
    let default = Defaults::of(architecture).window.filter(|_| !fields.has("sliding_window"));
    let window = fields.integer("sliding_window")?.or(default);
    let switch = fields.boolean("use_sliding_window")?;
    let is_on = switch.unwrap_or(!architecture.windows_are_switched_on());
    let always_on = architecture.has_windows() && !architecture.windows_are_switched_on();
    if always_on && !is_on && window.is_some() {
        // Their classes do not know the switch.
        let expected = "true, or no `sliding_window`";
        return Err(fields.unsupported("use_sliding_window", expected, false));
    }
    let window = window.filter(|&tokens| is_on && tokens > 0);
    let by_rule = match architecture {
        Architecture::Qwen2 | Architecture::Qwen3 => {
            LayerSet::From(fields.integer("max_window_layers")?.unwrap_or(28) as usize)
        }
        Architecture::SmolLM3 => unrotated.clone(),
        Architecture::Gemma3 => {
            let interval = fields.integer("sliding_window_pattern")?.unwrap_or(6);
            LayerSet::AllButEvery(period(fields, "sliding_window_pattern", interval)?)
        }
        _ => LayerSet::All,
    };
    let listed = read_types(fields, architecture, window)?;
    let layers = match listed {
        _ if window.is_none() => LayerSet::Empty,
        Some(listed) if architecture.lists_windows() => {
            check_length(fields, "layer_types", listed.len(), layers)?;
            LayerSet::Listed(listed)
        }
        _ => by_rule,
    };
    if window.is_none() && architecture == Architecture::Gemma3 {
        return Err(ConfigError::Missing { key: "sliding_window".to_owned() });
    }
    Ok((window, layers))
}

/// Of each layer that `layer_types` lists, whether it attends within the window.
fn read_types(
    fields: &mut Fields<'_>,
    architecture: Architecture,
    window: Option<u64>,
) -> Result<Option<Vec<bool>>, ConfigError> {
    let Some(types) = fields.array("layer_types")? else { return Ok(None) };
    // Its class gives every layer the window, whatever they say.
    let all_have_one = architecture == Architecture::Mistral && window.is_some();
    let listed = types.iter().map(|kind| match kind.as_str() {
        Some("full_attention") if !all_have_one => Ok(false),
        Some("sliding_attention") if window.is_some() => Ok(true),
        _ => {
            let expected = "`full_attention`, or `sliding_attention` with a window";
            Err(fields.unsupported("layer_types", expected, kind))
        }
    });
    listed.collect::<Result<_, _>>().map(Some)
}

fn period(fields: &Fields<'_>, name: &str, got: u64) -> Result<usize, ConfigError> {
    usize::try_from(got).ok().filter(|&got| got > 0).ok_or_else(|| fields.unsupported(name, "1 or more", got))
}

fn check_length(fields: &Fields<'_>, name: &str, got: usize, layers: u64) -> Result<(), ConfigError> {
    if got as u64 == layers {
        return Ok(());
    }
    Err(fields.unsupported(name, "one entry for each layer", format!("{got} for {layers} layers")))
}
