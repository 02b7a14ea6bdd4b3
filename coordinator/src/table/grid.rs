//! Text that fits into a terminal: tables that can omit columns, and wrapped words.

use comfy_table::{CellAlignment, Table};
use console::{measure_text_width, truncate_str};

/// A table that can omit some of its columns.
pub(super) struct Grid {
    /// The name and the weight of each column. Columns with the lowest weights are omitted first; the first column is
    /// never omitted.
    pub(super) columns: Vec<(&'static str, u8)>,
    /// The index of the first numeric column. From there on, columns are aligned to the right.
    pub(super) first_number: usize,
    pub(super) rows: Vec<Vec<String>>,
}

impl Grid {
    /// Returns the lines of the table. If they exceed the width, columns are omitted, then lines are cut. `None` is an
    /// unlimited width.
    pub(super) fn text(&self, width: Option<usize>) -> String {
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        loop {
            // Every column is padded on its right. The padding of the last column is removed.
            let lines: Vec<String> =
                self.table(&shown).lines().map(|line| line.trim_end().to_owned()).collect();
            let widest = lines.iter().map(|line| measure_text_width(line)).max().unwrap_or(0);
            let Some(width) = width.filter(|width| widest > *width) else {
                return lines.join("\n") + "\n";
            };
            let least = shown.iter().enumerate().skip(1).min_by_key(|(_, at)| self.columns[**at].1);
            let Some((least, _)) = least.filter(|_| shown.len() > 2) else {
                let cut = |line: &String| truncate_str(line, width, "…").into_owned() + "\n";
                return lines.iter().map(cut).collect();
            };
            shown.remove(least);
        }
    }

    /// Creates a table without borders, because a narrow terminal would wrap them.
    fn table(&self, shown: &[usize]) -> Table {
        let pick = |cells: &dyn Fn(usize) -> String| shown.iter().map(|at| cells(*at)).collect();
        let mut table = Table::new();
        let header: Vec<String> = pick(&|at| self.columns[at].0.to_owned());
        table.load_style(comfy_table::presets::NOTHING).set_header(header);
        for row in &self.rows {
            let cells: Vec<String> = pick(&|at| row[at].clone());
            table.add_row(cells);
        }
        for (column, at) in table.column_iter_mut().zip(shown) {
            column.set_padding((0, 2));
            if *at >= self.first_number {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

/// Returns a heading, followed by text that is wrapped to the width.
pub(super) fn wrap(head: &str, words: &str, width: usize) -> String {
    let mut text = String::new();
    let mut line = head.to_owned();
    for word in words.split(' ') {
        let is_first = line.trim().is_empty() || line == head;
        if !is_first && measure_text_width(&line) + 1 + measure_text_width(word) > width {
            text += &format!("{line}\n");
            line = " ".repeat(4);
        } else if !is_first {
            line.push(' ');
        }
        line += word;
    }
    text + &line + "\n"
}
