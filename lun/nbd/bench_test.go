package nbd

import (
	"context"
	"net"
	"path/filepath"
	"testing"
)

// BenchmarkRead is our client against our server over a unix socket, 64 KiB a
// request from as many goroutines as there are processors, times 8.
func BenchmarkRead(b *testing.B) {
	s, err := NewServer(ServerOptions{}, Export{Device: zeroes(1 << 30)})
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()
	c, err := Dial(ctx, "unix", path, ClientOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.SetBytes(64 << 10)
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, 64<<10)
		for off := int64(0); pb.Next(); off = (off + 64<<10) % (1 << 30) {
			if _, err := c.ReadAt(buf, off); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// zeroes is a device of that many bytes without a cost of its own.
type zeroes int64

func (z zeroes) Size() int64                            { return int64(z) }
func (z zeroes) Sync() error                            { return nil }
func (z zeroes) ReadAt(p []byte, _ int64) (int, error)  { return len(p), nil }
func (z zeroes) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
