//! Where the fields lie that the kernel side reads: offsets into the kernel's
//! structures, from the type information that the kernel publishes (BTF).
//!
//! Rust cannot have them relocated at load time, so they are looked up here.
//! The reader knows as much of the format as that takes: one pass over the
//! types to find the structures by name, then their members.
//! (Format: Documentation/bpf/btf.rst in the kernel's source.)
use std::fs;

/// Offsets in bytes; 0 for a field that was not found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) task_tgid: u32,
    pub(super) task_group_leader: u32,
    pub(super) task_start_boottime: u32,
    pub(super) task_real_parent: u32,
    pub(super) task_signal: u32,
    pub(super) signal_live: u32,
    pub(super) task_comm: u32,
    pub(super) task_exec_id: u32,
    pub(super) task_mm: u32,
    pub(super) mm_arg_start: u32,
    pub(super) mm_arg_end: u32,
    pub(super) task_pid: u32,
    pub(super) pid_level: u32,
    pub(super) pid_numbers: u32,
    /// The kernel knows MPTCP sockets.
    pub(super) mptcp: bool,
}

pub(super) const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

impl Layout {
    /// Of the running kernel; empty where it publishes none.
    pub(super) fn of_kernel() -> Self {
        fs::read(KERNEL_BTF).ok().and_then(|bytes| Self::parse(&bytes)).unwrap_or_default()
    }

    /// `None` for bytes that are no BTF.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let btf = Btf::new(bytes)?;
        let task = btf.named("task_struct");
        let signal = btf.named("signal_struct");
        let (memory, pid) = (btf.named("mm_struct"), btf.named("pid"));
        let offset = |of: Option<usize>, name| of.and_then(|at| btf.member(at, name, 0)).unwrap_or_default();
        Some(Self {
            task_tgid: offset(task, "tgid"),
            task_group_leader: offset(task, "group_leader"),
            task_start_boottime: offset(task, "start_boottime"),
            task_real_parent: offset(task, "real_parent"),
            task_signal: offset(task, "signal"),
            signal_live: offset(signal, "live"),
            task_comm: offset(task, "comm"),
            task_exec_id: offset(task, "self_exec_id"),
            task_mm: offset(task, "mm"),
            mm_arg_start: offset(memory, "arg_start"),
            mm_arg_end: offset(memory, "arg_end"),
            task_pid: offset(task, "thread_pid"),
            pid_level: offset(pid, "level"),
            pid_numbers: offset(pid, "numbers"),
            mptcp: btf.named("mptcp_sock").is_some(),
        })
    }

    /// Enough to follow a process tree.
    pub(super) fn knows_tasks(&self) -> bool {
        [
            self.task_tgid,
            self.task_group_leader,
            self.task_start_boottime,
            self.task_real_parent,
            self.task_signal,
            self.signal_live,
        ]
        .iter()
        .all(|offset| *offset != 0)
    }

    /// Enough to keep the command lines of processes that end early.
    pub(super) fn knows_commands(&self) -> bool {
        [self.task_exec_id, self.task_mm, self.mm_arg_start, self.mm_arg_end].iter().all(|offset| *offset != 0)
    }
}

struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`; the first is number 1.
    starts: Vec<u32>,
}

/// Anonymous members within anonymous members: real kernels have three.
const MAX_NESTING: u32 = 8;
const HEAD: usize = 12;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

impl<'a> Btf<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        let magic = u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]);
        let header = word(bytes, 4)? as usize;
        let part = |offset: usize, length: usize| {
            let from = header.checked_add(word(bytes, offset)? as usize)?;
            bytes.get(from..from.checked_add(word(bytes, length)? as usize)?)
        };
        let mut btf = Self { types: part(8, 12)?, strings: part(16, 20)?, starts: Vec::new() };
        btf.starts.reserve(btf.types.len() / 24);
        let mut at = 0;
        while at < btf.types.len() {
            btf.starts.push(u32::try_from(at).ok()?);
            at += HEAD + btf.tail(at)?;
        }
        (magic == MAGIC).then_some(btf)
    }

    /// Length of what follows a type's head.
    fn tail(&self, at: usize) -> Option<usize> {
        let info = word(self.types, at + 4)?;
        let count = (info & 0xffff) as usize;
        Some(match kind(info) {
            // Pointers, typedefs and other names for a type; forwards; floats.
            2 | 7..=12 | 16 | 18 => 0,
            // Integers, variables, declaration tags.
            1 | 14 | 17 => 4,
            // Arrays.
            3 => 12,
            // Enums, function parameters.
            6 | 13 => count * 8,
            // Structures, unions, data sections, wide enums.
            KIND_STRUCT | KIND_UNION | 15 | 19 => count * 12,
            _ => return None,
        })
    }

    /// Where the structure of this name begins.
    fn named(&self, name: &str) -> Option<usize> {
        self.starts.iter().map(|at| *at as usize).find(|at| {
            word(self.types, at + 4).is_some_and(|info| kind(info) == KIND_STRUCT)
                && word(self.types, *at).is_some_and(|text| self.says(text, name))
        })
    }

    /// Offset in bytes of a member, also within anonymous members.
    fn member(&self, structure: usize, name: &str, depth: u32) -> Option<u32> {
        let info = word(self.types, structure + 4)?;
        if depth > MAX_NESTING || !matches!(kind(info), KIND_STRUCT | KIND_UNION) {
            return None;
        }
        // With the flag, the upper byte is the width of a bit field.
        let bits = if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        (0..(info & 0xffff) as usize).find_map(|index| {
            let at = structure + HEAD + index * 12;
            let here = (word(self.types, at + 8)? & bits) / 8;
            let text = word(self.types, at)?;
            if text == 0 {
                let inner = *self.starts.get(word(self.types, at + 4)?.checked_sub(1)? as usize)?;
                return Some(here + self.member(inner as usize, name, depth + 1)?);
            }
            self.says(text, name).then_some(here)
        })
    }

    fn says(&self, text: u32, name: &str) -> bool {
        self.strings
            .get(text as usize..)
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_kernel() {
        let layout = Layout::of_kernel();
        assert!(layout.knows_tasks() && layout.knows_commands(), "{layout:?}");
        assert!(layout.task_comm != 0 && layout.task_pid != 0 && layout.pid_level != 0 && layout.pid_numbers != 0);
    }

    #[test]
    fn survives_what_is_no_btf() {
        assert_eq!(Layout::parse(&[]), None);
        assert_eq!(Layout::parse(&[0; 64]), None);
        let mut cut = fs::read(KERNEL_BTF).expect("this kernel's BTF");
        cut.truncate(1 << 20);
        assert_eq!(Layout::parse(&cut), None);
    }
}
