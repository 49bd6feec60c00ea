//! A picture of a report: speed of every cell, prefill on the left, decode on the right, whiskers from smallest to largest.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::{Measured, Report};

/// Width and height in pixels.
const SIZE: (u32, u32) = (1100, 520);
/// Colours that people who can't tell red from green can tell apart (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(120, 120, 120),
];
/// Share of a group's width that its bars fill.
const FILLED: f64 = 0.8;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The picture as SVG.
///
/// # Errors
/// When it can't be drawn.
pub(super) fn svg(report: &Report) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        draw(&root, report).map_err(|error| anyhow::anyhow!("{error}"))?;
        root.present().map_err(|error| anyhow::anyhow!("{error}"))?;
    }
    Ok(svg)
}

fn draw(root: &Area<'_>, report: &Report) -> Result<(), Box<dyn std::error::Error>> {
    root.fill(&WHITE)?;
    let title = format!(
        "{} ({}), {}",
        report.model, report.parameters, report.machine
    );
    let title: String = title.chars().take(150).collect();
    let below = root.titled(&title, ("sans-serif", 14))?;
    let is_prefill = |m: &Measured| m.name.starts_with("prefill");
    let groups = |wanted: bool| -> Vec<String> {
        let first = report.cells.iter().take(1).flat_map(|cell| &cell.measured);
        let of_kind = first.filter(|m| is_prefill(m) == wanted);
        of_kind.map(|m| m.name.clone()).collect()
    };
    let (prefill, decode) = (groups(true), groups(false));
    let share = match (prefill.len(), decode.len()) {
        (0, _) => 0.0,
        (_, 0) => 1.0,
        (p, d) => (p as f64 / (p + d) as f64).clamp(0.3, 0.7),
    };
    let (left, right) = below.split_horizontally((f64::from(SIZE.0) * share) as u32);
    if !prefill.is_empty() {
        panel(
            &left,
            "prefill, tokens per second",
            &prefill,
            report,
            decode.is_empty(),
        )?;
    }
    if !decode.is_empty() {
        panel(&right, "decode, tokens per second", &decode, report, true)?;
    }
    Ok(())
}

fn panel(
    area: &Area<'_>,
    caption: &str,
    groups: &[String],
    report: &Report,
    legend: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let cells = report.cells.iter().flat_map(|cell| &cell.measured);
    let shown = cells.filter(|m| groups.contains(&m.name));
    let highest = shown.filter_map(|m| m.tok_s.most()).fold(1e-9, f64::max);
    // Room above for the legend.
    let top = highest * (1.1 + 0.07 * report.cells.len().min(COLOURS.len()) as f64);
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..groups.len() as f64, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(TRANSPARENT)
        .y_label_formatter(&|speed| format!("{speed:.0}"))
        .label_style(("sans-serif", 12))
        .draw()?;
    for (index, cell) in report.cells.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let width = FILLED / report.cells.len() as f64;
        let mut bars = Vec::new();
        let mut whiskers = Vec::new();
        for (group, name) in groups.iter().enumerate() {
            let Some(m) = cell.measured.iter().find(|m| m.name == *name) else {
                continue;
            };
            let (Some(median), Some(least), Some(most)) =
                (m.tok_s.median(), m.tok_s.least(), m.tok_s.most())
            else {
                continue;
            };
            let left = group as f64 + (1.0 - FILLED) / 2.0 + index as f64 * width;
            bars.push(Rectangle::new(
                [(left + width * 0.06, 0.0), (left + width * 0.94, median)],
                colour.filled(),
            ));
            let middle = left + width / 2.0;
            whiskers.push(PathElement::new(
                vec![(middle, least), (middle, most)],
                BLACK,
            ));
        }
        chart
            .draw_series(bars)?
            .label(&cell.name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
        chart.draw_series(whiskers)?;
    }
    let labels = groups.iter().enumerate().map(|(group, name)| {
        let pixels = chart.backend_coord(&(group as f64 + 0.5, 0.0));
        (name.clone(), pixels)
    });
    let style = ("sans-serif", 13).into_font().into_text_style(area);
    let style = style.pos(plotters::style::text_anchor::Pos::new(
        plotters::style::text_anchor::HPos::Center,
        plotters::style::text_anchor::VPos::Top,
    ));
    let (left, top_of_area) = area.get_base_pixel();
    for (name, (x, y)) in labels.collect::<Vec<_>>() {
        area.draw_text(&name, &style, (x - left, y - top_of_area + 8))?;
    }
    if legend {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font(("sans-serif", 12))
            .background_style(WHITE.mix(0.8))
            .draw()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::report;

    #[test]
    fn a_picture_names_everything() {
        let svg = svg(&report([7, 7])).unwrap();
        for part in [
            "<svg",
            "prefill 512",
            "decode of 4",
            "tl2/avx2, 2 threads",
            "tokens per second",
        ] {
            assert!(svg.contains(part), "`{part}` is missing");
        }
    }
}
