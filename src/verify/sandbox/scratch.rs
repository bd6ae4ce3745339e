//! A private copy of a tree, with a qmail home of its own, in a temporary directory that goes away with its owner.
//!
//! A [`Scratch`] is the directory; a [`Site`] in it is one copy of the tree, configured for one compiler and one
//! conf-spawn, beside the home (control/, bin/, queue/) that the copy is compiled for.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::identity::Identity;
use crate::engine::edit::{self, Edit};
use crate::engine::lex::{Kind, Lang, Source};
use crate::sys;
use crate::tree::Tree;
use crate::verify::error::Error;

/// Larger than any qmail tree (with its objects a few tens of megabytes): a wrong directory is noticed before it is
/// copied.
const MAX_BYTES: u64 = 1 << 30;
const MAX_FILES: u64 = 100_000;

/// The conf-* files by which a Makefile tells the programs where qmail's home is: s/qmail's is conf-home.
const HOMES: [&str; 2] = ["conf-qmail", "conf-home"];

/// The last letters of qmail's users (auto_uida: alias, daemon, log, owner, passwd, queue, remote, send) and groups (queue,
/// nofiles).
const UIDS: [char; 8] = ['a', 'd', 'l', 'o', 'p', 'q', 'r', 's'];
const GIDS: [char; 2] = ['q', 'n'];

/// Whether the scratch directory outlives its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// Removed when the [`Scratch`] is dropped.
    #[default]
    No,
    /// Left where it is, to look inside.
    Yes,
}

/// A temporary directory for proofs.
#[derive(Debug)]
pub struct Scratch {
    root: PathBuf,
    identity: Identity,
    keep: Keep,
}

/// How a [`Site`]'s copy of the tree is configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SiteConfig {
    /// What to write into conf-spawn; `None` leaves what the tree has.
    pub spawn: Option<u32>,
    /// The compiler, in place of the first word of conf-cc and conf-ld; their flags stay.
    pub cc: Option<String>,
    /// Further words for the end of conf-cc's first line, which a shell reads.
    pub cflags: Vec<String>,
    /// A folder whose files are copied into the home's control/, but for those that the rig writes or relies on.
    pub control: Option<PathBuf>,
}

impl Scratch {
    /// Makes the directory: below `parent` if given, else below the first of `$TMPDIR`, /tmp and /var/tmp that can be
    /// written and run programs from. `tree` only decides whom programs run as ([`Identity::for_tree`]).
    pub fn new(tree: &Path, parent: Option<&Path>, keep: Keep) -> Result<Scratch, Error> {
        let identity = Identity::for_tree(tree)?;
        let candidates: Vec<PathBuf> = match parent {
            Some(parent) => vec![parent.to_path_buf()],
            None => std::env::var_os("TMPDIR")
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from)
                .into_iter()
                .chain([PathBuf::from("/tmp"), PathBuf::from("/var/tmp")])
                .collect(),
        };
        let mut tried = Vec::new();
        for candidate in candidates {
            match Self::make_root(&candidate, identity) {
                Ok(root) => {
                    let scratch = Scratch { root, identity, keep };
                    identity.give(&scratch.root)?;
                    return Ok(scratch);
                }
                Err(reason) => tried.push((candidate, reason)),
            }
        }
        Err(Error::NoPlace { tried })
    }

    fn make_root(parent: &Path, identity: Identity) -> Result<PathBuf, String> {
        let parent = fs::canonicalize(parent).map_err(|error| error.to_string())?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,@:=".contains(&byte);
        if !parent.as_os_str().as_encoded_bytes().iter().all(|byte| plain(*byte)) {
            return Err("qmail's Makefile cannot have this name in conf-qmail".to_owned());
        }
        if identity.changes() {
            for dir in parent.ancestors() {
                let mode = fs::metadata(dir).map_err(|error| error.to_string())?.mode();
                if mode & 0o001 == 0 {
                    return Err(format!("user {} cannot enter {}", identity.uid(), dir.display()));
                }
            }
        }
        if !sys::can_execute_from(&parent).map_err(|error| error.to_string())? {
            return Err("mounted noexec".to_owned());
        }
        sys::mkdtemp(&parent.join("qpatch-verify.XXXXXX")).map_err(|error| error.to_string())
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whom programs run as.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Copies `tree` into a new site called `name` and configures the copy. Nothing is compiled yet.
    pub fn site(&self, tree: &Path, name: &str, config: &SiteConfig) -> Result<Site, Error> {
        let settings = Settings::of_tree(tree)?;
        let base = self.root.join(name);
        let site = Site {
            tree: base.join("tree"),
            settings,
            home: base.join("home"),
            rig: base.join("rig"),
            identity: self.identity,
            cc: String::new(),
            spawn: 0,
            split: 23,
            todo: TodoLayout::Flat,
            supplemental: Supplemental::default(),
        };
        make_dir(&base, self.identity)?;
        copy_tree(tree, &site.tree, self.identity)?;
        site.settings.copy_above(tree, &base, self.identity)?;
        site.configure(config)
    }

    /// Copies `tree` to a directory called `name`, to be changed before a site is made of it.
    pub fn copy(&self, tree: &Path, name: &str) -> Result<PathBuf, Error> {
        let settings = Settings::of_tree(tree)?;
        let copy = self.root.join(name);
        copy_tree(tree, &copy, self.identity)?;
        settings.copy_above(tree, &self.root, self.identity)?;
        Ok(copy)
    }

    /// Removes the directory (unless it is kept) and says so if that failed.
    pub fn close(mut self) -> Result<(), Error> {
        self.remove()
    }

    fn remove(&mut self) -> Result<(), Error> {
        if self.keep == Keep::Yes {
            return Ok(());
        }
        // Only once, whatever happens: the name could be somebody else's afterwards.
        self.keep = Keep::Yes;
        fs::remove_dir_all(&self.root).map_err(Error::file("remove", &self.root))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

/// Where the tree's qmail-queue puts a new message's envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TodoLayout {
    /// queue/todo/N, as in stock qmail.
    Flat,
    /// queue/todo/S/N, as trees with the big-todo patch.
    Split,
}

/// One configured copy of a tree, with its home.
#[derive(Debug)]
pub struct Site {
    tree: PathBuf,
    settings: Settings,
    home: PathBuf,
    rig: PathBuf,
    identity: Identity,
    cc: String,
    spawn: u32,
    split: u32,
    todo: TodoLayout,
    supplemental: Supplemental,
}

/// The remote channels that a tree has beside the usual one, each with a qmail-rspawn of its own: trees with the channels patch,
/// whose qmail-send chooses the channel by the recipient's domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Supplemental {
    /// How many there are.
    pub count: u32,
    /// What their folders below queue/ are called, and so they are in the log: this and a number, from 0 on.
    pub name: String,
}

impl Site {
    /// The copy of the tree.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// The qmail home that the copy is compiled for (its conf-qmail).
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Where stubs find what they need: the events pipe and the holds.
    pub fn rig(&self) -> &Path {
        &self.rig
    }

    /// Whom programs run as.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// conf-spawn of the copy.
    pub fn spawn(&self) -> u32 {
        self.spawn
    }

    /// The first line of conf-cc: the compiler and its flags, as a line of a shell.
    pub fn cc(&self) -> &str {
        &self.cc
    }

    /// The compiler with its flags, to be given further ones. As in `./compile`, a shell reads the line, in the tree: there may be
    /// quotes, variables and commands in backquotes in it.
    pub(crate) fn compiler(&self) -> Command {
        let mut command = self.command("sh");
        command.arg("-c").arg(format!("exec {} \"$@\"", self.cc)).arg("sh");
        command
    }

    /// Its supplemental channels.
    pub fn supplemental(&self) -> &Supplemental {
        &self.supplemental
    }

    /// The domain whose mail goes over supplemental channel `number`.
    pub fn supplemental_domain(&self, number: u32) -> String {
        format!("suppl{number}.example")
    }

    /// How the tree lays out queue/todo.
    pub fn todo_layout(&self) -> TodoLayout {
        self.todo
    }

    fn configure(mut self, config: &SiteConfig) -> Result<Site, Error> {
        let (mut cc, mut ld) = (self.conf_line("conf-cc")?, self.conf_line("conf-ld")?);
        if let Some(wanted) = &config.cc {
            for line in [&mut cc, &mut ld] {
                line.replace_range(..first_word(line), wanted);
            }
        }
        for flag in &config.cflags {
            cc.push(' ');
            cc.push_str(flag);
        }
        ld.push(' ');
        ld.push_str(&self.rig.join("link.o").display().to_string());
        self.set_conf("conf-cc", &cc)?;
        self.set_conf("conf-ld", &ld)?;
        self.set_conf(self.settings.home, &self.home.display().to_string())?;
        if let Some(spawn) = config.spawn {
            self.set_conf("conf-spawn", &spawn.to_string())?;
        }
        self.cc = cc;
        self.spawn = self.conf_number("conf-spawn")?;
        if self.spawn == 0 {
            let found = "0: nothing would ever be delivered";
            return Err(Error::disproved(
                "conf-spawn",
                "1 or more",
                found,
                "qpatch apply --spawn N",
            ));
        }
        if self.conf_path("conf-split").exists() {
            self.split = self.conf_number("conf-split")?.max(1);
        }
        self.set_ids()?;
        self.make_home()?;
        if let Some(control) = &config.control {
            self.copy_control(control, &self.home.join("control"))?;
        }
        Ok(self)
    }

    /// Gives the programs of the copy the rig's ids where the tree does not make auto_uids.c of qmail's users (there, link.c
    /// does): fixed numbers in a source that no rule makes, and ids that programs ask the owners of files in QMAIL/owners for.
    fn set_ids(&self) -> Result<(), Error> {
        let rules = crate::verify::proofs::build::targets(&self.tree)?;
        for entry in fs::read_dir(&self.tree).map_err(Error::file("read", &self.tree))? {
            let name = entry.map_err(Error::file("read", &self.tree))?.file_name();
            let text = name.to_string_lossy();
            if !text.ends_with(".c") || rules.contains(text.as_ref()) {
                continue;
            }
            let path = self.tree.join(&name);
            let Ok(source) = fs::read(&path) else { continue };
            if memchr::memmem::find(&source, b"/owners/").is_some() {
                self.make_owners()?;
            }
            if memchr::memmem::find(&source, b"auto_").is_some()
                && let Some(changed) = with_ids(&source, self.identity)
            {
                let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
                let _ = fs::remove_file(&path);
                self.write(&path, &changed)?;
                let file = fs::File::options().write(true).open(&path);
                let set = file.and_then(|file| file.set_modified(modified?));
                set.map_err(Error::file("set the time of", &path))?;
            }
        }
        Ok(())
    }

    fn make_owners(&self) -> Result<(), Error> {
        let owners = self.home.join("owners");
        make_dir(&owners, self.identity)?;
        for user in UIDS {
            self.write(&owners.join(format!("uid{user}")), &[])?;
        }
        for group in GIDS {
            self.write(&owners.join(format!("gid{group}")), &[])?;
        }
        Ok(())
    }

    /// Copies what is in the folder `from`, and in folders in it, where nothing is yet and the rig does not rely on what
    /// qmail does without.
    fn copy_control(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let entries = fs::read_dir(from).map_err(Error::file("read", from))?;
        for entry in entries {
            let name = entry.map_err(Error::file("read", from))?.file_name();
            let (from, to) = (from.join(&name), to.join(&name));
            if is_of_the_rig(&name.to_string_lossy()) || to.exists() {
                continue;
            }
            let metadata = fs::metadata(&from).map_err(Error::file("look at", &from))?;
            if metadata.is_dir() {
                make_dir(&to, self.identity)?;
                self.copy_control(&from, &to)?;
            } else if metadata.is_file() {
                let bytes = fs::read(&from).map_err(Error::file("read", &from))?;
                self.write(&to, &bytes)?;
                // There may be a password in it.
                fs::set_permissions(&to, fs::Permissions::from_mode(0o600))
                    .map_err(Error::file("set the mode of", &to))?;
            }
        }
        Ok(())
    }

    /// Where a conf-* file of the copy is: one folder up in some trees.
    fn conf_path(&self, name: &str) -> PathBuf {
        let above = self.settings.above.contains(name);
        let folder = self.tree.parent().filter(|_| above).unwrap_or(&self.tree);
        folder.join(name)
    }

    fn conf_line(&self, name: &str) -> Result<String, Error> {
        let path = self.conf_path(name);
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        Ok(String::from_utf8_lossy(line).trim().to_owned())
    }

    fn conf_number(&self, name: &str) -> Result<u32, Error> {
        let line = self.conf_line(name)?;
        line.parse().map_err(|_| {
            Error::disproved(
                name,
                "a number in the first line",
                format!("{line:?}"),
                "correct the file",
            )
        })
    }

    /// Replaces the first line of a conf-* file, which is what the Makefile reads; the rest explains it and stays.
    pub fn set_conf(&self, name: &str, value: &str) -> Result<(), Error> {
        let path = self.conf_path(name);
        let old = match fs::read(&path) {
            Ok(old) => old,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::file("read", &path)(error)),
        };
        let rest = old.iter().position(|byte| *byte == b'\n').map_or(&b"\n"[..], |at| &old[at..]);
        let mut new = value.as_bytes().to_vec();
        new.extend_from_slice(rest);
        // A new file, not the old one overwritten: the copy may be read-only.
        let _ = fs::remove_file(&path);
        self.write(&path, &new)
    }

    /// Writes a file of the site and gives it to the user that runs it.
    ///
    /// # Errors
    /// The file cannot be written, or not be given away.
    pub fn write(&self, path: &Path, contents: &[u8]) -> Result<(), Error> {
        let mut file = fs::File::create(path).map_err(Error::file("write", path))?;
        file.write_all(contents).map_err(Error::file("write", path))?;
        self.identity.give(path)
    }

    /// Writes `control/NAME` of the home.
    pub fn set_control(&self, name: &str, contents: &str) -> Result<(), Error> {
        self.write(&self.home.join("control").join(name), contents.as_bytes())
    }

    fn make_home(&mut self) -> Result<(), Error> {
        for dir in ["", "bin", "control", "users", "alias", "boot", "queue"] {
            make_dir(&self.home.join(dir), self.identity)?;
        }
        for dir in ["", "hold", "tmp"] {
            make_dir(&self.rig.join(dir), self.identity)?;
        }
        self.supplemental = Supplemental::of_site(self);
        let mut layout = QueueLayout::of_site(self)?;
        for number in 0..self.supplemental.count {
            layout.split.insert(format!("{}{number}", self.supplemental.name));
            self.set_control(
                &format!("suppls{number}"),
                &format!("{}\n", self.supplemental_domain(number)),
            )?;
        }
        if layout.split.contains("todo") {
            self.todo = TodoLayout::Split;
        }
        let queue = self.home.join("queue");
        for name in &layout.flat {
            make_dir(&queue.join(name), self.identity)?;
        }
        for name in &layout.split {
            make_dir(&queue.join(name), self.identity)?;
            for part in 0..self.split {
                make_dir(&queue.join(name).join(part.to_string()), self.identity)?;
            }
        }
        make_dir(&queue.join("lock"), self.identity)?;
        self.write(&queue.join("lock/tcpto"), &[0; 1024])?;
        self.write(&queue.join("lock/sendmutex"), &[])?;
        if layout.has_shared {
            // What qmail-rspawns tell each other, and the files of each.
            self.write(&queue.join("lock/gateshared"), &[])?;
            for number in 0..=self.supplemental.count {
                let dot = if number == 0 { String::new() } else { format!(".{number}") };
                for name in ["gatestatus", "gatesites"] {
                    self.write(&queue.join(format!("lock/{name}{dot}")), &[])?;
                }
            }
        }
        let trigger = queue.join("lock/trigger");
        sys::mkfifo(&trigger, 0o622).map_err(Error::file("make the pipe", &trigger))?;
        self.identity.give(&trigger)?;
        self.set_control("me", "verify.example\n")?;
        self.set_control("locals", "local.example\n")
    }

    /// A command that runs as the site's user, with an environment that belongs to the site: temporary files stay in
    /// the scratch directory, an outer make's flags do not reach the tree's, and messages are in English.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.identity.command(program);
        for name in
            ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEFILES", "GNUMAKEFLAGS", "CFLAGS", "LDFLAGS"]
        {
            command.env_remove(name);
        }
        command
            .env("LC_ALL", "C")
            .env("TMPDIR", self.rig.join("tmp"))
            .env("HOME", self.rig.join("tmp"))
            .current_dir(&self.tree);
        command
    }

    /// Puts a message of `body` into queue/mess, owned as qmail expects, and returns its number.
    pub fn add_message(&self, body: &[u8]) -> Result<MessageId, Error> {
        let queue = self.home.join("queue");
        let fresh = queue.join("pid").join(format!("rig.{}", std::process::id()));
        self.write(&fresh, body)?;
        let number = fs::metadata(&fresh).map_err(Error::file("look at", &fresh))?.ino();
        let id =
            MessageId { number, part: u32::try_from(number % u64::from(self.split)).unwrap_or(0) };
        let path = queue.join(id.path("mess"));
        fs::rename(&fresh, &path).map_err(Error::file("make", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .map_err(Error::file("set the mode of", &path))?;
        Ok(id)
    }

    /// Puts a whole message into the queue as qmail-queue does, without the cost of running it: queue/mess and the
    /// envelope in queue/todo, for qmail-send's next look there.
    pub fn queue_message(
        &self,
        body: &[u8],
        sender: &str,
        recipients: &[String],
    ) -> Result<MessageId, Error> {
        let id = self.add_message(body)?;
        let mut envelope =
            format!("u{}\0p{}\0F{sender}\0", self.identity.uid(), std::process::id()).into_bytes();
        for recipient in recipients {
            envelope.push(b'T');
            envelope.extend_from_slice(recipient.as_bytes());
            envelope.push(0);
        }
        let queue = self.home.join("queue");
        let name = |dir: &str| match self.todo {
            TodoLayout::Flat => format!("{dir}/{}", id.number),
            TodoLayout::Split => id.path(dir),
        };
        let (intd, todo) = (queue.join(name("intd")), queue.join(name("todo")));
        self.write(&intd, &envelope)?;
        fs::hard_link(&intd, &todo).map_err(Error::file("make", &todo))?;
        Ok(id)
    }
}

/// The number of a message in the queue, and the part (conf-split) it lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    /// Its number: that of its inode.
    pub number: u64,
    part: u32,
}

impl MessageId {
    /// Its path below queue/, as in `mess/7/12345`.
    pub fn path(&self, dir: &str) -> String {
        format!("{dir}/{}/{}", self.part, self.number)
    }

    /// What a spawner is told, relative to queue/mess: `7/12345`.
    pub fn relative(&self) -> String {
        format!("{}/{}", self.part, self.number)
    }
}

/// Checks that `tree` is a qmail source tree, and one that verify can build.
pub fn check_tree(tree: &Path) -> Result<(), Error> {
    Settings::of_tree(tree).map(|_| ())
}

/// Where a tree keeps the settings that verify changes in its copy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Settings {
    /// The file that tells where qmail's home is.
    home: &'static str,
    /// The conf-* files that lie one folder up.
    above: BTreeSet<String>,
}

impl Settings {
    /// By the same rule as every other command: see [`Tree::open`].
    fn of_tree(path: &Path) -> Result<Settings, Error> {
        let tree = Tree::open(path).map_err(Error::Tree)?;
        let no = |why: String| Error::NotBuilt { tree: path.to_path_buf(), why };
        for name in ["conf-spawn", "conf-cc", "conf-ld"] {
            if !tree.names().contains(name) {
                return Err(no(missing(&tree, name)));
            }
        }
        let makefile = tree.read("Makefile").map_err(Error::Tree)?;
        let makefile = String::from_utf8_lossy(&makefile);
        let Some(home) = HOMES.into_iter().find(|name| makefile.contains(name)) else {
            let names = HOMES.join(" nor ");
            return Err(no(format!(
                "its Makefile names neither {names}, so the copy cannot get a qmail home of its own"
            )));
        };
        if !tree.names().contains(home) {
            return Err(no(missing(&tree, home)));
        }
        let above = tree.names().iter().filter(|name| tree.is_above(name)).cloned().collect();
        Ok(Settings { home, above })
    }

    /// Copies what lies one folder up from `tree` to the folder `to`.
    fn copy_above(&self, tree: &Path, to: &Path, identity: Identity) -> Result<(), Error> {
        let tree = Tree::open(tree).map_err(Error::Tree)?;
        for name in &self.above {
            let bytes = tree.read(name).map_err(Error::Tree)?;
            let path = to.join(name);
            fs::write(&path, bytes).map_err(Error::file("write", &path))?;
            identity.give(&path)?;
        }
        Ok(())
    }
}

/// That `tree` has no `name`, and what makes it, where that is known.
fn missing(tree: &Tree, name: &str) -> String {
    let template = format!("{name}.in");
    let is_script = |script: &&String| script.ends_with("configure") || script.ends_with(".sh");
    let script = tree.names().iter().filter(is_script).find(|script| {
        let text = tree.read(script).unwrap_or_default();
        let wanted = if tree.names().contains(&template) { &template } else { name };
        memchr::memmem::find(&text, wanted.as_bytes()).is_some()
    });
    match script {
        Some(script) => format!("it has no {name}, which its {script} makes: run that first"),
        None => format!("it has no {name}"),
    }
}

/// `source` with the ids of `identity` wherever it defines one of qmail's (`int auto_uidq = 64011;`); `None` where it does not.
fn with_ids(source: &[u8], identity: Identity) -> Option<Vec<u8>> {
    let c = Source::new(Lang::C, source);
    let mut edits = Vec::new();
    for at in 0..c.tokens.len().saturating_sub(2) {
        let name = c.text(at);
        let of = |start: &[u8], ends: &[char]| {
            let end = name.strip_prefix(start).filter(|end| end.len() == 1);
            end.is_some_and(|end| ends.contains(&char::from(end[0])))
        };
        let id = if of(b"auto_uid", &UIDS) {
            identity.uid()
        } else if of(b"auto_gid", &GIDS) {
            identity.gid()
        } else {
            continue;
        };
        if c.is(at + 1, Kind::Punct, "=") && c.tokens[at + 2].kind == Kind::Number {
            let range = c.tokens[at + 2].span.clone();
            edits.push(Edit { range, text: id.to_string().into_bytes() });
        }
    }
    (!edits.is_empty()).then(|| edit::apply(source, &edits))
}

/// Where the first word of a shell's line ends: at the first blank that is in no quotes, no backquotes and no brackets.
fn first_word(line: &str) -> usize {
    let (mut quote, mut depth, mut escaped) = (None, 0_u32, false);
    let start = line.len() - line.trim_start().len();
    for (at, c) in line.char_indices().skip(start) {
        match c {
            _ if escaped => escaped = false,
            '\\' if quote != Some('\'') => escaped = true,
            '\'' | '"' | '`' if quote == Some(c) => quote = None,
            '\'' | '"' | '`' if quote.is_none() => quote = Some(c),
            '(' | '{' if quote.is_none() => depth += 1,
            ')' | '}' if quote.is_none() => depth = depth.saturating_sub(1),
            ' ' | '\t' if quote.is_none() && depth == 0 => return at,
            _ => {}
        }
    }
    line.len()
}

/// Whether a control file decides where mail of the rig goes, how much at once, or for how long: what `--control` brings of these
/// is left out.
fn is_of_the_rig(name: &str) -> bool {
    const NAMES: [&str; 12] = [
        "me",
        "defaultdomain",
        "defaulthost",
        "plusdomain",
        "envnoathost",
        "percenthack",
        "queuelifetime",
        "bouncefrom",
        "bouncehost",
        "doublebounceto",
        "doublebouncehost",
        "virtualdomains",
    ];
    // Those with relays as they are, and as *.cdb: a gate that follows them would count the rig's mail by these relays.
    const STARTS: [&str; 8] = [
        "locals",
        "concurrency",
        "suppls",
        "gate",
        "smtproutes",
        "moresmtproutes",
        "qmtproutes",
        "authsenders",
    ];
    NAMES.contains(&name) || STARTS.iter().any(|start| name.starts_with(start))
}

fn make_dir(path: &Path, identity: Identity) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::file("make", path))?;
    identity.give(path)
}

/// Which directories the tree's own installer makes below queue/, read from hier.c as it is compiled; stock qmail's where it has
/// none.
#[derive(Debug, PartialEq, Eq)]
struct QueueLayout {
    flat: BTreeSet<String>,
    split: BTreeSet<String>,
    /// It makes the file by which several qmail-rspawn count together.
    has_shared: bool,
}

impl QueueLayout {
    fn of_site(site: &Site) -> Result<QueueLayout, Error> {
        let path = site.tree.join("hier.c");
        let source = match fs::read(&path) {
            Ok(source) => source,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::file("read", &path)(error)),
        };
        // What is not compiled does not count. Headers that are yet to be made are left out. Where the compiler finds fault
        // all the same, all of the source counts.
        let text = String::from_utf8_lossy(&source);
        let is_there = |line: &&str| {
            let header = line.trim_start().strip_prefix('#').and_then(|rest| {
                let (_, name) = rest.trim_start().strip_prefix("include")?.split_once('"')?;
                name.split_once('"').map(|(name, _)| name)
            });
            header.is_none_or(|header| site.tree.join(header).exists())
        };
        let own: String = text.split_inclusive('\n').filter(is_there).collect();
        let compiled = preprocessed(site, own.as_bytes());
        Ok(Self::of_hier(&compiled.map_or(text, |compiled| compiled.into())))
    }

    fn of_hier(source: &str) -> QueueLayout {
        let set =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let mut layout = QueueLayout {
            flat: set(&["pid", "intd", "todo", "bounce"]),
            split: set(&["mess", "info", "local", "remote"]),
            has_shared: source.contains("\"queue/lock/gateshared\""),
        };
        let squeezed: String = source.chars().filter(|c| !c.is_whitespace()).collect();
        for (call, names) in
            [("dsplit(\"queue/", &mut layout.split), ("d(auto_qmail,\"queue/", &mut layout.flat)]
        {
            for found in squeezed.split(call).skip(1) {
                let name = found.split('"').next().unwrap_or_default();
                let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                if !name.is_empty() && plain {
                    names.insert(name.to_owned());
                }
            }
        }
        layout
    }
}

/// What channels.h says, by way of the tree's compiler: a line.
const CHANNELS_C: &str = "#include \"channels.h\"\n#include <stdio.h>\n#ifndef QDIR_BASENAME\n#define QDIR_BASENAME \"suppl\"\n\
    #endif\nint main(void) { printf(\"%d %s\\n\",(int) (SUPPL_CHANNELS),QDIR_BASENAME); return 0; }\n";

impl Supplemental {
    /// None where the tree has no channels.h, or it says nothing of them.
    fn of_site(site: &Site) -> Supplemental {
        Self::told_by(site).unwrap_or_default()
    }

    fn told_by(site: &Site) -> Option<Supplemental> {
        let name = "channels.h";
        if !site.tree.join(name).exists() {
            crate::verify::proofs::build::targets(&site.tree).ok()?.contains(name).then_some(())?;
            // The build fails at the same place, and tells why.
            crate::verify::proofs::build::make(site, &[name]).ok()?;
        }
        let (source, program) = (site.rig.join("channels.c"), site.rig.join("channels"));
        site.write(&source, CHANNELS_C.as_bytes()).ok()?;
        let mut command = site.compiler();
        command.args(["-w", "-I."]).arg("-o").arg(&program).arg(&source);
        command.output().ok().filter(|output| output.status.success())?;
        let output = site.command(&program).output().ok()?;
        let said = String::from_utf8(output.stdout).ok()?;
        let (count, name) = said.trim_end().split_once(' ')?;
        Some(Supplemental { count: count.parse().ok()?, name: name.to_owned() })
    }
}

/// What of a source the tree's compiler would see; `None` if it finds fault with it.
fn preprocessed(site: &Site, source: &[u8]) -> Option<String> {
    let path = site.rig.join("preprocess.c");
    site.write(&path, source).ok()?;
    let output = site.compiler().args(["-E", "-P", "-I."]).arg(&path).output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Copies a tree's sources: with modes and times, without what make has built and without version control.
fn copy_tree(from: &Path, to: &Path, identity: Identity) -> Result<(), Error> {
    let built: BTreeSet<String> = match fs::read(from.join("TARGETS")) {
        Ok(list) => String::from_utf8_lossy(&list).split_whitespace().map(str::to_owned).collect(),
        Err(_) => BTreeSet::new(),
    };
    let from = fs::canonicalize(from).map_err(Error::file("look at", from))?;
    let rules = crate::verify::proofs::build::targets(&from)?;
    let makefile = fs::read(from.join("Makefile")).unwrap_or_default();
    let mut lines = makefile.split(|byte| *byte == b'\n');
    let all_rules =
        !lines.any(|line| line.starts_with(b"include") || line.starts_with(b"-include"));
    let mut copier =
        Copier { root: from.clone(), built, rules, all_rules, identity, bytes: 0, files: 0 };
    copier.directory(&from, to)
}

struct Copier {
    root: PathBuf,
    built: BTreeSet<String>,
    rules: BTreeSet<String>,
    /// The Makefile includes no other.
    all_rules: bool,
    identity: Identity,
    bytes: u64,
    files: u64,
}

impl Copier {
    fn directory(&mut self, from: &Path, to: &Path) -> Result<(), Error> {
        fs::create_dir(to).map_err(Error::file("make", to))?;
        for entry in fs::read_dir(from).map_err(Error::file("read", from))? {
            let entry = entry.map_err(Error::file("read", from))?;
            if sys::stop_signal().is_some() {
                return Err(super::process::interrupted());
            }
            self.entry(from, &entry.file_name(), to)?;
        }
        self.identity.give(to)
    }

    fn entry(
        &mut self,
        from_dir: &Path,
        name: &std::ffi::OsStr,
        to_dir: &Path,
    ) -> Result<(), Error> {
        let (from, to) = (from_dir.join(name), to_dir.join(name));
        let text = name.to_string_lossy();
        if [".git", ".hg", ".svn", ".qpatch", "CVS"].contains(&text.as_ref()) {
            return Ok(());
        }
        // Followed: the target of a link may lie outside the tree, and then its contents are what make sees.
        let metadata = match fs::metadata(&from) {
            Ok(metadata) => metadata,
            // A link to nothing is as good as no file; so is one that went away meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::file("look at", &from)(error)),
        };
        if metadata.is_dir() {
            let real = fs::canonicalize(&from).map_err(Error::file("look at", &from))?;
            // A link to a directory above itself would be copied for ever.
            if from.starts_with(&real) && from != real {
                return Ok(());
            }
            return self.directory(&from, &to);
        }
        if !metadata.is_file() || self.is_built(from_dir, &text) {
            return Ok(());
        }
        self.files += 1;
        self.bytes += metadata.len();
        if self.files > MAX_FILES || self.bytes > MAX_BYTES {
            return Err(Error::Tree(crate::error::Error::new(
                self.root.display(),
                "too large to be a qmail source tree",
                "name the folder that holds qmail's Makefile and spawn.c, and nothing else",
            )));
        }
        fs::copy(&from, &to).map_err(Error::file("copy", &from))?;
        let mode = metadata.permissions().mode() | 0o600;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode & 0o777))
            .map_err(Error::file("set the mode of", &to))?;
        let file = fs::File::options().write(true).open(&to).map_err(Error::file("open", &to))?;
        let modified = metadata.modified().map_err(Error::file("look at", &from))?;
        file.set_modified(modified).map_err(Error::file("set the time of", &to))?;
        self.identity.give(&to)
    }

    /// What `make clean` would remove (qmail trees list it in TARGETS), and objects and archives that the Makefile
    /// makes: built for other settings, they would only be in the way. (An archive that it does not make came with the
    /// tree, as the gate does.)
    fn is_built(&self, dir: &Path, name: &str) -> bool {
        if dir != self.root {
            return name.ends_with(".o");
        }
        let object = name.ends_with(".o") || name.ends_with(".a");
        let is_made = self.rules.contains(name);
        // TARGETS still lists auto_uids.c where a fork ships it and has dropped its rule.
        let is_listed =
            self.built.contains(name) && (is_made || !self.all_rules || !name.ends_with(".c"));
        is_listed || (object && is_made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_layout_is_stocks_where_hier_says_nothing() {
        let layout = QueueLayout::of_hier("");
        assert!(layout.flat.contains("todo"));
        assert!(layout.split.contains("remote"));
    }

    #[test]
    fn queue_layout_follows_hier() {
        let layout = QueueLayout::of_hier(
            "dsplit( \"queue/todo\" ,u,0750);\n d (auto_qmail,\n\"queue/extra\",1);",
        );
        assert!(layout.split.contains("todo"));
        assert!(layout.flat.contains("extra"));
    }

    #[test]
    fn a_directory_that_is_no_tree_is_named_with_what_it_lacks() {
        let scratch = Scratch::new(Path::new("/"), None, Keep::No).expect("scratch");
        let error = check_tree(scratch.root()).expect_err("empty directory");
        assert!(
            error.to_string().contains("not a qmail source tree: it has no Makefile"),
            "{error}"
        );
    }

    #[test]
    fn control_files_that_decide_where_mail_goes_are_the_rig_s() {
        let routes = ["smtproutes", "smtproutes.cdb", "moresmtproutes.cdb", "qmtproutes"];
        for name in routes.into_iter().chain(["authsenders", "me", "concurrencydomains", "locals"])
        {
            assert!(is_of_the_rig(name), "{name}");
        }
        for name in ["ldapserver", "ldap", "helohost", "messages", "mailroutes"] {
            assert!(!is_of_the_rig(name), "{name}");
        }
    }

    #[test]
    fn the_first_word_of_a_line_may_have_blanks() {
        for (line, end) in [
            ("cc -O2", 2),
            ("cc", 2),
            ("", 0),
            (" cc -O2", 3),
            ("`which gcc` -O2", 11),
            ("$(head -1 a) -O2", 12),
            ("${CC:-c c} -O2", 10),
            ("'my cc' -O2", 7),
            ("my\\ cc -O2", 6),
            ("\"my 'cc\" '-O2'", 8),
        ] {
            assert_eq!(first_word(line), end, "{line}");
        }
    }

    #[test]
    fn ids_in_a_source_become_the_rig_s() {
        let identity = Identity::for_tree(Path::new("/")).expect("an identity");
        let source =
            b"int auto_uida = 64010;\nint auto_gidq=64010, auto_other = 1;\n/* auto_uids = 7 */\n";
        let (uid, gid) = (identity.uid(), identity.gid());
        let wanted = format!(
            "int auto_uida = {uid};\nint auto_gidq={gid}, auto_other = 1;\n/* auto_uids = 7 */\n"
        );
        assert_eq!(with_ids(source, identity), Some(wanted.into_bytes()));
        assert_eq!(with_ids(b"if (uid == auto_uidq) auto_uidr = getuid();", identity), None);
    }

    #[test]
    fn a_scratch_leaves_nothing_behind() {
        let scratch = Scratch::new(Path::new("/"), None, Keep::No).expect("scratch");
        let root = scratch.root().to_path_buf();
        fs::write(root.join("file"), "x").expect("write");
        assert!(root.exists());
        drop(scratch);
        assert!(!root.exists());
    }
}
