// Package hostvolumes has the scene that the patent's first figure shows: virtual
// disks are files on volumes of their host, several VMs' on one, one VM's on two;
// the VMs run under load, the volumes are split, and every disk is had again. It
// is run by `make lab ROWS=hostvolumes`, as root, with FUSE and loop devices.
package hostvolumes
