package fuse

import (
	"encoding/binary"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun/fs"
)

// small is a file system of a directory, which contains a file of 1 MiB with a
// hole in its second half, many names of it, and itself.
type small struct{}

const smallSize = 1 << 20

var smallRoot, smallFile = fs.Ref{Inode: 2}, fs.Ref{Tree: 7, Inode: 2}

func (small) Info() fs.Info { return fs.Info{BlockSize: 4096, Size: 1 << 30} }
func (small) Root() fs.Ref  { return smallRoot }

func (small) Stat(r fs.Ref) (fs.Stat, error) {
	st := fs.Stat{Ref: r, Type: fs.Directory, Mode: 0o755, Links: 2}
	if r == smallFile {
		st.Type, st.Size = fs.Regular, smallSize
	}
	return st, nil
}

func (small) Lookup(dir fs.Ref, name string) (fs.Ref, error) {
	switch {
	case dir != smallRoot:
		return fs.Ref{}, fs.ErrNotDir
	case name == "self":
		return smallRoot, nil
	case strings.HasPrefix(name, "file"):
		return smallFile, nil
	}
	return fs.Ref{}, fs.ErrNotExist
}

func (small) List(dir fs.Ref, after uint64, fn func(fs.Entry) error) error {
	for i := after; i < 10000; i++ {
		if err := fn(fs.Entry{Name: "file" + strings.Repeat("x", int(i%200)), Ref: smallFile, Type: fs.Regular, Next: i + 1}); err != nil {
			return err
		}
	}
	return nil
}

func (small) Open(r fs.Ref) (fs.File, error) {
	if r != smallFile {
		return nil, fs.ErrNotFile
	}
	return smallContent{}, nil
}

func (small) Readlink(fs.Ref) (string, error) { return strings.Repeat("t", fs.MaxTarget), nil }

func (small) Xattrs(_ fs.Ref, fn func(string, []byte) error) error {
	return fn("user.x", make([]byte, fs.MaxXattr))
}

type smallContent struct{}

func (smallContent) Size() int64 { return smallSize }

func (smallContent) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > smallSize {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), smallSize-off))
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (smallContent) Extents(off, n int64, fn func(fs.Extent) error) error {
	const half = smallSize / 2
	if off < half {
		if err := fn(fs.Extent{Off: off, Len: half - off}); err != nil {
			return err
		}
		off = half
	}
	return fn(fs.Extent{Off: off, Len: smallSize - off, Kind: fs.Hole})
}

// FuzzTreeRequest: whatever arrives, one after the other, the answer is well
// formed.
func FuzzTreeRequest(f *testing.F) {
	name := append(ask(opLookup), "file\x00"...)
	f.Add(name, ask(opReaddirPlus, 1, 0, 4096, 0, 0))
	f.Add(ask(opOpendir, 0), ask(opReaddirPlus, 1, 5000, 1<<20, 0, 0))
	f.Add(ask(opOpendir, 0), ask(opReaddir, 1, 1<<62, 1<<32-1, 0, 0))
	f.Add(ask(opOpen, 0), ask(opRead, 1, 1<<19, 1<<20, 0, 0))
	f.Add(ask(opOpen, 0), ask(opLseek, 1, 1<<18, 4))
	f.Add(append(ask(opGetxattr, 1<<16), "user.x\x00"...), ask(opListxattr, 0))
	f.Add(ask(opForget, 1), ask(opBatchForget, 1, 1, 1))
	f.Add(ask(opReadlink), ask(opStatfs))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		tree := newTree(small{}, Options{Depth: 4, Log: slog.New(slog.DiscardHandler)}, false)
		tree.nodes.know(smallFile, fs.Stat{})
		for _, b := range [][]byte{first, second} {
			if len(b) < 4 || len(b) > inHeader+writeIn+maxIO {
				return
			}
			binary.NativeEndian.PutUint32(b, uint32(len(b)))
			buf := make([]byte, inHeader+writeIn+maxIO)
			r, err := decode(buf[:copy(buf, b)])
			if err != nil {
				return
			}
			a := tree.handle(r, buf)
			if a == nil {
				continue
			}
			if len(a) < outHeader || len(a) > outHeader+maxIO || binary.NativeEndian.Uint32(a) != uint32(len(a)) {
				t.Fatalf("answer %x", a[:min(len(a), 64)])
			}
			if e := int32(binary.NativeEndian.Uint32(a[4:])); e > 0 || e < -4095 || e != 0 && len(a) != outHeader {
				t.Fatalf("errno %d with %d bytes", e, len(a))
			}
		}
	})
}
