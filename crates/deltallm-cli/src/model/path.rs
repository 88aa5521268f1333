//! Which file of a folder is meant.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// The GGUF file in a folder that holds one and no safetensors files, or the first part of one in parts; any other path as it is.
///
/// # Errors
/// For a folder with several, which it lists.
pub(super) fn in_folder(path: &Path) -> anyhow::Result<Cow<'_, Path>> {
    let Ok(entries) = std::fs::read_dir(path) else { return Ok(path.into()) };
    let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let with = |extension: &str| {
        let is = |file: &&PathBuf| file.extension().is_some_and(|it| it.eq_ignore_ascii_case(extension));
        let mut files: Vec<PathBuf> = files.iter().filter(is).cloned().collect();
        files.sort();
        files
    };
    if !with("safetensors").is_empty() {
        return Ok(path.into());
    }
    let mut files = with("gguf");
    files.retain(|file| !is_later_part(file));
    match <[PathBuf; 1]>::try_from(files) {
        Ok([file]) => Ok(file.into()),
        Err(none) if none.is_empty() => Ok(path.into()),
        Err(several) => {
            let names: Vec<_> =
                several.iter().filter_map(|file| file.file_name()?.to_str()).map(str::to_owned).collect();
            anyhow::bail!(
                "--model {}: expected a folder with one GGUF file, got {}: {}; name one of them",
                path.display(),
                several.len(),
                names.join(", ")
            )
        }
    }
}

/// Whether a file is a part of a split model, `NAME-00002-of-00003.gguf`, and not the first.
fn is_later_part(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut words = stem.rsplitn(4, '-');
    let (count, of, no) = (words.next(), words.next(), words.next());
    let number = |word: Option<&str>| word.filter(|word| word.len() == 5)?.parse::<u32>().ok();
    of == Some("of") && number(count).is_some() && number(no).is_some_and(|no| no > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_of_a_folder_is_taken_and_several_are_listed() {
        let folder = std::env::temp_dir().join(format!("deltallm-folder-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = |name: &str| std::fs::write(folder.join(name), b"").unwrap();
        assert_eq!(in_folder(&folder).unwrap(), folder);
        file("README.md");
        file("b.gguf");
        assert_eq!(in_folder(&folder).unwrap(), folder.join("b.gguf"));
        file("a.GGUF");
        let error = in_folder(&folder).unwrap_err().to_string();
        assert!(error.contains("one GGUF file, got 2: a.GGUF, b.gguf; name one of them"), "{error}");
        std::fs::remove_file(folder.join("a.GGUF")).unwrap();
        file("b-00002-of-00002.gguf");
        assert_eq!(in_folder(&folder).unwrap(), folder.join("b.gguf"));
        std::fs::rename(folder.join("b.gguf"), folder.join("b-00001-of-00002.gguf")).unwrap();
        assert_eq!(in_folder(&folder).unwrap(), folder.join("b-00001-of-00002.gguf"));
        file("model.safetensors");
        assert_eq!(in_folder(&folder).unwrap(), folder);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(in_folder(&folder).unwrap(), folder);
    }
}
