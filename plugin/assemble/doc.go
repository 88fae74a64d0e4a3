// Package assemble builds the two processes of Cleave from a configuration. It
// is the only place that knows concrete providers and host writers; everything
// else holds interfaces.
//
// To add a provider (an array driver): one line in openArrays, in arrays.go,
// from its type in the configuration to its constructor. To add a host writer:
// one line in openWriters, in writers.go. What either needs to be told goes into
// its struct in config.go; unknown keys in a configuration are found from these
// structs, so nothing else has to be kept in step.
//
// A configuration never holds a secret, only paths of files that do.
package assemble
