//! Shapes of well-known models.

use std::str::FromStr;

use deltallm::AttentionShape;

/// Head counts with the name they were asked for by.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedShape {
    /// A model's name, or the numbers.
    pub name: String,
    /// Head counts.
    pub shape: AttentionShape,
}

/// Name, query heads, kv heads, head_dim.
const MODELS: [(&str, [usize; 3]); 3] =
    [("llama-3.2-1b", [32, 8, 64]), ("bitnet-2b4t", [20, 5, 128]), ("smollm2", [9, 3, 64])];

/// `llama-3.2-1b`, or heads, kv heads and head_dim: `32,8,64`.
impl FromStr for NamedShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = match MODELS.iter().find(|(name, _)| *name == text) {
            Some((_, numbers)) => numbers.to_vec(),
            None => text.split(',').map_while(|number| number.trim().parse().ok()).collect(),
        };
        let [heads, kv_heads, head_dim] = numbers[..] else {
            let names = MODELS.map(|(name, _)| name).join(", ");
            return Err(format!("expected {names}, or HEADS,KV_HEADS,HEAD_DIM"));
        };
        let shape = AttentionShape::new(heads, kv_heads, head_dim).map_err(|error| error.to_string())?;
        Ok(Self { name: text.to_owned(), shape })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_names_or_three_numbers() {
        let shape = |text: &str| text.parse::<NamedShape>().map(|named| named.shape);
        assert_eq!(shape("bitnet-2b4t"), Ok(AttentionShape::new(20, 5, 128).unwrap()));
        assert_eq!(shape("4, 2,8"), Ok(AttentionShape::new(4, 2, 8).unwrap()));
        for bad in ["", "gpt", "4,2", "4,2,8,1", "4,3,8", "0,0,0"] {
            assert!(shape(bad).is_err(), "{bad}");
        }
    }
}
