// Package remote reads a file system that another process has opened: what is on
// a stranger's disk is parsed there, confined, and only answers come over.
//
// Serve answers on a connection until it ends; New is an fs.FS over connections
// that it dials as it needs them, one for each call that is under way. A request
// and its answer are one frame each: four bytes of length, one of operation or
// status, then fields in the order of the functions that write them, integers as
// varints, texts with their length before them. The two ends are always of one
// version of this program.
//
// The server is not trusted either: its process may have been taken over by what
// it parses. Answers are bounded, and names are checked on arrival.
package remote
