package fuse

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"math"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/fs"
)

// ServeTree is Serve for a file system: m was mounted on a directory. f doesn't
// change as long as it is served, and what the kernel has once been told it
// keeps.
//
// The file system is a stranger's: what it says of itself is handed on to
// those who may look, and nothing of it is trusted here.
func (m *Mount) ServeTree(f fs.FS, o Options) error {
	if o.Depth <= 0 {
		o.Depth = 16
	}
	o.defaults()
	return m.serve(newTree(f, o, m.shared), o)
}

// tree answers for a file system.
type tree struct {
	f     fs.FS
	root  fs.Ref
	log   *slog.Logger
	depth int
	acl   bool // the kernel checks who may what

	nodes nodes
	said  sync.Once

	mu   sync.Mutex
	open map[uint64]any // *directory or fs.File, by handle
	last uint64
}

func newTree(f fs.FS, o Options, acl bool) *tree {
	return &tree{f: f, root: f.Root(), log: o.Log, depth: o.Depth, acl: acl, nodes: newNodes(f.Root()), open: make(map[uint64]any)}
}

// forever is what the kernel is told of how long an answer holds.
const forever = math.MaxInt64 / uint64(time.Second)

// handle implements handler.
func (t *tree) handle(r request, buf []byte) []byte {
	le := binary.NativeEndian
	switch r.op {
	case opInit:
		known := uint32(flagAsyncRead | flagBigWrites | flagReaddirPlus | flagParallelDirs | flagMaxPages | flagSymlinks)
		if t.acl {
			known |= flagPosixACL
		}
		return initial(r, buf, known, t.depth)
	case opForget:
		t.nodes.forget(r.node, le.Uint64(r.body))
		return nil
	case opBatchForget:
		for b := r.body[forgetsIn:]; len(b) >= forgetOne; b = b[forgetOne:] {
			t.nodes.forget(le.Uint64(b), le.Uint64(b[8:]))
		}
		return nil
	case opInterrupt:
		return nil
	case opStatfs:
		return t.statfs(r, buf)
	case opDestroy:
		return fail(buf, r, 0)
	case opRelease, opReleasedir:
		t.mu.Lock()
		delete(t.open, le.Uint64(r.body))
		t.mu.Unlock()
		return fail(buf, r, 0)
	}
	k, ok := t.nodes.get(r.node)
	if !ok {
		return fail(buf, r, unix.ESTALE)
	}
	if k.bare { // `ls -l` asks for two of each file, `cp -a` for their names
		switch {
		case r.op == opGetxattr:
			return fail(buf, r, unix.ENODATA)
		case r.op == opListxattr && le.Uint32(r.body) > 0:
			return filled(buf, r, nil)
		case r.op == opListxattr:
			return answer(buf, r, getxattrOut) // their length: 0
		}
	}
	b, err := t.about(r, k.ref, buf)
	if err != nil {
		return fail(buf, r, t.errno(err))
	}
	return b
}

// about carries out a request that is about a file.
func (t *tree) about(r request, ref fs.Ref, buf []byte) ([]byte, error) {
	le := binary.NativeEndian
	switch r.op {
	case opLookup:
		return t.lookup(r, ref, buf)
	case opGetattr:
		st, err := t.f.Stat(ref)
		if err != nil {
			return nil, err
		}
		b := answer(buf, r, attrOut)
		le.PutUint64(b[outHeader:], forever)
		t.putAttr(b[outHeader+16:], st)
		return b, nil
	case opReadlink:
		target, err := t.f.Readlink(ref)
		return filled(buf, r, []byte(target)), err
	case opOpen:
		f, err := t.f.Open(ref)
		if err != nil {
			return nil, err
		}
		return t.opened(r, buf, f, openKeepCache), nil
	case opOpendir:
		return t.opened(r, buf, &directory{ref: ref}, openKeepCache|openCacheDir), nil
	case opRead:
		return t.read(r, buf)
	case opReaddir, opReaddirPlus:
		return t.readdir(r, buf)
	case opGetxattr, opListxattr:
		return t.xattrs(r, ref, buf)
	case opLseek:
		return t.lseek(r, buf)
	}
	return nil, unix.ENOSYS
}

// errno is what the kernel is told of an error. One of a damaged file system is
// logged, once.
func (t *tree) errno(err error) unix.Errno {
	if e, ours := err.(unix.Errno); ours { // not one that is wrapped: of the worker's connection, say
		return e
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return unix.ENOENT
	case errors.Is(err, fs.ErrNotDir):
		return unix.ENOTDIR
	case errors.Is(err, fs.ErrNotFile), errors.Is(err, fs.ErrNotLink):
		return unix.EINVAL
	case errors.Is(err, fs.ErrEncrypted):
		return unix.ENOKEY
	}
	t.said.Do(func() { t.log.Warn("error of the file system; later ones are not told", "error", err) })
	return unix.EIO
}

// filled is an answer with this content.
func filled(buf []byte, r request, content []byte) []byte {
	b := buf[:outHeader+len(content)]
	copy(b[outHeader:], content)
	putHeader(b, r.unique, 0, len(content))
	return b
}

func (t *tree) opened(r request, buf []byte, what any, flags uint32) []byte {
	t.mu.Lock()
	t.last++
	handle := t.last
	t.open[handle] = what
	t.mu.Unlock()
	b := answer(buf, r, openOut)
	binary.NativeEndian.PutUint64(b[outHeader:], handle)
	binary.NativeEndian.PutUint32(b[outHeader+8:], flags)
	return b
}

// held is what a request's handle stands for.
func held[T any](t *tree, r request) (T, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	what, ok := t.open[binary.NativeEndian.Uint64(r.body)].(T)
	if !ok {
		return what, unix.EBADF
	}
	return what, nil
}

func (t *tree) lookup(r request, dir fs.Ref, buf []byte) ([]byte, error) {
	name, _, ended := bytes.Cut(r.body, []byte{0})
	if !ended || !fs.GoodName(string(name)) {
		return nil, fs.ErrNotExist
	}
	ref, err := t.f.Lookup(dir, string(name))
	if errors.Is(err, fs.ErrNotExist) {
		b := answer(buf, r, entryOut) // node 0: there is no such name, and that stays so
		binary.NativeEndian.PutUint64(b[outHeader+16:], forever)
		return b, nil
	}
	if err != nil {
		return nil, err
	}
	st, err := t.f.Stat(ref)
	if err != nil {
		return nil, err
	}
	b := answer(buf, r, entryOut)
	t.putEntry(b[outHeader:], ref, st)
	return b, nil
}

// putEntry is fuse_entry_out. The kernel knows the node from now on.
func (t *tree) putEntry(b []byte, ref fs.Ref, st fs.Stat) {
	le := binary.NativeEndian
	le.PutUint64(b, t.nodes.know(ref, st))
	le.PutUint64(b[16:], forever) // of the name
	le.PutUint64(b[24:], forever) // of the attributes
	st.Ref = ref
	t.putAttr(b[40:], st)
}

func (t *tree) read(r request, buf []byte) ([]byte, error) {
	f, err := held[fs.File](t, r)
	if err != nil {
		return nil, err
	}
	off, n := r.span()
	if off > math.MaxInt64 || n > maxIO {
		return nil, unix.EINVAL
	}
	left := max(0, f.Size()-int64(off))
	want := int(min(int64(n), left))
	b := buf[:outHeader+want]
	if want > 0 {
		if n, err := f.ReadAt(b[outHeader:], int64(off)); n < want {
			if err == nil {
				err = unix.EIO
			}
			return nil, err
		}
	}
	putHeader(b, r.unique, 0, want)
	return b, nil
}

// lseek finds data and holes, as lseek(2) has it: a file ends with a hole.
func (t *tree) lseek(r request, buf []byte) ([]byte, error) {
	f, err := held[fs.File](t, r)
	if err != nil {
		return nil, err
	}
	le := binary.NativeEndian
	off, whence := le.Uint64(r.body[8:]), le.Uint32(r.body[16:])
	size := f.Size()
	switch {
	case whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE:
		return nil, unix.EINVAL
	case off >= uint64(size):
		return nil, unix.ENXIO
	}
	found := int64(-1)
	err = f.Extents(int64(off), size-int64(off), func(e fs.Extent) error {
		if hole := e.Kind == fs.Hole || e.Kind == fs.Unwritten; hole == (whence == unix.SEEK_HOLE) {
			found = max(e.Off, int64(off))
			return errFound
		}
		return nil
	})
	switch {
	case err != nil && !errors.Is(err, errFound):
		return nil, err
	case found < 0 && whence == unix.SEEK_DATA:
		return nil, unix.ENXIO
	case found < 0:
		found = size
	}
	b := answer(buf, r, lseekOut)
	le.PutUint64(b[outHeader:], uint64(found))
	return b, nil
}

var errFound = errors.New("found")

// xattrs answers both requests of attributes: with the value or the names, or,
// asked for nothing, with their length.
func (t *tree) xattrs(r request, ref fs.Ref, buf []byte) ([]byte, error) {
	le := binary.NativeEndian
	room := int(le.Uint32(r.body))
	name, _, ended := bytes.Cut(r.body[getxattrIn:], []byte{0})
	if r.op == opGetxattr && !ended {
		return nil, unix.EINVAL
	}
	var got []byte
	there := r.op == opListxattr
	err := t.f.Xattrs(ref, func(n string, value []byte) error {
		switch {
		case r.op == opListxattr:
			if len(got)+len(n)+1 > fs.MaxXattr {
				return unix.E2BIG
			}
			got = append(append(got, n...), 0)
		case n == string(name):
			got, there = bytes.Clone(value), true
			return errFound
		}
		return nil
	})
	switch {
	case err != nil && !errors.Is(err, errFound):
		return nil, err
	case !there:
		return nil, unix.ENODATA
	case len(got) > fs.MaxXattr:
		return nil, unix.E2BIG
	case room == 0:
		b := answer(buf, r, getxattrOut)
		le.PutUint32(b[outHeader:], uint32(len(got)))
		return b, nil
	case len(got) > room:
		return nil, unix.ERANGE
	}
	return filled(buf, r, got), nil
}
