// Package qcow2 reads QEMU's copy-on-write disks, versions 2 and 3
// (docs/interop/qcow2 of QEMU), and writes them in place.
//
// It reads every cluster kind: data, zero, compressed (deflate and zstd),
// subclusters of extended L2 entries; backing files, external data files and
// internal snapshots (Options.Snapshot). An encrypted disk, a feature bit that
// is not known and qcow version 1 are a *lun.FormatError with the field's name.
// A disk that was not closed cleanly (dirty) or is marked corrupt is read with
// a warning and not written.
//
// Nothing is held whole: L1, L2 and refcount tables are read in pages as they
// are needed. There are two levels of tables and no more, so that tables that
// refer to themselves or to each other give wrong bytes, and never a loop.
//
// WriteAt changes data clusters that are allocated, marked COPIED and counted
// once in the refcount table. Before the first one it clears the autoclear
// features that it would make untrue, which drops dirty bitmaps: a backup by
// QEMU afterwards is a full one. That is the only byte outside of data clusters
// that it ever changes. A refcount table that counts a cluster once although
// two guest clusters use it is not noticed; `qemu-img check` finds that.
package qcow2
