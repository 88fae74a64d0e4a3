package fuse

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a device that checks what lun.Device asks of callers.
type memory struct {
	t  testing.TB
	mu sync.Mutex // what goes by way of the kernel is no order to the race detector
	b  []byte
}

func (m *memory) holds(off int64, want []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Equal(m.b[off:off+int64(len(want))], want)
}

func (m *memory) check(p, off int64) {
	if off%512 != 0 || p%512 != 0 || lun.CheckRange(off, p, m.Size()) != nil {
		m.t.Errorf("a transfer of %d bytes at %d", p, off)
	}
}

func (m *memory) Size() int64 { return int64(len(m.b)) }
func (m *memory) Sync() error { return nil }
func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.check(int64(len(p)), off)
	return copy(p, m.b[off:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.check(int64(len(p)), off)
	return copy(m.b[off:], p), nil
}

func (m *memory) Trim(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.check(n, off)
	clear(m.b[off : off+n])
	return nil
}

func (m *memory) WriteZeroes(off, n int64) error { return m.Trim(off, n) }

// ask makes a request of 64-bit words.
func ask(op opcode, words ...uint64) []byte {
	le := binary.NativeEndian
	b := le.AppendUint32(nil, 0)
	b = le.AppendUint32(b, uint32(op))
	b = le.AppendUint64(b, 77) // unique
	b = le.AppendUint64(b, rootNode)
	b = append(b, make([]byte, 16)...)
	for _, w := range words {
		b = le.AppendUint64(b, w)
	}
	le.PutUint32(b, uint32(len(b)))
	return b
}

func newServer(t testing.TB, readOnly bool) *server {
	return &server{dev: &memory{t: t, b: make([]byte, 64<<10)}, size: 64 << 10, block: 512, readOnly: readOnly,
		log: slog.New(slog.DiscardHandler), depth: 4}
}

// carry has a server carry a request out as if the kernel had sent it.
func carry(s *server, b []byte) ([]byte, error) {
	buf := make([]byte, inHeader+writeIn+maxIO)
	n := copy(buf, b)
	r, err := decode(buf[:n])
	if err != nil {
		return nil, err
	}
	return s.handle(r, buf), nil
}

// FuzzRequest: whatever arrives, the device is asked for nothing beyond its end or
// in parts of blocks, and the answer is well formed.
func FuzzRequest(f *testing.F) {
	f.Add(ask(opInit, 7|39<<32, 1<<17|0xffffffff<<32), false)
	f.Add(ask(opRead, 0, 512, 1024, 0, 0), true)
	f.Add(ask(opRead, 0, 1<<63, 1<<20, 0, 0), true)
	f.Add(ask(opWrite, 0, 512, 16, 0, 0, 1, 2), false)
	f.Add(append(ask(opWrite, 0, 512, 512, 0, 0), make([]byte, 512)...), false)
	f.Add(ask(opFallocate, 0, 512, 512, 3), false)
	f.Add(ask(opFallocate, 0, 512, 1<<63+512, 0x10), false)
	f.Add(ask(opGetattr), true)
	f.Add(ask(opStatfs), true)
	f.Add(ask(opOpen), true)
	f.Fuzz(func(t *testing.T, b []byte, readOnly bool) {
		if len(b) >= 4 && len(b) <= inHeader+writeIn+maxIO {
			binary.NativeEndian.PutUint32(b, uint32(len(b)))
		} else {
			return
		}
		a, err := carry(newServer(t, readOnly), b)
		if err != nil || a == nil {
			return
		}
		if len(a) < outHeader || len(a) > outHeader+maxIO || binary.NativeEndian.Uint32(a) != uint32(len(a)) {
			t.Fatalf("answer %x", a[:min(len(a), 64)])
		}
		if e := int32(binary.NativeEndian.Uint32(a[4:])); e > 0 || e < -4095 || e != 0 && len(a) != outHeader {
			t.Fatalf("errno %d with %d bytes", e, len(a))
		}
	})
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name     string
		b        []byte
		readOnly bool
		want     unix.Errno
	}{
		{"beyond the end", ask(opWrite, 0, 64<<10, 8, 0, 0, 0), false, unix.EINVAL},
		{"part of a block", ask(opWrite, 0, 0, 8, 0, 0, 0), false, unix.EINVAL},
		{"less data than said", ask(opWrite, 0, 0, 512, 0, 0, 0), false, unix.EINVAL},
		{"read-only", ask(opWrite, 0, 0, 0, 0, 0), true, unix.EROFS},
		{"discard of a read-only one", ask(opFallocate, 0, 0, 512, 3), true, unix.EROFS},
		{"too long a read", ask(opRead, 0, 0, 2<<20, 0, 0), true, unix.EINVAL},
		{"strange mode", ask(opFallocate, 0, 0, 512, 0x20), false, unix.EOPNOTSUPP},
		{"unknown", ask(99), false, unix.ENOSYS},
		{"old kernel", ask(opInit, 7|12<<32, 0), false, unix.EPROTO},
	} {
		a, err := carry(newServer(t, c.readOnly), c.b)
		if err != nil || int32(binary.NativeEndian.Uint32(a[4:])) != -int32(c.want) {
			t.Errorf("%s: %x, %v", c.name, a, err)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 39), ask(opRead), ask(opWrite, 0), ask(opInit), ask(opFsync), ask(opFallocate, 0, 0, 0)} {
		if _, err := carry(newServer(t, false), b); !errors.Is(err, errShort) {
			t.Errorf("%x: %v", b, err)
		}
	}
	long := ask(opGetattr)
	long[0]++
	if _, err := carry(newServer(t, false), long); err == nil {
		t.Error("a request longer than what arrived")
	}
}

// mounted mounts a device for the test's length.
func mounted(t *testing.T, dev lun.Device, readOnly bool, o Options) (path string, over <-chan error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: mounting needs it")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	path = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := NewMount(path, readOnly)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	served := make(chan struct{})
	go func() { done <- m.Serve(dev, o); close(served) }()
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
	return path, done
}

// openFile opens it without Go's poller, see Mount.Serve.
func openFile(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), path)
}

func TestFile(t *testing.T) {
	dev := &memory{t: t, b: bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)}
	path, over := mounted(t, dev, false, Options{})
	f := openFile(t, path, unix.O_RDWR)
	b := make([]byte, 4<<20)
	if _, err := f.ReadAt(b, 0); err != nil || !dev.holds(0, b) {
		t.Error("something else was read", err)
	}
	want := bytes.Repeat([]byte{7}, 3<<20) // more than one request
	if _, err := f.WriteAt(want, 512); err != nil || !dev.holds(512, want) {
		t.Error("what was written is not there", err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 1<<20); err != nil || !dev.holds(1<<20, make([]byte, 1<<20)) {
		t.Error("no hole was punched", err)
	}
	if err := errors.Join(f.Sync(), f.Close(), Unmount(path)); err != nil {
		t.Error(err)
	}
	if err := <-over; err != nil {
		t.Error(err)
	}
}

// silent never answers.
type silent struct {
	memory
	end chan struct{}
}

func (s *silent) ReadAt([]byte, int64) (int, error) {
	<-s.end
	return 0, io.ErrUnexpectedEOF
}

func TestDeviceHangs(t *testing.T) {
	dev := &silent{memory{t: t, b: make([]byte, 4096)}, make(chan struct{})}
	defer close(dev.end)
	path, over := mounted(t, dev, true, Options{Timeout: 50 * time.Millisecond})
	f := openFile(t, path, unix.O_RDONLY)
	defer f.Close()
	if _, err := f.ReadAt(make([]byte, 512), 0); !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.EIO) {
		t.Errorf("read: %v", err)
	}
	if err := <-over; !errors.Is(err, ErrHung) {
		t.Errorf("serve: %v", err)
	}
}
