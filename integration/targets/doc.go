// Package targets drives our iSCSI initiator with targets that are not ours and
// that need a place of their own: the Linux kernel's (LIO), set up by plain
// configfs in a VM, and gotgt (../foreignarray) in a network namespace. All scenarios carry the build tag "lab"; those with tgtd,
// with our own target and with a hostile one are in iscsi/initiator.
package targets
