//go:build race

package worker

// The race detector maps terabytes.
const memory = 1 << 60
