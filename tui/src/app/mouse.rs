//! Mouse actions: the wheel scrolls the content under the pointer, a click chooses. Every mouse
//! action is available by key as well.

use ratatui::layout::{Position, Rect};

use super::events::{Pointer, Target};
use super::{App, Effect, Mode, Panel};
use crate::keymap::Action;

/// Rows that a step of the wheel scrolls by.
const STEP: isize = 3;

impl App {
    pub(super) fn mouse(&mut self, what: Pointer, at: Position) -> Vec<Effect> {
        let targets = self.measures.targets.iter().rev();
        let found = targets.copied().find(|(area, _)| area.contains(at));
        match (what, found) {
            (Pointer::Click, Some((area, target))) => self.click(target, area, at),
            (Pointer::Click, None) => Vec::new(),
            (Pointer::WheelUp, found) => self.wheel(-1, found.map(|(_, target)| target)),
            (Pointer::WheelDown, found) => self.wheel(1, found.map(|(_, target)| target)),
        }
    }

    /// Leaves the mouse to the terminal, for selecting text, or captures it again.
    pub(super) fn switch_mouse(&mut self) -> Vec<Effect> {
        self.mouse = !self.mouse;
        let key = self.keymap.hint(Action::Mouse).unwrap_or_default();
        self.notify(if self.mouse {
            "the wheel scrolls, clicks choose; Shift selects in most terminals".into()
        } else {
            format!("the mouse selects text as elsewhere; {key} takes it back")
        });
        vec![Effect::Mouse(self.mouse)]
    }

    fn wheel(&mut self, steps: isize, target: Option<Target>) -> Vec<Effect> {
        match (target, &mut self.panel) {
            (Some(Target::Help), Some(Panel::Help(scroll))) => {
                scroll.by(STEP * steps, self.measures.help);
            }
            (Some(Target::List { .. }), Some(_)) => {
                return self.act_in_panel(if steps < 0 { Action::Up } else { Action::Down });
            }
            (_, Some(_)) => {}
            (Some(Target::Pane(place)), None) => {
                let drawn = self.measures.panes.get(place).copied().unwrap_or_default();
                if let Some(pane) = self.compare.panes.get_mut(place) {
                    pane.begin_scroll(drawn).by(STEP * steps, drawn.extent);
                }
            }
            (_, None) if self.mode == Mode::Chat => {
                self.chat.scroll.by(STEP * steps, self.measures.chat);
            }
            (_, None) => {}
        }
        Vec::new()
    }

    fn click(&mut self, target: Target, area: Rect, at: Position) -> Vec<Effect> {
        let row = usize::from(at.y - area.y);
        let column = usize::from(at.x - area.x);
        match target {
            Target::Action(action) => return self.perform(action),
            Target::Mode(mode) => self.mode = mode,
            Target::Text { top } => {
                let width = usize::from(area.width);
                match &mut self.panel {
                    Some(Panel::System(editor)) => editor.click(top + row, column, width),
                    _ => {
                        self.compare.focus = None;
                        self.input.click(top + row, column, width);
                    }
                }
            }
            Target::Chat { top } => {
                let starts = &self.measures.messages;
                let place = starts.partition_point(|start| *start <= top + row);
                self.chat.select_at(place.saturating_sub(1));
            }
            Target::Pane(place) => self.click_pane(place, at),
            Target::List { top } => return self.click_list(top + row),
            Target::Field(place) => self.go_to_field(place),
            Target::Help | Target::Panel => {}
        }
        Vec::new()
    }

    fn click_pane(&mut self, place: usize, at: Position) {
        let drawn = self.measures.panes.get(place).copied().unwrap_or_default();
        let Some(pane) = self.compare.panes.get_mut(place) else {
            return;
        };
        self.compare.focus = Some(place);
        let text = drawn.text;
        if text.contains(at) {
            let row = drawn.top + usize::from(at.y - text.y);
            // The clicked token is in view already.
            pane.begin_scroll(drawn);
            pane.select_at(row, usize::from(at.x - text.x), usize::from(text.width));
        }
    }

    /// Chooses a row of a list; in a list of arms to compare, marks it.
    fn click_list(&mut self, row: usize) -> Vec<Effect> {
        let (Some(Panel::Arms { picker, .. }) | Some(Panel::Sessions { picker, .. })) =
            &mut self.panel
        else {
            return Vec::new();
        };
        picker.at = row;
        match (&self.panel, self.mode) {
            (Some(Panel::Arms { .. }), Mode::Compare) => self.act_in_panel(Action::Next),
            _ => self.act_in_panel(Action::Send),
        }
    }

    /// Goes to a parameter, unless the current value is invalid and cannot be left.
    fn go_to_field(&mut self, place: usize) {
        while let Some(Panel::Sampling { at, .. }) = self.panel {
            let action = match at.cmp(&place) {
                std::cmp::Ordering::Less => Action::Down,
                std::cmp::Ordering::Greater => Action::Up,
                std::cmp::Ordering::Equal => return,
            };
            self.act_in_panel(action);
            let refused = matches!(
                self.panel,
                Some(Panel::Sampling {
                    refused: Some(_),
                    ..
                })
            );
            if refused {
                return;
            }
        }
    }
}
