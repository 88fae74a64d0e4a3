//go:build !race

package dataplane

const memory = 512 << 20
