// Package remote is the embedded array as another process has it: a client of
// the data plane's control socket, and the words that the two exchange.
//
// A Client is a driver.Driver with GroupSplitter, Armer, Exposer, Opener,
// Rewriter, Resyncer, Reverter, Breaker, ChangeTracker and Describer (what the array
// behind lacks is kind NotSupported), and administers volumes, mirrors, initiators and publications
// besides. The protocol is HTTP/1.1 with JSON over a unix socket; whoever may
// open the socket may do everything.
//
// # What an error means
//
// The server's errors carry their driver.Kind. A socket that can't be reached
// is Unreachable: nothing was asked. A change that was asked and not answered is
// OutcomeUnknown, whatever the cause (the data plane died, ctx ended), and is
// not repeated here; a question that was not answered is Unreachable, since
// asking again is safe.
package remote
