//! Compares the machine that a compiler compiles for with the one that the gate was compiled for.
//! Reads the first bytes of an object, because a link would fail without naming the cause.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::process::run_captured;
use super::scratch::{Keep, Scratch};
use crate::tree::Tree;

/// The longest time that a compiler may take for one line.
const PATIENCE: Duration = Duration::from_secs(30);

/// The kind of machine that an ELF object is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectTarget {
    /// 1: 32 bits, 2: 64 bits.
    class: u8,
    /// 1: low byte first, 2: high byte first.
    order: u8,
    /// The number in the ELF table of machines.
    machine: u16,
}

impl ObjectTarget {
    /// Returns the target of an object; `None` if it is not an ELF object (an object of another
    /// system, or what `-flto` leaves for the linker).
    #[must_use]
    pub fn of_object(bytes: &[u8]) -> Option<ObjectTarget> {
        let [0x7f, b'E', b'L', b'F', class @ (1 | 2), order @ (1 | 2), ..] = *bytes else {
            return None;
        };
        let machine = [*bytes.get(18)?, *bytes.get(19)?];
        let machine =
            if order == 1 { u16::from_le_bytes(machine) } else { u16::from_be_bytes(machine) };
        Some(ObjectTarget { class, order, machine })
    }

    /// Returns the target of the first object in an archive.
    #[must_use]
    pub fn of_archive(bytes: &[u8]) -> Option<ObjectTarget> {
        const HEADER: usize = 60;
        let mut rest = bytes.strip_prefix(b"!<arch>\n")?;
        loop {
            let size =
                std::str::from_utf8(rest.get(48..58)?).ok()?.trim_end().parse::<usize>().ok()?;
            let member = rest.get(HEADER..HEADER.checked_add(size)?)?;
            // The symbol table and the table of long names come first. In BSD archives a long name
            // comes before the object.
            let start = (0..member.len().min(256)).find(|&at| member[at..].starts_with(b"\x7fELF"));
            if let Some(target) = start.and_then(|at| ObjectTarget::of_object(&member[at..])) {
                return Some(target);
            }
            // Each member starts at an even byte.
            rest = rest.get(HEADER + size + size % 2..)?;
        }
    }

    /// Returns the target of the tree's conf-cc; `None` if it cannot be determined, for example
    /// without that compiler. Writes nothing into the tree. Root does not run the command itself:
    /// see [`super::identity::Identity`].
    #[must_use]
    pub fn of_compiler(tree: &Tree) -> Option<ObjectTarget> {
        let conf_cc = tree.read("conf-cc").ok()?;
        let line = String::from_utf8(conf_cc).ok()?.lines().next()?.to_owned();
        let scratch = Scratch::new(tree.root(), None, Keep::No).ok()?;
        let (source, object) = (scratch.root().join("one.c"), scratch.root().join("one.o"));
        std::fs::write(&source, "int one;\n").ok()?;
        scratch.identity().chown(&source).ok()?;
        let mut command = scratch.identity().command("sh");
        command.arg("-c").arg(format!("exec {line} \"$@\"")).arg("sh");
        command.args(["-fno-lto", "-c", "-o"]).arg(&object).arg(&source);
        command.env("LC_ALL", "C").env("TMPDIR", scratch.root());
        command.current_dir(folder(tree.root(), scratch.root()));
        run_captured(command, "conf-cc", PATIENCE).ok()?;
        ObjectTarget::of_object(&std::fs::read(&object).ok()?)
    }
}

/// Returns the tree's folder, or `other` if the user that runs the commands may not enter the tree.
fn folder<'p>(tree: &'p Path, other: &'p Path) -> &'p Path {
    use std::os::unix::fs::MetadataExt;
    let open = |dir: &Path| std::fs::metadata(dir).is_ok_and(|m| m.mode() & 0o001 != 0);
    if crate::sys::effective_uid() != 0 || tree.ancestors().all(open) { tree } else { other }
}

impl fmt::Display for ObjectTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.class == 1 { 32 } else { 64 };
        let name = match self.machine {
            3 => "x86",
            8 => "MIPS",
            20 | 21 => "PowerPC",
            22 => "S/390",
            40 => "ARM",
            43 => "SPARC",
            62 => "x86-64",
            183 => "AArch64",
            243 => "RISC-V",
            258 => "LoongArch",
            other => return write!(f, "machine {other} of ELF with {bits} bits"),
        };
        match (self.machine, self.order) {
            (62, _) if bits == 32 => f.write_str("x32 (x86-64 with pointers of 32 bits)"),
            (62 | 183, _) => f.write_str(name),
            (8 | 20 | 21, 1) => write!(f, "{name} with {bits} bits, the low byte first"),
            _ => write!(f, "{name} with {bits} bits"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(class: u8, order: u8, machine: [u8; 2]) -> Vec<u8> {
        let mut bytes = b"\x7fELF".to_vec();
        bytes.extend([class, order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        bytes.extend(machine);
        bytes
    }

    #[test]
    fn objects_tell_their_machine() {
        for (class, order, machine, shown) in [
            (2, 1, [62, 0], "x86-64"),
            (1, 1, [62, 0], "x32 (x86-64 with pointers of 32 bits)"),
            (1, 1, [3, 0], "x86 with 32 bits"),
            (2, 2, [0, 22], "S/390 with 64 bits"),
            (2, 1, [21, 0], "PowerPC with 64 bits, the low byte first"),
            (2, 1, [0, 9], "machine 2304 of ELF with 64 bits"),
        ] {
            let target =
                ObjectTarget::of_object(&object(class, order, machine)).expect("an object");
            assert_eq!(target.to_string(), shown);
        }
        for none in
            [&b""[..], b"\x7fELF", b"\x7fELF\x03\x01", b"BC\xc0\xde", b"\x7fELF\x01\x01........"]
        {
            assert_eq!(ObjectTarget::of_object(none), None);
        }
    }

    #[test]
    fn an_archive_tells_that_of_its_first_object() {
        let member = |bytes: &[u8]| {
            let mut all = format!("{:<48}{:<10}`\n", "name/", bytes.len()).into_bytes();
            all.extend(bytes);
            all.extend(vec![b'\n'; bytes.len() % 2]);
            all
        };
        let object = object(1, 1, [3, 0]);
        let archive = [&b"!<arch>\n"[..], &member(b"symbols"), &member(&object)].concat();
        assert_eq!(ObjectTarget::of_archive(&archive), ObjectTarget::of_object(&object));
        for cut in 0..archive.len() {
            let _ = ObjectTarget::of_archive(&archive[..cut]);
        }
        assert_eq!(ObjectTarget::of_archive(b"!<arch>\n"), None);
        let gate = crate::patches::gate_library();
        assert!(ObjectTarget::of_archive(gate).is_some() || cfg!(not(target_os = "linux")));
    }
}
