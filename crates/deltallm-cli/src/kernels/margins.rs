//! Margins of value skipping, as they are printed.

use deltallm::SkipMargin;

/// `0.6ln+0.5`, or `4..6 by layer` where the layers of a model differ; `None` if none skips.
pub fn describe_margins(margins: impl IntoIterator<Item = SkipMargin>) -> Option<String> {
    let mut margins: Vec<String> = margins.into_iter().map(|margin| margin.to_string()).collect();
    margins.sort_unstable();
    margins.dedup();
    Some(match &margins[..] {
        [] => return None,
        [margin] => margin.clone(),
        [first, .., last] => format!("{first}..{last} by layer"),
    })
}
