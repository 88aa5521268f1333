//! Forks and files.

use std::{fs, path::PathBuf};

use super::*;

/// A kernel that shares the cache of another one.
fn fork(kernel: &DeltallmKernel) -> Box<DeltallmKernel> {
    let mut fork = ptr::dangling_mut();
    // SAFETY: a kernel, and a place for the answer.
    assert_eq!(unsafe { deltallm_kernel_fork(Some(kernel), &mut fork) }, Ok, "{}", last_error());
    // SAFETY: what the library hands out is such a box, and this is its only owner.
    unsafe { Box::from_raw(fork) }
}

fn save(kernel: &DeltallmKernel, path: &CString) -> DeltallmStatus {
    // SAFETY: a kernel, and a text with a zero at the end.
    unsafe { deltallm_kernel_save(Some(kernel), path.as_ptr()) }
}

fn load(kernel: &DeltallmKernel, path: &CString) -> DeltallmStatus {
    // SAFETY: a kernel, and a text with a zero at the end.
    unsafe { deltallm_kernel_load(ptr::from_ref(kernel).cast_mut(), path.as_ptr()) }
}

/// A file that goes away with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("deltallm-c-{}-{name}.kv", std::process::id())))
    }

    fn path(&self) -> CString {
        CString::new(self.0.to_str().unwrap()).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn forks_and_files_go_on_as_the_kernel_they_come_from() {
    for more in [r#", "store": "compact""#, r#", "store": "f16", "exact_rewind": 8"#] {
        let file = Scratch::new("goes-on");
        let kernel = hybrid(more).unwrap();
        assert_eq!(forward(&kernel, 0, 300).0, Ok);
        assert_eq!(save(&kernel, &file.path()), Ok, "{}", last_error());
        let (fork, loaded) = (fork(&kernel), hybrid(more).unwrap());
        assert_eq!(load(&loaded, &file.path()), Ok, "{}", last_error());
        assert_eq!(forward(&fork, 500, 20).0, Ok, "it goes its own way");
        let answer = forward(&kernel, 300, 1);
        assert_eq!((len(&kernel), len(&fork), len(&loaded)), (301, 320, 300));
        assert_eq!(forward(&loaded, 300, 1), answer);
        // Back, where it is exact, and the same again.
        assert_eq!(forward(&loaded, 900, 1).0, Ok);
        if more.contains("exact_rewind") {
            assert_eq!(truncate(&loaded, 300), Ok);
            assert_eq!(forward(&loaded, 300, 1), answer);
        }
    }
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let (file, kernel) = (Scratch::new("refused"), hybrid(r#", "store": "compact""#).unwrap());
    assert_eq!(forward(&kernel, 0, 100).0, Ok);
    assert_error(load(&dense(), &file.path()), File, "refused.kv: ");
    assert_eq!(save(&kernel, &file.path()), Ok);
    assert_error(load(&dense(), &file.path()), File, "expected kernel");
    assert_error(load(&kernel, &file.path()), File, "empty");
    let small = hybrid(r#", "store": "compact", "budget_bytes": 2000"#).unwrap();
    assert_error(load(&small, &file.path()), Budget, "refused.kv: ");
    let whole = fs::read(&file.0).unwrap();
    fs::write(&file.0, &whole[..whole.len() - 1]).unwrap();
    let empty = hybrid(r#", "store": "compact""#).unwrap();
    assert_error(load(&empty, &file.path()), File, "bytes");
    assert_eq!(len(&empty), 0);
    let folder = CString::new("/there/is/no/such/folder/x.kv").unwrap();
    assert_error(save(&kernel, &folder), File, "/there/is/no/such/folder/x.kv: ");
    // SAFETY: nothing is there to be read or written.
    unsafe {
        let (none, mut fork) = (ptr::null(), ptr::dangling_mut());
        assert_error(deltallm_kernel_save(Some(&kernel), none), InvalidArgument, "path: ");
        assert_error(deltallm_kernel_save(None, file.path().as_ptr()), InvalidArgument, "kernel: ");
        assert_error(
            deltallm_kernel_load(ptr::null_mut(), file.path().as_ptr()),
            InvalidArgument,
            "kernel: ",
        );
        assert_error(deltallm_kernel_fork(None, &mut fork), InvalidArgument, "kernel: ");
        assert!(fork.is_null());
        assert_error(deltallm_kernel_fork(Some(&kernel), ptr::null_mut()), InvalidArgument, "fork: ");
    }
}
