//go:build !race

package worker

const memory = 512 << 20
