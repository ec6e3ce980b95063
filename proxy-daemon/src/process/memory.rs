//! Our own memory: who hands it out, and what is given back.
//!
//! Requests allocate on one thread and are freed on another (the ledger, the
//! store of attempts), which the C library's arenas pay for with locks and
//! system calls; jemalloc's do not.
use std::ptr;

use procfs::process::{MMPermissions, MMapPath, Process};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// How jemalloc is to be, read once before `main`: few arenas, since our
/// threads are few; pages that are free soon go back to the kernel.
// SAFETY: jemalloc reads a C string at this name, and the text ends with a
// zero; of the slice it sees the pointer, which comes first.
#[allow(unsafe_code)]
#[unsafe(export_name = "_rjem_malloc_conf")]
static OPTIONS: &[u8] = b"narenas:2,dirty_decay_ms:250,muzzy_decay_ms:0\0";

/// Purges every arena (`MALLCTL_ARENAS_ALL` in jemalloc.h).
const PURGE: &std::ffi::CStr = c"arena.4096.purge";

/// Gives back what only the start needed: memory that is free, but kept by the
/// allocator, and our own code and constants, which come back page by page as
/// they are used.
pub fn release() {
    release_program();
    // SAFETY: the name ends with a zero, nothing is read or written, and it may
    // be called at any time.
    #[allow(unsafe_code)]
    unsafe {
        tikv_jemalloc_sys::mallctl(PURGE.as_ptr(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut(), 0);
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
            nix::libc::madvise(start as *mut nix::libc::c_void, length, nix::libc::MADV_DONTNEED);
        }
    }
}
