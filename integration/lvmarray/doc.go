// Package lvmarray has the providers' suite run against real logical volumes: in a
// VM, since lvm2 needs a kernel with device-mapper and volume groups of its own. The
// test program runs itself in there.
package lvmarray
