// Package stage puts Cleave on one machine, the way an operator would: `cleave
// array` and `cleave serve` run as processes of their own, and everything asked
// of them goes through the command line and its JSON. VMs are the lab's.
//
// `cleave demo` tells its story on a stage, and the tests of the main job play
// on it: they kill its processes, slow its array and look for what is left.
//
// A Stage lives in one directory, binds 127.0.0.1 only, and Close ends every
// process that it started.
package stage
