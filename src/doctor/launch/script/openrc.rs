//! Follows a service script of OpenRC, with the settings and functions that openrc-run reads.
#![forbid(unsafe_code)]

use super::walk::{ScriptState, Walk, Within};
use crate::doctor::launch::shell::{self, PieceKind, Word};

impl Walk<'_> {
    /// Follows, in this order: the settings of all services, the settings of this one, the script, rc_ulimit, and the
    /// functions of the script.
    pub(super) fn openrc(&mut self, file: &str, text: &str, mut place: ScriptState) {
        let name = file.rsplit('/').next().unwrap_or_default();
        let confs = ["/etc/rc.conf".to_owned(), format!("/etc/conf.d/{name}")];
        for conf in confs {
            self.source_if_there(&conf, &mut place);
        }
        self.found.files.retain(|file| !file.starts_with("/etc/conf.d/") && file != "/etc/rc.conf");
        let node = shell::parse(text);
        self.run(&node, &mut place);
        place.live = true;
        let set = |place: &ScriptState, name: &str| {
            place.variables.get(name).is_some_and(|variable| variable.value.as_deref() != Some(""))
        };
        for name in ["rc_ulimit", "RC_ULIMIT"] {
            if set(&place, name) {
                let word = Word {
                    pieces: vec![shell::Piece {
                        kind: PieceKind::Variable(name.to_owned(), None),
                        text: format!("${name}"),
                        quoted: false,
                    }],
                    line: 0,
                    column: 0,
                };
                let fields = self.expand(&word, &place);
                self.ulimit(&fields, &mut place);
                break;
            }
        }
        let start = ["start_pre", "start"];
        if !self.functions.contains_key("start") && set(&place, "command") {
            let words =
                [("command", "$command"), ("command_args", "$command_args")].map(|(name, text)| {
                    Word {
                        pieces: vec![shell::Piece {
                            kind: PieceKind::Variable(name.to_owned(), None),
                            text: text.to_owned(),
                            quoted: false,
                        }],
                        line: 0,
                        column: 0,
                    }
                });
            if let Some(body) = self.functions.get("start_pre").cloned() {
                self.run(&body, &mut place);
                place.live = true;
            }
            let fields = words.iter().flat_map(|word| self.expand(word, &place)).collect();
            self.command(fields, &mut place, Within::Program);
            return;
        }
        for name in start {
            if let Some(body) = self.functions.get(name).cloned() {
                self.run(&body, &mut place);
                place.live = true;
            }
        }
    }
}
