//! Configures a copy of a tree: its compiler, conf-spawn, users and home.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::copy::make_dir;
use super::identity::Identity;
use super::makefile::targets;
use super::private_tree::{Fsync, Sandbox, TodoLayout};
use super::queue_layout::{QueueLayout, supplemental};
use crate::engine::edit::{self, Edit};
use crate::engine::lex::{Lang, Source, TokenKind};
use crate::qmail::conf_line::first_word;
use crate::sys;
use crate::verify::error::Error;

/// The configuration of a [`Sandbox`]'s copy of the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxConfig {
    /// The value for conf-spawn; `None` keeps the tree's.
    pub spawn: Option<u32>,
    /// The compiler, in place of the first word of conf-cc and conf-ld; their flags stay.
    pub cc: Option<String>,
    /// Further words for the end of conf-cc's first line. A shell reads that line.
    pub cflags: Vec<String>,
    /// A folder whose files are copied into the home's control/, except those that the rig writes
    /// or relies on.
    pub control: Option<PathBuf>,
    /// What fsync() does.
    pub fsync: Fsync,
}

/// The last letters of qmail's users (auto_uida: alias, daemon, log, owner, passwd, queue, remote, send) and groups
/// (queue, nofiles).
const UIDS: [char; 8] = ['a', 'd', 'l', 'o', 'p', 'q', 'r', 's'];
const GIDS: [char; 2] = ['q', 'n'];

/// Configures a fresh copy and makes its home.
pub(super) fn configure(mut sandbox: Sandbox, config: &SandboxConfig) -> Result<Sandbox, Error> {
    let (mut cc, mut ld) = (sandbox.conf_line("conf-cc")?, sandbox.conf_line("conf-ld")?);
    if let Some(wanted) = &config.cc {
        for line in [&mut cc, &mut ld] {
            line.replace_range(..first_word(line), wanted);
        }
        sandbox.asked_cc = Some(wanted.clone());
    }
    for flag in &config.cflags {
        cc.push(' ');
        cc.push_str(flag);
    }
    ld.push(' ');
    ld.push_str(&sandbox.rig().join("link.o").display().to_string());
    sandbox.set_conf("conf-cc", &cc)?;
    sandbox.set_conf("conf-ld", &ld)?;
    sandbox.set_conf(sandbox.settings.home, &sandbox.home().display().to_string())?;
    if let Some(spawn) = config.spawn {
        sandbox.set_conf("conf-spawn", &spawn.to_string())?;
    }
    sandbox.cc = cc;
    sandbox.fsync = config.fsync;
    sandbox.spawn = sandbox.conf_number("conf-spawn")?;
    if sandbox.spawn == 0 {
        let found = "0: nothing would ever be delivered";
        return Err(Error::disproved("conf-spawn", "1 or more", found, "qpatch apply --spawn N"));
    }
    if sandbox.conf_path("conf-split").exists() {
        sandbox.split = sandbox.conf_number("conf-split")?.max(1);
    }
    set_ids(&sandbox)?;
    make_home(&mut sandbox)?;
    if let Some(control) = &config.control {
        let root = control.canonicalize().map_err(Error::file("read", control))?;
        let mut room = CONTROL_MAX;
        copy_control(&sandbox, &root, (control, &sandbox.home().join("control")), &mut room)?;
    }
    Ok(sandbox)
}

/// Gives the programs of the copy the rig's ids if the tree does not build auto_uids.c from qmail's
/// users (if it does, link.c gives them). Some trees have fixed numbers in a source that no rule
/// makes. In others, programs ask for the owners of files in QMAIL/owners.
fn set_ids(sandbox: &Sandbox) -> Result<(), Error> {
    let rules = targets(sandbox.tree())?;
    for entry in fs::read_dir(sandbox.tree()).map_err(Error::file("read", sandbox.tree()))? {
        let name = entry.map_err(Error::file("read", sandbox.tree()))?.file_name();
        let text = name.to_string_lossy();
        if !text.ends_with(".c") || rules.contains(text.as_ref()) {
            continue;
        }
        let path = sandbox.tree().join(&name);
        let Ok(source) = fs::read(&path) else { continue };
        if memchr::memmem::find(&source, b"/owners/").is_some() {
            make_owners(sandbox)?;
        }
        if memchr::memmem::find(&source, b"auto_").is_some()
            && let Some(changed) = with_ids(&source, sandbox.identity())
        {
            let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
            let _ = fs::remove_file(&path);
            sandbox.write(&path, &changed)?;
            let file = fs::File::options().write(true).open(&path);
            let set = file.and_then(|file| file.set_modified(modified?));
            set.map_err(Error::file("set the time of", &path))?;
        }
    }
    Ok(())
}

fn make_owners(sandbox: &Sandbox) -> Result<(), Error> {
    let owners = sandbox.home().join("owners");
    make_dir(&owners, sandbox.identity())?;
    for user in UIDS {
        sandbox.write(&owners.join(format!("uid{user}")), &[])?;
    }
    for group in GIDS {
        sandbox.write(&owners.join(format!("gid{group}")), &[])?;
    }
    Ok(())
}

/// The most that `--control` copies, in bytes. Each file counts as one block at least.
const CONTROL_MAX: u64 = 256 << 20;
/// The size of a block.
const BLOCK: u64 = 4096;

/// Copies the files in `from`, and in folders below it. Skips files that exist already, and files
/// that the rig writes or needs absent. `root` is the folder of `--control`, without links; `room` is
/// how many bytes may still be copied.
///
/// # Errors
/// A link leads out of `root` or to a folder, there is no room, or a file cannot be read or written.
fn copy_control(
    sandbox: &Sandbox,
    root: &Path,
    (from, to): (&Path, &Path),
    room: &mut u64,
) -> Result<(), Error> {
    let entries = fs::read_dir(from).map_err(Error::file("read", from))?;
    for entry in entries {
        let name = entry.map_err(Error::file("read", from))?.file_name();
        let (from, to) = (from.join(&name), to.join(&name));
        if is_of_the_rig(&name.to_string_lossy()) || to.exists() {
            continue;
        }
        let refused = |why: &str| Error::file("copy", &from)(io::Error::other(why));
        let is_link =
            fs::symlink_metadata(&from).map_err(Error::file("look at", &from))?.is_symlink();
        let target = from.canonicalize().map_err(Error::file("look at", &from))?;
        if is_link && !target.starts_with(root) {
            return Err(refused("it is a link out of the folder of --control"));
        }
        let metadata = fs::metadata(&target).map_err(Error::file("look at", &from))?;
        if metadata.is_dir() && is_link {
            return Err(refused("it is a link to a folder"));
        }
        *room = room
            .checked_sub(metadata.len().max(BLOCK))
            .ok_or_else(|| refused("the folder of --control has more than 256 MiB"))?;
        if metadata.is_dir() {
            make_dir(&to, sandbox.identity())?;
            copy_control(sandbox, root, (&from, &to), room)?;
        } else if metadata.is_file() {
            let bytes = fs::read(&target).map_err(Error::file("read", &from))?;
            sandbox.write(&to, &bytes)?;
            // The file may contain a password.
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600))
                .map_err(Error::file("set the mode of", &to))?;
        }
    }
    Ok(())
}

fn make_home(sandbox: &mut Sandbox) -> Result<(), Error> {
    for dir in ["", "bin", "control", "users", "alias", "boot", "queue"] {
        make_dir(&sandbox.home().join(dir), sandbox.identity())?;
    }
    for dir in ["", "hold", "tmp"] {
        make_dir(&sandbox.rig().join(dir), sandbox.identity())?;
    }
    sandbox.supplemental = supplemental(sandbox);
    let mut layout = QueueLayout::of_sandbox(sandbox)?;
    for number in 0..sandbox.supplemental.count {
        layout.split.insert(format!("{}{number}", sandbox.supplemental.name));
        sandbox.set_control(
            &format!("suppls{number}"),
            &format!("{}\n", sandbox.supplemental_domain(number)),
        )?;
    }
    if layout.split.contains("todo") {
        sandbox.todo = TodoLayout::Split;
    }
    let queue = sandbox.home().join("queue");
    for name in &layout.flat {
        make_dir(&queue.join(name), sandbox.identity())?;
    }
    for name in &layout.split {
        make_dir(&queue.join(name), sandbox.identity())?;
        for part in 0..sandbox.split {
            make_dir(&queue.join(name).join(part.to_string()), sandbox.identity())?;
        }
    }
    make_dir(&queue.join("lock"), sandbox.identity())?;
    sandbox.write(&queue.join("lock/tcpto"), &[0; 1024])?;
    sandbox.write(&queue.join("lock/sendmutex"), &[])?;
    sandbox.write(&queue.join("lock/remotestatus"), &[])?;
    if layout.has_shared {
        // The file that several qmail-rspawn share, and the files of each one.
        sandbox.write(&queue.join("lock/gateshared"), &[])?;
        for number in 0..=sandbox.supplemental.count {
            let dot = if number == 0 { String::new() } else { format!(".{number}") };
            for name in ["gatestatus", "gatesites", "gatekept.rates"] {
                sandbox.write(&queue.join(format!("lock/{name}{dot}")), &[])?;
            }
        }
    }
    let trigger = queue.join("lock/trigger");
    sys::mkfifo(&trigger, 0o622).map_err(Error::file("make the pipe", &trigger))?;
    sandbox.identity().chown(&trigger)?;
    sandbox.set_control("me", "verify.example\n")?;
    sandbox.set_control("locals", "local.example\n")
}

/// Returns `source` with the ids of `identity` in place of qmail's (`int auto_uidq = 64011;`);
/// `None` if it defines none.
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
        if c.is(at + 1, TokenKind::Punct, "=") && c.tokens[at + 2].kind == TokenKind::Number {
            let range = c.tokens[at + 2].span.clone();
            edits.push(Edit { range, text: id.to_string().into_bytes() });
        }
    }
    (!edits.is_empty()).then(|| edit::apply(source, &edits))
}

/// Returns whether a control file decides where the rig's mail goes, how much goes at once, or for
/// how long. `--control` does not bring such files.
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
    // Files with relays, also as *.cdb: a gate that follows them would count the rig's mail by
    // these relays.
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
