package ntfs

import (
	"errors"
	"fmt"
	"time"

	"github.com/cleave-san/cleave/lun/fs"
)

// Attributes of a file, in STANDARD_INFORMATION and in a directory's entry; fileIndex
// is in the latter alone.
const (
	fileReadOnly = 0x1
	fileSystem   = 0x4
	fileReparse  = 0x400
	fileIndex    = 0x10000000
)

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// Stat implements fs.FS.
func (f *FS) Stat(r fs.Ref) (fs.Stat, error) {
	n, err := f.get(r)
	if err != nil {
		return fs.Stat{}, err
	}
	return f.stat(n)
}

func (f *FS) stat(n *inode) (fs.Stat, error) {
	st := fs.Stat{Ref: fs.Ref{Inode: n.number}, Type: fs.Regular, Mode: 0o644, NoXattrs: true}
	flags := uint32(0)
	if a := n.find(typeStandard, ""); a != nil {
		if len(a.value) < 36 {
			return st, n.damaged(a.off+16, "ValueLength", len(a.value), "is too little for STANDARD_INFORMATION")
		}
		at := func(i int) time.Time { return windowsTime(le.Uint64(a.value[i:])) }
		st.Born, st.Modified, st.Changed, st.Accessed = at(0), at(8), at(16), at(24)
		flags = le.Uint32(a.value[32:])
	}
	for _, a := range n.attrs {
		switch {
		case a.kind == typeName && len(a.value) >= 66 && a.value[65] != nameDOS:
			st.Links++
		case a.kind == typeData && a.name != "":
			st.NoXattrs = false
			st.Allocated += a.allocated
		case a.kind == typeData:
			st.Size = a.size
			st.Allocated += a.allocated
		case a.kind == typeIndex:
			st.Allocated += a.allocated
		}
	}
	sp, err := f.special(n, flags)
	if err != nil {
		return st, err
	}
	switch {
	case sp != nil && sp.kind != fs.Unknown:
		st.Type, st.Major, st.Minor = sp.kind, sp.major, sp.minor
		if st.Size = 0; sp.kind == fs.Symlink {
			st.Size, st.Mode = int64(len(sp.target)), 0o777
		}
	case n.dir():
		st.Type, st.Mode, st.Size = fs.Directory, 0o755, 0
	case flags&fileReadOnly != 0:
		st.Mode &^= 0o222
	}
	return st, nil
}

// windowsTime is 100 ns since 1601, zero if it is not set.
func windowsTime(n uint64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	const second, epoch = 10_000_000, 11_644_473_600
	return time.Unix(int64(n/second)-epoch, int64(n%second)*100)
}

// Readlink implements fs.FS.
func (f *FS) Readlink(r fs.Ref) (string, error) {
	n, err := f.get(r)
	if err != nil {
		return "", err
	}
	sp, err := f.special(n, n.fileFlags())
	if err == nil && (sp == nil || sp.kind != fs.Symlink) {
		err = fs.ErrNotLink
	}
	if err != nil {
		return "", fmt.Errorf("ntfs %v: %w", r, err)
	}
	return sp.target, nil
}

// fileFlags are a file's attributes, 0 if they aren't known.
func (n *inode) fileFlags() uint32 {
	if a := n.find(typeStandard, ""); a != nil && len(a.value) >= 36 {
		return le.Uint32(a.value[32:])
	}
	return 0
}

// Xattrs implements fs.FS: the named streams.
func (f *FS) Xattrs(r fs.Ref, fn func(name string, value []byte) error) error {
	n, err := f.get(r)
	if err != nil {
		return err
	}
	for _, a := range n.attrs {
		if a.kind != typeData || a.name == "" || a.size > fs.MaxXattr {
			continue
		}
		if a.flags&attrEncrypted != 0 {
			return fmt.Errorf("ntfs %v: stream %.200q: %w", r, a.name, fs.ErrEncrypted)
		}
		c, err := f.content(a)
		if err != nil {
			return err
		}
		b := make([]byte, c.Size())
		if k, err := c.ReadAt(b, 0); k < len(b) {
			return err
		}
		if err := fn("user."+a.name, b); err != nil {
			return err
		}
	}
	return nil
}
