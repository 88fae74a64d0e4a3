// Package dataplane is the daemon that production I/O goes through: the
// embedded array, an iSCSI target that serves its volumes and splits, and a
// control API on a unix socket. It parses no guest's disk: a recovered view is
// a LUN whose device is a unix socket with a worker behind it, and a worker that
// dies or hangs is an I/O error on that LUN alone.
//
// # Promises
//
//   - After any end, kill -9 included, the next Run serves the same LUNs under
//     the same numbers, identities and masks, before the control API answers.
//     A LUN whose volume, split or worker is away is there and answers with I/O
//     errors, so that its number says nothing else to a host that knows it.
//   - Persistent reservations made with APTPL=1 stand after any end, too, until
//     their LUN is unexposed; a LUN whose reservations can't be read back is
//     not served.
//   - A mask is there before its LUN. A LUN number is not given to another LUN
//     before all others had their turn.
//   - Nothing that the control API does holds up I/O.
//   - Exposing is journaled before it happens, unexposing after: a crash in
//     between leaves a LUN that is recorded and can be unexposed, never one that
//     is not recorded.
//
// The control API's words and its client are in arrays/embedded/remote.
package dataplane
