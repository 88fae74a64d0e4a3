package nbd

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cleave-san/cleave/lun"
)

// scripted is a server that negotiates as ours does and then hands the
// connection to a test.
func scripted(t *testing.T, size int64, structured bool, then func(net.Conn)) *Client {
	t.Helper()
	ours, theirs := net.Pipe()
	s, err := NewServer(ServerOptions{}, Export{Device: newMemory(size)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		h := &handshake{s: s, conn: theirs}
		if _, err := h.run(); err == nil {
			then(theirs)
		}
	}()
	c, err := New(t.Context(), ours, ClientOptions{Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c.neg.structured = structured
	t.Cleanup(func() { c.Close(); <-done })
	return c
}

// TestSilentServer: no request waits longer than its limit, and all fail alike.
func TestSilentServer(t *testing.T) {
	for name, server := range map[string]func(net.Conn){
		"answers nothing": func(c net.Conn) { io.Copy(io.Discard, c) },
		"reads nothing":   func(c net.Conn) { time.Sleep(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				c := scripted(t, 1<<20, false, func(conn net.Conn) {
					stop := context.AfterFunc(ctx, func() { conn.Close() })
					defer stop()
					if strings.HasPrefix(name, "reads") {
						<-ctx.Done()
						return
					}
					server(conn)
				})
				began := time.Now()
				var wg sync.WaitGroup
				for i := range 200 {
					wg.Go(func() {
						var err error
						if i%2 == 0 {
							_, err = c.ReadAt(make([]byte, 512), 0)
						} else {
							_, err = c.WriteAt(make([]byte, 512), 0)
						}
						if !errors.Is(err, ErrLost) {
							t.Errorf("error %v, want ErrLost", err)
						}
					})
				}
				wg.Wait()
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("took %v of the bubble's time", took)
				}
				if err := c.Sync(); !errors.Is(err, ErrLost) {
					t.Errorf("Sync afterwards: %v", err)
				}
				cancel()
			})
		})
	}
}

// TestSlowButAlive: the limit is for one request, not for the connection.
func TestSlowButAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := scripted(t, 1<<20, false, func(conn net.Conn) {
			for {
				var head [requestSize]byte
				var r request
				if _, err := io.ReadFull(conn, head[:]); err != nil || r.decode(&head) != nil || r.cmd == cmdDisc {
					return
				}
				time.Sleep(4 * time.Second)
				tr := &transmission{conn: conn}
				if tr.simple(r, 0, make([]byte, r.length)) != nil {
					return
				}
			}
		})
		for range 5 {
			if _, err := c.ReadAt(make([]byte, 512), 0); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestHostileReplies(t *testing.T) {
	type send = func(t *transmission, r request) error
	for name, tc := range map[string]struct {
		structured bool
		send       send
		want       string
	}{
		"hangs up":            {false, func(t *transmission, r request) error { return io.EOF }, "hung up"},
		"magic":               {false, func(t *transmission, r request) error { return t.send(make([]byte, 16), nil) }, "magic"},
		"other request":       {false, func(t *transmission, r request) error { r.cookie += 7; return t.simple(r, 0, nil) }, "not under way"},
		"structured, unasked": {false, func(t *transmission, r request) error { return t.chunk(r, chunkDone, chunkNone) }, "not agreed"},
		"simple, unasked":     {true, func(t *transmission, r request) error { return t.simple(r, 0, make([]byte, r.length)) }, "simple"},
		"short":               {true, func(t *transmission, r request) error { return t.chunk(r, chunkDone, chunkNone) }, "0 bytes answer"},
		"too long": {true, func(t *transmission, r request) error {
			return t.chunk(r, chunkDone, chunkData, be64(0), make([]byte, 8192))
		}, "answers a read"},
		"elsewhere": {true, func(t *transmission, r request) error {
			return t.chunk(r, chunkDone, chunkData, be64(1<<40), make([]byte, 8))
		}, "answers a read"},
		"offset wraps": {true, func(t *transmission, r request) error {
			return t.chunk(r, chunkDone, chunkData, be64(^uint64(0)-3), make([]byte, 8))
		}, "answers a read"},
		"twice": {true, func(t *transmission, r request) error {
			_ = t.chunk(r, 0, chunkData, be64(0), make([]byte, 4096))
			return t.chunk(r, 0, chunkData, be64(512), make([]byte, 512))
		}, "twice"},
		"status for a read": {true, func(t *transmission, r request) error { return t.chunk(r, 0, chunkBlockStatus, make([]byte, 12)) }, "type 5"},
		"hole too big": {true, func(t *transmission, r request) error {
			return t.chunk(r, 0, chunkHole, be64(0), []byte{255, 255, 255, 255})
		}, "answers a read"},
		"unknown chunk": {true, func(t *transmission, r request) error { return t.chunk(r, 0, 99) }, "type 99"},
		"endless error": {true, func(t *transmission, r request) error { return t.chunk(r, chunkDone, chunkErr, make([]byte, 8000)) }, "type 32769"},
		"chunks without end": {true, func(t *transmission, r request) error {
			for {
				if err := t.chunk(r, 0, chunkNone); err != nil {
					return err
				}
			}
		}, "chunks answer"},
	} {
		t.Run(name, func(t *testing.T) {
			c := scripted(t, 1<<20, tc.structured, func(conn net.Conn) {
				var head [requestSize]byte
				var r request
				if _, err := io.ReadFull(conn, head[:]); err != nil || r.decode(&head) != nil {
					return
				}
				_ = tc.send(&transmission{conn: conn}, r)
			})
			_, err := c.ReadAt(make([]byte, 4096), 0)
			if !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want ErrLost and %q", err, tc.want)
			}
		})
	}
}

func be64(v uint64) []byte {
	b := make([]byte, 8)
	for i := range b {
		b[i] = byte(v >> (56 - 8*i))
	}
	return b
}

// server runs on a path until stopped, so that a test can take it away.
func server(t *testing.T, path string, e Export) (stop func()) {
	t.Helper()
	s, err := NewServer(ServerOptions{}, e)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

func TestRedialer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	m := newMemory(1 << 20)
	r := NewRedialer(RedialOptions{Network: "unix", Addr: path, Size: 1 << 20, Cooldown: time.Nanosecond})
	defer r.Close()
	buf := make([]byte, 512)

	if _, err := r.ReadAt(buf, 0); err == nil {
		t.Fatal("read without a server")
	}
	if err := r.Sync(); err != nil {
		t.Errorf("Sync with nothing written: %v", err)
	}
	stop := server(t, path, Export{Device: m})
	if _, err := r.WriteAt(fill(3, 512), 512); err != nil {
		t.Fatalf("write once the server is there: %v", err)
	}
	stop()
	if _, err := r.ReadAt(buf, 512); err == nil {
		t.Fatal("read after the server went")
	}
	stop = server(t, path, Export{Device: m})
	if _, err := r.ReadAt(buf, 512); err != nil {
		t.Fatalf("read after the server came back: %v", err)
	}
	if err := r.Sync(); !errors.Is(err, errUnsynced) {
		t.Errorf("first Sync after losing unsynced writes: %v", err)
	}
	if _, err := r.WriteAt(buf, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.Sync(); err != nil {
		t.Errorf("second Sync: %v", err)
	}
	stop()
	if _, err := r.ReadAt(buf, 0); err == nil {
		t.Error("read after the server went again")
	}
	server(t, path, Export{Device: newMemory(2 << 20)})
	if _, err := r.ReadAt(buf, 0); err == nil || !strings.Contains(err.Error(), "another device") {
		t.Errorf("a server of another size: %v", err)
	}
	r.Close()
	if _, err := r.ReadAt(buf, 0); !errors.Is(err, lun.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}

// TestRedialerCooldown: a server that is not there costs one attempt a while,
// not one a request.
func TestRedialerCooldown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	r := NewRedialer(RedialOptions{Network: "unix", Addr: path, Size: 1 << 20, Cooldown: time.Hour})
	defer r.Close()
	_, first := r.ReadAt(make([]byte, 512), 0)
	server(t, path, Export{Device: newMemory(1 << 20)})
	if _, err := r.ReadAt(make([]byte, 512), 0); !errors.Is(err, first) || first == nil {
		t.Errorf("second request: %v, want the first one's error %v", err, first)
	}
}
