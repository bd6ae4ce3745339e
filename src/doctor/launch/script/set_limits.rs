//! Carries out the commands that set limits, and remembers the line that sets each.
#![forbid(unsafe_code)]

use std::rc::Rc;

use super::walk::{ScriptState, Walk};
use crate::doctor::launch::field::Field;
use crate::doctor::launch::limits::{Amount, LimitChange, LimitPair, LimitValue, Limited, Setting};
use crate::doctor::launch::programs;
use crate::doctor::launch::shell::Shell;

impl Walk<'_> {
    /// Returns the line that a field comes from, with that field as its number.
    pub(super) fn setting(
        &self,
        what: Limited,
        value: LimitValue,
        field: &Field,
        number: &str,
    ) -> Rc<Setting> {
        let whole =
            self.lines.get(&field.file).and_then(|lines| lines.get(field.line.checked_sub(1)?));
        let whole = whole.map_or("", String::as_str);
        let text = whole.trim();
        let cut = whole.len() - whole.trim_start().len();
        Rc::new(Setting {
            what,
            value,
            file: field.file.clone(),
            line: field.line,
            text: text.to_owned(),
            number: number.to_owned(),
            from: field.column.saturating_sub(cut),
        })
    }

    pub(super) fn changes(&self, args: &[Field]) -> Vec<LimitChange> {
        programs::ulimit(self.shell, args).iter().map(|set| self.change(set)).collect()
    }

    pub(super) fn change(&self, set: &programs::SetLimit<'_>) -> LimitChange {
        let value = match set.amount {
            Amount::Value(value) => value,
            Amount::Soft | Amount::Hard => LimitValue::Unknown,
        };
        let setting = self.setting(set.what, value, set.field, set.number);
        LimitChange { part: set.part, amount: set.amount, above: set.above, setting }
    }

    /// Carries out `ulimit` with these arguments.
    pub(super) fn ulimit(&mut self, args: &[Field], place: &mut ScriptState) {
        let machine = self.host.kernel_limits();
        let before = place.limits.files.clone();
        // If the shell cannot be seen, it may be dash or bash, which differ: follow both.
        let shells = match self.shell {
            Shell::Unknown => &[Shell::Bash, Shell::Dash][..],
            ref shell => std::slice::from_ref(shell),
        };
        let sets = |shell: &Shell| {
            programs::ulimit(*shell, args).iter().map(|set| self.change(set)).collect()
        };
        let changes: Vec<Vec<LimitChange>> = shells.iter().map(sets).collect();
        let mut ways = changes.iter().map(|changes| {
            let mut way = place.clone();
            for change in changes {
                way.limits.apply(change, machine);
            }
            way
        });
        if let Some(first) = ways.next() {
            let after = ways.fold(first, |mut all, way| {
                all.join(&way);
                all
            });
            *place = after;
        }
        let is_number = |field: &Field| {
            field.text.starts_with(|c: char| c.is_ascii_digit()) || field.text == "unlimited"
        };
        let is_files =
            args.iter().any(|field| field.text.starts_with('-') && field.text.contains('n'));
        let soft =
            |pairs: &[LimitPair]| pairs.iter().map(|pair| pair.soft.clone()).collect::<Vec<_>>();
        if is_files && args.iter().any(is_number) && soft(&before) == soft(&place.limits.files) {
            let field = &args[0];
            let setting = self.setting(Limited::OpenFiles, LimitValue::Unknown, field, "");
            self.found.idle.push(format!("{} ({})", setting.place(), setting.text));
        }
    }
}
