// Package cinderarray runs the providers' suite on a real Cinder that has data: its
// RBD back end on a small Ceph, with production that writes through librbd. It is
// run by `make lab ROWS=cinderarray`.
package cinderarray
