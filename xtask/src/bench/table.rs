//! Numbers as a Markdown table that also reads well in a terminal.

/// Rows of equal length, the first of them the heading. The first column is
/// text, the others are numbers and stand to the right.
pub(super) fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3))
        .collect();
    let mut out = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let cell = if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
            out += &format!("| {cell} ");
        }
        out += "|\n";
        if number == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                out += &if column == 0 { format!("|{dashes}-") } else { format!("|{dashes}:") };
            }
            out += "|\n";
        }
    }
    out
}

/// Three significant digits, as many as a bench can stand for.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        small if small < 10.0 => 2,
        medium if medium < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), ""), |(whole, _)| (whole, &text[whole.len()..]));
    let mut grouped = String::new();
    let length = whole.trim_start_matches('-').len();
    for (at, digit) in whole.trim_start_matches('-').chars().enumerate() {
        if at > 0 && (length - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{}{grouped}{rest}", if value < 0.0 && whole.starts_with('-') { "-" } else { "" })
}

/// The middle of the values; not a number where there are none.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_groups() {
        for (value, text) in [
            (0.123, "0.12"),
            (9.994, "9.99"),
            (45.67, "45.7"),
            (999.6, "1,000"),
            (1_234_567.0, "1,234,567"),
            (-45.67, "-45.7"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }

    #[test]
    fn tables_line_up() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(
            markdown(&[row(["case", "ratio"]), row(["HTTP/2", "1.2"])]),
            "| case   | ratio |\n|--------|------:|\n| HTTP/2 |   1.2 |\n"
        );
    }
}
