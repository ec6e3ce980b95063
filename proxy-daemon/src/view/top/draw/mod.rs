//! The model, drawn.
//!
//! In: a model, and a frame of any size. Out: what is shown, and where on it
//! a click means what ([`Drawn`]). Every text that comes from elsewhere goes
//! through [`crate::report::words::plain`].
mod bottom;
mod details;
mod lists;
mod pane;
mod top;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
};

use self::pane::Pane;
use super::{
    lane::Ink,
    model::{Key, Model, Tab, View},
};

/// From so many columns on, what is selected is shown beside the list.
const WIDE: u16 = 140;
/// From so many lines on, there is a chart.
const TALL: u16 = 34;

/// What a click means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hit {
    Tab(Tab),
    Row(Key),
    Column(usize),
}

/// What was drawn.
#[derive(Debug, Default)]
pub(super) struct Drawn {
    pub(super) hits: Vec<(Rect, Hit)>,
    /// The first row or line that is shown.
    pub(super) offset: usize,
    /// Rows or lines that there is room for.
    pub(super) page: usize,
    /// Lines that a text has.
    pub(super) lines: usize,
    pub(super) wide: bool,
}

/// How things look; without colour, by weight alone.
#[derive(Clone, Copy, Debug)]
struct Look {
    color: bool,
}

impl Look {
    fn with(self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }

    fn dim(self) -> Style {
        if self.color { Style::new().fg(Color::DarkGray) } else { Style::new().add_modifier(Modifier::DIM) }
    }

    fn bold(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// Throttled, and other numbers that are worth a look.
    fn warn(self) -> Style {
        self.with(Color::Yellow)
    }

    fn bad(self) -> Style {
        self.with(Color::Red)
    }

    fn name(self) -> Style {
        self.with(Color::Cyan)
    }

    fn held(self) -> Style {
        self.with(Color::Magenta).add_modifier(Modifier::BOLD)
    }

    fn ink(self, ink: Ink) -> Style {
        match ink {
            Ink::Good => self.with(Color::Green),
            Ink::Throttled => self.warn(),
            Ink::Bad => self.bad(),
            Ink::Quiet | Ink::Wait => self.dim(),
            Ink::Held => self.held(),
        }
    }

    /// A count: nothing is quiet.
    fn count(self, count: u64, some: Style) -> Style {
        if count == 0 { self.dim() } else { some }
    }
}

pub(super) fn draw(model: &Model, frame: &mut Frame<'_>) -> Drawn {
    let area = frame.area();
    let look = Look { color: model.color };
    let mut drawn = Drawn { offset: model.place().offset, wide: area.width >= WIDE, ..Drawn::default() };
    let foot = bottom::height(model).min(area.height / 2);
    let chart = if area.height >= TALL && model.report.is_some() { 6 } else { 0 };
    let [head, chart, body, foot] = Layout::vertical([
        Constraint::Length(top::height(model)),
        Constraint::Length(chart),
        Constraint::Fill(1),
        Constraint::Length(foot),
    ])
    .areas(area);
    let buffer = frame.buffer_mut();
    top::draw(model, look, &mut Pane::new(buffer, head), &mut drawn);
    top::chart(model, look, &mut Pane::new(buffer, chart));
    if model.help {
        bottom::help(model, look, &mut Pane::new(buffer, body));
    } else {
        view(model, look, (buffer, body), &mut drawn);
    }
    let cursor = bottom::draw(model, look, &mut Pane::new(buffer, foot));
    if let Some(cursor) = cursor.filter(|cursor| area.contains(*cursor)) {
        frame.set_cursor_position(cursor);
    }
    drawn
}

fn view(model: &Model, look: Look, (buffer, area): (&mut ratatui::buffer::Buffer, Rect), drawn: &mut Drawn) {
    let beside = drawn.wide && matches!(model.view(), View::Processes | View::Calls(_) | View::Held);
    let (main, aside) = if beside {
        let [main, gap, aside] =
            Layout::horizontal([Constraint::Percentage(60), Constraint::Length(3), Constraint::Fill(1)]).areas(area);
        let mut rule = Pane::new(buffer, gap);
        while rule.put(ratatui::text::Line::styled(" │", look.dim())).is_some() {}
        (main, Some(aside))
    } else {
        (area, None)
    };
    let mut pane = Pane::new(buffer, main);
    match model.view() {
        View::Processes => lists::processes(model, look, &mut pane, drawn),
        View::Operations(process) => lists::operations(model, look, &mut pane, *process, Some(drawn)),
        View::Calls(scope) => lists::calls(model, look, &mut pane, scope, drawn),
        View::Call(call) => lists::call(model, look, &mut pane, *call, Some(drawn)),
        View::Held => lists::held(model, look, &mut pane, drawn),
        View::Rules => lists::rules(model, look, &mut pane, drawn),
        View::Attempt(id) => details::attempt(model, look, &mut pane, *id, drawn),
        View::Hold(id) => details::hold(model, look, &mut pane, *id, Some(drawn)),
    }
    let Some(aside) = aside else { return };
    let mut pane = Pane::new(buffer, aside);
    match (model.view(), model.here()) {
        (View::Processes, Some(Key::Process(process))) => lists::operations(model, look, &mut pane, process, None),
        (View::Calls(_), Some(Key::Call(call))) => lists::call(model, look, &mut pane, call, None),
        (View::Held, Some(Key::Held(id))) => details::hold(model, look, &mut pane, id, None),
        _ => {}
    }
}
