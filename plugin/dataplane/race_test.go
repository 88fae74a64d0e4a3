//go:build race

package dataplane

// The race detector maps terabytes.
const memory = 1 << 60
