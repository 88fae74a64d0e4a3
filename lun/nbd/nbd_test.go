package nbd

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/lun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a device in memory that counts, maps its holes by 4 KiB and fails
// where it is told to.
type memory struct {
	mu    sync.Mutex
	b     []byte
	used  map[int64]bool // 4 KiB blocks that were written
	syncs int
	fail  error
}

func newMemory(size int64) *memory { return &memory{b: make([]byte, size), used: map[int64]bool{}} }

func (m *memory) Size() int64        { return int64(len(m.b)) }
func (m *memory) Blocks() (int, int) { return 512, 4096 }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	if m.fail != nil {
		return 0, m.fail
	}
	return copy(p, m.b[off:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	if m.fail != nil {
		return 0, m.fail
	}
	for k := off / 4096; k*4096 < off+int64(len(p)); k++ {
		m.used[k] = true
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) Sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.syncs++
	return m.fail
}

func (m *memory) Trim(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := lun.CheckRange(off, n, m.Size()); err != nil {
		return err
	}
	clear(m.b[off : off+n])
	for k := (off + 4095) / 4096; (k+1)*4096 <= off+n; k++ {
		delete(m.used, k)
	}
	return m.fail
}

func (m *memory) Extents(off, n int64, fn func(lun.Extent) error) error {
	for n > 0 {
		part := min(n, 4096-off%4096)
		m.mu.Lock()
		hole := !m.used[off/4096]
		m.mu.Unlock()
		if err := fn(lun.Extent{Off: off, Len: part, Hole: hole}); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

func (m *memory) setFail(err error) {
	m.mu.Lock()
	m.fail = err
	m.mu.Unlock()
}

// snapshot is a copy of the content, and how many syncs there were.
func (m *memory) snapshot() ([]byte, int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.b), m.syncs
}

// plain hides a device's options.
type plain struct{ lun.Device }

// serve serves the exports on a unix socket until the test ends.
func serve(t *testing.T, exports ...Export) (socket string) {
	t.Helper()
	s, err := NewServer(ServerOptions{}, exports...)
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return socket
}

func dial(t *testing.T, socket string, o ClientOptions) *Client {
	t.Helper()
	c, err := Dial(t.Context(), "unix", socket, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func fill(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	b := make([]byte, n)
	r.Read(b) // never fails
	return b
}

// TestBothEnds does to a client what a disk's user does, against our server.
func TestBothEnds(t *testing.T) {
	for _, tc := range []struct {
		name string
		dev  func(m *memory) lun.Device
	}{
		{"all options", func(m *memory) lun.Device { return m }},
		{"plain device", func(m *memory) lun.Device { return plain{m} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMemory(80 << 20)
			c := dial(t, serve(t, Export{Device: tc.dev(m)}), ClientOptions{})
			exercise(t, c)
			_, before := m.snapshot()
			err := c.Sync()
			if _, after := m.snapshot(); err != nil || after == before {
				t.Errorf("Sync: %v, %d syncs", err, after-before)
			}
		})
	}
}

// exercise writes, reads, zeroes, trims and goes beyond the end. It is used
// against foreign servers as well.
func exercise(t *testing.T, c *Client) {
	t.Helper()
	size := c.Size()
	if size < 64<<20 {
		t.Fatalf("size %d: want at least 64 MiB", size)
	}
	want := fill(1, 40<<20) // longer than one request may be
	if n, err := c.WriteAt(want, 4096); err != nil || n != len(want) {
		t.Fatalf("WriteAt: %d, %v", n, err)
	}
	got := make([]byte, len(want))
	if n, err := c.ReadAt(got, 4096); err != nil || n != len(got) {
		t.Fatalf("ReadAt: %d, %v", n, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("what was read is not what was written")
	}
	if err := c.Trim(1<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteZeroes(4<<20, 3<<20); err != nil {
		t.Fatal(err)
	}
	clear(want[1<<20-4096 : 2<<20-4096])
	clear(want[4<<20-4096 : 7<<20-4096])
	if _, err := c.ReadAt(got, 4096); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("after Trim and WriteZeroes: %v, equal %v", err, bytes.Equal(got, want))
	}
	odd := make([]byte, 70000)
	if _, err := c.ReadAt(odd, 4099); err != nil || !bytes.Equal(odd, want[3:70003]) {
		t.Errorf("a read of bytes instead of blocks: %v", err)
	}
	var at int64
	err := c.Extents(0, size, func(e lun.Extent) error {
		if e.Off != at || e.Len <= 0 {
			t.Fatalf("extent %+v after %d", e, at)
		}
		at += e.Len
		if e.Hole {
			b := make([]byte, e.Len)
			if _, err := c.ReadAt(b, e.Off); err != nil || !bytes.Equal(b, make([]byte, e.Len)) {
				t.Errorf("hole %+v does not read as zeroes (%v)", e, err)
			}
		}
		return nil
	})
	if err != nil || at != size {
		t.Errorf("Extents covered %d of %d: %v", at, size, err)
	}
	if _, err := c.ReadAt(make([]byte, 1024), size-512); !errors.Is(err, lun.ErrOutOfRange) {
		t.Errorf("read beyond the end: %v", err)
	}
	if _, err := c.WriteAt(make([]byte, 512), size); !errors.Is(err, lun.ErrOutOfRange) {
		t.Errorf("write beyond the end: %v", err)
	}
	if err := c.Sync(); err != nil {
		t.Errorf("Sync: %v", err)
	}

	// Many at once, each in a place of its own.
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			off := 48<<20 + int64(i)*(128<<10)
			w, g := fill(uint64(i)+9, 100<<10), make([]byte, 100<<10)
			for range 2 {
				if _, err := c.WriteAt(w, off); err != nil {
					t.Error(err)
					return
				}
				if _, err := c.ReadAt(g, off); err != nil || !bytes.Equal(g, w) {
					t.Errorf("at %d: %v, equal %v", off, err, bytes.Equal(g, w))
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestErrorsCrossTheWire(t *testing.T) {
	m := newMemory(1 << 20)
	socket := serve(t, Export{Name: "rw", Device: m}, Export{Name: "ro", Device: m, ReadOnly: true})
	c := dial(t, socket, ClientOptions{Export: "rw"})
	for _, tc := range []struct{ give, want error }{
		{lun.ErrNoSpace, lun.ErrNoSpace},
		{lun.ErrReadOnly, lun.ErrReadOnly},
		{errors.New("disk on fire"), EIO},
	} {
		m.setFail(tc.give)
		if _, err := c.WriteAt(make([]byte, 512), 0); !errors.Is(err, tc.want) {
			t.Errorf("write on %v: %v", tc.give, err)
		}
		if _, err := c.ReadAt(make([]byte, 512), 0); !errors.Is(err, tc.want) {
			t.Errorf("read on %v: %v", tc.give, err)
		}
	}
	m.setFail(nil)
	if _, err := c.ReadAt(make([]byte, 512), 0); err != nil {
		t.Errorf("an error of one request must not end the connection: %v", err)
	}

	ro := dial(t, socket, ClientOptions{Export: "ro"})
	if !ro.ReadOnly() {
		t.Error("ro is not read-only")
	}
	if _, err := ro.WriteAt(make([]byte, 512), 0); !errors.Is(err, lun.ErrReadOnly) {
		t.Errorf("write: %v", err)
	}
	// A client that does not care is refused by the server, too.
	ro.neg.flags &^= flagReadOnly
	if _, err := ro.WriteAt(make([]byte, 512), 0); !errors.Is(err, EPERM) {
		t.Errorf("write past the flag: %v", err)
	}
	if _, err := Dial(t.Context(), "unix", socket, ClientOptions{Export: "none"}); err == nil {
		t.Error("an export that is not there was opened")
	}
}

func TestServerRefusesNonsense(t *testing.T) {
	m := newMemory(1 << 20)
	c := dial(t, serve(t, Export{Device: m}), ClientOptions{})
	for _, tc := range []struct {
		cmd    command
		flags  uint16
		off, n uint64
		want   Errno
	}{
		{cmdRead, 0, 100, 512, EINVAL},
		{cmdRead, 0, 0, 100, EINVAL},
		{cmdRead, 0, 1 << 20, 512, EINVAL},
		{cmdRead, 0, 1 << 63, 512, EINVAL},
		{cmdRead, 0, ^uint64(0), 512, EINVAL},
		{cmdWrite, 0, 1<<20 - 512, 1024, ENOSPC},
		{cmdTrim, 0, 1<<20 - 512, 1024, EINVAL},
		{cmdRead, 1 << 9, 0, 512, EINVAL},
		{cmdFlush, 0, 512, 0, EINVAL},
		{command(77), 0, 0, 0, EINVAL},
		{cmdBlockStatus, 0, 0, 0, EINVAL},
	} {
		k := c.call(tc.cmd, tc.flags, int64(tc.off), int64(tc.n))
		k.buf = make([]byte, tc.n)
		var payload []byte
		if tc.cmd == cmdWrite {
			payload = k.buf
		}
		if err := c.do(k, payload); !errors.Is(err, tc.want) {
			t.Errorf("%v of %d at %d with flags %#x: %v, want %v", tc.cmd, tc.n, tc.off, tc.flags, err, tc.want)
		}
	}
	if err := c.Err(); err != nil {
		t.Errorf("connection ended: %v", err)
	}
}

func TestExportsAreChecked(t *testing.T) {
	m := newMemory(512)
	if _, err := NewServer(ServerOptions{}, Export{Name: "a", Device: m}, Export{Name: "a", Device: m}); err == nil {
		t.Error("two exports of one name")
	}
	if _, err := NewServer(ServerOptions{}, Export{Name: "a"}); err == nil {
		t.Error("an export without a device")
	}
}
