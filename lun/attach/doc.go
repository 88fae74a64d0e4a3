// Package attach makes a lun.Device, or a LUN of an iSCSI target, a block device
// of this host, and takes it away again without a trace.
//
// There are three ways, Methods: the host's own iSCSI initiator (open-iscsi,
// with multipath) for a LUN; the kernel's NBD client; and a FUSE file with a
// loop device on it, which any Linux has. With the latter two a helper, a
// process of its own, holds the lun.Device and answers the kernel.
//
// Promises:
//
//   - devices are read-only unless asked otherwise, in the kernel's eyes too;
//   - nothing else on the host takes a device up by itself, where Rules are
//     installed: no LVM autoactivation, no md assembly, no udisks, and for
//     devices that are no path, no multipathd;
//   - a helper that dies, or whose device no longer answers, makes I/O errors
//     and no hang: the kernel drops the connection with the process; a watcher
//     aborts it where the process can't die; a request without an answer
//     ends it. The helper is marked PR_SET_IO_FLUSHER and never waits for
//     memory that only I/O through itself would free;
//   - Detach flushes, and refuses a device that is in use, and says by whom
//     (ErrBusy). When it returns nil no device, no mount, no process, no
//     session and no record of the attachment is left. Called again, it does
//     nothing;
//   - each attachment is recorded before its first step, and every trace that
//     a step leaves carries the attachment's ID, so that Detach can undo what a
//     kill -9 at any moment, or a reboot, has left;
//   - secrets of a target are in no argument of a process, no log and no record.
//
// Attaching needs root (CAP_SYS_ADMIN).
package attach
