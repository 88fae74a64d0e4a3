// Package initiators drives the data plane with initiators that are not ours:
// the Linux kernel's, with open-iscsi and multipath-tools, in a VM, and QEMU's.
// Connections are cut by toxiproxy. All scenarios carry the build tag "lab".
package initiators
