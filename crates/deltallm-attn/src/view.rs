//! Borrowed q, k, v and out: a slice with strides, for engines that do not use ndarray.

use std::ops::Range;

use deltallm_core::ElementType;
use deltallm_simd::{Isa, dispatch};

use crate::AttentionError;

/// Strides of `[tokens, heads, head_dim]` data whose channels are adjacent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    tokens: usize,
    heads: usize,
    head_dim: usize,
    token_stride: usize,
    head_stride: usize,
}

impl Layout {
    fn token_major(tokens: usize, heads: usize, head_dim: usize) -> Self {
        Self { tokens, heads, head_dim, token_stride: heads.saturating_mul(head_dim), head_stride: head_dim }
    }

    /// Elements a slice must have; saturates instead of wrapping around.
    fn span(&self) -> usize {
        if self.tokens == 0 || self.heads == 0 {
            return 0;
        }
        (self.tokens - 1)
            .saturating_mul(self.token_stride)
            .saturating_add((self.heads - 1).saturating_mul(self.head_stride))
            .saturating_add(self.head_dim)
    }

    fn check(&self, input: &'static str, len: usize) -> Result<(), AttentionError> {
        let expected = self.span();
        // Else a short slice could stand for any number of tokens.
        if self.token_stride == 0 && self.tokens > 1 && expected > 0 {
            return Err(AttentionError::Shape {
                input,
                dimension: "token stride (at least)",
                expected: 1,
                got: 0,
            });
        }
        if len < expected {
            return Err(AttentionError::SliceTooShort { input, expected, got: len });
        }
        Ok(())
    }

    /// Checks that no two rows share an element: the smaller stride steps over a row, the larger one over all of the smaller.
    fn check_apart(&self, input: &'static str) -> Result<(), AttentionError> {
        let tokens = ("token stride (at least)", self.token_stride, self.tokens);
        let heads = ("head stride (at least)", self.head_stride, self.heads);
        let mut strides = [tokens, heads];
        // An axis of one step never moves.
        strides.sort_by_key(|(_, stride, steps)| if *steps > 1 { *stride } else { 0 });
        let mut expected = self.head_dim;
        for (dimension, got, steps) in strides {
            if steps > 1 && self.span() > 0 {
                if got < expected {
                    return Err(AttentionError::Shape { input, dimension, expected, got });
                }
                expected = got.saturating_mul(steps - 1).saturating_add(expected);
            }
        }
        Ok(())
    }

    fn start(&self, token: usize, head: usize) -> usize {
        token * self.token_stride + head * self.head_stride
    }

    /// The elements of one head of one token; none if there is no such token or head.
    fn row(&self, token: usize, head: usize) -> Range<usize> {
        if token >= self.tokens || head >= self.heads {
            return 0..0;
        }
        let start = self.start(token, head);
        start..start + self.head_dim
    }

    /// The layout of some of the tokens, and the elements of the slice that are theirs.
    fn slice(&self, tokens: Range<usize>) -> Result<(Self, Range<usize>), AttentionError> {
        for (dimension, expected, got) in
            [("end of the range", self.tokens, tokens.end), ("start of the range", tokens.end, tokens.start)]
        {
            if got > expected {
                return Err(AttentionError::Shape { input: "view", dimension, expected, got });
            }
        }
        let part = Self { tokens: tokens.len(), ..*self };
        let span = part.span();
        let start = if span == 0 { 0 } else { self.start(tokens.start, 0) };
        Ok((part, start..start + span))
    }
}

/// Numbers of shape `[tokens, heads, head_dim]` in a slice with strides: f32, or f16 and bf16 for [`forward_half`](crate::forward_half).
///
/// ```
/// use deltallm_attn::HeadsView;
///
/// let fused = [0.0_f32; 2 * 12]; // two tokens of q (2 heads), k (1 head) and v (1 head), head_dim 3
/// let q = HeadsView::strided(&fused, [2, 2, 3], 12, 3)?;
/// let k = HeadsView::strided(&fused[6..], [2, 1, 3], 12, 3)?;
/// assert_eq!((q.tokens(), k.heads()), (2, 1));
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug)]
pub struct HeadsView<'a, T = f32> {
    data: &'a [T],
    layout: Layout,
}

impl<T> Clone for HeadsView<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for HeadsView<'_, T> {}

impl<'a, T> HeadsView<'a, T> {
    /// Contiguous data: token after token, head after head.
    ///
    /// # Errors
    /// [`AttentionError::SliceTooShort`].
    pub fn new(data: &'a [T], [tokens, heads, head_dim]: [usize; 3]) -> Result<Self, AttentionError> {
        let layout = Layout::token_major(tokens, heads, head_dim);
        layout.check("view", data.len())?;
        Ok(Self { data, layout })
    }

    /// Data in which token `t`, head `h` starts at `t * token_stride + h * head_stride`, its channels adjacent.
    ///
    /// # Errors
    /// [`AttentionError::SliceTooShort`]; [`AttentionError::Shape`] for several tokens at the same place.
    pub fn strided(
        data: &'a [T],
        [tokens, heads, head_dim]: [usize; 3],
        token_stride: usize,
        head_stride: usize,
    ) -> Result<Self, AttentionError> {
        let layout = Layout { tokens, heads, head_dim, token_stride, head_stride };
        layout.check("view", data.len())?;
        Ok(Self { data, layout })
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.layout.tokens
    }

    /// Heads.
    pub fn heads(&self) -> usize {
        self.layout.heads
    }

    /// Channels of a head.
    pub fn head_dim(&self) -> usize {
        self.layout.head_dim
    }

    /// The channels of one head of one token, `[head_dim]`; nothing if there is no such token or head.
    pub fn row(&self, token: usize, head: usize) -> &'a [T] {
        &self.data[self.layout.row(token, head)]
    }

    /// Some of the tokens.
    ///
    /// ```
    /// use deltallm_attn::HeadsView;
    ///
    /// let data: Vec<f32> = (0..12).map(|x| x as f32).collect();
    /// let last = HeadsView::new(&data, [3, 2, 2])?.slice(2..3)?;
    /// assert_eq!((last.tokens(), last.row(0, 1)), (1, &[10.0, 11.0][..]));
    /// # Ok::<(), deltallm_attn::AttentionError>(())
    /// ```
    ///
    /// # Errors
    /// [`AttentionError::Shape`] for a range that is not within the tokens.
    pub fn slice(&self, tokens: Range<usize>) -> Result<Self, AttentionError> {
        let (layout, elements) = self.layout.slice(tokens)?;
        Ok(Self { data: &self.data[elements], layout })
    }

    /// Checks that no two rows share a number.
    pub(crate) fn check_apart(&self, input: &'static str) -> Result<(), AttentionError> {
        self.layout.check_apart(input)
    }
}

impl<'a> HeadsView<'a> {
    /// One head from token `token` on: rows that start `stride` elements apart, and this `stride`.
    pub(crate) fn rows_from(&self, token: usize, head: usize) -> (&'a [f32], usize) {
        (&self.data[self.layout.start(token, head)..], self.layout.token_stride)
    }

    /// Checks the shape, and that every number is finite and fits `element`; `input` names the argument in errors.
    pub(crate) fn check(
        &self,
        input: &'static str,
        [tokens, heads, head_dim]: [usize; 3],
        element: ElementType,
    ) -> Result<(), AttentionError> {
        check_shape(input, &self.layout, tokens, heads, head_dim)?;
        let Some([token, head]) = dispatch!(Isa::best(), _simd => self.first_beyond(element)) else {
            return Ok(());
        };
        let row = self.row(token, head);
        if let Some(channel) = row.iter().position(|x| !x.is_finite()) {
            return Err(AttentionError::NotFinite { input, token, head, channel, got: row[channel] });
        }
        Ok(element.check(row)?)
    }

    /// Token and head of the first row with a number that `element` does not hold.
    #[inline(always)]
    fn first_beyond(&self, element: ElementType) -> Option<[usize; 2]> {
        let Layout { tokens, heads, .. } = self.layout;
        let mut rows = (0..tokens).flat_map(|token| (0..heads).map(move |head| [token, head]));
        rows.find(|[token, head]| !element.holds(self.row(*token, *head)))
    }
}

/// Where attention writes its result: `[tokens, heads, head_dim]` in a mutable slice with strides.
///
/// ```
/// use deltallm_attn::HeadsViewMut;
///
/// let mut out = vec![0.0; 2 * 3 * 4];
/// let mut view = HeadsViewMut::new(&mut out, [2, 3, 4])?; // 2 tokens, 3 heads, 4 channels
/// view.row_mut(1, 0).fill(1.0);
/// assert_eq!(out[12..16], [1.0; 4]);
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug)]
pub struct HeadsViewMut<'a, T = f32> {
    data: &'a mut [T],
    layout: Layout,
}

impl<'a, T> HeadsViewMut<'a, T> {
    /// Contiguous data: token after token, head after head.
    ///
    /// # Errors
    /// [`AttentionError::SliceTooShort`].
    pub fn new(data: &'a mut [T], [tokens, heads, head_dim]: [usize; 3]) -> Result<Self, AttentionError> {
        let layout = Layout::token_major(tokens, heads, head_dim);
        layout.check("view", data.len())?;
        Ok(Self { data, layout })
    }

    /// Data in which token `t`, head `h` starts at `t * token_stride + h * head_stride`, its channels adjacent.
    ///
    /// # Errors
    /// [`AttentionError::SliceTooShort`]; [`AttentionError::Shape`] for rows that overlap: one result would overwrite another.
    ///
    /// ```
    /// use deltallm_attn::HeadsViewMut;
    ///
    /// let mut out = vec![0.0; 4 * 4 * 16];
    /// assert!(HeadsViewMut::strided(&mut out, [4, 4, 16], 16, 64).is_ok()); // head after head
    /// let error = HeadsViewMut::strided(&mut out, [4, 4, 16], 64, 1).unwrap_err();
    /// assert_eq!(error.to_string(), "view: expected head stride (at least) = 16, got 1");
    /// ```
    pub fn strided(
        data: &'a mut [T],
        [tokens, heads, head_dim]: [usize; 3],
        token_stride: usize,
        head_stride: usize,
    ) -> Result<Self, AttentionError> {
        let layout = Layout { tokens, heads, head_dim, token_stride, head_stride };
        layout.check("view", data.len())?;
        layout.check_apart("view")?;
        Ok(Self { data, layout })
    }

    /// The channels of one head of one token, `[head_dim]`; nothing if there is no such token or head.
    pub fn row_mut(&mut self, token: usize, head: usize) -> &mut [T] {
        &mut self.data[self.layout.row(token, head)]
    }

    /// Some of the tokens.
    ///
    /// # Errors
    /// As [`HeadsView::slice`].
    pub fn slice(&mut self, tokens: Range<usize>) -> Result<HeadsViewMut<'_, T>, AttentionError> {
        let (layout, elements) = self.layout.slice(tokens)?;
        Ok(HeadsViewMut { data: &mut self.data[elements], layout })
    }

    /// `[tokens, heads, channels]`.
    pub(crate) fn shape(&self) -> [usize; 3] {
        [self.layout.tokens, self.layout.heads, self.layout.head_dim]
    }

    /// Whether all rows of a token come before those of the next.
    #[cfg(feature = "rayon")]
    pub(crate) fn has_tokens_apart(&self) -> bool {
        self.layout.tokens <= 1 || Layout { tokens: 1, ..self.layout }.span() <= self.layout.token_stride
    }

    /// The first `tokens` tokens, of as many as there are or fewer, and the others. They must [lie apart](Self::has_tokens_apart).
    #[cfg(feature = "rayon")]
    pub(crate) fn split_at(self, tokens: usize) -> [Self; 2] {
        let (first, rest) =
            self.data.split_at_mut(self.data.len().min(tokens.saturating_mul(self.layout.token_stride)));
        let layout = |tokens| Layout { tokens, ..self.layout };
        [(first, tokens), (rest, self.layout.tokens - tokens)]
            .map(|(data, tokens)| Self { data, layout: layout(tokens) })
    }

    pub(crate) fn check(&self, tokens: usize, heads: usize, head_dim: usize) -> Result<(), AttentionError> {
        check_shape("out", &self.layout, tokens, heads, head_dim)
    }
}

fn check_shape(
    input: &'static str,
    layout: &Layout,
    tokens: usize,
    heads: usize,
    head_dim: usize,
) -> Result<(), AttentionError> {
    for (dimension, expected, got) in [
        ("tokens", tokens, layout.tokens),
        ("heads", heads, layout.heads),
        ("head_dim", head_dim, layout.head_dim),
    ] {
        if expected != got {
            return Err(AttentionError::Shape { input, dimension, expected, got });
        }
    }
    Ok(())
}
