package disktest

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
)

// FS is a disk.FS in memory. Names are absolute paths. All methods may be
// called at once.
type FS struct {
	mu     sync.Mutex
	root   *node
	nodes  int64
	locks  map[string]bool
	points int64
	onSync func(Point)
	fault  func(Op, string) error
}

// Op is a call that can be made to fail.
type Op string

// The calls that a fault can be put into.
const (
	OpOpen    Op = "open"
	OpWrite   Op = "write" // holes, zeroes and sizes as well
	OpSync    Op = "sync"
	OpSyncDir Op = "sync of directory"
	OpRename  Op = "rename"
	OpRemove  Op = "remove"
)

// Point is a sync point: a Sync or SyncDir that is about to take effect.
type Point struct {
	N    int64 // of the file system, from 1
	Op   Op    // OpSync or OpSyncDir
	Name string
}

// node is a file or a directory.
type node struct {
	id  int64 // in the order in which they were made
	dir bool

	live, stable *content // of a file
	changes      []change // from stable to live

	names, stableNames map[string]*node // of a directory
	moves              []move
}

// move is a change of a directory's names that is not stable yet: to is n
// afterwards, or gone if n is nil, and from, unless it is empty, is gone.
type move struct {
	from, to string
	n        *node
}

// New returns a file system with an empty root.
func New() *FS {
	f := &FS{locks: map[string]bool{}}
	f.root = f.newNode(true)
	return f
}

// OnSync has fn called at every sync point, by whoever syncs and before it takes
// effect. fn may call Cut. OnSync(nil) ends it; a call under way may still come.
func (f *FS) OnSync(fn func(Point)) {
	f.mu.Lock()
	f.onSync = fn
	f.mu.Unlock()
}

// Fail has fn asked before a call what it is to fail with; nil lets it pass.
// A call that fails has had no effect. Fail(nil) ends it.
func (f *FS) Fail(fn func(op Op, name string) error) {
	f.mu.Lock()
	f.fault = fn
	f.mu.Unlock()
}

func (f *FS) failing(op Op, name string) error {
	f.mu.Lock()
	fn := f.fault
	f.mu.Unlock()
	if fn == nil {
		return nil
	}
	if err := fn(op, name); err != nil {
		return &os.PathError{Op: string(op), Path: name, Err: err}
	}
	return nil
}

// point announces a sync point.
func (f *FS) point(op Op, name string) {
	f.mu.Lock()
	f.points++
	p, fn := Point{N: f.points, Op: op, Name: name}, f.onSync
	f.mu.Unlock()
	if fn != nil {
		fn(p)
	}
}

// Points is how many sync points there were.
func (f *FS) Points() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.points
}

func (f *FS) newNode(dir bool) *node {
	f.nodes++
	n := &node{id: f.nodes, dir: dir}
	if dir {
		n.names, n.stableNames = map[string]*node{}, map[string]*node{}
	} else {
		n.stable = new(content)
		n.stable.frozen.Store(true)
		n.live = n.stable
	}
	return n
}

// find walks to a node; mu is held.
func (f *FS) find(op, name string) (*node, error) {
	at := f.root
	for part := range strings.SplitSeq(strings.Trim(filepath.Clean(name), "/"), "/") {
		if part == "" {
			continue
		}
		if !at.dir {
			return nil, &os.PathError{Op: op, Path: name, Err: syscall.ENOTDIR}
		}
		next := at.names[part]
		if next == nil {
			return nil, &os.PathError{Op: op, Path: name, Err: syscall.ENOENT}
		}
		at = next
	}
	return at, nil
}

// parent is the directory that name lies in.
func (f *FS) parent(op, name string) (dir *node, base string, err error) {
	if dir, err = f.find(op, filepath.Dir(name)); err == nil && !dir.dir {
		err = &os.PathError{Op: op, Path: name, Err: syscall.ENOTDIR}
	}
	return dir, filepath.Base(name), err
}

func (d *node) do(m move) {
	m.apply(d.names)
	d.moves = append(d.moves, m)
}

func (m move) apply(names map[string]*node) {
	if m.n == nil {
		delete(names, m.to)
		return
	}
	if m.from != "" && names[m.from] == m.n {
		delete(names, m.from)
	}
	names[m.to] = m.n
}

// OpenFile is disk.FS's.
func (f *FS) OpenFile(name string, flag int) (disk.File, error) {
	if err := f.failing(OpOpen, name); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d, base, err := f.parent("open", name)
	if err != nil {
		return nil, err
	}
	n := d.names[base]
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, &os.PathError{Op: "open", Path: name, Err: syscall.ENOENT}
	case n != nil && flag&os.O_EXCL != 0:
		return nil, &os.PathError{Op: "open", Path: name, Err: syscall.EEXIST}
	case n != nil && n.dir:
		return nil, &os.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	case n == nil:
		n = f.newNode(false)
		d.do(move{to: base, n: n})
	case flag&os.O_TRUNC != 0:
		n.truncate(0)
	}
	return &file{fs: f, n: n, name: name, readOnly: flag&(os.O_WRONLY|os.O_RDWR) == 0}, nil
}

// Mkdir is disk.FS's.
func (f *FS) Mkdir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, base, err := f.parent("mkdir", name)
	if err != nil {
		return err
	}
	if d.names[base] != nil {
		return &os.PathError{Op: "mkdir", Path: name, Err: syscall.EEXIST}
	}
	d.do(move{to: base, n: f.newNode(true)})
	return nil
}

// Rename is disk.FS's, within one directory.
func (f *FS) Rename(from, to string) error {
	if err := f.failing(OpRename, to); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d, a, err := f.parent("rename", from)
	if err != nil {
		return err
	}
	e, b, err := f.parent("rename", to)
	switch {
	case err != nil:
		return err
	case d != e:
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.EXDEV}
	case d.names[a] == nil:
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.ENOENT}
	}
	if a != b {
		d.do(move{from: a, to: b, n: d.names[a]})
	}
	return nil
}

// Remove is disk.FS's.
func (f *FS) Remove(name string) error {
	if err := f.failing(OpRemove, name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d, base, err := f.parent("remove", name)
	if err != nil {
		return err
	}
	switch n := d.names[base]; {
	case n == nil:
		return &os.PathError{Op: "remove", Path: name, Err: syscall.ENOENT}
	case len(n.names) > 0:
		return &os.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	d.do(move{to: base})
	return nil
}

// ReadDir is disk.FS's.
func (f *FS) ReadDir(name string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.find("readdir", name)
	if err != nil {
		return nil, err
	}
	if !n.dir {
		return nil, &os.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	return sortedNames(n.names), nil
}

func sortedNames(m map[string]*node) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// Stat is disk.FS's.
func (f *FS) Stat(name string) (os.FileInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.find("stat", name)
	if err != nil {
		return nil, err
	}
	return n.info(name), nil
}

// SyncDir is disk.FS's, and a sync point.
func (f *FS) SyncDir(name string) error {
	f.point(OpSyncDir, name)
	if err := f.failing(OpSyncDir, name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.find("sync", name)
	if err != nil {
		return err
	}
	for _, m := range n.moves {
		m.apply(n.stableNames)
	}
	n.moves = nil
	return nil
}

// Lock is disk.FS's. The end of the process is a cut.
func (f *FS) Lock(name string) (io.Closer, error) {
	h, err := f.OpenFile(name, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	h.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.locks[name] {
		return nil, &os.PathError{Op: "lock", Path: name, Err: disk.ErrLocked}
	}
	f.locks[name] = true
	return unlocker{f, name}, nil
}

type unlocker struct {
	f    *FS
	name string
}

func (u unlocker) Close() error {
	u.f.mu.Lock()
	delete(u.f.locks, u.name)
	u.f.mu.Unlock()
	return nil
}

// Space is disk.FS's: there is always enough.
func (f *FS) Space(dir string) (size, free int64, err error) {
	_, err = f.Stat(dir)
	return 1 << 40, 1 << 39, err
}

// Files lists all files, not directories, by path.
func (f *FS) Files() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	var walk func(path string, n *node)
	walk = func(path string, n *node) {
		for _, k := range sortedNames(n.names) {
			if c := n.names[k]; c.dir {
				walk(path+"/"+k, c)
			} else {
				out = append(out, path+"/"+k)
			}
		}
	}
	walk("", f.root)
	return out
}

// info is what Stat says.
type info struct {
	name string
	size int64
	dir  bool
	node *node
}

func (n *node) info(name string) info {
	i := info{name: filepath.Base(name), dir: n.dir, node: n}
	if !n.dir {
		i.size = n.live.size
	}
	return i
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.dir }
func (i info) Sys() any           { return i.node }
func (i info) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}

var _ disk.FS = (*FS)(nil)
