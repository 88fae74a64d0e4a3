// Package btrfs reads the files of a Btrfs subvolume: lun/fs over the trees of
// lun/store/btrfs, which says what of Btrfs is read.
//
// Subvolumes within the one that was opened are entered like directories, as the
// kernel does; Ref.Tree is a subvolume's ID. One that a snapshot only remembers is
// an empty directory, which has inode 2.
//
// Content is read whether it lies inline, in extents, preallocated or compressed
// by zlib, zstd or LZO. The checksums of tree blocks are looked at, those of data
// are not. A subvolume that has a log tree is fs.ErrDirty.
package btrfs

import (
	"errors"
	"fmt"
	"time"

	"encoding/binary"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/store/btrfs"
)

var le = binary.LittleEndian

const kind = "btrfs"

// emptyDir is the inode that stands for a subvolume that isn't there
// (BTRFS_EMPTY_SUBVOL_DIR_OBJECTID).
const emptyDir = 2

// FS is a subvolume as a file system: an fs.FS.
type FS struct {
	f      *btrfs.FS
	root   *btrfs.Subvolume
	byID   map[uint64]*btrfs.Subvolume
	logged map[uint64]bool
}

var _ fs.FS = (*FS)(nil)

// Open opens the subvolume with an ID; 0 is the default one, which a mount without
// options shows.
func Open(f *btrfs.FS, id uint64) (*FS, error) {
	list, err := f.Subvolumes()
	if err != nil {
		return nil, err
	}
	x := &FS{f: f, byID: make(map[uint64]*btrfs.Subvolume)}
	for _, s := range list {
		x.byID[s.ID] = s
		if s.ID == id || id == 0 && s.Default {
			x.root = s
		}
	}
	if x.root == nil {
		return nil, fmt.Errorf("subvolume %d: %w", id, fs.ErrNotExist)
	}
	if x.logged, err = f.Logged(); err != nil {
		return nil, err
	}
	_, err = x.tree(x.root.ID)
	return x, err
}

// tree is that of a subvolume.
func (x *FS) tree(id uint64) (*btrfs.Tree, error) {
	s := x.byID[id]
	switch {
	case s == nil:
		return nil, fmt.Errorf("subvolume %d: %w", id, fs.ErrNotExist)
	case x.logged[id]:
		return nil, fmt.Errorf("subvolume %d: %w", id, fs.ErrDirty)
	}
	return x.f.Tree(s), nil
}

func damaged(r fs.Ref, field string, v any, why string) error {
	return fmt.Errorf("%v: %w", r, &lun.FormatError{Format: kind, Offset: -1, Field: field, Value: v, Reason: why})
}

// Info implements fs.FS.
func (x *FS) Info() fs.Info {
	i := fs.Info{Kind: kind, Variant: x.f.Checksum(), Label: x.f.Label(), UUID: x.f.UUID(), Size: x.f.Size(), BlockSize: x.f.SectorSize()}
	if x.f.Warning != nil {
		i.Warnings = append(i.Warnings, x.f.Warning)
	}
	return i
}

// Root implements fs.FS.
func (x *FS) Root() fs.Ref { return fs.Ref{Tree: x.root.ID, Inode: btrfs.FirstFree} }

// inode is an inode item, struct btrfs_inode_item:
//
//	16 8 size     44 4 uid     56  8 rdev     136 12 mtime
//	24 8 nbytes   48 4 gid    112 12 atime    148 12 otime
//	40 4 nlink    52 4 mode   124 12 ctime
type inode []byte

const inodeSize = 160

func (i inode) size() uint64 { return le.Uint64(i[16:]) }
func (i inode) mode() uint32 { return le.Uint32(i[52:]) }

func (i inode) time(at int) time.Time {
	sec := int64(le.Uint64(i[at:]))
	if sec == 0 && le.Uint32(i[at+8:]) == 0 {
		return time.Time{}
	}
	return time.Unix(sec, int64(le.Uint32(i[at+8:])%1e9)).UTC()
}

func (x *FS) inode(r fs.Ref) (inode, *btrfs.Tree, error) {
	t, err := x.tree(r.Tree)
	if err != nil {
		return nil, nil, err
	}
	b, err := t.Get(btrfs.Key{Object: r.Inode, Type: btrfs.InodeItem})
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("%v: %w", r, err)
	case b == nil:
		return nil, nil, fmt.Errorf("%v: %w", r, fs.ErrNotExist)
	case len(b) < inodeSize:
		return nil, nil, damaged(r, "inode item", len(b), "is too short")
	}
	return b, t, nil
}

// typed is inode that has to be of a type.
func (x *FS) typed(r fs.Ref, want fs.Type, other error) (inode, *btrfs.Tree, error) {
	i, t, err := x.inode(r)
	if err == nil && fs.TypeOf(i.mode()) != want {
		err = fmt.Errorf("%v: %w", r, other)
	}
	return i, t, err
}

// Stat implements fs.FS.
func (x *FS) Stat(r fs.Ref) (fs.Stat, error) {
	if r.Inode == emptyDir && x.byID[r.Tree] != nil {
		return fs.Stat{Ref: r, Type: fs.Directory, Mode: 0o755, Links: 1}, nil
	}
	i, _, err := x.inode(r)
	if err != nil {
		return fs.Stat{}, err
	}
	if i.size() > 1<<63-1 {
		return fs.Stat{}, damaged(r, "size", i.size(), "makes no sense")
	}
	st := fs.Stat{Ref: r, Type: fs.TypeOf(i.mode()), Mode: uint16(i.mode() & 0o7777), UID: le.Uint32(i[44:]), GID: le.Uint32(i[48:]), Links: le.Uint32(i[40:]),
		Size: int64(i.size()), Allocated: int64(min(le.Uint64(i[24:]), 1<<62)),
		Accessed: i.time(112), Changed: i.time(124), Modified: i.time(136), Born: i.time(148)}
	if st.Type == fs.CharDevice || st.Type == fs.BlockDevice {
		dev := le.Uint64(i[56:]) // the kernel's own dev_t
		st.Major, st.Minor = uint32(dev>>20), uint32(dev&(1<<20-1))
	}
	return st, nil
}

// fileTypes are those of directory entries (BTRFS_FT_*).
var fileTypes = [...]fs.Type{1: fs.Regular, fs.Directory, fs.CharDevice, fs.BlockDevice, fs.Pipe, fs.Socket, fs.Symlink}

// entry is what a directory of r says of a name.
func (x *FS) entry(r fs.Ref, e btrfs.DirEntry) (fs.Entry, error) {
	if !fs.GoodName(e.Name) {
		return fs.Entry{}, damaged(r, "name", e.Name, "is none that a directory may have")
	}
	out := fs.Entry{Name: e.Name, Ref: fs.Ref{Tree: r.Tree, Inode: e.Location.Object}}
	if int(e.Type) < len(fileTypes) {
		out.Type = fileTypes[e.Type]
	}
	switch e.Location.Type {
	case btrfs.InodeItem:
	case btrfs.RootItem:
		out.Type, out.Ref.Inode = fs.Directory, emptyDir
		if s := x.byID[e.Location.Object]; s != nil && s.Parent == r.Tree && s.In(r.Inode, e.Name) {
			out.Ref = fs.Ref{Tree: s.ID, Inode: btrfs.FirstFree}
		}
	default:
		return fs.Entry{}, damaged(r, "location", e.Location.String(), "is neither an inode nor a subvolume")
	}
	return out, nil
}

// Lookup implements fs.FS.
func (x *FS) Lookup(dir fs.Ref, name string) (fs.Ref, error) {
	if dir.Inode == emptyDir {
		return fs.Ref{}, fs.ErrNotExist
	}
	_, t, err := x.typed(dir, fs.Directory, fs.ErrNotDir)
	if err != nil {
		return fs.Ref{}, err
	}
	b, err := t.Get(btrfs.NameKey(dir.Inode, btrfs.DirItem, name))
	if err != nil {
		return fs.Ref{}, fmt.Errorf("%v: %w", dir, err)
	}
	for e := range btrfs.Entries(b) {
		if e.Name == name {
			out, err := x.entry(dir, e)
			return out.Ref, err
		}
	}
	return fs.Ref{}, fs.ErrNotExist
}

// List implements fs.FS. The order is that in which names were made.
func (x *FS) List(dir fs.Ref, after uint64, fn func(fs.Entry) error) error {
	if dir.Inode == emptyDir && x.byID[dir.Tree] != nil {
		return nil
	}
	_, t, err := x.typed(dir, fs.Directory, fs.ErrNotDir)
	if err != nil || after == ^uint64(0) {
		return err
	}
	var stop error // fn's own
	err = t.Walk(btrfs.Key{Object: dir.Inode, Type: btrfs.DirIndex, Offset: after + 1}, func(k btrfs.Key, b []byte) (bool, error) {
		if k.Object != dir.Inode || k.Type != btrfs.DirIndex {
			return false, nil
		}
		n := 0
		for e := range btrfs.Entries(b) {
			if n++; n > 1 {
				break // an index has one
			}
			out, err := x.entry(dir, e)
			if err != nil {
				return false, err
			}
			out.Next = k.Offset
			if stop = fn(out); stop != nil {
				return false, stop
			}
		}
		if n == 0 {
			return false, damaged(dir, "directory index", k.Offset, "has no entry")
		}
		return true, nil
	})
	if stop != nil {
		return stop
	}
	if err != nil {
		return fmt.Errorf("%v: %w", dir, err)
	}
	return nil
}

// Readlink implements fs.FS.
func (x *FS) Readlink(r fs.Ref) (string, error) {
	i, t, err := x.typed(r, fs.Symlink, fs.ErrNotLink)
	if err != nil {
		return "", err
	}
	if i.size() > fs.MaxTarget {
		return "", damaged(r, "size", i.size(), "is more than a symbolic link has")
	}
	b := make([]byte, i.size())
	f := &file{x: x, r: r, t: t, size: int64(len(b))}
	if _, err := f.ReadAt(b, 0); err != nil {
		return "", err
	}
	return string(b), nil
}

// Xattrs implements fs.FS.
func (x *FS) Xattrs(r fs.Ref, fn func(name string, value []byte) error) error {
	if r.Inode == emptyDir {
		return nil
	}
	_, t, err := x.inode(r)
	if err != nil {
		return err
	}
	var stop error
	err = t.Walk(btrfs.Key{Object: r.Inode, Type: btrfs.XattrItem}, func(k btrfs.Key, b []byte) (bool, error) {
		if k.Object != r.Inode || k.Type != btrfs.XattrItem {
			return false, nil
		}
		for e := range btrfs.Entries(b) {
			if stop = fn(e.Name, e.Data); stop != nil {
				return false, stop
			}
		}
		return true, nil
	})
	if stop != nil {
		return stop
	}
	if err != nil {
		return fmt.Errorf("%v: %w", r, err)
	}
	return nil
}

// Open implements fs.FS.
func (x *FS) Open(r fs.Ref) (fs.File, error) {
	if r.Inode == emptyDir {
		return nil, fmt.Errorf("%v: %w", r, fs.ErrNotFile)
	}
	i, t, err := x.typed(r, fs.Regular, fs.ErrNotFile)
	if err != nil {
		return nil, err
	}
	if i.size() > 1<<63-1 {
		return nil, damaged(r, "size", i.size(), "makes no sense")
	}
	return &file{x: x, r: r, t: t, size: int64(i.size())}, nil
}

var errDone = errors.New("done") // ends a walk
