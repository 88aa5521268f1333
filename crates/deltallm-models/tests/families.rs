//! The graph of every family against `transformers`: small random models, made by `tools/goldens/families.py`.
//!
//! The texts go beyond every window and over the ends of pages of 16 and 64 tokens.

mod common;

use common::{
    files::{directory, fixture},
    models::{argmax, dense_kernels, harmless_kernels, load_model},
};
use deltallm_attn::{AttentionKernel, KernelKind, KernelSpec, KvStore, Mask};
use deltallm_models::{LogitRows, Model, ModelError, ModelFile, Session};
use ndarray::{Array2, Axis};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value as Json;

#[derive(Deserialize)]
struct Golden {
    tokens: Vec<u32>,
    /// Where the logits stand.
    positions: Vec<usize>,
    /// `[positions, vocab_size]`.
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
}

/// The cases, and whether they have a GGUF file too.
const CASES: [(&str, bool); 9] = [
    ("mistral/window", true),
    ("qwen2/untied", true),
    ("qwen2/window", false),
    ("qwen3/d32", true),
    ("qwen3/yarn", true),
    ("smollm3/every-fourth", true),
    ("smollm3/listed", false),
    ("gemma3/every-sixth", true),
    ("gemma3/listed", false),
];

fn golden(case: &str) -> Golden {
    let path = fixture(case).join("golden.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The model of a case from each of its files.
fn models() -> impl Iterator<Item = (String, Model, Golden)> {
    let files = CASES.into_iter().flat_map(|(case, has_gguf)| {
        let gguf = has_gguf.then(|| (format!("{case}/model.gguf"), case));
        std::iter::once((case.to_owned(), case)).chain(gguf)
    });
    files.map(|(file, case)| {
        let model = load_model(ModelFile::open(fixture(&file)).unwrap()).unwrap();
        (file, model, golden(case))
    })
}

/// How far logits `[tokens, vocab_size]` are off at most, as a share of the largest.
fn off(golden: &Golden, logits: &Array2<f32>) -> f32 {
    let largest = golden.logits.iter().flatten().fold(0.0_f32, |most, x| most.max(x.abs()));
    let rows = golden.positions.iter().zip(&golden.logits);
    let offs = rows.flat_map(|(&row, expected)| {
        let row = logits.row(row).to_vec();
        row.into_iter().zip(expected).map(|(got, expected)| (got - expected).abs())
    });
    offs.fold(0.0, f32::max) / largest
}

/// The logits of all tokens, which the model is given in parts.
fn logits_in_parts(
    model: &Model,
    kernels: &mut [Box<dyn AttentionKernel>],
    tokens: &[u32],
    part: usize,
) -> Array2<f32> {
    let mut logits = Array2::zeros((0, model.config().vocab_size));
    for tokens in tokens.chunks(part) {
        let part = model.forward(tokens, kernels, LogitRows::All).unwrap();
        logits.append(Axis(0), part.view()).unwrap();
    }
    logits
}

#[test]
fn every_family_equals_transformers_in_both_formats() {
    for (file, model, golden) in models() {
        let mut kernels = dense_kernels(&model);
        let logits = model.forward(&golden.tokens, &mut kernels, LogitRows::All).unwrap();
        let off = off(&golden, &logits);
        println!("{file}: logits off by {off:.1e} of the largest");
        assert!(off <= 1e-4, "{file}: {off}");
        let mut next = argmax(logits.row(golden.tokens.len() - 1));
        for expected in &golden.greedy {
            assert_eq!(next, *expected, "{file}");
            next = argmax(model.forward(&[next], &mut kernels, LogitRows::Last).unwrap().row(0));
        }
    }
}

#[test]
fn parts_of_a_text_give_the_logits_of_the_whole() {
    for (file, model, golden) in models() {
        for part in [1, 7, 16, 63, 64, 65, 127] {
            let logits = logits_in_parts(&model, &mut dense_kernels(&model), &golden.tokens, part);
            let off = off(&golden, &logits);
            assert!(off <= 1e-4, "{file} in parts of {part}: {off}");
        }
    }
}

#[test]
fn kernels_that_approximate_nothing_leave_the_logits_alone() {
    for (file, model, golden) in models() {
        for part in [1, 50, golden.tokens.len()] {
            for mut kernels in harmless_kernels(&model) {
                let off = off(&golden, &logits_in_parts(&model, &mut kernels, &golden.tokens, part));
                assert!(off <= 1e-4, "{file} in parts of {part}: {off}");
            }
        }
    }
}

#[test]
fn sessions_attend_with_the_masks_of_their_model() {
    for (file, model, golden) in models() {
        let spec = KernelSpec::default().kernel(KernelKind::Dense).store(KvStore::F32);
        let mut session = Session::with_spec(model, &spec).unwrap();
        session.set_chunk(50);
        let mut logits = Array2::zeros((0, session.model().config().vocab_size));
        session.score(&golden.tokens, |_, part| logits.append(Axis(0), part.view()).unwrap()).unwrap();
        assert!(off(&golden, &logits) <= 1e-4, "{file}");
    }
}

#[test]
fn both_formats_of_a_model_have_one_fingerprint_and_the_same_masks() {
    for (case, _) in CASES.into_iter().filter(|(_, has_gguf)| *has_gguf) {
        let config = |file: String| ModelFile::open(fixture(&file)).unwrap().config().unwrap();
        let (json, gguf) = (config(case.to_owned()), config(format!("{case}/model.gguf")));
        assert_eq!(json.fingerprint(), gguf.fingerprint(), "{case}");
        let masks = |config: &deltallm_models::ModelConfig| {
            (0..config.layers).map(|l| config.mask(l)).collect::<Vec<_>>()
        };
        assert_eq!(masks(&json), masks(&gguf), "{case}");
    }
}

#[test]
fn layers_have_the_masks_that_the_files_say() {
    let windows = |case: &str| {
        let config = ModelFile::open(fixture(case)).unwrap().config().unwrap();
        let window = |layer| match config.mask(layer) {
            Mask::SlidingWindow(tokens) => tokens,
            _ => 0,
        };
        (0..config.layers).map(window).collect::<Vec<_>>()
    };
    assert_eq!(windows("mistral/window"), [20, 20]);
    assert_eq!(windows("qwen2/untied"), [0, 0]);
    assert_eq!(windows("qwen2/window"), [0, 24, 24]);
    assert_eq!(windows("smollm3/every-fourth"), [0; 4]);
    assert_eq!(windows("smollm3/listed"), [20, 0, 0]);
    assert_eq!(windows("gemma3/every-sixth"), [24, 24, 24, 24, 24, 0]);
    assert_eq!(windows("gemma3/listed"), [0, 20, 0]);
}

/// A window that is off by one token shows.
#[test]
fn a_window_of_one_token_more_or_less_is_another_model() {
    let golden = golden("mistral/window");
    for wrong in [19, 21] {
        let text = std::fs::read_to_string(fixture("mistral/window").join("config.json")).unwrap();
        let folder = directory(&format!("window-{wrong}"));
        let text = text.replace("\"sliding_window\": 20", &format!("\"sliding_window\": {wrong}"));
        std::fs::write(folder.join("config.json"), text).unwrap();
        let weights = fixture("mistral/window").join("model.safetensors");
        std::fs::copy(weights, folder.join("model.safetensors")).unwrap();
        let model = load_model(ModelFile::open(&folder).unwrap()).unwrap();
        let logits = model.forward(&golden.tokens, &mut dense_kernels(&model), LogitRows::All).unwrap();
        assert!(off(&golden, &logits) > 1e-2, "{wrong}");
    }
}

/// Newer and older files of a model that sees images hold the one that reads text under other names.
#[test]
fn the_text_part_of_a_model_that_sees_images_is_the_model_alone() {
    let (case, golden) = ("gemma3/every-sixth", golden("gemma3/every-sixth"));
    let text: Json =
        serde_json::from_slice(&std::fs::read(fixture(case).join("config.json")).unwrap()).unwrap();
    let bytes = std::fs::read(fixture(case).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for (newer, extra) in [(true, None), (false, None), (false, Some("audio_tower.weight"))] {
        let folder = directory(&format!("sees-images-{newer}-{}", extra.is_some()));
        let mut text = text.clone();
        text.as_object_mut().unwrap().remove("architectures");
        let config = serde_json::json!({
            "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text,
            "vision_config": {"hidden_size": 32, "model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4,
            "boi_token_index": 5, "eoi_token_index": 6, "image_token_index": 7, "initializer_range": 0.02,
        });
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let name = |name: &str| match newer {
            true => name.replacen("model.", "model.language_model.", 1),
            false => format!("language_model.{name}"),
        };
        let mut named: Vec<_> = tensors.iter().map(|(tensor, view)| (name(tensor), view)).collect();
        let norm = tensors.tensor("model.norm.weight").unwrap();
        named.push(("vision_tower.vision_model.post_layernorm.weight".to_owned(), norm.clone()));
        named.push(("multi_modal_projector.mm_soft_emb_norm.weight".to_owned(), norm.clone()));
        named.extend(extra.map(|name| (name.to_owned(), norm)));
        let file = safetensors::serialize(named, None).unwrap();
        std::fs::write(folder.join("model.safetensors"), file).unwrap();
        let model = ModelFile::open(&folder).and_then(load_model);
        if let Some(extra) = extra {
            let error = model.unwrap_err();
            assert!(matches!(&error, ModelError::UnknownTensor { tensor, .. } if tensor == extra), "{error}");
            continue;
        }
        let model = model.unwrap();
        let logits = model.forward(&golden.tokens, &mut dense_kernels(&model), LogitRows::All).unwrap();
        assert!(off(&golden, &logits) <= 1e-4);
    }
}
