// SPDX-License-Identifier: MIT OR Apache-2.0

//! Plots of the results as SVG and PNG: cost against the number of slots, both axes logarithmic, a
//! line a structure; and QEMU before and after, where its bench left results.

use crate::report::{Cell, Results};
use crate::workload::Shape;
use anyhow::{anyhow, ensure, Context, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::FontStyle;
use std::path::{Path, PathBuf};

const FONT: &str = "sans-serif";
const SIZE: (u32, u32) = (760, 440);
/// Room for the names at the ends of the lines.
const NAMES: u32 = 120;
const NAME_HEIGHT: i32 = 16;

/// Rows with a plot of their own; the first four make the overview.
const ROWS: &[&str] = &[
    "gfn random",
    "hva 4 KiB",
    "create one by one",
    "move",
    "gfn in a hole",
    "gfn dependent",
    "id",
    "flags only",
    "create, one transaction",
    "bytes a slot",
];

const COLOURS: &[(&str, RGBColor)] = &[
    ("memslots", RGBColor(0xd6, 0x27, 0x28)),
    ("memslots sync", RGBColor(0xff, 0x98, 0x96)),
    ("linux", RGBColor(0x1f, 0x77, 0xb4)),
    ("linux+urcu", RGBColor(0x7f, 0xb2, 0xdb)),
    ("array", RGBColor(0x7f, 0x7f, 0x7f)),
    ("qemu", RGBColor(0xff, 0x7f, 0x0e)),
    ("vm-memory", RGBColor(0x2c, 0xa0, 0x2c)),
    ("BTreeMap", RGBColor(0x94, 0x67, 0xbd)),
];

fn colour(peer: &str) -> RGBColor {
    COLOURS.iter().find(|(name, _)| *name == peer).map_or(BLACK, |(_, colour)| *colour)
}

type Area<B> = DrawingArea<B, Shift>;

fn drawn<T, E: std::fmt::Display>(result: std::result::Result<T, E>) -> Result<T> {
    result.map_err(|error| anyhow!("cannot draw: {error}"))
}

/// Text needs a font; any TrueType sans of the system will do.
fn register_font() -> Result<()> {
    let mut folders = vec![PathBuf::from("/usr/share/fonts")];
    let mut fonts = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "ttf") {
                fonts.push(path);
            }
        }
    }
    let rank = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name != "DejaVuSans.ttf", !name.contains("Sans-Regular"), name)
    };
    fonts.sort_by_key(rank);
    let font = fonts.first().context("no TrueType font under /usr/share/fonts")?;
    let bytes = Box::leak(std::fs::read(font)?.into_boxed_slice());
    plotters::style::register_font(FONT, FontStyle::Normal, bytes)
        .map_err(|_| anyhow!("{} is not a font", font.display()))
}

/// A tick of a logarithmic axis: 0.5, 10, 1k, 2M.
fn tick(number: f64) -> String {
    match number {
        n if n >= 1e6 => format!("{}M", n / 1e6),
        n if n >= 1e3 => format!("{}k", n / 1e3),
        n if n >= 1.0 => format!("{n:.0}"),
        n => format!("{n:.1}"),
    }
}

/// Where waiting for readers makes no difference, neither do the structures that wait have a line.
fn shown<'r>(results: &'r Results, row: &str) -> Vec<&'r Cell> {
    let of_row = |cell: &&Cell| cell.row == row && cell.layout == Shape::Holes;
    let mut cells: Vec<&Cell> = results.cells.iter().filter(of_row).collect();
    let waits = cells.iter().any(|cell| cell.peer == "memslots sync" && cell.unit == "ns");
    cells.retain(|cell| waits || !matches!(cell.peer.as_str(), "memslots sync" | "linux+urcu"));
    cells
}

/// Heights for names beside heights of lines: as near as can be, none upon another.
fn spread_out(mut heights: Vec<i32>, lowest: i32) -> Vec<i32> {
    for at in 1..heights.len() {
        heights[at] = heights[at].max(heights[at - 1] + NAME_HEIGHT);
    }
    let mut floor = lowest;
    for height in heights.iter_mut().rev() {
        *height = (*height).min(floor);
        floor = *height - NAME_HEIGHT;
    }
    heights
}

fn slug(row: &str) -> String {
    let letters = row.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { ' ' });
    let text: String = letters.collect();
    text.to_lowercase().split_whitespace().collect::<Vec<_>>().join("-")
}

fn row_plot<B: DrawingBackend>(results: &Results, row: &str, area: &Area<B>) -> Result<()> {
    let cells = shown(results, row);
    ensure!(!cells.is_empty(), "no figures for {row}");
    let bound = |start: f64, pick: fn(f64, f64) -> f64, of: fn(&Cell) -> f64| {
        cells.iter().map(|cell| of(cell)).fold(start, pick)
    };
    let n = |cell: &Cell| cell.n as f64;
    let cost = |cell: &Cell| cell.summary.median;
    let x = bound(f64::MAX, f64::min, n) * 0.8..bound(0.0, f64::max, n) * 1.25;
    let y = bound(f64::MAX, f64::min, cost) * 0.6..bound(0.0, f64::max, cost) * 1.8;
    let unit = if cells[0].unit == "ns" { "ns an operation" } else { "bytes a slot" };
    let mut chart = drawn(
        ChartBuilder::on(area)
            .caption(row, (FONT, 20))
            .margin(10)
            .margin_right(NAMES)
            .x_label_area_size(42)
            .y_label_area_size(76)
            .build_cartesian_2d(x.log_scale(), y.log_scale()),
    )?;
    drawn(
        chart
            .configure_mesh()
            .x_desc("slots")
            .y_desc(unit)
            .x_label_formatter(&|n| tick(*n))
            .y_label_formatter(&|y| tick(*y))
            .light_line_style(WHITE)
            .label_style((FONT, 13))
            .draw(),
    )?;
    let mut ends = Vec::new();
    for (peer, colour) in COLOURS.iter().rev() {
        let line: Vec<(f64, f64)> =
            cells.iter().filter(|cell| cell.peer == *peer).map(|cell| (cell.n as f64, cell.summary.median)).collect();
        let Some(&end) = line.last() else {
            continue;
        };
        ends.push((chart.backend_coord(&end).1, *peer, *colour));
        let width = if *peer == crate::report::OURS { 3 } else { 2 };
        let style = colour.stroke_width(width);
        drawn(chart.draw_series(LineSeries::new(line.clone(), style)))?;
        drawn(chart.draw_series(line.iter().map(|&at| Circle::new(at, 3, colour.filled()))))?;
    }
    // Each line has its name at its end, in its colour.
    ends.sort_by_key(|(height, _, _)| *height);
    let (left, top) = area.get_base_pixel();
    let right = chart.plotting_area().get_x_axis_pixel_range().end - left + 8;
    let lowest = chart.plotting_area().get_y_axis_pixel_range().end - NAME_HEIGHT / 2;
    let heights = spread_out(ends.iter().map(|(height, _, _)| *height).collect(), lowest);
    for ((_, peer, colour), height) in ends.iter().zip(heights) {
        let style = TextStyle::from((FONT, 14).into_font()).color(colour);
        drawn(area.draw(&Text::new(*peer, (right, height - top - NAME_HEIGHT / 2), style)))?;
    }
    Ok(())
}

fn overview<B: DrawingBackend>(results: &Results, area: &Area<B>) -> Result<()> {
    let panels = area.split_evenly((2, 2));
    panels.iter().zip(ROWS).try_for_each(|(panel, row)| row_plot(results, row, panel))
}

/// A bar pair: a label, the value before and after, in one unit.
#[derive(serde::Deserialize)]
struct Pair {
    name: String,
    unit: String,
    before: f64,
    after: f64,
}

#[derive(serde::Deserialize)]
struct QemuResults {
    #[serde(default)]
    bars: Vec<Pair>,
}

/// Each pair as shares of its before, so that milliseconds and microseconds share a plot.
fn qemu_plot<B: DrawingBackend>(pairs: &[Pair], area: &Area<B>) -> Result<()> {
    let rows = pairs.len();
    let longest = pairs.iter().map(|pair| 100.0 * pair.after / pair.before).fold(100.0, f64::max);
    let label = |y: &f64| {
        let index = rows as f64 - 1.0 - y.floor();
        let pair = pairs.get(index as usize).filter(|_| y.fract().abs() < 0.01 && index >= 0.0);
        pair.map_or(String::new(), |pair| pair.name.clone())
    };
    let mut chart = drawn(
        ChartBuilder::on(area)
            .caption("QEMU: stock, and with the series", (FONT, 20))
            .margin(10)
            .x_label_area_size(42)
            .y_label_area_size(260)
            .build_cartesian_2d(0.0..longest * 1.35, 0.0..rows as f64),
    )?;
    drawn(
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(rows + 1)
            .y_label_formatter(&label)
            .y_label_offset(-(area.dim_in_pixel().1 as i32 - 100) / (2 * rows.max(1) as i32))
            .light_line_style(WHITE)
            .x_label_formatter(&|share| format!("{share:.0} %"))
            .x_desc("stock = 100 %")
            .label_style((FONT, 13))
            .draw(),
    )?;
    for (index, pair) in pairs.iter().enumerate() {
        let bottom = (rows - 1 - index) as f64;
        let share = 100.0 * pair.after / pair.before;
        let bars = [
            (bottom + 0.52, 100.0, colour("qemu"), pair.before, "stock"),
            (bottom + 0.16, share, colour("memslots"), pair.after, "series"),
        ];
        for (low, length, colour, value, which) in bars {
            let shape = Rectangle::new([(0.0, low), (length, low + 0.32)], colour.filled());
            drawn(chart.draw_series([shape]))?;
            let text = format!("{} {}, {which}", crate::print::number(value), pair.unit);
            let at = (length + 1.0, low + 0.28);
            drawn(chart.draw_series([Text::new(text, at, (FONT, 13))]))?;
        }
    }
    Ok(())
}

/// Draws once as SVG and once as PNG.
macro_rules! both {
    ($folder:expr, $name:expr, $size:expr, $draw:expr) => {{
        let svg = $folder.join(format!("{}.svg", $name));
        let png = $folder.join(format!("{}.png", $name));
        let area = SVGBackend::new(&svg, $size).into_drawing_area();
        drawn(area.fill(&WHITE))?;
        $draw(&area)?;
        drawn(area.present())?;
        let area = BitMapBackend::new(&png, $size).into_drawing_area();
        drawn(area.fill(&WHITE))?;
        $draw(&area)?;
        drawn(area.present())?;
    }};
}

/// Every plot that the results have figures for, into `folder`; `qemu`: results of QEMU's bench.
pub fn draw(results: &Results, folder: &Path, qemu: &Path) -> Result<usize> {
    register_font()?;
    std::fs::create_dir_all(folder)?;
    let mut count = 0;
    let has = |row: &str| results.cells.iter().any(|cell| cell.row == row);
    for row in ROWS.iter().filter(|row| has(row)) {
        both!(folder, slug(row), SIZE, |area: &_| row_plot(results, row, area));
        count += 1;
    }
    if ROWS[..4].iter().all(|row| has(row)) {
        let size = (SIZE.0 * 2, SIZE.1 * 2);
        both!(folder, "overview", size, |area: &_| overview(results, area));
        count += 1;
    }
    if qemu.exists() {
        let qemu: QemuResults = serde_json::from_str(&std::fs::read_to_string(qemu)?)?;
        ensure!(!qemu.bars.is_empty(), "no bars in qemu-patch/results.json; the others are drawn");
        let size = (SIZE.0 + 200, 100 + 60 * qemu.bars.len() as u32);
        both!(folder, "qemu", size, |area: &_| qemu_plot(&qemu.bars, area));
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_distance() {
        assert_eq!(spread_out(vec![10, 100], 200), [10, 100]);
        assert_eq!(spread_out(vec![10, 12, 13], 200), [10, 26, 42]);
        assert_eq!(spread_out(vec![190, 195, 200], 200), [168, 184, 200]);
    }

    #[test]
    fn ticks() {
        assert_eq!([0.5, 1.0, 509.0, 2e4, 1e6].map(tick), ["0.5", "1", "509", "20k", "1M"]);
    }
}
