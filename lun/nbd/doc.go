// Package nbd carries a lun.Device over a connection in the Network Block
// Device protocol, newstyle and fixed newstyle, both ends (the protocol is
// doc/proto.md of github.com/NetworkBlockDevice/nbd; sections are cited by
// their titles).
//
// It is how a recovered view leaves the worker process that parses a stranger's
// disk: a Server in the worker, a Client (or a Redialer, which comes back after
// its peer did) in the data plane. It speaks to any other NBD peer as well:
// qemu, libnbd, nbdkit and the Linux kernel's client.
//
// Promises:
//
//   - nothing the peer says makes either end allocate more than the limits in
//     this package, read past what was asked, or wait without end;
//   - a Client fails every request, those under way and those to come, once one
//     of them has had no answer within its time limit: it never hangs;
//   - requests of one connection run in parallel and may be answered in any
//     order; a flush covers what was answered before it was sent;
//   - a Server speaks TLS where it was given a certificate, and then with nobody
//     who doesn't, unless told otherwise. A Client doesn't: it is for unix sockets
//     whose directory is private.
package nbd
