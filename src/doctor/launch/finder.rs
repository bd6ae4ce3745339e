//! Finds what starts qmail in the places that the usual guides name: systemd's units, run scripts, init scripts.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use super::confinement;
use super::field::{Field, Variable};
use super::first_process::{FirstProcess, value};
use super::host_scripts::HostScripts;
use super::limits::{self, InheritedLimit, LimitPair, LimitState, LimitValue, Limited, Setting};
use super::programs::StartedProgram;
use super::script::{self, Walk};
use super::shell;
use super::start::{Ceiling, Launch, Service, Start};
use super::unit::{self, Tasks, Unit, UnitEntry, Units, drop_in, specifiers};
use crate::doctor::host::Host;
use crate::doctor::process;

/// The limit of descriptors that the kernel gives process 1 by default.
pub const KERNEL_FILES: u64 = 1024;

/// systemd's built-in DefaultLimitNOFILE, soft and hard, since version 240. The soft limit was the same before.
const SYSTEMD_FILES: (u64, u64) = (1024, 524_288);

/// systemd's built-in DefaultTasksMax.
const SYSTEMD_TASKS: &str = "15%";

/// Finds what starts the qmail in `home`.
pub fn find(host: &Host<'_>, home: &Path) -> Launch {
    let first = FirstProcess::of(host);
    let scripts = HostScripts::of(host, home);
    let raises_are_refused = !first.may_raise;
    let mut finder = Finder {
        host,
        scripts: &scripts,
        first,
        launch: Launch { raises_are_refused, ..Launch::default() },
        covered: BTreeSet::new(),
        supervisors: Vec::new(),
        files: BTreeSet::new(),
    };
    finder.units();
    finder.run_scripts();
    finder.init_scripts();
    finder.launch
}

/// The service folders of daemontools, runit, s6, s6-rc, s6-overlay, nosh and perp.
const SERVICE_DIRS: [&str; 16] = [
    "/var/qmail/supervise",
    "/service",
    "/etc/service",
    "/var/service",
    "/run/service",
    "/etc/sv",
    "/etc/runit/runsvdir/default",
    "/etc/s6/sv",
    "/etc/s6-rc/source",
    "/etc/s6-overlay/s6-rc.d",
    "/etc/services.d",
    "/etc/perp",
    "/var/sv",
    "/var/svc.d",
    "/usr/local/sv",
    "/var/local/sv",
];

/// The scripts of one service in such a folder.
const RUN_NAMES: [&str; 4] = ["run", "service/run", "rc.main", "up"];

/// The names of the processes of supervisors.
const SUPERVISORS: [&str; 5] = ["svscan", "runsvdir", "s6-svscan", "perpd", "service-manager"];

struct Finder<'f, 'h> {
    host: &'h Host<'h>,
    scripts: &'f HostScripts<'h>,
    first: FirstProcess,
    launch: Launch,
    /// Scripts that another script or unit starts.
    covered: BTreeSet<std::path::PathBuf>,
    /// The limits that units give to supervisors.
    supervisors: Vec<LimitState>,
    /// Scripts that were read, without links.
    files: BTreeSet<std::path::PathBuf>,
}

impl Finder<'_, '_> {
    fn units(&mut self) {
        let units = Units::new(self.host);
        let manager = units.manager();
        let mut found: Vec<(Unit, Vec<LimitState>, Vec<String>)> = Vec::new();
        for name in units.services() {
            let Some(unit) = units.load(&name) else { continue };
            let state = self.unit_state(&unit, &manager);
            let mut walk = Walk::new(self.scripts);
            let variables = self.environment(&unit);
            for variable in variables.values() {
                self.know(&mut walk, &variable.file);
            }
            for entry in unit.list("Service", "ExecStart") {
                self.know(&mut walk, &entry.file);
                for command in unit::words(&entry.value) {
                    let fields = self.exec_fields(&unit, entry, command, &variables);
                    walk.command_line(fields, &state, &variables);
                }
            }
            let states = |target: StartedProgram| -> Vec<LimitState> {
                let reaches = walk.found.reaches.iter().filter(|reach| reach.target == target);
                reaches.map(|reach| reach.state.clone()).collect()
            };
            let (ours, supervised) =
                (states(StartedProgram::Qmail), states(StartedProgram::Supervisor));
            if ours.is_empty() && supervised.is_empty() {
                // If the unit has nothing to do with qmail, it does not matter what could not be read.
                if name.contains("qmail") {
                    self.launch.unread.extend(unit.unread.iter().cloned().chain(walk.found.unread));
                }
                continue;
            }
            self.cover(&walk.found.files);
            let idle = walk.found.idle;
            self.launch.unread.extend(unit.unread.iter().cloned().chain(walk.found.unread));
            self.supervisors.extend(supervised);
            let service = self.service(&units, &manager, &unit);
            self.launch.services.push(service);
            if !ours.is_empty() {
                found.push((unit, ours, idle));
            }
        }
        for (unit, states, idle) in found {
            let file = unit.file.clone().unwrap_or_else(|| unit.name.clone());
            let raise = (drop_in(&unit.name, "Service", None), "LimitNOFILE=".to_owned());
            self.launch.starts.push(Start { file, unit: Some(unit.name), states, idle, raise });
        }
    }

    fn cover(&mut self, files: &BTreeSet<String>) {
        self.covered.extend(files.iter().filter_map(|file| self.host.real(file.as_ref())));
    }

    fn know(&self, walk: &mut Walk<'_>, file: &str) {
        if let Ok(text) = self.host.read(file) {
            walk.know(file, &text);
        }
    }

    /// Returns the variables of `Environment=` and `EnvironmentFile=`.
    fn environment(&self, unit: &Unit) -> BTreeMap<String, Variable> {
        let mut variables = BTreeMap::new();
        let mut set = |assignment: &str, file: &str, line| {
            if let Some((name, value)) = assignment.split_once('=') {
                let variable =
                    Variable { value: Some(value.to_owned()), file: file.to_owned(), line };
                variables.insert(name.trim().to_owned(), variable);
            }
        };
        for entry in unit.list("Service", "Environment") {
            for word in unit::words(&entry.value).into_iter().flatten() {
                set(&word, &entry.file, entry.line);
            }
        }
        for entry in unit.list("Service", "EnvironmentFile") {
            let path = entry.value.trim_start_matches('-');
            let Ok(text) = self.host.read(path) else { continue };
            for (index, line) in text.lines().enumerate() {
                let line = line.trim();
                if let Some((name, value)) =
                    line.split_once('=').filter(|_| !line.starts_with(['#', ';']))
                {
                    let value = value.trim().trim_matches(['"', '\'']);
                    set(&format!("{}={value}", name.trim()), path, index + 1);
                }
            }
        }
        variables
    }

    /// Returns the words of a command line of a unit, without the signs before its program, with the values of
    /// specifiers and variables.
    fn exec_fields(
        &self,
        unit: &Unit,
        entry: &UnitEntry,
        mut command: Vec<String>,
        variables: &BTreeMap<String, Variable>,
    ) -> Vec<Field> {
        let mut renames = false;
        if let Some(program) = command.first_mut() {
            let plain = program.trim_start_matches(['@', '-', ':', '+', '!', '|']);
            renames = program[..program.len() - plain.len()].contains('@');
            *program = plain.to_owned();
        }
        if renames && command.len() > 1 {
            // The second word is only the name that the program sees.
            command.remove(1);
        }
        let field = |text: String, known| Field {
            text,
            known,
            file: entry.file.clone(),
            line: entry.line,
            column: 0,
        };
        let mut fields = Vec::new();
        for word in command {
            let word = specifiers(unit, &word);
            match word.strip_prefix('$').filter(|name| shell::is_name(name)) {
                Some(name) => match variables.get(name).and_then(|variable| variable.value.clone())
                {
                    Some(value) => {
                        let variable = &variables[name];
                        let (file, line) = (variable.file.clone(), variable.line);
                        let part = |part: &str| Field {
                            file: file.clone(),
                            line,
                            ..field(part.to_owned(), true)
                        };
                        fields.extend(value.split_whitespace().map(part));
                    }
                    None => fields.push(field(word, false)),
                },
                None => {
                    let (text, known, used) = braced(&word, variables);
                    let mut field = field(text, known);
                    // The line to change is the one that sets the variable.
                    if let [variable] = used.as_slice() {
                        (field.file, field.line) = (variable.file.clone(), variable.line);
                    }
                    fields.push(field);
                }
            }
        }
        fields
    }

    /// Returns the limits with which a program of a unit starts.
    fn unit_state(&self, unit: &Unit, manager: &Unit) -> LimitState {
        let files = self.unit_limit(unit, manager, Limited::OpenFiles);
        let processes = self.unit_limit(unit, manager, Limited::Processes);
        let mut state = LimitState::new(
            files.unwrap_or(LimitPair::NOT_FOUND),
            processes.unwrap_or(LimitPair::NOT_FOUND),
        );
        if let (true, Some(limits)) = (self.first.is_systemd(), self.first.limits)
            && let Some(most) = limits.files_hard
        {
            // In a container, systemd silently reduces a limit to what it may have itself.
            let by = Rc::new(InheritedLimit {
                by: "the hard limit of process 1, which systemd cannot exceed here,".to_owned(),
                certain: true,
                raise: None,
            });
            for pair in &mut state.files {
                for bound in [&mut pair.soft, &mut pair.hard] {
                    if bound.value.allows(most + 1) == Some(true) {
                        *bound = limits::SourcedLimit {
                            value: LimitValue::Number(most),
                            source: limits::LimitSource::Inherited(by.clone()),
                        };
                    }
                }
            }
        }
        state
    }

    fn unit_limit(&self, unit: &Unit, manager: &Unit, what: Limited) -> Option<LimitPair> {
        let (key, default) = match what {
            Limited::OpenFiles => ("LimitNOFILE", "DefaultLimitNOFILE"),
            _ => ("LimitNPROC", "DefaultLimitNPROC"),
        };
        let amount = |limit: u64| {
            if limit == u64::MAX { LimitValue::Unlimited } else { LimitValue::Number(limit) }
        };
        let raise = |entry: Option<&UnitEntry>| {
            Some((drop_in(&unit.name, "Service", entry), format!("{key}=")))
        };
        let lines: Vec<&UnitEntry> = unit.all("Service", key).collect();
        if let Some((entry, (soft, hard))) =
            lines.iter().rev().find_map(|entry| Some((*entry, unit::limit(&entry.value)?)))
        {
            return Some(match setting(what, amount(soft), entry) {
                Some(setting) => {
                    let bound = |value| limits::SourcedLimit {
                        value,
                        source: limits::LimitSource::Set(Rc::clone(&setting)),
                    };
                    LimitPair { soft: bound(amount(soft)), hard: bound(amount(hard)) }
                }
                None => {
                    let by = format!("{} line {} ({})", entry.file, entry.line, entry.text);
                    let by =
                        Rc::new(InheritedLimit { by, certain: true, raise: raise(Some(entry)) });
                    LimitPair::inherited(amount(soft), amount(hard), &by)
                }
            });
        }
        let why = match lines.last() {
            Some(entry) => format!("it ignores {} line {}: {}", entry.file, entry.line, entry.text),
            None => format!("no {key} is set"),
        };
        let set = manager.all("Manager", default).rev();
        let set = set.filter_map(|entry| Some((entry, unit::limit(&entry.value)?))).next();
        let ((soft, hard), by) = match (set, what) {
            (Some((entry, limits)), _) => {
                let by = format!("systemd's default of {} line {} ({why})", entry.file, entry.line);
                (limits, by)
            }
            (None, Limited::OpenFiles) => (SYSTEMD_FILES, format!("systemd's own default ({why})")),
            (None, _) => return None,
        };
        let by = Rc::new(InheritedLimit { by, certain: true, raise: raise(None) });
        Some(LimitPair::inherited(amount(soft), amount(hard), &by))
    }

    /// Returns what 100 % of a TasksMax are.
    fn all_tasks(&self) -> Option<u64> {
        let kernel = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"];
        let root = ["/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"];
        let numbers = kernel.into_iter().chain(root).filter_map(|file| self.host.number(file).ok());
        numbers.min()
    }

    fn service(&self, units: &Units<'_>, manager: &Unit, unit: &Unit) -> Service {
        let all_tasks = self.all_tasks();
        let memory = self.host.read("/proc/meminfo").ok();
        let memory =
            memory.and_then(|text| process::field_kib(&text, "MemTotal")).map(|kib| kib << 10);
        let slices = units.slices(unit);
        let all =
            std::iter::once((unit, "Service")).chain(slices.iter().map(|slice| (slice, "Slice")));
        let (mut tasks, mut bytes) = (Vec::new(), Vec::new());
        for (one, section) in all {
            let ceiling = |entry: Option<&UnitEntry>, most, key: &str, by: String| Ceiling {
                unit: one.name.clone(),
                most,
                by,
                setting: entry.and_then(|entry| {
                    setting(Limited::UnitProcesses, LimitValue::Number(most), entry)
                }),
                raise: (drop_in(&one.name, section, entry), format!("{key}=")),
            };
            let line_and_text =
                |entry: &UnitEntry| format!("{} line {} ({})", entry.file, entry.line, entry.text);
            let line = one.all(section, "TasksMax").rev();
            let line = line
                .filter_map(|entry| Some((entry, unit::tasks(&entry.value, all_tasks)?)))
                .next();
            match line {
                Some((entry, Tasks::Number(most))) => {
                    tasks.push(ceiling(Some(entry), most, "TasksMax", line_and_text(entry)));
                }
                Some((_, Tasks::Infinity)) => {}
                Some((_, Tasks::Default)) | None if section == "Service" => {
                    let set = manager.all("Manager", "DefaultTasksMax").rev();
                    let set = set
                        .filter_map(|entry| Some((entry, unit::tasks(&entry.value, all_tasks)?)))
                        .next();
                    let (most, by) = match set {
                        Some((entry, most)) => (most, line_and_text(entry)),
                        None => (
                            unit::tasks(SYSTEMD_TASKS, all_tasks).unwrap_or(Tasks::Infinity),
                            format!("systemd's own DefaultTasksMax of {SYSTEMD_TASKS}"),
                        ),
                    };
                    if let Tasks::Number(most) = most {
                        tasks.push(ceiling(None, most, "TasksMax", by));
                    }
                }
                Some((_, Tasks::Default)) | None => {}
            }
            for key in ["MemoryMax", "MemoryLimit"] {
                let line = one.all(section, key).rev();
                let line = line
                    .filter_map(|entry| Some((entry, unit::memory(&entry.value, memory)?)))
                    .next();
                if let Some((entry, most)) = line.filter(|(_, most)| *most != u64::MAX) {
                    bytes.push(ceiling(Some(entry), most, key, line_and_text(entry)));
                }
            }
        }
        let policy = unit.last("Service", "OOMPolicy").map(|entry| entry.value.as_str());
        let default = manager.last("Manager", "DefaultOOMPolicy").map(|entry| entry.value.as_str());
        let policy = policy.filter(|policy| !policy.is_empty()).or(default).unwrap_or("stop");
        Service {
            name: unit.name.clone(),
            tasks,
            memory: bytes,
            ends_on_lack_of_memory: policy != "continue",
            obstacles: confinement::obstacles(unit, Path::new(self.scripts.home())),
        }
    }

    /// Returns the limits with which a supervisor starts its run scripts.
    fn supervised(&self) -> LimitState {
        let running = process::named(self.host, &SUPERVISORS);
        if let Some((pid, name)) = running.first()
            && let Ok(text) = self.host.read(format!("/proc/{pid}/limits"))
        {
            let limits = process::limits(&text);
            let by = Rc::new(InheritedLimit {
                by: format!("the running {name} (process {pid})"),
                certain: true,
                raise: None,
            });
            return LimitState::new(
                LimitPair::inherited(value(limits.files), value(limits.files_hard), &by),
                LimitPair::NOT_FOUND,
            );
        }
        let mut states = self.supervisors.iter();
        match states.next() {
            Some(first) => states.fold(first.clone(), |mut all, state| {
                all.join(state);
                all
            }),
            None => self.first.state(),
        }
    }

    fn run_scripts(&mut self) {
        let own = format!("{}/supervise", self.scripts.home());
        let state = self.supervised();
        for dir in std::iter::once(own.as_str()).chain(SERVICE_DIRS) {
            for service in self.host.dirs_of(dir) {
                for name in RUN_NAMES {
                    self.script(&format!("{service}/{name}"), &state);
                }
            }
        }
    }

    fn init_scripts(&mut self) {
        let scripts =
            ["/etc/init.d", "/etc/rc.d", "/etc/rc.d/init.d", "/usr/local/etc/rc.d"].into_iter();
        let scripts = scripts.flat_map(|dir| self.host.files_of(dir, ""));
        let mut scripts: Vec<String> = scripts
            .filter(|file| {
                let name = file.rsplit('/').next().unwrap_or_default();
                ["qmail", "svscan", "daemontools", "mail", "rc.local"]
                    .iter()
                    .any(|part| name.contains(part))
            })
            .collect();
        scripts.push("/etc/rc.local".to_owned());
        // It comes last, because a script that another one starts is not a beginning.
        scripts.push(format!("{}/rc", self.scripts.home()));
        let state = self.first.state();
        for file in scripts {
            self.script(&file, &state);
        }
    }

    fn script(&mut self, file: &str, state: &LimitState) {
        let Some(real) = self.host.real(file.as_ref()) else { return };
        // /service/NAME is often a link to supervise/NAME: read the file only once.
        if self.covered.contains(&real) || !self.host.is_file(file) || !self.files.insert(real) {
            return;
        }
        let text = match self.host.read(file) {
            Ok(text) => text,
            Err(why) => {
                self.launch.unread.push(why);
                return;
            }
        };
        let mut walk = Walk::new(self.scripts);
        walk.script(file, &text, state, &BTreeMap::new());
        let reaches =
            walk.found.reaches.iter().filter(|reach| reach.target == StartedProgram::Qmail);
        let states: Vec<LimitState> = reaches.map(|reach| reach.state.clone()).collect();
        let mentions = text.contains("qmail-start")
            || text.contains("qmail-send")
            || text.contains("qmail-rspawn");
        if states.is_empty() {
            if mentions && walk.found.reaches.is_empty() {
                self.launch.unread.extend(walk.found.unread);
            }
            return;
        }
        self.cover(&walk.found.files);
        self.launch.unread.extend(walk.found.unread);
        let raise = match script::is_chain(&text) {
            true => (format!("{file}, before qmail's program"), "s6-softlimit -o ".to_owned()),
            false => (format!("{file} line 2"), "ulimit -n ".to_owned()),
        };
        self.launch.starts.push(Start {
            file: file.to_owned(),
            unit: None,
            states,
            idle: walk.found.idle,
            raise,
        });
    }
}

/// Returns the line that sets something. `None` if its file belongs to a package, or is generated at each start.
fn setting(what: Limited, value: LimitValue, entry: &UnitEntry) -> Option<Rc<Setting>> {
    if !entry.file.starts_with("/etc/") {
        return None;
    }
    Some(Rc::new(Setting {
        what,
        value,
        file: entry.file.clone(),
        line: entry.line,
        text: entry.text.clone(),
        number: entry.value.clone(),
        from: entry.text.find('=').map_or(0, |at| at + 1),
    }))
}

/// Expands `${NAME}` and `$$` within a word. Returns the text, whether all of it is known, and the variables in it.
fn braced<'v>(
    word: &str,
    variables: &'v BTreeMap<String, Variable>,
) -> (String, bool, Vec<&'v Variable>) {
    let mut text = String::new();
    let mut known = true;
    let mut used = Vec::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            text.push('$');
            rest = after;
        } else if let Some((name, after)) =
            rest.strip_prefix('{').and_then(|rest| rest.split_once('}'))
        {
            match variables
                .get(name)
                .and_then(|variable| Some((variable, variable.value.as_ref()?)))
            {
                Some((variable, value)) => {
                    text.push_str(value);
                    used.push(variable);
                }
                None => {
                    known = false;
                    text.push_str(&format!("${{{name}}}"));
                }
            }
            rest = after;
        } else {
            text.push('$');
        }
    }
    text.push_str(rest);
    (text, known, used)
}
