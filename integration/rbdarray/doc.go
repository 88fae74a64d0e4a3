// Package rbdarray runs the providers' suite on a small Ceph, with production that
// writes through librbd, and reads and writes images by each program that can. It is run by `make lab ROWS=rbdarray`.
package rbdarray
