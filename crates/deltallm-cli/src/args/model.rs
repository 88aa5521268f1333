//! `--model` and `--linear`.

use std::path::{Path, PathBuf};

use deltallm::models::LinearForm;
use serde::Serialize;

use crate::LoadedModel;

/// Which model a program runs.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// GGUF file, folder with one, safetensors file, model directory or name of an embedded model [default: fairy-tales]
    #[arg(long, value_name = "FILE|DIR")]
    model: Option<PathBuf>,
    /// How quantised weights are held: packed (inputs of linear layers are rounded to 8 bits) or f32 (exact, slower, more memory)
    #[arg(long, value_enum, value_name = "FORM", default_value_t = LinearKind::Packed, hide_possible_values = true)]
    pub linear: LinearKind,
}

/// How quantised weights are held: the names of [`LinearForm`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinearKind {
    /// Packed.
    Packed,
    /// As `f32`.
    F32,
}

impl ModelArgs {
    /// The path, if one was given.
    pub fn path(&self) -> Option<&Path> {
        self.model.as_deref()
    }

    /// Opens the model.
    ///
    /// # Errors
    /// As [`LoadedModel::open`].
    pub fn open(&self) -> anyhow::Result<LoadedModel> {
        let form = match self.linear {
            LinearKind::Packed => LinearForm::Packed,
            LinearKind::F32 => LinearForm::F32,
        };
        LoadedModel::open_as(self.model.as_deref(), form)
    }
}
