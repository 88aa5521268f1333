//! The JSON form of a [`ThresholdPolicy`].

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::Error};

use crate::{CoreError, ModelFingerprint, TargetSparsity, ThresholdPolicy, ThresholdProfile};

/// `{"theta": 0.6}`, `{"target_sparsity": 0.3}` or `{"channels": [...]}`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Form {
    Theta(f32),
    TargetSparsity(f32),
    Channels(Vec<f32>),
}

impl TryFrom<Form> for ThresholdPolicy {
    type Error = CoreError;

    fn try_from(form: Form) -> Result<Self, CoreError> {
        Ok(match form {
            // Checked where they are used, which names the field.
            Form::Theta(theta) => Self::Uniform(theta),
            Form::TargetSparsity(share) => Self::TargetSparsity(TargetSparsity::new(share)),
            Form::Channels(thresholds) => {
                // Neither the model nor its heads are known here.
                let shape = [1, 1, thresholds.len()];
                Self::Profile(Arc::new(ThresholdProfile::new(ModelFingerprint(0), shape, thresholds)?))
            }
        })
    }
}

impl<'de> Deserialize<'de> for ThresholdPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Form::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

impl Serialize for ThresholdPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let form = match self {
            Self::Uniform(theta) => Form::Theta(*theta),
            Self::Profile(profile) => Form::Channels(profile.thresholds().to_vec()),
            Self::TargetSparsity(target) if target.profile().is_none() => {
                Form::TargetSparsity(target.zero_fraction())
            }
            Self::TargetSparsity(_) => {
                return Err(S::Error::custom(
                    "expected a target sparsity without a profile to start from, got one",
                ));
            }
        };
        form.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_read_back_what_they_write() {
        for text in [r#"{"theta":0.5}"#, r#"{"target_sparsity":0.25}"#, r#"{"channels":[0.5,0.0,2.0]}"#] {
            let policy: ThresholdPolicy = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&policy).unwrap(), text);
        }
    }

    #[test]
    fn what_has_no_json_form_is_refused_both_ways() {
        for bad in [
            r#"{"channels":[]}"#,
            r#"{"channels":[-1]}"#,
            r#"{"theta":1,"channels":[1]}"#,
            r#"{"beta":1}"#,
            "0.5",
        ] {
            assert!(serde_json::from_str::<ThresholdPolicy>(bad).is_err(), "{bad}");
        }
        let start = ThresholdProfile::new(ModelFingerprint(0), [1, 1, 1], vec![0.5]).unwrap();
        let target = TargetSparsity::new(0.5).from_profile(Arc::new(start));
        assert!(serde_json::to_string(&ThresholdPolicy::TargetSparsity(target)).is_err());
    }
}
