package remote_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/ext4"
	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/fs/remote"
	"github.com/cleave-san/cleave/lun/luntest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve returns a client of a server in this process.
func serve(t *testing.T, f fs.FS) *remote.Client {
	t.Helper()
	var servers sync.WaitGroup
	c, err := remote.New(func() (net.Conn, error) {
		ours, theirs := net.Pipe()
		servers.Go(func() {
			defer theirs.Close()
			if err := remote.Serve(theirs, f); err != nil && !errors.Is(err, io.ErrClosedPipe) {
				t.Error(err)
			}
		})
		return ours, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		servers.Wait()
	})
	return c
}

// TestSame: through the wire a file system is what it is without.
func TestSame(t *testing.T) {
	f, err := ext4.Open(luntest.Image(t, "ext4-dirty-csum"))
	if err != nil {
		t.Fatal(err)
	}
	c := serve(t, f)
	if got, want := c.Info(), f.Info(); got.UUID != want.UUID || got.Replayed != want.Replayed || c.Root() != f.Root() {
		t.Errorf("%+v, %v", got, c.Root())
	}
	want, err := fstest.Of(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			got, err := fstest.Of(c, luntest.Image(t, "ext4-dirty-csum"))
			if err != nil {
				t.Error(err)
			}
			fstest.Compare(t, got, want, fstest.Options{})
		})
	}
	all.Wait()
	for _, path := range []string{"none", "d/hello/x"} {
		_, want := fs.Find(f, path)
		_, got := fs.Find(c, path)
		if got == nil || errors.Is(want, fs.ErrNotExist) != errors.Is(got, fs.ErrNotExist) || errors.Is(want, fs.ErrNotDir) != errors.Is(got, fs.ErrNotDir) {
			t.Errorf("%q: %v, want %v", path, got, want)
		}
	}
	if _, err := c.Open(c.Root()); !errors.Is(err, fs.ErrNotFile) {
		t.Error(err)
	}
}

// wide is a directory of many files, the last but one of which is damaged, and
// a file of many extents.
type wide struct {
	fs.FS
	n uint64
}

func (w wide) Info() fs.Info { return fs.Info{Kind: "wide"} }
func (w wide) Root() fs.Ref  { return fs.Ref{Inode: 1} }
func (w wide) Stat(r fs.Ref) (fs.Stat, error) {
	if r.Inode == w.n-1 {
		return fs.Stat{}, &lun.FormatError{Format: "wide", Field: "inode", Value: r.Inode, Reason: "damaged"}
	}
	return fs.Stat{Ref: r, Type: fs.Regular, Size: int64(r.Inode)}, nil
}

func (w wide) List(_ fs.Ref, after uint64, fn func(fs.Entry) error) error {
	for i := after + 1; i <= w.n; i++ {
		if err := fn(fs.Entry{Name: strings.Repeat("n", int(i%200)+1), Ref: fs.Ref{Inode: i}, Next: i}); err != nil {
			return err
		}
	}
	return errors.New("the rest is damaged")
}

func (w wide) Open(fs.Ref) (fs.File, error) { return w, nil }
func (w wide) Size() int64                  { return 10 << 20 }
func (w wide) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = byte((off + int64(i)) >> 12)
	}
	return len(p), nil
}

func (w wide) Extents(off, n int64, fn func(fs.Extent) error) error {
	for end := off + n; off < end; off += 512 {
		if err := fn(fs.Extent{Off: off, Len: min(512, end-off), Kind: fs.Data, Device: off * 2}); err != nil {
			return err
		}
	}
	return nil
}

// TestPieces: what doesn't fit into one answer comes in several, up to the error.
func TestPieces(t *testing.T) {
	c := serve(t, wide{n: 5000})
	next, bad := uint64(1), 0
	err := c.ListStat(c.Root(), 0, func(e fs.Entry, st fs.Stat, err error) error {
		var fe *lun.FormatError
		if e.Ref.Inode != next || len(e.Name) != int(next%200)+1 {
			t.Errorf("entry %d is %+v", next, e)
		}
		if errors.As(err, &fe) {
			bad++
		} else if err != nil || st.Size != int64(next) {
			t.Errorf("entry %d: %+v, %v", next, st, err)
		}
		next++
		return nil
	})
	if next != 5001 || bad != 1 || err == nil || !strings.Contains(err.Error(), "the rest") {
		t.Errorf("%d entries, %d bad, %v", next-1, bad, err)
	}
	f, err := c.Open(c.Root())
	if err != nil {
		t.Fatal(err)
	}
	b, want := make([]byte, 10<<20), make([]byte, 10<<20)
	if n, err := f.ReadAt(b, 0); n != len(b) || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if (wide{}).ReadAt(want, 0); !bytes.Equal(b, want) {
		t.Error("content of several answers is another one")
	}
	at := int64(0)
	if err := f.Extents(0, f.Size(), func(e fs.Extent) error {
		if e.Off != at || e.Device != 2*at {
			t.Errorf("%+v at %d", e, at)
		}
		at += e.Len
		return nil
	}); err != nil || at != f.Size() {
		t.Errorf("extents end at %d, %v", at, err)
	}
}

// pipe is a connection whose other end has said all it will.
type pipe struct {
	net.Conn
	io.Reader
}

func (p pipe) Read(b []byte) (int, error)  { return p.Reader.Read(b) }
func (p pipe) Write(b []byte) (int, error) { return len(b), nil }

// FuzzClient: whatever a worker answers, the client ends, and what it hands on is
// within the bounds.
func FuzzClient(f *testing.F) {
	hello := []byte("\x04\x00\x00\x00\x00\x00\x02{}")
	f.Add(append(hello, "\x05\x00\x00\x00\x00\x01\x00\x01x"...))
	f.Add([]byte("\x10\x00\x00\x00\x01{\"text\":\"no\"}"))
	f.Fuzz(func(t *testing.T, answers []byte) {
		first, _ := net.Pipe()
		defer first.Close()
		r := bytes.NewReader(answers)
		c, err := remote.New(func() (net.Conn, error) { return pipe{first, r}, nil })
		if err != nil {
			return
		}
		defer c.Close()
		n := 0
		c.ListStat(c.Root(), 0, func(e fs.Entry, _ fs.Stat, _ error) error {
			if !fs.GoodName(e.Name) {
				t.Errorf("name %q", e.Name)
			}
			if n++; n > len(answers) {
				t.Fatal("more entries than bytes")
			}
			return nil
		})
		c.Xattrs(c.Root(), func(string, []byte) error { return nil })
		c.Readlink(c.Root())
		if o, err := c.Open(c.Root()); err == nil {
			o.ReadAt(make([]byte, 100), 0)
			o.Extents(0, o.Size(), func(e fs.Extent) error { return nil })
		}
	})
}

// FuzzServer: no request is the end of the server but one that is too long.
func FuzzServer(f *testing.F) {
	for op := byte(1); op < 10; op++ {
		f.Add(op, []byte{0, 2, 0, 100})
	}
	fsys, err := ext4.Open(luntest.Image(f, "ext4-dirty"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, op byte, body []byte) {
		req := append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), op)
		var out bytes.Buffer
		err := remote.Serve(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(append(req, body...)), &out}, fsys)
		if len(body) <= 4<<10 && (err != nil || out.Len() < 5) {
			t.Errorf("%d bytes of answer, %v", out.Len(), err)
		}
	})
}
