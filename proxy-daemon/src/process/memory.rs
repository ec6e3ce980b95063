//! Our own memory: who hands it out, and what is given back.
//!
//! Requests allocate on one thread and are freed on another (the ledger, the
//! store of attempts), which the C library's arenas pay for with locks and
//! system calls; jemalloc's do not.
use std::{ffi::CStr, ptr};

use nix::libc;
use procfs::process::{MMPermissions, MMapPath, Process};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// How jemalloc is to be, read once before `main`: few arenas, since our
/// threads are few; and pages that are free go back to the kernel at once,
/// since what the start takes is not needed again.
// SAFETY: jemalloc reads a C string at this name, and the text ends with a
// zero; of the slice it sees the pointer, which comes first.
#[allow(unsafe_code)]
#[unsafe(export_name = "_rjem_malloc_conf")]
static OPTIONS: &[u8] = b"narenas:2,dirty_decay_ms:0,muzzy_decay_ms:0\0";

/// The arenas' own setting of when pages go back.
const ARENAS: [&CStr; 2] = [c"arena.0.dirty_decay_ms", c"arena.1.dirty_decay_ms"];
/// Once we serve: what is free is soon used again.
const KEPT_MS: libc::ssize_t = 250;

/// Gives back what only the start needed: our own code and constants, which
/// come back page by page as they are used. From here on memory that is free is
/// kept for a moment.
pub fn release() {
    release_program();
    for arena in ARENAS {
        let mut kept = KEPT_MS;
        // SAFETY: the name ends with a zero; a signed size is read, of the
        // length that is told; an arena that was never used says so, and is
        // none that matters.
        #[allow(unsafe_code)]
        unsafe {
            let value = (&raw mut kept).cast();
            tikv_jemalloc_sys::mallctl(arena.as_ptr(), ptr::null_mut(), ptr::null_mut(), value, size_of_val(&kept));
        }
    }
}

fn release_program() {
    let Ok(maps) = Process::myself().and_then(|me| me.smaps()) else { return };
    for map in maps {
        let (from, to) = map.address;
        let file = matches!(map.pathname, MMapPath::Path(_));
        // What was written to before it was locked (relocations) is not in the
        // file.
        let clean = map.extension.map.get("Anonymous") == Some(&0);
        if !file || !clean || map.perms.contains(MMPermissions::WRITE) || map.perms.contains(MMPermissions::SHARED) {
            continue;
        }
        let (Ok(start), Ok(length)) = (usize::try_from(from), usize::try_from(to - from)) else { continue };
        // SAFETY: the mapping is of a file and can only be read, and nothing in
        // it is ours alone: its pages are read again as they are needed.
        #[allow(unsafe_code)]
        unsafe {
            libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
        }
    }
}
