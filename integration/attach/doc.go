// Package attach makes block devices with `cleave lun attach` and uses them as a
// host does: on this kernel by FUSE and a loop device; in a VM with a full
// kernel by the kernel's NBD client, and by open-iscsi with one path and with
// multipath. All scenarios carry the build tag "lab" and run as root.
package attach
