//! A surface to draw on, with the palette and the font of all pictures, that becomes a PNG.

use anyhow::Context;
use plotters::backend::BitMapBackend;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, DashedPathElement, PathElement, Polygon, Rectangle};
use plotters::style::{
    Color, FontStyle, FontTransform, IntoFont, RGBColor, ShapeStyle, TextStyle, register_font,
};

/// Width and height of a picture, unless it has a size of its own, pixels.
pub const PICTURE_SIZE: [u32; 2] = [1400, 900];

/// The colours of Okabe and Ito, which colour-blind readers can tell apart.
pub(crate) mod palette {
    use plotters::style::RGBColor;

    pub(crate) const BLACK: RGBColor = RGBColor(0, 0, 0);
    pub(crate) const ORANGE: RGBColor = RGBColor(230, 159, 0);
    pub(crate) const SKY: RGBColor = RGBColor(86, 180, 233);
    pub(crate) const BLUE: RGBColor = RGBColor(0, 114, 178);
    pub(crate) const VERMILION: RGBColor = RGBColor(213, 94, 0);
    pub(crate) const GREEN: RGBColor = RGBColor(0, 158, 115);
    /// Beside the palette, for what is not there.
    pub(crate) const GREY: RGBColor = RGBColor(217, 217, 217);
    pub(crate) const GRID: RGBColor = RGBColor(225, 225, 225);
    pub(crate) const WHITE: RGBColor = RGBColor(255, 255, 255);
}

/// Height of a line of ordinary text from ascender to descender, pixels: still readable at half size.
pub(crate) const TEXT: f64 = 33.0;
/// From one line of text to the next.
pub(crate) const LINE: f64 = 40.0;

/// Everything is drawn at this multiple of its size and averaged, which smooths edges.
const OVERSAMPLING: u32 = 2;
const FONT: &str = "DejaVu Sans";
/// Height of a capital letter as a share of the font's size.
const CAPITALS: f64 = 0.63;
/// Left and right of headline, legend and caption.
pub(crate) const MARGIN: f64 = 24.0;
const MARKER_RADIUS: f64 = 11.0;

/// A place in the picture, pixels from the upper left corner.
pub(crate) type Place = (f64, f64);

/// Which point of a text is at the place it is drawn at; vertically that is the middle of its capitals.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Align {
    Left,
    Middle,
    Right,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Marker {
    Circle,
    Square,
    Diamond,
    Triangle,
    Star,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Dash {
    Solid,
    Dashed,
    Dotted,
}

/// How a series of points looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SeriesStyle {
    pub(crate) colour: RGBColor,
    pub(crate) marker: Marker,
    /// The line that joins the points, if one does.
    pub(crate) dash: Option<Dash>,
}

pub(crate) struct Canvas<'a> {
    area: DrawingArea<BitMapBackend<'a>, Shift>,
    size: [f64; 2],
}

/// Draws a picture of [`PICTURE_SIZE`] and encodes it.
pub(crate) fn png(draw: impl FnOnce(&Canvas) -> anyhow::Result<()>) -> anyhow::Result<Vec<u8>> {
    png_of(PICTURE_SIZE, draw)
}

/// The same with another width and height.
pub(crate) fn png_of(
    size: [u32; 2],
    draw: impl FnOnce(&Canvas) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<u8>> {
    for (style, font) in
        [(FontStyle::Normal, dejavu::sans::regular()), (FontStyle::Bold, dejavu::sans::bold())]
    {
        register_font(FONT, style, font).ok().context("the font is damaged")?;
    }
    let [width, height] = size.map(|size| size * OVERSAMPLING);
    let mut pixels = vec![u8::MAX; 3 * (width * height) as usize];
    let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
    draw(&Canvas { area, size: size.map(f64::from) })?;
    encode(&averaged(&pixels, size), size)
}

/// Squares of [`OVERSAMPLING`] pixels become one, with fewer levels of each colour: edges stay smooth, and files become small.
fn averaged(pixels: &[u8], size: [u32; 2]) -> Vec<u8> {
    const STEP: f64 = 255.0 / 31.0;
    let ([width, height], n) = (size.map(|size| size as usize), OVERSAMPLING as usize);
    let mut small = Vec::with_capacity(3 * width * height);
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        for channel in 0..3 {
            let square = (0..n * n).map(|i| {
                let (row, column) = (y * n + i / n, x * n + i % n);
                usize::from(pixels[3 * (row * width * n + column) + channel])
            });
            let mean = square.sum::<usize>() as f64 / (n * n) as f64;
            small.push(((mean / STEP).round() * STEP).round() as u8);
        }
    }
    small
}

fn encode(pixels: &[u8], [width, height]: [u32; 2]) -> anyhow::Result<Vec<u8>> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::High);
    // Flat colours compress better as they are than as differences.
    encoder.set_filter(png::Filter::NoFilter);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(file)
}

fn scaled((x, y): Place) -> (i32, i32) {
    let scale = |x: f64| (x * f64::from(OVERSAMPLING)).round() as i32;
    (scale(x), scale(y))
}

fn length(x: f64) -> u32 {
    (x * f64::from(OVERSAMPLING)).round() as u32
}

fn text_style(size: f64, style: FontStyle, colour: RGBColor) -> TextStyle<'static> {
    (FONT, f64::from(length(size)), style).into_font().color(&colour)
}

/// Width of ordinary text of this size, pixels.
pub(crate) fn text_width(text: &str, size: f64) -> anyhow::Result<f64> {
    width_in(text, &text_style(size, FontStyle::Normal, palette::BLACK))
}

fn width_in(text: &str, style: &TextStyle) -> anyhow::Result<f64> {
    Ok(f64::from(style.font.box_size(text)?.0) / f64::from(OVERSAMPLING))
}

/// The colour at `place`, from 0 to 1, of a scale through these three.
pub(crate) fn between(colours: [RGBColor; 3], place: f64) -> RGBColor {
    let place = 2.0 * place.clamp(0.0, 1.0);
    let (from, to, part) = match place < 1.0 {
        true => (colours[0], colours[1], place),
        false => (colours[1], colours[2], place - 1.0),
    };
    let mix = |a: u8, b: u8| (f64::from(a) + part * (f64::from(b) - f64::from(a))).round() as u8;
    RGBColor(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

impl Canvas<'_> {
    /// Width and height of the picture.
    pub(crate) fn size(&self) -> [f64; 2] {
        self.size
    }

    pub(crate) fn line(
        &self,
        points: &[Place],
        colour: RGBColor,
        width: f64,
        dash: Dash,
    ) -> anyhow::Result<()> {
        let style = ShapeStyle { color: colour.to_rgba(), filled: false, stroke_width: length(width) };
        let points = || points.iter().map(|place| scaled(*place));
        let (on, off) = match dash {
            Dash::Solid => {
                for pair in points().collect::<Vec<_>>().windows(2) {
                    self.area.draw(&PathElement::new(pair, style))?;
                }
                return Ok(());
            }
            Dash::Dashed => (16.0, 9.0),
            Dash::Dotted => (5.0, 6.0),
        };
        let dashes = DashedPathElement::new(points(), length(on), length(off), style);
        Ok(self.area.draw(&dashes)?)
    }

    pub(crate) fn fill(&self, corners: [Place; 2], colour: RGBColor) -> anyhow::Result<()> {
        Ok(self.area.draw(&Rectangle::new(corners.map(scaled), colour.filled()))?)
    }

    pub(crate) fn text(&self, at: Place, align: Align, text: &str) -> anyhow::Result<()> {
        self.text_in(at, align, text, palette::BLACK)
    }

    pub(crate) fn text_in(
        &self,
        (x, y): Place,
        align: Align,
        text: &str,
        colour: RGBColor,
    ) -> anyhow::Result<()> {
        let start = match align {
            Align::Left => 0.0,
            Align::Middle => 0.5,
            Align::Right => 1.0,
        };
        let x = x - start * text_width(text, TEXT)?;
        self.draw_text(
            (x, y - TEXT * (0.5 - CAPITALS / 2.0)),
            text,
            &text_style(TEXT, FontStyle::Normal, colour),
        )
    }

    /// The headline of the picture.
    pub(crate) fn headline(&self, text: &str) -> anyhow::Result<()> {
        let style = text_style(1.15 * TEXT, FontStyle::Bold, palette::BLACK);
        self.draw_text((MARGIN, 16.0), text, &style)
    }

    /// The title of a panel, with its middle at this place.
    pub(crate) fn title(&self, (x, y): Place, text: &str) -> anyhow::Result<()> {
        let style = text_style(TEXT, FontStyle::Bold, palette::BLACK);
        let left = x - width_in(text, &style)? / 2.0;
        self.draw_text((left, y - TEXT * (0.5 - CAPITALS / 2.0)), text, &style)
    }

    /// What the picture was made from, at the bottom, in as many lines as it needs; returns where it begins.
    pub(crate) fn caption(&self, parts: &[String]) -> anyhow::Result<f64> {
        const SIZE: f64 = 28.0;
        const SPACING: f64 = 36.0;
        let [width, height] = self.size;
        let mut lines = Vec::new();
        for part in parts {
            let mut line = String::new();
            for word in part.split(' ') {
                let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
                if text_width(&longer, SIZE)? > width - 2.0 * MARGIN && !line.is_empty() {
                    lines.push(std::mem::replace(&mut line, word.to_owned()));
                } else {
                    line = longer;
                }
            }
            lines.push(line);
        }
        let top = height - SPACING * lines.len() as f64 - 12.0;
        let style = text_style(SIZE, FontStyle::Normal, palette::BLACK);
        for (index, line) in lines.iter().enumerate() {
            self.draw_text((MARGIN, top + SPACING * index as f64), line, &style)?;
        }
        Ok(top - 20.0)
    }

    /// Text that runs upwards, with its middle at `(x, y)`.
    pub(crate) fn upward_text(&self, (x, y): Place, text: &str) -> anyhow::Result<()> {
        let style = text_style(TEXT, FontStyle::Normal, palette::BLACK).transform(FontTransform::Rotate270);
        self.draw_text((x - TEXT * (0.5 - CAPITALS / 2.0), y + text_width(text, TEXT)? / 2.0), text, &style)
    }

    /// plotters puts the base line half a size below the upper edge.
    fn draw_text(&self, at: Place, text: &str, style: &TextStyle) -> anyhow::Result<()> {
        Ok(self.area.draw_text(text, style, scaled(at))?)
    }

    /// With a white rim, so that neighbours stay apart.
    pub(crate) fn marker(&self, at: Place, marker: Marker, colour: RGBColor) -> anyhow::Result<()> {
        self.plain_marker(at, marker, palette::WHITE, MARKER_RADIUS + 2.5)?;
        self.plain_marker(at, marker, colour, MARKER_RADIUS)
    }

    /// Without a rim.
    pub(crate) fn plain_marker(
        &self,
        (x, y): Place,
        marker: Marker,
        colour: RGBColor,
        radius: f64,
    ) -> anyhow::Result<()> {
        // Corners as (turns from the top, distance in radii).
        let corners: Vec<(f64, f64)> = match marker {
            Marker::Circle => {
                let circle = Circle::new(scaled((x, y)), length(radius), colour.filled());
                return Ok(self.area.draw(&circle)?);
            }
            Marker::Square => (0..4).map(|i| (f64::from(i) / 4.0 + 0.125, 1.25)).collect(),
            Marker::Diamond => (0..4).map(|i| (f64::from(i) / 4.0, 1.35)).collect(),
            Marker::Triangle => (0..3).map(|i| (f64::from(i) / 3.0, 1.3)).collect(),
            Marker::Star => {
                (0..10).map(|i| (f64::from(i) / 10.0, if i % 2 == 0 { 1.9 } else { 0.8 })).collect()
            }
        };
        let corner = |(turns, distance): &(f64, f64)| {
            let (sin, cos) = (turns * std::f64::consts::TAU).sin_cos();
            scaled((x + radius * distance * sin, y - radius * distance * cos))
        };
        let corners: Vec<(i32, i32)> = corners.iter().map(corner).collect();
        Ok(self.area.draw(&Polygon::new(corners, colour.filled()))?)
    }
}
