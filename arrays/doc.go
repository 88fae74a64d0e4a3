// Package arrays is how the rest of Cleave holds a storage array.
//
// An Array wraps what a provider implements (package driver): it checks
// arguments before the provider sees them and answers before the caller does,
// traces every call, wraps errors once with the array's name and what was
// attempted, and is the one place where a provider's options are asserted. Ask
// CanSplitGroup and its like, or call and get kind NotSupported.
//
// The nouns are the driver's: a volume has mirrors, a split takes one off and
// makes a snapshot of it, an exposed snapshot is a LUN. KindOf says what may be
// done about an error.
//
// To add an array, implement driver.Driver in a folder here, pass
// arraytest.Run, and name it in plugin/assemble. The default and reference is
// in embedded.
package arrays
