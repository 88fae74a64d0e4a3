// Package rbdarray runs the providers' suite on a small Ceph, with production that
// writes through librbd. It is run by `make lab ROWS=rbdarray`.
package rbdarray
