// Package fstest compares what a reader says of a file system with what the
// kernel says of it: made by mkfs, mounted, filled by a seeded Load, and cut off
// in the middle of things like a host that loses its power.
//
// It needs root, loop devices and the kernel's own file system; Mount skips the
// test where they are missing. Images that must be cut off lie in a Pool, which
// clones them at one instant.
package fstest
