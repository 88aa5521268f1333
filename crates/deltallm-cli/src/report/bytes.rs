//! What every store costs in bytes and in accuracy.

use deltallm::KvStore;
use serde::Serialize;

use super::subject::{Cost, Subject};
use crate::drawing::{
    Align, Axis, Dash, LINE, Marker, PICTURE_SIZE, Panel, Place, SeriesStyle, TEXT, legend, palette, png,
    step, text_width,
};
use crate::{HeldOutText, KernelChoice, Measured};

/// Stores that dense attention takes; hybrid attention takes all.
const DENSE_STORES: [KvStore; 4] = [KvStore::F32, KvStore::F16, KvStore::Bf16, KvStore::Int8];
const DENSE: SeriesStyle = SeriesStyle { colour: palette::BLUE, marker: Marker::Square, dash: None };
const HYBRID: SeriesStyle = SeriesStyle { colour: palette::VERMILION, marker: Marker::Circle, dash: None };

/// Distance of a label that is right beside its point.
const BESIDE: f64 = 24.0;

/// Accuracy against bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bytes {
    /// Tokens in each cache.
    pub context: usize,
    /// Every store there is.
    pub stores: Vec<Store>,
}

/// One way to keep keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Store {
    /// An exact window and sinks, and other keys as the store has them; otherwise all keys are held alike.
    pub hybrid: bool,
    /// How they are stored.
    pub kv: KvStore,
    /// Bytes per token, layer and kv head: everything the cache holds, tables included.
    pub bytes_per_token: f64,
    /// What it costs; nothing for dense attention with f32, by definition.
    #[serde(flatten)]
    pub cost: Option<Cost>,
}

impl Store {
    fn kl(&self) -> f64 {
        self.cost.map_or(0.0, |cost| cost.kl)
    }

    fn name(&self) -> String {
        let kind = if self.hybrid { "hybrid" } else { "dense" };
        format!("{kind} {}, {:.0} bytes", self.kv, self.bytes_per_token)
    }
}

impl Bytes {
    /// Runs over the measured text that [`measure`](Self::measure) makes at most.
    pub(super) const RUNS: usize = DENSE_STORES.len() + KvStore::ALL.len() - 1;

    /// `kernel` is what the kernel as it is was measured to do.
    pub(super) fn measure(
        subject: &Subject,
        dense: &HeldOutText,
        kernel: &Measured,
        step: &mut dyn FnMut(),
    ) -> anyhow::Result<Self> {
        let store = |hybrid, kv, measured: &Measured| Store {
            hybrid,
            kv,
            bytes_per_token: subject.bytes_per_token(measured.footprint),
            cost: Some(Cost::new(measured)),
        };
        let mut measure = |choice: &KernelChoice| {
            let measured = subject.measure(dense, &|layer| choice.make(layer));
            step();
            measured
        };
        let mut stores = Vec::new();
        for kv in DENSE_STORES {
            stores.push(match kv {
                KvStore::F32 => Store {
                    hybrid: false,
                    kv,
                    bytes_per_token: subject.bytes_per_token(dense.footprint()),
                    cost: None,
                },
                kv => store(false, kv, &measure(&subject.kernel.dense().with_store(kv))?),
            });
        }
        for kv in KvStore::ALL {
            stores.push(match kv == subject.kernel.store() {
                true => store(true, kv, kernel),
                false => store(true, kv, &measure(&subject.kernel.with_store(kv))?),
            });
        }
        Ok(Self { context: subject.context, stores })
    }

    pub(super) fn summary(&self) -> String {
        let store = |store: &Store| match store.cost {
            Some(cost) => format!("{} (KL {:.1e})", store.name(), cost.kl),
            None => store.name(),
        };
        self.stores.iter().map(store).collect::<Vec<_>>().join("; ")
    }

    pub(super) fn draw(&self, subject: &Subject) -> anyhow::Result<Vec<u8>> {
        png(|canvas| {
            canvas.headline("Accuracy against bytes of the cache")?;
            let bottom = canvas.caption(&subject.caption(&format!(
                "caches of {} tokens, {} tokens scored",
                self.context,
                subject.measured_tokens()
            )))?;
            let entries = [
                (DENSE, "dense: every key and value in the same type".to_owned()),
                (HYBRID, "hybrid: exact window and sinks; other keys as deltas (int8: rounded)".to_owned()),
            ];
            let top = legend(canvas, 76.0, &entries)? + 16.0;
            let width = f64::from(PICTURE_SIZE[0]);
            let title = "bytes per token, layer and kv head, keys and values";
            let most = self.stores.iter().map(|store| store.bytes_per_token).fold(0.0, f64::max);
            let x = Axis::fixed(title, 0.0, 1.2 * most, step(most / 6.0));
            let y = Axis::log("KL to dense f32, nats", self.stores.iter().map(Store::kl));
            let panel = Panel::new(canvas, [(16.0, top), (width - 24.0, bottom)], x, y)?;
            let places: Vec<Place> =
                self.stores.iter().map(|store| panel.at(store.bytes_per_token, store.kl())).collect();
            let mut taken: Vec<[Place; 2]> =
                places.iter().map(|(x, y)| [(x - 14.0, y - 14.0), (x + 14.0, y + 14.0)]).collect();
            for (store, place) in self.stores.iter().zip(&places) {
                let style = if store.hybrid { HYBRID } else { DENSE };
                let label = store.name();
                let area = label_area(*place, text_width(&label, TEXT)?, panel.inner(), &taken);
                let [(x0, y0), (x1, y1)] = area;
                taken.push(area);
                let nearest = (place.0.clamp(x0, x1), place.1.clamp(y0, y1));
                if (nearest.0 - place.0).hypot(nearest.1 - place.1) > BESIDE {
                    canvas.line(&[*place, nearest], style.colour, 2.0, Dash::Solid)?;
                }
                canvas.fill([(x0 - 2.0, y0), (x1 + 2.0, y1)], palette::WHITE)?;
                canvas.text((x0, (y0 + y1) / 2.0), Align::Left, &label)?;
            }
            for (store, place) in self.stores.iter().zip(&places) {
                let style = if store.hybrid { HYBRID } else { DENSE };
                canvas.marker(*place, style.marker, style.colour)?;
            }
            Ok(())
        })
    }
}

/// A place for the label of a point: the nearest of several that is inside and covers nothing.
fn label_area(
    (x, y): Place,
    width: f64,
    [(left, top), (right, bottom)]: [Place; 2],
    taken: &[[Place; 2]],
) -> [Place; 2] {
    let height = LINE * 0.9;
    let rows = [0.0, -1.2, 1.2, -2.4, 2.4, -3.6, 3.6, 4.8, 6.0, 7.2, 8.4].map(|row| y + row * LINE);
    let columns = [x + BESIDE, x - BESIDE - width, x - width / 2.0];
    let areas = rows
        .into_iter()
        .flat_map(|y| columns.map(|x| [(x, y - height / 2.0), (x + width, y + height / 2.0)]));
    let inside = |[(x0, y0), (x1, y1)]: &[Place; 2]| {
        *x0 >= left + 6.0 && *x1 <= right && *y0 >= top && *y1 <= bottom - 4.0
    };
    let free = |area: &[Place; 2]| !taken.iter().any(|other| overlap(area, other));
    let fallback = [(x + BESIDE, y - height / 2.0), (x + BESIDE + width, y + height / 2.0)];
    areas.into_iter().find(|area| inside(area) && free(area)).unwrap_or(fallback)
}

fn overlap([(a0, b0), (a1, b1)]: &[Place; 2], [(c0, d0), (c1, d1)]: &[Place; 2]) -> bool {
    a0 < c1 && c0 < a1 && b0 < d1 && d0 < b1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_points_at_the_same_place_do_not_cover_each_other() {
        let inner = [(100.0, 100.0), (1300.0, 700.0)];
        let mut taken = Vec::new();
        for point in [(600.0, 300.0), (605.0, 300.0), (600.0, 302.0), (1250.0, 110.0)] {
            let area = label_area(point, 300.0, inner, &taken);
            assert!(!taken.iter().any(|other| overlap(&area, other)));
            assert!(area[0].0 >= 100.0 && area[1].0 <= 1300.0 && area[0].1 >= 100.0 && area[1].1 <= 700.0);
            taken.push(area);
        }
    }
}
