//! A part of the screen that is filled line by line, and tables in it.
use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Modifier, Style},
    text::{Line, Span},
};
use unicode_width::UnicodeWidthStr;

use super::{Drawn, Hit, Look};
use crate::view::{
    top::model::{Key, Sort},
    words::{left, right},
};

#[derive(Debug)]
pub(super) struct Pane<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
    next: u16,
}

impl<'a> Pane<'a> {
    pub(super) fn new(buffer: &'a mut Buffer, area: Rect) -> Self {
        Self { next: area.y, area: area.intersection(buffer.area), buffer }
    }

    pub(super) fn width(&self) -> usize {
        usize::from(self.area.width)
    }

    /// Lines that are left.
    pub(super) fn room(&self) -> usize {
        usize::from(self.area.bottom().saturating_sub(self.next))
    }

    /// Draws the next line, where there is room for one, and tells where.
    #[expect(clippy::needless_pass_by_value, reason = "lines are made where they are put")]
    pub(super) fn put(&mut self, line: Line<'_>) -> Option<Rect> {
        if self.next >= self.area.bottom() || self.area.width == 0 {
            return None;
        }
        let place = Rect { y: self.next, height: 1, ..self.area };
        self.buffer.set_line(place.x, place.y, &line, place.width);
        self.next += 1;
        Some(place)
    }

    pub(super) fn text(&mut self, text: &str, style: Style) -> Option<Rect> {
        self.put(Line::styled(left(text, self.width()), style))
    }

    /// As much as goes into so many lines.
    pub(super) fn beginning(&mut self, text: &str, lines: usize, style: Style) {
        let text = crate::report::words::fit(&crate::report::words::plain(text), self.width() * lines);
        for line in wrapped(&text, self.width()).into_iter().take(lines) {
            self.put(Line::styled(line, style));
        }
    }

    /// Broken into lines where it is too long.
    pub(super) fn wrapped(&mut self, text: &str, style: Style) {
        for line in wrapped(text, self.width()) {
            self.put(Line::styled(line, style));
        }
    }

    /// The next so many lines, as a pane of their own.
    pub(super) fn part(&mut self, lines: usize) -> Pane<'_> {
        let lines = u16::try_from(lines.min(self.room())).unwrap_or(u16::MAX);
        let area = Rect { y: self.next, height: lines, ..self.area };
        Pane { area, next: area.y, buffer: &mut *self.buffer }
    }

    pub(super) fn advance(&mut self, lines: usize) {
        let lines = u16::try_from(lines.min(self.room())).unwrap_or(u16::MAX);
        self.next += lines;
    }

    pub(super) fn skip(&mut self) {
        self.next = (self.next + 1).min(self.area.bottom());
    }

    pub(super) fn style(&mut self, place: Rect, style: Style) {
        self.buffer.set_style(place, style);
    }
}

/// Lines of at most so many columns, broken anywhere; safe.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut line, mut used) = (String::new(), 0);
    for char in crate::report::words::plain(text).chars() {
        let wide = unicode_width::UnicodeWidthChar::width(char).unwrap_or(0);
        if used + wide > width && used > 0 {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        line.push(char);
        used += wide;
    }
    lines.push(line);
    lines
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) head: &'static str,
    /// 0 for the one that takes what the others leave.
    pub(super) width: usize,
    pub(super) right: bool,
    /// Which of the view's orders it stands for.
    pub(super) sort: Option<usize>,
}

pub(super) const fn number(head: &'static str, width: usize, sort: usize) -> Column {
    Column { head, width, right: true, sort: Some(sort) }
}

pub(super) const fn word(head: &'static str, width: usize, sort: Option<usize>) -> Column {
    Column { head, width, right: false, sort }
}

pub(super) const fn amount(head: &'static str, width: usize) -> Column {
    Column { head, width, right: true, sort: None }
}

/// What stands in a row and a column.
#[derive(Debug)]
pub(super) enum Cell {
    Text(String, Style),
    /// As wide as its column already.
    Spans(Vec<Span<'static>>),
}

pub(super) fn cell(text: impl Into<String>, style: Style) -> Cell {
    Cell::Text(text.into(), style)
}

#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
}

impl Table {
    /// Columns within so many; the last ones that have no room are left out.
    pub(super) fn new(mut columns: Vec<Column>, width: usize) -> Self {
        /// The least that is left for the one without a width.
        const LEAST: usize = 10;
        let used = |columns: &[Column]| columns.iter().map(|column| column.width + 1).sum::<usize>();
        while columns.len() > 1 && used(&columns) + LEAST > width + 1 {
            let Some(last) = columns.iter().rposition(|column| column.width > 0) else { break };
            columns.remove(last);
        }
        let rest = (width + 1).saturating_sub(used(&columns));
        for column in &mut columns {
            if column.width == 0 {
                column.width = rest;
            }
        }
        Self { columns }
    }

    /// The heads; a click on one sorts by it.
    pub(super) fn head(&self, look: Look, pane: &mut Pane<'_>, sort: Sort, hits: Option<&mut Vec<(Rect, Hit)>>) {
        let mut spans = Vec::new();
        for column in &self.columns {
            let sorted = column.sort == Some(sort.column);
            let head = match (sorted, sort.reversed) {
                (true, false) if column.head.width() < column.width => format!("{}▾", column.head),
                (true, true) if column.head.width() < column.width => format!("{}▴", column.head),
                _ => column.head.to_owned(),
            };
            let head = if column.right { right(&head, column.width) } else { left(&head, column.width) };
            let style = if sorted { look.bold().add_modifier(Modifier::UNDERLINED) } else { look.dim() };
            spans.push(Span::styled(head, style));
            spans.push(Span::raw(" "));
        }
        let Some(place) = pane.put(Line::from(spans)) else { return };
        let Some(hits) = hits else { return };
        let mut x = place.x;
        for column in &self.columns {
            let width = u16::try_from(column.width).unwrap_or(u16::MAX);
            if let Some(sort) = column.sort {
                hits.push((Rect { x, width, ..place }.intersection(place), Hit::Column(sort)));
            }
            x = x.saturating_add(width + 1);
        }
    }

    /// A row; cells are told apart by their heads, and those of columns that
    /// are left out are too.
    pub(super) fn row(&self, mut cell: impl FnMut(&'static str, usize) -> Cell) -> Line<'static> {
        let mut spans = Vec::new();
        for (at, column) in self.columns.iter().enumerate() {
            if at > 0 {
                spans.push(Span::raw(" "));
            }
            match cell(column.head, column.width) {
                Cell::Text(text, style) => {
                    let text = if column.right { right(&text, column.width) } else { left(&text, column.width) };
                    spans.push(Span::styled(text, style));
                }
                Cell::Spans(given) => spans.extend(given),
            }
        }
        Line::from(spans)
    }
}

/// Rows, so that the selected one is seen. With nothing selected they are
/// shown from the first, and no click means anything.
pub(super) fn rows(
    pane: &mut Pane<'_>,
    keys: &[Key],
    selected: Option<usize>,
    mut drawn: Option<&mut Drawn>,
    mut row: impl FnMut(usize) -> Line<'static>,
) {
    let room = pane.room();
    let mut first = drawn.as_ref().map_or(0, |drawn| drawn.offset);
    if let Some(selected) = selected {
        first = first.min(selected).max((selected + 1).saturating_sub(room));
    }
    first = first.min(keys.len().saturating_sub(room));
    if let Some(drawn) = &mut drawn {
        (drawn.offset, drawn.page) = (first, room);
    }
    for (at, key) in keys.iter().enumerate().skip(first).take(room) {
        let Some(place) = pane.put(row(at)) else { return };
        if selected == Some(at) {
            pane.style(place, Style::new().add_modifier(Modifier::REVERSED));
        }
        if let Some(drawn) = &mut drawn {
            drawn.hits.push((place, Hit::Row(key.clone())));
        }
    }
}

/// A text that is scrolled.
pub(super) fn scrolled(pane: &mut Pane<'_>, lines: &[Line<'static>], drawn: Option<&mut Drawn>) {
    let room = pane.room();
    let mut first = 0;
    if let Some(drawn) = drawn {
        first = drawn.offset.min(lines.len().saturating_sub(room));
        (drawn.offset, drawn.page, drawn.lines) = (first, room, lines.len());
    }
    for line in lines.iter().skip(first).take(room) {
        pane.put(line.clone());
    }
}
