//! What kind of file system a file lies on, from `/proc/self/mountinfo`.

use std::path::Path;

use super::Root;

/// File systems whose bytes come over a network, and `fuse` ones that usually do.
const NETWORK: &[&str] = &[
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "ceph",
    "glusterfs",
    "lustre",
    "gpfs",
    "afs",
    "beegfs",
    "fuse.sshfs",
    "fuse.s3fs",
    "fuse.gcsfuse",
    "fuse.rclone",
    "fuse.goofys",
    "fuse.mount-s3",
    "fuse.blobfuse",
    "fuse.blobfuse2",
    "fuse.juicefs",
    "fuse.glusterfs",
    "fuse.ceph",
];

/// The type of the file system that holds `path` (absolute, without links), such as `ext4`; `None` if unknown.
pub(crate) fn file_system(root: &Root, path: &Path) -> Option<String> {
    let info = root.text("/proc/self/mountinfo")?;
    let mounts = info.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = unescaped(left.split(' ').nth(4)?);
        Some((point, right.split(' ').next()?.to_owned()))
    });
    // The last of several mounts at one point hides the others.
    mounts
        .filter(|(point, _)| path.starts_with(point))
        .max_by_key(|(point, _)| Path::new(point).components().count())
        .map(|(_, kind)| kind)
}

/// Whether a file system's bytes come over a network.
pub(crate) fn is_network(file_system: &str) -> bool {
    NETWORK.contains(&file_system)
}

/// mountinfo writes blanks as `\\040`.
fn unescaped(point: &str) -> String {
    point.replace("\\040", " ").replace("\\011", "\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_counts() {
        let root = Root::of_report(
            "=== /proc/self/mountinfo\n22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:40 / /srv/my\\040models rw - nfs4 nas:/m rw\n",
        );
        let kind = |path: &str| file_system(&root, Path::new(path)).unwrap();
        assert_eq!(kind("/srv/my models/a.gguf"), "nfs4");
        assert_eq!(kind("/srv/my/a.gguf"), "ext4");
        assert!(is_network("nfs4") && !is_network("ext4") && !is_network("overlay"));
    }
}
